"""Attention in PyTorch: a block of rows of logits at a time, for any device and dtype, windows and packed sequences.

Forward keeps nothing: backward makes the probabilities anew. Sequences are read into `[matrices, tokens, head_dim]`, a
matrix a sequence and head, which for windows is the only copy there is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmssl_kernels.attention.problem import Window

# Logits of several sequences, and of rows of long ones, that are made at once: with the copies that backward makes, the
# former stay in the caches of a core or two.
TOGETHER = 2**18
ROWS = 2**20


@dataclass(frozen=True)
class Call:
    """The arguments of one call beside queries, keys and values, and what all its blocks share of them, made once."""

    key_padding: Tensor | None
    bias: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    max_q: int
    max_k: int
    causal: bool
    window: Window | None
    scale: float
    device: torch.device

    @functools.cached_property
    def order(self) -> Tensor | None:
        """`[windows, tokens of one]`: where they are along the axis of tokens."""
        if self.window is None:
            return None
        (height, width), (rows, columns) = self.window.grid, self.window.size
        grid = torch.arange(height * width, device=self.device).view(height, width)
        grid = grid.roll([-shift for shift in self.window.shift], (0, 1))
        tiles = grid.view(height // rows, rows, width // columns, columns).transpose(1, 2)
        return tiles.reshape(self.window.count, self.window.tokens)

    @functools.cached_property
    def inverse(self) -> Tensor | None:
        """Which token of the windows each token of the grid is: a gather by it is quicker than a scatter."""
        return None if self.order is None else self.order.flatten().argsort()

    @functools.cached_property
    def side(self) -> Tensor | None:
        """`[windows, tokens]`: which edge of the grid each came from: those that differ do not see each other. None
        without a shift, where all came from the same.
        """
        if self.window is None or self.order is None or self.window.shift == (0, 0):
            return None
        row, column = self.order // self.window.grid[1], self.order % self.window.grid[1]
        return (row < self.window.shift[0]) * 2 + (column < self.window.shift[1]) * 1

    @functools.cached_property
    def some_see_nothing(self) -> bool:
        """Whether there may be rows whose keys are all hidden, or whose biases are all -inf."""
        if self.key_padding is not None or self.bias is None:
            return self.key_padding is not None
        return self.bias.is_cuda or bool((self.bias == -torch.inf).any())  # looking is free on a CPU alone


@dataclass(frozen=True)
class Group:
    """Sequences of equal lengths. queries, keys: their tokens, of several packed sequences `[sequences, tokens]`, which
    count as windows. order, inverse: those of the call, where sequences are windows."""

    samples: slice
    queries: slice | Tensor
    keys: slice | Tensor
    order: Tensor | None = None
    inverse: Tensor | None = None

    def read(self, x: Tensor, tokens: slice | Tensor) -> Tensor:
        """`[samples * heads * windows, tokens of one, head_dim]` of `[B, N, H, D]`."""
        if isinstance(tokens, Tensor):
            return x[0].index_select(0, tokens.flatten()).unflatten(0, tokens.shape).permute(2, 0, 1, 3).flatten(0, 1)
        x = x[self.samples, tokens].transpose(1, 2)
        if self.order is None:
            return x.flatten(0, 1)
        return x.index_select(2, self.order.flatten()).unflatten(2, self.order.shape).flatten(0, 2)

    def write(self, x: Tensor, tokens: slice | Tensor, values: Tensor) -> None:
        """The inverse."""
        if isinstance(tokens, Tensor):
            values = values.unflatten(0, (-1, len(tokens))).permute(1, 2, 0, 3).flatten(0, 1)
            x[0].index_copy_(0, tokens.flatten(), values.to(x.dtype))
            return
        part = x[self.samples, tokens].transpose(1, 2)
        values = values.view(part.shape)
        if self.inverse is None or values.dtype != part.dtype:
            part.copy_(values if self.inverse is None else values.index_select(2, self.inverse))
        else:
            torch.index_select(values, 2, self.inverse, out=part)


def groups(q: Tensor, k: Tensor, call: Call) -> Iterator[Group]:
    """All sequences, as many at a time as a block of logits holds."""
    everything, (batch, queries, heads, _) = slice(None), q.shape
    if call.cu_seqlens_q is not None and call.cu_seqlens_k is not None:
        of_q = spans(call.cu_seqlens_q, queries, call.max_q)
        alike: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for (a, b), (c, d) in zip(of_q, spans(call.cu_seqlens_k, k.shape[1], call.max_k), strict=True):
            if b > a:
                alike.setdefault((b - a, d - c), []).append((a, c))
        for lengths, starts in alike.items():
            step = max(1, TOGETHER // max(1, heads * math.prod(lengths)))
            for first in range(0, len(starts), step):
                some = zip(*starts[first : first + step], strict=True)
                both = [tokens_of(each, length, q.device) for each, length in zip(some, lengths, strict=True)]
                yield Group(everything, both[0], both[1])
        return
    logits = heads * queries * (k.shape[1] if call.window is None else call.window.tokens)
    step = max(1, TOGETHER // max(1, logits))
    for start in range(0, batch if queries else 0, step):
        yield Group(slice(start, start + step), everything, everything, call.order, call.inverse)


def tokens_of(starts: Sequence[int], length: int, device: torch.device) -> slice | Tensor:
    """The tokens of sequences of one length: of one, which needs no copy, a slice, else `[sequences, length]`."""
    if len(starts) == 1:
        return slice(starts[0], starts[0] + length)
    return torch.tensor(starts, device=device)[:, None] + torch.arange(length, device=device)


def spans(offsets: Tensor, tokens: int, longest: int) -> list[tuple[int, int]]:
    """First and last of each sequence, kept within tokens and lengths as the kernels do. Waits for a GPU."""
    places = [min(max(place, 0), tokens) for place in offsets.tolist()]
    return [(start, max(start, min(stop, start + longest))) for start, stop in itertools.pairwise(places)]


@dataclass(frozen=True)
class Mask:
    """What a group's logits get before their softmax; all broadcast to [samples, heads, windows, queries, keys]."""

    bias: Tensor | None
    padding: Tensor | None
    side: Tensor | None
    causal: bool
    some_see_nothing: bool

    def hidden(self, rows: slice, p: Tensor) -> Tensor | None:
        """Pairs of these rows of `[..., queries, keys]` that do not see each other; None where all do."""
        found = self.padding
        if self.side is not None:
            found = self.side[:, rows, None] != self.side[:, None, :]
        if self.causal:
            queries, keys = (torch.arange(size, device=p.device) for size in (rows.stop, p.shape[-1]))
            later = keys > queries[rows, None]
            found = later if found is None else found | later
        return found


