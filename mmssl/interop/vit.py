"""Key maps of ViT encoders and MAE: the authors' files (and timm, which kept their names) and transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmssl.interop.rules import KeyMap, Rule


def _layer(ours: str, theirs: str) -> KeyMap:
    """Weight and bias of one layer."""
    return tuple(Rule((f"{ours}.{part}",), (f"{theirs}.{part}",)) for part in ("weight", "bias"))


def _timm_blocks(ours: str, theirs: str) -> KeyMap:
    pairs = (
        ("attn.norm", "norm1"),
        ("attn.layer.qkv", "attn.qkv"),
        ("attn.layer.proj", "attn.proj"),
        ("mlp.norm", "norm2"),
        ("mlp.layer.fc1", "mlp.fc1"),
        ("mlp.layer.fc2", "mlp.fc2"),
    )
    return tuple(rule for a, b in pairs for rule in _layer(f"{ours}.{{i}}.{a}", f"{theirs}.{{i}}.{b}"))


def _transformers_blocks(ours: str, theirs: str) -> KeyMap:
    pairs = (
        ("attn.norm", "layernorm_before"),
        ("attn.layer.proj", "attention.output.dense"),
        ("mlp.norm", "layernorm_after"),
        ("mlp.layer.fc1", "intermediate.dense"),
        ("mlp.layer.fc2", "output.dense"),
    )
    rules = tuple(rule for a, b in pairs for rule in _layer(f"{ours}.{{i}}.{a}", f"{theirs}.{{i}}.{b}"))
    heads = ("query", "key", "value")
    packed = tuple(
        Rule(
            (f"{ours}.{{i}}.attn.layer.qkv.{part}",),
            tuple(f"{theirs}.{{i}}.attention.attention.{head}.{part}" for head in heads),
            "rows",
        )
        for part in ("weight", "bias")
    )
    return rules + packed


def _embeddings(ours: str, cls: str, position: str, projection: str) -> KeyMap:
    return (
        Rule((f"{ours}prefix_tokens",), (cls,), "shape", (1, 1, -1)),
        Rule((f"{ours}prefix_position", f"{ours}tokenizers.image.position.table"), (position,), "position"),
        Rule((f"{ours}tokenizers.image.weight",), (f"{projection}.weight",), "conv"),
        Rule((f"{ours}tokenizers.image.bias",), (f"{projection}.bias",)),
    )


def _decoder(embed: str, mask_token: str, position: str, norm: str, pred: str) -> KeyMap:
    return (
        *_layer("decoder.embed", embed),
        Rule(("decoder.mask_token",), (mask_token,), "shape", (1, 1, -1)),
        Rule(("decoder.prefix_position", "decoder.position.table"), (position,), "position"),
        *_layer("decoder.transformer.final_norm", norm),
        *_layer("decoder.pred", pred),
    )


def timm_vit(ours: str = "") -> KeyMap:
    """An encoder under `ours` against timm's ViT, whose names the authors' MAE files share; fine-tuned files too."""
    optional = [*_layer(f"{ours}transformer.final_norm", "norm"), *_layer(f"{ours}pool_norm", "fc_norm")]
    optional += _layer(f"{ours}head", "head")
    return (
        *_embeddings(ours, "cls_token", "pos_embed", "patch_embed.proj"),
        *_timm_blocks(f"{ours}transformer.blocks", "blocks"),
        *(Rule(rule.ours, rule.theirs, optional=True) for rule in optional),
    )


AUTHORS_MAE: KeyMap = (
    *timm_vit("encoder."),
    *_decoder("decoder_embed", "mask_token", "decoder_pos_embed", "decoder_norm", "decoder_pred"),
    *_timm_blocks("decoder.transformer.blocks", "decoder_blocks"),
)


def transformers_vit(ours: str = "", theirs: str = "") -> KeyMap:
    """An encoder under `ours` against transformers' ViTModel under `theirs`, in the names of hub files."""
    embeddings = f"{theirs}embeddings."
    return (
        *_embeddings(
            ours,
            f"{embeddings}cls_token",
            f"{embeddings}position_embeddings",
            f"{embeddings}patch_embeddings.projection",
        ),
        *_transformers_blocks(f"{ours}transformer.blocks", f"{theirs}encoder.layer"),
        *_layer(f"{ours}transformer.final_norm", f"{theirs}layernorm"),
    )


TRANSFORMERS_MAE: KeyMap = (
    *transformers_vit("encoder.", "vit."),
    *_decoder(
        "decoder.decoder_embed",
        "decoder.mask_token",
        "decoder.decoder_pos_embed",
        "decoder.decoder_norm",
        "decoder.decoder_pred",
    ),
    *_transformers_blocks("decoder.transformer.blocks", "decoder.decoder_layers"),
)

# transformers 5 renames its modules on load; 5.23 writes a ViTMAE decoder's layers as "decoder_encoder.layer".
_HUB_NAMES = (
    (r"^(vit\.)?layers\.", r"\1encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{dict(q='query', k='key', v='value')[m[1]]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def hub_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers ViT or ViTMAE state dict of any version under the names of hub files."""
    out = {}
    for key, value in state.items():
        for pattern, replacement in _HUB_NAMES:
            key = re.sub(pattern, replacement, key)
        out[key] = value
    return out


def transformers_vit_config(
    *, dim: int, depth: int, heads: int, hidden: int, eps: float, image: int, patch: int, channels: int
) -> dict[str, Any]:
    """The config.json fields that ViTModel and ViTMAE share."""
    return {
        "hidden_size": dim,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "layer_norm_eps": eps,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "image_size": image,
        "patch_size": patch,
        "num_channels": channels,
    }
