"""One patchify for pictures, clips and spectrograms, and a gather that reads nothing but the patches asked for.

A patch is flattened as (time, row, column, channel), the channel fastest, as in MAE, VideoMAE and Audio-MAE; patches
are numbered row-major over the grid. A picture is `[B, C, H, W]` with a patch `(ph, pw)`, a clip `[B, C, T, H, W]` with
`(pt, ph, pw)`: the same code for any number of axes.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from mmssl_kernels.frame import checks

Patch = tuple[int, ...]


def grid_of(shape: tuple[int, ...] | torch.Size, patch: Patch) -> tuple[int, ...]:
    """Patches along each axis of pixels with this `[B, C, *axes]` shape.

    Raises ValueError, naming both shapes, where the axes differ in number or a patch does not divide its axis.
    """
    if len(shape) < 3 or not all(isinstance(side, (int, torch.SymInt)) and side >= 1 for side in patch):
        raise ValueError(f"pixels of shape {tuple(shape)} and patch {patch}: expected (B, C, *axes) and whole sides")
    axes = tuple(shape[2:])
    if len(axes) != len(patch):
        raise ValueError(f"pixels of shape {tuple(shape)} have {len(axes)} axes, but patch {patch} has {len(patch)}")
    if any(size % side for size, side in zip(axes, patch, strict=True)):
        raise ValueError(f"patch {patch} does not divide the axes {axes} of pixels of shape {tuple(shape)}")
    return tuple(size // side for size, side in zip(axes, patch, strict=True))


def patch_view(pixels: Shaped[Tensor, "batch channels *axes"], patch: Patch) -> Tensor:
    """The pixels as `[B, *grid, *patch, C]`: a view, nothing is read or copied."""
    grid, n = grid_of(pixels.shape, patch), len(patch)
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    view = pixels.reshape(*pixels.shape[:2], *split)  # splitting axes never copies
    return view.permute(0, *range(2, 2 + 2 * n, 2), *range(3, 3 + 2 * n, 2), 1)


def patchify(pixels: Shaped[Tensor, "batch channels *axes"], patch: Patch) -> Shaped[Tensor, "batch patches values"]:
    """All patches, flattened: `[B, C, *axes]` to `[B, N, prod(patch) * C]`."""
    view = patch_view(pixels, patch)
    return view.flatten(1 + len(patch)).flatten(1, len(patch))


def unpatchify(
    patches: Shaped[Tensor, "batch patches values"], patch: Patch, grid: tuple[int, ...]
) -> Shaped[Tensor, "batch channels *axes"]:
    """The inverse of `patchify`: `[B, N, prod(patch) * C]` on `grid` to `[B, C, *axes]`."""
    n, count = len(patch), math.prod(grid)
    if patches.shape[1] != count or patches.shape[2] % math.prod(patch):
        raise ValueError(f"patches of shape {tuple(patches.shape)} do not fill the grid {grid} with patch {patch}")
    view = patches.reshape(len(patches), *grid, *patch, -1)
    order = [axis for pair in zip(range(1, 1 + n), range(1 + n, 1 + 2 * n), strict=True) for axis in pair]
    axes = tuple(size * side for size, side in zip(grid, patch, strict=True))
    return view.permute(0, 1 + 2 * n, *order).reshape(len(patches), -1, *axes)


def gather_patches(
    pixels: Shaped[Tensor, "batch channels *axes"],
    index: Int64[Tensor, "*kept"],
    patch: Patch,
    rows: Int64[Tensor, " flat"] | None = None,
) -> Shaped[Tensor, "*kept values"]:
    """The patches at `index`, flattened; the others are not read.

    index: `[B, K]`, K patches of every sample; or `[S]` with `rows` `[S]` naming each one's sample (ragged).
    """
    check_positions(pixels, index, rows, patch)
    return (
        gather_channels(pixels, *flat_positions(index, rows), patch)
        .transpose(1, 2)
        .reshape(*index.shape, math.prod(patch) * pixels.shape[1])
    )


def check_positions(pixels: Tensor, index: Tensor, rows: Tensor | None, patch: Patch) -> None:
    """Raises ValueError for positions or rows that these pixels do not have, as far as values may be read."""
    count = math.prod(grid_of(pixels.shape, patch))
    checks.positions("index", index, rows, len(pixels), count)
    # reading values would break a compiled graph
    if index.numel() and not torch.compiler.is_compiling() and checks.values_are_checked(index):
        checks.values_below("index", index, count)
        if rows is not None:
            checks.values_below("index's rows", rows, len(pixels))


def flat_positions(index: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    """Positions and the sample of each, both flat."""
    if rows is None:
        rows = torch.arange(len(index), device=index.device)[:, None].expand_as(index).flatten()
    return index.flatten(), rows


def gather_channels(
    pixels: Shaped[Tensor, "batch channels *axes"],
    index: Int64[Tensor, " flat"],
    rows: Int64[Tensor, " flat"],
    patch: Patch,
) -> Shaped[Tensor, "flat channels places"]:
    """The patches at flat positions, one channel after the other.

    That is the order of memory of contiguous pixels, of which whole lines are copied: several times faster than by
    value.
    """
    grid, n = grid_of(pixels.shape, patch), len(patch)
    at = patches_at(index, rows, grid)
    if not pixels.is_contiguous():
        return patch_view(pixels, patch).movedim(-1, 1 + n)[at].flatten(2).contiguous()
    sizes = (*pixels.shape[1:-1], grid[-1])  # of a sample as an array of lines, each as wide as a patch
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    first = at[0] * math.prod(sizes) + at[-1]
    inner = torch.arange(pixels.shape[1], device=pixels.device) * strides[0]
    for coordinate, side, stride in zip(at[1:-1], patch[:-1], strides[1:-1], strict=True):
        first = first + coordinate * (side * stride)
        inner = inner[..., None] + torch.arange(side, device=pixels.device) * stride
    lines = (first[:, None] + inner.flatten()).flatten()
    return pixels.view(-1, patch[-1]).index_select(0, lines).view(len(index), pixels.shape[1], math.prod(patch))


def patches_at(index: Tensor, rows: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, ...]:
    """What to index a `patch_view` with for the patches numbered `index` of the samples `rows`."""
    coordinates, rest = [], index
    for size in reversed(grid):
        coordinates.append(rest % size)
        rest = rest // size
    return rows, *reversed(coordinates)
