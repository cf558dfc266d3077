from __future__ import annotations

import pytest
import torch

from mmssl.evaluation import linear_probe
from mmssl.evaluation.linear_probe import L2_GRID


def blobs(n: int, classes: int, dim: int, spread: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centres[labels] + spread * torch.randn(n, dim, generator=generator), labels


@pytest.mark.parametrize("dim", [6, 300])
def test_separable_classes_are_all_found(dim):
    features, labels = blobs(200, 4, dim, spread=0.05)
    test, expected = blobs(100, 4, dim, spread=0.05, seed=1)
    assert torch.equal(linear_probe(features, labels).predict(test), expected)


@pytest.mark.parametrize(("n", "dim"), [(600, 12), (60, 90)])
def test_equals_scikit_learn_on_overlapping_classes(n, dim):
    """The same minimum: the penalised loss within 5e-4, accuracy within 1 %, and at most 1 % of other answers."""
    from sklearn.linear_model import LogisticRegression

    features, labels = blobs(n, 5, dim, spread=2.0)
    test, expected = blobs(1000, 5, dim, spread=2.0, seed=1)
    features, test = (x * torch.logspace(-2, 2, dim) + 3 for x in (features, test))
    probe = linear_probe(features, labels)
    standard, standard_test = ((x - probe.mean) / probe.deviation for x in (features, test))
    reference = LogisticRegression(C=1 / (probe.l2 * n), tol=1e-6, max_iter=5000).fit(standard.numpy(), labels.numpy())

    def penalised(weight: torch.Tensor, bias: torch.Tensor) -> float:
        loss = torch.nn.functional.cross_entropy(standard.double() @ weight.T.double() + bias, labels)
        return (loss + probe.l2 / 2 * weight.square().sum()).item()

    least = penalised(torch.tensor(reference.coef_), torch.tensor(reference.intercept_))
    assert penalised(probe.weight, probe.bias) == pytest.approx(least, abs=5e-4)
    found, wanted = probe.predict(test), torch.tensor(reference.predict(standard_test.numpy()))
    assert (found == wanted).double().mean() >= 0.99
    accuracy = (found == expected).double().mean().item()
    assert accuracy == pytest.approx((wanted == expected).double().mean().item(), abs=0.01)
    assert 0.5 < accuracy < 0.99


def test_constant_and_hugely_scaled_features_do_no_harm():
    features, labels = blobs(200, 3, 5, spread=0.1)
    test, expected = blobs(90, 3, 5, spread=0.1, seed=1)

    def awkward(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([1e4 * x, torch.full((len(x), 2), 7.0), torch.zeros(len(x), 1)], dim=1)

    probe = linear_probe(awkward(features), labels)
    assert torch.equal(probe.predict(awkward(test)), expected)
    assert probe.logits(awkward(test)).isfinite().all()
    constant = linear_probe(torch.ones(20, 4), torch.arange(20) // 15)
    assert constant.predict(torch.ones(3, 4)).tolist() == [0, 0, 0]


def test_classes_missing_from_a_small_budget_are_never_predicted_and_ids_are_kept():
    features, labels = blobs(60, 3, 5, spread=0.1)
    ids = torch.tensor([4, 17, 90])[labels]
    seen = ids != 17
    probe = linear_probe(features[seen], ids[seen])
    assert probe.classes.tolist() == [4, 90]
    answers = probe.predict(features)
    assert set(answers.tolist()) == {4, 90}
    assert torch.equal(answers[seen], ids[seen])


def weak(n: int, seed: int, faint: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight classes whose only signal is faint and lies where features hardly vary: the difference of two columns."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 8
    shared = torch.randn(n, 40, generator=generator)
    angle = labels * torch.pi / 4
    signal = torch.stack([angle.cos(), angle.sin()], dim=1).repeat(1, 20)
    difference = 0.02 * torch.randn(n, 40, generator=generator) + 0.004 * faint * signal
    return torch.cat([shared, shared + difference], dim=1), labels


@pytest.mark.parametrize("kind", ["weak", "weaker", "wide"])
@pytest.mark.parametrize("l2", [None, 1e-2, 1e-7])
def test_accuracy_is_scikit_learns_at_the_same_penalty(kind, l2):
    """On weak signals as on strong ones, with more features than samples as with fewer: 0.5 % of 2000 answers."""
    from sklearn.linear_model import LogisticRegression

    (features, labels), (test, expected) = {
        "weak": (weak(400, 0), weak(2000, 1)),
        "weaker": (weak(400, 0, faint=0.3), weak(2000, 1, faint=0.3)),
        "wide": (blobs(400, 8, 300, spread=6.0), blobs(2000, 8, 300, spread=6.0, seed=1)),
    }[kind]
    probe = linear_probe(features, labels, **({} if l2 is None else {"l2_grid": [l2]}))
    standard, standard_test = (((x - probe.mean) / probe.deviation).double().numpy() for x in (features, test))
    reference = LogisticRegression(C=1 / (probe.l2 * len(labels)), tol=1e-10, max_iter=20_000)
    wanted = torch.tensor(reference.fit(standard, labels.numpy()).predict(standard_test))
    accuracy, theirs = ((found == expected).double().mean().item() for found in (probe.predict(test), wanted))
    assert accuracy == pytest.approx(theirs, abs=0.005)


def test_a_faint_signal_is_not_taken_for_chance():
    """Held-out cross-entropy is least at the strongest penalty here, where accuracy is near chance."""
    features, labels = weak(1500, 0)
    test, expected = weak(2000, 1)
    accuracies = {
        l2: (linear_probe(features, labels, l2_grid=[l2]).predict(test) == expected).double().mean().item()
        for l2 in (*L2_GRID, 1e-6, 1e-7)
    }
    taken = linear_probe(features, labels)
    accuracy = (taken.predict(test) == expected).double().mean().item()
    assert accuracies[1e1] < 0.2
    assert accuracy > max(accuracies.values()) - 0.015


def test_the_search_goes_below_the_grid_while_that_helps_and_says_when_it_ended_at_an_edge():
    features, labels = weak(1500, 0)
    found = linear_probe(features, labels, l2_grid=[1e-3, 1e-4])
    assert found.l2 < 1e-4 and not found.at_edge
    noise = torch.randn(100, 80, generator=torch.Generator().manual_seed(0))
    assert linear_probe(noise, torch.arange(100) % 4, l2_grid=[1e3, 1e2]).at_edge
    features, labels = blobs(400, 4, 8, spread=0.05)
    given = linear_probe(features, labels, l2_grid=[0.5])
    assert (given.l2, given.at_edge) == (0.5, False)


def test_one_sample_a_class_is_too_few_to_choose_a_penalty_by():
    features, labels = blobs(9, 8, 30, spread=0.5)
    test, expected = blobs(400, 8, 30, spread=0.5, seed=1)
    probe = linear_probe(features, labels)
    assert (probe.l2, probe.at_edge) == (1e-2, False)
    assert (probe.predict(test) == expected).double().mean() > 0.9


def test_repeats_to_the_bit_and_runs_inside_no_grad():
    features, labels = blobs(120, 3, 8, spread=1.5)
    first = linear_probe(features, labels)
    with torch.no_grad():
        second = linear_probe(features, labels)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert not first.weight.requires_grad


@pytest.mark.parametrize(("samples", "classes"), [(4, 2), (10, 1)])
def test_too_few_samples_or_classes_are_named(samples, classes):
    with pytest.raises(ValueError, match=f"got {samples} of {classes}"):
        linear_probe(torch.randn(samples, 3), torch.arange(samples) % classes)
