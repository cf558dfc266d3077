"""Attention in Triton, backward. Nothing is added atomically: every number has one program that writes it.

A sequence of one tile has one program a head, which needs neither the result nor statistics of forward. Of longer ones
some programs own a block of keys and walk over the queries, the others own a block of queries and walk over the keys.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.attention import op
from mmssl_kernels.attention.attention_triton import common, configured, readable, strides, tail
from mmssl_kernels.attention.logits_triton import extent, finite, logits_of, places, read, sample_of, write
from mmssl_kernels.frame.launch import launch
from mmssl_kernels.tables import one_tile

# Programs that share the sequences where a bias learns, and numbers of their partial sums.
PROGRAMS = 2048
PARTIALS = 2**22


@triton.jit
def one_tile_backward_kernel(
    q, k, v, grad, d_q, d_k, d_v, d_bias, padding, bias, cu_q, cu_k,
    q_b, q_n, q_h, k_b, k_n, k_h, dq_b, dq_n, dq_h, dk_b, dk_n, dk_h, queries, keys, tokens_q, tokens_k, scale, count,
    each, H: tl.constexpr, PARTS: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A head of `each` sequences, one after the other; the bias's gradient is summed over them in registers."""
    group = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    i = tl.arange(0, BLOCK_M)
    j = tl.arange(0, BLOCK_N)
    if bias is not None:
        bias += h * queries * keys
    of_bias = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, each):
        s = group * each + step
        sample = sample_of(cu_q, s, PARTS)
        part = s % PARTS
        first_q, count_q = extent(cu_q, s, queries, tokens_q)
        first_k, count_k = extent(cu_k, s, keys, tokens_k)
        if d_bias is not None:
            count_q = tl.where(s < count, count_q, 0)  # the last group may have fewer
            count_k = tl.where(s < count, count_k, 0)
        hidden = padding
        if padding is not None:
            hidden += sample * keys
        rows = places(i, part, first_q, WINDOW)
        columns = places(j, part, first_k, WINDOW)
        of_q = read(q + sample * q_b + h * q_h, rows, i < count_q, q_n, D, BLOCK_D)
        of_k = read(k + sample * k_b + h * k_h, columns, j < count_k, k_n, D, BLOCK_D)
        of_v = read(v + sample * k_b + h * k_h, columns, j < count_k, k_n, D, BLOCK_D)
        results = (sample * queries * PARTS * H + h) * D
        upstream = read(grad + results, rows, i < count_q, H * D, D, BLOCK_D)
        x = logits_of(
            of_q, of_k, i, j, count_q, count_k, part, hidden, bias, keys, scale, CAUSAL, True, WINDOW, PRECISION
        )
        p = tl.exp2(x - finite(tl.max(x, 1))[:, None])
        total = tl.sum(p, 1)
        p = p / tl.where(total > 0, total, 1.0)[:, None]
        values = tl.dot(tl.trans(p.to(upstream.dtype)), upstream, input_precision=PRECISION)
        write(d_v + sample * dk_b + h * dk_h, columns, j < count_k, dk_n, values, D, BLOCK_D)
        d_p = tl.dot(upstream, tl.trans(of_v), input_precision=PRECISION)
        d_x = p * (d_p - tl.sum(p * d_p, 1)[:, None])
        if d_bias is not None:
            of_bias += d_x
        d_x = d_x.to(of_k.dtype)
        queried = tl.dot(d_x, of_k, input_precision=PRECISION) * scale
        write(d_q + sample * dq_b + h * dq_h, rows, i < count_q, dq_n, queried, D, BLOCK_D)
        keyed = tl.dot(tl.trans(d_x), of_q, input_precision=PRECISION) * scale
        write(d_k + sample * dk_b + h * dk_h, columns, j < count_k, dk_n, keyed, D, BLOCK_D)
    if d_bias is not None:
        at = tl.program_id(0).to(tl.int64) * queries * keys + i[:, None] * keys + j[None, :]
        tl.store(d_bias + at, of_bias, mask=(i < queries)[:, None] & (j < keys)[None, :])


