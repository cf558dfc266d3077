"""The tile engine over ranks: each owns some rows of x and of y and gets the sums of its rows and of its columns.

The blocks of y come to the rows of x, all at once (gathered) while they are small together, else one after the other
round a ring: while a rank works on a block the next one is on its way, and what the ranks add to a block's own sums
follows it a step behind and arrives at home. A rank never holds more than a few blocks and a chunk of tiles.

Every rank of the group must make the same calls in the same order, backward included: where one needs a gradient, all
must need one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import P2POp, ProcessGroup

from mmssl_kernels.contrastive.similarity import (
    Kind,
    check_labels,
    exact_dtype,
    merge,
    similarity_gradients,
    similarity_sums_op,
    statistics,
)
from mmssl_kernels.frame import op

# Blocks that are smaller together than this many bytes are gathered: below it a ring's steps cost more than they carry.
GATHERED = 2**26

Merge = Literal["sum", "log_sum_exp"]  # how what two ranks add to a block comes together
# What a rank adds to a block, given the tensors that came with it and where in it the rank's own columns start, if at
# all; None if nothing shall travel home.
Visit = Callable[[list[Tensor], int | None], Tensor | None]


@torch.compiler.disable
def similarity_across(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    *,
    kind: Kind,
    exclude_self: bool,
    columns: bool,
    group: ProcessGroup,
) -> tuple[Tensor, Tensor, Tensor]:
    """`similarity`, of this rank's rows and columns in the matrix of all ranks.

    bias `[]`; labels: places among this rank's own rows of y; exclude_self: row i does not see this rank's column i.
    The gradients are those of the sum over the ranks of whatever each makes of its results.
    """
    exact = exact_dtype(x)
    # a wrong label must be found before the ranks wait for each other, and could name a neighbour's row later
    check_labels(x, y, scale, bias, labels, kind, 0 if exclude_self else None, columns, None)
    with op.without_autocast():
        return _Across.apply(
            x, y, scale.to(exact), bias if bias is None else bias.to(exact), labels, kind, exclude_self, columns, group
        )


@torch.compiler.disable
def mean_across(total: Tensor, weight: Tensor, group: ProcessGroup) -> Tensor:
    """The mean over all ranks of what sums to `total` and weighs `weight` here; 0 where nothing weighs anything.

    Its gradient on a rank is that of its own share times the number of ranks: DistributedDataParallel, which averages,
    then has the gradient of one process that holds everything.
    """
    return _Mean.apply(total, weight.to(total.dtype), group)


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, weight: Tensor, group: ProcessGroup) -> Tensor:
        everywhere = torch.stack([total, weight])
        dist.all_reduce(everywhere, group=group)
        divisor = torch.where(everywhere[1] == 0, 1, everywhere[1])
        mean = everywhere[0] / divisor
        ctx.save_for_backward(mean, dist.get_world_size(group) / divisor)
        return mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        mean, factor = ctx.saved_tensors
        return grad * factor, -grad * factor * mean, None


class _Across(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        kind: str,
        exclude_self: bool,
        columns: bool,
        group: ProcessGroup,
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes, ctx.of_columns = of_ranks(len(y), ctx.needs_input_grad[1], group, y.device)
        rows, _, positives = statistics(x, y, labels, kind, False)

        def visit(tensors: list[Tensor], start: int | None) -> Tensor | None:
            part_rows, part_columns, part_positives = similarity_sums_op(
                x, *placed(tensors[0], scale, bias, labels, start),
                kind, start if exclude_self else None, columns, None,
            )  # fmt: skip
            rows.copy_(rows + part_rows if kind == "sigmoid" else merge(rows, part_rows))
            if start is not None:
                positives.copy_(part_positives)
            return part_columns if columns else None

        found = carry([y], visit, "log_sum_exp", sizes, group)
        found = rows.new_empty(0, 2) if found is None else found
        ctx.save_for_backward(x, y, scale, bias, labels, rows, found)
        ctx.kind, ctx.exclude_self, ctx.columns, ctx.group, ctx.sizes = kind, exclude_self, columns, group, sizes
        return rows, found, positives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rows: Tensor, d_columns: Tensor, d_positives: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale, bias, labels, rows, columns = ctx.saved_tensors
        mine = ctx.needs_input_grad
        needs = [mine[0], ctx.of_columns, *mine[2:4]]
        sums = [torch.zeros_like(each, dtype=rows.dtype) for each in (x, scale, scale)]

        def visit(tensors: list[Tensor], start: int | None) -> Tensor | None:
            block, *of_columns = tensors  # the sums of its columns, and their gradients
            of_block, d_block = of_columns if ctx.columns else (columns, None)
            block, scale_, shift, own = placed(block, scale, bias, labels, start)
            d_own = None if own is None else d_positives
            d_x, d_y, d_scale, d_bias = similarity_gradients(
                d_rows[:, 1], d_block, d_own, x, block, scale_, shift, own, rows, of_block, ctx.kind,
                start if ctx.exclude_self else None, needs,
            )  # fmt: skip
            for total, found, need in zip(sums, (d_x, d_scale, d_bias), (needs[0], *needs[2:]), strict=True):
                if need:
                    total += found if total.ndim else found.sum()
            return d_y if needs[1] else None

        carried = [y, columns, d_columns[:, 1].contiguous()] if ctx.columns else [y]
        of_y = carry(carried, visit, "sum", ctx.sizes, ctx.group)
        found = sums[0].to(x.dtype), None if of_y is None else of_y.to(y.dtype), *sums[1:]
        return *(each if need else None for each, need in zip(found, mine[:4], strict=True)), *([None] * 5)


def placed(
    y: Tensor, scale: Tensor, bias: Tensor | None, labels: Tensor, start: int | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The engine's arguments for a block: one bias a column, positives only where the block holds this rank's."""
    shift = None if bias is None else bias.expand(len(y))
    return y, scale, shift, None if start is None else labels + start


