"""Retrieval against plain sorting, with several captions a picture and equal similarities."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from mmssl.evaluation import retrieval


def made(pictures, captions, dim=6):
    """Each picture's first caption in turn, the others drawn; captions lie near their pictures."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.cat([torch.arange(pictures), torch.randint(pictures, (captions - pictures,), generator=generator)])
    owner = owner[torch.randperm(captions, generator=generator)]
    seen = normalize(torch.randn(pictures, dim, generator=generator), dim=1)
    told = normalize(seen[owner] + 0.7 * torch.randn(captions, dim, generator=generator), dim=1)
    return seen, told, owner


def sorted_ranks(seen, told, owner):
    """As open_clip and Karpathy's code do: the whole matrix, sorted."""
    matrix = (seen @ told.T).numpy()
    by_text = [1 + list(np.argsort(-matrix[:, c], kind="stable")).index(o) for c, o in enumerate(owner.tolist())]
    own = [set((owner == picture).nonzero().flatten().tolist()) for picture in range(len(seen))]
    orders = [np.argsort(-row, kind="stable") for row in matrix]
    by_picture = [1 + min(p for p, c in enumerate(order) if c in mine) for order, mine in zip(orders, own, strict=True)]
    return np.array(by_text), np.array(by_picture)


@pytest.mark.parametrize(("pictures", "captions"), [(30, 30), (17, 64), (3, 5)])
def test_recalls_and_median_are_those_of_the_sorted_matrix(pictures, captions):
    seen, told, owner = made(pictures, captions)
    for found, expected in zip(retrieval(seen, told, owner), sorted_ranks(seen, told, owner), strict=True):
        assert found.queries == len(expected)
        assert found.median == int(np.floor(np.median(expected)))
        assert found.recalls == pytest.approx({k: (expected <= k).mean() for k in (1, 5, 10)})


def test_a_model_to_which_all_look_alike_finds_what_chance_does():
    same, owner = torch.ones(40, 4), torch.arange(40)
    for found in retrieval(same, same, owner):
        assert found.recalls == pytest.approx({1: 1 / 40, 5: 5 / 40, 10: 10 / 40})
        assert found.recalls == pytest.approx(found.chance) and found.median == 20


def test_chance_counts_the_captions_of_a_picture():
    seen, told, owner = made(2, 4)
    owner = torch.tensor([0, 0, 0, 1])
    by_text, by_picture = retrieval(seen, told, owner)
    assert by_text.chance == pytest.approx({1: 0.5, 5: 1, 10: 1}) and by_text.candidates == 2
    assert by_picture.chance == pytest.approx({1: (3 / 4 + 1 / 4) / 2, 5: 1, 10: 1}) and by_picture.candidates == 4


def test_what_belongs_to_no_picture_is_refused():
    seen, told, owner = made(4, 6)
    with pytest.raises(ValueError, match="numbers must be 0 to 3"):
        retrieval(seen, told, owner + 1)
    with pytest.raises(ValueError, match="Picture 3 has no caption"):
        retrieval(seen, told, owner.clamp(max=2))
