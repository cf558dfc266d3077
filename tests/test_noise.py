"""Counter-based noise: the published function, the same everywhere, uniform, and independent across coordinates."""

import itertools

import numpy as np
import pytest
import torch

from mmssl.masking import batch_bits, permutation, random_bits, uniform
from mmssl.masking.noise import threefry2x32

# Known answers published with Random123 (threefry2x32, 20 rounds): key, counter, output.
KNOWN = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
    ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
]


@pytest.mark.parametrize(("key", "counter", "expected"), KNOWN)
def test_threefry_gives_the_published_answers(key, counter, expected):
    assert threefry2x32(key, counter) == expected
    as_tensors = threefry2x32(*(tuple(torch.tensor(word).int() for word in pair) for pair in (key, counter)))
    assert tuple(int(word) % 2**32 for word in as_tensors) == expected
    as_arrays = threefry2x32(*(tuple(np.array([word], np.uint32) for word in pair) for pair in (key, counter)))
    assert tuple(int(word[0]) for word in as_arrays) == expected


def test_a_sample_has_the_same_noise_in_any_batch():
    settings = {"seed": 3, "stream": "mask/image", "epoch": 5}
    ids = torch.tensor([7, 2**40 + 1, 0, 123456])
    whole = random_bits(196, sample_id=ids, **settings)
    for order in itertools.permutations(range(4)):
        assert torch.equal(random_bits(196, sample_id=ids[list(order)], **settings), whole[list(order)])
    assert torch.equal(random_bits(50, sample_id=ids, **settings), whole[:, :50])


def test_what_is_asked_for_alone_is_as_among_all():
    settings = {"seed": 3, "stream": "show/text", "sample_id": torch.tensor([7, 2**40 + 1, 5]), "epoch": 2}
    whole, where = random_bits(30, **settings), torch.rand(3, 30) < 0.2
    assert torch.equal(random_bits(30, where=where, **settings)[where], whole[where])


def test_every_coordinate_changes_the_noise():
    base = {"seed": 0, "stream": "mask/image", "sample_id": torch.arange(4), "epoch": 0, "draw": 0}
    reference = random_bits(64, **base)
    changes = {"seed": 1, "stream": "mask/depth", "sample_id": torch.arange(4) + 4, "epoch": 1, "draw": 1}
    seen = [reference]
    for name, value in changes.items():
        seen.append(random_bits(64, **{**base, name: value}))
    assert torch.cat([bits.flatten() for bits in seen]).unique().numel() == 6 * 4 * 64


def test_uniform_numbers_are_uniform():
    numbers = uniform(1000, seed=0, stream="a", sample_id=torch.arange(1000)).double()
    counts = torch.histc(numbers.flatten(), bins=100, min=0, max=1)
    # chi-square with 99 degrees of freedom: mean 99, deviation sqrt(198); five deviations
    chi_square = ((counts - 1e4) ** 2 / 1e4).sum().item()
    assert abs(chi_square - 99) < 5 * 198**0.5
    assert numbers.min() >= 0 and numbers.max() < 1


@pytest.mark.parametrize("other", [{"stream": "b"}, {"draw": 1}, {"epoch": 1}, {"seed": 1}])
def test_streams_draws_epochs_and_seeds_are_uncorrelated(other):
    base = {"seed": 0, "stream": "a", "sample_id": torch.arange(1000), "epoch": 0, "draw": 0}
    pair = torch.stack([uniform(1000, **base).flatten(), uniform(1000, **{**base, **other}).flatten()])
    # the correlation of a million independent pairs has a deviation of 1e-3
    assert abs(torch.corrcoef(pair.double())[0, 1]) < 5e-3


def test_neighbouring_samples_and_positions_are_uncorrelated():
    numbers = uniform(1000, seed=0, stream="a", sample_id=torch.arange(1000)).double()
    for pair in ((numbers[1:], numbers[:-1]), (numbers[:, 1:], numbers[:, :-1])):
        assert abs(torch.corrcoef(torch.stack([part.flatten() for part in pair]))[0, 1]) < 5e-3


def test_permutation_visits_everything_once_and_differs_by_epoch():
    orders = [permutation(1000, seed=0, stream="order", epoch=epoch) for epoch in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[2].sort().values, torch.arange(1000))


def test_a_batch_without_sample_ids_never_freezes_its_mask():
    batch = {"image": torch.zeros(2, 3, 4, 4)}
    first, second = (batch_bits(batch, 16, seed=0, stream="mask") for _ in range(2))
    assert not torch.equal(first, second)
    named = {**batch, "sample_id": torch.tensor([0, 1])}
    first, second = (batch_bits(named, 16, seed=0, stream="mask") for _ in range(2))
    assert torch.equal(first, second)
