"""Weighted nearest neighbours: the evaluation that trains nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

# Neighbours that vote where nobody says otherwise: DINO's number.
K = 20
# Similarities held at once: 2**25 float32 values are 128 MiB, whatever the number of training samples.
SIMILARITIES = 2**25


def knn(
    train: Float[Tensor, "train dim"],
    labels: Int64[Tensor, " train"],
    test: Float[Tensor, "test dim"],
    *,
    k: int = K,
    temperature: float = 0.07,
) -> Int64[Tensor, " test"]:
    """The class of each test feature by a vote of its `k` nearest training features (all of them where fewer exist).

    Nearness is cosine similarity s; a neighbour's vote counts exp(s / temperature). Wu et al., "Unsupervised Feature
    Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4, with the k and temperature of DINO
    (Caron et al. 2021). Equal similarities: the neighbour that comes first in `train`; equal votes: the smaller class.

    Raises ValueError for no training feature, k < 1, temperature <= 0 or a negative label.
    """
    if not len(train) or k < 1 or temperature <= 0:
        raise ValueError(
            f"kNN needs a training feature, k >= 1 and temperature > 0; got {len(train)}, {k} and {temperature}."
        )
    if labels.min() < 0:
        raise ValueError(f"kNN needs labels >= 0; got {int(labels.min())}.")
    k = min(k, len(train))
    classes = int(labels.max()) + 1
    train = torch.nn.functional.normalize(train.float(), dim=1)
    test = torch.nn.functional.normalize(test.float(), dim=1)
    predictions = []
    for queries in test.split(max(1, SIMILARITIES // len(train))):
        similarity, neighbours = _nearest(queries @ train.T, k)
        # Relative to the nearest, so that a low temperature cannot overflow; the vote's winner is the same.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        votes = weights.new_zeros(len(queries), classes).scatter_add_(1, labels[neighbours], weights)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions) if predictions else labels.new_empty(0)


def _nearest(
    similarity: Float[Tensor, "test train"], k: int
) -> tuple[Float[Tensor, "test {k}"], Int64[Tensor, "test {k}"]]:
    """The k largest of each row in descending order; of equal ones those with the smaller index."""
    train = similarity.shape[1]
    values, indices = similarity.topk(min(k + 1, train), dim=1)
    # topk picks any of the equal ones, and that matters only where the cut falls between them: sort those rows in full.
    if train > k and (cut := (values[:, k - 1] == values[:, k]).nonzero().flatten()).numel():
        ordered, order = similarity[cut].sort(dim=1, descending=True, stable=True)
        values[cut], indices[cut] = ordered[:, : k + 1], order[:, : k + 1]
    return values[:, :k], indices[:, :k]
