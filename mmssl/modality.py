"""What a kind of media is, as data: its axes, channels, patch and statistics.

A new kind (thermal pictures, IMU windows) is a new `Modality`, not a new class: a picture is a one-frame clip and a
spectrogram a one-channel picture, so one tokenizer reads them all.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Int64, Integer, Shaped
from mmssl_kernels.frame.dispatch import values_are_checked
from torch import Tensor

from mmssl.audio import BANDS, HOP, RATE, band_edges
from mmssl.errors import UserError

# What a batch holds by these names is uint8 0-255 or floating point 0-1; log-mel, depth and others are as they are.
ZERO_TO_ONE = ("image", "video")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the pictures that CLIP was trained on (openai/CLIP, `clip.py`).
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# Of Conceptual 12M, on which M3AE was trained (young-geng/m3ae_public, `data.py`).
CC12M_MEAN, CC12M_STD = (0.5762, 0.5503, 0.5213), (0.3207, 0.3169, 0.3307)


@dataclass(frozen=True)
class Axis:
    """What the pixels along one side of a picture mean.

    edges: the value, in `unit`, where each pixel begins, ascending, and last where the last one ends. marks: the values
    that are worth a mark; evenly spaced round ones where there are none.
    """

    unit: str
    edges: tuple[float, ...]
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Modality:
    """A kind of media.

    name: its key in a batch. axes: the names of the axes after batch and channels, in order.
    channels: values at one place ("continuous") or the number of classes ("categorical": the batch holds ids).
    patch: places along each axis that make one token; () for text, where each id is one.
    mean, std: statistics of each channel of 0-1 values (uint8 is divided by 255 first); the tokenizer applies them.
    embedding: width of the class embedding of a categorical modality with patches (MultiMAE: 64).
    ignore: the id of places without a class (label maps: 255). gaps: values that are not a number are not there. What
    is not there is read as nothing, and is in no loss and no statistics.
    per_sample: each sample is standardised by its own values first (see `mmssl.tokenizer.sample_statistics`).
    """

    name: str
    axes: tuple[str, ...]
    channels: int
    patch: tuple[int, ...] = ()
    kind: Literal["continuous", "categorical"] = "continuous"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    embedding: int = 0
    ignore: int | None = None
    gaps: bool = False
    per_sample: bool = False

    def __post_init__(self) -> None:
        if self.patch and len(self.patch) != len(self.axes):
            raise ValueError(f"modality {self.name!r} has axes {self.axes} but patch {self.patch}: one side an axis")
        if self.kind == "continuous" and not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"modality {self.name!r} has {self.channels} channels, but {len(self.mean)} means and "
                f"{len(self.std)} standard deviations: give one of each a channel"
            )
        if self.kind == "categorical" and self.patch and self.embedding < 1:
            raise ValueError(f"modality {self.name!r} has labels in patches: give its class embedding a width")

    @property
    def plain(self) -> Modality:
        """The same without statistics: values stay as they are, 0-1."""
        return replace(self, mean=(0.0,) * self.channels, std=(1.0,) * self.channels)

    def there(self, values: Shaped[Tensor, "*places"]) -> Bool[Tensor, "*places"]:
        """Where raw values or ids of this modality are something."""
        if self.ignore is not None:
            return values != self.ignore
        return ~values.isnan() if self.gaps else torch.ones_like(values, dtype=torch.bool)

    def labelled(self, ids: Integer[Tensor, "*places"]) -> tuple[Int64[Tensor, "*places"], Bool[Tensor, "*places"]]:
        """The classes of a categorical modality's ids, 0 where there is none, and where there is one.

        Raises UserError for ids that are no class (on a GPU only with MMSSL_DEBUG=1).
        """
        there = self.there(ids)
        classes = ids.long().masked_fill(~there, 0)
        if classes.numel() and not torch.compiler.is_compiling() and values_are_checked(classes):
            low, high = (int(value) for value in classes.aminmax())
            if low < 0 or high >= self.channels:
                besides = "" if self.ignore is None else f" and {self.ignore} for none"
                raise UserError(
                    f"{self.name}: labels from {low} to {high}, but its {self.channels} classes are 0 to "
                    f"{self.channels - 1}{besides}: map the labels, or declare as many classes as there are"
                )
        return classes, there

    def brightness(self, media: Tensor) -> Tensor:
        """Raw media `[B, C, ...]` as values in 0-1 to look at: pictures and clips as they are, others, such as log-mel,
        from a `std` below their `mean` to one above it; label maps `[B, ...]` by the number of the class."""
        if self.kind == "categorical":
            return media[:, None].float() / max(1, self.channels - 1)
        if self.name in ZERO_TO_ONE:
            return zero_to_one(media)
        mean, std = (torch.tensor(each).view(-1, *(1,) * (media.ndim - 2)).to(media) for each in (self.mean, self.std))
        return ((media - mean) / std / 2 + 0.5).clamp(0, 1)

    def upright(self, media: Tensor) -> Tensor:
        """What lies on this modality's axes `[..., *axes]` as one looks at it: time runs to the right, high notes lie
        above low ones."""
        return media.transpose(-1, -2).flip(-2) if self.axes == ("time", "mel") else media

    def scales(self, sizes: tuple[int, ...]) -> tuple[Axis, Axis] | None:
        """What lies to the right and upwards in what `upright` gives of media of these sizes: seconds and Hz of
        spectrograms as `mmssl.audio.log_mel` makes them; None where nothing is known to be measured."""
        if self.axes != ("time", "mel") or sizes[1] != BANDS:
            return None
        seconds = tuple(frame * HOP / RATE for frame in range(sizes[0] + 1))
        return Axis("s", seconds), Axis("Hz", band_edges(), tuple(125.0 * 2**octave for octave in range(7)))


IMAGE = Modality("image", ("height", "width"), 3, (16, 16), mean=IMAGENET_MEAN, std=IMAGENET_STD)
VIDEO = Modality("video", ("time", "height", "width"), 3, (2, 16, 16), mean=IMAGENET_MEAN, std=IMAGENET_STD)
# Audio-MAE divides by twice the standard deviation of AudioSet's log-mel values.
AUDIO = Modality("audio", ("time", "mel"), 1, (16, 16), mean=(-4.2677393,), std=(2 * 4.5689974,))
# MultiMAE's: where it is known, each picture's by itself.
DEPTH = Modality("depth", ("height", "width"), 1, (16, 16), mean=(0.0,), std=(1.0,), gaps=True, per_sample=True)
SEMSEG = Modality("semseg", ("height", "width"), 133, (4, 4), kind="categorical", embedding=64, ignore=255)
TEXT = Modality("text", ("position",), 30522, kind="categorical")


def image(channels: int = 3, patch: tuple[int, int] = (16, 16)) -> Modality:
    """Pictures of any number of channels: ImageNet's statistics for three, mean and deviation 0.5 for others."""
    if channels == 3:
        return replace(IMAGE, patch=patch)
    if channels < 1:
        raise UserError(f"pictures of {channels} channels do not exist")
    half = (0.5,) * channels
    return replace(IMAGE, channels=channels, patch=patch, mean=half, std=half)


def zero_to_one(media: Tensor) -> Tensor:
    """Raw media as floating point: uint8 as 0-1, floats as they are; of any shape."""
    return media.float() / 255 if media.dtype == torch.uint8 else media
