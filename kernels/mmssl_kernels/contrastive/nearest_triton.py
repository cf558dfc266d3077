"""Retrieval in Triton: a program keeps what it has found for its rows while it goes through its columns.

Where there are few rows the columns are dealt out to several programs a row, whose findings are merged afterwards: no
more than a list of k a program and row is ever written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.contrastive import nearest
from mmssl_kernels.contrastive.similarity import exact_dtype
from mmssl_kernels.contrastive.similarity_triton import LOWEST, configured, logits_of, products
from mmssl_kernels.frame.launch import launch, precision
from mmssl_kernels.tables import Config

# The longest list that a program keeps in registers; longer ones are made in PyTorch.
MOST = 32
# So many keep any of today's devices busy.
PROGRAMS = 512


@triton.jit
def topk_kernel(
    x, y, values, indices, N, M, k, width, exclude, D: tl.constexpr, SLOTS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """values, indices [parts, N, k]: the best of `width` columns, in no order."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    slot = tl.arange(0, SLOTS)[None, :]
    # slots beyond k are never the worst; the others have numbers of their own, so that one at a time is replaced
    best = tl.where(slot < k, float("-inf"), float("inf")) + tl.zeros([BLOCK_M, SLOTS], tl.float32)
    at = -1 - slot + tl.zeros([BLOCK_M, SLOTS], tl.int32)
    for start in range(part * width, tl.minimum(part * width + width, M), BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        total = products(x, y, i, j, N, M, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        total = tl.where(total == total, tl.maximum(total, LOWEST), float("inf"))
        tile = logits_of(total, i, j, None, None, None, M, exclude)
        better = 1
        while better > 0:  # soon no row has any: each round takes the best of the tile
            lead, place = tl.max(tile, axis=1, return_indices=True)  # of equal ones the first
            worst = tl.min(best, axis=1)
            last = tl.max(tl.where(best == worst[:, None], at, -SLOTS - 1), axis=1)
            replaced = (best == worst[:, None]) & (at == last[:, None]) & (lead > worst)[:, None]
            best = tl.where(replaced, lead[:, None], best)
            at = tl.where(replaced, (start + place)[:, None], at)
            tile = tl.where(j[None, :] == (start + place)[:, None], float("-inf"), tile)
            better = tl.max((lead > worst).to(tl.int32), axis=0)
    out = (part.to(tl.int64) * N + i)[:, None] * k + slot
    inside = (i < N)[:, None] & (slot < k)
    tl.store(values + out, best, mask=inside)
    tl.store(indices + out, at, mask=inside)


@triton.jit
def rank_kernel(
    x, y, columns, counts, N, M, width, exclude, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """counts [parts, N]: how many of `width` columns come before each row's own."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    own = tl.load(columns + i, mask=i < N, other=0)
    own = tl.minimum(tl.maximum(own, 0), M - 1).to(tl.int32)
    # from a product of tiles like all others: it must round as those do that it may be equal to
    square = products(x, y, i, own, N, M, D, PRECISION, BLOCK_M, BLOCK_M, BLOCK_K)
    row = tl.arange(0, BLOCK_M)
    limit = tl.sum(tl.where(row[:, None] == row[None, :], square, 0.0), axis=1)
    count = tl.zeros([BLOCK_M], tl.int32)
    for start in range(part * width, tl.minimum(part * width + width, M), BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        total = products(x, y, i, j, N, M, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        tile = logits_of(total, i, j, None, None, None, M, exclude)
        other = (j < M)[None, :] & (j[None, :] != own[:, None])
        behind = tl.where(j[None, :] < own[:, None], tile < limit[:, None], tile <= limit[:, None])
        count += tl.sum(tl.where(behind, 0, other.to(tl.int32)), axis=1)
    tl.store(counts + part.to(tl.int64) * N + i, count, mask=i < N)


def topk(x: Tensor, y: Tensor, k: int, exclude: int | None) -> tuple[Tensor, Tensor]:
    if k > MOST:
        return nearest.topk(x, y, k, exclude)
    config = configured(x, y, "nearest")
    grid, width = dealt(len(x), len(y), config)
    values = x.new_empty(grid[1], len(x), k, dtype=exact_dtype(x))
    indices = torch.empty_like(values, dtype=torch.int32)
    launch(
        topk_kernel,
        grid,
        config,
        x=x.contiguous(),
        y=y.contiguous(),
        values=values,
        indices=indices,
        N=len(x),
        M=len(y),
        k=k,
        width=width,
        exclude=exclude,
        D=x.shape[1],
        SLOTS=MOST if 2 * k > MOST else MOST // 2,  # two lists, so that few kernels are compiled
        PRECISION=precision(x.dtype),
    )
    beside = (each.transpose(0, 1).flatten(1) for each in (values, indices))
    best, at = (each[:, :k] for each in nearest.in_order(*beside))
    return best.contiguous(), at.to(torch.int64)


def rank(x: Tensor, y: Tensor, column: Tensor, exclude: int | None) -> Tensor:
    config = configured(x, y, "nearest")
    grid, width = dealt(len(x), len(y), config)
    counts = column.new_empty(grid[1], len(x), dtype=torch.int32)
    launch(
        rank_kernel,
        grid,
        config,
        x=x.contiguous(),
        y=y.contiguous(),
        columns=column.contiguous(),
        counts=counts,
        N=len(x),
        M=len(y),
        width=width,
        exclude=exclude,
        D=x.shape[1],
        PRECISION=precision(x.dtype),
    )
    return counts.sum(0)


def dealt(rows: int, columns: int, config: Config) -> tuple[tuple[int, int], int]:
    """The grid, blocks of rows by parts of the columns; and the columns of a part, whole tiles."""
    down = triton.cdiv(rows, config.blocks["BLOCK_M"])
    tiles = triton.cdiv(columns, config.blocks["BLOCK_N"])
    together = triton.cdiv(tiles, max(1, min(tiles, PROGRAMS // max(down, 1))))  # tiles of a part
    return (down, triton.cdiv(tiles, max(together, 1))), together * config.blocks["BLOCK_N"]
