"""What a probe's scores are worth, where each sample has one class and where it may have several.

The labels say which: int64 `[samples]` are class numbers, bool `[samples, classes]` which classes each sample has.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

Labels = Int64[Tensor, " samples"] | Bool[Tensor, "samples classes"]


def several(labels: Labels | Int64[Tensor, "samples runs"]) -> bool:
    """Whether samples may have several classes."""
    return labels.dtype == torch.bool


def losses(
    scores: Float[Tensor, "samples runs classes"], labels: Labels | Int64[Tensor, "samples runs"]
) -> Float[Tensor, "samples runs"]:
    """Cross-entropy of each run of scores, whose labels are the same or its own; of several labels the sum of each
    class's own, yes against no."""
    if several(labels):
        answers = labels[:, None].expand_as(scores).to(scores.dtype)
        return binary_cross_entropy_with_logits(scores, answers, reduction="none").sum(dim=2)
    answers = labels if labels.ndim == 2 else labels[:, None].expand(-1, scores.shape[1])
    return cross_entropy(scores.transpose(1, 2), answers, reduction="none")


def chances(
    scores: Float[Tensor, "samples runs classes"], labels: Labels | Int64[Tensor, "samples runs"]
) -> Float[Tensor, "samples runs classes"]:
    """The probability of each class that the scores mean to `losses`."""
    return scores.sigmoid() if several(labels) else scores.softmax(dim=2)


def worth(scores: Float[Tensor, "samples classes"], labels: Labels) -> float:
    """Top-1 accuracy in 0-1; of several labels mean average precision: the mean over the classes that occur."""
    if several(labels):
        return average_precisions(scores, labels)[labels.any(dim=0)].mean().item()
    return (scores.argmax(dim=1) == labels).double().mean().item()


def average_precisions(
    scores: Float[Tensor, "samples classes"], labels: Bool[Tensor, "samples classes"]
) -> Float64[Tensor, " classes"]:
    """The average precision of each class in 0-1: sum over its distinct scores of precision times gained recall.

    That is scikit-learn's average_precision_score, AudioSet's measure: samples of equal score are found together, no
    interpolation. NaN for a class that no sample has.
    """
    order = (-scores).T.contiguous().sort(dim=1)
    found = labels.T.gather(1, order.indices).cumsum(dim=1)
    # As many samples as are found with the last one of the same score.
    taken = torch.searchsorted(order.values, order.values, right=True)
    precision = found.gather(1, taken - 1).double() / taken
    return (precision * labels.T.gather(1, order.indices)).sum(dim=1) / found[:, -1]
