"""Masks over sequences of different lengths."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from mmssl.masking.mask import Mask, Positions


def counted(
    noise: Shaped[Tensor, "batch positions"],
    candidates: Bool[Tensor, "batch positions"],
    counts: Int64[Tensor, " batch"],
) -> Bool[Tensor, "batch positions"]:
    """Exactly `counts` of each sample's candidates, those of lowest noise; all of them where there are fewer."""
    noise = noise.masked_fill(~candidates, torch.iinfo(torch.int64).max)
    rank = noise.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank < counts[:, None]) & candidates


def counted_mask(
    noise: Shaped[Tensor, "batch positions"],
    candidates: Bool[Tensor, "batch positions"],
    counts: Int64[Tensor, " batch"],
    sizes: Mapping[str, int],
    valid: Bool[Tensor, "batch positions"],
) -> Mask:
    """BERT's choice: exactly `counts` of each sample's candidates become targets, and every valid position is read.

    candidates: what may be chosen (no padding, no special token). Fewer candidates than asked for: all of them.
    """
    chosen = counted(noise, candidates, counts)
    return Mask(Positions.from_boolean(valid), (Positions.from_boolean(chosen),), sizes)
