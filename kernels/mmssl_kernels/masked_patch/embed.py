"""Tokens of the kept patches. Hidden patches are never read, let alone multiplied."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from mmssl_kernels.frame import checks, op
from mmssl_kernels.masked_patch.pixels import check_pixels, exact, normalize, pieces
from mmssl_kernels.patches import Patch, flat_positions, gather_channels, patch_view, patches_at

TRITON = "mmssl_kernels.masked_patch.embed_triton"


def masked_patch_embed(
    pixels: Shaped[Tensor, "batch channels *axes"],
    weight: Float[Tensor, "dim values"],
    bias: Float[Tensor, " dim"] | None,
    position: Float[Tensor, "patches dim"],
    index: Int64[Tensor, "*kept"],
    *,
    patch: Patch,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    rows: Int64[Tensor, " flat"] | None = None,
) -> Float[Tensor, "*kept dim"]:
    """`((x - mean) / std) weight^T + bias + position` of the patches at `index`, in one op.

    The usual form (MAE, arXiv 2111.06377, section 3) embeds every patch and drops most.

    pixels: uint8 0-255 or floats 0-1, `[B, C, *axes]`, any strides. weight: its columns in the order of `patchify`.
    index: `[B, K]`, or flat `[S]` with `rows`. The product takes operands of weight's dtype (autocast lowers weight and
    nothing else) and sums in float32; the tokens have position's dtype.
    Gradients: weight, bias, position, and floating-point pixels; all deterministic.

    Raises ValueError naming both shapes where sizes, positions or devices do not fit, TypeError for other dtypes.
    """
    grid = check_pixels(pixels, patch, mean, std)
    checks.dtype(checks.FLOATS, weight=weight, bias=bias, position=position)
    checks.same_device(
        pixels=pixels, weight=weight, bias=bias, position=position, index=index, rows=rows, mean=mean, std=std
    )
    values = math.prod(patch) * pixels.shape[1]
    if weight.ndim != 2 or weight.shape[1] != values:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}, expected (dim, {values}): patch {patch} of pixels of shape "
            f"{tuple(pixels.shape)}"
        )
    because = f"weight has shape {tuple(weight.shape)}"
    checks.shape((len(weight),), because, bias=bias)
    checks.shape((math.prod(grid), len(weight)), f"{because} and the grid is {grid}", position=position)
    checks.positions("index", index, rows, pixels.shape[0], math.prod(grid))  # len() would fix it while tracing
    return _op(pixels, weight, bias, position, index, rows, exact(mean), exact(std), patch)


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
    """The PyTorch path: piece by piece, so that the gathered patches never leave the cache."""
    constant = position if bias is None else (position + bias).to(position.dtype)
    out = position.new_empty(*index.shape, len(weight))
    flat, (index, rows) = out.view(-1, len(weight)), flat_positions(index, rows)
    # columns in the order of gather_channels: moving the weight once is cheaper than moving every patch
    weight = weight.unflatten(1, (-1, len(mean))).transpose(1, 2).flatten(1)
    for piece in pieces(len(flat), weight.shape[1]):
        values = normalize(gather_channels(pixels, index[piece], rows[piece], tuple(patch)), mean, std).flatten(1)
        tokens = torch.index_select(constant, 0, index[piece], out=flat[piece])
        if weight.dtype == position.dtype:
            tokens.addmm_(values.to(weight.dtype), weight.T)
        else:
            tokens += F.linear(values.to(weight.dtype), weight)
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
    """Gradients of weight, bias and position; what is not needed stays empty.

    The patches are gathered anew: they cost less to read again than to keep.
    """
    d_weight, d_bias, d_position = empty_gradients(grad, weight, patches, needs)
    index, rows = flat_positions(index, rows)
    grad = grad.reshape(-1, len(weight))
    if needs[0]:
        low = grad.to(weight.dtype)
        # columns in the order of gather_channels; in float32, however many pieces there are
        total = weight.new_zeros(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32))
        for piece in pieces(len(grad), weight.shape[1]):
            values = normalize(gather_channels(pixels, index[piece], rows[piece], tuple(patch)), mean, std).flatten(1)
            if total.dtype == weight.dtype:
                total.addmm_(low[piece].T, values.to(weight.dtype))
            else:
                total += low[piece].T @ values.to(weight.dtype)
        d_weight.copy_(total.unflatten(1, (len(mean), -1)).transpose(1, 2).flatten(1))
    if needs[1]:
        torch.sum(grad, 0, out=d_bias)
    if needs[2]:
        d_position.zero_().index_add_(0, index, grad)
    return d_weight, d_bias, d_position


def empty_gradients(
    grad: Tensor, weight: Tensor, patches: int | torch.SymInt, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten gradients of weight, bias and position; of no size where not needed."""
    dim, values = weight.shape
    shapes = ((dim, values), (dim,), (patches, dim))
    weight_like, bias_like, position_like = (shape if need else (0,) for shape, need in zip(shapes, needs, strict=True))
    return weight.new_empty(weight_like), grad.new_empty(bias_like), grad.new_empty(position_like)


