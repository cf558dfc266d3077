"""SigLIP: transformers' SiglipModel, its image encoder alone, and open_clip's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from mmssl.interop.clip import (
    BASE,
    TEXT_RULES,
    blocks_of,
    is_timm_siglip,
    is_tower,
    official_blocks,
    open_clip_tower,
    text_config,
    text_settings,
    vision_config,
    vision_rules,
    weights,
    word_rules,
)
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    Size,
    default_heads,
    depth,
    image_processor,
    layer,
    pair,
    projection,
    statistics,
    table_size,
    timm_blocks,
)
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
_TRUNK = "visual.trunk."
_POOL = "attn_pool."
# The image encoder and its head are timm's.
OPEN_CLIP_SIGLIP: KeyMap = (
    Rule(("encoder.prefix_position", "encoder.tokenizers.image.position.table"), (f"{_TRUNK}pos_embed",), "position"),
    *projection("encoder.tokenizers.image", f"{_TRUNK}patch_embed.proj"),
    *timm_blocks("encoder.transformer.blocks", f"{_TRUNK}blocks"),
    *layer("encoder.transformer.final_norm", f"{_TRUNK}norm"),
    Rule(("pool.query",), (f"{_TRUNK}{_POOL}latent",), "shape", (1, 1, -1)),
    *(
        rule
        for ours, theirs in (
            ("attn.q", "q"),
            ("attn.kv", "kv"),
            ("attn.proj", "proj"),
            ("mlp.norm", "norm"),
            ("mlp.layer.fc1", "mlp.fc1"),
            ("mlp.layer.fc2", "mlp.fc2"),
        )
        for rule in layer(f"pool.{ours}", f"{_TRUNK}{_POOL}{theirs}")
    ),
    *open_clip_tower("text_encoder", "text.", word_rules("text.", "positional_embedding"), "ln_final"),
    *layer("text_projection", "text.text_projection"),
    Rule(("logit_scale",), ("logit_scale",)),
    Rule(("logit_bias",), ("logit_bias",)),
)


def read_siglip(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A SiglipModel folder."""
    vision, text = _VISION | config["vision_config"], _TEXT | config["text_config"]
    settings = {
        "encoder": _vision_settings(vision, source),
        "text_encoder": text_settings(text["vocab_size"], text["max_position_embeddings"], blocks_of(text)),
        "dim": None,
        "pad": text["pad_token_id"],
    }
    return Found(settings, TRANSFORMERS_SIGLIP, weights(state))


def read_vision(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The image encoder of a SiglipVisionModel folder or of a SiglipModel's, without the head that pools."""
    settings = _vision_settings(_VISION | config.get("vision_config", config), source)
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in state) else ""
    tensors = {key: value for key, value in weights(state).items() if key.startswith(prefix)}
    tensors = {key: value for key, value in tensors.items() if not key.startswith(f"{prefix}head.")}
    return Found(settings, vision_rules("", prefix, kind="siglip"), tensors)


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    text_heads: int | None = None,
    gelu_tanh: bool = True,
    size: Size = None,
) -> Found:
    """Files and folders of open_clip's SigLIP; heads have 64 channels where not given, 16 are those of 1152.

    gelu_tanh: the authors' models approximate the GELU by a tanh; open_clip computes the exact one for the first of
    them, with the same weights.
    """
    activation = {"norm_eps": 1e-6, "activation": "gelu_tanh" if gelu_tanh else "gelu"}
    dim, channels, *patch = state[f"{_TRUNK}patch_embed.proj.weight"].shape
    vocab, width = state["text.token_embedding.weight"].shape
    blocks = {
        "dim": dim,
        "depth": depth(state, f"{_TRUNK}blocks."),
        "heads": heads or _heads(dim),
        "hidden": len(state[f"{_TRUNK}blocks.0.mlp.fc1.weight"]),
    }
    text = official_blocks(state, "text.transformer.resblocks.", width, text_heads or _heads(width))
    size = table_size(size, patch, state[f"{_TRUNK}pos_embed"].shape[1], source)
    halves = (0.5,) * channels
    settings = {
        "encoder": _image_tower((patch[0], patch[1]), size, blocks | activation, halves, halves),
        "text_encoder": text_settings(vocab, len(state["text.positional_embedding"]), text | activation),
        "dim": None,
    }
    return Found(settings, OPEN_CLIP_SIGLIP, state)


def _heads(dim: int) -> int:
    """Those of shape-optimised models have 72 channels."""
    return 16 if dim == 1152 else default_heads(dim)


def _vision_settings(config: Settings, source: str) -> dict[str, Any]:
    halves = (0.5,) * config.get("num_channels", 3)
    told = statistics(source, halves, halves)
    return _image_tower(pair(config["patch_size"]), pair(config["image_size"]), blocks_of(config), **told)


def _image_tower(
    patch: tuple[int, int], size: tuple[int, ...], blocks: Settings, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, Any]:
    """EncoderConfig's settings of SigLIP's image encoder, of pictures of as many channels as `mean` has."""
    modality = asdict(image(len(mean), patch)) | {"mean": mean, "std": std}
    tokenizer = {"modality": modality, "size": size, "position": "learned"}
    return {"tokenizers": [tokenizer], "transformer": blocks, "prefix": 0}


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
    Form(
        "SigLIP",
        "official",
        "open_clip's files",
        lambda _, state: f"{_TRUNK}{_POOL}latent" in state and "text.token_embedding.weight" in state,
        read_official,
    ),
    Form("SigLIP", "open_clip", "open_clip's SigLIP", lambda config, _: is_timm_siglip(config), read_official),
    Form(
        "Encoder",
        "transformers",
        "transformers' SiglipVisionModel",
        lambda config, _: config.get("model_type") in ("siglip", "siglip_vision_model"),
        read_vision,
    ),
)