@triton.jit
def queries_of(
    q, grad, out, sums, i, count_q, part, first, q_n, H: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    WINDOW: tl.constexpr,
):  # fmt: skip
    """A tile of queries and of their upstream gradient, their log-sum-exps and <result, upstream gradient>."""
    at = places(i, part, first, WINDOW)
    inside = i < count_q
    block = read(q, at, inside, q_n, D, BLOCK_D)
    upstream = read(grad, at, inside, H * D, D, BLOCK_D)
    result = read(out, at, inside, H * D, D, BLOCK_D)
    delta = tl.sum(result.to(tl.float32) * upstream.to(tl.float32), 1)
    return block, upstream, tl.load(sums + at * H, mask=inside, other=0.0), delta


@triton.jit
def logits_gradient(
    q, upstream, log, delta, k, v, i, j, count_q, count_k, part, padding, bias, keys, scale,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Probabilities of a tile, and the gradient of its logits."""
    x = logits_of(q, k, i, j, count_q, count_k, part, padding, bias, keys, scale, CAUSAL, MASKED, WINDOW, PRECISION)
    p = tl.exp2(x - log[:, None])
    d_p = tl.dot(upstream, tl.trans(v), input_precision=PRECISION)
    return p, p * (d_p - delta[:, None])


@triton.jit
def add_queries_gradient(
    total, block, upstream, log, delta, k, v, start, i, count_q, count_k, part, first, padding, bias, keys, scale,
    k_n, D: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What WIDTH keys from `start` on add to the queries' gradient."""
    j = start + tl.arange(0, WIDTH)
    at = places(j, part, first, WINDOW)
    of_k = read(k, at, j < count_k, k_n, D, BLOCK_D)
    of_v = read(v, at, j < count_k, k_n, D, BLOCK_D)
    _, d_x = logits_gradient(
        block, upstream, log, delta, of_k, of_v, i, j, count_q, count_k, part, padding, bias, keys, scale, CAUSAL,
        MASKED, WINDOW, PRECISION,
    )  # fmt: skip
    return total + tl.dot(d_x.to(of_k.dtype), of_k, input_precision=PRECISION)


@triton.jit
def backward_kernel(
    q, k, v, grad, out, sums, d_q, d_k, d_v, padding, bias, cu_q, cu_k,
    q_b, q_n, q_h, k_b, k_n, k_h, dq_b, dq_n, dq_h, dk_b, dk_n, dk_h, queries, keys, tokens_q, tokens_k, scale,
    H: tl.constexpr, PARTS: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    TAIL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Programs along the second axis: blocks of keys, then blocks of queries."""
    s = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    sample = sample_of(cu_q, s, PARTS)
    part = s % PARTS
    first_q, count_q = extent(cu_q, s, queries, tokens_q)
    first_k, count_k = extent(cu_k, s, keys, tokens_k)
    q += sample * q_b + h * q_h
    k += sample * k_b + h * k_h
    v += sample * k_b + h * k_h
    results = sample * queries * PARTS * H + h
    grad += results * D
    out += results * D
    sums += results
    if padding is not None:
        padding += sample * keys
    if bias is not None:
        bias += h * queries * keys
    blocks = tl.cdiv(keys, BLOCK_N)
    if tl.program_id(1) < blocks:
        left = tl.program_id(1) * BLOCK_N
        j = left + tl.arange(0, BLOCK_N)
        columns = places(j, part, first_k, WINDOW)
        of_k = read(k, columns, j < count_k, k_n, D, BLOCK_D)
        of_v = read(v, columns, j < count_k, k_n, D, BLOCK_D)
        keyed = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        values = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        begin = 0
        if CAUSAL:
            begin = left // BLOCK_M * BLOCK_M
        last = tl.where(left < count_k, count_q, 0)
        for row in range(begin, last, BLOCK_M):
            ahead = row + tl.arange(0, BLOCK_M)
            tile, gradient, logs, deltas = queries_of(
                q, grad, out, sums, ahead, count_q, part, first_q, q_n, H, D, BLOCK_D, WINDOW
            )
            p, d_x = logits_gradient(
                tile, gradient, logs, deltas, of_k, of_v, ahead, j, count_q, count_k, part, padding, bias, keys, scale,
                CAUSAL, True, WINDOW, PRECISION,
            )  # fmt: skip
            values += tl.dot(tl.trans(p.to(gradient.dtype)), gradient, input_precision=PRECISION)
            keyed += tl.dot(tl.trans(d_x.to(tile.dtype)), tile, input_precision=PRECISION)
        write(d_k + sample * dk_b + h * dk_h, columns, j < count_k, dk_n, keyed * scale, D, BLOCK_D)
        write(d_v + sample * dk_b + h * dk_h, columns, j < count_k, dk_n, values, D, BLOCK_D)
    else:
        start = (tl.program_id(1) - blocks) * BLOCK_M
        i = start + tl.arange(0, BLOCK_M)
        block, upstream, log, delta = queries_of(
            q, grad, out, sums, i, count_q, part, first_q, q_n, H, D, BLOCK_D, WINDOW
        )
        total = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        stop = tl.where(start < count_q, count_k, 0)
        if CAUSAL:
            stop = tl.minimum(stop, start + BLOCK_M)
        if TAIL >= 0:
            stop = stop // BLOCK_N * BLOCK_N
        for column in range(0, stop, BLOCK_N):
            total = add_queries_gradient(
                total, block, upstream, log, delta, k, v, column, i, count_q, count_k, part, first_k, padding, bias,
                keys, scale, k_n, D, BLOCK_D, BLOCK_N, CAUSAL, TAIL < 0, WINDOW, PRECISION,
            )  # fmt: skip
        if TAIL > 0:
            total = add_queries_gradient(
                total, block, upstream, log, delta, k, v, stop, i, count_q, count_k, part, first_k, padding, bias,
                keys, scale, k_n, D, BLOCK_D, TAIL, CAUSAL, True, WINDOW, PRECISION,
            )  # fmt: skip
        at = places(i, part, first_q, WINDOW)
        write(d_q + sample * dq_b + h * dq_h, at, i < count_q, dq_n, total * scale, D, BLOCK_D)


@triton.jit
def bias_gradient_kernel(
    q, k, v, grad, out, sums, d_bias, padding, bias, q_b, q_n, q_h, k_b, k_n, k_h,
    queries, keys, scale, count, each, H: tl.constexpr, PARTS: tl.constexpr, D: tl.constexpr, CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of a head's logits in `each` sequences, one after the other: the sum of its gradient over them."""
    blocks = tl.cdiv(keys, BLOCK_N)
    tiles = tl.cdiv(queries, BLOCK_M) * blocks
    tile = tl.program_id(0) % tiles
    pair = tl.program_id(0) // tiles
    group = pair // H
    h = (pair % H).to(tl.int64)
    i = tile // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    bias += h * queries * keys
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in range(0, each):
        s = group * each + step
        rows = tl.where(s < count, queries, 0)  # the last group may have fewer
        columns = tl.where(s < count, keys, 0)
        sample = (s // PARTS).to(tl.int64)
        part = s % PARTS
        results = sample * queries * PARTS * H + h
        hidden = padding
        if padding is not None:
            hidden += sample * keys
        block, upstream, log, delta = queries_of(
            q + sample * q_b + h * q_h, grad + results * D, out + results * D, sums + results, i, rows, part, 0, q_n, H,
            D, BLOCK_D, WINDOW,
        )  # fmt: skip
        at = places(j, part, 0, WINDOW)
        of_k = read(k + sample * k_b + h * k_h, at, j < columns, k_n, D, BLOCK_D)
        of_v = read(v + sample * k_b + h * k_h, at, j < columns, k_n, D, BLOCK_D)
        _, d_x = logits_gradient(
            block, upstream, log, delta, of_k, of_v, i, j, rows, columns, part, hidden, bias, keys, scale, CAUSAL,
            True, WINDOW, PRECISION,
        )  # fmt: skip
        total += d_x
    at = pair.to(tl.int64) * queries * keys + i[:, None].to(tl.int64) * keys + j[None, :]
    tl.store(d_bias + at, total, mask=(i < queries)[:, None] & (j < keys)[None, :])


def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    key_padding: Tensor | None,
    bias: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    out: Tensor,
    sums: Tensor,
    max_q: int,
    max_k: int,
    causal: bool,
    window: list[int],
    scale: float,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q (or of all three in one), k, v and bias."""
    if not op.kernels_take(q):
        return op.attention_backward(
            grad, q, k, v, key_padding, bias, cu_seqlens_q, cu_seqlens_k, out, sums, max_q, max_k, causal, window,
            scale, needs_bias,
        )  # fmt: skip
    packed, longest = cu_seqlens_q is not None, max(max_q, max_k)
    gradients = op.empty_gradients(q, k, v, bias, needs_bias, packed)
    d_q, d_k, d_v = op.targets(gradients, k, packed)
    q, k, v = readable(*op.parts(q, k, v, packed))
    count, arguments = common(q, k, key_padding, bias, cu_seqlens_q, cu_seqlens_k, causal, window, scale)
    arguments |= {"q": q, "k": k, "v": v, "grad": grad.contiguous(), "queries": max_q, "keys": max_k}
    arguments |= strides(q=q, k=k)
    heads, targets = q.shape[2], {"d_q": d_q, "d_k": d_k, "d_v": d_v, **strides(dq=d_q, dk=d_k)}
    if longest <= one_tile(q.dtype, q.shape[-1]):
        config = configured("attention_one_tile_backward", q, longest)
        each, partials = shared_sequences(gradients[3], count, heads, 1)
        launch(
            one_tile_backward_kernel,
            (triton.cdiv(count, each) * heads,),
            config,
            **arguments,
            **targets,
            d_bias=partials,
            count=count,
            each=each,
        )
    else:
        config = configured("attention_backward", q, longest)
        down, across = triton.cdiv(max_q, config.blocks["BLOCK_M"]), triton.cdiv(max_k, config.blocks["BLOCK_N"])
        arguments |= {"out": out, "sums": sums}
        known = tail(config.blocks["BLOCK_N"], max_k, not packed and not causal)
        launch(backward_kernel, (count * heads, across + down), config, **arguments, **targets, TAIL=known)
        config = configured("attention_bias_gradient", q, longest)
        down, across = triton.cdiv(max_q, config.blocks["BLOCK_M"]), triton.cdiv(max_k, config.blocks["BLOCK_N"])
        each, partials = shared_sequences(gradients[3], count, heads, down * across)
        if partials is not None:
            for name in ("cu_q", "cu_k", "tokens_q", "tokens_k"):  # packed sequences have no bias
                del arguments[name]
            launch(
                bias_gradient_kernel,
                (triton.cdiv(count, each) * heads * down * across,),
                config,
                **arguments,
                d_bias=partials,
                count=count,
                each=each,
            )
    if partials is not None:
        torch.sum(partials, 0, out=gradients[3])
    return gradients


def shared_sequences(d_bias: Tensor, count: int, heads: int, tiles: int) -> tuple[int, Tensor | None]:
    """How many sequences a program takes one after the other, and the partial sums `[groups, *bias]` they make."""
    if not d_bias.numel():
        return 1, None
    groups = max(1, min(count, PROGRAMS // (heads * tiles), PARTIALS // d_bias.numel()))
    each = max(1, triton.cdiv(count, groups))
    return each, d_bias.new_empty(triton.cdiv(count, each), *d_bias.shape)
