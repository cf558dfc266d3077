"""What the forms of ViT-like models share: pieces of key maps and of config maps."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop.rules import KeyMap, Rule

# One side, or one an axis, or unknown.
Size = int | tuple[int, ...] | None


def layer(ours: str, theirs: str) -> KeyMap:
    """Weight and bias of one layer."""
    return tuple(Rule((f"{ours}.{part}",), (f"{theirs}.{part}",)) for part in ("weight", "bias"))


def optional(*rules: Rule) -> KeyMap:
    """Rules whose tensors a file may lack."""
    return tuple(replace(rule, optional=True) for rule in rules)


def numbered(ours: str, theirs: str, pairs: tuple[tuple[str, str], ...]) -> KeyMap:
    """Layers of every block, by the pairs of their names within one."""
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
    return (*numbered(ours, theirs, pairs), weight, bias)


def query_key_value(ours: str, theirs: str, names: tuple[str, ...] = ("query", "key", "value")) -> KeyMap:
    """Our one projection of attention, of which transformers has three."""
    return tuple(
        Rule((f"{ours}.qkv.{part}",), tuple(f"{theirs}.{name}.{part}" for name in names), "rows")
        for part in ("weight", "bias")
    )


def transformers_blocks(ours: str, theirs: str, *, query_value: bool = False, keyless: bool = False) -> KeyMap:
    """transformers' ViT blocks in the names of hub files; `query_value` as in `timm_blocks`; keyless: theirs have no
    bias of keys, and ours have one (see `Rule`)."""
    pairs = (
        ("attn.norm", "layernorm_before"),
        ("attn.layer.proj", "attention.output.dense"),
        ("mlp.norm", "layernorm_after"),
        ("mlp.layer.fc1", "intermediate.dense"),
        ("mlp.layer.fc2", "output.dense"),
    )
    attn = (f"{ours}.{{i}}.attn.layer", f"{theirs}.{{i}}.attention.attention")
    weight, bias = query_key_value(*attn)
    if query_value:
        bias = Rule((f"{attn[0]}.query_value_bias",), (f"{attn[1]}.q_bias", f"{attn[1]}.v_bias"), "rows")
    if keyless:
        bias = Rule((f"{attn[0]}.qkv.bias",), (f"{attn[1]}.query.bias", f"{attn[1]}.value.bias"), "keyless")
    return (*numbered(ours, theirs, pairs), weight, bias)


def projection(ours: str, theirs: str, *, bias: bool = True) -> KeyMap:
    """A patch embedding: their convolution."""
    weight = Rule((f"{ours}.weight",), (f"{theirs}.weight",), "conv")
    return (weight, Rule((f"{ours}.bias",), (f"{theirs}.bias",))) if bias else (weight,)


def embeddings(
    ours: str, cls: str, position: str, patches: str, modality: str = "image", *, bias: bool = True
) -> KeyMap:
    """Class token, positions and patches."""
    tokenizer = f"{ours}tokenizers.{modality}"
    return (
        Rule((f"{ours}prefix_tokens",), (cls,), "shape", (1, 1, -1)),
        Rule((f"{ours}prefix_position", f"{tokenizer}.position.table"), (position,), "position"),
        *projection(tokenizer, patches, bias=bias),
    )


def decoder(embed: str, mask_token: str, position: str, norm: str, pred: str) -> KeyMap:
    """What stands round the blocks of MAE's decoder."""
    return (
        *layer("decoder.embed", embed),
        Rule(("decoder.mask_token",), (mask_token,), "shape", (1, 1, -1)),
        Rule(("decoder.prefix_position", "decoder.position.table"), (position,), "position"),
        *layer("decoder.transformer.final_norm", norm),
        *layer("decoder.pred", pred),
    )


# transformers 5 renames its modules on load; 5.23 writes a ViTMAE decoder's layers as "decoder_encoder.layer".
_HUB_NAMES = (
    (r"^((?:vit|beit)\.)?layers\.", r"\1encoder.layer."),
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"\.attention\.([qkv])_proj\.", lambda m: f".attention.attention.{dict(q='query', k='key', v='value')[m[1]]}."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)


