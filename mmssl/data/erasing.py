"""Random erasing, which papers fine-tune with: a box of a picture, or of all frames of a clip, is filled with noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor

from mmssl.data.views import draw_numbers, tried_boxes
from mmssl.errors import UserError
from mmssl.masking.noise import Keys, random_bits
from mmssl.modality import IMAGENET_MEAN, IMAGENET_STD

QUANTILES = 2**10


class Erasure(NamedTuple):
    """What the noise says of the box of one sample, and where it says what the box is filled with."""

    box: Float64[np.ndarray, "1 numbers"]
    stream: str
    keys: Keys


@dataclass(frozen=True)
class Erasing:
    """With `probability` a box of each sample is filled with noise, of a clip the same box in all frames.

    area: the box's share of the picture, uniform in this range. aspect: width to height, log-uniform in its own.
    Of ten tries the first counts that is less wide and less high than the picture; where none is, nothing is erased.
    mean, std: of each channel of 0-1 values. Every value of the box, in every frame, is normal with these (one of 1024
    quantiles), which the tokenizer makes standard normal; but raw values end at 0 and 1, and uint8 ones are rounded.

    Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020), as timm has it in its mode "pixel" with one box, with
    which MAE and VideoMAE fine-tune. It comes last: other changes would change the noise.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise UserError(f"probability must lie in 0-1, not {self.probability}.")
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise UserError(f"area must be two ascending shares in (0, 1], not {self.area}.")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"aspect must be two ascending positive numbers, not {self.aspect}.")
        if len(self.mean) != len(self.std):
            raise UserError(f"mean and std have a number for each channel, and not {self.mean} and {self.std}.")

    def draw(self, keys: Keys, view: int) -> list[Erasure | None]:
        """The box of each sample in view k, None where nothing is erased; drawn from the stream "erase/k"."""
        stream = f"erase/{view}"
        numbers = draw_numbers(stream, keys)
        return [
            Erasure(row[None, :-1], stream, Keys(keys.seed, *(each[k : k + 1] for each in keys[1:])))
            if row[-1] < self.probability
            else None
            for k, row in enumerate(numbers)
        ]

    def __call__(
        self, medium: Shaped[Tensor, "batch c *extra h w"], drawn: Sequence[Erasure | None]
    ) -> Shaped[Tensor, "batch c *extra h w"]:
        """uint8 0-255 or floating point 0-1 with each sample's box erased, in all frames the same box.

        What fills it is drawn from the stream "erase/k/values". Raises UserError where there is not a mean for each
        channel.
        """
        channels, (height, width) = medium.shape[1], medium.shape[-2:]
        if channels != len(self.mean):
            raise UserError(f"Erasing has a mean and std for {len(self.mean)} channels, and the medium has {channels}.")
        if not any(drawn):
            return medium
        out = medium.clone()
        for row, erasure in enumerate(drawn):
            if erasure is None:
                continue
            found, high, wide = tried_boxes(
                erasure.box, height * width, (height - 1, width - 1), self.area, self.aspect
            )
            if found[0]:
                down, across = int(high[0]), int(wide[0])
                top, left = (int(n) for n in erasure.box[0, -2:] * (height - down + 1, width - across + 1))
                box = out[row, ..., top : top + down, left : left + across]
                box.copy_(self._values(box, erasure))
        return out

    def _values(self, box: Shaped[Tensor, "c *extra h w"], erasure: Erasure) -> Shaped[Tensor, "c *extra h w"]:
        # Six to a hash, and looked up: of a clip there are hundreds of thousands.
        bits = random_bits(-(-box.numel() // 6), stream=f"{erasure.stream}/values", **erasure.keys._asdict())[0]
        numbers = (bits[:, None] >> torch.arange(0, 60, 10)) & (QUANTILES - 1)
        values = _values_of(self.mean, self.std)
        values = values if box.is_floating_point() else (values * 255).round().to(torch.uint8)
        return values.gather(1, numbers.flatten()[: box.numel()].view(len(box), -1)).view(box.shape)


@lru_cache
def _values_of(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[Tensor, "channels quantiles"]:
    """The quantiles of each channel's normal distribution that a value may be, where a pixel can be that."""
    normal = torch.special.ndtri((torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES)
    return (torch.tensor(mean)[:, None] + torch.tensor(std)[:, None] * normal).clamp(0, 1).float()
