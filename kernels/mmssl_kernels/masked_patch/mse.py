"""How far predictions are from the hidden patches. The patchified target never exists as a whole."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from mmssl_kernels.frame import checks, op
from mmssl_kernels.masked_patch.pixels import check_pixels, exact, normalize, pieces
from mmssl_kernels.patches import Patch, flat_positions, gather_channels, grid_of

TargetNorm = Literal["none", "patch", "channel"]
NORMS: tuple[TargetNorm, ...] = ("none", "patch", "channel")
EPS = 1e-6
TRITON = "mmssl_kernels.masked_patch.mse_triton"


def masked_patch_mse(
    prediction: Float[Tensor, "*hidden values"],
    pixels: Shaped[Tensor, "batch channels *axes"],
    index: Int64[Tensor, "*hidden"],
    *,
    patch: Patch,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    target_norm: TargetNorm = "none",
    rows: Int64[Tensor, " flat"] | None = None,
    weights: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean squared error between predictions and the hidden patches, in float32.

    target_norm: "none" compares with the normalised pixels; "patch" standardises each patch over all its values,
    `(t - mean) / sqrt(var + 1e-6)` with the unbiased variance (MAE, arXiv 2111.06377, section 4.1, and its code);
    "channel" standardises each channel of a patch of the 0-1 pixels, `(t - mean) / (sqrt(var) + 1e-6)` (VideoMAE's
    code); mean and std then have no part.
    weights `[B]`: of each sample, none negative; the result is the weighted mean. Nothing to compare gives 0.
    Gradient: prediction, in its dtype; the target is a constant.

    Raises ValueError naming both shapes where sizes, positions or devices do not fit, TypeError for other dtypes.
    """
    grid = check_pixels(pixels, patch, mean, std)
    checks.dtype(checks.FLOATS, prediction=prediction)
    checks.dtype((torch.float32, torch.float64), weights=weights)
    checks.same_device(
        prediction=prediction, pixels=pixels, index=index, rows=rows, mean=mean, std=std, weights=weights
    )
    checks.positions("index", index, rows, len(pixels), math.prod(grid))
    places = math.prod(patch)
    because = f"index has shape {tuple(index.shape)}, pixels {tuple(pixels.shape)}, patch {patch}"
    checks.shape((*index.shape, places * pixels.shape[1]), because, prediction=prediction)
    checks.shape((len(pixels),), f"pixels have shape {tuple(pixels.shape)}", weights=weights)
    if target_norm not in NORMS:
        raise ValueError(f"target_norm={target_norm!r}: expected {', '.join(NORMS)}")
    if {"none": 2, "patch": prediction.shape[-1], "channel": places}[target_norm] < 2:
        raise ValueError(f"target_norm={target_norm!r} needs two values or more, patch {patch} has one")
    return _op(prediction, pixels, index, rows, exact(mean), exact(std), weights, patch, target_norm)


def differences(
    prediction: Tensor, pixels: Tensor, index: Tensor, rows: Tensor, mean: Tensor, std: Tensor, patch: Patch, norm: str
) -> Tensor:
    """Target minus prediction of some patches, `[S, channels, places]`: the order of memory of pixels."""
    if norm == "channel":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    target = normalize(gather_channels(pixels, index, rows, patch), mean, std)
    # means and sums of squares take a tenth of the time of torch.var_mean on a CPU; `target` is contiguous, so that
    # its flat view can be changed in place
    if norm == "patch":
        values = target.view(len(target), -1)
        values -= values.mean(1, keepdim=True)
        variance = values.square().sum(1, keepdim=True) / (values.shape[1] - 1)
        values *= torch.rsqrt(variance + EPS)
    elif norm == "channel":
        target -= target.mean(2, keepdim=True)
        variance = target.square().sum(2, keepdim=True) / (target.shape[2] - 1)
        target /= variance.sqrt_() + EPS
    return target.sub_(prediction.unflatten(1, (-1, len(mean))).transpose(1, 2))


