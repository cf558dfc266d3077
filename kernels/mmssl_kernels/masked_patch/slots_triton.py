"""The inverse of a list of positions, and sums over the batch that follow it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.frame.launch import choose, launch


@triton.jit
def slot_map_kernel(index, rows, starts, slots, S, K, B, N, prefix, width, BLOCK: tl.constexpr):
    """slots[b, n] = the row of the flattened tokens that holds position n of sample b, the last one of several."""
    s = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = s < S
    n = tl.load(index + s, mask=valid, other=0)
    if rows is None:
        b = (s // K).to(tl.int64)
        slot = b * width + prefix + s % K
    else:
        b = tl.load(rows + s, mask=valid, other=0)
        if starts is None:
            slot = s
        else:
            place = prefix + s - tl.load(starts + b, mask=valid & (b >= 0) & (b < B), other=0)
            slot = b * width + place
            valid = valid & (place >= prefix) & (place < width)
    # what lies outside the grid, the batch or the sample's tokens gets no slot
    valid = valid & (n >= 0) & (n < N) & (b >= 0) & (b < B)
    tl.atomic_max(slots + b * N + n, slot.to(tl.int32), mask=valid, sem="relaxed")  # of integers: in any order the same


def slot_map(
    index: Tensor,
    rows: Tensor | None,
    batch: int,
    count: int,
    *,
    prefix: int = 0,
    width: int | None = None,
    starts: Tensor | None = None,
) -> Tensor:
    """int32 `[batch, count]`, -1 where a position is not in the list.

    A position's row is its number in the flat list; with `width`, samples take so many rows each, `prefix` of them
    before the first position. `starts` `[batch]`: where a sample begins in a flat list, if its rows are spread so.
    """
    slots = torch.full((batch, count), -1, dtype=torch.int32, device=index.device)
    config = choose("slot_map", index.device, index.numel())
    launch(
        slot_map_kernel,
        (triton.cdiv(index.numel(), config.blocks["BLOCK"]),),
        config,
        index=index.contiguous(),
        rows=None if rows is None else rows.contiguous(),
        starts=starts,
        slots=slots,
        S=index.numel(),
        K=index.shape[-1],
        B=batch,
        N=count,
        prefix=prefix,
        width=index.shape[-1] if width is None else width,
    )
    return slots


@triton.jit
def position_sums_kernel(
    grad, places, slots, d_tokens, of_positions, of_hidden, B, N, prefix, restored, width, D,
    SAMPLES: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Position n's gradient rows, a block of samples after the other: summed, and handed on to the tokens.

    Row (b, n) of grad is b * (prefix + restored) + n, or for a subset of positions what `places` says; slots tell the
    token of (b, n), -1 for a hidden one. One program owns its sums, so they do not depend on the order of programs.
    """
    n = tl.program_id(0)
    part = tl.program_id(1)
    d = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    in_prefix = n < prefix
    total = tl.zeros([BLOCK_D], tl.float32)
    hidden = tl.zeros([BLOCK_D], tl.float32)
    for step in range(0, SAMPLES, BLOCK_B):
        own = step + tl.arange(0, BLOCK_B)
        b = (part * SAMPLES + own).to(tl.int64)
        valid = (own < SAMPLES) & (b < B)
        listed = valid & (n >= prefix)
        row = b * (prefix + restored) + n
        if places is not None:
            place = tl.load(places + b * N + n - prefix, mask=listed, other=-1).to(tl.int64)
            row = tl.where(in_prefix, row, place)
        here = (valid & (row >= 0))[:, None] & (d < D)[None, :]
        g = tl.load(grad + row[:, None] * D + d[None, :], mask=here, other=0.0).to(tl.float32)
        total += tl.sum(g, axis=0)
        if slots is not None:
            slot = tl.load(slots + b * N + n - prefix, mask=listed, other=-1).to(tl.int64)
            slot = tl.where(in_prefix, b * width + n, slot)
            hidden += tl.sum(tl.where((slot < 0)[:, None], g, 0.0), axis=0)
            if d_tokens is not None:
                kept = (valid & (slot >= 0))[:, None] & (d < D)[None, :]
                tl.store(d_tokens + slot[:, None] * D + d[None, :], g.to(d_tokens.dtype.element_ty), mask=kept)
    out = (part.to(tl.int64) * (prefix + N) + n) * D + d
    tl.store(of_positions + out, total, mask=d < D)
    tl.store(of_hidden + out, hidden, mask=d < D)


# Programs that keep every multiprocessor of a large GPU busy.
ENOUGH_PROGRAMS = 1024


def position_sums(
    grad: Tensor,
    batch: int,
    count: int,
    *,
    places: Tensor | None = None,
    slots: Tensor | None = None,
    d_tokens: Tensor | None = None,
    prefix: int = 0,
    restored: int = 0,
    width: int = 0,
) -> tuple[Tensor, Tensor]:
    """float32 `[prefix + count, dim]`: grad's rows `[.., dim]` summed over the batch, for every position.

    First of all rows, second of those whose slot is -1. d_tokens, where given, is filled through `slots`. Few positions
    share the batch among several programs, whose parts are then added in order.
    """
    dim = grad.shape[-1]
    config = choose("position_sums", grad.device, dim)
    tiles = triton.cdiv(dim, config.blocks["BLOCK_D"])
    parts = max(1, min(ENOUGH_PROGRAMS // max(1, (prefix + count) * tiles), batch // config.blocks["BLOCK_B"]))
    samples = triton.next_power_of_2(max(1, triton.cdiv(batch, parts)))  # a constant of the kernel: few of them
    parts = max(1, triton.cdiv(batch, samples))
    out = torch.empty(2, parts, prefix + count, dim, dtype=torch.float32, device=grad.device)
    launch(
        position_sums_kernel,
        (prefix + count, parts, tiles),
        config,
        grad=grad,
        places=places,
        slots=slots,
        d_tokens=d_tokens,
        of_positions=out[0],
        of_hidden=out[1],
        B=batch,
        N=count,
        prefix=prefix,
        restored=restored,
        width=width,
        D=dim,
        SAMPLES=samples,
    )
    total, hidden = out[:, 0] if parts == 1 else out.sum(1)
    return total, hidden
