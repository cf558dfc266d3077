"""Key maps of ViT encoders and MAE: the authors' files (and timm, which kept their names) and transformers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop.rules import KeyMap, Rule
from mmssl.modality import image
from mmssl.position import sincos_table

MODEL_TYPES = ("vit", "vit_mae")

# Settings of an EncoderConfig (as `dataclasses.asdict` gives them, defaults left out), a key map, and the tensors.
Found = tuple[dict[str, Any], KeyMap, dict[str, Tensor]]
# One side, or one an axis, or unknown.
Size = int | tuple[int, ...] | None


def layer(ours: str, theirs: str) -> KeyMap:
    """Weight and bias of one layer."""
    return tuple(Rule((f"{ours}.{part}",), (f"{theirs}.{part}",)) for part in ("weight", "bias"))


def _blocks(ours: str, theirs: str, pairs: tuple[tuple[str, str], ...]) -> KeyMap:
    return tuple(rule for a, b in pairs for rule in layer(f"{ours}.{{i}}.{a}", f"{theirs}.{{i}}.{b}"))


def timm_blocks(ours: str, theirs: str, *, query_value: bool = False) -> KeyMap:
    """timm's blocks; with `query_value` the biases are BEiT's and VideoMAE's `q_bias` and `v_bias`."""
    pairs = (
        ("attn.norm", "norm1"),
        ("attn.layer.proj", "attn.proj"),
        ("mlp.norm", "norm2"),
        ("mlp.layer.fc1", "mlp.fc1"),
        ("mlp.layer.fc2", "mlp.fc2"),
    )
    attn = (f"{ours}.{{i}}.attn.layer", f"{theirs}.{{i}}.attn")
    weight, bias = layer(f"{attn[0]}.qkv", f"{attn[1]}.qkv")
    if query_value:
        bias = Rule((f"{attn[0]}.query_value_bias",), (f"{attn[1]}.q_bias", f"{attn[1]}.v_bias"), "rows")
    return (*_blocks(ours, theirs, pairs), weight, bias)


def transformers_blocks(ours: str, theirs: str, *, query_value: bool = False) -> KeyMap:
    """transformers' ViT blocks in the names of hub files; `query_value` as in `timm_blocks`."""
    pairs = (
        ("attn.norm", "layernorm_before"),
        ("attn.layer.proj", "attention.output.dense"),
        ("mlp.norm", "layernorm_after"),
        ("mlp.layer.fc1", "intermediate.dense"),
        ("mlp.layer.fc2", "output.dense"),
    )
    attn = (f"{ours}.{{i}}.attn.layer", f"{theirs}.{{i}}.attention.attention")
    weight, bias = (
        Rule(
            (f"{attn[0]}.qkv.{part}",), tuple(f"{attn[1]}.{head}.{part}" for head in ("query", "key", "value")), "rows"
        )
        for part in ("weight", "bias")
    )
    if query_value:
        bias = Rule((f"{attn[0]}.query_value_bias",), (f"{attn[1]}.q_bias", f"{attn[1]}.v_bias"), "rows")
    return (*_blocks(ours, theirs, pairs), weight, bias)


def projection(ours: str, theirs: str) -> KeyMap:
    """A patch embedding: their convolution."""
    return Rule((f"{ours}.weight",), (f"{theirs}.weight",), "conv"), Rule((f"{ours}.bias",), (f"{theirs}.bias",))


def _embeddings(ours: str, cls: str, position: str, patches: str) -> KeyMap:
    return (
        Rule((f"{ours}prefix_tokens",), (cls,), "shape", (1, 1, -1)),
        Rule((f"{ours}prefix_position", f"{ours}tokenizers.image.position.table"), (position,), "position"),
        *projection(f"{ours}tokenizers.image", patches),
    )


def _decoder(embed: str, mask_token: str, position: str, norm: str, pred: str) -> KeyMap:
    return (
        *layer("decoder.embed", embed),
        Rule(("decoder.mask_token",), (mask_token,), "shape", (1, 1, -1)),
        Rule(("decoder.prefix_position", "decoder.position.table"), (position,), "position"),
        *layer("decoder.transformer.final_norm", norm),
        *layer("decoder.pred", pred),
    )


def timm_vit(ours: str = "") -> KeyMap:
    """An encoder under `ours` against timm's ViT, whose names the authors' MAE files share; fine-tuned files too."""
    optional = [*layer(f"{ours}transformer.final_norm", "norm"), *layer(f"{ours}pool_norm", "fc_norm")]
    optional += layer(f"{ours}head", "head")
    return (
        *_embeddings(ours, "cls_token", "pos_embed", "patch_embed.proj"),
        *timm_blocks(f"{ours}transformer.blocks", "blocks"),
        *(Rule(rule.ours, rule.theirs, optional=True) for rule in optional),
    )


