"""Masks over several modalities at once: one budget, shared out anew for every sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from mmssl.masking.grid import lowest
from mmssl.masking.mask import Mask, Positions


def dirichlet_shares(noise: Int64[Tensor, "batch modalities"]) -> Float64[Tensor, "batch modalities"]:
    """Shares uniform on the simplex, Dirichlet(1, ..., 1), from `noise.random_bits`: normalised exponentials.

    On the CPU in float64, so that the counts made of them are the same on every machine.
    """
    exponential = -torch.log1p(-noise.cpu().double() / 2**62)
    return exponential / exponential.sum(dim=1, keepdim=True)


def joint_mask(
    noise: Int64[Tensor, "batch positions"],
    shares: Float64[Tensor, "batch modalities"],
    keep: int,
    sizes: Mapping[str, int],
) -> Mask:
    """MultiMAE's mask: `keep` visible positions over all modalities, split by `shares` (arXiv 2204.01678, section 3.2).

    Each modality marks round(keep * share) positions at random; rounding and overfull grids are settled at random
    among all positions, so that the total is exact. noise: non-negative, below 2**62 (`noise.random_bits`).
    """
    if not 0 < keep < sum(sizes.values()):
        raise ValueError(f"keeping {keep} of the {sum(sizes.values())} positions of {dict(sizes)} hides nothing or all")
    wanted = (shares * keep).round().long().to(noise.device)
    marked = []
    for column, part in enumerate(noise.split(list(sizes.values()), dim=1)):
        rank = part.argsort(dim=1, stable=True).argsort(dim=1)
        marked.append(rank < wanted[:, column, None])
    # Marked positions come first; within both groups the order is random.
    kept, hidden = lowest(noise | (~torch.cat(marked, dim=1)).long() << 62, keep)
    return Mask(Positions(kept), (Positions(hidden),), sizes)
