"""Features of a folder of media, as `mmssl embed` and `mmssl evaluate` need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from mmssl.audio import RATE, samples_of
from mmssl.commands.reading import Reading
from mmssl.data import (
    Clips,
    EvalView,
    Ledger,
    SoundClips,
    SoundView,
    Source,
    View,
    blending_told,
    evaluation_batches,
    open_sounds,
    open_source,
    open_videos,
)
from mmssl.encoder import Encoder, single_modality
from mmssl.errors import UserError
from mmssl.evaluation import (
    FeatureSet,
    FrameEncoder,
    PatchEncoder,
    RawMedia,
    SideBySide,
    average_clips,
    extract,
)
from mmssl.modality import AUDIO, VIDEO


def open_media(encoder: Encoder, data: Path, split: str | None, reading: Reading) -> Source:
    """The media of the encoder's kind under `data`."""
    modality, size = single_modality(encoder), encoder.config.tokenizers[0].size
    if modality.name == AUDIO.name:
        return open_sounds(data, split, SoundClips(samples_of(size[0]) / RATE, spread=reading.clips))
    frames = size[0] if modality.name == VIDEO.name else reading.frames
    if not frames:
        return open_source(data, split, modality.channels, reading.background)
    clips = Clips(frames, reading.stride, spread=reading.clips)
    return open_videos(data, split, clips, channels=modality.channels, short_side=int(max(size[-2:]) / 0.875))


def features_of(
    encoders: Mapping[str, Encoder | RawMedia],
    source: Source,
    reading: Reading,
    device: torch.device,
    patches: bool = False,
) -> dict[str, FeatureSet]:
    """Each encoder's features of every readable sample, which is read once, with a progress bar; the first is the one
    that says how. Unreadable samples are listed and left out. patches: of every patch, in a row.
    """
    from rich.progress import Progress

    encoder = next(iter(encoders.values()))
    assert isinstance(encoder, Encoder)
    ledger = Ledger()
    names = [source.name(index) for index in range(len(source))]
    on_frames = reading.frames and single_modality(encoder).name != VIDEO.name
    if patches and on_frames:
        raise UserError("patch features are those of a picture or of a video model's clip: leave out --frames")
    wrap = PatchEncoder if patches else FrameEncoder if on_frames else None
    together = SideBySide(
        {name: wrap(each) if wrap and isinstance(each, Encoder) else each for name, each in encoders.items()}
    )
    with Progress(transient=True) as bar:
        task = bar.add_task("features", total=len(source) * reading.clips)
        batches = views(encoder, source, reading, ledger)
        features = extract(
            together,
            batches,
            pool=reading.pool,
            device=device,
            names=names,
            progress=lambda done: bar.update(task, completed=done),
        )
    for name, reason in ledger.skipped:
        print(f"skipped {name}: {reason}")
    if ledger.skipped:
        print(f"{ledger.seen} samples read, {len(ledger.skipped)} skipped")
    say(blending_told(len(ledger.blended)))
    return together.part(average_clips(features, reading.clips))


def views(
    encoder: Encoder, source: Source, reading: Reading, ledger: Ledger | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """The media as the encoder was trained to see them: the centre, at its size."""
    *_, height, width = encoder.config.tokenizers[0].size
    view: View = SoundView(height) if single_modality(encoder).name == AUDIO.name else EvalView((height, width))
    return evaluation_batches(
        source,
        view,
        batch_size=reading.batch_size,
        workers=reading.workers,
        ledger=ledger,
        repeats=reading.clips,
    )


def say(lines: Sequence[str]) -> None:
    """Print what there is to say, maybe nothing."""
    for line in lines:
        print(line)
