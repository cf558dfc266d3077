"""How a probe's settings are chosen on the training part alone: samples are held out of it, and every setting tried."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmssl.data.labels import rarest
from mmssl.evaluation.answers import Labels, losses, several, worth
from mmssl.masking.noise import permutation

_FOLDS = 5


class Trial(NamedTuple):
    """What a setting gives on samples that were held out: its `worth`, with the error of that, and the mean loss."""

    worth: float
    error: float
    loss: float


def numbered(labels: Labels) -> tuple[Int64[Tensor, " classes"], Labels]:
    """(classes, labels counted among them): the classes that occur, of several labels all that `labels` has columns of.

    Raises ValueError for fewer than 5 samples, a single class, or several labels of which no sample has one.
    """
    if several(labels):
        classes, targets, count = torch.arange(labels.shape[1], device=labels.device), labels, int(labels.any()) + 1
    else:
        classes, targets = labels.unique(return_inverse=True)
        count = len(classes)
    if len(labels) < 5 or count < 2:
        raise ValueError(
            f"A probe needs at least 5 samples of 2 classes, or of several labels 1; got {len(labels)} of "
            f"{count - several(labels)}: label more."
        )
    return classes, targets


def folds(targets: Labels, seed: int, enough: int) -> Bool[Tensor, "folds samples"]:
    """Which samples each fold trains on; the others, a fifth of every class that has more than one, are held out.

    Of several labels the rarest of a sample counts. There are so many folds that `enough` samples are held out in all,
    five at most; they are drawn by noise from `seed`.
    """
    key = rarest(targets) if several(targets) else targets
    shuffled = permutation(len(key), seed=seed, stream="evaluation/held-out").to(key.device)
    by_class = shuffled[key[shuffled].argsort(stable=True)]
    part = torch.empty_like(key)
    part[by_class] = torch.arange(len(key), device=key.device) % _FOLDS
    part[key.bincount()[key] == 1] = _FOLDS
    return part != torch.arange(min(_FOLDS, math.ceil(enough * _FOLDS / len(key))), device=key.device)[:, None]


def telling(train: Bool[Tensor, "folds samples"], targets: Labels, classes: int) -> bool:
    """Whether what is held out can tell settings apart: as many samples as classes, and of several labels with any."""
    held_out = ~train
    labelled = not several(targets) or bool(targets[held_out.any(dim=0)].any())
    return bool(held_out.sum() >= classes) and labelled


def tried(scores: Float[Tensor, "samples classes"], answers: Labels) -> Trial:
    """What scores of held-out samples amount to. Accuracy has the standard error of a share, mean average precision is
    taken as it is."""
    value = worth(scores, answers)
    error = 0.0 if several(answers) else math.sqrt(value * (1 - value) / len(answers))
    return Trial(value, error, losses(scores[:, None], answers).mean().item())


def best(trials: Sequence[Trial]) -> int:
    """The trial of least loss among those that are worth as much as the best, to within a standard error.

    Loss alone would punish the confidence of weak signals and take them for chance, worth alone is noise where there
    are few samples.
    """
    most = max(trials, key=lambda trial: trial.worth)
    able = [number for number, trial in enumerate(trials) if trial.worth >= most.worth - most.error]
    return min(able, key=lambda number: trials[number].loss)
