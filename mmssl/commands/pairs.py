"""What `mmssl evaluate` says of a model of pairs by its texts: zero-shot classification, and retrieval."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmssl.commands.features import read_features, say, told_how, vocabulary
from mmssl.commands.models import method_in
from mmssl.commands.reading import Reading
from mmssl.data import (
    BrokenSample,
    EvalView,
    NoTestPart,
    PairFiles,
    Source,
    notes,
    open_pair_files,
    open_source,
    subset,
    text_batch,
)
from mmssl.data.labelled import labelled, test_part
from mmssl.errors import UserError, as_text
from mmssl.evaluation import FeatureSet, PictureTower, class_vectors, retrieval, text_features, zero_shot
from mmssl.evaluation.templates import IMAGENET, PHOTO
from mmssl.evaluation.towers import ReadTexts
from mmssl.objectives import CLIP
from mmssl.report.pairs import RETRIEVAL, ZERO_SHOT, retrieval_told, zero_shot_told
from mmssl.training import distributed


def pair_model(folder: Path) -> CLIP:
    """The model of a folder that compares pictures with texts. Raises UserError where it has no encoder of texts."""
    other = "which compares no texts with pictures, as CLIP does"
    return method_in(folder, CLIP, "and none of texts beside it", other)


def evaluate_pairs(
    folder: Path,
    data: Path,
    out: Path | None,
    reading: Reading,
    task: str,
    test: Path | None = None,
    templates: Sequence[str] = (),
    image_key: str | None = None,
    caption_key: str | None = None,
) -> None:
    """Print, and write where asked, how well a model of pairs finds the classes of pictures by their names, task
    "zero-shot", or pictures and captions by each other, task "retrieval".

    Asked is the test part of `data`, or all of it where there is none, or of `test`. templates: see `templates_meant`.
    image_key, caption_key: what a manifest of pairs, or the JSON beside pictures, calls both.
    """
    model, reading = pair_model(folder), told_how(reading, folder)
    words = vocabulary(reading, model.text_encoder)
    read = partial(text_batch, vocabulary=words, length=model.config.text_encoder.tokenizers[0].size[0])
    device = distributed.init(reading.device)
    keys = {"image_key": image_key, "caption_key": caption_key}
    settings: dict[str, Any] = {"label": reading.label, "background": reading.background}
    paired = task == "retrieval" or any(keys.values())

    def opened(path: Path, split: str | None) -> Source:
        pairs = partial(open_pair_files, path, split, **keys, **settings)
        if paired:
            return pairs()
        try:
            return open_source(path, split, 3, **settings)
        except UserError as error:  # there are manifests of pairs that are none of pictures
            try:
                return pairs()
            except UserError:
                raise error from None

    try:
        source = test_part(opened, data, test)
    except NoTestPart:
        source = opened(data, None)
        print(
            f"{as_text(str(data))} has no test part: all of it is asked, and where the model was trained on it that is "
            "no test; give other data by --test"
        )
    say(notes(source))
    found: Mapping[str, Any]
    if task == "retrieval":
        assert isinstance(source, PairFiles)
        found = _retrieval(model, source, reading, read, device)
        file, lines = RETRIEVAL, retrieval_told(found)
    else:
        found = _zero_shot(model, source, data, reading, read, templates_meant(templates), device)
        file, lines = ZERO_SHOT, zero_shot_told(found)
    print(*lines, sep="\n")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / file).write_text(json.dumps(found, indent=1))


def templates_meant(given: Sequence[str]) -> Sequence[str]:
    """The templates that a person gives, for `imagenet` the paper's 80; the paper's one where none is given."""
    return [each for one in given for each in (IMAGENET if one == "imagenet" else (one,))] or [PHOTO]


def _zero_shot(
    model: CLIP,
    source: Source,
    data: Path,
    reading: Reading,
    read: ReadTexts,
    templates: Sequence[str],
    device: torch.device,
) -> dict[str, Any]:
    asked = labelled(source, f"{data}: no labels; zero-shot classification needs class folders, or a class by --label")
    names = [name.replace("_", " ") for name in asked.classes]  # as folders are named after classes of several words
    vectors = class_vectors(model, names, read, templates, device=device)
    pictures = _pictures(model, asked, reading, device)
    assert pictures.labels is not None
    return {**asdict(zero_shot(pictures.features, vectors, pictures.labels)), "templates": len(templates)}


def _retrieval(
    model: CLIP, source: PairFiles, reading: Reading, read: ReadTexts, device: torch.device
) -> dict[str, Any]:
    """Rows of a manifest that name one picture are captions of it."""
    captions: dict[str, list[str]] = {}
    first: list[int] = []
    for index in range(len(source)):
        name = source.name(index)
        try:
            told = source.captions(index)
        except BrokenSample as error:
            print(f"skipped {as_text(name)}: {error.reason}")
            continue
        if name not in captions:
            first.append(index)
        captions.setdefault(name, []).extend(told)
    pictures = _pictures(model, subset(source, first), reading, device)
    assert pictures.names is not None
    texts = [captions[name] for name in pictures.names]
    owner = torch.arange(len(texts)).repeat_interleave(torch.tensor(list(map(len, texts))))
    features = text_features(model, [text for some in texts for text in some], read, device=device)
    by_text, by_picture = retrieval(pictures.features, features, owner)
    return {"text to picture": asdict(by_text), "picture to text": asdict(by_picture)}


def _pictures(model: CLIP, source: Source, reading: Reading, device: torch.device) -> FeatureSet:
    """Pictures are seen whole but for what a square leaves out of them, as CLIP's authors show them."""
    height, width = model.config.encoder.tokenizers[0].size
    view = EvalView((height, width), resize=(height, width))
    return read_features({"": PictureTower(model)}, source, view, reading, device)[""]