def total_weight(weights: Tensor | None, index: Tensor, rows: Tensor | None) -> Tensor | int:
    """What the weighted errors are divided by: the patches' weights together."""
    if weights is None:
        return index.numel()
    return weights.sum() * index.shape[1] if rows is None else weights[rows].sum()


def weighted_mean(errors: Tensor, weights: Tensor | None, index: Tensor, rows: Tensor | None) -> Tensor:
    """The mean of the patches' errors `[S]`, weighted already; 0 where there is no weight."""
    total = total_weight(weights, index, rows)
    if not isinstance(total, Tensor):
        return errors.sum() / max(total, 1)
    return torch.where(total == 0, 0.0, errors.sum() / total)


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
    """The PyTorch path: piece by piece, so that target and difference never leave the cache."""
    values = prediction.shape[-1]
    prediction, (numbers, samples) = prediction.reshape(-1, values), flat_positions(index, rows)
    errors = torch.empty(len(prediction), dtype=torch.promote_types(mean.dtype, torch.float32), device=pixels.device)
    for piece in pieces(len(prediction), values):
        difference = differences(
            prediction[piece], pixels, numbers[piece], samples[piece], mean, std, tuple(patch), norm
        )
        torch.mean(difference.square_().flatten(1), dim=1, out=errors[piece])
    if weights is not None:
        errors *= weights[samples]
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
    """The gradient of the prediction. The target is computed again: that costs less than keeping it."""
    values = prediction.shape[-1]
    out = torch.empty_like(prediction, memory_format=torch.contiguous_format)
    flat, prediction = out.view(-1, values), prediction.reshape(-1, values)
    numbers, samples = flat_positions(index, rows)
    factor = gradient_factor(grad, values, weights, index, rows)
    factors = (factor if weights is None else factor * weights[samples]).expand(len(flat))
    for piece in pieces(len(flat), values):
        difference = differences(
            prediction[piece], pixels, numbers[piece], samples[piece], mean, std, tuple(patch), norm
        )
        difference *= -factors[piece, None, None]
        flat[piece].unflatten(1, (-1, len(mean))).copy_(difference.transpose(1, 2))
    return out


def gradient_factor(grad: Tensor, values: int, weights: Tensor | None, index: Tensor, rows: Tensor | None) -> Tensor:
    """`[1]`: what a difference is multiplied by, 0 where there is no weight."""
    total = total_weight(weights, index, rows)
    if not isinstance(total, Tensor):
        return (grad * (2 / (values * max(total, 1)))).reshape(1)
    return torch.where(total == 0, 0.0, grad * 2 / (values * total)).reshape(1)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, patch, norm = inputs
    ctx.save_for_backward(*tensors)
    ctx.patch, ctx.norm = tuple(patch), norm


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _backward_op(grad, *ctx.saved_tensors, ctx.patch, ctx.norm), *([None] * 8)


_arguments = (
    "Tensor prediction, Tensor pixels, Tensor index, Tensor? rows, Tensor mean, Tensor std, Tensor? weights, "
    "int[] patch, str norm"
)
_op = op.define(
    "masked_patch_mse",
    f"({_arguments}) -> Tensor",
    mse,
    TRITON,
    fake=lambda prediction, pixels, index, rows, mean, *_: mean.new_empty(()),
    check=lambda prediction, pixels, index, rows, mean, std, weights, patch, norm: checks.position_values(
        "index", index, rows, len(pixels), math.prod(grid_of(pixels.shape, tuple(patch)))
    ),
)
_backward_op = op.define(
    "masked_patch_mse_backward",
    f"(Tensor grad, {_arguments}) -> Tensor",
    mse_backward,
    TRITON,
    fake=lambda grad, prediction, *_: torch.empty_like(prediction, memory_format=torch.contiguous_format),
)
_op.register_autograd(_differentiate, setup_context=_save)
