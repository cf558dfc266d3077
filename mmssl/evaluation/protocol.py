"""What is measured: kNN and linear-probe accuracy at several label budgets, averaged over draws of the labels; an
attentive probe on all labels; and where samples have several labels each, mean average precision by both probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from jaxtyping import Int64
from torch import Tensor

from mmssl.errors import UserError
from mmssl.evaluation.answers import Labels, several, worth
from mmssl.evaluation.attentive_probe import AttentiveProbe, attentive_probe
from mmssl.evaluation.features import FeatureSet
from mmssl.evaluation.knn import knn
from mmssl.evaluation.linear_probe import LinearProbe, linear_probe
from mmssl.masking.noise import permutation

_DRAWS = 5
TOP_1, MEAN_AP = "top-1 accuracy", "mean average precision"


@dataclass(frozen=True)
class Row:
    """One measurement of a probe ("kNN", "linear" or "attentive") on a representation that shows `n_train` labels.

    `accuracy` is top-1 in 0-1: the mean, with `deviation` the standard deviation, over `draws` choices of the labels;
    of samples with several labels each it is the mean average precision, as `metric` says. `l2` are the penalties that
    the linear probe took, one a draw, and `at_edge` says whether any was the largest or the smallest it tried.
    `setting` is the learning rate and the weight decay that the attentive probe took.
    """

    representation: str
    probe: str
    budget: str
    accuracy: float
    deviation: float | None
    draws: int
    n_train: int
    l2: Sequence[float] = ()
    at_edge: bool = False
    metric: str = TOP_1
    setting: Sequence[float] = ()

    def __str__(self) -> str:
        """The accuracy in %, with its deviation where there are several draws: "77.4 ± 0.6"."""
        mean = f"{100 * self.accuracy:.1f}"
        return mean if self.deviation is None else f"{mean} ± {100 * self.deviation:.1f}"


def label_budgets(labels: Labels, seed: int = 0) -> dict[str, Int64[Tensor, "draws chosen"]]:
    """Which samples may show their label: "10 a class", "1 %" (of each class, at least one), 5 draws each, and "all".

    A row of the value holds a draw's sample indices in ascending order. Draws follow from `seed` by noise; they are
    disjoint for every class with enough samples. A budget is left out where it makes no sense: "10 a class" where
    that is all, "1 %" where it is less than one a class or five in all. Of several labels a sample there is only "all".

    Raises UserError for fewer than two classes (several labels: one) or a negative label.
    """
    if several(labels):
        classes, enough = labels.any(dim=0).nonzero().flatten().tolist(), 1
    else:
        classes, enough = labels.unique().tolist(), 2
    if len(classes) < enough or classes[0] < 0:
        raise UserError(
            f"Evaluation needs labels >= 0 of at least two classes; these hold {classes[:3]}: label more samples."
        )
    if len(labels) < 5:
        raise UserError(f"Evaluation trains a probe on 5 labelled samples at least, and there are {len(labels)}.")
    everything = {"all": torch.arange(len(labels))[None]}
    if several(labels):
        return everything
    shuffled = permutation(len(labels), seed=seed, stream="evaluation/labels")
    members = [shuffled[labels[shuffled] == label] for label in classes]

    budgets = {}
    if len(labels) > sum(ten := [min(10, len(member)) for member in members]):
        budgets["10 a class"] = _draw(members, ten)
    if len(labels) >= 100 * max(len(classes), 5):
        budgets["1 %"] = _draw(members, [max(1, round(len(member) / 100)) for member in members])
    return budgets | everything


def _draw(members: Sequence[Tensor], counts: Sequence[int]) -> Int64[Tensor, "draws chosen"]:
    """Consecutive runs of each class's shuffled members, from the start again where they are used up."""
    runs = [
        member[torch.arange(_DRAWS * count).reshape(_DRAWS, count) % len(member)]
        for member, count in zip(members, counts, strict=True)
    ]
    return torch.cat(runs, dim=1).sort(dim=1).values


