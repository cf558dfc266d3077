"""softmax(q k^T) v for the short, odd-sized sequences of masked pretraining: the public calls."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mmssl_kernels.attention import choice, vendors
from mmssl_kernels.attention.choice import Explanation
from mmssl_kernels.attention.op import attention_op
from mmssl_kernels.attention.problem import Problem, Window
from mmssl_kernels.frame import checks, op
from mmssl_kernels.frame.dispatch import backend, wanted
from mmssl_kernels.tables import FAMILIES

OFFSETS = (torch.int32, torch.int64)


def attention(
    q: Float[Tensor, "*batch queries heads head_dim"],
    k: Float[Tensor, "*batch keys heads head_dim"],
    v: Float[Tensor, "*batch keys heads head_dim"],
    *,
    causal: bool = False,
    key_padding: Bool[Tensor, "batch keys"] | None = None,
    cu_seqlens_q: Int[Tensor, " offsets"] | None = None,
    cu_seqlens_k: Int[Tensor, " offsets"] | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    window: Window | None = None,
    bias: Float[Tensor, "heads rows columns"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch queries heads head_dim"]:
    """softmax(scale q k^T + bias) v for each head (Vaswani et al. 2017, equation 1); scale is 1 / sqrt(head_dim).

    q `[B, Nq, H, D]`, k and v `[B, Nk, H, D]`, of one floating-point dtype and any strides. A query without any key to
    see gives zeros.

    causal: a query sees the keys up to its own position. key_padding: True where a key is padding, as in
    torch.nn.MultiheadAttention. bias: added to the logits of every sample, `[H, Nq, Nk]`, of a window
    `[H, tokens, tokens]`; it gets its gradient and may be float32 beside 16-bit queries. -inf hides a pair.
    window: tokens are a grid, each sees those of its own window.
    cu_seqlens_q, cu_seqlens_k: packed sequences: q is `[total, H, D]` and sequence s has rows cu_seqlens_q[s] to
    cu_seqlens_q[s + 1]; int32 or int64 `[S + 1]` on q's device, the keys' default to the queries'. max_q and max_k, the
    longest lengths, are needed then, so that the kernels need not wait for the device. (xformers and the PyTorch path
    want every length: xformers' are fetched once for a tensor of offsets.) Tokens after the last offset belong to no
    sequence (a buffer of a fixed size): they are not read, their results and gradients are zeros. A sequence that is
    longer than max_q or max_k is an error; where nobody checks (on a GPU without MMSSL_DEBUG) its end belongs to none,
    too, but for xformers, which goes by the offsets alone.

    Who computes it is chosen by device and shape: see `explain_attention`. Never are all logits in memory together.
    There is no dropout on the probabilities, and there are no second derivatives. Raises ValueError naming both shapes
    where sizes, devices or settings do not fit, TypeError for other dtypes.
    """
    checks.dtype(checks.FLOATS, q=q, k=k, v=v, bias=bias)
    if cu_seqlens_q is None and any(each is not None for each in (cu_seqlens_k, max_q, max_k)):
        raise ValueError("cu_seqlens_k, max_q and max_k belong to packed sequences: cu_seqlens_q is missing")
    q, k, v = op.lowered(q), op.lowered(k), op.lowered(v)
    checks.dtype((q.dtype,), k=k, v=v)
    packed, axes = cu_seqlens_q is not None, 3 if cu_seqlens_q is not None else 4
    form = "(total, heads, head_dim)" if packed else "(B, N, heads, head_dim)"
    if not q.ndim == k.ndim == v.ndim == axes or q.shape[-2:] != k.shape[-2:] or k.shape != v.shape or (
        not packed and q.shape[0] != k.shape[0]
    ):  # fmt: skip
        raise ValueError(
            f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit: expected {form}, "
            "alike but for the number of queries"
        )
    return _attention((q, k, v), causal, key_padding, cu_seqlens_q, cu_seqlens_k, max_q, max_k, window, bias, scale)


def attention_qkvpacked(
    qkv: Float[Tensor, "*batch tokens 3 heads head_dim"],
    *,
    causal: bool = False,
    key_padding: Bool[Tensor, "batch tokens"] | None = None,
    cu_seqlens: Int[Tensor, " offsets"] | None = None,
    max_seqlen: int | None = None,
    window: Window | None = None,
    bias: Float[Tensor, "heads rows columns"] | None = None,
    scale: float | None = None,
) -> Float[Tensor, "*batch tokens heads head_dim"]:
    """`attention` of sequences with themselves, from one tensor `[B, N, 3, H, D]` that holds queries, keys and values.

    Our own code reads it in place and writes its gradient as one tensor; others get views. Packed sequences are
    `[total, 3, H, D]` with cu_seqlens and max_seqlen. Everything else is as in `attention`, errors too.
    """
    checks.dtype(checks.FLOATS, qkv=qkv, bias=bias)
    if cu_seqlens is None and max_seqlen is not None:
        raise ValueError("max_seqlen belongs to packed sequences: cu_seqlens is missing")
    axes = 5 if cu_seqlens is None else 4
    if qkv.ndim != axes or qkv.shape[-3] != 3:
        form = "(B, N, 3, heads, head_dim)" if cu_seqlens is None else "(total, 3, heads, head_dim)"
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}, expected {form}")
    return _attention(
        (op.lowered(qkv),), causal, key_padding, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, window, bias, scale
    )


def _attention(
    operands: tuple[Tensor, ...],
    causal: bool,
    key_padding: Tensor | None,
    cu_seqlens_q: Tensor | None,
    cu_seqlens_k: Tensor | None,
    max_q: int | None,
    max_k: int | None,
    window: Window | None,
    bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """Operands are (q, k, v), or (qkv,)."""
    q, k, v = operands if len(operands) == 3 else operands[0].unbind(-3)
    heads, head_dim = q.shape[-2:]
    if not heads or not head_dim:
        raise ValueError(f"queries of shape {tuple(q.shape)} have no heads, or heads of no size")
    scale = head_dim**-0.5 if scale is None else scale
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    max_k = max_q if max_k is None else max_k
    checks.same_device(
        q=q, k=k, v=v, key_padding=key_padding, bias=bias, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
    )
    if cu_seqlens_q is not None and cu_seqlens_k is not None:
        _check_packed(q, k, cu_seqlens_q, cu_seqlens_k, max_q, max_k, key_padding, window, bias)
        queries, keys = max_q or 0, max_k or 0
    else:
        queries, keys = q.shape[1], k.shape[1]
        if window is not None:
            _check_window(q, k, window, causal, key_padding)
            queries = keys = window.tokens
    if key_padding is not None:
        checks.dtype((torch.bool,), key_padding=key_padding)
        checks.shape((k.shape[0], k.shape[1]), f"keys have shape {tuple(k.shape)}", key_padding=key_padding)
    if bias is not None:
        because = f"queries have shape {tuple(q.shape)}, keys {tuple(k.shape)}"
        if window is not None:
            because = f"{heads} heads, windows of {window.tokens} tokens"
        checks.shape((heads, queries, keys), because, bias=bias)
        if bias.dtype == torch.float64 != q.dtype:
            bias = bias.float()  # as exact as the logits it is added to
    learns = torch.is_grad_enabled() and bias is not None and bias.requires_grad
    problem = Problem(
        choice.place_of(q.device),
        q.dtype,
        queries,
        keys,
        head_dim,
        causal=causal,
        padding=key_padding is not None,
        packed=cu_seqlens_q is not None,
        windowed=window is not None,
        bias=bias is not None,
        bias_gradient=learns,
        exact_bias=bias is not None and bias.dtype != q.dtype,
        positive=scale > 0,
        gradient=learns or (torch.is_grad_enabled() and any(each.requires_grad for each in operands)),
        deterministic=torch.are_deterministic_algorithms_enabled(),
        triton=backend([q]) == "triton",
        forced=choice.forced(),
    )
    chosen = choice.choose(problem)
    if chosen == "xformers" and cu_seqlens_q is not None and cu_seqlens_k is not None:
        found = vendors.xformers(q, k, v, cu_seqlens_q, cu_seqlens_k, scale)
        if found is not None:
            return found
    if chosen in choice.SDPA:
        return vendors.sdpa(chosen, q, k, v, key_padding, bias, causal, scale)
    tensors = (*operands, *([None] * (3 - len(operands))), key_padding, bias, cu_seqlens_q, cu_seqlens_k)
    numbers = [] if window is None else window.numbers()
    out, _ = attention_op(*tensors, queries, keys, causal, numbers, scale)
    return out


def _check_window(q: Tensor, k: Tensor, window: Window, causal: bool, key_padding: Tensor | None) -> None:
    tokens = window.grid[0] * window.grid[1]
    if q.shape[1] != tokens or k.shape[1] != tokens:
        raise ValueError(
            f"queries {tuple(q.shape)} and keys {tuple(k.shape)}: a grid of {window.grid} has {tokens} tokens each"
        )
    if causal or key_padding is not None:
        raise ValueError("windows go with neither causal nor key_padding")


def _check_packed(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int | None,
    max_k: int | None,
    key_padding: Tensor | None,
    window: Window | None,
    bias: Tensor | None,
) -> None:
    checks.dtype(OFFSETS, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    if cu_seqlens_q.ndim != 1 or cu_seqlens_q.shape != cu_seqlens_k.shape or not len(cu_seqlens_q):
        raise ValueError(
            f"cu_seqlens_q has shape {tuple(cu_seqlens_q.shape)} and cu_seqlens_k {tuple(cu_seqlens_k.shape)}, "
            "expected one more offset than there are sequences in both"
        )
    if max_q is None or max_k is None:
        raise ValueError(
            "packed sequences need max_q and max_k (max_seqlen), the longest lengths: reading them off would wait"
        )
    if cu_seqlens_k is cu_seqlens_q and len(q) != len(k):
        raise ValueError(f"queries {tuple(q.shape)} and keys {tuple(k.shape)} differ in number: cu_seqlens_k is needed")
    if key_padding is not None or window is not None or bias is not None:
        raise ValueError("packed sequences go with neither key_padding nor window nor bias")


def explain_attention(
    q: tuple[int, ...],
    k: tuple[int, ...] | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    device: str | torch.device | None = None,
    causal: bool = False,
    key_padding: bool = False,
    packed: bool = False,
    window: Window | None = None,
    bias: bool = False,
    gradient: bool = True,
) -> Explanation:
    """Who would compute `attention`, why, and whether its backward is deterministic; printed, it is one line.

    q, k: shapes `(B, N, H, D)`, k's is q's by default; of packed sequences N is the longest length, and where one is
    empty or tokens are left over, which xformers forbids, it is ours. device: one that is here (the GPU, where there is
    one), or the name of a family that is not: sm_80, sm_90, sm_100, gfx942. gradient: whether q, k and v, and a bias,
    want theirs; a bias is taken to have their dtype. torch.use_deterministic_algorithms and MMSSL_KERNELS count as in
    the call itself.
    """
    k = q if k is None else k
    if len(q) != 4 or len(k) != 4 or q[2:] != k[2:]:
        raise ValueError(f"queries {q} and keys {k}: expected (B, N, heads, head_dim), alike but for N")
    if dtype not in checks.FLOATS:
        raise TypeError(f"dtype {dtype} is not a floating-point one")
    if (window is not None and (causal or key_padding or packed)) or (packed and (key_padding or bias)):
        raise ValueError("windows go with neither causal nor key_padding, packed ones not with a bias either")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elsewhere = str(device) in FAMILIES
    place = str(device) if elsewhere else choice.place_of(torch.device(device))
    problem = Problem(
        place,
        dtype,
        q[1] if window is None else window.tokens,
        k[1] if window is None else window.tokens,
        q[3],
        causal=causal,
        padding=key_padding,
        packed=packed,
        windowed=window is not None,
        bias=bias,
        bias_gradient=bias and gradient,
        gradient=gradient,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        triton=wanted(place not in ("cpu", "other")) and dtype != torch.float64,
        forced=choice.forced(),
    )
    return choice.explain(problem)


def attention_weights(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys heads head_dim"],
    *,
    scale: float | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """softmax(scale q k^T) itself, all of it, for pictures of what few queries look at; in float32 at least."""
    exact = torch.promote_types(q.dtype, torch.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return torch.einsum("bqhd,bkhd->bhqk", q.to(exact) * scale, k.to(exact)).softmax(-1)