def mask_of(group: Group, call: Call) -> Mask:
    """Biases and hidden pairs of a group."""
    padding = None if call.key_padding is None else call.key_padding[group.samples][:, None, None, None]
    bias = None if call.bias is None else call.bias[:, None]
    return Mask(bias, padding, call.side, call.causal, call.some_see_nothing)


def probabilities(q: Tensor, k: Tensor, shape: tuple[int, ...], mask: Mask, rows: slice, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) of some rows `[matrices, rows, keys]`; rows that see nothing are zero.

    shape: samples, heads and windows of the matrices.
    """
    p = product(q[:, rows], k.transpose(1, 2), scale)
    view = p.view(*shape, *p.shape[1:])
    if mask.bias is not None:
        view += mask.bias[..., rows, :]
    hidden = mask.hidden(rows, view)
    if hidden is not None:
        view.masked_fill_(hidden, -torch.inf)
    if not mask.some_see_nothing or not p.shape[-1]:
        return torch.softmax(p, -1)
    nothing = p.amax(-1, keepdim=True) == -torch.inf
    return torch.softmax(p, -1).masked_fill_(nothing, 0)


def product(a: Tensor, b: Tensor, scale: float, total: Tensor | None = None) -> Tensor:
    """scale a b, added to `total` in place where there is one."""
    if total is not None:
        return total.baddbmm_(a, b, alpha=scale)
    return torch.baddbmm(a.new_empty(()), a, b, beta=0, alpha=scale)


def row_blocks(matrices: int, queries: int, keys: int) -> Iterator[slice]:
    """Rows of all matrices of a group, as many at a time as a block holds."""
    step = max(1, ROWS // max(1, matrices * keys))
    step = queries if step * 2 > queries else step
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def shape_of(group: Group, part: Tensor, x: Tensor) -> tuple[int, int, int]:
    """Samples, heads and windows of a group that was read from `[B, N, H, D]`."""
    samples, heads = len(range(*group.samples.indices(len(x)))), x.shape[2]
    return samples, heads, len(part) // (samples * heads)


def joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def exact(x: Tensor) -> Tensor:
    """Logits and sums are float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, call: Call) -> None:
    """Write softmax(scale q k^T + bias) v to `out`; all `[B, N, H, D]`."""
    for group in groups(q, k, call):
        part_q, part_k, part_v = (
            exact(group.read(x, tokens)) for x, tokens in ((q, group.queries), (k, group.keys), (v, group.keys))
        )
        queries, keys = part_q.shape[1], part_k.shape[1]
        mask = mask_of(group, call)
        shape = shape_of(group, part_q, q)
        results = [
            torch.bmm(probabilities(part_q, part_k, shape, mask, rows, call.scale), part_v)
            for rows in row_blocks(len(part_q), queries, keys)
        ]
        group.write(out, group.queries, joined(results))


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, targets: tuple[Tensor, Tensor, Tensor], d_bias: Tensor, call: Call
) -> None:
    """Write the gradients of q, k and v to `targets`, and add that of the bias to `d_bias` unless it is empty."""
    for group in groups(q, k, call):
        part_q, part_grad = (exact(group.read(x, group.queries)) for x in (q, grad))
        part_k, part_v = (exact(group.read(x, group.keys)) for x in (k, v))
        queries, keys, shape = part_q.shape[1], part_k.shape[1], shape_of(group, part_q, q)
        mask = mask_of(group, call)
        d_q: list[Tensor] = []
        d_k = d_v = None
        for rows in row_blocks(len(part_q), queries, keys):
            p = probabilities(part_q, part_k, shape, mask, rows, call.scale)
            upstream = part_grad[:, rows]
            d_v = product(p.transpose(1, 2), upstream, 1.0, d_v)
            d_p = torch.bmm(upstream, part_v.transpose(1, 2))
            d_logits = torch._softmax_backward_data(d_p, p, -1, p.dtype)
            if d_bias.numel():
                d_bias[:, rows] += d_logits.view(*shape, *p.shape[1:]).sum((0, 2))
            d_q.append(product(d_logits, part_k, call.scale))
            d_k = product(d_logits.transpose(1, 2), part_q[:, rows], call.scale, d_k)
        assert d_k is not None and d_v is not None
        group.write(targets[0], group.queries, joined(d_q))
        group.write(targets[1], group.keys, d_k)
        group.write(targets[2], group.keys, d_v)
