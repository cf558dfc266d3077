"""What frozen features are worth: accuracies on labelled media, objects followed through videos."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from mmssl.commands.features import features_and_patches_of, features_of, open_media, say, told_how
from mmssl.commands.inputs import asked_of
from mmssl.commands.reading import Reading
from mmssl.commands.words import evaluate_words, language_model
from mmssl.data import (
    DavisFolder,
    JhmdbFolder,
    notes,
)
from mmssl.data.folders import listed
from mmssl.data.labelled import both_parts, counted
from mmssl.encoder import Encoder
from mmssl.errors import UserError, as_text
from mmssl.evaluation import (
    CROPMAE,
    DINO,
    MaskRow,
    PointRow,
    RawMedia,
    evaluate_masks,
    evaluate_patches,
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
from mmssl.evaluation.answers import Labels, several
from mmssl.evaluation.knn import K
from mmssl.modality import IMAGE, TEXT
from mmssl.report.run import ACCURACIES
from mmssl.report.words import WORDS, words_told
from mmssl.training import distributed
from mmssl.training.run_folder import model_in


def evaluate(
    model: Path,
    data: Path,
    out: Path | None,
    reading: Reading,
    baselines: bool = True,
    attentive: bool = False,
    test: Path | None = None,
    texts: int = 64,
) -> None:
    """Print, and write where asked, what kNN and linear probe, and an attentive one where asked, make of the model and
    of what it is held against: accuracies, or mean average precision where samples have several labels each.

    Of a model of texts before that how well it knows their words, and that alone where no label is named (see
    `evaluate_words`).
    """
    folder = model_in(model)
    encoder, reading = asked_of(Encoder.from_pretrained(folder), data, told_how(reading, folder))
    read = [tokenizer.modality for tokenizer in encoder.config.tokenizers]
    if [each.name for each in read] == [TEXT.name]:
        of_words(folder, encoder, data, out, reading, test, texts)
        if reading.label is None:
            return
    encoders: dict[str, Encoder | RawMedia] = {as_text(model.name): encoder}
    if baselines:
        words = [each for each in read if each.name == TEXT.name]  # of pairs, they tell more than pixels do
        raw = {"raw values": RawMedia(read)} if reading.modalities else {raw_name((words or read)[0]): RawMedia()}
        encoders |= {"random initialisation": untrained(encoder), **raw}
    sources = both_parts(lambda path, split: open_media(encoder, path, split, reading), data, test)
    train_source, test_source, held_out = sources
    say(notes(train_source, test_source))
    print(f"train: {counted(train_source)}; test: {counted(test_source)}{held_out}")
    where = distributed.init(reading.device)
    if attentive:
        (train, train_patches), (test_, test_patches) = (
            features_and_patches_of(encoders, part, reading, where) for part in (train_source, test_source)
        )
    else:
        train, test_ = (features_of(encoders, part, reading, where) for part in (train_source, test_source))
    shown, asked = (next(iter(part.values())).labels for part in (train, test_))
    assert shown is not None and asked is not None
    budgets = label_budgets(shown)
    print(chance(asked, train_source.classes))
    rows = [row for name in encoders for row in measure(train[name], test_[name], budgets, representation=name)]
    if attentive:
        probe = partial(evaluate_patches, dim=encoder.dim, heads=encoder.config.transformer.heads, device=where)
        rows += [probe(train_patches[name], test_patches[name], representation=name) for name in train_patches]
    print(f"{table(rows)}\n{penalties(rows)}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / ACCURACIES).write_text(json.dumps([asdict(row) for row in rows], indent=1))


def of_words(
    folder: Path, encoder: Encoder, data: Path, out: Path | None, reading: Reading, test: Path | None, texts: int
) -> None:
    """Print, and write where asked, how well a model of texts knows their words. Where it predicts none that is said,
    as a UserError where no label is named either."""
    try:
        method = language_model(folder, reading)
    except UserError as error:
        if reading.label is None:
            raise UserError(
                f"{error}; to measure its features name what the texts call their class: --label"
            ) from error
        print(f"words: not measured: {error}")
        return
    opened = partial(open_media, encoder, reading=reading)
    found = evaluate_words(method, opened, data, test, reading, texts, distributed.init(reading.device))
    print(*words_told(found), sep="\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / WORDS).write_text(json.dumps(found, indent=1))


def chance(answers: Labels, classes: Sequence[str]) -> str:
    """What guessing is worth, and what does not count, in a line each."""
    if not several(answers):
        largest = int(answers.bincount().max()) / len(answers)
        return f"chance: {100 / len(classes):.1f} %, the largest class alone {100 * largest:.1f} %; kNN: k = {K}"
    occurs = answers.any(dim=0)
    if not occurs.any():
        raise UserError("no readable sample of the test part has a label: there is nothing to be found in it")
    lines = [f"chance: {100 * answers.double().mean(dim=0)[occurs].mean():.1f} %, samples in a random order"]
    if not occurs.all():
        absent = [name for name, there in zip(classes, occurs.tolist()) if not there]
        lines.append(f"not in the test part, and left out of the mean: {listed(absent)}")
    return "\n".join(lines)


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
    if len(encoder.tokenizers) > 1:
        encoder = encoder.only(IMAGE.name)
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
