"""The linear probe: logistic regression on frozen features, multinomial or, of several labels, one a class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import linear

from mmssl.evaluation.answers import Labels, chances, losses
from mmssl.evaluation.choice import Trial, best, folds, numbered, telling, tried

L2_GRID = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Below the grid the search goes on, a tenth at a time, as long as that helps.
_LEAST = 1e-9
# So many held-out answers tell penalties apart to a standard error of half a per cent.
_ENOUGH = 10_000
# Few samples can be told apart without any doubt, where the loss of a weak penalty is below what float32 resolves.
_SMALL = 2**24
# Steps between two looks at the gain. Only classes without a single error, hardly penalised, need as many rounds.
_ROUND, _ROUNDS = 10, 100


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: features -> (features - mean) / deviation -> linear -> the classes it was trained on.

    l2: the penalty that was taken. at_edge: it was the largest or the smallest that was tried, so another might do
    better; never where only one was given.
    """

    mean: Float32[Tensor, " dim"]
    deviation: Float32[Tensor, " dim"]
    weight: Float32[Tensor, "classes dim"]
    bias: Float32[Tensor, " classes"]
    classes: Int64[Tensor, " classes"]
    l2: float
    at_edge: bool

    def logits(self, features: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples classes"]:
        """Scores in the order of `classes`."""
        return (features.float() - self.mean) / self.deviation @ self.weight.T + self.bias

    def predict(self, features: Float[Tensor, "samples dim"]) -> Int64[Tensor, " samples"]:
        """The class id of the highest score."""
        return self.classes[self.logits(features).argmax(dim=1)]


def linear_probe(
    features: Float[Tensor, "samples dim"],
    labels: Labels,
    *,
    l2_grid: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> LinearProbe:
    """Fit mean cross-entropy + l2 / 2 * |weight|^2 over the classes that `labels` holds; the bias is not penalised.

    This is scikit-learn's LogisticRegression with C = 1 / (l2 * samples). Where samples may have several classes,
    `labels` bool `[samples, classes]`, it is one such regression for each class against all others (one-vs-rest), with
    one penalty for all. Features are standardised by the training statistics, (x - mean) / sqrt(variance + 1e-6): the
    BatchNorm without affine that MAE's probe starts with; constant features become zero.

    Every value of `l2_grid` is tried, and below it tenths of the last as long as each is the best so far, by five-fold
    cross-validation (one fold where that holds out 10 000 samples; stratified, drawn by noise from `seed`, see
    `folds`). Taken is the value of least held-out cross-entropy among those whose held-out accuracy is within a
    standard error of the best; of several labels that of the highest mean average precision. All samples are then
    fitted with it. The only sample of a class is not held out; where that leaves fewer to hold out than there are
    classes, the middle of the grid is taken. A single value is taken untried.

    It departs from the protocol of He et al. 2022 (appendix A.1: LARS, 90 epochs of SGD over augmented pictures, no
    weight decay): features are computed once and without augmentation, and the convex problem is solved by full-batch
    L-BFGS until ten steps gain less than a ten-thousandth, so the result depends on no learning rate; l2 replaces
    early stopping.

    Raises ValueError for fewer than 5 samples or a single class.
    """
    classes, targets = numbered(labels)
    mean, deviation, axes, inputs = along_axes(features)
    if inputs.numel() < _SMALL:
        inputs = inputs.double()

    train = folds(targets, seed, _ENOUGH)
    enough = len(l2_grid) > 1 and telling(train, targets, len(classes))
    trials = dict(_trials(inputs, targets, l2_grid, train, len(classes))) if enough else {}
    values = list(trials) or sorted(l2_grid)
    l2 = values[best(list(trials.values())) if trials else len(values) // 2]
    start = inputs.new_zeros(1, len(classes), inputs.shape[1])
    everything = torch.full_like(inputs[:, :1], 1 / len(labels))
    solution = minimise(inputs, targets, l2, everything, start=start, gain=1e-4)[0].float()
    at_edge = bool(trials) and l2 in (values[0], values[-1])
    return LinearProbe(mean, deviation, solution[:, :-1] @ axes.T, solution[:, -1], classes, l2, at_edge)


def _trials(
    inputs: Float[Tensor, "samples inputs"],
    targets: Labels,
    l2_grid: Sequence[float],
    train: Bool[Tensor, "folds samples"],
    classes: int,
) -> Iterator[tuple[float, Trial]]:
    """Each penalty and what it gives, from the largest down, each started from the solution of the one before."""
    solution = inputs.new_zeros(len(train), classes, inputs.shape[1])
    answers = torch.cat([targets[~shown] for shown in train])
    grid = sorted(l2_grid, reverse=True)
    share = (train / train.sum(dim=1, keepdim=True)).T
    most, l2 = -1.0, grid[0]
    for step in itertools.count():
        l2 = grid[step] if step < len(grid) else l2 / 10
        solution = minimise(inputs, targets, l2, share, start=solution, gain=3e-3)
        scores = torch.cat([linear(inputs[~shown], fold) for fold, shown in zip(solution, train, strict=True)])
        trial = tried(scores, answers)
        yield l2, trial
        if step >= len(grid) - 1 and (trial.worth <= most or l2 <= _LEAST):
            return
        most = max(most, trial.worth)


def along_axes(
    features: Float[Tensor, "samples dim"],
) -> tuple[
    Float32[Tensor, " dim"], Float32[Tensor, " dim"], Float32[Tensor, "dim axes"], Float32[Tensor, "samples inputs"]
]:
    """(mean, deviation, axes, inputs) of a probe: standardised features along their principal axes, and a last input
    that is 1."""
    features = features.detach().float()
    mean, deviation = features.mean(dim=0), (features.var(dim=0, unbiased=False) + 1e-6).sqrt()
    standard = (features - mean) / deviation
    axes = _principal_axes(standard)
    return mean, deviation, axes, torch.cat([standard @ axes, standard.new_ones(len(standard), 1)], dim=1)


def _principal_axes(standard: Float[Tensor, "samples dim"]) -> Float[Tensor, "dim axes"]:
    """The axes that the samples span, min(samples, dim) of them: weights off them would only cost penalty."""
    if len(standard) < standard.shape[1]:
        return torch.linalg.svd(standard, full_matrices=False).Vh.T
    return torch.linalg.eigh(standard.T @ standard).eigenvectors


@torch.enable_grad()
def minimise(
    inputs: Float[Tensor, "samples inputs"],
    targets: Labels | Int64[Tensor, "samples runs"],
    l2: float,
    share: Float[Tensor, "samples runs"],
    *,
    start: Float[Tensor, "runs classes inputs"],
    gain: float,
) -> Float[Tensor, "runs classes inputs"]:
    """For each run the weights of the least penalised loss, in which each sample has its `share`; the last input is the
    bias's.

    All runs, such as folds, are one problem, solved until a round of steps gains less than `gain` of its loss. Along
    principal axes the Hessian is nearly diagonal. L-BFGS therefore works in units of its diagonal at `start`, mean
    p (1 - p) x^2 + l2, and takes tens of steps where it takes hundreds on the raw features.
    """
    penalty = torch.full_like(start[0, 0], l2)
    penalty[-1] = 0
    with torch.no_grad():
        chance = chances((inputs @ start.flatten(0, 1).T).unflatten(1, start.shape[:2]), targets)
        doubt = (chance * (1 - chance) * share[:, :, None]).flatten(1)
        curvature = (doubt.T @ inputs.square()).view_as(start)
    # Where hardly a doubt is left, or samples hardly differ, curvature says nothing of how far a minimum is.
    unit = (curvature + penalty).clamp(min=1e-3).rsqrt()
    scaled = (start / unit).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=_ROUND, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = scaled * unit
        scores = (inputs @ weights.flatten(0, 1).T).unflatten(1, start.shape[:2])
        value = (losses(scores, targets) * share).sum() + (penalty * weights.square()).sum() / 2
        value.backward()
        return value

    least, solution = loss().item(), start
    for _ in range(_ROUNDS):
        optimizer.step(loss)
        now, before = loss().item(), least
        if now < least:  # a line search may end in rounding noise
            least, solution = now, (scaled * unit).detach()
        if not before - now > gain * now:
            break
    return solution
