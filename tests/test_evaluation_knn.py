from __future__ import annotations

import math
import sys

import pytest
import torch

from mmssl.evaluation import knn


def brute_force(train, labels, test, k, temperature):
    """The definition, one test sample at a time, in plain Python."""
    predictions = []
    for query in test.double():
        cosines = [torch.dot(query / query.norm(), row / row.norm()).item() for row in train.double()]
        nearest = sorted(range(len(train)), key=lambda i: (-cosines[i], i))[:k]
        votes: dict[int, float] = {}
        for i in nearest:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0) + math.exp(cosines[i] / temperature)
        predictions.append(min(votes, key=lambda label: (-votes[label], label)))
    return predictions


def random_features(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.07), (20, 10.0), (500, 0.07)])
def test_equals_brute_force(k, temperature):
    train, test = random_features(150, 6, 0), random_features(60, 6, 1)
    labels = torch.arange(150) * 7 % 4
    assert knn(train, labels, test, k=k, temperature=temperature).tolist() == brute_force(
        train, labels, test, k, temperature
    )


def test_any_chunking_gives_the_same_classes(monkeypatch):
    train, test, labels = random_features(200, 8, 0), random_features(50, 8, 1), torch.arange(200) % 5
    whole = knn(train, labels, test)
    for similarities in (1, 200 * 7, 200 * 50):
        monkeypatch.setattr(sys.modules[knn.__module__], "SIMILARITIES", similarities)
        assert torch.equal(knn(train, labels, test), whole)


def test_perfect_on_separate_clusters_and_chance_on_noise():
    centres = torch.eye(10)
    labels = torch.arange(2000) % 10
    clusters = centres[labels] + 0.05 * random_features(2000, 10, 0)
    assert torch.equal(knn(clusters[:1000], labels[:1000], clusters[1000:]), labels[1000:])
    noise = random_features(2000, 10, 1)
    accuracy = (knn(noise[:1000], labels[:1000], noise[1000:]) == labels[1000:]).double().mean()
    assert 0.06 < accuracy < 0.14  # four standard deviations of 1000 fair guesses among ten


def test_length_is_ignored_and_nearer_neighbours_outvote_more_but_farther_ones():
    train = torch.tensor([[100.0, 1.0], [0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    labels = torch.tensor([7, 3, 3, 3])
    assert knn(train, labels, torch.tensor([[1.0, 0.0]])).tolist() == [7]
    assert knn(train, labels, torch.tensor([[1.0, 0.0]]), temperature=100.0).tolist() == [3]


def test_equal_similarities_go_to_the_first_samples_and_equal_votes_to_the_smaller_class():
    train = torch.ones(64, 3)
    labels = torch.cat([torch.tensor([5, 5, 2, 2, 2]), torch.full((59,), 9)])
    query = torch.ones(4, 3)
    assert knn(train, labels, query, k=3).tolist() == [5] * 4
    assert knn(train, labels, query, k=5).tolist() == [2] * 4
    assert knn(train, labels, query, k=4).tolist() == [2] * 4
    assert knn(torch.zeros(4, 3), labels[:4], query, k=2).tolist() == [5] * 4


def test_a_low_temperature_stays_finite_and_no_query_gives_no_answer():
    train, labels = random_features(30, 4, 0), torch.arange(30) % 3
    assert torch.equal(knn(train, labels, train, temperature=1e-4), labels)
    assert knn(train, labels, torch.zeros(0, 4)).shape == (0,)


@pytest.mark.parametrize("settings", [{"k": 0}, {"temperature": 0.0}])
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match="kNN needs"):
        knn(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(1, 2), **settings)


def test_unlabelled_or_no_training_samples_are_named():
    with pytest.raises(ValueError, match="got -1"):
        knn(torch.ones(2, 2), torch.tensor([0, -1]), torch.ones(1, 2))
    with pytest.raises(ValueError, match="training feature"):
        knn(torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), torch.ones(1, 2))