def authors_decoder() -> KeyMap:
    """What stands round the blocks of the MAE authors' decoder."""
    return _decoder("decoder_embed", "mask_token", "decoder_pos_embed", "decoder_norm", "decoder_pred")


AUTHORS_MAE: KeyMap = (
    *timm_vit("encoder."),
    *authors_decoder(),
    *timm_blocks("decoder.transformer.blocks", "decoder_blocks"),
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
        *transformers_blocks(f"{ours}transformer.blocks", f"{theirs}encoder.layer"),
        *layer(f"{ours}transformer.final_norm", f"{theirs}layernorm"),
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
    *transformers_blocks("decoder.transformer.blocks", "decoder.decoder_layers"),
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


def default_heads(dim: int) -> int:
    """Heads of 64 channels, as all sizes of the ViT family have but huge (1280 channels, 16 heads)."""
    return 16 if dim == 1280 else max(1, dim // 64)


def depth(state: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks there are under names that start with `blocks`."""
    return 1 + max(int(key.removeprefix(blocks).split(".")[0]) for key in state if key.startswith(blocks))


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, of which transformers writes one number where they are equal."""
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def one_or_pair(sides: Sequence[int]) -> int | list[int]:
    """The same the other way round."""
    return sides[0] if sides[0] == sides[1] else list(sides)


def grid_of_size(size: tuple[int, ...], patch: Sequence[int], source: str) -> tuple[int, ...]:
    """Patches along each axis of media of `size`. Raises UserError where the patch does not divide it."""
    if len(size) != len(patch) or any(side < 1 or side % by for side, by in zip(size, patch, strict=True)):
        axes = "(frames, height, width)" if len(patch) == 3 else "(height, width)"
        raise UserError(
            f"{source}: size={size} is not {axes} in multiples of its patch {tuple(patch)}: give what it was trained on"
        )
    return tuple(side // by for side, by in zip(size, patch, strict=True))


def table_size(size: Size, patch: Sequence[int], positions: int, source: str) -> tuple[int, ...]:
    """Height and width of the pictures that a table of so many positions was made for: as given, or else square.

    Raises UserError where the size does not make that many patches, or none is given and their number is no square.
    """
    if size is None:
        side = math.isqrt(positions)
        if side * side != positions:
            raise UserError(
                f"{source}: its table has {positions} positions, which is no square: give size=(height, width) of the "
                f"pictures it was trained on, whose patches are {patch[0]} x {patch[1]}"
            )
        return side * patch[0], side * patch[1]
    size = (size, size) if isinstance(size, int) else tuple(size)
    if (found := math.prod(grid_of_size(size, patch, source))) != positions:
        raise UserError(
            f"{source}: size={size} makes {found} patches of {patch[0]} x {patch[1]}, but its table has {positions} "
            "positions: give the size it was trained on"
        )
    return size


def official_settings(
    state: Mapping[str, Tensor], source: str, *, heads: int | None, eps: float, size: Size
) -> dict[str, Any]:
    """EncoderConfig's settings of an authors' ViT, read off its tensors. Raises UserError where it is none."""
    needed = ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.mlp.fc1.weight")
    if absent := [key for key in needed if key not in state]:
        raise UserError(f"{source}: not a checkpoint of MAE's authors or of timm's ViT: it lacks {absent[0]}")
    dim, channels, *patch = state["patch_embed.proj.weight"].shape
    table, fine_tuned = state["pos_embed"][0, 1:], "fc_norm.weight" in state
    size = table_size(size, patch, len(table), source)
    fixed = sincos_table(grid_of_size(size, patch, source), dim)
    tokenizer = {
        "modality": asdict(image(channels, (patch[0], patch[1]))),
        "size": size,
        # half precision is off by less; a table that was trained is not
        "position": "sincos" if torch.allclose(table.float().cpu(), fixed, atol=2e-3) else "learned",
        "trainable": fine_tuned or None,
    }
    transformer = {
        "dim": dim,
        "depth": depth(state, "blocks."),
        "heads": heads or default_heads(dim),
        "hidden": len(state["blocks.0.mlp.fc1.weight"]),
        "norm_eps": eps,
        "final_norm": not fine_tuned,
    }
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    return {"tokenizers": [tokenizer], "transformer": transformer, "pool_norm": fine_tuned, "classes": classes}


def transformers_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """EncoderConfig's settings of a ViT or ViTMAE config.json."""
    tokenizer = {
        "modality": asdict(image(config.get("num_channels", 3), pair(config["patch_size"]))),
        "size": pair(config["image_size"]),
        "position": "sincos" if config["model_type"] == "vit_mae" else "learned",
    }
    qkv_bias = "all" if config.get("qkv_bias", True) else "none"
    return {"tokenizers": [tokenizer], "transformer": {**blocks_settings(config), "qkv_bias": qkv_bias}}


def blocks_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """TransformerConfig's settings that every ViT-like config.json has. Raises UserError for another activation."""
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"hidden_act {config['hidden_act']!r} of this transformers model is not supported, only 'gelu'")
    return {
        "dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "hidden": config["intermediate_size"],
        "norm_eps": config.get("layer_norm_eps", 1e-12),
    }


def blocks_config(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """The same as config.json fields."""
    return {
        "hidden_size": transformer["dim"],
        "num_hidden_layers": transformer["depth"],
        "num_attention_heads": transformer["heads"],
        "intermediate_size": transformer["hidden"] or 4 * transformer["dim"],
        "layer_norm_eps": transformer["norm_eps"],
        "hidden_act": "gelu",
    }


def is_plain(transformer: Mapping[str, Any], qkv_bias: str) -> bool:
    """Whether the blocks are those every ViT library has: pre-norm, GELU, the biases asked for."""
    names = ("norm_order", "qkv_bias", "activation", "causal", "layer_scale", "input_norm", "branches")
    return tuple(transformer[name] for name in names) == (
        "pre", qkv_bias, "gelu", False, None, False, ("attn", "mlp")
    )  # fmt: skip


def transformers_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that ViTModel reads, and that ViTMAE's shares. Raises UserError for what they cannot express."""
    transformer, tokenizer = settings["transformer"], settings["tokenizers"][0]
    names = [t["modality"]["name"] for t in settings["tokenizers"]]
    vit = names == ["image"] and settings["prefix"] == 1 and transformer["final_norm"] and not settings["pool_norm"]
    if not (vit and is_plain(transformer, "all")):
        raise UserError(f"transformers' ViT is a plain encoder of pictures; this one is {settings}")
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        **blocks_config(transformer),
        "qkv_bias": True,
        "image_size": one_or_pair(tokenizer["size"]),
        "patch_size": one_or_pair(tokenizer["modality"]["patch"]),
        "num_channels": tokenizer["modality"]["channels"],
    }


def official_encoder(state: Mapping[str, Tensor], source: str, *, heads: int | None, eps: float, size: Size) -> Found:
    """Settings, key map and tensors of the encoder in an authors' file."""
    tensors = {key: value for key, value in state.items() if not key.startswith(("decoder", "mask_token"))}
    return official_settings(state, source, heads=heads, eps=eps, size=size), timm_vit(), tensors


def transformers_encoder(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> Found:
    """Settings, key map and tensors of the encoder in a transformers folder."""
    prefix = "vit." if any(key.startswith("vit.") for key in state) else ""
    # Pooler, classifier and decoder are heads of other tasks.
    tensors = {k: v for k, v in hub_names(state).items() if k.startswith(prefix) and "pooler." not in k}
    return transformers_settings(config), transformers_vit("", prefix), tensors


def timm_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json by which `timm.create_model("local-dir:...", pretrained=True)` builds a plain ViT of any size."""
    transformer, tokenizer = settings["transformer"], settings["tokenizers"][0]
    modality, size, classes = tokenizer["modality"], list(tokenizer["size"]), settings["classes"]
    return {
        "architecture": "vit_base_patch16_224",  # a name must be known to timm; the sizes below replace all of its own
        "num_classes": classes,
        "num_features": transformer["dim"],
        "global_pool": "avg",
        "model_args": {
            "img_size": size,
            "patch_size": list(modality["patch"]),
            "in_chans": modality["channels"],
            "embed_dim": transformer["dim"],
            "depth": transformer["depth"],
            "num_heads": transformer["heads"],
            "mlp_ratio": (transformer["hidden"] or 4 * transformer["dim"]) / transformer["dim"],
            "global_pool": "avg",
            "fc_norm": settings["pool_norm"],
        },
        "pretrained_cfg": {
            "input_size": [modality["channels"], *size],
            "mean": list(modality["mean"]),
            "std": list(modality["std"]),
            "num_classes": classes,
            "pool_size": None,
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }


def timm_encoder(config: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> Found:
    """Settings, key map and tensors of the encoder in a folder of timm's ViT, with the statistics noted there."""
    details = config["pretrained_cfg"]
    heads, size = config.get("model_args", {}).get("num_heads"), tuple(details["input_size"][1:])
    settings, rules, tensors = official_encoder(state, source, heads=heads, eps=1e-6, size=size)
    statistics = {"mean": tuple(details["mean"]), "std": tuple(details["std"])}
    settings["tokenizers"][0]["modality"] |= statistics
    return settings, rules, tensors


def image_processor(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The preprocessor_config.json of transformers' `kind` that resizes and normalises as this encoder was trained."""
    tokenizer = settings["tokenizers"][0]
    height, width = tokenizer["size"][-2:]
    sides = {"height": height, "width": width}
    crop = kind == "VideoMAEImageProcessor"
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)} if crop else sides,
        "resample": 2 if crop else 3,
        **({"do_center_crop": True, "crop_size": sides} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tokenizer["modality"]["mean"]),
        "image_std": list(tokenizer["modality"]["std"]),
    }
