"""What frozen features are worth: accuracies on labelled media, objects followed through videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from mmssl.commands.features import features_of, open_media, say
from mmssl.commands.reading import Reading
from mmssl.data import (
    DavisFolder,
    JhmdbFolder,
    NoTestPart,
    Source,
    Subset,
    hold_out,
    notes,
    subset,
)
from mmssl.encoder import Encoder, single_modality
from mmssl.errors import UserError, as_text
from mmssl.evaluation import (
    CROPMAE,
    DINO,
    MaskRow,
    PointRow,
    RawMedia,
    evaluate_masks,
    evaluate_points,
    label_budgets,
    mask_table,
    pck,
    penalties,
    raw_name,
    table,
    untrained,
)
from mmssl.evaluation import evaluate as measure
from mmssl.evaluation.knn import K
from mmssl.report.run import ACCURACIES
from mmssl.training import distributed
from mmssl.training.run_folder import model_in


def labelled(source: Source, without: str) -> Subset:
    """The samples that have labels; UserError, which says `without`, where none has."""
    if source.labels is None:
        raise UserError(without)
    return subset(source, [index for index, label in enumerate(source.labels) if label >= 0])


def class_names(source: Source) -> list[str]:
    """Each sample's class."""
    return [source.classes[label] for label in source.labels or ()]


def same_classes(test: Subset, train: Subset) -> Subset:
    """The test pictures under the training classes' numbers: each part's folders are numbered on their own."""
    if unknown := sorted(set(class_names(test)) - set(class_names(train))):
        raise UserError(f"the test part has the class {unknown[0]!r}, which the training part has not")
    renamed = subset(test, range(len(test)))
    number = {name: label for label, name in enumerate(train.classes)}
    renamed.labels, renamed.classes = [number[name] for name in class_names(test)], train.classes
    return renamed


def counted(source: Subset) -> str:
    """How many samples of how many classes."""
    return f"{len(source)} samples, {len(set(source.labels or ()))} classes"


def evaluate(model: Path, data: Path, out: Path | None, reading: Reading, baselines: bool = True) -> None:
    """Print, and write where asked, kNN and linear-probe accuracies of the model and of what it is held against."""
    encoder = Encoder.from_pretrained(model_in(model))
    encoders: dict[str, Encoder | RawMedia] = {as_text(model.name): encoder}
    if baselines:
        encoders |= {"random initialisation": untrained(encoder), raw_name(single_modality(encoder)): RawMedia()}
    classless = f"{data}: no labels; evaluation needs a folder of class folders, at least two"
    train_source, held_out = labelled(open_media(encoder, data, "train", reading), classless), ""
    try:
        classless = "the test part has no labels: give it the class folders of the training part"
        test_source = labelled(open_media(encoder, data, "test", reading), classless)
    except NoTestPart:
        (train_source, test_source), held_out = hold_out(train_source, 0.2), " (held out, stratified by class)"
    test_source = same_classes(test_source, train_source)
    say(notes(train_source, test_source))
    print(f"train: {counted(train_source)}; test: {counted(test_source)}{held_out}")
    where = distributed.init(reading.device)
    train, test = (features_of(encoders, part, reading, where) for part in (train_source, test_source))
    shown, asked = (next(iter(part.values())).labels for part in (train, test))
    assert shown is not None and asked is not None
    budgets = label_budgets(shown)
    rows = [row for name in encoders for row in measure(train[name], test[name], budgets, representation=name)]
    chance, largest = 1 / len(train_source.classes), int(asked.bincount().max()) / len(asked)
    print(f"chance: {100 * chance:.1f} %, the largest class alone {100 * largest:.1f} %; kNN: k = {K}")
    print(f"{table(rows)}\n{penalties(rows)}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / ACCURACIES).write_text(json.dumps([asdict(row) for row in rows], indent=1))


def follow(
    model: Path,
    data: Path,
    out: Path | None,
    kind: Literal["masks", "points"],
    rule: Literal["crw", "dino"],
    side: int | None,
    split_lists: Sequence[Path],
    device: str,
    background: str,
) -> None:
    """Print, and write where asked, how well the features carry each sequence's first labels on to its other frames."""
    from rich.progress import Progress

    encoder, where = Encoder.from_pretrained(model_in(model)), distributed.init(device)
    settings = CROPMAE if rule == "crw" else DINO
    with Progress(transient=True) as bar:
        task = bar.add_task("sequences", total=None)

        def advance(_: str) -> None:
            bar.advance(task)

        rows: list[MaskRow] | list[PointRow]
        if kind == "masks":
            masks = DavisFolder(data, short_side=side, background=background)
            bar.update(task, total=len(masks))
            rows = found = evaluate_masks(encoder, masks, settings, device=where, progress=advance)
            text = mask_table(found)
        else:
            points = JhmdbFolder(data, split_lists or None, short_side=side, background=background)
            bar.update(task, total=len(points))
            rows = errors = evaluate_points(encoder, points, settings, device=where, progress=advance)
            text = "\n".join(f"PCK@{alpha}: {100 * pck(errors, alpha):.1f} %" for alpha in (0.1, 0.2))
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{kind}.json").write_text(
            json.dumps([asdict(row) for row in rows], indent=1, default=torch.Tensor.tolist)
        )
