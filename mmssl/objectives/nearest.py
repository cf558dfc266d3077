"""What is shown of methods that compare pictures with texts: which of a batch lie near each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mmssl.modality import zero_to_one
from mmssl.objectives.figures import Cell, Figure, Table, Token

_HEADING = "What it matches"
_PLACES = ("nearest", "second", "third")


def pair_figures(
    pictures: Tensor,
    captions: Sequence[Sequence[int]],
    seen: Float[Tensor, "batch dim"],
    told: Float[Tensor, "batch dim"],
) -> list[Figure]:
    """Each picture with the captions that are nearest to it, each caption with its nearest pictures, and the matrix of
    their similarities.

    pictures: [B, C, H, W], uint8 0-255 or floating point 0-1. captions: their ids. seen, told: the features of both, of
    length one.
    """
    pictures, similarity = zero_to_one(pictures).float(), (seen @ told.T).float()
    places = _PLACES[: len(captions)]
    own = torch.arange(len(captions), device=similarity.device)

    near = similarity.topk(len(places), dim=1)
    rows: list[tuple[Cell, ...]] = []
    for number, (ids, cosines) in enumerate(zip(near.indices.tolist(), near.values.tolist(), strict=True)):
        guesses = [
            (*_told(captions[each], captions[each] == captions[number]), f"{cosine:.2f}")
            for each, cosine in zip(ids, cosines, strict=True)
        ]
        rows.append((_told(captions[number]), *guesses))
    caption = (
        "Held-out pictures with their own captions, and of all captions here those that are nearest to each, with the "
        "cosine between the two; the right words are marked."
    )
    by_picture = Table(("its own caption", *places), tuple(rows), special=False)

    nearest = similarity.T.topk(len(places), dim=1).indices
    ranks = 1 + (similarity > similarity[own, own]).sum(dim=0)
    asked: list[tuple[Cell, ...]] = [
        (_told(words), (str(rank),)) for words, rank in zip(captions, ranks.tolist(), strict=True)
    ]
    by_caption = Table(("caption", "place of its own picture"), tuple(asked), special=False)
    low, high = similarity.min(), similarity.max()
    scaled = (similarity - low) / (high - low).clamp(min=1e-6)
    return [
        Figure("captions", _HEADING, caption, (pictures,), table=by_picture),
        Figure(
            "pictures",
            _HEADING,
            "The captions, each with the pictures that are nearest to it, the nearest first.",
            tuple(pictures[column] for column in nearest.T),
            table=by_caption,
        ),
        Figure(
            "similarities",
            _HEADING,
            "The cosines of all pictures (from top to bottom) and captions (from left to right), the pairs on the "
            f"diagonal: from {low:.2f} (black) to {high:.2f} (white).",
            (scaled[None, None],),
        ),
    ]


def _told(ids: Sequence[int], marked: bool = False) -> Cell:
    return tuple(Token(each, marked) for each in ids)
