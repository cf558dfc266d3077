"""Samples with several labels each, such as AudioSet's: their classes as a row of yes and no, the rarest of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def multi_hot(sets: Sequence[Sequence[int]], classes: int) -> Bool[Tensor, "samples classes"]:
    """Which of `classes` classes each sample has; `sets` are their numbers."""
    found = torch.zeros(len(sets), classes, dtype=torch.bool)
    rows = [row for row, numbers in enumerate(sets) for _ in numbers]
    found[rows, [number for numbers in sets for number in numbers]] = True
    return found


def rarest(labels: Bool[Tensor, "samples classes"]) -> Int64[Tensor, " samples"]:
    """Each sample's class that the fewest samples have, of equals the first; the number of classes where it has none.

    To stratify by: a share of the samples with the same rarest class leaves rare classes in both parts (the idea of
    Sechidis et al., "On the Stratification of Multi-Label Data", ECML PKDD 2011, in one pass).
    """
    count = labels.sum(dim=0)
    order = torch.where(labels, count, len(labels) + 1)
    # A last column for samples without a class, which wins over all that they have not.
    return torch.cat([order, order.new_full((len(labels), 1), len(labels))], dim=1).argmin(dim=1)
