"""What a trained encoder is held against: its random initialisation and the media themselves, all read in one pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import adaptive_avg_pool2d

from mmssl.encoder import Encoder
from mmssl.evaluation.features import FeatureEncoder, FeatureSet
from mmssl.modality import AUDIO, TEXT, Modality, zero_to_one

# Pixels a side, so that a linear probe of large media stays possible.
_PICTURE, _FRAME, _WORDS = 32, 16, 2048


class RawMedia(nn.Module):
    """The media themselves, in a row: pixels in 0-1, averaged down to 32 a side, 16 of a clip's frames; of sounds the
    log-mel values before normalisation, averaged down to 32 steps of time and 32 bands; of texts log(1 + how often)
    each word stands there, folded to 2048 columns by id (feature hashing, Weinberger et al. 2009, without signs).

    modalities: of aligned rasters, each as `raw_values` has it, averaged down alike, and to fewer a side where it has
    more than three channels or classes.
    """

    def __init__(self, modalities: Sequence[Modality] = ()):
        super().__init__()
        self.modalities = tuple(modalities)

    def features(
        self, batch: Mapping[str, Tensor], pool: Literal["mean", "class"] = "mean"
    ) -> Float[Tensor, "batch values"]:
        """`batch` holds the `modalities`, or where there are none `image` `[B, C, H, W]` or `video` `[B, C, T, H, W]`,
        uint8 or floats in 0-1, `audio` `[B, 1, time, mel]`, log-mel, or `text` ids `[B, N]` with `text.length` `[B]`.
        """
        if self.modalities:
            parts = [raw_values(batch, each) for each in self.modalities]
            sides = [max(1, min(_PICTURE, math.isqrt(3 * _PICTURE**2 // part.shape[1]))) for part in parts]
            return torch.cat([_averaged(part, side) for part, side in zip(parts, sides, strict=True)], dim=1)
        if "text" in batch:
            return _bag_of_words(batch)
        values = zero_to_one(next(batch[name] for name in ("video", "image", "audio") if name in batch))
        return _averaged(values, _PICTURE if values.ndim == 4 else _FRAME)


def raw_values(batch: Mapping[str, Tensor], modality: Modality) -> Float[Tensor, "batch channels height width"]:
    """A raster's values by its modality's mean and deviation, 0 where there is none; labels as a channel a class."""
    if modality.kind == "categorical":
        classes, there = modality.labelled(batch[modality.name])
        return (F.one_hot(classes, modality.channels) * there[..., None]).movedim(-1, 1).float()
    values = zero_to_one(batch[modality.name])
    mean, std = (torch.tensor(each, device=values.device).view(-1, 1, 1) for each in (modality.mean, modality.std))
    return ((values - mean) / std).nan_to_num(0.0)


def _averaged(values: Float[Tensor, "batch *channels height width"], most: int) -> Float[Tensor, "batch values"]:
    """Averaged down to at most so many a side."""
    height, width = values.shape[-2:]
    return adaptive_avg_pool2d(values.flatten(1, -3), (min(height, most), min(width, most))).flatten(1)


def _bag_of_words(batch: Mapping[str, Tensor]) -> Float[Tensor, "batch columns"]:
    text = batch["text"]
    lengths = batch.get("text.length", torch.full((len(text),), text.shape[1], device=text.device))
    valid = torch.arange(text.shape[1], device=text.device) < lengths[:, None]
    counts = torch.zeros(len(text), _WORDS, device=text.device)
    return counts.scatter_add(1, text % _WORDS, valid.float()).log1p()


class SideBySide(nn.Module):
    """Several encoders on the same media, read once: their features joined, and parted again by `part`."""

    def __init__(self, encoders: Mapping[str, nn.Module]):
        super().__init__()
        self.names, self.encoders = list(encoders), nn.ModuleList(encoders.values())
        self.widths: list[int] = []

    def features(self, batch: Any, pool: Literal["mean", "class"] = "mean") -> Float[Tensor, "batch dim"]:
        """Everything in the order of `encoders`."""
        found = [cast(FeatureEncoder, encoder).features(batch, pool=pool) for encoder in self.encoders]
        self.widths = [each.shape[1] for each in found]
        return torch.cat([each.float() for each in found], dim=1)

    def part(self, joined: FeatureSet) -> dict[str, FeatureSet]:
        """Each encoder's own features."""
        parts = joined.features.split(self.widths, dim=1)
        return {
            name: FeatureSet(part.contiguous(), joined.labels, joined.names)
            for name, part in zip(self.names, parts, strict=True)
        }


def raw_name(modality: Modality) -> str:
    """What the values of `RawMedia` are called."""
    return {AUDIO.name: "log-mel", TEXT.name: "bag of words"}.get(modality.name, "raw pixels")


def untrained(encoder: Encoder) -> Encoder:
    """An encoder of the same settings with fresh weights, the same ones every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Encoder(encoder.config)