def of_ranks(count: int, needed: bool, group: ProcessGroup, device: torch.device) -> tuple[list[int], bool]:
    """How many columns each rank has, and whether any needs their gradient. Waits for the device."""
    found = torch.zeros(dist.get_world_size(group), 2, dtype=torch.int64, device=device)
    dist.all_gather(list(found.unbind()), torch.tensor([count, needed], device=device), group=group)
    sizes, needs = found.T.tolist()
    return sizes, any(needs)


def carry(tensors: list[Tensor], visit: Visit, how: Merge, sizes: list[int], group: ProcessGroup) -> Tensor | None:
    """Have every rank visit the tensors of all, `sizes` rows each; what they add together to those of this rank."""
    small = sum(sizes) * tensors[0].shape[1] * tensors[0].element_size() <= GATHERED
    return (carry_gathered if small or len(sizes) == 1 else carry_round)(tensors, visit, how, sizes, group)


def carry_gathered(
    tensors: list[Tensor], visit: Visit, how: Merge, sizes: list[int], group: ProcessGroup
) -> Tensor | None:
    """One visit to all blocks at once."""
    start = sum(sizes[: dist.get_rank(group)])
    part = visit([gathered(each, sizes, group) for each in tensors], start)
    if part is None:
        return None
    if how == "sum":
        dist.all_reduce(part, group=group)
    else:
        top = part[:, 0].clone()
        dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
        total = (part[:, 1] + (part[:, 0] - top)).exp_()
        dist.all_reduce(total, group=group)
        part = torch.stack([top, total.log_()], 1)
    return part[start : start + len(tensors[0])].clone()


def gathered(tensor: Tensor, sizes: list[int], group: ProcessGroup) -> Tensor:
    """The rows of all ranks, one rank after the other."""
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])  # blocks of one size are what every backend gathers
    padded[: len(tensor)] = tensor
    blocks = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(blocks, padded, group=group)
    return torch.cat([block[:size] for block, size in zip(blocks, sizes, strict=True)])


class Exchange:
    """Tensors on their way to the next rank, and those of the previous one on theirs to this. Starts at once."""

    def __init__(self, outgoing: list[Tensor], rows: int, group: ProcessGroup):
        rank, world = dist.get_rank(group), dist.get_world_size(group)
        after, before = (dist.get_global_rank(group, (rank + turn) % world) for turn in (1, -1))
        self.outgoing = [each.contiguous() for each in outgoing]  # held until they are sent
        self.incoming = [each.new_empty(rows, *each.shape[1:]) for each in outgoing]
        steps = []
        for tag, (leaves, arrives) in enumerate(zip(self.outgoing, self.incoming, strict=True)):
            steps += [P2POp(dist.isend, leaves, after, group, tag)] if leaves.numel() else []
            steps += [P2POp(dist.irecv, arrives, before, group, tag)] if arrives.numel() else []
        self.works = dist.batch_isend_irecv(steps) if steps else []

    def arrived(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return self.incoming


def carry_round(
    tensors: list[Tensor], visit: Visit, how: Merge, sizes: list[int], group: ProcessGroup
) -> Tensor | None:
    """A block a step, from rank to rank; the sums of a block leave a rank once its part is in them."""
    rank, world = dist.get_rank(group), len(sizes)
    behind: Exchange | None = None
    for step in range(world):
        coming = sizes[(rank - step - 1) % world]
        ahead = Exchange(tensors, coming, group) if step < world - 1 else None
        part = visit(tensors, None if step else 0)
        if part is not None:
            if behind is not None:
                (before,) = behind.arrived()
                part = before + part if how == "sum" else merge(before, part)
            behind = Exchange([part], coming, group)
        if ahead is not None:
            tensors = ahead.arrived()
    return None if behind is None else behind.arrived()[0]
