"""What forward and backward share: where a sequence's tokens are, and a tile of its logits."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def sample_of(offsets, s, PARTS: tl.constexpr):
    """The sample of sequence s, which may be one of its PARTS windows; packed sequences are all of one sample."""
    if offsets is None:
        sample = s // PARTS
    else:
        sample = s * 0
    return sample.to(tl.int64)


@triton.jit
def extent(offsets, s, size, tokens):
    """First token and length of sequence s, whose offsets are given where sequences are packed.

    Offsets that nobody checked are kept within the tokens there are, and a length within the longest stated.
    """
    if offsets is None:
        first = 0
        count = size
    else:
        first = tl.minimum(tl.maximum(tl.load(offsets + s).to(tl.int64), 0), tokens)
        stop = tl.minimum(tl.load(offsets + s + 1).to(tl.int64), tokens)
        count = tl.minimum(tl.maximum(stop - first, 0), size).to(tl.int32)
    return first, count


@triton.jit
def cell(i, part, WINDOW: tl.constexpr):
    """Row and column of tokens i of a window, shifted; past the grid's end they go on at its beginning."""
    across: tl.constexpr = WINDOW[1] // WINDOW[3]
    row = part // across * WINDOW[2] + i // WINDOW[3]
    column = part % across * WINDOW[3] + i % WINDOW[3]
    return row + WINDOW[4], column + WINDOW[5]


@triton.jit
def places(i, part, first, WINDOW: tl.constexpr):
    """Where tokens i of a sequence are along the axis of tokens. part: the window's number.

    WINDOW: the grid's rows and columns, a window's, and those of the shift; None where a sequence is not a window.
    """
    if WINDOW is None:
        at = first + i
    else:
        row, column = cell(i, part, WINDOW)
        at = row % WINDOW[0] * WINDOW[1] + column % WINDOW[1]
    return at.to(tl.int64)


@triton.jit
def side(i, part, WINDOW: tl.constexpr):
    """Which edge of the grid a shifted window's tokens came from: those that differ do not see each other."""
    row, column = cell(i, part, WINDOW)
    return (row >= WINDOW[0]) * 2 + (column >= WINDOW[1]) * 1


@triton.jit
def read(x, at, inside, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """`[tokens, BLOCK_D]` of a head, zero outside."""
    d = tl.arange(0, BLOCK_D)
    return tl.load(x + at[:, None] * stride + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0)


@triton.jit
def write(x, at, inside, stride, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse, in x's dtype."""
    d = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (d < D)[None, :]
    tl.store(x + at[:, None] * stride + d[None, :], values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def logits_of(
    q, k, i, j, count_q, count_k, part, padding, bias, keys, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of logits times log2(e), -inf where a query does not see a key.

    padding and bias: of the sample and of the head. keys: a row of the bias. MASKED: the tile may reach past the keys.
    """
    x = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    if bias is not None:
        inside = (i < count_q)[:, None] & (j < count_k)[None, :]
        x += LOG2E * tl.load(bias + i[:, None].to(tl.int64) * keys + j[None, :], mask=inside, other=0).to(tl.float32)
    if MASKED:
        x = tl.where((j < count_k)[None, :], x, float("-inf"))
    if CAUSAL:
        x = tl.where(j[None, :] <= i[:, None], x, float("-inf"))
    if padding is not None:
        hidden = tl.load(padding + j, mask=j < count_k, other=1)
        x = tl.where((hidden == 0)[None, :], x, float("-inf"))
    if WINDOW is not None:
        shift: tl.constexpr = WINDOW[4] + WINDOW[5]
        if shift > 0:
            x = tl.where(side(i, part, WINDOW)[:, None] == side(j, part, WINDOW)[None, :], x, float("-inf"))
    return x


@triton.jit
def finite(x):
    """Of the largest logit of rows: zero where a row sees nothing."""
    return tl.where(x == float("-inf"), 0.0, x)
