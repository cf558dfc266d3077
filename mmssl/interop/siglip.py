"""SigLIP: transformers' SiglipModel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmssl.interop.clip import (
    BASE,
    TEXT_RULES,
    blocks_of,
    is_tower,
    text_config,
    text_settings,
    vision_config,
    vision_rules,
    weights,
)
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import image_processor, layer, pair, statistics
from mmssl.interop.rules import KeyMap, Rule, State
from mmssl.modality import image

# What a config.json may leave out.
_COMMON = {**BASE, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
_VISION = {**_COMMON, "image_size": 224, "patch_size": 16}
_TEXT = {**_COMMON, "vocab_size": 32000, "max_position_embeddings": 64, "pad_token_id": 1}
_HEAD = "vision_model.head"
TRANSFORMERS_SIGLIP: KeyMap = (
    *vision_rules("encoder.", "vision_model.", kind="siglip"),
    Rule(("pool.query",), (f"{_HEAD}.probe",), "shape", (1, 1, -1)),
    *(
        Rule((f"pool.attn.q.{part}", f"pool.attn.kv.{part}"), (f"{_HEAD}.attention.in_proj_{part}",), "split")
        for part in ("weight", "bias")
    ),
    *layer("pool.attn.proj", f"{_HEAD}.attention.out_proj"),
    *layer("pool.mlp.norm", f"{_HEAD}.layernorm"),
    *layer("pool.mlp.layer.fc1", f"{_HEAD}.mlp.fc1"),
    *layer("pool.mlp.layer.fc2", f"{_HEAD}.mlp.fc2"),
    *TEXT_RULES,
    *layer("text_projection", "text_model.head"),
    Rule(("logit_scale",), ("logit_scale",), "shape", (1,)),
    Rule(("logit_bias",), ("logit_bias",), "shape", (1,)),
)


def read_siglip(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A SiglipModel folder."""
    vision, text = _VISION | config["vision_config"], _TEXT | config["text_config"]
    channels = vision.get("num_channels", 3)
    halves = (0.5,) * channels
    tokenizer = {
        "modality": asdict(image(channels, pair(vision["patch_size"]))) | statistics(source, halves, halves),
        "size": pair(vision["image_size"]),
        "position": "learned",
    }
    settings = {
        "encoder": {"tokenizers": [tokenizer], "transformer": blocks_of(vision), "prefix": 0},
        "text_encoder": text_settings(text["vocab_size"], text["max_position_embeddings"], blocks_of(text)),
        "dim": None,
        "pad": text["pad_token_id"],
    }
    return Found(settings, TRANSFORMERS_SIGLIP, weights(state))


def _is_siglip(settings: Settings) -> bool:
    """Whether SiglipModel can express it: it attends to padding, and the last place is a text's vector."""
    plain = all(
        is_tower(settings[name], modality, causal=False, input_norm=False) and not settings[name]["prefix"]
        for name, modality in (("encoder", "image"), ("text_encoder", "text"))
    )
    return plain and settings["attend_padding"] and settings["text_pool"] == "last"


def write_siglip(settings: Settings) -> Written:
    """As SiglipModel."""
    vision, text = settings["encoder"], settings["text_encoder"]
    config = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "vision_config": {"model_type": "siglip_vision_model", **vision_config(vision)},
        "text_config": {"model_type": "siglip_text_model", **text_config(text), "pad_token_id": settings["pad"]},
    }
    return Written(config, TRANSFORMERS_SIGLIP, image_processor(vision, "SiglipImageProcessor"))


FORMS = (
    Form(
        "SigLIP",
        "transformers",
        "transformers' SiglipModel",
        lambda config, _: config.get("model_type") == "siglip",
        read_siglip,
        "siglip",
        write=write_siglip,
        fits=_is_siglip,
    ),
)
