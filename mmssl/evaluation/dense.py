"""Per-pixel linear probes on frozen patch features: heights, depth or any raster of numbers, and label maps.

A probe is one linear layer from a patch's features to all values inside the patch, not one value a patch that is
interpolated: tokens of masked autoencoders hold the detail within their patch, and the raw pixels of the patch, which a
probe is held against, can be read without a loss. Numbers are fitted by ridge regression in closed form, classes by the
logistic regression of `linear_probe`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from mmssl_kernels import patchify, unpatchify
from torch import Tensor
from torch.nn import functional as F

from mmssl.data.aligned import TARGET, WHERE
from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.baselines import raw_values
from mmssl.evaluation.choice import Trial, best, tried
from mmssl.evaluation.linear_probe import L2_GRID, along_axes, minimise
from mmssl.masking.noise import permutation, random_bits
from mmssl.modality import Modality, zero_to_one

Batch = Mapping[str, Tensor]
CellFeatures = Callable[[Batch], Float[Tensor, "batch cells dim"]]
"""What is known of each cell of the grid of patches, row by row."""

# Logistic regression sees so many patches of the training part, and no more scores than 256 MiB hold.
_PATCHES, _SCORES = 20_000, 2**26
_RIDGE_GRID = tuple(10.0**-power for power in range(-1, 7))
# Of a number that each sample has, as latitude.
_POWERS = 8


@dataclass(frozen=True)
class Question:
    """What a probe is asked for every pixel.

    modality: of the target, which batches hold as `NAME.target`, in the form that `mmssl.data.AlignedView` gives. grid:
    rows and columns of patches of a batch. where: of a label map `NAME.where` of the target's size, the name and the
    class numbers that count; None: all pixels.
    """

    modality: Modality
    grid: Callable[[Batch], tuple[int, int]]
    where: tuple[str, tuple[int, ...]] | None = None

    @property
    def labels(self) -> bool:
        """Whether class numbers are asked for."""
        return self.modality.kind == "categorical"

    def answers(self, batch: Batch) -> tuple[Shaped[Tensor, "batch cells values"], Bool[Tensor, "batch cells values"]]:
        """(values in each cell, whether each is there and asked for). What is not there is 0.

        Raises UserError where the grid does not part the target into whole cells.
        """
        name = f"{self.modality.name}{TARGET}"
        values = batch[name][:, None] if self.labels else zero_to_one(batch[name])
        known: Tensor = self.modality.labelled(values)[1] if self.labels else values.isfinite()
        if self.where is not None:
            of, classes = self.where
            inside = torch.isin(batch[f"{of}{WHERE}"], torch.tensor(classes, device=values.device))
            known = known & inside[:, None]
        patch = self.patch(batch)
        return patchify(values.masked_fill(~known, 0), patch), patchify(known, patch)

    def patch(self, batch: Batch) -> tuple[int, int]:
        """Height and width of a cell in values of the target; the rest is `answers`'."""
        sizes, grid = batch[f"{self.modality.name}{TARGET}"].shape[-2:], self.grid(batch)
        if any(side % cells for side, cells in zip(sizes, grid, strict=True)):
            raise UserError(
                f"{self.modality.name} has {sizes[0]} x {sizes[1]} values, which {grid[0]} x {grid[1]} patches do not "
                "part evenly; choose another size or stride"
            )
        return sizes[0] // grid[0], sizes[1] // grid[1]


def grid_of_cells(encoder: Encoder, batch: Batch) -> tuple[int, int]:
    """Rows and columns of patches, the same of all modalities that the batch and the encoder share. Raises UserError
    where they are not, or one does not lie on rows and columns."""
    grids = {name: encoder.tokenizer(name).grid(batch) for name in encoder.sizes(batch)}
    first = next(iter(grids.values()))
    if len(first) != 2 or len(set(grids.values())) > 1:
        told = ", ".join(f"{name} has {' x '.join(map(str, grid))}" for name, grid in grids.items())
        raise UserError(f"a probe of every pixel needs one grid of rows and columns of patches, but {told}")
    return first[0], first[1]


