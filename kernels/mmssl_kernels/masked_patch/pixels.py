"""Patches of raw pixels, normalised: what embedding and loss have in common."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mmssl_kernels.frame import checks
from mmssl_kernels.patches import Patch, check_positions, flat_positions, gather_channels, grid_of

# Pieces of this many bytes pass from the gather to what reads them through the cache, and are large enough that threads
# seldom wait for each other.
PIECE_BYTES = 2**22


def normalized_patches(
    pixels: Shaped[Tensor, "batch channels *axes"],
    index: Int64[Tensor, "*kept"],
    patch: Patch,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    rows: Int64[Tensor, " flat"] | None = None,
) -> Float[Tensor, "*kept values"]:
    """The patches at `index` in float32 (float64 for such pixels), `(x - mean) / std` a channel.

    uint8 pixels are first divided by 255. Values are in the order of `patchify`.
    """
    check_pixels(pixels, patch, mean, std)
    check_positions(pixels, index, rows, patch)
    values = normalize(gather_channels(pixels, *flat_positions(index, rows), patch), exact(mean), exact(std))
    return values.transpose(1, 2).reshape(*index.shape, values.shape[1] * values.shape[2])


def exact(statistics: Tensor) -> Tensor:
    """Means and deviations of a model in half precision, in float32; float64 stays."""
    return statistics.to(torch.promote_types(statistics.dtype, torch.float32))


def normalize(values: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`(x - mean) / std` of raw values `[S, channels, places]`, in float32 or float64 (of values or statistics)."""
    unit = 255.0 if values.dtype == torch.uint8 else 1.0
    dtype = torch.promote_types(values.dtype, mean.dtype)
    mean, std = mean.to(dtype)[:, None], std.to(dtype)[:, None]
    return (values.to(dtype) * (1.0 / (unit * std))).sub_(mean / std)


def check_pixels(pixels: Tensor, patch: Patch, mean: Tensor, std: Tensor) -> tuple[int, ...]:
    """The grid of these pixels. Raises TypeError and ValueError as `checks` does."""
    checks.dtype(checks.PIXELS, pixels=pixels)
    checks.dtype(checks.FLOATS, mean=mean, std=std)
    checks.same_device(pixels=pixels, mean=mean, std=std)
    grid = grid_of(pixels.shape, patch)
    checks.shape((pixels.shape[1],), f"pixels have shape {tuple(pixels.shape)}", mean=mean, std=std)
    return grid


def pieces(count: int, values: int) -> Iterator[slice]:
    """Slices of `count` patches of so many values each, small enough to stay in the cache."""
    step = max(1, PIECE_BYTES // (4 * values))
    return (slice(start, start + step) for start in range(0, count, step))
