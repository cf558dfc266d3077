"""Features of a folder of media, as `mmssl embed` and `mmssl evaluate` need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mmssl.audio import RATE, samples_of
from mmssl.commands.inputs import PAIR, inputs_of, pixels
from mmssl.commands.reading import Reading
from mmssl.data import (
    AlignedSource,
    AlignedView,
    Clips,
    EvalView,
    Ledger,
    PairSource,
    PairView,
    SoundClips,
    SoundView,
    Source,
    TextView,
    View,
    Vocabulary,
    blending_told,
    evaluation_batches,
    open_pairs,
    open_sounds,
    open_source,
    open_texts,
    open_videos,
)
from mmssl.data.aligned import open_declared
from mmssl.data.rasters import rasters_of
from mmssl.data.source import whole_of
from mmssl.data.vocabulary import tokenizer_beside
from mmssl.encoder import Encoder, single_modality
from mmssl.errors import UserError
from mmssl.evaluation import (
    FeatureSet,
    FrameEncoder,
    PatchEncoder,
    PooledAndPatches,
    RawMedia,
    SideBySide,
    average_clips,
    extract,
    join_clips,
)
from mmssl.modality import AUDIO, IMAGE, TEXT, VIDEO


def open_media(encoder: Encoder, data: Path, split: str | None, reading: Reading) -> Source:
    """The media of the encoder's kind under `data`, of several kinds the samples that have all. Raises UserError for
    texts without a tokenizer (see `told_how`)."""
    if reading.modalities:
        rasters = inputs_of(encoder, rasters_of(reading.modalities), list(encoder.tokenizers))
        return open_declared(data, split, rasters, reading.label).whole()
    if set(encoder.tokenizers) == PAIR:
        words, (length,) = vocabulary(reading, encoder), encoder.tokenizer(TEXT.name).config.size
        key = None if reading.field == TEXT.name else reading.field
        pairs = {"label": reading.label, "background": reading.background, "caption_key": key}
        return open_pairs(data, words, split, length=length, drawn=False, **pairs)
    modality, size = single_modality(encoder), encoder.config.tokenizers[0].size
    if modality.name == TEXT.name:
        words = vocabulary(reading, encoder)
        return open_texts(
            data, words, split, packing="document", length=size[0], field=reading.field, label=reading.label
        )
    if modality.name == AUDIO.name:
        clips = SoundClips(samples_of(size[0]) / RATE, spread=reading.clips)
        return open_sounds(data, split, clips, label=reading.label)
    frames = size[0] if modality.name == VIDEO.name else reading.frames
    if not frames:
        return open_source(data, split, modality.channels, reading.background, reading.label)
    return open_videos(
        data,
        split,
        Clips(frames, reading.stride, spread=reading.clips),
        channels=modality.channels,
        short_side=int(max(size[-2:]) / 0.875),
        label=reading.label,
    )


def vocabulary(reading: Reading, encoder: Encoder) -> Vocabulary:
    """The words that an encoder of texts reads. Raises UserError without a tokenizer (see `told_how`), and for one with
    more words."""
    if reading.tokenizer is None:
        raise UserError("a model of texts needs its tokenizer: give --tokenizer, a folder with tokenizer.json")
    words, known = Vocabulary.read(reading.tokenizer), encoder.tokenizer(TEXT.name).modality.channels
    if words.size > known:
        raise UserError(f"{reading.tokenizer} has {words.size} tokens, but the model knows {known}: take its own")
    return words


def told_how(reading: Reading, model: Path) -> Reading:
    """The same with the tokenizer beside the model's folder, where there is one and none is given."""
    return replace(reading, tokenizer=reading.tokenizer or tokenizer_beside(model))


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
    on_frames = _on_frames(encoders, reading)
    if patches:
        _check_patches(encoders)
    if patches and on_frames:
        raise UserError("patch features are those of a picture or of a video model's clip: leave out --frames")
    wrap = PatchEncoder if patches else FrameEncoder if on_frames else None
    wrapped = {name: wrap(each) if wrap and isinstance(each, Encoder) else each for name, each in encoders.items()}
    found = read_features(wrapped, source, view_of(_first(encoders), source), reading, device)
    return {name: average_clips(features, reading.clips) for name, features in found.items()}


