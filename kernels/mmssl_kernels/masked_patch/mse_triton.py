"""`masked_patch_mse` in Triton: a program a patch; it reads the pixels, normalises them and meets the prediction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.frame.launch import choose, launch
from mmssl_kernels.masked_patch.mse import EPS, gradient_factor, weighted_mean
from mmssl_kernels.masked_patch.pixels_triton import addresses, locate, unit, within_patch


@triton.jit
def raw_values(
    pixels, start, mean, std, c, p, stride_c, stride_t, stride_h, stride_w, C, P,
    PH: tl.constexpr, PW: tl.constexpr, WIDE: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """A block of channels by all places of one patch; normalised, unless its channels are standardised anyway."""
    inside = (c < C)[:, None] & (p < P)[None, :]
    offset = within_patch(c[:, None], p[None, :], stride_c, stride_t, stride_h, stride_w, PH, PW, WIDE)
    x = tl.load(pixels + start + offset, mask=inside, other=0).to(tl.float32)
    if NORM == "channel":
        return x / unit(pixels)
    deviation = tl.load(std + c, mask=c < C, other=1.0)
    shift = tl.load(mean + c, mask=c < C, other=0.0) / deviation
    return x * (1.0 / (unit(pixels) * deviation))[:, None] - shift[:, None]


@triton.jit
def masked_patch_mse_kernel(
    prediction, pixels, index, rows, mean, std, weights, factor, out, S, K, B, GT, GH, GW,
    stride_b, stride_c, stride_t, stride_h, stride_w,
    C: tl.constexpr, PT: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr, WIDE: tl.constexpr, NORM: tl.constexpr,
    EPS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Without `factor`: out[s] = weight * mean squared error of patch s. With it: out = d loss / d prediction.

    A patch of BLOCK_C channels or fewer is read once and stays in registers; one of more is read a block of channels at
    a time, three times if all its values are standardised together.
    """
    s = tl.program_id(0)
    b, _, start = locate(index, rows, s, S, K, B, GT, GH, GW, stride_b, stride_t, stride_h, stride_w, PT, PH, PW)
    P: tl.constexpr = PT * PH * PW
    V: tl.constexpr = C * P
    p = tl.arange(0, BLOCK_P)
    center = 0.0
    scale = 1.0
    if NORM == "patch":
        total = 0.0
        for first in tl.static_range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            t = raw_values(
                pixels, start, mean, std, c, p, stride_c, stride_t, stride_h, stride_w, C, P, PH, PW, WIDE, NORM
            )
            total += tl.sum(tl.where((c < C)[:, None] & (p < P)[None, :], t, 0.0))
        center = total / V
        squares = 0.0
        for first in tl.static_range(0, C, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            t = raw_values(
                pixels, start, mean, std, c, p, stride_c, stride_t, stride_h, stride_w, C, P, PH, PW, WIDE, NORM
            )
            t = tl.where((c < C)[:, None] & (p < P)[None, :], t - center, 0.0)
            squares += tl.sum(t * t)
        scale = 1.0 / tl.sqrt(squares / (V - 1) + EPS)
    weight = 1.0
    if weights is not None:
        weight = tl.load(weights + b).to(tl.float32)
    if factor is not None:
        weight = weight * tl.load(factor).to(tl.float32)
    error = 0.0
    for first in tl.static_range(0, C, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        inside = (c < C)[:, None] & (p < P)[None, :]
        t = raw_values(pixels, start, mean, std, c, p, stride_c, stride_t, stride_h, stride_w, C, P, PH, PW, WIDE, NORM)
        if NORM == "patch":
            t = (t - center) * scale
        if NORM == "channel":
            t -= (tl.sum(tl.where(inside, t, 0.0), axis=1) / P)[:, None]
            t = tl.where(inside, t, 0.0)
            t = t / (tl.sqrt(tl.sum(t * t, axis=1) / (P - 1)) + EPS)[:, None]
        place = s.to(tl.int64) * V + p[None, :] * C + c[:, None]
        difference = tl.load(prediction + place, mask=inside, other=0.0).to(tl.float32) - t
        if factor is not None:
            tl.store(out + place, (difference * weight).to(out.dtype.element_ty), mask=inside)
        else:
            error += tl.sum(tl.where(inside, difference * difference, 0.0))
    if factor is None:
        tl.store(out + s, error / V * weight)


def _launch(
    out: Tensor,
    factor: Tensor | None,
    prediction: Tensor,
    pixels: Tensor,
    index: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    std: Tensor,
    weights: Tensor | None,
    patch: list[int],
    norm: str,
) -> None:
    values, channels = prediction.shape[-1], pixels.shape[1]
    config = choose("masked_patch_mse", pixels.device, values)
    places = triton.next_power_of_2(values // channels)
    launch(
        masked_patch_mse_kernel,
        (index.numel(),),
        config,
        **addresses(pixels, tuple(patch), index, rows),
        prediction=prediction.contiguous(),
        mean=mean.contiguous(),
        std=std.contiguous(),
        weights=weights if weights is None else weights.contiguous(),
        factor=factor,
        out=out,
        NORM=norm,
        EPS=EPS,
        BLOCK_C=min(triton.next_power_of_2(channels), max(1, config.values // places)),
        BLOCK_P=places,
    )


def mse(
    prediction: Tensor,
    pixels: Tensor,
    index: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    std: Tensor,
    weights: Tensor | None,
    patch: list[int],
    norm: str,
) -> Tensor:
    """A patch's error a program, then their sum: the same for any order of programs."""
    errors = torch.empty(index.numel(), dtype=torch.float32, device=pixels.device)
    _launch(errors, None, prediction, pixels, index, rows, mean, std, weights, patch, norm)
    return weighted_mean(errors, weights, index, rows)


def mse_backward(
    grad: Tensor,
    prediction: Tensor,
    pixels: Tensor,
    index: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    std: Tensor,
    weights: Tensor | None,
    patch: list[int],
    norm: str,
) -> Tensor:
    """The same kernel, which now writes the gradient; the upstream one is read on the device."""
    out = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    factor = gradient_factor(grad, prediction.shape[-1], weights, index, rows)
    _launch(out, factor, prediction, pixels, index, rows, mean, std, weights, patch, norm)
    return out
