"""What becomes of the pixels that a view has cut out, by parameters that the noise draws; here the colours of two-view
methods, by torchvision's operations.

A view's pixels are a pure function of the picture and (seed, epoch, sample, draw, view); nothing else in its batch and
no number of workers or threads changes a value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from mmssl.errors import UserError
from mmssl.masking.noise import Keys, uniform

JITTERS = ("brightness", "contrast", "saturation", "hue")
_ORDERS = tuple(permutations(range(len(JITTERS))))


@runtime_checkable
class Change(Protocol):
    """What becomes of the `image` and `video` of a view: uint8 0-255 or floating point 0-1 [B, C, ..., H, W]."""

    def draw(self, keys: Keys, view: int) -> Sequence[Any]:
        """What the noise says of each row of view k, from a stream of this change's own."""
        ...

    def __call__(
        self, medium: Shaped[Tensor, "batch c *extra h w"], drawn: Sequence[Any]
    ) -> Shaped[Tensor, "batch c *extra h w"]:
        """The medium changed, each row by its own of `drawn`; all frames of a clip are treated alike."""
        ...


@dataclass(frozen=True)
class Compose:
    """Some changes, one after the other. Raises UserError for two of a kind, which would draw the same noise."""

    changes: tuple[Change, ...]

    def __post_init__(self) -> None:
        kinds = [type(change).__name__ for change in self.changes]
        if not kinds or len(set(kinds)) < len(kinds):
            raise UserError(f"Changes are composed one of each kind, at least one, not ({', '.join(kinds)}).")

    def draw(self, keys: Keys, view: int) -> list[tuple[Any, ...]]:
        return list(zip(*(change.draw(keys, view) for change in self.changes), strict=True))

    def __call__(
        self, medium: Shaped[Tensor, "batch c *extra h w"], drawn: Sequence[tuple[Any, ...]]
    ) -> Shaped[Tensor, "batch c *extra h w"]:
        for change, each in zip(self.changes, zip(*drawn, strict=True), strict=True):
            medium = change(medium, each)
        return medium


@dataclass(frozen=True)
class Augmentation:
    """Colour jitter, greyscale, Gaussian blur and solarisation, in this order, each with a probability of its own.

    jitter: the probability of torchvision's ColorJitter: the four of `strengths` (brightness, contrast, saturation,
    hue) in a random order; the first three are factors, uniform in [max(0, 1 - s), 1 + s], hue is a shift in turns of
    the colour circle, uniform in [-s, s]; a strength of 0 leaves its own out.
    greyscale: the probability of luma in all channels.
    blur: the probability of a Gaussian of a standard deviation uniform in `sigma`, in pixels, cut off at `kernel`
    pixels, an odd number; by default a tenth of the shorter side, as SimCLR's and BYOL's are (23 for 224).
    solarise: the probability that values from `threshold` of 0-1 on are inverted.
    """

    jitter: float = 0.0
    strengths: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    greyscale: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    kernel: int | None = None
    solarise: float = 0.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("jitter", "greyscale", "blur", "solarise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be a probability, not {getattr(self, name)}.")
        if min(self.strengths) < 0 or self.strengths[-1] > 0.5:
            raise UserError(f"strengths must not be negative, and that of hue at most 0.5, unlike {self.strengths}.")
        if self.jitter and not any(self.strengths):
            raise UserError(f"A jitter of {self.jitter} needs strengths; those of all four operations are 0.")
        if not 0 < self.sigma[0] <= self.sigma[1]:
            raise UserError(f"sigma must be two ascending positive numbers, not {self.sigma}.")
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            raise UserError(f"kernel must be an odd number of pixels, not {self.kernel}.")
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold must lie in 0-1, not {self.threshold}.")

    def draw(self, keys: Keys, view: int) -> list[dict[str, float]]:
        """What becomes of each sample in view k: operations and their parameters, in the order of their application.

        Drawn from the stream "colour/k". The parameter of blur is its sigma, of solarise the threshold in 0-1, of
        greyscale the share of luma, 1.
        """
        return [self._operations(row) for row in uniform(10, stream=f"colour/{view}", **keys._asdict()).tolist()]

    def _operations(self, numbers: list[float]) -> dict[str, float]:
        jitter, order, greyscale, blur, width, solarise, *factors = numbers
        drawn = {}
        for i in _ORDERS[int(order * len(_ORDERS))] if jitter < self.jitter else ():
            if strength := self.strengths[i]:
                low, high = (-strength, strength) if JITTERS[i] == "hue" else (max(0.0, 1 - strength), 1 + strength)
                drawn[JITTERS[i]] = low + (high - low) * factors[i]
        if greyscale < self.greyscale:
            drawn["greyscale"] = 1.0
        if blur < self.blur:
            drawn["blur"] = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * width
        if solarise < self.solarise:
            drawn["solarise"] = self.threshold
        return drawn

    def __call__(
        self, medium: Shaped[Tensor, "batch c *extra h w"], drawn: Sequence[dict[str, float]]
    ) -> Shaped[Tensor, "batch c *extra h w"]:
        """uint8 0-255, or floating point, which is clamped to 0-1 before and after, with each sample's operations.

        All frames of a clip are treated alike. As in torchvision, one channel has no saturation and no hue to change.
        Raises UserError for other channels than 1 or 3 and where the picture is too small for the blur's kernel.
        """
        channels, shorter = medium.shape[1], min(medium.shape[-2:])
        if (self.jitter or self.greyscale) and channels not in (1, 3):
            raise UserError(f"Colour jitter and greyscale are for 1 or 3 channels, not for {channels}.")
        kernel = shorter // 20 * 2 + 1 if self.kernel is None else self.kernel
        if self.blur and kernel // 2 >= shorter:
            raise UserError(f"A blur of {kernel} pixels needs sides of more than {kernel // 2}, not {shorter}.")
        medium = medium.contiguous()  # how it lies decides how torch adds up
        out = medium.clamp(0, 1) if medium.is_floating_point() else medium.clone()
        frames = out.movedim(1, -3)  # torchvision's [..., C, H, W]
        with one_thread(), torch.autocast("cpu", enabled=False):
            for row, operations in enumerate(drawn):
                values = frames[row]
                for operation, parameter in operations.items():
                    values = _apply(operation, values, parameter, kernel)
                frames[row] = values
        return out.clamp_(0, 1) if medium.is_floating_point() else out


# Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (ICML 2020), appendix A.
SIMCLR_COLOURS = Augmentation(jitter=0.8, strengths=(0.8, 0.8, 0.8, 0.2), greyscale=0.2, blur=0.5)
# Grill et al., "Bootstrap Your Own Latent" (NeurIPS 2020), table 6: of the first view and of the second.
BYOL_COLOURS = (
    Augmentation(jitter=0.8, strengths=(0.4, 0.4, 0.2, 0.1), greyscale=0.2, blur=1.0),
    Augmentation(jitter=0.8, strengths=(0.4, 0.4, 0.2, 0.1), greyscale=0.2, blur=0.1, solarise=0.2),
)
# Caron et al., "Emerging Properties in Self-Supervised Vision Transformers" (ICCV 2021), by the authors' code: of the
# first global crop, the second, and the local ones; the first two are MoCo v3's (Chen, Xie & He, ICCV 2021) also. Both
# blur with Pillow's approximation, which reaches 6 pixels at a sigma of 2.
DINO_COLOURS = (
    Augmentation(jitter=0.8, strengths=(0.4, 0.4, 0.2, 0.1), greyscale=0.2, blur=1.0, kernel=13),
    Augmentation(jitter=0.8, strengths=(0.4, 0.4, 0.2, 0.1), greyscale=0.2, blur=0.1, kernel=13, solarise=0.2),
    Augmentation(jitter=0.8, strengths=(0.4, 0.4, 0.2, 0.1), greyscale=0.2, blur=0.5, kernel=13),
)


@contextmanager
def one_thread() -> Iterator[None]:
    """As a loader's worker has: torch takes the mean of a large picture, or of a sound, in one part a thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _apply(operation: str, frames: Tensor, parameter: float, kernel: int) -> Tensor:
    from torchvision.transforms.v2 import functional

    match operation:
        case "greyscale":
            return functional.rgb_to_grayscale(frames, frames.shape[-3])
        case "blur":
            return functional.gaussian_blur(frames, [kernel, kernel], [parameter, parameter])
        case "solarise":
            return functional.solarize(frames, parameter if frames.is_floating_point() else parameter * 255)
        case _:
            return getattr(functional, f"adjust_{operation}")(frames, parameter)
