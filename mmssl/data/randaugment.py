"""RandAugment, which papers fine-tune with: a few of fifteen operations, drawn for each picture and clip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from mmssl.errors import UserError
from mmssl.masking.noise import Keys, uniform
from mmssl.modality import IMAGENET_MEAN

if TYPE_CHECKING:
    from PIL import Image

OPERATIONS = (
    *("autocontrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast"),
    *("brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
)
MOST = 10.0
Operations = list[tuple[str, float]]  # names and parameters, in their order


@dataclass(frozen=True)
class RandAugment:
    """`operations` times one of the `OPERATIONS`, any of which may come again, each applied with `probability`.

    Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (2019), in the form
    that papers fine-tune with: `RandAugment()` is timm's rand-m9-mstd0.5-inc1 (MAE's), `RandAugment(7.0, 4)` its
    rand-m7-n4-mstd0.5-inc1 (VideoMAE's).

    magnitude, deviation: an operation's level is normal with these, clipped to 0-10; all it does grows with the level
    (timm's "increasing" ranges, see `_parameter`).
    mean: what rotations, shears and translations fill up with, a number in 0-1 for each channel.

    The operations are torchvision's on Pillow pictures, as timm's are Pillow's, and give timm's values. They resample
    bilinearly: timm unless told draws bilinear or bicubic, MAE told bicubic, which takes Pillow six times as long.
    """

    magnitude: float = 9.0
    operations: int = 2
    deviation: float = 0.5
    probability: float = 0.5
    mean: tuple[float, ...] = IMAGENET_MEAN

    def __post_init__(self) -> None:
        if not 0 <= self.magnitude <= MOST or self.deviation < 0:
            raise UserError(
                f"magnitude must lie in 0-10 and deviation not be negative, unlike {self.magnitude}, {self.deviation}."
            )
        if self.operations < 1:
            raise UserError(f"operations, how many are drawn, must be at least 1, not {self.operations}.")
        if not 0 <= self.probability <= 1:
            raise UserError(f"probability must lie in 0-1, not {self.probability}.")
        if not all(0 <= value <= 1 for value in self.mean):
            raise UserError(f"mean must be a number in 0-1 for each channel, not {self.mean}.")

    def draw(self, keys: Keys, view: int) -> list[Operations]:
        """The operations that are applied to each sample in view k, in their order, with their parameters.

        Drawn from the stream "randaugment/k". For parameters see `_parameter`.
        """
        numbers = uniform(4 * self.operations, stream=f"randaugment/{view}", **keys._asdict()).double()
        which, chance, level, way = numbers.unflatten(1, (4, self.operations)).unbind(1)
        # The middle of each of the 2**24 numbers that the noise has, as the normal distribution's quantile.
        level = (self.magnitude + self.deviation * torch.special.ndtri(level + 2.0**-25)).clamp(0, MOST) / MOST
        which, applied, back = (which * len(OPERATIONS)).long(), chance < self.probability, way < 0.5
        rows = zip(which.tolist(), applied.tolist(), level.tolist(), back.tolist(), strict=True)
        return [
            [(OPERATIONS[k], _parameter(OPERATIONS[k], *settings)) for k, there, *settings in zip(*row) if there]
            for row in rows
        ]

    def __call__(
        self, medium: Shaped[Tensor, "batch c *extra h w"], drawn: Sequence[Operations]
    ) -> Shaped[Tensor, "batch c *extra h w"]:
        """uint8 0-255 with each sample's operations, all frames of a clip alike; floating point 0-1 is rounded to 256
        values where there are any. One channel has no colour to change.

        Raises UserError for other channels than 1 or 3 and where `mean` has not one number for each.
        """
        channels = medium.shape[1]
        if channels not in (1, 3) or channels != len(self.mean):
            raise UserError(
                f"RandAugment is for 1 or 3 channels, with as many in its mean: the medium has {channels}, "
                f"and mean {len(self.mean)}."
            )
        if not any(drawn):
            return medium
        out = medium.clone()
        frames = out.movedim(1, -3)  # torchvision's [..., C, H, W]
        for row, operations in enumerate(drawn):
            for place in np.ndindex(*frames.shape[1:-3]) if operations else ():
                frame = frames[row, *place]
                frame.copy_(self._applied(frame, operations))
        return out

    def _applied(self, frame: Shaped[Tensor, "c h w"], operations: Operations) -> Shaped[Tensor, "c h w"]:
        from torchvision.transforms.v2 import functional

        values = (frame.clamp(0, 1) * 255).round().to(torch.uint8) if frame.is_floating_point() else frame
        picture, fill = functional.to_pil_image(values), [round(255 * value) for value in self.mean]
        for operation, parameter in operations:
            picture = _apply(operation, picture, parameter, fill)
        changed = functional.pil_to_tensor(picture)
        return changed / 255 if frame.is_floating_point() else changed


def _parameter(operation: str, level: float, back: bool) -> float:
    """What a level of 0-1 means, and whether an operation that goes two ways goes back: degrees counter-clockwise, bits
    that are kept, the least value that is inverted, what is added to values below 128, a factor (1 changes nothing),
    pixels aside for each pixel across, shares of the width or height; 0 where there is nothing to choose.
    """
    way = -1 if back else 1
    match operation:
        case "rotate":
            return 30 * level * way
        case "posterize":
            return 4.0 - int(4 * level)
        case "solarize":
            return 256.0 - int(256 * level)
        case "solarize_add":
            return float(int(110 * level))
        case "color" | "contrast" | "brightness" | "sharpness":
            return max(0.1, 1 + 0.9 * level * way)
        case "shear_x" | "shear_y":
            return 0.3 * level * way
        case "translate_x" | "translate_y":
            return 0.45 * level * way
        case _:
            return 0.0


def _apply(operation: str, picture: Image.Image, parameter: float, fill: list[int]) -> Image.Image:
    from torchvision.transforms.v2 import InterpolationMode, functional

    match operation:
        case "rotate":
            return functional.rotate(picture, parameter, InterpolationMode.BILINEAR, fill=fill)
        case "shear_x" | "shear_y":
            degrees = math.degrees(math.atan(parameter))
            shear, move = [degrees, 0.0] if operation == "shear_x" else [0.0, degrees], [0.0, 0.0]
        case "translate_x":
            shear, move = [0.0, 0.0], [parameter * picture.width, 0.0]
        case "translate_y":
            shear, move = [0.0, 0.0], [0.0, parameter * picture.height]
        case "posterize":
            # Pillow refuses to keep no bit at all, which is black.
            bits = int(parameter)
            return functional.posterize(picture, bits) if bits else functional.adjust_brightness(picture, 0.0)
        case "solarize":
            return functional.solarize(picture, parameter)
        case "solarize_add":
            table = [min(255, value + int(parameter)) if value < 128 else value for value in range(256)]
            return picture.point(table * len(fill))
        case "color":
            return functional.adjust_saturation(picture, parameter)
        case "contrast" | "brightness" | "sharpness":
            return getattr(functional, f"adjust_{operation}")(picture, parameter)
        case _:
            return getattr(functional, operation)(picture)
    # The upper left corner stays, as in Pillow's matrices.
    return functional.affine(picture, 0.0, move, 1.0, shear, InterpolationMode.BILINEAR, fill, [0.0, 0.0])
