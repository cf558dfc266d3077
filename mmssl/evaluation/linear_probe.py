"""The linear probe: multinomial logistic regression on frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from mmssl.masking.noise import permutation

L2_GRID = (1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: features -> (features - mean) / deviation -> linear -> the classes it was trained on."""

    mean: Float32[Tensor, " dim"]
    deviation: Float32[Tensor, " dim"]
    weight: Float32[Tensor, "classes dim"]
    bias: Float32[Tensor, " classes"]
    classes: Int64[Tensor, " classes"]
    l2: float

    def logits(self, features: Float[Tensor, "samples dim"]) -> Float[Tensor, "samples classes"]:
        """Scores in the order of `classes`."""
        return (features.float() - self.mean) / self.deviation @ self.weight.T + self.bias

    def predict(self, features: Float[Tensor, "samples dim"]) -> Int64[Tensor, " samples"]:
        """The class id of the highest score."""
        return self.classes[self.logits(features).argmax(dim=1)]


@torch.enable_grad()
def linear_probe(
    features: Float[Tensor, "samples dim"],
    labels: Int64[Tensor, " samples"],
    *,
    l2_grid: Sequence[float] = L2_GRID,
    seed: int = 0,
) -> LinearProbe:
    """Fit mean cross-entropy + l2 / 2 * |weight|^2 over the classes that `labels` holds; the bias is not penalised.

    Features are standardised by the training statistics, (x - mean) / sqrt(variance + 1e-6): the BatchNorm without
    affine that MAE's probe starts with; constant features become zero. `l2` is the value of `l2_grid` with the least
    cross-entropy on a held-out fifth of the samples (stratified, drawn by noise from `seed`): values are tried from
    the largest down, until one makes it worse. All samples are then fitted with it.

    It departs from the protocol of He et al. 2022 (appendix A.1: LARS, 90 epochs of SGD over augmented pictures, no
    weight decay): features are computed once and without augmentation, and the convex problem is solved by full-batch
    L-BFGS until a step gains less than 3e-5, so the result depends on no learning rate; l2 replaces early stopping.

    Raises ValueError for fewer than 5 samples or a single class.
    """
    classes, targets = labels.unique(return_inverse=True)
    if len(labels) < 5 or len(classes) < 2:
        raise ValueError(
            f"A linear probe needs at least 5 samples of 2 classes; got {len(labels)} of {len(classes)}: label more."
        )
    features = features.detach().float()
    mean, deviation = features.mean(dim=0), (features.var(dim=0, unbiased=False) + 1e-6).sqrt()
    standard = (features - mean) / deviation
    axes = _principal_axes(standard)
    inputs = torch.cat([standard @ axes, standard.new_ones(len(standard), 1)], dim=1)

    train, held_out = _split(targets, seed)
    inputs_train, inputs_held_out = inputs[train], inputs[held_out]
    solution = inputs.new_zeros(len(classes), inputs.shape[1])
    best, least = l2_grid[0], float("inf")
    for l2 in sorted(l2_grid, reverse=True):
        candidate = _minimise(inputs_train, targets[train], l2, start=solution, tolerance=1e-4)
        loss = cross_entropy(linear(inputs_held_out, candidate), targets[held_out]).item()
        if loss > least:
            break
        best, least, solution = l2, loss, candidate
    solution = _minimise(inputs, targets, best, start=solution, tolerance=3e-5)
    return LinearProbe(mean, deviation, solution[:, :-1] @ axes.T, solution[:, -1], classes, best)


def _split(targets: Int64[Tensor, " samples"], seed: int) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " held"]]:
    shuffled = permutation(len(targets), seed=seed, stream="evaluation/held-out").to(targets.device)
    by_class = shuffled[targets[shuffled].argsort(stable=True)]
    held_out = torch.arange(len(targets), device=targets.device) % 5 == 4
    return by_class[~held_out], by_class[held_out]


def _principal_axes(standard: Float[Tensor, "samples dim"]) -> Float[Tensor, "dim axes"]:
    """The axes that the samples span, min(samples, dim) of them: weights off them would only cost penalty."""
    if len(standard) < standard.shape[1]:
        return torch.linalg.svd(standard, full_matrices=False).Vh.T
    return torch.linalg.eigh(standard.T @ standard).eigenvectors


def _minimise(
    inputs: Float[Tensor, "samples inputs"],
    targets: Int64[Tensor, " samples"],
    l2: float,
    *,
    start: Float[Tensor, "classes inputs"],
    tolerance: float,
) -> Float[Tensor, "classes inputs"]:
    """The weights of the least penalised loss, until a step gains less than `tolerance`; the last input is the bias's.

    Along principal axes the Hessian is nearly diagonal. L-BFGS therefore works in units of its diagonal at `start`,
    mean p (1 - p) x^2 + l2, and takes tens of steps where it takes hundreds on the raw features.
    """
    penalty = torch.full_like(start[0], l2)
    penalty[-1] = 0
    with torch.no_grad():
        chance = linear(inputs, start).softmax(dim=1)
        curvature = (chance * (1 - chance)).T @ inputs.square() / len(inputs)
    # A class without doubt left anywhere has no curvature; the floor keeps its unit finite.
    unit = (curvature + penalty).clamp(min=1e-6).rsqrt()
    scaled = (start / unit).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled], max_iter=200, tolerance_grad=1e-6, tolerance_change=tolerance, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weights = scaled * unit
        value = cross_entropy(linear(inputs, weights), targets) + (penalty * weights.square()).sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return (scaled * unit).detach()