def cell_tokens(encoder: Encoder) -> CellFeatures:
    """The patch tokens of every cell, those of several modalities side by side: what the encoder makes of those of its
    modalities that the batch holds."""

    def features(batch: Batch) -> Tensor:
        tokens, count = encoder(batch), math.prod(grid_of_cells(encoder, batch))
        cells = tokens.x[:, tokens.prefix :].unflatten(1, (-1, count))
        return cells.transpose(1, 2).flatten(2)

    return features


def cell_values(encoder: Encoder) -> CellFeatures:
    """The raw values in every cell of the same modalities (see `raw_values`): the baseline."""

    def features(batch: Batch) -> Tensor:
        modalities = [encoder.tokenizer(name).modality for name in encoder.sizes(batch)]
        return torch.cat([patchify(raw_values(batch, each), each.patch) for each in modalities], dim=2)

    return features


def cell_number(encoder: Encoder, numbers: Mapping[int, float]) -> CellFeatures:
    """Powers, up to the eighth, of a number that is known of each sample by its `sample_id`, such as its latitude,
    scaled by the largest: what follows from the number alone."""
    most = max((abs(number) for number in numbers.values()), default=0.0) or 1.0

    def features(batch: Batch) -> Tensor:
        scaled = torch.tensor([numbers[number] / most for number in batch["sample_id"].tolist()])
        powers = scaled[:, None] ** torch.arange(1, _POWERS + 1)
        return powers[:, None].expand(-1, math.prod(grid_of_cells(encoder, batch)), -1)

    return features


def cell_nothing(encoder: Encoder) -> CellFeatures:
    """A zero: a probe of it says the training part's mean, or its largest class."""
    return cell_number(encoder, defaultdict(float))


class Fitted(NamedTuple):
    """A linear layer `[dim + 1, outputs]`, its last row the bias, and the penalty that was taken."""

    weight: Float64[Tensor, "inputs outputs"]
    l2: float

    def __call__(self, features: Float[Tensor, "cells dim"]) -> Float64[Tensor, "cells outputs"]:
        return features.double() @ self.weight[:-1] + self.weight[-1]


