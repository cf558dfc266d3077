"""Others' attention behind our layout: one named backend of torch's SDPA at a time, and xformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from mmssl_kernels.attention.choice import Implementation

BACKENDS: dict[Implementation, SDPBackend] = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa(
    name: Implementation,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_padding: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
) -> Tensor:
    """`[B, N, H, D]` of the same layout. With one backend allowed torch raises where it would take the math path."""
    mask = None if bias is None else bias[None]
    if key_padding is not None:
        mask = ~key_padding[:, None, None]
    q, k, v = (aligned(each).transpose(1, 2) for each in (q, k, v))
    with sdpa_kernel(BACKENDS[name]):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2)


def xformers(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, scale: float
) -> Tensor | None:
    """Packed sequences `[total, H, D]`, each attending to the keys of its number. None where one is empty, or
    where tokens belong to none.
    """
    queries, keys = lengths(cu_seqlens_q), lengths(cu_seqlens_k)
    if not (all(queries) and all(keys) and sum(queries) == len(q) and sum(keys) == len(k)):
        return None
    from xformers.ops import fmha, memory_efficient_attention

    blocks = fmha.BlockDiagonalMask.from_seqlens(queries, keys, device=q.device)
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=blocks, scale=scale)[0]


def adjacent(x: Tensor) -> Tensor:
    """With the numbers of a head side by side, which every kernel needs."""
    return x if x.stride(-1) == 1 else x.contiguous()


def aligned(x: Tensor) -> Tensor:
    """On a GPU every head begins at a multiple of 16 bytes, too, which torch's kernels insist on."""
    x = adjacent(x)
    # the compiler sees to that itself, and has no offsets to ask for
    if not x.is_cuda or torch.compiler.is_compiling():
        return x
    starts = (x.storage_offset(), *x.stride()[:-1])
    return x if all(n * x.element_size() % 16 == 0 for n in starts) else x.clone(memory_format=torch.contiguous_format)


_known: Any = WeakTensorKeyDictionary()


def lengths(offsets: Tensor) -> list[int]:
    """On the host, where xformers wants them: fetched once for a tensor of offsets, which all layers share."""
    if offsets.is_inference():  # whether it changes in place is not kept for these
        return offsets.diff().tolist()
    version, found = _known.get(offsets, (None, []))
    if version != offsets._version:
        found = offsets.diff().tolist()
        _known[offsets] = offsets._version, found
    return found