def evaluate(
    train: FeatureSet,
    test: FeatureSet,
    budgets: Mapping[str, Int64[Tensor, "draws chosen"]],
    *,
    representation: str,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Accuracy on all of `test` for each probe and budget, in the order of `budgets`, kNN first; where samples have
    several labels each, mean average precision of the linear probe alone.

    `budgets` index `train` (see `label_budgets`). `representation` names the rows; `seed` is the linear probe's;
    `progress` is called before each measurement with its name. Deviations divide by draws - 1; None for one draw.

    Raises UserError where `train` or `test` has no labels or no sample, or their dimensions differ.
    """
    labels, answers = _labels(train, test, representation)
    metric = MEAN_AP if several(labels) else TOP_1
    rows = []
    for probe in ("linear",) if several(labels) else ("kNN", "linear"):
        for budget, draws in budgets.items():
            if progress is not None:
                progress(f"{representation}: {probe}, {budget}")
            scores, taken, at_edge = [], [], False
            for chosen in draws:
                shown, known = train.features[chosen], labels[chosen]
                if probe == "kNN":
                    scores.append(_accuracy(knn(shown, known, test.features), answers))
                    continue
                fitted = linear_probe(shown, known, seed=seed)
                scores.append(_score(fitted, test.features, answers))
                taken.append(fitted.l2)
                at_edge |= fitted.at_edge
            mean, deviation = fmean(scores), stdev(scores) if len(draws) > 1 else None
            count, n_train = len(draws), draws.shape[1]
            rows.append(Row(representation, probe, budget, mean, deviation, count, n_train, taken, at_edge, metric))
    return rows


def evaluate_patches(
    train: FeatureSet,
    test: FeatureSet,
    *,
    dim: int,
    heads: int,
    representation: str,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Row:
    """What an attentive probe of `heads` heads, on all labels, makes of patch features: accuracy on `test`, or where
    samples have several labels each, mean average precision.

    Features are those of `PatchEncoder`: a sample's patches, `dim` numbers each, in a row. The rest is `evaluate`'s.
    """
    labels, answers = _labels(train, test, representation)
    shown, asked = (part.features.unflatten(1, (-1, dim)) for part in (train, test))
    fitted = attentive_probe(shown, labels, heads=heads, seed=seed, device=device)
    metric = MEAN_AP if several(labels) else TOP_1
    score, setting = _score(fitted, asked, answers), tuple(fitted.setting)
    return Row(representation, "attentive", "all", score, None, 1, len(labels), metric=metric, setting=setting)


def _score(fitted: LinearProbe | AttentiveProbe, features: Tensor, answers: Labels) -> float:
    if several(answers):
        return worth(fitted.logits(features), answers)
    return _accuracy(fitted.predict(features), answers)


def _accuracy(predicted: Int64[Tensor, " samples"], answers: Int64[Tensor, " samples"]) -> float:
    return (predicted == answers).double().mean().item()


def watched_accuracies(features: FeatureSet, seed: int = 0) -> dict[str, float]:
    """kNN and linear accuracy, 0-1, on one half of a few labelled samples from the labels of the other: for curves.

    Always the same halves, drawn by noise from `seed`; the probe takes one penalty, 0.01, untried. That is quick, and
    steps of one run compare; it is no result to report, which `evaluate` gives. Nothing for samples without labels or
    with several each, or where the half that shows them has fewer than 5 or a single class.
    """
    if features.labels is None or several(features.labels):
        return {}
    known = (features.labels >= 0).nonzero().flatten()
    known = known[permutation(len(known), seed=seed, stream="evaluation/watched")]
    shown, asked = known[: len(known) // 2], known[len(known) // 2 :]
    labels, answers = features.labels[shown], features.labels[asked]
    if len(shown) < 5 or len(labels.unique()) < 2:
        return {}
    vectors = features.features[shown], features.features[asked]
    nearest = knn(vectors[0], labels, vectors[1])
    probed = linear_probe(vectors[0], labels, l2_grid=(1e-2,)).predict(vectors[1])
    return {"knn_accuracy": _accuracy(nearest, answers), "linear_accuracy": _accuracy(probed, answers)}


def _labels(train: FeatureSet, test: FeatureSet, representation: str) -> tuple[Tensor, Tensor]:
    """The labels of both parts; UserError where they, samples, or the same dimensions are missing."""
    found = []
    for name, part in (("training", train), ("test", test)):
        if part.labels is None or not len(part):
            raise UserError(f"The {name} features of {representation} have no labels; evaluate on a labelled source.")
        found.append(part.labels)
    if train.features.shape[1] != test.features.shape[1]:
        raise UserError(
            f"The training features of {representation} are {tuple(train.features.shape)}, the test features "
            f"{tuple(test.features.shape)}; extract both with the same encoder."
        )
    return found[0], found[1]


def pivot(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], dict[str, list[Row | None]]]:
    """The columns (probe, budget), and each representation's row or None in every column; in order of appearance."""
    columns = list(dict.fromkeys((row.probe, row.budget) for row in rows))
    found = {(row.representation, row.probe, row.budget): row for row in rows}
    names = dict.fromkeys(row.representation for row in rows)
    return columns, {name: [found.get((name, *column)) for column in columns] for name in names}


def table(rows: Sequence[Row]) -> str:
    """A markdown table in %: a line for each representation, a column for each probe and budget."""
    columns, body = pivot(rows)
    lines = [
        [f"{rows[0].metric}, %", *(f"{probe}, {budget}" for probe, budget in columns)],
        ["---", *("---:" for _ in columns)],
        *([name.replace("|", "\\|"), *(str(row) if row else "" for row in cells)] for name, cells in body.items()),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def penalties(rows: Sequence[Row]) -> str:
    """What the probes took, a line a representation and probe, with a warning where a penalty lies at an edge."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        if row.l2:
            least, most = min(row.l2), max(row.l2)
            span = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            edge = " (at the edge of what is tried: another might do better)" if row.at_edge else ""
            lines.setdefault(row.representation, []).append(f"{row.budget} {span}{edge}")
    told = [f"linear probe's l2, {name}: {'; '.join(taken)}" for name, taken in lines.items()]
    for row in rows:
        if row.setting:
            rate, decay = row.setting
            told.append(f"attentive probe's learning rate and weight decay, {row.representation}: {rate:g}, {decay:g}")
    return "\n".join(told)