@dataclass
class Moments:
    """All that ridge regression needs of patches, summed up a batch at a time.

    whole `[dim + 1, dim + 1]`: products of features, and a last one that is 1, of patches all of whose values are
    known; partial `[values, dim + 1, dim + 1]`: those of the others, for each value the patches where it is known
    (None: there are none). products `[dim + 1, values]`, squares `[values]`: of the values.
    """

    whole: Float64[Tensor, "inputs inputs"]
    products: Float64[Tensor, "inputs values"]
    squares: Float64[Tensor, " values"]
    partial: Float64[Tensor, "values inputs inputs"] | None = None

    @classmethod
    def none(cls, dim: int, values: int) -> Moments:
        """Those of no patch."""
        shapes = (dim + 1, dim + 1), (dim + 1, values), (values,)
        return cls(*(torch.zeros(shape, dtype=torch.float64) for shape in shapes))

    def add(
        self,
        features: Float[Tensor, "cells dim"],
        values: Float[Tensor, "cells values"],
        known: Bool[Tensor, "cells values"],
    ) -> None:
        """Count some patches in; values that are not known must be 0."""
        inputs, answers = F.pad(features.double(), (0, 1), value=1.0), values.double()
        self.products += inputs.T @ answers
        self.squares += answers.square().sum(dim=0)
        every = known.all(dim=1)
        self.whole += inputs[every].T @ inputs[every]
        some = known.any(dim=1) & ~every
        if not some.any():
            return
        if self.partial is None:
            self.partial = torch.zeros(len(self.squares), *self.whole.shape, dtype=torch.float64)
        inputs, known = inputs[some], known[some]
        for value, there in enumerate(known.T):
            rows = inputs[there]
            self.partial[value] += rows.T @ rows

    def plus(self, other: Moments) -> Moments:
        """Those of the patches of both."""
        partial = [each for each in (self.partial, other.partial) if each is not None]
        return Moments(
            self.whole + other.whole,
            self.products + other.products,
            self.squares + other.squares,
            sum(partial[1:], partial[0]) if partial else None,
        )

    @property
    def counts(self) -> Float64[Tensor, " values"]:
        """Patches where each value is known."""
        whole = self.whole[-1, -1].expand(len(self.squares))
        return whole if self.partial is None else whole + self.partial[:, -1, -1]

    def grams(self) -> Iterable[Float64[Tensor, "inputs inputs"]]:
        """The products of features over the patches where each value is known; one for all where they are the same."""
        return [self.whole] if self.partial is None else (self.whole + each for each in self.partial)

    def standard(self) -> Float64[Tensor, "inputs inputs"]:
        """The matrix that makes features standardised ones, (x - mean) / sqrt(variance + 1e-6), over all known values.

        Its last row leaves the 1 as it is.
        """
        total = self.whole * len(self.squares) + (0 if self.partial is None else self.partial.sum(dim=0))
        mean = total[-1, :-1] / total[-1, -1].clamp(min=1)
        variance = total.diagonal()[:-1] / total[-1, -1].clamp(min=1) - mean.square()
        deviation = (variance.clamp(min=0) + 1e-6).sqrt()
        basis = torch.diag(torch.cat([1 / deviation, total.new_ones(1)]))
        basis[:-1, -1] = -mean / deviation
        return basis

    def solved(self, l2: float, basis: Float64[Tensor, "inputs inputs"]) -> Float64[Tensor, "inputs values"]:
        """For each value the weights of the least mean squared error + l2 |weight|^2, weights counted on features in
        `basis`; the bias is not penalised. That is scikit-learn's Ridge with alpha = l2 * patches."""
        penalty = torch.full_like(self.squares[:1], l2).expand(len(basis)).clone()
        penalty[-1] = 0
        wanted = basis @ self.products
        counts = self.counts.clamp(min=1)
        if self.partial is None:
            found = torch.linalg.solve(basis @ self.whole @ basis.T + torch.diag(penalty * counts[0]), wanted)
            return basis.T @ found
        columns = []
        for value, gram in enumerate(self.grams()):
            matrix = basis @ gram @ basis.T + torch.diag(penalty * counts[value])
            matrix[-1, -1] += gram[-1, -1] == 0  # a value that no patch knows is said to be 0
            columns.append(torch.linalg.solve(matrix, wanted[:, value]))
        return basis.T @ torch.stack(columns, dim=1)

    def error(self, weight: Float64[Tensor, "inputs values"]) -> float:
        """The mean squared error of a linear layer."""
        if self.partial is None:
            said = (weight * (self.whole @ weight)).sum()
        else:
            said = torch.stack([column @ gram @ column for gram, column in zip(self.grams(), weight.T)]).sum()
        return float((self.squares.sum() + said - 2 * (weight * self.products).sum()) / self.counts.sum().clamp(min=1))


@dataclass
class Ridge:
    """Ridge regression of numbers: `Moments` of samples to fit on, and of those held out to choose the penalty by."""

    shown: Moments
    apart: Moments

    @property
    def count(self) -> float:
        """Pixels that are known."""
        return float(self.shown.counts.sum() + self.apart.counts.sum())

    def add(self, features: Tensor, values: Tensor, known: Tensor, apart: Bool[Tensor, " cells"]) -> None:
        for part, rows in ((self.shown, ~apart), (self.apart, apart)):
            part.add(features[rows], values[rows], known[rows])

    def fit(self) -> Fitted:
        """With the penalty that errs least on what is held out, on all."""
        every = self.shown.plus(self.apart)
        basis = every.standard()
        l2 = min(_RIDGE_GRID, key=lambda l2: self.apart.error(self.shown.solved(l2, basis)))
        return Fitted(every.solved(l2, basis), l2)


