from __future__ import annotations

import pytest
import torch

from mmssl.errors import UserError
from mmssl.evaluation import FeatureSet, Row, evaluate, label_budgets, table, watched_accuracies


def test_budgets_are_stratified_deterministic_and_their_draws_disjoint():
    labels = torch.arange(6000) % 6
    budgets = label_budgets(labels, seed=3)
    assert list(budgets) == ["10 a class", "1 %", "all"]
    assert [tuple(draws.shape) for draws in budgets.values()] == [(5, 60), (5, 60), (1, 6000)]
    for name in ("10 a class", "1 %"):
        for draw in budgets[name]:
            assert labels[draw].bincount().tolist() == [10] * 6
        assert len(budgets[name].unique()) == budgets[name].numel()
    again, other = label_budgets(labels, seed=3), label_budgets(labels, seed=4)
    assert all(torch.equal(budgets[name], again[name]) for name in budgets)
    assert not torch.equal(budgets["1 %"], other["1 %"])
    assert torch.equal(budgets["all"][0], torch.arange(6000))


def test_one_percent_follows_uneven_classes_and_gives_each_at_least_one():
    labels = torch.cat([torch.full((900,), 0), torch.full((280,), 1), torch.full((20,), 5)])
    draws = label_budgets(labels)["1 %"]
    assert all(labels[draw].bincount(minlength=6).tolist() == [9, 3, 0, 0, 0, 1] for draw in draws)


def test_rare_classes_give_what_they_have_and_never_a_sample_twice():
    labels = torch.cat([torch.zeros(200, dtype=torch.int64), torch.ones(7, dtype=torch.int64)])
    for draw in label_budgets(labels)["10 a class"]:
        assert labels[draw].bincount().tolist() == [10, 7]
        assert len(draw.unique()) == 17


def test_budgets_that_make_no_sense_are_left_out():
    assert list(label_budgets(torch.arange(60) % 3)) == ["10 a class", "all"]
    assert list(label_budgets(torch.arange(30) % 3)) == ["all"]
    assert list(label_budgets(torch.arange(499) % 2)) == ["10 a class", "all"]


def test_too_few_classes_and_unlabelled_samples_are_named():
    with pytest.raises(UserError, match="two classes"):
        label_budgets(torch.zeros(50, dtype=torch.int64))
    with pytest.raises(UserError, match="-1"):
        label_budgets(torch.arange(-1, 5))


def clusters(n: int, seed: int, spread: float) -> FeatureSet:
    labels = torch.arange(n) % 5
    noise = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return FeatureSet(torch.eye(5)[labels] + spread * noise, labels)


def test_evaluate_measures_every_probe_and_budget():
    train, test, told = clusters(1000, 0, 0.01), clusters(200, 1, 0.01), []
    rows = evaluate(train, test, label_budgets(train.labels), representation="toy", progress=told.append)
    assert [(row.probe, row.budget, row.draws, row.n_train) for row in rows] == [
        (probe, budget, draws, n)
        for probe in ("kNN", "linear")
        for budget, draws, n in (("10 a class", 5, 50), ("1 %", 5, 10), ("all", 1, 1000))
    ]
    assert all(row.accuracy == 1 for row in rows)
    assert [row.deviation for row in rows] == [0, 0, None] * 2
    assert told[0] == "toy: kNN, 10 a class"
    assert len(told) == 6


def test_more_labels_help_and_draws_differ_on_overlapping_clusters():
    train, test = clusters(1500, 0, 0.5), clusters(500, 1, 0.5)
    rows = {
        (row.probe, row.budget): row for row in evaluate(train, test, label_budgets(train.labels), representation="toy")
    }
    for probe in ("kNN", "linear"):
        assert rows[probe, "all"].accuracy > rows[probe, "1 %"].accuracy > 0.2
        assert 0 < rows[probe, "1 %"].deviation < 0.2


def test_evaluate_names_what_it_cannot_use():
    train = clusters(100, 0, 0.1)
    budgets = label_budgets(train.labels)
    with pytest.raises(UserError, match="test features of toy have no labels"):
        evaluate(train, FeatureSet(train.features), budgets, representation="toy")
    with pytest.raises(UserError, match=r"\(100, 5\).*\(100, 4\)"):
        evaluate(train, FeatureSet(train.features[:, :4], train.labels), budgets, representation="toy")


def test_table_has_a_line_a_representation_and_a_column_a_probe_and_budget():
    rows = [
        Row("pixels", "kNN", "1 %", 0.5012, 0.0149, 5, 600),
        Row("pixels", "kNN", "all", 0.8449, None, 1, 60000),
        Row("a|b", "kNN", "all", 0.9, None, 1, 60000),
    ]
    assert table(rows).splitlines() == [
        "| top-1 accuracy, % | kNN, 1 % | kNN, all |",
        "| --- | ---: | ---: |",
        "| pixels | 50.1 ± 1.5 | 84.5 |",
        "| a\\|b |  | 90.0 |",
    ]


def test_accuracies_of_watched_samples_come_from_the_labels_of_half_of_them() -> None:
    labels = torch.arange(60) % 3
    features = torch.nn.functional.one_hot(labels, 8).float() + 0.05 * torch.randn(60, 8)
    assert watched_accuracies(FeatureSet(features, labels)) == {"knn_accuracy": 1.0, "linear_accuracy": 1.0}
    noise = watched_accuracies(FeatureSet(torch.randn(60, 8), labels))
    assert max(noise.values()) < 0.8
    # samples without a label neither show nor ask
    mixed = torch.where(torch.arange(60) < 30, labels, -1)
    features[30:] = 1e3
    assert watched_accuracies(FeatureSet(features, mixed)) == {"knn_accuracy": 1.0, "linear_accuracy": 1.0}
    for too_little in (None, torch.full((60,), -1), torch.zeros(60, dtype=torch.long), torch.where(mixed < 0, -1, 0)):
        assert watched_accuracies(FeatureSet(features, too_little)) == {}
    assert watched_accuracies(FeatureSet(features[:8], labels[:8])) == {}
