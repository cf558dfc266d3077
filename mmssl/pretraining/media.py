"""Media to train on, and media held out of the training to watch it by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mmssl.data import (
    NoTestPart,
    PairSource,
    Sampling,
    SoundClips,
    SoundSource,
    Source,
    Subset,
    TextSource,
    VideoSource,
    Vocabulary,
    hold_out,
    open_aligned,
    open_pairs,
    open_sounds,
    open_source,
    open_texts,
    open_videos,
    subset,
)

T = TypeVar("T")
_HELD_OUT_SHARE = 0.05


def open_pictures(
    data: Path, channels: int | None = None, seed: int = 0, background: str = "white", label: str | None = None
) -> tuple[Source, Source]:
    """Pictures to train on and pictures held out, both on `background`.

    Held out is the test part where `data` has one (see `open_source`), else a twentieth, drawn by `seed`. label: what a
    manifest or the JSON in tar shards calls the class.
    """
    train_source = open_source(data, "train", channels, background, label)
    try:
        return train_source, open_source(data, "test", channels, background, label)
    except NoTestPart:  # what is only watched need not hold every class
        return hold_out(train_source, _HELD_OUT_SHARE, seed, stratify=False)


def open_clips(
    data: Path,
    clips: Sampling,
    held_out: Sampling,
    *,
    short_side: int | None = None,
    seed: int = 0,
    label: str | None = None,
) -> tuple[Source, Source]:
    """Videos of a folder or manifest to train on, sampled as `clips` says, and as in `open_pictures` others held out,
    sampled as `held_out` says."""
    return _both(partial(open_videos, data, short_side=short_side, label=label), clips, held_out, seed)


def open_recordings(data: Path, seconds: float, seed: int = 0, label: str | None = None) -> tuple[Source, Source]:
    """Sounds of a folder, a manifest or tar shards to train on, in clips of so many seconds from a random start, and as
    in `open_pictures` others held out, of which the middle is heard."""
    return _both(partial(open_sounds, data, label=label), SoundClips(seconds), SoundClips(seconds, spread=1), seed)


def open_captioned(data: Path, vocabulary: Vocabulary, seed: int = 0, **settings: Any) -> tuple[Source, Source]:
    """Pairs of a picture and a caption to train on, of several captions one drawn, and others held out as in
    `open_pictures`, of whose captions the first is read; `settings` are PairSource's."""

    def opened(split: str, drawn: bool) -> PairSource:
        return open_pairs(data, vocabulary, split, drawn=drawn, **settings)

    return _both(opened, True, False, seed)


def open_rasters(
    data: Path, modalities: Sequence[str] = (), seed: int = 0, label: str | None = None
) -> tuple[Source, Source, tuple[str, ...]]:
    """Aligned rasters to train on and others held out, as in `open_pictures`, and the names of those that some samples
    lack. modalities: see `mmssl.data.rasters.declared`."""
    train_source = open_aligned(data, "train", modalities, label)
    try:
        held_out = open_aligned(data, "test", modalities, label)
    except NoTestPart:
        return *hold_out(train_source, _HELD_OUT_SHARE, seed, stratify=False), train_source.partial
    lacking = {*train_source.partial, *held_out.partial}
    return train_source, held_out, tuple(name for name in train_source.places if name in lacking)


def _both(
    opened: Callable[[str, T], VideoSource | SoundSource | PairSource], clips: T, held_out: T, seed: int
) -> tuple[Source, Source]:
    """Media to train on, opened with `clips`, and others with `held_out`."""
    train_source = opened("train", clips)
    try:
        return train_source, opened("test", held_out)
    except NoTestPart:
        rest, apart = hold_out(train_source, _HELD_OUT_SHARE, seed, stratify=False)
        return rest, subset(opened("train", held_out), apart.indices)


def open_documents(
    data: Path, vocabulary: Vocabulary, seed: int = 0, dupe_factor: int = 1, **settings: Any
) -> tuple[Source, Source]:
    """Texts to train on, packed `dupe_factor` times, and as in `open_pictures` others held out, whole documents, packed
    once; `settings` are TextSource's."""

    def opened(split: str, **more: Any) -> TextSource:
        return open_texts(data, vocabulary, split, **{"seed": seed, **settings, **more})

    try:
        held_out = opened("test")
    except NoTestPart:
        rest, apart = (part.indices for part in held_out_documents(opened("train", packing="document"), seed))
        return opened("train", dupe_factor=dupe_factor, documents=rest), opened("train", documents=apart)
    return opened("train", dupe_factor=dupe_factor), held_out


def held_out_documents(whole: Source, seed: int = 0) -> tuple[Subset, Subset]:
    """Texts, one a row, without those that are held out, and those: at least the two that a pair of segments is of."""
    return hold_out(whole, max(_HELD_OUT_SHARE, 2 / len(whole)), seed, stratify=False)