@dataclass
class Logistic:
    """Logistic regression of the class at each place of a patch; holds the patches that it sees."""

    classes: int
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Pixels that are known."""
        return sum(int(known.sum()) for _, _, known, _ in self.parts)

    def add(self, features: Tensor, values: Tensor, known: Tensor, apart: Bool[Tensor, " cells"]) -> None:
        self.parts.append((features, values, known, apart))

    def fit(self) -> Fitted:
        """With a penalty of `linear_probe`'s grid, chosen as there by what is held out. Classes that no patch has are
        never said."""
        features, values, known, apart = (torch.cat(part) for part in zip(*self.parts))
        present, numbered = values[known].unique(), torch.zeros_like(values)
        numbered[known] = torch.searchsorted(present, values[known])
        mean, deviation, axes, inputs = along_axes(features)
        solution = inputs.new_zeros(values.shape[1], len(present), inputs.shape[1])
        asked, answers = inputs[apart], numbered[apart][known[apart]]
        trials: list[Trial] = []
        solutions: list[Tensor] = []
        for l2 in L2_GRID:
            solution = minimise(inputs, numbered, l2, _share(known & ~apart[:, None]), start=solution, gain=3e-3)
            scores = torch.einsum("si,vci->svc", asked, solution)[known[apart]]
            trials.append(tried(scores, answers))
            solutions.append(solution)
        chosen = best(trials)
        l2 = L2_GRID[chosen]
        solution = minimise(inputs, numbered, l2, _share(known), start=solutions[chosen], gain=1e-4).double()
        weight = solution[..., :-1] @ axes.T.double() / deviation
        bias = solution[..., -1] - weight @ mean.double()
        whole = weight.new_zeros(values.shape[1], self.classes, len(mean) + 1)
        whole[..., -1] = -math.inf
        whole[:, present] = torch.cat([weight, bias[..., None]], dim=-1)
        return Fitted(whole.flatten(0, 1).T.contiguous(), l2)


def _share(counted: Bool[Tensor, "cells values"]) -> Float[Tensor, "cells values"]:
    """What each patch has in the mean of each value."""
    return counted / counted.sum(dim=0).clamp(min=1)


@dataclass
class NumberScores:
    """Errors of numbers, summed up over the pixels that are asked."""

    sums: Float64[Tensor, " seven"] = field(default_factory=lambda: torch.zeros(7, dtype=torch.float64))
    least: float = math.inf

    def add(self, said: Float64[Tensor, " pixels"], true: Float[Tensor, " pixels"]) -> None:
        true, errors = true.double(), (said - true).abs()
        # A depth that is said to be nothing or less is no factor away from a true one.
        within = (said > 0) & (torch.maximum(said / true, true / said) < 1.25)
        each = (torch.ones_like(said), true, true.square(), errors, errors.square(), errors / true.abs(), within)
        self.sums += torch.stack([values.double().sum() for values in each])
        self.least = min(self.least, true.min().item()) if len(true) else self.least

    def told(self) -> dict[str, float]:
        """R² (1 - squared error / squared distance from the mean of what is asked, as scikit-learn's r2_score) and the
        mean absolute error; where all numbers are above 0 the mean relative error, and delta1: the share of pixels
        that are said to within a factor of 1.25 (Eigen et al. 2014, arXiv 1406.2283)."""
        count, total, squares, absolute, square, relative, within = self.sums.tolist()
        spread = squares - total**2 / count
        found = {"r2": 1 - square / spread if spread > 0 else math.nan, "absolute": absolute / count}
        return found | ({"relative": relative / count, "delta1": within / count} if self.least > 0 else {})


@dataclass
class LabelScores:
    """How often each class is said where each is true, `[classes, classes]`, a row a true one."""

    confusion: Int64[Tensor, "classes classes"]

    @classmethod
    def none(cls, classes: int) -> LabelScores:
        """Those of no pixel."""
        return cls(torch.zeros(classes, classes, dtype=torch.int64))

    def add(self, said: Int64[Tensor, " pixels"], true: Int64[Tensor, " pixels"]) -> None:
        count = len(self.confusion)
        self.confusion += (true * count + said).bincount(minlength=count**2).view(count, count)

    def told(self) -> dict[str, Any]:
        """The share of pixels that are right; of each class the pixels that it is rightly said of among those that it
        is said of or true of (None where there are none); the mean of those of the classes that occur."""
        right, true = self.confusion.diagonal().double(), self.confusion.sum(dim=1)
        union = true + self.confusion.sum(dim=0) - right
        shares = (right / union).tolist()
        occurring = [share for share, there in zip(shares, (true > 0).tolist(), strict=True) if there]
        return {
            "miou": sum(occurring) / len(occurring),
            "accuracy": (right.sum() / true.sum()).item(),
            "iou": [None if math.isnan(share) else share for share in shares],
        }


@dataclass(frozen=True)
class DenseRow:
    """What a probe of one representation makes of the pixels that are asked: `scores` are `NumberScores.told`'s or
    `LabelScores.told`'s."""

    representation: str
    scores: dict[str, Any]
    l2: float
    pixels: int


@torch.no_grad()
def fit_dense(
    representations: Mapping[str, CellFeatures],
    question: Question,
    train: Iterable[Batch],
    *,
    samples: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, Fitted]:
    """A probe of each representation, all fitted in one pass over `train`, batches of `samples` samples.

    A fifth of the samples, drawn by noise from `seed`, is held out to choose penalties by. Numbers need memory for the
    products of features alone, 8 bytes x (dim + 1)^2, times the values of a patch where some patches know only some of
    theirs. Classes are learnt from 20 000 patches, evenly drawn by noise, of fewer where a patch has many values and
    classes, which are held in memory.

    Raises UserError where no pixel is asked for.
    """
    apart = permutation(samples, seed=seed, stream="evaluation/held-out")[: max(1, samples // 5)]
    learners: dict[str, Ridge | Logistic] = {}
    for batch in train:
        found, values, known = _read(representations, question, batch, device)
        cells, ids = len(values) // len(batch["sample_id"]), batch["sample_id"].cpu()
        rows = known.any(dim=1)
        if question.labels:
            most = min(_PATCHES, _SCORES // (values.shape[1] * question.modality.channels))
            bits = random_bits(cells, seed=seed, stream="evaluation/patches", sample_id=ids)
            rows &= bits.flatten() < min(1.0, most / (samples * cells)) * 2.0**62
        out = torch.isin(ids, apart).repeat_interleave(cells)[rows]
        for name, features in found.items():
            if name not in learners:
                learners[name] = (
                    Logistic(question.modality.channels)
                    if question.labels
                    else Ridge(*(Moments.none(features.shape[1], values.shape[1]) for _ in range(2)))
                )
            learners[name].add(features[rows], values[rows], known[rows], out)
    if not any(learner.count for learner in learners.values()):
        raise UserError(f"the training part has no pixel of {question.modality.name} that is asked for")
    return {name: learner.fit() for name, learner in learners.items()}


@torch.no_grad()
def score_dense(
    fitted: Mapping[str, Fitted],
    representations: Mapping[str, CellFeatures],
    question: Question,
    test: Iterable[Batch],
    *,
    device: torch.device | str = "cpu",
) -> list[DenseRow]:
    """What the probes of `fit_dense` make of `test`, which is read once. Raises UserError where no pixel is asked
    for."""
    new = partial(LabelScores.none, question.modality.channels) if question.labels else NumberScores
    scores = {name: new() for name in fitted}
    pixels = 0
    for batch in test:
        found, values, known = _read(representations, question, batch, device)
        pixels += int(known.sum())
        for name, features in found.items():
            scores[name].add(_said(fitted[name], features, question, values)[known], values[known])
    if not pixels:
        raise UserError(f"the test part has no pixel of {question.modality.name} that is asked for")
    return [DenseRow(name, scores[name].told(), each.l2, pixels) for name, each in fitted.items()]


@torch.no_grad()
def said_and_true(
    fitted: Fitted, features: CellFeatures, question: Question, batch: Batch, device: torch.device | str = "cpu"
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch channels height width"]]:
    """What a probe says of a batch, and what is true, NaN where nothing is asked: to look at."""
    found, values, known = _read({"": features}, question, batch, device)
    said = _said(fitted, found[""], question, values)
    grid, patch = question.grid(batch), question.patch(batch)
    maps = (each.double().masked_fill(~known, math.nan).unflatten(0, (-1, math.prod(grid))) for each in (said, values))
    first, second = (unpatchify(each.float(), patch, grid) for each in maps)
    return first, second


def _said(fitted: Fitted, features: Tensor, question: Question, values: Tensor) -> Tensor:
    """Numbers or classes `[cells, values]`."""
    said = fitted(features)
    return said.unflatten(1, (values.shape[1], -1)).argmax(dim=2) if question.labels else said


def _read(
    representations: Mapping[str, CellFeatures], question: Question, batch: Batch, device: torch.device | str
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Each representation's features `[cells, dim]` of a batch, and `Question.answers`, on the CPU."""
    on_device = {name: value.to(device) for name, value in batch.items()}
    found = {name: features(on_device).float().cpu().flatten(0, 1) for name, features in representations.items()}
    values, known = (each.cpu().flatten(0, 1) for each in question.answers(on_device))
    return found, values, known
