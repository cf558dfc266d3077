"""The tile engine: what losses need of a matrix of similarities, which never exists as a whole.

    l_ij = scale * <x_i, y_j> + bias_j        logits, in float32 (float64 for float64 inputs)
    rows_i = log sum_j exp(l_ij)              or, of pairwise sigmoids, sum_j log(1 + exp(-z_ij l_ij))
    columns_j = log sum_i exp(l_ij)
    positives_i = l_i,labels_i                z is 1 there and -1 elsewhere

Rows and columns come as two numbers, the largest logit and what the logarithm adds to it: as one they would be rounded
at the size of the largest, and a loss near zero is a difference. Losses are short differentiable formulas over these
vectors, in `losses`; forward and backward make every logit anew, a tile at a time: 8 N M D FLOP in place of the 6 that
keeping them would take. All sums have one fixed order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl_kernels.frame import checks, op
from mmssl_kernels.frame.dispatch import values_are_checked

Kind = Literal["softmax", "sigmoid"]
TRITON = "mmssl_kernels.contrastive.similarity_triton"
# Logits of a tile of the PyTorch path: with the two copies that backward makes it stays in the cache of a core or two.
TILE = 2**18
# Logits of a block of whole rows, which are kept until all columns are known; and the fewest rows of one: with fewer,
# reading y would take longer than the products.
BLOCK = 2**23
FEWEST = 64


def similarity(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    kind: Kind = "softmax",
    exclude: int | None = None,
    columns: bool = False,
    ignored: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(rows [N, 2], columns [M, 2], positives [N]) of x `[N, D]` and y `[M, D]`, as the top of this file says.

    scale `[]`, bias `[M]`; labels `[N]`: the column of each row's positive, `ignored` where it has none (its positive
    is then 0). exclude: row i does not see column i + exclude. `columns` False and labels None give empty vectors.
    Gradients: x, y, scale, bias, through what is added to the largest
    logits (which are constants) and positives. Shapes and dtypes are the caller's to check.
    """
    exact = exact_dtype(x)
    bias = bias if bias is None else bias.to(exact)
    return similarity_sums_op(x, y, scale.to(exact), bias, labels, kind, exclude, columns, ignored)


def exact_dtype(x: Tensor) -> torch.dtype:
    """Of logits, statistics and sums."""
    return torch.promote_types(x.dtype, torch.float32)


