"""Several labels a sample: the measure is scikit-learn's, and so is the probe's solution."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from mmssl.data.labels import multi_hot, rarest
from mmssl.evaluation import average_precisions, linear_probe
from mmssl.evaluation.answers import worth
from mmssl.evaluation.choice import folds


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [0, 3, 1])
def test_average_precision_is_scikit_learns_with_ties_too(steps):
    """Scores that are all different, of few values, and all equal."""
    scores, labels = random(200, 6), random(200, 6, seed=1) > torch.tensor([-9.0, -1.0, 0.0, 1.0, 2.0, 2.2])
    scores = (scores * (steps - 1)).round() if steps else scores
    found = average_precisions(scores, labels)
    wanted = [average_precision_score(labels[:, k], scores[:, k]) for k in range(6)]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_a_class_that_no_sample_has_counts_for_nothing():
    scores, labels = random(50, 3), multi_hot([(0, 2)] * 10 + [(2,)] * 20 + [()] * 20, 3)
    found = average_precisions(scores, labels)
    assert found.isnan().tolist() == [False, True, False]
    assert worth(scores, labels) == pytest.approx(found[[0, 2]].mean().item())


def several(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples with each of three classes by chance, the third of them rarely, in 20 noisy features."""
    labels = random(n, 3, seed=seed) > torch.tensor([0.0, 0.5, 1.5])
    centres = random(3, 20, seed=99)
    return labels.float() @ centres + 2 * random(n, 20, seed=seed + 1), labels


def test_the_probe_of_several_labels_is_scikit_learns_logistic_regression_of_each_class():
    (features, labels), (test, answers) = several(300, 0), several(1000, 7)
    probe = linear_probe(features, labels)
    standard, asked = ((x - probe.mean) / probe.deviation for x in (features, test))
    logits = probe.logits(test)
    for k in range(3):
        reference = LogisticRegression(C=1 / (probe.l2 * 300), tol=1e-8, max_iter=5000)
        wanted = reference.fit(standard.numpy(), labels[:, k].numpy()).decision_function(asked.numpy())
        assert np.abs(logits[:, k].numpy() - wanted).mean() < 0.02 * np.abs(wanted).mean()
    assert worth(logits, answers) > 0.6 > 1.3 * answers.double().mean()
    grid = {l2: worth(linear_probe(features, labels, l2_grid=[l2]).logits(test), answers) for l2 in (1e1, 1e-1, 1e-3)}
    assert worth(logits, answers) > max(grid.values()) - 0.02


def test_a_class_that_all_or_no_training_samples_have_does_no_harm():
    features, labels = several(100, 0)
    odd = torch.cat([labels, torch.ones(100, 1, dtype=torch.bool), torch.zeros(100, 1, dtype=torch.bool)], dim=1)
    probe = linear_probe(features, odd)
    logits = probe.logits(features)
    assert logits.isfinite().all() and (logits[:, 3] > 0).all() and (logits[:, 4] < 0).all()
    assert worth(logits[:, :3], labels) > 0.6
    with pytest.raises(ValueError, match="got 100 of 0"):
        linear_probe(features, torch.zeros_like(odd))


def test_where_nobody_held_out_has_a_label_the_middle_of_the_penalties_is_taken():
    labels = torch.zeros(40, 2, dtype=torch.bool)
    labels[3, 0] = labels[4, 1] = True
    probe = linear_probe(random(40, 60), labels)
    assert (probe.l2, probe.at_edge) == (1e-2, False)
    assert probe.logits(random(40, 60)).argmax(dim=0).tolist() == [3, 4]


def test_rare_classes_are_held_out_in_every_fold():
    labels = multi_hot([(0,)] * 60 + [(0, 1)] * 20 + [(0, 1, 2)] * 10 + [()] * 10 + [(3, 0)], 4)
    assert rarest(labels).tolist() == [0] * 60 + [1] * 20 + [2] * 10 + [4] * 10 + [3]
    train = folds(labels, seed=0, enough=10_000)
    assert [labels[~shown].sum(dim=0).tolist() for shown in train] == [[18, 6, 2, 0]] * 5
    assert train[:, -1].all()