def pixel_gradient(
    grad: Tensor, pixels: Tensor, weight: Tensor, index: Tensor, rows: Tensor | None, std: Tensor, patch: Patch
) -> Tensor:
    """The gradient of floating-point pixels: zero wherever a patch was hidden. Plain PyTorch on every device."""
    index, rows = flat_positions(index, rows)
    values = (grad.reshape(-1, len(weight)).to(weight.dtype) @ weight).to(torch.promote_types(weight.dtype, std.dtype))
    values = (values.unflatten(1, (-1, len(std))) / std).to(pixels.dtype)
    out = pixels.new_zeros(pixels.shape)
    view = patch_view(out, patch)
    view[patches_at(index, rows, view.shape[1 : 1 + len(patch)])] = values.reshape(-1, *view.shape[1 + len(patch) :])
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    pixels, weight, _, position, index, rows, mean, std, patch = inputs
    ctx.save_for_backward(pixels, weight, index, rows, mean, std)
    ctx.patch, ctx.patches = tuple(patch), position.shape[0]  # len() would fix it while tracing


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    pixels, weight, index, rows, mean, std = ctx.saved_tensors
    of_pixels, *needs = ctx.needs_input_grad[:4]
    d_pixels, gradients = None, [None, None, None]
    if of_pixels:
        d_pixels = pixel_gradient(grad, pixels, weight, index, rows, std, ctx.patch)
    if any(needs):
        found = _backward_op(grad, pixels, weight, index, rows, mean, std, ctx.patch, ctx.patches, needs)
        gradients = [gradient if need else None for gradient, need in zip(found, needs, strict=True)]
    return d_pixels, *gradients, None, None, None, None, None


_op = op.define(
    "masked_patch_embed",
    "(Tensor pixels, Tensor weight, Tensor? bias, Tensor position, Tensor index, Tensor? rows, Tensor mean, "
    "Tensor std, int[] patch) -> Tensor",
    embed,
    TRITON,
    fake=lambda pixels, weight, bias, position, index, *_: position.new_empty(*index.shape, weight.shape[0]),
    check=lambda pixels, weight, bias, position, index, rows, *_: checks.position_values(
        "index", index, rows, len(pixels), len(position)
    ),
)
_backward_op = op.define(
    "masked_patch_embed_backward",
    "(Tensor grad, Tensor pixels, Tensor weight, Tensor index, Tensor? rows, Tensor mean, Tensor std, int[] patch, "
    "SymInt patches, bool[] needs) -> (Tensor, Tensor, Tensor)",
    embed_backward,
    TRITON,
    fake=lambda grad, pixels, weight, index, rows, mean, std, patch, patches, needs: empty_gradients(
        grad, weight, patches, needs
    ),
)
_op.register_autograd(_differentiate, setup_context=_save)
op.autocast(_op, "weight")
