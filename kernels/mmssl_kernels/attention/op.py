"""Registration of our own attention: one op, its gradient, the PyTorch path on one side and Triton on the other.

`k` and `v` are None where `q` holds all three, `[..., N, 3, H, D]`: gradients then come as one tensor, too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmssl_kernels.attention import blocks
from mmssl_kernels.attention.problem import window_of
from mmssl_kernels.frame import op
from mmssl_kernels.frame.dispatch import backend, values_are_checked
from mmssl_kernels.tables import WIDEST_HEAD, one_tile

TRITON, BACKWARD = "mmssl_kernels.attention.attention_triton", "mmssl_kernels.attention.backward_triton"


def parts(q: Tensor, k: Tensor | None, v: Tensor | None, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, `[B, N, H, D]`; packed sequences are one sample of all tokens."""
    if k is None or v is None:
        q, k, v = q.unbind(-3)
    return (q[None], k[None], v[None]) if packed else (q, k, v)


def kernels_take(q: Tensor) -> bool:
    """Whether the Triton kernels are made for these operands; what they are not takes the PyTorch path.

    On a GPU that is 16-bit numbers: float32 products without tensor cores would keep whole heads in registers.
    """
    return q.shape[-1] <= WIDEST_HEAD and (not q.is_cuda or q.dtype in (torch.float16, torch.bfloat16))


def out_shape(q: Tensor, k: Tensor | None) -> tuple[int | torch.SymInt, ...]:
    """Of the result."""
    return tuple(q.shape) if k is not None else (*q.shape[:-3], *q.shape[-2:])


def to_fill(like: Tensor, shape: Any, in_part: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Unwritten; zeros where only a part may be filled: some tokens of packed sequences may belong to none."""
    return (like.new_zeros if in_part else like.new_empty)(shape, dtype=dtype)


def outputs(q: Tensor, k: Tensor | None, longest: int, triton: bool, packed: bool) -> tuple[Tensor, Tensor]:
    """To be filled: the result, and the rows' log-sum-exps; of these there are none on the PyTorch path, and none where
    a sequence is one tile: backward does without.
    """
    shape = out_shape(q, k)
    of_rows = shape[:-1] if triton and longest > one_tile(q.dtype, q.shape[-1]) else (0,)
    return to_fill(q, shape, packed), to_fill(q, of_rows, packed, torch.float32)


def empty_gradients(
    q: Tensor, k: Tensor | None, v: Tensor | None, bias: Tensor | None, needs_bias: bool, in_part: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of q, k, v and bias: to be filled, of no size where there is nothing or no need; the bias's is float32, zeros."""
    d_q, d_k, d_v = (to_fill(q, (0,) if each is None else each.shape, in_part) for each in (q, k, v))
    exact = torch.promote_types(q.dtype, torch.float32)
    shape = bias.shape if bias is not None and needs_bias else (0,)
    return d_q, d_k, d_v, q.new_zeros(shape, dtype=exact)


def targets(gradients: tuple[Tensor, ...], k: Tensor | None, packed: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Where the gradients of queries, keys and values are written: `parts` of those that are returned."""
    d_q, d_k, d_v, _ = gradients
    return parts(d_q, None if k is None else d_k, None if k is None else d_v, packed)


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
    """The PyTorch path: the result, and no statistics."""
    packed = cu_seqlens_q is not None
    out, sums = outputs(q, k, max(max_q, max_k), triton=False, packed=packed)
    call = blocks.Call(
        key_padding, bias, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, window_of(window), scale, q.device
    )
    blocks.attend(*parts(q, k, v, packed), out[None] if packed else out, call)
    return out, sums


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
    """The PyTorch path: gradients of q (or of all three in one), k, v and bias."""
    packed = cu_seqlens_q is not None
    gradients = empty_gradients(q, k, v, bias, needs_bias, packed or not max_q)  # keys without queries
    call = blocks.Call(
        key_padding, bias, cu_seqlens_q, cu_seqlens_k, max_q, max_k, causal, window_of(window), scale, q.device
    )
    blocks.attend_backward(
        grad[None] if packed else grad, *parts(q, k, v, packed), targets(gradients, k, packed), gradients[3], call
    )
    return gradients


def check_offsets(*arguments: Any) -> None:
    """Raises ValueError for offsets that do not make sequences of the tokens, no longer than they are said to be."""
    q, k, *_ = arguments
    cu_seqlens_q, cu_seqlens_k, max_q, max_k = arguments[5:9]
    if cu_seqlens_q is None or not values_are_checked(cu_seqlens_q):
        return
    for name, offsets, total, longest in (
        ("cu_seqlens_q", cu_seqlens_q, len(q), max_q),
        ("cu_seqlens_k", cu_seqlens_k, len(q if k is None else k), max_k),
    ):
        lengths = offsets.diff()
        if int(offsets[0]) != 0 or int(offsets[-1]) > total or bool((lengths < 0).any()):
            raise ValueError(f"{name} must rise from 0 and stay within {total} tokens, got {offsets.tolist()[:8]}...")
        if lengths.numel() and int(lengths.max()) > longest:
            raise ValueError(f"{name} has a sequence of {int(lengths.max())} tokens, more than the {longest} stated")


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_q, ctx.max_k, ctx.causal, ctx.window, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 12
    _, k, v, _, bias, *_ = tensors = ctx.saved_tensors
    settings = ctx.max_q, ctx.max_k, ctx.causal, list(ctx.window), ctx.scale
    found = attention_backward_op(grad, *tensors, *settings, bool(ctx.needs_input_grad[4]))
    d_q, d_k, d_v, d_bias = found
    of_bias = d_bias.to(bias.dtype) if bias is not None and ctx.needs_input_grad[4] else None
    return d_q, None if k is None else d_k, None if v is None else d_v, None, of_bias, *([None] * 7)


_tensors = (
    "Tensor q, Tensor? k, Tensor? v, Tensor? key_padding, Tensor? bias, Tensor? cu_seqlens_q, Tensor? cu_seqlens_k"
)
_settings = "SymInt max_q, SymInt max_k, bool causal, int[] window, float scale"
attention_op = op.define(
    "attention",
    f"({_tensors}, {_settings}) -> (Tensor, Tensor)",
    attention,
    TRITON,
    fake=lambda q, k, v, key_padding, bias, cu_q, cu_k, max_q, max_k, *rest: outputs(
        q, k, max(max_q, max_k), backend([q]) == "triton" and kernels_take(q), cu_q is not None
    ),
    check=check_offsets,
)
attention_backward_op = op.define(
    "attention_backward",
    f"(Tensor grad, {_tensors}, Tensor out, Tensor sums, {_settings}, bool needs_bias) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    attention_backward,
    BACKWARD,
    fake=lambda grad, q, k, v, key_padding, bias, cu_q, *rest: empty_gradients(
        q, k, v, bias, rest[-1], cu_q is not None
    ),
)
attention_op.register_autograd(_differentiate, setup_context=_save)
op.autocast(attention_op, "q", "k", "v")
