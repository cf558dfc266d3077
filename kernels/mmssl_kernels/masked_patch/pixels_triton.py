"""Where a patch lies in memory, and its values read and normalised: shared by the embedding and the loss.

Pixels are `[B, C, T, H, W]` with any strides; a picture has T = 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.frame.launch import choose, launch
from mmssl_kernels.patches import Patch, grid_of


def addresses(pixels: Tensor, patch: Patch, index: Tensor, rows: Tensor | None) -> dict[str, Any]:
    """The kernels' arguments that say where the patches are."""
    extra = 3 - len(patch)
    strides = (*pixels.stride()[:2], *([0] * extra), *pixels.stride()[2:])
    grid = (*([1] * extra), *grid_of(pixels.shape, patch))
    reach = sum((n - 1) * abs(stride) for n, stride in zip((pixels.shape[1], *patch), pixels.stride()[1:], strict=True))
    return {
        "pixels": pixels,
        "index": index.contiguous(),
        "rows": None if rows is None else rows.contiguous(),
        "S": index.numel(),
        "K": index.shape[-1],
        "B": len(pixels),
        "GT": grid[0],
        "GH": grid[1],
        "GW": grid[2],
        **dict(zip(("stride_b", "stride_c", "stride_t", "stride_h", "stride_w"), strides, strict=True)),
        "C": pixels.shape[1],
        **dict(zip(("PT", "PH", "PW"), (*([1] * extra), *patch), strict=True)),
        "WIDE": reach >= 2**31,  # 32 bits hold an offset within any but a huge sample, and cost half the registers
    }


def lines_are_contiguous(pixels: Tensor) -> bool:
    """Whether all channels of a line lie together (channels-last pixels)."""
    return pixels.shape[1] > 1 and pixels.stride(1) == 1 and pixels.stride(-1) == pixels.shape[1]


@triton.jit
def locate(index, rows, s, S, K, B, GT, GH, GW, stride_b, stride_t, stride_h, stride_w, PT, PH, PW):
    """Sample, position and offset of the first value of the patches numbered s, all clamped to what exists."""
    valid = s < S
    n = tl.load(index + s, mask=valid, other=0)
    n = tl.minimum(tl.maximum(n, 0), GT * GH * GW - 1).to(tl.int32)
    if rows is None:
        b = s // K
    else:
        b = tl.load(rows + s, mask=valid, other=0).to(tl.int32)
    b = tl.minimum(tl.maximum(b, 0), B - 1)
    offset = b.to(tl.int64) * stride_b + (n // (GH * GW) * PT).to(tl.int64) * stride_t
    offset += (n // GW % GH * PH).to(tl.int64) * stride_h + (n % GW * PW).to(tl.int64) * stride_w
    return b, n, offset


@triton.jit
def within_patch(c, p, stride_c, stride_t, stride_h, stride_w, PH: tl.constexpr, PW: tl.constexpr, WIDE: tl.constexpr):
    """Offset from a patch's first value to channel c at its place p."""
    if WIDE:
        c, p = c.to(tl.int64), p.to(tl.int64)
    return p // (PH * PW) * stride_t + p // PW % PH * stride_h + p % PW * stride_w + c * stride_c


@triton.jit
def unit(pixels):
    """What a raw value is divided by to lie between 0 and 1."""
    return 255.0 if pixels.dtype.element_ty == tl.uint8 else 1.0


@triton.jit
def normalized_patches_kernel(
    pixels, index, rows, mean, std, out, S, K, B, GT, GH, GW,
    stride_b, stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, WIDE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """out[s, v] = (x - mean) / std: BLOCK_S patches by BLOCK_V of their values, in the order of `patchify`."""
    s = tl.program_id(0) * BLOCK_S + tl.arange(0, BLOCK_S)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    _, _, start = locate(index, rows, s, S, K, B, GT, GH, GW, stride_b, stride_t, stride_h, stride_w, PT, PH, PW)
    V: tl.constexpr = C * PT * PH * PW
    inside = v < V
    c = v % C
    offset = within_patch(c, v // C, stride_c, stride_t, stride_h, stride_w, PH, PW, WIDE)
    both = (s < S)[:, None] & inside[None, :]
    x = tl.load(pixels + start[:, None] + offset[None, :], mask=both, other=0).to(tl.float32)
    scale = 1.0 / (unit(pixels) * tl.load(std + c, mask=inside, other=1.0))
    shift = tl.load(mean + c, mask=inside, other=0.0) / tl.load(std + c, mask=inside, other=1.0)
    x = x * scale[None, :] - shift[None, :]
    tl.store(out + s.to(tl.int64)[:, None] * V + v[None, :], x.to(out.dtype.element_ty), mask=both)


def normalized_patches(
    pixels: Tensor, index: Tensor, rows: Tensor | None, mean: Tensor, std: Tensor, patch: Patch, dtype: torch.dtype
) -> Tensor:
    """`[S, values]` in `dtype`: what a vendor's product reads."""
    values = math.prod(patch) * pixels.shape[1]
    out = torch.empty(index.numel(), values, dtype=dtype, device=pixels.device)
    config = choose("normalized_patches", pixels.device, values)
    grid = (triton.cdiv(len(out), config.blocks["BLOCK_S"]), triton.cdiv(values, config.blocks["BLOCK_V"]))
    where = addresses(pixels, patch, index, rows)
    launch(normalized_patches_kernel, grid, config, **where, mean=mean.contiguous(), std=std.contiguous(), out=out)
    return out
