"""What a forward pass may ask of the other ranks: sums and rows of all of them, through which gradients flow.

Each rank's gradient is that of the sum of all ranks' losses. Where every rank computes its share of the loss times the
number of ranks, or the loss of all rows itself, the mean over ranks, which is what DistributedDataParallel takes, is
then the gradient of one process that holds all rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional as F


def training_ranks() -> ProcessGroup | None:
    """All ranks that train together; None for a process alone."""
    return dist.group.WORLD if dist.is_initialized() and dist.get_world_size() > 1 else None


def total(values: Float[Tensor, "*shape"], group: ProcessGroup) -> Float[Tensor, "*shape"]:
    """The sum of every rank's `values`, which have one shape."""
    return _Total.apply(values, group)


def stacked(values: Float[Tensor, "*shape"], group: ProcessGroup) -> Tensor:
    """Every rank's `values`, which have one shape, as `[ranks, *shape]`."""
    rank = dist.get_rank(group)
    beside = (rank, dist.get_world_size(group) - rank - 1)
    return total(F.pad(values[None], (*2 * values.ndim * [0], *beside)), group)


def everywhere(rows: Float[Tensor, "rows dim"], group: ProcessGroup | None) -> Float[Tensor, "all_rows dim"]:
    """The rows of all ranks, one rank after the other; each may have another number of them. Waits for the device."""
    if group is None:
        return rows
    counts = _counts(rows, group)
    before, after = counts[: dist.get_rank(group)].sum(), counts[dist.get_rank(group) + 1 :].sum()
    return total(F.pad(rows, (0, 0, int(before), int(after))), group)


def places(rows: Float[Tensor, "rows dim"], group: ProcessGroup | None) -> Int64[Tensor, " rows"]:
    """Where this rank's rows are among those that `everywhere` gives."""
    own = torch.arange(len(rows), device=rows.device)
    return own if group is None else own + _counts(rows, group)[: dist.get_rank(group)].sum()


def _counts(rows: Tensor, group: ProcessGroup) -> Tensor:
    """How many rows each rank has."""
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank(group)] = len(rows)
    dist.all_reduce(counts, group=group)
    return counts


class _Total(torch.autograd.Function):
    # torch.distributed.nn has this function, deprecated, and its successor is private
    @staticmethod
    def forward(ctx: Any, values: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        values = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(values, group=group)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad, None
