"""Media to train on, and media held out of the training to watch it by."""

from __future__ import annotations

from pathlib import Path

from mmssl.data import (
    NoTestPart,
    Sampling,
    SoundClips,
    Source,
    hold_out,
    open_sounds,
    open_source,
    open_videos,
    subset,
)

_HELD_OUT_SHARE = 0.05


def open_pictures(
    data: Path, channels: int | None = None, seed: int = 0, background: str = "white"
) -> tuple[Source, Source]:
    """Pictures to train on and pictures held out, both on `background`.

    Held out is the test part where `data` has one (see `open_source`), else a twentieth, drawn by `seed`.
    """
    train_source = open_source(data, "train", channels, background)
    try:
        return train_source, open_source(data, "test", channels, background)
    except NoTestPart:  # what is only watched need not hold every class
        return hold_out(train_source, _HELD_OUT_SHARE, seed, stratify=False)


def open_clips(
    data: Path, clips: Sampling, held_out: Sampling, *, short_side: int | None = None, seed: int = 0
) -> tuple[Source, Source]:
    """Videos of a folder or manifest to train on, sampled as `clips` says, and as in `open_pictures` others held out,
    sampled as `held_out` says."""
    train_source = open_videos(data, "train", clips, short_side=short_side)
    try:
        return train_source, open_videos(data, "test", held_out, short_side=short_side)
    except NoTestPart:
        rest, apart = hold_out(train_source, _HELD_OUT_SHARE, seed, stratify=False)
        return rest, subset(open_videos(data, "train", held_out, short_side=short_side), apart.indices)


def open_recordings(data: Path, seconds: float, seed: int = 0) -> tuple[Source, Source]:
    """Sounds of a folder, a manifest or tar shards to train on, in clips of so many seconds from a random start, and as
    in `open_pictures` others held out, of which the middle is heard."""
    train_source, middle = open_sounds(data, "train", SoundClips(seconds)), SoundClips(seconds, spread=1)
    try:
        return train_source, open_sounds(data, "test", middle)
    except NoTestPart:
        rest, apart = hold_out(train_source, _HELD_OUT_SHARE, seed, stratify=False)
        return rest, subset(open_sounds(data, "train", middle), apart.indices)
