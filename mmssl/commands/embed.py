"""Features of a folder of media: written to a file, or drawn as neighbours of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmssl.commands.features import features_of, open_media, say, told_how, views
from mmssl.commands.inputs import asked_of
from mmssl.commands.reading import Reading
from mmssl.data import (
    notes,
    subset,
)
from mmssl.encoder import Encoder
from mmssl.errors import UserError, as_text
from mmssl.evaluation.answers import Labels, several
from mmssl.modality import VIDEO, Modality, zero_to_one
from mmssl.report.pictures import neighbours as draw_neighbours
from mmssl.training import distributed
from mmssl.training.run_folder import model_in


def embed(model: Path, data: Path, out: Path, reading: Reading, patches: bool = False) -> None:
    """Write the features of a folder as .parquet or .npz."""
    if out.suffix not in (".parquet", ".npz"):
        raise UserError(f"{out}: features are written as .parquet or .npz; change the ending")
    folder = model_in(model)
    encoder, reading = asked_of(Encoder.from_pretrained(folder), data, told_how(reading, folder))
    source = open_media(encoder, data, None, reading)
    say(notes(source))
    (found,) = features_of({"": encoder}, source, reading, distributed.init(reading.device), patches).values()
    columns: dict[str, Any] = {"name": found.names}
    if found.labels is not None:
        columns["label"] = named(found.labels, source.classes)
    out.parent.mkdir(parents=True, exist_ok=True)
    values = found.features
    if patches:
        tokenizer, *others = encoder.config.tokenizers
        grid = [-1] if others else [a // b for a, b in zip(tokenizer.size, tokenizer.modality.patch, strict=True)]
        values = values.unflatten(1, (*grid, encoder.dim))
    if out.suffix == ".npz":
        arrays: dict[str, Any] = {
            f"{key}s": np.array([";".join(cell) if isinstance(cell, list) else cell or "" for cell in column])
            for key, column in columns.items()
        }
        np.savez(out, features=values.numpy(), **arrays)
    else:
        import pyarrow as pa
        from pyarrow import parquet

        nested = pa.array(values.flatten().numpy())
        for length in reversed(values.shape[1:]):
            nested = pa.FixedSizeListArray.from_arrays(nested, length)
        with open(out, "wb") as file:  # pyarrow takes no path that is not UTF-8
            parquet.write_table(pa.table({**columns, "feature": nested}), file)
    print(f"{len(found)} features of {' x '.join(map(str, values.shape[1:]))} numbers: {as_text(str(out))}")


def named(labels: Labels, classes: Sequence[str]) -> list[str | None] | list[list[str]]:
    """Each sample's class, or its classes."""
    if several(labels):
        return [[classes[number] for number in row.nonzero().flatten().tolist()] for row in labels]
    return [classes[label] if label >= 0 else None for label in labels.tolist()]


def neighbours(
    model: Path, data: Path, out: Path, reading: Reading, queries: int, shown: int, named: Sequence[str]
) -> None:
    """Draw queries, evenly spread over the media or `named`, each with those whose features are nearest to its own."""
    folder = model_in(model)
    encoder, reading = asked_of(Encoder.from_pretrained(folder), data, told_how(reading, folder))
    modality = encoder.config.tokenizers[0].modality
    if not modality.patch:
        raise UserError("neighbours are drawn as pictures, which texts are not: take features, `mmssl embed`")
    source = open_media(encoder, data, None, reading)
    say(notes(source))
    (found,) = features_of({"": encoder}, source, reading, distributed.init(reading.device)).values()
    assert found.names is not None
    if len(found) < 2:
        raise UserError(f"{data}: {len(found)} readable sample has no neighbour")
    if unknown := [name for name in named if name not in found.names]:
        raise UserError(f"{data}: no readable sample {unknown[0]!r}; names are paths within the folder")
    asked = [found.names.index(name) for name in named]
    asked = asked or torch.linspace(0, len(found) - 1, min(queries, len(found))).long().tolist()
    unit = torch.nn.functional.normalize(found.features, dim=1)
    nearness = unit[asked] @ unit.T
    nearness[range(len(asked)), asked] = torch.inf  # the query itself comes first
    order = nearness.topk(min(shown + 1, len(found)), dim=1).indices
    number = {source.name(index): index for index in range(len(source))}
    wanted = [number[found.names[index]] for index in order.flatten().tolist()]
    once = replace(reading, clips=1)
    pictures = torch.cat([still(batch, modality) for batch in views(encoder, subset(source, wanted), once)])
    out.write_bytes(draw_neighbours(pictures.unflatten(0, order.shape)))
    for query, line in zip(asked, order.tolist(), strict=True):
        print(f"{found.names[query]}: {', '.join(found.names[index] for index in line[1:])}")
    print(as_text(str(out)))


def still(batch: Mapping[str, torch.Tensor], modality: Modality) -> torch.Tensor:
    """Pictures in 0-1 for the eye, of a modality: of clips the frame in the middle."""
    if VIDEO.name in batch:
        clips = batch[VIDEO.name]
        return zero_to_one(clips[:, :, clips.shape[2] // 2])
    return modality.upright(modality.brightness(batch[modality.name]))
