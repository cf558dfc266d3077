"""Views: raw pictures and clips of any size to batches of one size each, pure functions of them and the noise's keys.

A sample holds any spatial media under any names, `image` [C, H, W] or `video` [C, T, H, W], all of one height and
width. Everything that one sample holds is cut alike, so that frames, pairs of frames and aligned maps stay aligned.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from mmssl.data.augment import Change
from mmssl.errors import UserError
from mmssl.masking.noise import Keys, random_bits
from mmssl.modality import ZERO_TO_ONE

TRIES = 10
NUMBERS = 2 * TRIES + 3
SMALL = 64
LONGEST = 4
# In quarters of the room down and across.
_PLACES = [(y, x) for y in range(5) for x in range(5) if y % 2 == x % 2]
Piece = tuple[slice | list[int], Tensor]  # rows of a batch, and what they are
Size = int | tuple[int, int]  # one side for both, or height and width


@runtime_checkable
class View(Protocol):
    """Turns samples into a batch; `samples` is read once, in the order of the keys, one of them in memory at a time."""

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]: ...


class Cut(NamedTuple):
    """Where the pixels come from: a box of the frame, resized, then a window of that, maybe mirrored.

    int64 [n] (flip: bool [n]), one entry a sample.
    """

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    new_height: np.ndarray
    new_width: np.ndarray
    window_top: np.ndarray
    window_left: np.ndarray
    flip: np.ndarray


class Shot(NamedTuple):
    """What `render` makes of every sample.

    cut: the Cut of some rows' samples of one height and width. change: of some rows' media of one name, after the cut.
    strides: by name, what is class numbers, and how many pixels of `size` each number stands for along both sides.
    """

    size: tuple[int, int]
    cut: Callable[[Sequence[int], int, int], Cut]
    change: Callable[[str, Sequence[int], Tensor], Tensor] = lambda name, rows, medium: medium
    strides: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True)
class Crop:
    """RandomResizedCrop to `size` (bicubic, antialiased), a horizontal flip with probability `flip`, then changes.

    size: pixels of both sides, or (height, width). Box areas are uniform in `scale` (shares of the picture) and the
    boxes' aspects, width to height, log-uniform in `ratio`: torchvision's distribution, with its ten tries and its
    central fallback. As there, a size that is not square wants a `ratio` round its aspect, or boxes are squeezed.
    augmentation: what becomes of `image` and `video` then, an Augmentation, RandAugment, Erasing or a Compose of them;
    whatever else a sample holds keeps its values.
    """

    size: Size
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    augmentation: Change | None = None

    def __post_init__(self) -> None:
        if min(sides(self.size)) < 1:
            raise UserError(f"size must be at least 1, not {self.size}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"scale must be two ascending shares in (0, 1], not {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"ratio must be two ascending positive numbers, not {self.ratio}.")
        if not 0 <= self.flip <= 1:
            raise UserError(f"flip must be a probability, not {self.flip}.")

    def shot(self, keys: Keys, view: int) -> Shot:
        """Boxes and flips drawn from the stream "view/k" of view k, changes from their own."""
        cut = partial(self._cut, draw_numbers(f"view/{view}", keys))
        if self.augmentation is None:
            return Shot(sides(self.size), cut)
        return Shot(sides(self.size), cut, partial(_changed, self.augmentation, self.augmentation.draw(keys, view)))

    def _cut(self, noise: np.ndarray, rows: Sequence[int], height: int, width: int) -> Cut:
        numbers = noise[rows]
        boxes = random_boxes(numbers[:, :-1], height, width, self.scale, self.ratio)
        return whole(boxes, self.size, numbers[:, -1] < self.flip)


@dataclass(frozen=True)
class MultiView:
    """A crop of each sample for each of `crops`, of sizes and changes of their own, as `image`, `image.1`, ...

    uint8 stays uint8; floating point stays float32; a batch with both kinds becomes float32 0-1. Pictures come as
    [B, C, height, width], clips as [B, C, T, height, width]. Raises UserError when samples hold such names themselves
    (pairs of frames) and there are several crops, or neither image nor video and one of the crops augments.
    """

    crops: tuple[Crop, ...]

    def __post_init__(self) -> None:
        if not self.crops:
            raise UserError("A batch needs at least one of its samples' views, not 0.")

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        views = render(samples, [crop.shot(keys, k) for k, crop in enumerate(self.crops)])
        taken = [name for name in views[0] if "." in name]
        if len(views) > 1 and taken:
            raise UserError(f"{len(views)} views cannot be named: the samples hold {taken[0]} already; take one view.")
        if any(crop.augmentation for crop in self.crops) and not any(map(_coloured, views[0])):
            raise UserError(f"Only image and video are augmented, and the samples hold only {', '.join(views[0])}.")
        return {f"{name}.{k}" if k else name: batch for k, view in enumerate(views) for name, batch in view.items()}


@dataclass(frozen=True)
class TrainView:
    """`views` crops alike of each sample (see Crop and MultiView), colours as they are.

    Floating point may overshoot its range by the filter's ringing.
    """

    size: Size
    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    views: int = 1

    def __post_init__(self) -> None:
        self._crops()

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        return self._crops()(samples, keys)

    def _crops(self) -> MultiView:
        return MultiView((Crop(self.size, self.scale, self.ratio, self.flip),) * self.views)


@dataclass(frozen=True)
class EvalView:
    """The picture resized (bicubic, antialiased) until it just covers `resize`, then the centre of `size` of that.

    size: pixels of both sides, or (height, width). resize: the same; by default size / 0.875; one number for a size
    that is not square is its shorter side's, the longer in proportion. Where both are square that is: the shorter side
    becomes `resize` pixels. Rounds as torchvision's Resize and CenterCrop do. A picture more than four times longer,
    for its width, than the size is first cut to that round its centre, which moves the result by less than a pixel and
    keeps the memory bounded.
    """

    size: Size
    resize: Size | None = None

    def __post_init__(self) -> None:
        if min(sides(self.size)) < 1 or any(a < b for a, b in zip(self._covered(), sides(self.size), strict=True)):
            raise UserError(f"size must be at least 1 and resize at least size, not {self.size} and {self.resize}.")

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys | None = None) -> dict[str, Tensor]:
        return render(samples, [self.shot()])[0]

    def shot(self, keys: Keys | None = None, view: int = 0) -> Shot:
        """The same for all keys and views."""
        return Shot(sides(self.size), self.cut)

    def _covered(self) -> tuple[int, int]:
        """The height and width that the resized picture covers, one of them exactly."""
        size = sides(self.size)
        if self.resize is None:
            return int(size[0] / 0.875), int(size[1] / 0.875)
        if isinstance(self.resize, int):
            return self.resize * size[0] // min(size), self.resize * size[1] // min(size)
        return self.resize

    def cut(self, rows: Sequence[int], height: int, width: int) -> Cut:
        """The Cut of some rows' pictures of one size."""
        down, across = self._covered()
        most = max(1, LONGEST * width * down // across), max(1, LONGEST * height * across // down)
        box = [min(side, limit) for side, limit in zip((height, width), most, strict=True)]
        start = [(side - kept) // 2 for side, kept in zip((height, width), box, strict=True)]
        # The side that is short for its target is resized to it; cutting never changes which.
        target, shorter = (down, height) if down * width >= across * height else (across, width)
        resized = [target * side // shorter for side in box]
        window = [round((side - wanted) / 2) for side, wanted in zip(resized, sides(self.size), strict=True)]
        return Cut(*(np.full(len(rows), value) for value in (*start, *box, *resized, *window, False)))


@dataclass(frozen=True)
class WindowView:
    """The picture resized (bicubic, antialiased) until it just covers `size`, then a window of `size` at a random place
    along the longer side: CLIP's crop, a random square of the resized picture (Radford et al. 2021, section 2.5).

    size: pixels of both sides, or (height, width). Of very long pictures the middle counts, as in EvalView.
    """

    size: Size

    def __post_init__(self) -> None:
        EvalView(self.size, self.size)

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        return render(samples, [Shot(sides(self.size), partial(self._cut, draw_numbers("view/0", keys)))])[0]

    def _cut(self, noise: np.ndarray, rows: Sequence[int], height: int, width: int) -> Cut:
        cut, (down, across) = EvalView(self.size, self.size).cut(rows, height, width), sides(self.size)
        top, left = np.floor(noise[rows, :2] * np.stack([cut.new_height - down + 1, cut.new_width - across + 1], 1)).T
        return cut._replace(window_top=top.astype(np.int64), window_left=left.astype(np.int64))


@dataclass(frozen=True)
class MultiScaleView:
    """Boxes of a few fixed sizes and places, resized to `size`, without flips: VideoMAE's crops.

    size: pixels of both sides, or (height, width). Height and width of a box are those of the largest box of its aspect
    (for a square size: the shorter side) times one of `scales` each, at most one step of the list apart; it lies at one
    of thirteen places: corners, middles of the sides, centre, and half way to the corners. Source: the
    GroupMultiScaleCrop of Wang et al., "Temporal Segment Networks" (ECCV 2016), in VideoMAE's code with these scales.
    """

    size: Size
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.66)

    def __post_init__(self) -> None:
        if min(sides(self.size)) < 1 or not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise UserError(f"size must be at least 1 and scales in (0, 1], not {self.size} and {self.scales}.")

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        return render(samples, [Shot(sides(self.size), partial(self._cut, draw_numbers("view/0", keys)))])[0]

    def _cut(self, noise: np.ndarray, rows: Sequence[int], height: int, width: int) -> Cut:
        (down, across), count = sides(self.size), len(self.scales)
        tall, wide = min(height, width * down / across), min(width, height * across / down)
        pairs = [(i, j) for i in range(count) for j in range(count) if abs(i - j) <= 1]
        chosen = np.array(pairs)[(noise[rows, 0] * len(pairs)).astype(int)]
        scales = np.array(self.scales)[chosen]
        box_height, box_width = np.maximum(1, (scales * (tall, wide)).astype(np.int64)).T
        quarters = np.array(_PLACES)[(noise[rows, 1] * len(_PLACES)).astype(int)]
        top, left = quarters[:, 0] * ((height - box_height) // 4), quarters[:, 1] * ((width - box_width) // 4)
        return whole((top, left, box_height, box_width), self.size, np.zeros(len(top), dtype=bool))


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def whole(boxes: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], size: Size, flip: np.ndarray) -> Cut:
    """Boxes (top, left, height, width) resized to `size`, without a window cut of that."""
    (height, width), zero = (np.full_like(boxes[0], side) for side in sides(size)), np.zeros_like(boxes[0])
    return Cut(*boxes, height, width, zero, zero, flip)


def draw_numbers(stream: str, keys: Keys) -> Float64[np.ndarray, "batch numbers"]:
    """23 numbers in [0, 1) a sample, multiples of 2**-20: ten areas, ten aspects, the row, the column, the flip."""
    # Three numbers to a hash: for small pictures the hashes are a large part of the cost.
    seed, sample_id, epoch, draw = keys
    bits = random_bits(-(-NUMBERS // 3), seed=seed, stream=stream, sample_id=sample_id, epoch=epoch, draw=draw).numpy()
    thirds = (bits[:, :, None] >> np.array([0, 20, 40])) & (2**20 - 1)
    return thirds.reshape(len(bits), -1)[:, :NUMBERS] * 2.0**-20


def random_boxes(
    noise: Float64[np.ndarray, "n numbers"],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(top, left, height, width), int64 [n] each, of RandomResizedCrop's boxes in a picture of the given size.

    noise: 22 numbers in [0, 1) a box: ten areas, ten aspects, the row, the column.
    """
    found, box_height, box_width = tried_boxes(noise, height * width, (height, width), scale, ratio)
    central_height = min(height, round(width / ratio[0]))
    central_width = min(width, round(height * ratio[1]))
    box_height, box_width = np.where(found, box_height, central_height), np.where(found, box_width, central_width)
    free_height, free_width = height - box_height, width - box_width
    top = np.floor(np.where(found, noise[:, -2] * (free_height + 1), free_height // 2))
    left = np.floor(np.where(found, noise[:, -1] * (free_width + 1), free_width // 2))
    return top.astype(np.int64), left.astype(np.int64), box_height.astype(np.int64), box_width.astype(np.int64)


def tried_boxes(
    noise: Float64[np.ndarray, "n numbers"],
    area: int,
    most: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(whether one of the ten tries fits, its height, its width), bool and float64 [n]: the first that is neither empty
    nor larger than `most`, height and width, with shares `scale` of `area` pixels and aspects `ratio`.

    noise: see `random_boxes`.
    """
    areas = area * (scale[0] + (scale[1] - scale[0]) * noise[:, :TRIES])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(low + (high - low) * noise[:, TRIES : 2 * TRIES])
    widths, heights = np.rint(np.sqrt(areas * aspect)), np.rint(np.sqrt(areas / aspect))
    fits = (widths > 0) & (widths <= most[1]) & (heights > 0) & (heights <= most[0])
    rows, first = np.arange(len(noise)), fits.argmax(1)
    return fits[rows, first], heights[rows, first], widths[rows, first]


def render(samples: Iterable[dict[str, Tensor]], shots: Sequence[Shot]) -> list[dict[str, Tensor]]:
    """The samples' media [C, ..., H, W] as batches [B, C, ..., *size] by name, once for each of `shots`.

    Class numbers, uint8, have their own size (see `Shot.strides`): each is that of the nearest pixel. In floating
    point, NaN are pixels that are not there: what is known is averaged without them, and NaN where that is less than
    half of a new pixel.

    How something is resampled depends on its own size and the shot's, so nothing else in the batch changes a pixel.
    Raises UserError when a sample's media differ in height or width, or the samples in what they hold.
    """
    pieces: list[dict[str, list[Piece]]] = [defaultdict(list) for _ in shots]
    small: dict[tuple[str, torch.Size], list[tuple[int, Tensor]]] = defaultdict(list)
    names: list[str] = []
    count = 0
    for row, sample in enumerate(samples):
        names, count = names or list(sample), row + 1
        height, width = _extent(sample, names)
        for name, medium in sample.items():
            if any(_is_small(name, medium, shot) for shot in shots):
                small[name, medium.shape].append((row, medium))
        for made, shot in zip(pieces, shots, strict=True):
            large = [(name, medium) for name, medium in sample.items() if not _is_small(name, medium, shot)]
            if not large:
                continue
            where = shot.cut([row], height, width)
            for name, medium in large:
                stride = shot.strides.get(name)
                cut = _nearest(medium, shot.size, where, stride) if stride else _resample(medium, shot.size, where)
                made[name].append((slice(row, count), shot.change(name, [row], cut)))
    for (name, shape), members in small.items():
        rows = [row for row, _ in members]
        stack = torch.stack([medium for _, medium in members])
        for made, shot in zip(pieces, shots, strict=True):
            if _is_small(name, stack, shot):
                cut = _resample_stack(stack, shot.size, shot.cut(rows, *shape[-2:]))
                made[name].append((rows, shot.change(name, rows, cut)))
    return [{name: _assemble(made[name], count) for name in names} for made in pieces]


def _is_small(name: str, medium: Tensor, shot: Shot) -> bool:
    """Whether many such are resampled together to the shot's size."""
    return name not in shot.strides and medium.dtype == torch.uint8 and max(*medium.shape[-2:], *shot.size) <= SMALL


def _changed(augmentation: Change, drawn: Sequence[Any], name: str, rows: Sequence[int], medium: Tensor) -> Tensor:
    return augmentation(medium, [drawn[row] for row in rows]) if _coloured(name) else medium


def _coloured(name: str) -> bool:
    """Whether a medium, or a view of one, has colours: uint8 0-255 or floating point 0-1."""
    return name.partition(".")[0] in ZERO_TO_ONE


def _extent(sample: dict[str, Tensor], names: list[str]) -> tuple[int, int]:
    """The height and width common to all that a sample holds, which must be what the others hold."""
    if sample.keys() != set(names):
        raise UserError(f"One sample holds {', '.join(names)} and another {', '.join(sample)}; all must hold the same.")
    extents = {tuple(medium.shape[-2:]) for medium in sample.values()}
    if len(extents) > 1:
        shapes = ", ".join(f"{name} {list(medium.shape)}" for name, medium in sample.items())
        raise UserError(f"A sample's media are cut alike and must agree in height and width, unlike {shapes}.")
    height, width = extents.pop()
    return height, width


def _assemble(pieces: list[Piece], count: int) -> Tensor:
    if len(pieces) == 1:
        return pieces[0][1].contiguous()
    floating = any(piece.is_floating_point() for _, piece in pieces)
    batch = pieces[0][1].new_empty((count, *pieces[0][1].shape[1:]), dtype=torch.float32 if floating else torch.uint8)
    places = batch.numpy()  # which copies what lies with the channel fastest in a third of torch's time
    for rows, piece in pieces:
        places[rows] = (piece / 255 if floating and piece.dtype == torch.uint8 else piece).numpy()
    return batch


def _resample(
    medium: Shaped[Tensor, "c *extra h w"], size: tuple[int, int], cut: Cut
) -> Shaped[Tensor, "1 c *extra down across"]:
    top, left, height, width, new_height, new_width, y, x, flip = (int(field[0]) for field in cut)
    # [1, *extra, C, H, W] with the channel fastest, as decoders give it: torch's fast path, which returns it so.
    frames = medium.movedim(0, -1)[None].movedim(-1, -3)
    box = frames.flatten(0, -4)[..., top : top + height, left : left + width]
    if (height, width) != (new_height, new_width):
        box = _resized(box, (new_height, new_width))
    window = box[..., y : y + size[0], x : x + size[1]].unflatten(0, frames.shape[:-3]).movedim(-3, 1)
    return window.flip(-1) if flip else window


def _resized(box: Shaped[Tensor, "n c height width"], size: tuple[int, int]) -> Shaped[Tensor, "n c down across"]:
    resize = partial(interpolate, size=size, mode="bicubic", antialias=True)
    if not box.is_floating_point() or not (gaps := box.isnan()).any():
        return resize(box)
    known = resize((~gaps).to(box.dtype))
    return (resize(box.masked_fill(gaps, 0)) / known).masked_fill(known < 0.5, math.nan)


def _nearest(
    medium: UInt8[Tensor, "c height width"], size: tuple[int, int], cut: Cut, stride: int
) -> UInt8[Tensor, "1 c down across"]:
    """The pixels in the middles of the window's cells of `stride` pixels, of a middle between two the latter: what
    Pillow's NEAREST takes of a box that becomes one pixel a cell, but that its middles are summed up in floats."""
    top, left, height, width, new_height, new_width, y, x, flip = (int(field[0]) for field in cut)
    middles = ((torch.arange(side // stride) * 2 + 1) * stride for side in size)  # twice, to stay whole numbers
    rows, columns = (
        (middle + 2 * first) * box // (2 * new)
        for middle, first, box, new in zip(middles, (y, x), (height, width), (new_height, new_width))
    )
    window = medium[:, (top + rows)[:, None], left + columns]
    return (window.flip(-1) if flip else window)[None]


def _resample_stack(
    stack: UInt8[Tensor, "n c *extra h w"], size: tuple[int, int], cut: Cut
) -> UInt8[Tensor, "n c *extra down across"]:
    """Small media of one size in two batched matrix products, where a call each would cost more than the work.

    Values are integers below 2**8, weights are multiples of 2**-14 and sum to one: every partial sum is exact in
    float32, so the order in which a BLAS adds cannot change a pixel. NumPy, because its products heed no autocast and
    no reduced-precision setting.
    """
    planes = stack.flatten(1, -3)
    count, channels, height, width = planes.shape
    down = np.stack([cut.top, cut.height, cut.new_height, cut.window_top], 1).tolist()
    across = np.stack([cut.left, cut.width, cut.new_width, cut.window_left], 1).tolist()
    batch = np.empty((count, channels, *size), np.uint8)
    at_once = max(1, SMALL**2 * 6 // (channels * max(height, width, *size) ** 2))
    for first in range(0, count, at_once):  # few enough to stay in the cache, and below what malloc maps anew each time
        part = slice(first, first + at_once)
        rows = np.concatenate([axis_weights(height, *where, size[0]) for where in down[part]])
        columns = np.concatenate([axis_weights(width, *where, size[1]) for where in across[part]])
        values = planes[part].numpy().astype(np.float32) @ columns.reshape(-1, 1, size[1], width).swapaxes(2, 3)
        batch[part] = _to_bytes(rows.reshape(-1, 1, size[0], height) @ _to_bytes(values))
    batch[cut.flip] = batch[cut.flip][..., ::-1]
    return torch.from_numpy(batch).view(*stack.shape[:-2], *size)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    values += 0.5  # halves go up, as in Pillow and torch
    return np.clip(np.floor(values, out=values), 0, 255, out=values)


@lru_cache(maxsize=4096)
def axis_weights(total: int, start: int, length: int, new: int, window: int, size: int) -> Float32[np.ndarray, "s t"]:
    """Rows [window, window + size) of the matrix that resizes `length` of `total` pixels, from `start`, to `new`.

    The antialiased bicubic filter of Pillow and torch (a = -0.5, widened when it shrinks; Keys, "Cubic convolution
    interpolation for digital image processing", 1981), each row summing to one.
    """
    step = length / new
    centres = start + (np.arange(window, window + size) + 0.5) * step
    positions = np.arange(total)
    distance = np.abs(positions + 0.5 - centres[:, None]) / max(step, 1.0)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weights *= (positions >= start) & (positions < start + length)
    return (np.rint(weights / weights.sum(1, keepdims=True) * 2**14) / 2**14).astype(np.float32)
