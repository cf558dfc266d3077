"""Attention in Triton, forward: a program a sequence, head and block of queries, one softmax over the keys' tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.attention import op
from mmssl_kernels.attention.logits_triton import extent, finite, logits_of, places, read, sample_of, write
from mmssl_kernels.attention.problem import window_of
from mmssl_kernels.attention.vendors import adjacent
from mmssl_kernels.frame.launch import choose, launch, precision
from mmssl_kernels.tables import WIDEST_HEAD, Config


@triton.jit
def add_keys(
    q, k, v, acc, top, total, start, i, count_q, count_k, part, first, padding, bias, keys, scale, k_n,
    D: tl.constexpr, BLOCK_D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, MASKED: tl.constexpr, WINDOW: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What WIDTH keys from `start` on add to the queries' running result, largest logit and sum of exponentials."""
    j = start + tl.arange(0, WIDTH)
    at = places(j, part, first, WINDOW)
    inside = j < count_k
    tile = read(k, at, inside, k_n, D, BLOCK_D)
    x = logits_of(q, tile, i, j, count_q, count_k, part, padding, bias, keys, scale, CAUSAL, MASKED, WINDOW, PRECISION)
    larger = tl.maximum(top, tl.max(x, 1))
    p = tl.exp2(x - finite(larger)[:, None])
    shrink = tl.exp2(top - finite(larger))
    values = read(v, at, inside, k_n, D, BLOCK_D)
    acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, input_precision=PRECISION)
    return acc, larger, total * shrink + tl.sum(p, 1)


@triton.jit
def attention_kernel(
    q, k, v, out, sums, padding, bias, cu_q, cu_k, q_b, q_n, q_h, k_b, k_n, k_h,
    queries, keys, tokens_q, tokens_k, scale, H: tl.constexpr, PARTS: tl.constexpr, D: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, TAIL: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """TAIL: the keys' last tile is so wide and those before it are whole; -1 where none is known to be."""
    s = tl.program_id(0) // H
    h = (tl.program_id(0) % H).to(tl.int64)
    sample = sample_of(cu_q, s, PARTS)
    part = s % PARTS
    first_q, count_q = extent(cu_q, s, queries, tokens_q)
    first_k, count_k = extent(cu_k, s, keys, tokens_k)
    start = tl.program_id(1) * BLOCK_M
    i = start + tl.arange(0, BLOCK_M)
    at = places(i, part, first_q, WINDOW)
    block = read(q + sample * q_b + h * q_h, at, i < count_q, q_n, D, BLOCK_D)
    k += sample * k_b + h * k_h
    v += sample * k_b + h * k_h
    if padding is not None:
        padding += sample * keys
    if bias is not None:
        bias += h * queries * keys
    stop = tl.where(start < count_q, count_k, 0)
    if CAUSAL:
        stop = tl.minimum(stop, start + BLOCK_M)
    if TAIL >= 0:
        stop = stop // BLOCK_N * BLOCK_N
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for begin in range(0, stop, BLOCK_N):
        acc, top, total = add_keys(
            block, k, v, acc, top, total, begin, i, count_q, count_k, part, first_k, padding, bias, keys, scale, k_n,
            D, BLOCK_D, BLOCK_N, CAUSAL, TAIL < 0, WINDOW, PRECISION,
        )  # fmt: skip
    if TAIL > 0:
        acc, top, total = add_keys(
            block, k, v, acc, top, total, stop, i, count_q, count_k, part, first_k, padding, bias, keys, scale, k_n,
            D, BLOCK_D, TAIL, CAUSAL, True, WINDOW, PRECISION,
        )  # fmt: skip
    sees = total > 0
    acc = acc / tl.where(sees, total, 1.0)[:, None]
    results = sample * queries * PARTS * H + h
    write(out + results * D, at, i < count_q, H * D, acc, D, BLOCK_D)
    if sums is not None:
        log = tl.where(sees, top + tl.log2(tl.where(sees, total, 1.0)), 0.0)
        tl.store(sums + results + at * H, log, mask=i < count_q)


def configured(name: str, q: Tensor, longest: int) -> Config:
    """The row of the table for these operands."""
    return choose(f"{name}_{64 if q.shape[-1] <= 64 else WIDEST_HEAD}", q.device, longest)


def tail(width: int, keys: int, known: bool) -> int:
    """How wide the last tile of keys is where those before it are whole, 0 where all are; -1 where none need be."""
    if not known:
        return -1
    rest = keys % width
    return max(16, triton.next_power_of_2(rest)) if rest else 0


def strides(**tensors: Tensor) -> dict[str, int]:
    """Of samples, tokens and heads, `x_b`, `x_n` and `x_h` of a tensor called x."""
    found: dict[str, int] = {}
    for name, tensor in tensors.items():
        found |= {f"{name}_{axis}": tensor.stride(place) for place, axis in enumerate("bnh")}
    return found


def readable(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """With the numbers of a head side by side, which are read as words, and one set of strides for keys and values."""
    if k.stride() != v.stride() or k.stride(-1) != 1:
        k, v = k.contiguous(), v.contiguous()
    return adjacent(q), k, v


def common(
    q: Tensor,
    k: Tensor,
    key_padding: Tensor | None,
    bias: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    causal: bool,
    window: list[int],
    scale: float,
) -> tuple[int, dict[str, Any]]:
    """The number of sequences, and the arguments that forward and backward share. q and k are `[B, N, H, D]`."""
    local = window_of(window)
    parts = 1 if local is None else local.count
    count = len(q) * parts if cu_seqlens_q is None else len(cu_seqlens_q) - 1
    arguments = {
        "padding": None if key_padding is None else key_padding.contiguous().view(torch.uint8),
        "bias": None if bias is None else bias.contiguous(),
        "cu_q": None if cu_seqlens_q is None else cu_seqlens_q.contiguous(),
        "cu_k": None if cu_seqlens_k is None else cu_seqlens_k.contiguous(),
        "tokens_q": q.shape[1],
        "tokens_k": k.shape[1],
        "scale": scale,
        "H": q.shape[2],
        "PARTS": parts,
        "D": q.shape[3],
        "BLOCK_D": max(16, triton.next_power_of_2(q.shape[3])),
        "CAUSAL": causal,
        "WINDOW": None if local is None else tuple(window),
        "PRECISION": precision(q.dtype),
    }
    return count, arguments


def attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    key_padding: Tensor | None,
    bias: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_q: int,
    max_k: int,
    causal: bool,
    window: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The result, and the rows' log-sum-exps in base 2 where backward will want them."""
    if not op.kernels_take(q):
        return op.attention(q, k, v, key_padding, bias, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, window, scale)
    packed = cu_seqlens_q is not None
    out, sums = op.outputs(q, k, max(max_q, max_k), triton=True, packed=packed)
    q, k, v = readable(*op.parts(q, k, v, packed))
    count, arguments = common(q, k, key_padding, bias, cu_seqlens_q, cu_seqlens_k, causal, window, scale)
    config = configured("attention", q, max(max_q, max_k))
    launch(
        attention_kernel,
        (count * q.shape[2], triton.cdiv(max_q, config.blocks["BLOCK_M"])),
        config,
        q=q,
        k=k,
        v=v,
        out=out,
        sums=sums if sums.numel() else None,
        **strides(q=q, k=k),
        **arguments,
        queries=max_q,
        keys=max_k,
        TAIL=tail(config.blocks["BLOCK_N"], max_k, not packed and not causal),
    )
    return out, sums
