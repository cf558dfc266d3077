"""Attention for short sequences of visible tokens."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def attention(
    q: Float[Tensor, "batch queries heads head_dim"],
    k: Float[Tensor, "batch keys heads head_dim"],
    v: Float[Tensor, "batch keys heads head_dim"],
    *,
    causal: bool = False,
    key_lengths: Int64[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch queries heads head_dim"]:
    """softmax(q k^T / sqrt(head_dim)) v for each head (Vaswani et al. 2017, equation 1).

    causal: a query sees the keys up to its own position. key_lengths: valid keys of each sample, padding after them;
    a sample without any valid key gives zeros.
    """
    if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or k.shape != v.shape:
        raise ValueError(f"queries {tuple(q.shape)}, keys {tuple(k.shape)} and values {tuple(v.shape)} do not fit")
    allowed = None
    if key_lengths is not None:
        keys = torch.arange(k.shape[1], device=k.device)
        allowed = (keys < key_lengths[:, None])[:, None, None]
        if causal:
            allowed = allowed & (keys <= torch.arange(q.shape[1], device=k.device)[:, None])
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, is_causal=causal and allowed is None)
    return out.transpose(1, 2)


def attention_qkvpacked(
    qkv: Float[Tensor, "batch tokens 3 heads head_dim"],
    *,
    causal: bool = False,
    key_lengths: Int64[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """`attention` of a sequence with itself, from one tensor that holds queries, keys and values."""
    q, k, v = qkv.unbind(2)
    return attention(q, k, v, causal=causal, key_lengths=key_lengths)
