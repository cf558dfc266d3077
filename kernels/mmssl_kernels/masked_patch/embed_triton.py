"""`masked_patch_embed` in Triton: a matrix product whose left side is read from the kept patches as it goes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.frame.launch import choose, launch, precision
from mmssl_kernels.masked_patch.embed import empty_gradients
from mmssl_kernels.masked_patch.pixels_triton import (
    addresses,
    lines_are_contiguous,
    locate,
    normalized_patches,
    unit,
    within_patch,
)
from mmssl_kernels.masked_patch.slots_triton import position_sums, slot_map


@triton.jit
def embed_kernel(
    pixels, index, rows, weight, bias, position, mean, std, out, S, K, B, GT, GH, GW,
    stride_b, stride_c, stride_t, stride_h, stride_w, D,
    C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, WIDE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[s] = normalise(patch s) weight^T + bias + position[index[s]], BLOCK_M patches by BLOCK_N of the width.

    The values of a patch are visited in the order of memory, weight's columns in the same one.
    """
    # Programs of neighbouring numbers share the patches: the columns of the result run fastest.
    columns = tl.cdiv(D, BLOCK_N)
    s = tl.program_id(0) // columns * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.program_id(0) % columns * BLOCK_N + tl.arange(0, BLOCK_N)
    _, n, start = locate(index, rows, s, S, K, B, GT, GH, GW, stride_b, stride_t, stride_h, stride_w, PT, PH, PW)
    places: tl.constexpr = PT * PH * PW
    V: tl.constexpr = C * places
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, V, BLOCK_K):
        v = k + tl.arange(0, BLOCK_K)
        inside = v < V
        if CHANNELS_LAST:
            c = v % C
            line = v // (PW * C)  # the values of a line of the patch are neighbours, which lets them be read as words
            if WIDE:
                line = line.to(tl.int64)
            offset = line // PH * stride_t + line % PH * stride_h + v % (PW * C)
        else:
            c = v // places
            offset = within_patch(c, v % places, stride_c, stride_t, stride_h, stride_w, PH, PW, WIDE)
        x = tl.load(pixels + start[:, None] + offset[None, :], mask=(s < S)[:, None] & inside[None, :], other=0)
        deviation = tl.load(std + c, mask=inside, other=1.0)
        scale = 1.0 / (unit(pixels) * deviation)
        shift = tl.load(mean + c, mask=inside, other=0.0) / deviation
        # columns past the patch meet a zero weight, rows past the last patch are not stored
        x = x.to(tl.float32) * scale[None, :] - shift[None, :]
        w = tl.load(weight + d[None, :] * V + v[:, None], mask=(d < D)[None, :] & inside[:, None], other=0.0)
        total = tl.dot(x.to(w.dtype), w, total, input_precision=PRECISION)
    both = (s < S)[:, None] & (d < D)[None, :]
    if bias is not None:
        total += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    total += tl.load(position + n.to(tl.int64)[:, None] * D + d[None, :], mask=both, other=0.0).to(tl.float32)
    tl.store(out + s.to(tl.int64)[:, None] * D + d[None, :], total.to(out.dtype.element_ty), mask=both)


def embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    index: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    std: Tensor,
    patch: list[int],
) -> Tensor:
    """One launch, after one that puts weight's columns into the order of memory where pixels are channels-first."""
    out = position.new_empty(*index.shape, len(weight))
    last, channels = lines_are_contiguous(pixels), pixels.shape[1]
    if not last and channels > 1:
        weight = weight.unflatten(1, (-1, channels)).transpose(1, 2)
    name = "embed_32_bit" if weight.dtype == torch.float32 else "embed_16_bit"
    config = choose(name, pixels.device, index.numel())
    rows_of, columns = (
        triton.cdiv(n, config.blocks[b])
        for n, b in zip((index.numel(), len(weight)), ("BLOCK_M", "BLOCK_N"), strict=True)
    )
    launch(
        embed_kernel,
        (rows_of * columns,),
        config,
        **addresses(pixels, tuple(patch), index, rows),
        weight=weight.contiguous(),
        bias=bias if bias is None else bias.contiguous(),
        position=position.contiguous(),
        mean=mean.contiguous(),
        std=std.contiguous(),
        out=out,
        D=len(weight),
        CHANNELS_LAST=last,
        PRECISION=precision(weight.dtype),
    )
    return out


def embed_backward(
    grad: Tensor,
    pixels: Tensor,
    weight: Tensor,
    index: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    std: Tensor,
    patch: list[int],
    patches: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """weight: the vendor's product on patches gathered once more; position: sums over the batch by the slot map."""
    d_weight, d_bias, d_position = empty_gradients(grad, weight, patches, needs)
    grad = grad.reshape(-1, len(weight)).contiguous()
    if needs[0]:
        values = normalized_patches(pixels, index, rows, mean, std, tuple(patch), weight.dtype)
        torch.mm(grad.to(weight.dtype).T, values, out=d_weight)
    if needs[1]:
        torch.sum(grad, 0, out=d_bias)
    if needs[2]:
        slots = slot_map(index, rows, len(pixels), patches)
        sums, _ = position_sums(grad, len(pixels), patches, places=slots)
        d_position.copy_(sums)
    return d_weight, d_bias, d_position
