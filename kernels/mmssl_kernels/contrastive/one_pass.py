"""Losses along rows alone, with their gradients, in one pass over the logits: 6 N M D FLOP.

A block of rows that has seen all its columns knows its gradient, up to the factor that comes from above; so the same
logits serve forward and backward, a block of rows at a time. What backward will need is therefore made in forward. On a
CPU, where products set the pace, that is a quarter faster than the two passes of `similarity`; losses that look along
columns too need those.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mmssl_kernels.contrastive.similarity import (
    Kind,
    add_positives,
    add_products,
    add_sums,
    check_labels,
    column_blocks,
    differentiate,
    exact_dtype,
    fill,
    no_gradients,
    rows_together,
    statistics,
)
from mmssl_kernels.frame import op


def loss_in_one_pass(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    outside: Tensor | None,
    weights: Tensor,
    *,
    kind: Kind = "softmax",
    exclude: int | None = None,
    ignored: int | None = None,
) -> Tensor:
    """`sum_i weights_i (rows_i - positives_i)` of `similarity`'s sums, `sum_i weights_i rows_i` of sigmoids.

    outside `[N]`, in place of labels: the logit of each row's positive, which is no column but belongs to the sum.
    Rows without weight cost nothing. Gradients, of first order: x, y, scale, bias, outside, weights.
    """
    exact, needs = exact_dtype(x), [each is not None and each.requires_grad for each in (x, y, scale, bias, weights)]
    scale, bias = scale.to(exact), bias if bias is None else bias.to(exact)
    return _op(x, y, scale, bias, labels, outside, weights, kind, exclude, ignored, needs)[0]


def loss_and_gradients(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    outside: Tensor | None,
    weights: Tensor,
    kind: str,
    exclude: int | None,
    ignored: int | None,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    """The loss; every row's own; and the gradients of x, y, scale, bias and outside."""
    d_x, d_y, d_scale, d_bias = no_gradients(x, y, scale, needs[:4])
    losses = torch.zeros_like(weights)
    d_outside = torch.zeros_like(losses if outside is None else outside)
    y, exact = y.to(weights.dtype), weights.dtype
    every = torch.arange(len(x), device=x.device)
    # the losses of rows without weight are the gradients of those weights
    counted = every if needs[4] or exclude is not None else every[weights != 0]
    most = rows_together(len(y))
    kept = losses.new_empty(min(most, len(counted)), len(y))
    across = column_blocks(len(kept), len(y))
    for start, chosen in zip(range(0, len(counted), most), counted.split(most), strict=False):
        block, weight = slice(0, len(chosen)), weights[chosen]
        raw = x[chosen].to(exact)
        scaled, weighted = raw * scale, torch.zeros_like(raw)
        rows, _, positives = statistics(raw, y, chosen, kind, False)
        first = None if exclude is None else start + exclude
        label = None if labels is None else labels[chosen]
        if outside is not None:  # the first logit of each row
            rows[:, 0], rows[:, 1] = positives.copy_(outside[chosen]), 0
        for column in across:
            tile = fill(kept[block, column], scaled, y, bias, first, block, column)
            add_sums(rows, positives, tile, label, column, kind)
        losses[chosen] = rows[:, 1] if kind == "sigmoid" else (rows[:, 0] - positives) + rows[:, 1]
        if outside is not None:
            d_outside[chosen] = weight * ((positives - rows[:, 0]) - rows[:, 1]).expm1()
        for column in across:
            gradient = kept[block, column]
            differentiate(gradient, gradient, kind, rows, weight, label, column)
            if label is not None and kind == "softmax":
                add_positives(gradient, label, column, -weight)
            add_products(gradient, scaled, y[column], needs, weighted, d_y[column], d_bias[column])
        if needs[2]:
            d_scale += (weighted * raw).sum()
        if needs[0]:
            d_x[chosen] = weighted.mul_(scale)
    return (losses * weights).sum(), losses, d_x, d_y, d_scale, d_bias, d_outside


def _fake(
    x: Tensor, y: Tensor, scale: Tensor, bias: Any, labels: Any, outside: Tensor | None, weights: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    d_outside = torch.empty_like(weights if outside is None else outside)
    return weights.new_empty(()), torch.empty_like(weights), *no_gradients(x, y, scale, rest[-1][:4]), d_outside


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])
    ctx.dtypes = [None if each is None else each.dtype for each in inputs[:4]]


@once_differentiable
def _differentiate(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    losses, *gradients, d_outside = ctx.saved_tensors
    needs, last = ctx.needs_input_grad, (None,) * 4
    of_matrix = [
        (grad * each).to(dtype) if need else None
        for each, need, dtype in zip(gradients, needs, ctx.dtypes, strict=False)
    ]
    of_rows = [grad * each if need else None for each, need in zip((d_outside, losses), needs[5:7], strict=True)]
    return *of_matrix, None, *of_rows, *last


_op = op.define(
    "similarity_loss",
    "(Tensor x, Tensor y, Tensor scale, Tensor? bias, Tensor? labels, Tensor? outside, Tensor weights, str kind, "
    "int? exclude, int? ignored, bool[] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    loss_and_gradients,
    None,
    fake=_fake,
    check=lambda x, y, scale, bias, labels, outside, weights, kind, exclude, ignored, needs: check_labels(
        x, y, scale, bias, labels, kind, exclude, False, ignored
    ),
)
_op.register_autograd(_differentiate, setup_context=_save)
op.autocast(_op, "x", "y")
