"""Which rows are nearest, and how near a given one is: retrieval, without the matrix of similarities.

    s_ij = <a_i, b_j>        in float32 (float64 for float64 inputs), whatever else a and b are

Rows come normalised where cosines are meant. The PyTorch path holds the similarities of a block of rows, at most 2^23
or those of 64 rows. The results carry no gradient. A similarity that is no number counts as larger than all others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmssl_kernels.contrastive.similarity import check_features, exact_dtype, fill, rows_together
from mmssl_kernels.frame import checks, op
from mmssl_kernels.frame.dispatch import values_are_checked

TRITON = "mmssl_kernels.contrastive.nearest_triton"


def similarity_topk(
    a: Float[Tensor, "rows dim"], b: Float[Tensor, "columns dim"], k: int, *, exclude: int | None = None
) -> tuple[Float[Tensor, "rows {k}"], Int64[Tensor, "rows {k}"]]:
    """The k rows of `b` that are most similar to each row of `a`: their similarities, descending, and their numbers.

    Of equal similarities the lower number comes first. exclude: row i does not see row i + exclude of `b`: 0 where a
    set is compared with itself, the number of the first row where `a` is a part of it.

    Raises ValueError naming both shapes where sizes or devices do not fit, and for a k that is not between 1 and the
    rows of `b` (one less with `exclude`); TypeError for other dtypes.
    """
    a, b = _checked(a, b)
    most = len(b) if exclude is None else len(b) - 1
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}, expected 1 to {most}: b has shape {tuple(b.shape)}, exclude is {exclude}")
    values, indices = _topk(a, b, k, exclude)
    return values, indices


def similarity_rank(
    a: Float[Tensor, "rows dim"],
    b: Float[Tensor, "columns dim"],
    column: Int64[Tensor, " rows"],
    *,
    exclude: int | None = None,
) -> Int64[Tensor, " rows"]:
    """How many rows of `b` come before row `column[i]` in the order of `similarity_topk` for row i of `a`: 0 is the
    best.

    Of equal similarities the lower number comes first. Where the given row's similarity is no number, all others count.
    exclude: as in `similarity_topk`.

    Raises ValueError naming both shapes where sizes or devices do not fit, and for a column that is none of `b` or the
    excluded one (on a GPU only with MMSSL_DEBUG=1); TypeError for other dtypes.
    """
    a, b = _checked(a, b, column)
    if len(a) and not len(b):
        raise ValueError(f"b has shape {tuple(b.shape)}, but a of shape {tuple(a.shape)} has rows to compare with it")
    return _rank(a, b, column, exclude)


def _checked(a: Tensor, b: Tensor, column: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Refuses what does not fit; the features as autocast has them, without their history."""
    a, b = op.lowered(a.detach()), op.lowered(b.detach())
    check_features(a=a, b=b)
    checks.dtype((torch.int64,), column=column)
    checks.shape(tuple(a.shape[:1]), f"a has shape {tuple(a.shape)}", column=column)
    checks.same_device(a=a, b=b, column=column)
    return a, b


# The PyTorch path


def rows_of(x: Tensor, y: Tensor, exclude: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows with their similarities, minus infinity where excluded; each is overwritten by the next."""
    exact, most = exact_dtype(x), rows_together(len(y))
    y = y.to(exact)
    kept = y.new_empty(min(most, len(x)), len(y))
    for start in range(0, len(x), most):
        row = slice(start, min(start + most, len(x)))
        yield row, fill(kept[: row.stop - start], x[row].to(exact), y, None, exclude, row, slice(0, len(y)))


def topk(x: Tensor, y: Tensor, k: int, exclude: int | None) -> tuple[Tensor, Tensor]:
    values, indices = _no_neighbours(x, k)
    for row, tile in rows_of(x, y, exclude):
        if k == 1:  # quicker, and the first of equal ones by definition
            indices[row] = tile.argmax(dim=1, keepdim=True)
            values[row] = tile.gather(1, indices[row])
            continue
        best, at = tile.topk(min(k + 1, len(y)), dim=1)
        # topk picks any of the equal ones, which matters where the cut falls between them: there the first of them
        if k < len(y) and (cut := (best[:, k - 1] == best[:, k]).nonzero()[:, 0]).numel():
            tied, least = tile[cut], best[cut, k - 1, None]
            larger, equal = (tied <= least).logical_not_(), tied == least
            wanted = k - larger.sum(1, keepdim=True)
            chosen = larger | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted))
            at[cut, :k] = chosen.nonzero()[:, 1].view(-1, k)
            best[cut] = tied.gather(1, at[cut])
        values[row], indices[row] = in_order(best[:, :k], at[:, :k])
    return values, indices


def in_order(values: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's values, descending, with their indices; of equal ones the lower index first."""
    indices, order = indices.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, indices.gather(1, order)


def rank(x: Tensor, y: Tensor, column: Tensor, exclude: int | None) -> Tensor:
    ranks = torch.empty_like(column)
    for row, tile in rows_of(x, y, exclude):
        own = column[row, None]
        limit = tile.gather(1, own)
        before = (tile <= limit).logical_not_().scatter_(1, own, False).sum(1)
        equal = (tile == limit).logical_and_(torch.arange(len(y), device=y.device) < own)
        ranks[row] = before + equal.sum(1)
    return ranks


# Registration


def _no_neighbours(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = x.shape[0], k
    return x.new_empty(shape, dtype=exact_dtype(x)), x.new_empty(shape, dtype=torch.int64)


def _check_column(x: Tensor, y: Tensor, column: Tensor, exclude: int | None) -> None:
    if not column.numel() or not values_are_checked(column):
        return
    checks.values_below("column", column, len(y))
    if exclude is not None and bool((column == torch.arange(len(x), device=column.device) + exclude).any()):
        raise ValueError(f"column names what its own row does not see: exclude is {exclude}")


_topk = op.define(
    "similarity_topk",
    "(Tensor x, Tensor y, int k, int? exclude) -> (Tensor, Tensor)",
    topk,
    TRITON,
    fake=lambda x, y, k, exclude: _no_neighbours(x, k),
)
_rank = op.define(
    "similarity_rank",
    "(Tensor x, Tensor y, Tensor column, int? exclude) -> Tensor",
    rank,
    TRITON,
    fake=lambda x, y, column, exclude: torch.empty_like(column),
    check=_check_column,
)
for each in (_topk, _rank):
    op.autocast(each, "x", "y")
