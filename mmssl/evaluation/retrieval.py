"""Retrieval: how far up the list of all pictures a caption's own stands, and of all captions a picture's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from mmssl_kernels import similarity_rank
from torch import Tensor

DEPTHS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """recalls: by k, the share, 0-1, of the queries that find what is theirs among the k nearest of `candidates`.
    chance: the same of a random order. median: of the places it stands at, from 1; between two whole numbers the
    smaller, as Karpathy's and open_clip's."""

    recalls: Mapping[int, float]
    chance: Mapping[int, float]
    median: int
    queries: int
    candidates: int


def retrieval(
    pictures: Float[Tensor, "pictures dim"], captions: Float[Tensor, "captions dim"], owner: Int64[Tensor, " captions"]
) -> tuple[Retrieval, Retrieval]:
    """(pictures by a caption, captions by a picture); features have length one, `owner` is each caption's picture.

    A caption asks for its own picture alone, a picture for any of its captions: the best placed counts (Karpathy and
    Fei-Fei 2015, arXiv 1412.2306, section 4.2, and its code). Another picture's caption of the same words is wrong.

    Raises ValueError where a picture has no caption, or an owner is no picture.
    """
    count, total = len(pictures), len(captions)
    if not total or int(owner.min()) < 0 or int(owner.max()) >= count:
        raise ValueError(
            f"{total} captions belong to some of {count} pictures: their numbers must be 0 to {count - 1}."
        )
    each = owner.bincount(minlength=count)
    if not each.all():
        raise ValueError(f"Picture {int((each == 0).nonzero()[0])} has no caption: leave it out.")
    by_text = _summary(1 + similarity_rank(captions, pictures, owner), torch.ones_like(owner), count)
    places = 1 + similarity_rank(pictures[owner], captions, torch.arange(total, device=owner.device))
    best = owner.new_full((count,), total).scatter_reduce(0, owner, places, "amin")
    return by_text, _summary(best, each, total)


def _summary(places: Int64[Tensor, " queries"], right: Int64[Tensor, " queries"], candidates: int) -> Retrieval:
    """right: how many of the candidates are a query's own."""
    recalls = {k: (places <= k).double().mean().item() for k in DEPTHS}
    chance = {}
    for k in DEPTHS:
        # Not one of the first k drawn is right: (n - r) / n * (n - r - 1) / (n - 1) ...
        drawn = torch.arange(min(k, candidates), dtype=torch.float64)
        misses = (candidates - right[:, None].double().cpu() - drawn).clamp(min=0) / (candidates - drawn)
        chance[k] = 1 - misses.prod(dim=1).mean().item()
    ordered = places.sort().values
    middle = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    return Retrieval(recalls, chance, math.floor(int(middle) / 2), len(places), candidates)
