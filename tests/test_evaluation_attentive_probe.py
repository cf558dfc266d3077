"""What is in one patch of many is found by attention and lost in the mean."""

import pytest
import torch

from mmssl.data.labels import multi_hot
from mmssl.evaluation import attentive_probe, linear_probe
from mmssl.evaluation.answers import worth
from mmssl.evaluation.attentive_probe import SETTINGS, Setting

ONE = [Setting(1e-2, 1.0)]


def marked(n: int, seed: int, classes: int = 4, patches: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, but for one random patch of each sample that points into its class's direction."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(classes, 12, generator=torch.Generator().manual_seed(9)))
    labels = torch.arange(n) % classes
    x = torch.randn(n, patches, 12, generator=generator)
    x[torch.arange(n), torch.randint(patches, (n,), generator=generator)] += 6 * directions[labels]
    return x, labels


def accuracy(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return (found == wanted).double().mean().item()


def test_a_class_that_only_one_random_patch_shows_is_found():
    (x, labels), (test, answers) = marked(200, 0), marked(400, 1)
    pooled = linear_probe(x.mean(1), labels).predict(test.mean(1))
    probe = attentive_probe(x, labels, heads=4, settings=ONE)
    assert accuracy(pooled, answers) < 0.6
    assert accuracy(probe.predict(test), answers) > 0.9
    assert probe.trials == [] and ONE[0] in SETTINGS


def test_what_every_patch_shows_is_found_as_by_the_linear_probe():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    x = torch.eye(3).repeat_interleave(2, dim=1)[labels][:, None] + torch.randn(120, 16, 6, generator=generator)
    pooled = linear_probe(x[:60].mean(1), labels[:60]).predict(x[60:].mean(1))
    probe = attentive_probe(x[:60], labels[:60], heads=2, settings=ONE)
    assert min(accuracy(found, labels[60:]) for found in (pooled, probe.predict(x[60:]))) > 0.9


def test_it_repeats_to_the_bit_within_no_grad_too_and_leaves_torchs_numbers_alone():
    x, labels = marked(40, 0, patches=6)
    before = torch.get_rng_state()
    first = attentive_probe(x, labels, heads=2, settings=ONE)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        second = attentive_probe(x, labels, heads=2, settings=ONE)
    assert torch.equal(first.logits(x), second.logits(x))
    assert not torch.equal(attentive_probe(x, labels, heads=2, settings=ONE, seed=1).logits(x), first.logits(x))


def test_the_setting_is_chosen_by_what_was_held_out():
    """A setting that learns nothing is not taken, wherever it stands."""
    x, labels = marked(200, 0)
    probe = attentive_probe(x, labels, heads=4, settings=[*ONE, Setting(1e-7, 1.0)])
    assert [probe.setting] == ONE
    assert [trial.worth > 0.8 for trial in probe.trials] == [True, False]


def test_class_ids_are_kept_and_scales_do_no_harm():
    x, labels = marked(200, 0)
    ids, scale = torch.tensor([3, 4, 90, 7])[labels], torch.logspace(-3, 3, 12)
    probe = attentive_probe(x * scale + 50 * scale, ids, heads=4, settings=ONE)
    test, answers = marked(400, 1)
    assert probe.classes.tolist() == [3, 4, 7, 90]
    assert accuracy(probe.predict(test * scale + 50 * scale), torch.tensor([3, 4, 90, 7])[answers]) > 0.85


def test_several_labels_are_found_each_in_its_own_patch():
    def both(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        (a, first), (b, second) = marked(n, seed), marked(n, seed + 1)
        second = second[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        b = b[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
        return torch.cat([a, b], dim=1), multi_hot(list(zip(first.tolist(), second.tolist())), 4)

    (x, labels), (test, answers) = both(300, 0), both(300, 7)
    pooled = linear_probe(x.mean(1), labels).logits(test.mean(1))
    found = attentive_probe(x, labels, heads=4, settings=ONE).logits(test)
    assert worth(pooled, answers) < 0.75 and worth(found, answers) > 0.9


def test_what_it_cannot_use_is_named():
    with pytest.raises(ValueError, match="5 heads do not divide patch features of 12"):
        attentive_probe(*marked(20, 0), heads=5)
    with pytest.raises(ValueError, match="got 4 of 4"):
        attentive_probe(*marked(4, 0), heads=4)
