"""Weighted nearest neighbours: the evaluation that trains nothing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from mmssl_kernels import similarity_topk
from torch import Tensor

# Neighbours that vote where nobody says otherwise: DINO's number.
K = 20


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
    similarity, neighbours = similarity_topk(test, train, k)
    # Relative to the nearest, so that a low temperature cannot overflow; the vote's winner is the same.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(test), classes).scatter_add_(1, labels[neighbours], weights)
    return votes.argmax(dim=1)
