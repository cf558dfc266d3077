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
    mask = None if bias is None else bias.to(q.dtype)[None]
    if key_padding is not None:
        mask = ~key_padding[:, None, None]
    q, k, v = (each.transpose(1, 2) for each in (q, k, v))
    with sdpa_kernel(BACKENDS[name]):
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return out.transpose(1, 2)


def xformers(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, scale: float
) -> Tensor:
    """Packed sequences `[total, H, D]`, each attending to the keys of its number."""
    from xformers.ops import fmha, memory_efficient_attention

    blocks = fmha.BlockDiagonalMask.from_seqlens(_lengths(cu_seqlens_q), _lengths(cu_seqlens_k), device=q.device)
    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=blocks, scale=scale)[0]


_known: Any = WeakTensorKeyDictionary()


def _lengths(offsets: Tensor) -> list[int]:
    """On the host, where xformers wants them: fetched once for a tensor of offsets, which all layers share."""
    version, lengths = _known.get(offsets, (None, []))
    if version != offsets._version:
        lengths = offsets.diff().tolist()
        _known[offsets] = offsets._version, lengths
    return lengths
