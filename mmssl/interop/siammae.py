"""SiamMAE: the public CropMAE files (alexandre-eymael/CropMAE); SiamMAE's authors published none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.errors import UserError
from mmssl.interop import mae, vit
from mmssl.interop.forms import Form, Found
from mmssl.interop.parts import Size, depth, layer
from mmssl.interop.rules import KeyMap, Rule, State

_OURS, _THEIRS = "decoder.transformer.blocks.{i}", "decoder_blocks.{i}"

CROPMAE: KeyMap = (
    *vit.timm_vit("encoder."),
    *mae.AUTHORS_DECODER,
    # torch's MultiheadAttention: queries, keys and values in one tensor, of which our cross-attention parts the queries
    *(
        rule
        for part in ("weight", "bias")
        for rule in (
            Rule((f"{_OURS}.attn.layer.qkv.{part}",), (f"{_THEIRS}.self_attn.in_proj_{part}",)),
            Rule(
                (f"{_OURS}.cross.layer.q.{part}", f"{_OURS}.cross.layer.kv.{part}"),
                (f"{_THEIRS}.multihead_attn.in_proj_{part}",),
                "split",
            ),
        )
    ),
    *layer(f"{_OURS}.attn.layer.proj", f"{_THEIRS}.self_attn.out_proj"),
    *layer(f"{_OURS}.cross.layer.proj", f"{_THEIRS}.multihead_attn.out_proj"),
    *layer(f"{_OURS}.mlp.layer.fc1", f"{_THEIRS}.linear1"),
    *layer(f"{_OURS}.mlp.layer.fc2", f"{_THEIRS}.linear2"),
    *layer(f"{_OURS}.attn.norm", f"{_THEIRS}.norm1"),
    *layer(f"{_OURS}.cross.norm", f"{_THEIRS}.norm2"),
    *layer(f"{_OURS}.mlp.norm", f"{_THEIRS}.norm3"),
)


def decoder_settings(dim: int = 256, depth: int = 4, heads: int = 8, hidden: int = 2048) -> dict[str, Any]:
    """DecoderConfig's settings: post-norm, the MLP between both attentions, no positions on the past frame. Their
    dropout of 0.1 in training is left out."""
    blocks = {"dim": dim, "depth": depth, "heads": heads, "hidden": hidden}
    order = {"norm_order": "post", "branches": ("cross", "mlp", "attn")}
    return {"transformer": blocks | order, "context_position": False}


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    size: Size = None,
) -> Found:
    """Heads are CropMAE's for the width: 64 channels each in the encoder; in a decoder of 256 channels 8 of them, in
    wider ones 16."""
    if "decoder_blocks.0.multihead_attn.in_proj_weight" not in state:
        raise UserError(f"{source}: not a file of CropMAE; it lacks decoder_blocks.0.multihead_attn.in_proj_weight")
    dim, hidden = len(state["decoder_embed.weight"]), len(state["decoder_blocks.0.linear1.weight"])
    decoder = decoder_settings(dim, depth(state, "decoder_blocks."), decoder_heads or (8 if dim == 256 else 16), hidden)
    encoder = vit.official_settings(state, source, heads, 1e-6, size)
    return Found({"encoder": encoder, "decoder": decoder}, CROPMAE, state)


FORMS = (Form("SiamMAE", "official", "CropMAE's files", lambda _, state: True, read_official),)
