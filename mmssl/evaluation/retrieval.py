"""Retrieval: how far up the list of all pictures a caption's own stands, and of all captions a picture's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

DEPTHS = (1, 5, 10)
# Similarities held at once: 2**25 float32 values are 128 MiB, whatever the number of candidates.
SIMILARITIES = 2**25


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


def ranks(
    queries: Float[Tensor, "queries dim"],
    candidates: Float[Tensor, "candidates dim"],
    own: Int64[Tensor, " queries"],
) -> Int64[Tensor, " queries"]:
    """The place, from 1, of each query's `own` candidate among all, the one of the largest product first; of equal ones
    the one that comes first in `candidates`.

    Blocks of queries are compared at a time: the matrix of all products is never held.
    """
    number, found = torch.arange(len(candidates), device=candidates.device), []
    size = max(1, SIMILARITIES // len(candidates))
    for block, wanted in zip(queries.split(size), own[:, None].split(size), strict=True):
        products = block @ candidates.T
        reached = products.gather(1, wanted)
        before = (products > reached) | ((products == reached) & (number < wanted))
        found.append(1 + before.sum(dim=1))
    return torch.cat(found)


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
    # The nearest of a picture's captions is the best placed; of equal ones the first.
    nearness = (pictures[owner] * captions).sum(dim=1)
    largest = nearness.new_full((count,), -torch.inf).scatter_reduce(0, owner, nearness, "amax")
    nearest = (nearness == largest[owner]).nonzero().flatten()
    best = owner.new_full((count,), total).scatter_reduce(0, owner[nearest], nearest, "amin")
    by_text = _summary(ranks(captions, pictures, owner), torch.ones_like(owner), count)
    return by_text, _summary(ranks(pictures, captions, best), each, total)


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
