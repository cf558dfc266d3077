"""The tile engine in Triton: a program a tile of logits, none of which forward writes down.

Forward: a program reduces its tile along both axes and stores one partial log-sum-exp a row and a column; the partials
of a chunk of rows are then combined with their true maximum. Backward: programs write the gradient of a chunk's logits
in the inputs' dtype, and the vendor's products turn it into those of x and y. Nothing is added atomically.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.contrastive.similarity import merge, no_gradients, statistics
from mmssl_kernels.frame.launch import choose, launch, precision
from mmssl_kernels.tables import Config

# Partials of forward, and logits' gradients of backward, that exist at once; from 2^17 columns on it is CHUNK_ROWS rows
# of the latter: with fewer the vendor's products, and adding to y's gradient, would not be quick.
PARTIALS = 2**24
GRADIENTS = 2**28
CHUNK_ROWS = 2048
# float16 ends at 6e-8, where gradients of large batches begin: the largest of a call is lifted to this.
HALF_PEAK = 4096.0
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def similarities(
    x, y, first, stop, M, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """This program's rows i and columns j, and <x_i, y_j>. Programs go down GROUP tiles before they go right, so that
    those which run together share rows of x and of y.
    """
    down = tl.cdiv(stop - first, BLOCK_M)
    across = tl.cdiv(M, BLOCK_N)
    band = tl.program_id(0) // (GROUP * across)
    height = tl.minimum(down - band * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    i = first + (band * GROUP + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    j = within // height * BLOCK_N + tl.arange(0, BLOCK_N)
    return i, j, products(x, y, i, j, stop, M, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)


@triton.jit
def products(
    x, y, i, j, stop, M, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """<x_i, y_j> of BLOCK_M rows i and BLOCK_N columns j."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, D, BLOCK_K):
        d = k + tl.arange(0, BLOCK_K)
        of_x = (i < stop)[:, None] & (d < D)[None, :]
        of_y = (j < M)[None, :] & (d < D)[:, None]
        xs = tl.load(x + i.to(tl.int64)[:, None] * D + d[None, :], mask=of_x, other=0.0)
        ys = tl.load(y + j.to(tl.int64)[None, :] * D + d[:, None], mask=of_y, other=0.0)
        total = tl.dot(xs, ys, total, input_precision=PRECISION)
    return total


@triton.jit
def logits_of(total, i, j, scale, bias, stop, M, exclude):
    """Scaled and shifted; minus infinity outside the matrix and where a row does not see a column."""
    logits = total if scale is None else total * tl.load(scale)
    if bias is not None:
        logits += tl.load(bias + j, mask=j < M, other=0.0)[None, :]
    seen = (j < M)[None, :]
    if stop is not None:  # nor are rows beyond it looked at
        seen &= (i < stop)[:, None]
    if exclude is not None:
        seen &= i[:, None] + exclude != j[None, :]
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def store_log_sum_exp(place, logits, AXIS: tl.constexpr, mask):
    """The largest logits along an axis, and beside each what the sum's logarithm adds to it; as `log_sum_exp`."""
    top = tl.maximum(tl.max(logits, axis=AXIS), LOWEST)
    if AXIS == 1:
        total = tl.sum(tl.exp(logits - top[:, None]), axis=1)
    else:
        total = tl.sum(tl.exp(logits - top[None, :]), axis=0)
    tl.store(place, top, mask=mask)
    # where there is a largest it alone makes 1; what is not a number stays none
    log = tl.log(tl.where(total < 1.0, 1.0, total))
    tl.store(place + 1, tl.where((top > LOWEST) | (total != total), log, float("-inf")), mask=mask)


@triton.jit
def softplus(x):
    """log(1 + exp(x)), to the last digits of small results: the hardware's logarithm has none of them near 1."""
    u = tl.exp(-tl.abs(x))
    s = u / (2.0 + u)
    q = s * s
    series = 1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15)))
    series = 1.0 + q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * series)))
    return tl.maximum(x, 0.0) + 2.0 * s * series  # log(1 + u) = 2 artanh(u / (2 + u))


