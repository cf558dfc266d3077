"""Losses over a matrix of similarities."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def info_nce(
    a: Float[Tensor, "pairs dim"], b: Float[Tensor, "pairs dim"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (CLIP, arXiv 2103.00020, figure 3): row i of `a` belongs to row i of `b`.

    a, b: L2-normalised; scale: the multiplier of the similarities itself, not its logarithm. Logits are float32.
    """
    if a.shape != b.shape:
        raise ValueError(f"info_nce needs as many rows and columns in both: {tuple(a.shape)} and {tuple(b.shape)}")
    logits = scale.float() * (a.float() @ b.float().T)
    labels = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