def features_and_patches_of(
    encoders: Mapping[str, Encoder | RawMedia], source: Source, reading: Reading, device: torch.device
) -> tuple[dict[str, FeatureSet], dict[str, FeatureSet]]:
    """What `features_of` gives without and with `patches`, in one pass; the latter of encoders alone, and with the
    patches of all clips of a sample side by side.
    """
    _check_patches(encoders)
    if _on_frames(encoders, reading):
        raise UserError("an attentive probe looks at the patches of a picture, clip or sound: leave out --frames")
    widths = {name: each.dim for name, each in encoders.items() if isinstance(each, Encoder)}
    wrapped = {name: PooledAndPatches(each) if isinstance(each, Encoder) else each for name, each in encoders.items()}
    found = read_features(wrapped, source, view_of(_first(encoders), source), reading, device)
    pooled = {name: _part(features, slice(widths.get(name))) for name, features in found.items()}
    patches = {name: _part(found[name], slice(width, None)) for name, width in widths.items()}
    return (
        {name: average_clips(features, reading.clips) for name, features in pooled.items()},
        {name: join_clips(features, reading.clips) for name, features in patches.items()},
    )


def _first(encoders: Mapping[str, Encoder | RawMedia]) -> Encoder:
    encoder = next(iter(encoders.values()))
    assert isinstance(encoder, Encoder)
    return encoder


def _check_patches(encoders: Mapping[str, Encoder | RawMedia]) -> None:
    if not _first(encoders).config.tokenizers[0].modality.patch:
        raise UserError("texts have no patches, and each as many words as it has: take one feature a text")


def _on_frames(encoders: Mapping[str, Encoder | RawMedia], reading: Reading) -> bool:
    return bool(reading.frames) and VIDEO.name not in _first(encoders).tokenizers


def _part(features: FeatureSet, columns: slice) -> FeatureSet:
    return FeatureSet(features.features[:, columns], features.labels, features.names)


def read_features(
    wrapped: Mapping[str, nn.Module], source: Source, view: View, reading: Reading, device: torch.device
) -> dict[str, FeatureSet]:
    """The features of every clip as `view` shows it, by all of `wrapped`, with a progress bar. Unreadable samples are
    listed and left out."""
    names = [source.name(index) for index in range(len(source))]
    together = SideBySide(wrapped)
    batches = read_all(source, view, reading, "features")
    return together.part(extract(together, batches, pool=reading.pool, device=device, names=names))


def read_all(source: Source, view: View, reading: Reading, what: str) -> Iterator[dict[str, torch.Tensor]]:
    """Every clip as `view` shows it, in batches, with a progress bar that says `what` is done. Unreadable samples are
    left out, and listed at the end."""
    from rich.progress import Progress

    ledger = Ledger()
    with Progress(transient=True) as bar:
        task = bar.add_task(what, total=len(source) * reading.clips)
        for batch in _batches(source, view, reading, ledger):
            yield batch
            bar.advance(task, len(batch["sample_id"]))
    skipped = dict(ledger.skipped)  # each of a sample's clips is skipped
    for name, reason in skipped.items():
        print(f"skipped {name}: {reason}")
    if skipped:
        print(f"{ledger.seen // reading.clips} samples read, {len(skipped)} skipped")
    say(blending_told(len(ledger.blended)))


def views(encoder: Encoder, source: Source, reading: Reading) -> Iterator[dict[str, torch.Tensor]]:
    """The media in batches, as the encoder was trained to see them."""
    return _batches(source, view_of(encoder, source), reading)


def view_of(encoder: Encoder, source: Source) -> View:
    """How an encoder was trained to see media: the centre, at its size."""
    if isinstance(whole := whole_of(source), AlignedSource):
        return AlignedView(EvalView(pixels(encoder, whole.rasters)), whole.rasters)
    if isinstance(whole, PairSource):
        (height, width), (length,) = (encoder.tokenizer(name).config.size for name in (IMAGE.name, TEXT.name))
        return PairView(EvalView((height, width)), length, whole.vocabulary.pad)
    size, name = encoder.config.tokenizers[0].size, single_modality(encoder).name
    if name == TEXT.name:
        return TextView(size[0])
    return SoundView(size[-2]) if name == AUDIO.name else EvalView((size[-2], size[-1]))


def _batches(
    source: Source, view: View, reading: Reading, ledger: Ledger | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    return evaluation_batches(
        source,
        view,
        # The clips of a sample in one batch: they are read together, and left out together where that fails.
        batch_size=max(1, reading.batch_size // reading.clips) * reading.clips,
        workers=reading.workers,
        ledger=ledger,
        repeats=reading.clips,
    )


def say(lines: Sequence[str]) -> None:
    """Print what there is to say, maybe nothing."""
    for line in lines:
        print(line)