def hub_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers ViT, ViTMAE or BEiT state dict of any version under the names of hub files."""
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


def blocks_settings(config: Mapping[str, Any], part: str = "") -> dict[str, Any]:
    """TransformerConfig's settings that every ViT-like config.json has, of the encoder or another `part` ("decoder_").

    Raises UserError for another activation.
    """
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"hidden_act {config['hidden_act']!r} of this transformers model is not supported, only 'gelu'")
    return {
        "dim": config[f"{part}hidden_size"],
        "depth": config[f"{part}num_hidden_layers"],
        "heads": config[f"{part}num_attention_heads"],
        "hidden": config[f"{part}intermediate_size"],
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


def decoder_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same as config.json fields. Raises UserError where encoder and decoder differ in the one norm eps."""
    encoder, decoder = settings["encoder"]["transformer"], settings["decoder"]["transformer"]
    if encoder["norm_eps"] != decoder["norm_eps"]:
        raise UserError(
            f"transformers has one norm eps; encoder {encoder['norm_eps']} and decoder {decoder['norm_eps']} differ"
        )
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    fields = blocks_config(decoder)
    return {f"decoder_{name}": fields[name] for name in names} | {"norm_pix_loss": settings["norm_pix"]}


# transformers' name of a problem in which a sample may have several classes.
_SEVERAL = "multi_label_classification"


def head_settings(config: Mapping[str, Any], state: Mapping[str, Tensor], head: str = "classifier") -> dict[str, Any]:
    """EncoderConfig's settings of the head of a transformers classifier, a layer of this name if it is there: its
    classes, and their names where config.json has other ones than transformers makes up."""
    classes = len(state[f"{head}.weight"]) if f"{head}.weight" in state else 0
    names = config.get("id2label") or {}
    told = tuple(names.get(str(number), _made_up(number)) for number in range(classes))
    labels = () if told == tuple(map(_made_up, range(classes))) else told
    return {"classes": classes, "labels": labels, "several": config.get("problem_type") == _SEVERAL}


def head_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same as config.json fields."""
    names = settings["labels"] or [_made_up(number) for number in range(settings["classes"])]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        **({"problem_type": _SEVERAL} if settings["several"] else {}),
    }


def head_pool(settings: Mapping[str, Any]) -> str:
    """What a head sees."""
    return settings["pool"] or "mean"


def _made_up(number: int) -> str:
    """transformers' name of a class that has none."""
    return f"LABEL_{number}"


def norms_agree(settings: Mapping[str, Any]) -> bool:
    """Whether the norm behind the pooling, if there is one, has the eps of the others: many libraries have one."""
    return settings["pool_norm_eps"] in (None, settings["transformer"]["norm_eps"])


def is_plain(transformer: Mapping[str, Any], qkv_bias: str) -> bool:
    """Whether the blocks are those every ViT library has: pre-norm, GELU, the biases asked for."""
    names = ("norm_order", "qkv_bias", "activation", "causal", "layer_scale", "input_norm", "branches", "window")
    return tuple(transformer[name] for name in names) == (
        "pre", qkv_bias, "gelu", False, None, False, ("attn", "mlp"), None
    )  # fmt: skip


def statistics(folder: str, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    """What pixels are normalised by, as the preprocessor_config.json of a transformers folder tells; these where none
    is there."""
    file = Path(folder) / "preprocessor_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"mean": tuple(told.get("image_mean", mean)), "std": tuple(told.get("image_std", std))}


def image_processor(settings: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The preprocessor_config.json of transformers' `kind` that resizes and normalises as this encoder was trained."""
    tokenizer = settings["tokenizers"][0]
    height, width = tokenizer["size"][-2:]
    sides = {"height": height, "width": width}
    crop, bilinear = kind in ("VideoMAEImageProcessor", "CLIPImageProcessor"), kind == "VideoMAEImageProcessor"
    return {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"shortest_edge": min(height, width)} if crop else sides,
        "resample": 2 if bilinear else 3,
        **({"do_center_crop": True, "crop_size": sides} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tokenizer["modality"]["mean"]),
        "image_std": list(tokenizer["modality"]["std"]),
    }
