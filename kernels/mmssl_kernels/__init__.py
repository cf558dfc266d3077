"""Masked-patch, attention and contrastive kernels for PyTorch; needs torch, triton on a GPU, and jaxtyping."""

from mmssl_kernels.attention import (
    Window,
    attention,
    attention_qkvpacked,
    attention_weights,
    explain_attention,
)
from mmssl_kernels.contrastive import (
    info_nce,
    linear_cross_entropy,
    nt_xent,
    siglip_loss,
    similarity_rank,
    similarity_topk,
)
from mmssl_kernels.masked_patch import (
    TargetNorm,
    masked_patch_embed,
    masked_patch_mse,
    normalized_patches,
    restore_tokens,
)
from mmssl_kernels.patches import gather_patches, grid_of, patch_view, patchify, unpatchify

__all__ = [
    "TargetNorm",
    "Window",
    "attention",
    "attention_qkvpacked",
    "attention_weights",
    "explain_attention",
    "gather_patches",
    "grid_of",
    "info_nce",
    "linear_cross_entropy",
    "masked_patch_embed",
    "masked_patch_mse",
    "normalized_patches",
    "nt_xent",
    "patch_view",
    "patchify",
    "restore_tokens",
    "siglip_loss",
    "similarity_rank",
    "similarity_topk",
    "unpatchify",
]