def statistics(x: Tensor, y: Tensor, labels: Tensor | None, kind: str, columns: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and positives of no logits at all: what tiles are added to."""
    rows, found = (x.new_zeros(size, 2, dtype=exact_dtype(x)) for size in (x.shape[0], y.shape[0] if columns else 0))
    if kind == "softmax":
        for each in (rows, found):  # a finite number for the largest of nothing, so that differences are numbers
            each[:, 0], each[:, 1] = torch.finfo(each.dtype).min, -torch.inf
    return rows, found, rows.new_zeros(0 if labels is None else x.shape[0])


def log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    """`[n, 2]` of a tile: the largest along an axis, and what is added to it."""
    top = logits.amax(dim, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)
    return torch.stack([top.squeeze(dim), (logits - top).exp_().sum(dim).log_()], 1)


def merge(a: Tensor, b: Tensor) -> Tensor:
    """Those of logits that `a` and `b` `[n, 2]` saw a part of each."""
    top = torch.maximum(a[:, 0], b[:, 0])
    return torch.stack([top, torch.logaddexp(a[:, 1] + (a[:, 0] - top), b[:, 1] + (b[:, 0] - top))], 1)


def no_gradients(x: Tensor, y: Tensor, scale: Tensor, needs: list[bool]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, scale and bias, all zero, in the dtype of statistics; of no size where not needed."""
    shapes = (x.shape, y.shape, (), y.shape[:1])
    of_x, of_y, of_scale, of_bias = (
        scale.new_zeros(shape if need else (0,)) for shape, need in zip(shapes, needs, strict=True)
    )
    return of_x, of_y, of_scale, of_bias


# The PyTorch path


def blocks(rows: int, columns: int) -> Iterator[tuple[slice, list[slice]]]:
    """Blocks of rows, each with the blocks of columns that make its tiles: squares, longer where one side is short."""
    tall = max(int(TILE**0.5), TILE // max(columns, 1))
    for start in range(0, rows, tall):
        yield slice(start, min(start + tall, rows)), column_blocks(rows, columns)


def column_blocks(rows: int, columns: int) -> list[slice]:
    """Blocks of columns that make tiles with these rows, or with a part of them."""
    wide = max(int(TILE**0.5), TILE // max(rows, 1))
    return [slice(start, min(start + wide, columns)) for start in range(0, columns, wide)]


def rows_together(columns: int) -> int:
    """How many rows make a block that has all columns."""
    return max(BLOCK // max(columns, 1), FEWEST)


def shaped(buffer: Tensor, row: slice, column: slice) -> Tensor:
    """The part of a flat buffer that holds a tile."""
    shape = row.stop - row.start, column.stop - column.start
    return buffer[: shape[0] * shape[1]].view(shape)


def fill(
    tile: Tensor, x: Tensor, y: Tensor, bias: Tensor | None, exclude: int | None, row: slice, column: slice
) -> Tensor:
    """The logits of a tile, from rows of x that carry the scale already."""
    torch.mm(x, y[column].T, out=tile)
    if bias is not None:
        tile += bias[column]
    if exclude is not None:
        diagonal = row.start + exclude - column.start
        if -len(tile) < diagonal < tile.shape[1]:
            tile.diagonal(diagonal).fill_(-torch.inf)
    return tile


def in_tile(labels: Tensor, column: slice) -> tuple[Tensor, Tensor]:
    """Of a block of rows: which have their positive in these columns, and `[rows, 1]`, where in the tile."""
    inside = (labels >= column.start) & (labels < column.stop)
    return inside, (labels - column.start).clamp(0, column.stop - column.start - 1)[:, None]


def turn_positives(tile: Tensor, labels: Tensor, column: slice) -> None:
    """Change their sign, in place: what a pairwise sigmoid takes, and what its gradient has."""
    inside, where = in_tile(labels, column)
    values = tile.gather(1, where)
    tile.scatter_(1, where, torch.where(inside[:, None], -values, values))


def add_sums(rows: Tensor, positives: Tensor, tile: Tensor, labels: Tensor | None, column: slice, kind: str) -> None:
    """What a tile adds to the sums `[n, 2]` and positives of its rows, in place. Those of sigmoids are turned then."""
    if labels is not None:
        inside, where = in_tile(labels, column)
        positives.copy_(torch.where(inside, tile.gather(1, where)[:, 0], positives))
        if kind == "sigmoid":
            turn_positives(tile, labels, column)
    if kind == "sigmoid":
        rows[:, 1] -= F.logsigmoid(-tile).sum(1)
    else:
        rows.copy_(merge(rows, log_sum_exp(tile, 1)))


def differentiate(
    tile: Tensor, out: Tensor, kind: str, rows: Tensor, d_rows: Tensor, labels: Tensor | None, column: slice
) -> Tensor:
    """The gradient that a tile's logits get through the sums of their rows; `out` may be the tile itself.

    Of sigmoids the tile has its positives turned.
    """
    if kind == "sigmoid":
        torch.sigmoid(tile, out=out).mul_(d_rows[:, None])
        if labels is not None:
            turn_positives(out, labels, column)
        return out
    top, log = rows[:, :, None].unbind(1)
    return torch.sub(tile, top, out=out).sub_(log).exp_().mul_(d_rows[:, None])


def add_positives(gradient: Tensor, labels: Tensor, column: slice, d_positives: Tensor) -> None:
    """The gradient that a tile's logits get as positives, in place."""
    inside, where = in_tile(labels, column)
    gradient.scatter_(1, where, gradient.gather(1, where) + torch.where(inside, d_positives, 0)[:, None])


def add_products(
    gradient: Tensor, scaled: Tensor, y: Tensor, needs: list[bool], of_x: Tensor, of_y: Tensor, of_bias: Tensor
) -> None:
    """What the gradient of a tile's logits adds to those of x (yet without the scale), y and bias, in place."""
    if needs[0] or needs[2]:
        of_x.addmm_(gradient, y)
    if needs[1]:
        of_y.addmm_(gradient.T, scaled)
    if needs[3]:
        of_bias += gradient.sum(0)


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
    """Rows, columns and positives, tile by tile."""
    rows, found, positives = statistics(x, y, labels, kind, columns)
    buffer = rows.new_empty(min(TILE, len(x) * len(y)))
    y = y.to(rows.dtype)
    for row, across in blocks(len(x), len(y)):
        scaled = x[row].to(rows.dtype) * scale
        for column in across:
            tile = fill(shaped(buffer, row, column), scaled, y, bias, exclude, row, column)
            add_sums(rows[row], positives[row], tile, None if labels is None else labels[row], column, kind)
            if columns:
                found[column] = merge(found[column], log_sum_exp(tile, 0))
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
    """Gradients of x, y, scale and bias in the dtype of statistics. The logits may be a part of a matrix, `rows` and
    `columns` being those of the whole.
    """
    d_x, d_y, d_scale, d_bias = no_gradients(x, y, scale, needs)
    exact = rows.dtype
    full = y.to(exact)
    logits, gradients = rows.new_empty(2, min(TILE, len(x) * len(y)))
    for row, across in blocks(len(x), len(y)):
        raw = x[row].to(exact)
        scaled, weighted = raw * scale, torch.zeros_like(raw)
        for column in across:
            tile = fill(shaped(logits, row, column), scaled, full, bias, exclude, row, column)
            label = None if labels is None else labels[row]
            if kind == "sigmoid" and label is not None:
                turn_positives(tile, label, column)
            gradient = shaped(gradients, row, column)
            differentiate(tile, gradient, kind, rows[row], d_rows[row], label, column)
            if d_columns is not None:
                top, log = columns[None, column].unbind(2)
                gradient += tile.sub_(top).sub_(log).exp_().mul_(d_columns[None, column])
            if d_positives is not None and label is not None:
                add_positives(gradient, label, column, d_positives[row])
            add_products(gradient, scaled, full[column], needs, weighted, d_y[column], d_bias[column])
        if needs[2]:
            d_scale += (weighted * raw).sum()
        if needs[0]:
            torch.mul(weighted, scale, out=d_x[row])
    return d_x, d_y, d_scale, d_bias


# Registration


def check_features(**features: Tensor | None) -> None:
    """Rows of as many numbers as the first one's, in one dtype. Raises ValueError naming both shapes, TypeError."""
    (name, first), *others = ((name, each) for name, each in features.items() if each is not None)
    checks.dtype(checks.FLOATS, **features)
    checks.dtype((first.dtype,), **features)
    if first.ndim != 2:
        raise ValueError(f"{name} has shape {tuple(first.shape)}, expected (rows, dim)")
    of_first = f"{name} has shape {tuple(first.shape)}"
    for name, other in others:
        if other.ndim != 2 or other.shape[1] != first.shape[1]:
            raise ValueError(f"{name} has shape {tuple(other.shape)}, expected (rows, {first.shape[1]}): {of_first}")


def check_labels(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, labels: Tensor | None, *settings: Any
) -> None:
    """Values of labels: a column each, or `ignored`; and not the excluded one."""
    _, exclude, _, ignored = settings
    if labels is None or not labels.numel() or not values_are_checked(labels):
        return
    counted = labels if ignored is None else labels[labels != ignored]
    if counted.numel():
        checks.values_below("labels", counted, len(y))
    if exclude is not None and bool((labels == torch.arange(len(x), device=labels.device) + exclude).any()):
        raise ValueError("labels name a row's own column as its positive, which exclude_self leaves out")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.kind, ctx.exclude, ctx.columns, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output[:2])


def _differentiate(
    ctx: Any, d_rows: Tensor | None, d_columns: Tensor | None, d_positives: Tensor | None
) -> tuple[Tensor | None, ...]:
    *tensors, labels, rows, columns = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:4])
    d_rows = torch.zeros_like(rows) if d_rows is None else d_rows
    d_columns = d_columns[:, 1] if ctx.columns and d_columns is not None else None
    d_positives = None if labels is None else d_positives
    found = similarity_gradients(
        d_rows[:, 1], d_columns, d_positives, *tensors, labels, rows, columns, ctx.kind, ctx.exclude, needs
    )
    gradients = (
        gradient.to(tensor.dtype) if need else None
        for gradient, tensor, need in zip(found, tensors, needs, strict=True)
    )
    return *gradients, *([None] * 5)


similarity_sums_op = op.define(
    "similarity_sums",
    "(Tensor x, Tensor y, Tensor scale, Tensor? bias, Tensor? labels, str kind, int? exclude, bool columns, "
    "int? ignored) -> (Tensor, Tensor, Tensor)",
    similarity_sums,
    TRITON,
    fake=lambda x, y, scale, bias, labels, kind, exclude, columns, ignored: statistics(x, y, labels, kind, columns),
    check=check_labels,
)
similarity_gradients = op.define(
    "similarity_backward",
    "(Tensor d_rows, Tensor? d_columns, Tensor? d_positives, Tensor x, Tensor y, Tensor scale, Tensor? bias, "
    "Tensor? labels, Tensor rows, Tensor columns, str kind, int? exclude, bool[] needs) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    similarity_backward,
    TRITON,
    fake=lambda d_rows, d_columns, d_positives, x, y, scale, *rest: no_gradients(x, y, scale, rest[-1]),
)
similarity_sums_op.register_autograd(_differentiate, setup_context=_save)
op.autocast(similarity_sums_op, "x", "y")
