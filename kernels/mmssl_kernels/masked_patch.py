"""The masked-patch data path: embed what is kept, restore what is missing, compare what was hidden.

Every function takes indices as `[B, K]` (the same number for every sample) or as flat `[S]` with `rows` `[S]` (ragged).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

from mmssl_kernels.patches import Patch, gather_patches

TargetNorm = Literal["none", "patch", "channel"]


def normalized_patches(
    pixels: Shaped[Tensor, "batch channels *axes"],
    index: Int64[Tensor, "*kept"],
    patch: Patch,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    rows: Int64[Tensor, " flat"] | None = None,
) -> Float[Tensor, "*kept values"]:
    """The patches at `index` in float32, `(x - mean) / std` a channel; uint8 pixels are first divided by 255."""
    if pixels.shape[1] != len(mean):
        raise ValueError(f"pixels of shape {tuple(pixels.shape)} against the statistics of {len(mean)} channels")
    values = gather_patches(pixels, index, patch, rows)
    unit = 255.0 if pixels.dtype == torch.uint8 else 1.0
    scale = 1.0 / (unit * std)
    values = values.float().unflatten(-1, (-1, len(mean)))
    return torch.addcmul(-mean / std, values, scale).flatten(-2)


def masked_patch_embed(
    pixels: Shaped[Tensor, "batch channels *axes"],
    weight: Float[Tensor, "dim values"],
    bias: Float[Tensor, " dim"],
    position: Float[Tensor, "patches dim"],
    index: Int64[Tensor, "*kept"],
    *,
    patch: Patch,
    mean: Float[Tensor, " channels"],
    std: Float[Tensor, " channels"],
    rows: Int64[Tensor, " flat"] | None = None,
) -> Float[Tensor, "*kept dim"]:
    """Tokens of the kept patches: normalise, project, add bias and position; hidden patches are never read.

    The MAE form (arXiv 2111.06377, section 3) embeds all patches and drops most; this one multiplies only what stays.
    """
    values = normalized_patches(pixels, index, patch, mean, std, rows)
    return F.linear(values, weight, bias) + F.embedding(index, position)


def restore_tokens(
    tokens: Float[Tensor, "batch prefix_and_kept dim"],
    keep: Int64[Tensor, "batch kept"],
    mask_token: Float[Tensor, " dim"],
    position: Float[Tensor, "prefix_and_patches dim"],
    *,
    prefix: int = 0,
) -> Float[Tensor, "batch prefix_and_patches dim"]:
    """The full sequence a decoder reads: visible tokens where they came from, the mask token elsewhere, plus position.

    tokens: `prefix` class or register tokens, then the tokens of the patches in `keep`.
    """
    if tokens.shape[1] != prefix + keep.shape[1]:
        raise ValueError(f"tokens of shape {tuple(tokens.shape)} are not {prefix} + {keep.shape[1]} a sample")
    head = torch.arange(prefix, device=keep.device).expand(len(keep), prefix)
    index = torch.cat([head, keep + prefix], dim=1)
    visible = tokens + F.embedding(index, position)
    full = (mask_token + position).to(visible.dtype).expand(len(keep), *position.shape)
    return full.scatter(1, index[..., None].expand_as(visible), visible)


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
) -> Float[Tensor, ""]:
    """Mean squared error between predictions and the hidden patches, in float32.

    target_norm: "none" compares with the normalised pixels; "patch" standardises each patch over all its values,
    `(t - mean) / sqrt(var + 1e-6)` with the unbiased variance (MAE); "channel" standardises each channel of a patch of
    the 0-1 pixels, `(t - mean) / (sqrt(var) + 1e-6)` (VideoMAE).
    """
    if target_norm == "channel":
        mean, std = torch.zeros_like(mean), torch.ones_like(std)
    target = normalized_patches(pixels, index, patch, mean, std, rows)
    if target_norm == "patch":
        variance, center = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - center) * torch.rsqrt(variance + 1e-6)
    elif target_norm == "channel":
        channels = target.unflatten(-1, (-1, len(mean)))
        variance, center = torch.var_mean(channels, dim=-2, keepdim=True)
        target = ((channels - center) / (variance.sqrt() + 1e-6)).flatten(-2)
    return F.mse_loss(prediction.float(), target)