@triton.jit
def sums_kernel(
    x, y, scale, bias, labels, row_parts, column_parts, positives, first, stop, M, exclude,
    D: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """row_parts [tiles across, rows of the chunk, 2], column_parts [tiles down, M, 2]; the tile that holds a row's
    positive stores it.
    """
    i, j, total = similarities(x, y, first, stop, M, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP)
    logits = logits_of(total, i, j, scale, bias, stop, M, exclude)
    if labels is not None:
        label = tl.load(labels + i, mask=i < stop, other=-1).to(tl.int32)
        positive = tl.sum(tl.where(label[:, None] == j[None, :], logits, 0.0), axis=1)
        here = (label >= tl.min(j, axis=0)) & (label < M) & (label <= tl.max(j, axis=0))
        tl.store(positives + i, positive, mask=here)
    across = tl.max(j, axis=0) // BLOCK_N
    at = row_parts + 2 * (across.to(tl.int64) * (stop - first) + (i - first))
    if SIGMOID:
        if labels is not None:
            logits = tl.where(label[:, None] == j[None, :], -logits, logits)
        tl.store(at, tl.zeros([BLOCK_M], tl.float32), mask=i < stop)
        tl.store(at + 1, tl.sum(softplus(logits), axis=1), mask=i < stop)
    else:
        store_log_sum_exp(at, logits, 1, i < stop)
    if column_parts is not None:
        down = (tl.max(i, axis=0) - first) // BLOCK_M
        store_log_sum_exp(column_parts + 2 * (down.to(tl.int64) * M + j), logits, 0, j < M)


@triton.jit
def gradient_kernel(
    x, y, scale, bias, labels, rows, columns, d_rows, d_columns, d_positives, out, scale_parts, bias_parts,
    first, stop, M, exclude, D: tl.constexpr, SIGMOID: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out [rows of the chunk, M]: the gradient of the logits; and what a tile adds to those of scale and of bias
    (scale_parts [tiles], bias_parts [tiles down, M]).
    """
    i, j, total = similarities(x, y, first, stop, M, D, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K, GROUP)
    logits = logits_of(total, i, j, scale, bias, stop, M, exclude)
    inside = (i < stop)[:, None] & (j < M)[None, :]
    of_rows = tl.load(d_rows + i, mask=i < stop, other=0.0)[:, None]
    if labels is not None:
        label = tl.load(labels + i, mask=i < stop, other=-1).to(tl.int32)
    if SIGMOID:
        if labels is not None:
            of_rows = tl.where(label[:, None] == j[None, :], -of_rows, of_rows)
            logits = tl.where(label[:, None] == j[None, :], -logits, logits)
        gradient = of_rows / (1.0 + tl.exp(-logits))
    else:
        top = tl.load(rows + 2 * i.to(tl.int64), mask=i < stop, other=0.0)
        log = tl.load(rows + 2 * i.to(tl.int64) + 1, mask=i < stop, other=0.0)
        gradient = of_rows * tl.exp(logits - top[:, None] - log[:, None])
    if d_columns is not None:
        of_columns = tl.load(d_columns + j, mask=j < M, other=0.0)[None, :]
        top = tl.load(columns + 2 * j.to(tl.int64), mask=j < M, other=0.0)
        log = tl.load(columns + 2 * j.to(tl.int64) + 1, mask=j < M, other=0.0)
        gradient += of_columns * tl.exp(logits - top[None, :] - log[None, :])
    if d_positives is not None:
        of_positives = tl.load(d_positives + i, mask=i < stop, other=0.0)
        gradient += tl.where(label[:, None] == j[None, :], of_positives[:, None], 0.0)
    if scale_parts is not None:
        tl.store(scale_parts + tl.program_id(0), tl.sum(gradient * total))
    if bias_parts is not None:
        down = (tl.max(i, axis=0) - first) // BLOCK_M
        tl.store(bias_parts + down.to(tl.int64) * M + j, tl.sum(gradient, axis=0), mask=j < M)
    place = out + (i - first).to(tl.int64)[:, None] * M + j[None, :]
    tl.store(place, gradient.to(out.dtype.element_ty), mask=inside)


def chunks(rows: int, most: int, block: int) -> range:
    """First rows of chunks of at most `most`, whole blocks each."""
    return range(0, rows, max(most // block, 1) * block)


def configured(x: Tensor, y: Tensor, name: str) -> Config:
    return choose(f"{name}_{'32' if x.dtype == torch.float32 else '16'}_bit", x.device, len(x) * len(y))


def similarity_sums(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    kind: str,
    exclude: int | None,
    columns: bool,
    ignored: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Chunks of rows one after the other, so that the partials of a million columns fit."""
    rows, found, positives = statistics(x, y, labels, kind, columns)
    count, size = len(x), len(y)
    config = configured(x, y, "similarity")
    tall, wide = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    across = triton.cdiv(size, wide)
    x, y = x.contiguous(), y.contiguous()
    parts = chunks(count, PARTIALS * tall // max(size, 1), tall)
    for first in parts:
        stop = min(first + parts.step, count)
        down = triton.cdiv(stop - first, tall)
        row_parts = rows.new_empty(across, stop - first, 2)
        column_parts = rows.new_empty(down, size, 2) if columns else None
        launch(
            sums_kernel,
            (across * down,),
            config,
            x=x,
            y=y,
            scale=scale,
            bias=bias if bias is None else bias.contiguous(),
            labels=labels if labels is None else labels.contiguous(),
            row_parts=row_parts,
            column_parts=column_parts,
            positives=positives if labels is not None else None,
            first=first,
            stop=stop,
            M=size,
            D=x.shape[1],
            exclude=exclude,
            SIGMOID=kind == "sigmoid",
            PRECISION=precision(x.dtype),
        )
        if kind == "sigmoid":
            torch.sum(row_parts, 0, out=rows[first:stop])
        elif size:
            rows[first:stop] = merge_all(row_parts)
        if column_parts is not None:
            found = merge(found, merge_all(column_parts))
    return rows, found, positives


def similarity_backward(
    d_rows: Tensor,
    d_columns: Tensor | None,
    d_positives: Tensor | None,
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    kind: str,
    exclude: int | None,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chunks of rows: the logits' gradient, then a product for x, one added to for y."""
    of_x, of_y, of_scale, of_bias = needs
    d_x, d_y, d_scale, d_bias = no_gradients(x, y, scale, needs)
    count, size = len(x), len(y)
    config = configured(x, y, "similarity_gradient")
    tall, wide = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    across = triton.cdiv(size, wide)
    lift = lift_of([d_rows, d_columns, d_positives]) if x.dtype == torch.float16 and count else scale.new_ones(())
    upstream = {"d_rows": d_rows, "d_columns": d_columns, "d_positives": d_positives}
    upstream = {name: each if each is None else each * lift for name, each in upstream.items()}
    vectors = {"bias": bias, "labels": labels, "rows": rows, "columns": columns, **upstream}
    x, y = x.contiguous(), y.contiguous()
    parts = chunks(count, max(GRADIENTS // max(size, 1), CHUNK_ROWS), tall)
    buffer = x.new_empty(min(parts.step, count), size)
    for first in parts:
        stop = min(first + parts.step, count)
        down = triton.cdiv(stop - first, tall)
        gradient = buffer[: stop - first]
        scale_parts = rows.new_empty(down * across) if of_scale else None
        bias_parts = rows.new_empty(down, size) if of_bias else None
        launch(
            gradient_kernel,
            (across * down,),
            config,
            x=x,
            y=y,
            scale=scale,
            **{name: vector if vector is None else vector.contiguous() for name, vector in vectors.items()},
            out=gradient,
            scale_parts=scale_parts,
            bias_parts=bias_parts,
            first=first,
            stop=stop,
            M=size,
            D=x.shape[1],
            exclude=exclude,
            SIGMOID=kind == "sigmoid",
            PRECISION=precision(x.dtype),
        )
        if of_x:
            torch.mul(product(gradient, y), scale / lift, out=d_x[first:stop])
        if of_y:
            d_y += product(gradient.T, x[first:stop])
        if scale_parts is not None:
            d_scale += scale_parts.sum()
        if bias_parts is not None:
            d_bias += bias_parts.sum(0)
    return d_x, d_y.mul_(scale / lift), d_scale.div_(lift), d_bias.div_(lift)


def merge_all(parts: Tensor) -> Tensor:
    """`[n, 2]` of `[parts, n, 2]`."""
    tops, logs = parts.unbind(2)
    top = tops.amax(0)
    return torch.stack([top, logs.add_(tops - top).logsumexp(0)], 1)


def lift_of(upstream: list[Tensor | None]) -> Tensor:
    """`[]`: what brings the largest of them to HALF_PEAK."""
    peaks = [each.abs().amax() for each in upstream if each is not None and each.numel()]
    # far below what float16 inputs can answer with, and far enough from zero to divide by
    return HALF_PEAK / torch.stack(peaks).amax().clamp_(min=1e-30)


def product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, by the vendor."""
    if a.dtype == torch.float32:
        return a @ b
    # 16-bit operands with a float32 result are a CUDA and ROCm matter; elsewhere the interpreter asks
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
