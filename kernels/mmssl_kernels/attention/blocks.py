"""Attention in PyTorch: a block of rows of logits at a time, for any device and dtype, windows and packed sequences.

Forward keeps nothing: backward makes the probabilities anew. Sequences are read into `[matrices, tokens, head_dim]`, a
matrix a sequence and head, which for windows is the only copy there is.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
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
    """The arguments of one call beside queries, keys and values."""

    key_padding: Tensor | None
    bias: Tensor | None
    cu_seqlens_q: Tensor | None
    cu_seqlens_k: Tensor | None
    causal: bool
    window: Window | None
    scale: float


@dataclass(frozen=True)
class Group:
    """Sequences of equal lengths; with a window, all windows of some samples."""

    samples: slice
    queries: slice
    keys: slice
    window: Window | None = None

    def read(self, x: Tensor, tokens: slice) -> Tensor:
        """`[samples * heads * windows, tokens of one, head_dim]` of `[B, N, H, D]`."""
        x = x[self.samples, tokens]
        return x.transpose(1, 2).flatten(0, 1) if self.window is None else windows_of(x, self.window)

    def write(self, x: Tensor, tokens: slice, values: Tensor) -> None:
        """The inverse."""
        part = x[self.samples, tokens]
        if self.window is None:
            part.transpose(1, 2).copy_(values.view_as(part.transpose(1, 2)))
            return
        tiles = values.view(tiles_shape(part, self.window))
        for tile, place in pairs(tiles, part, self.window):
            place.copy_(tile)


def tiles_shape(x: Tensor, window: Window) -> tuple[int, ...]:
    """`[B, H, windows along rows, and along columns, rows of one, columns of one, D]` for `[B, N, H, D]`."""
    (height, width), (rows, columns) = window.grid, window.size
    return x.shape[0], x.shape[2], height // rows, width // columns, rows, columns, x.shape[3]


def windows_of(x: Tensor, window: Window) -> Tensor:
    """`[B * H * windows, tokens of one, D]` of `[B, N, H, D]`, in one copy."""
    tiles = x.new_empty(tiles_shape(x, window))
    for tile, place in pairs(tiles, x, window):
        tile.copy_(place)
    return tiles.view(-1, window.tokens, x.shape[3])


def pairs(tiles: Tensor, x: Tensor, window: Window) -> Iterator[tuple[Tensor, Tensor]]:
    """The same values twice, as views of equal shape: of tiles, and of the tokens `[B, N, H, D]` they come from."""
    grid = x.unflatten(1, window.grid)
    for windows_r, inside_r, rows in pieces(window, 0):
        for windows_c, inside_c, columns in pieces(window, 1):
            tile = tiles[:, :, windows_r, windows_c, inside_r, inside_c]
            _, _, down, across, height, width, _ = tile.shape
            place = grid[:, rows, columns].unflatten(2, (across, width)).unflatten(1, (down, height))
            yield tile, place.permute(0, 5, 1, 3, 2, 4, 6)


def pieces(window: Window, axis: int) -> list[tuple[slice, slice, slice]]:
    """(windows, what is inside of them, tokens of the grid) along an axis. A shift cuts the last window in two: its end
    comes from the beginning of the grid.
    """
    length, size, shift = window.grid[axis], window.size[axis], window.shift[axis]
    if not shift:
        return [(slice(None), slice(None), slice(None))]
    last = length - size + shift
    return [
        (slice(0, -1), slice(None), slice(shift, last)),
        (slice(-1, None), slice(0, size - shift), slice(last, None)),
        (slice(-1, None), slice(size - shift, None), slice(0, shift)),
    ]


def sides(window: Window | None, device: torch.device) -> Tensor | None:
    """`[windows, tokens]`: which edge of the grid each came from: those that differ do not see each other. None without
    a shift, where all came from the same.
    """
    if window is None or window.shift == (0, 0):
        return None
    row, column = (torch.arange(size, device=device) for size in window.grid)
    side = (row[:, None] < window.shift[0]) * 2 + (column < window.shift[1]) * 1
    return windows_of(side.view(1, -1, 1, 1), window)[..., 0]


def groups(q: Tensor, k: Tensor, call: Call) -> Iterator[Group]:
    """All sequences, as many at a time as a block of logits holds."""
    everything = slice(None)
    if call.cu_seqlens_q is not None and call.cu_seqlens_k is not None:
        for (a, b), (c, d) in zip(spans(call.cu_seqlens_q), spans(call.cu_seqlens_k), strict=True):
            if b > a:
                yield Group(everything, slice(a, b), slice(c, d))
        return
    batch, queries, heads, _ = q.shape
    logits = heads * queries * (k.shape[1] if call.window is None else call.window.tokens)
    step = max(1, TOGETHER // max(1, logits))
    for start in range(0, batch if queries else 0, step):
        yield Group(slice(start, start + step), everything, everything, call.window)


def spans(offsets: Tensor) -> list[tuple[int, int]]:
    """First and last of each sequence. Waits for a GPU."""
    places = offsets.tolist()
    return list(itertools.pairwise(places))


@dataclass(frozen=True)
class Mask:
    """What a group's logits get before their softmax; all broadcast to [samples, heads, windows, queries, keys].

    some_see_nothing: there may be rows whose keys are all hidden, or whose biases are all -inf.
    """

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


def mask_of(group: Group, call: Call, side: Tensor | None) -> Mask:
    """Biases and hidden pairs of a group."""
    padding = None if call.key_padding is None else call.key_padding[group.samples][:, None, None, None]
    bias, blind = call.bias, padding is not None
    if bias is not None and not blind:
        blind = bias.is_cuda or bool((bias == -torch.inf).any())  # looking is free on a CPU alone
    return Mask(None if bias is None else bias[:, None], padding, side, call.causal, blind)


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
    side = sides(call.window, q.device)
    for group in groups(q, k, call):
        part_q, part_k, part_v = (
            exact(group.read(x, tokens)) for x, tokens in ((q, group.queries), (k, group.keys), (v, group.keys))
        )
        queries, keys = part_q.shape[1], part_k.shape[1]
        mask = mask_of(group, call, side)
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
    side = sides(call.window, q.device)
    for group in groups(q, k, call):
        part_q, part_grad = (exact(group.read(x, group.queries)) for x in (q, grad))
        part_k, part_v = (exact(group.read(x, group.keys)) for x in (k, v))
        queries, keys, shape = part_q.shape[1], part_k.shape[1], shape_of(group, part_q, q)
        mask = mask_of(group, call, side)
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
