"""What `mmssl evaluate --task dense` says: what linear probes of patch features find at every pixel."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmssl.commands.features import read_all, say
from mmssl.commands.inputs import inputs_of, pixels
from mmssl.commands.reading import Reading
from mmssl.data import AskedView, EvalView, NoTestPart, Source, evaluation_batches, hold_out, notes, subset
from mmssl.data.aligned import open_declared
from mmssl.data.labelled import test_part
from mmssl.data.rasters import Raster, declared, raster_named
from mmssl.encoder import Encoder
from mmssl.errors import UserError, as_text
from mmssl.evaluation import (
    Question,
    cell_nothing,
    cell_tokens,
    cell_values,
    fit_dense,
    grid_of_cells,
    said_and_true,
    score_dense,
    untrained,
)
from mmssl.report.dense import DENSE, DENSE_PICTURE, dense_picture, dense_told
from mmssl.training import distributed
from mmssl.training.run_folder import model_in

_SHOWN = 6


def evaluate_dense(
    model: Path,
    data: Path,
    out: Path | None,
    reading: Reading,
    target: str | None,
    where: str | None = None,
    baselines: bool = True,
    test: Path | None = None,
) -> None:
    """Print, and write where asked, what linear probes find of `target` at every pixel, from the features of a patch to
    all its pixels, and from what the model is held against.

    Inputs are those of `reading`, else all that the model reads but the target; samples that lack one, or the target,
    are left out. where: a label map and the classes where pixels count (see `where_meant`).
    """
    if target is None:
        raise UserError("--task dense asks for a modality at every pixel: name it by --target")
    encoder, device = Encoder.from_pretrained(model_in(model)), distributed.init(reading.device)
    encoder, rasters = encoder.to(device).eval(), declared(data, reading.modalities)
    asked = raster_named(target, rasters)
    inputs = inputs_of(encoder, rasters, reading.inputs, but=asked.name)
    place, classes = (None, ()) if where is None else where_meant(where, rasters)
    needed = tuple(dict.fromkeys([*inputs, asked, *([place] if place else [])]))

    def opened(path: Path, split: str | None) -> Source:
        return open_declared(path, split, needed).whole()

    train, held_out = opened(data, "train"), ""
    try:
        apart = test_part(opened, data, test)
    except NoTestPart:
        (train, apart), held_out = hold_out(train, 0.2, stratify=False), " (held out)"
    say(notes(train, apart))
    print(f"train: {len(train)} samples; test: {len(apart)} samples{held_out}")
    size = pixels(encoder, inputs)
    view = AskedView(EvalView(size, resize=size), inputs, asked, place)
    question = Question(asked.modality, partial(grid_of_cells, encoder), (place.name, classes) if place else None)
    name = as_text(model.name)
    ways = {name: cell_tokens(encoder)}
    if baselines:
        ways["random initialisation"] = cell_tokens(untrained(encoder).to(device).eval())
        ways["raw values of the patch"] = cell_values(encoder)
    ways["largest class" if question.labels else "mean"] = cell_nothing(encoder)
    fitted = fit_dense(
        ways, question, read_all(train, view, reading, "training part"), samples=len(train), device=device
    )
    rows = score_dense(fitted, ways, question, read_all(apart, view, reading, "test part"), device=device)
    found: dict[str, Any] = {
        "target": asked.name,
        "inputs": [each.name for each in inputs],
        "where": {"name": place.name, "classes": classes} if place else None,
        "train": len(train),
        "test": len(apart),
        "pixels": rows[0].pixels,
        "rows": [{"representation": row.representation, **row.scores, "l2": row.l2} for row in rows],
    }
    print(*dense_told(found), sep="\n")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / DENSE).write_text(json.dumps(found, indent=1))
    spread = torch.linspace(0, len(apart) - 1, min(_SHOWN, len(apart))).long().tolist()
    (batch,) = evaluation_batches(subset(apart, spread), view, batch_size=_SHOWN)
    columns = [each.modality.brightness(batch[each.name]) for each in inputs]
    said, true = said_and_true(fitted[name], ways[name], question, batch, device)
    (out / DENSE_PICTURE).write_bytes(dense_picture(columns, said, true, asked.modality))


def where_meant(text: str, rasters: tuple[Raster, ...]) -> tuple[Raster, tuple[int, ...]]:
    """The label map and the classes that `land=1,2` means, or `land`: all of its classes but 0.

    Raises UserError for anything else.
    """
    name, equals, numbers = text.partition("=")
    raster = raster_named(name, rasters)
    if not raster.labels:
        raise UserError(f"--where {text}: {raster.name} has numbers, and only classes say where pixels count")
    known = range(raster.modality.channels)
    if not equals:
        return raster, tuple(known[1:])
    classes = [int(number) if number.strip().isdecimal() else -1 for number in numbers.split(",")]
    if any(number not in known for number in classes):
        raise UserError(f"--where {text}: {raster.name} has the classes 0 to {known[-1]}; write {raster.name}=1,2")
    return raster, tuple(classes)
