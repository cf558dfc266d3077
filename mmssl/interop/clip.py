"""CLIP: OpenAI's and open_clip's files, transformers' CLIPModel, and its image encoder alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, Literal

from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop import vit
from mmssl.interop.folder import OPEN_CLIP_CONFIG
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    Size,
    blocks_config,
    blocks_settings,
    default_heads,
    depth,
    image_processor,
    is_plain,
    layer,
    numbered,
    one_or_pair,
    pair,
    projection,
    query_key_value,
    statistics,
    table_size,
)
from mmssl.interop.rules import KeyMap, Rule, State
from mmssl.modality import CLIP_MEAN, CLIP_STD, TEXT, image

Kind = Literal["clip", "siglip"]

# transformers' names of the GELUs; of two names for one the first is written.
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
_WRITTEN = {ours: theirs for theirs, ours in reversed(_ACTIVATIONS.items())}
# transformers' mark in `eos_token_id` for the place of the largest id, from before it knew the end token's.
_LARGEST_ID = 2
_POOLS = {"image_pool": "class", "text_pool": "last"}
# Numbers that OpenAI's archives hold beside the weights.
_NUMBERS = ("input_resolution", "context_length", "vocab_size")
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
# What a config.json may leave out.
_VISION = {**BASE, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32}
_TEXT = {
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}


# Key maps


def open_clip_tower(ours: str, theirs: str, first: KeyMap, last: str) -> KeyMap:
    """The blocks of one of open_clip's encoders, behind its `first` tensors and before its `last` norm."""
    blocks = f"{ours}.transformer.blocks", f"{theirs}transformer.resblocks"
    pairs = (
        ("attn.norm", "ln_1"),
        ("attn.layer.proj", "attn.out_proj"),
        ("mlp.norm", "ln_2"),
        ("mlp.layer.fc1", "mlp.c_fc"),
        ("mlp.layer.fc2", "mlp.c_proj"),
    )
    fused = (
        Rule((f"{blocks[0]}.{{i}}.attn.layer.qkv.{part}",), (f"{blocks[1]}.{{i}}.attn.in_proj_{part}",))
        for part in ("weight", "bias")
    )
    return (*first, *numbered(*blocks, pairs), *fused, *layer(f"{ours}.transformer.final_norm", f"{theirs}{last}"))


def _transformers_blocks(ours: str, theirs: str) -> KeyMap:
    pairs = (
        ("attn.norm", "layer_norm1"),
        ("attn.layer.proj", "self_attn.out_proj"),
        ("mlp.norm", "layer_norm2"),
        ("mlp.layer.fc1", "mlp.fc1"),
        ("mlp.layer.fc2", "mlp.fc2"),
    )
    heads = query_key_value(
        f"{ours}.{{i}}.attn.layer", f"{theirs}.{{i}}.self_attn", names=("q_proj", "k_proj", "v_proj")
    )
    return (*numbered(ours, theirs, pairs), *heads)


def _positions(ours: str, theirs: str) -> KeyMap:
    """A table whose first rows are those of the class token, where there is one."""
    return (Rule((f"{ours}prefix_position", f"{ours}tokenizers.image.position.table"), (theirs,), "split"),)


def vision_rules(ours: str = "", theirs: str = "", *, kind: Kind = "clip") -> KeyMap:
    """An image encoder under `ours` against transformers' CLIPVisionModel or SiglipVisionModel under `theirs`."""
    first, clip = f"{theirs}embeddings", kind == "clip"
    own = (
        Rule((f"{ours}prefix_tokens",), (f"{first}.class_embedding",), "shape", (-1,)),
        *layer(f"{ours}transformer.input_norm", f"{theirs}pre_layrnorm"),  # their spelling
    )
    return (
        *(own if clip else ()),
        *_positions(ours, f"{first}.position_embedding.weight"),
        *projection(f"{ours}tokenizers.image", f"{first}.patch_embedding", bias=not clip),
        *_transformers_blocks(f"{ours}transformer.blocks", f"{theirs}encoder.layers"),
        *layer(f"{ours}transformer.final_norm", f"{theirs}post_layernorm"),
    )


def word_rules(theirs: str, position: str) -> KeyMap:
    tokenizer = "text_encoder.tokenizers.text"
    return (
        Rule((f"{tokenizer}.words.weight",), (f"{theirs}token_embedding.weight",)),
        Rule((f"{tokenizer}.position.table",), (f"{theirs}{position}",)),
    )


TEXT_RULES: KeyMap = (
    *word_rules("text_model.embeddings.", "position_embedding.weight"),
    *_transformers_blocks("text_encoder.transformer.blocks", "text_model.encoder.layers"),
    *layer("text_encoder.transformer.final_norm", "text_model.final_layer_norm"),
)
_SCALE = Rule(("logit_scale",), ("logit_scale",))

OPEN_CLIP: KeyMap = (
    *open_clip_tower(
        "encoder",
        "visual.",
        (
            Rule(("encoder.prefix_tokens",), ("visual.class_embedding",), "shape", (-1,)),
            *_positions("encoder.", "visual.positional_embedding"),
            *projection("encoder.tokenizers.image", "visual.conv1", bias=False),
            *layer("encoder.transformer.input_norm", "visual.ln_pre"),
        ),
        "ln_post",
    ),
    *open_clip_tower("text_encoder", "", word_rules("", "positional_embedding"), "ln_final"),
    Rule(("image_projection.weight",), ("visual.proj",), "transpose"),
    Rule(("text_projection.weight",), ("text_projection",), "transpose"),
    _SCALE,
)
TRANSFORMERS_CLIP: KeyMap = (
    *vision_rules("encoder.", "vision_model."),
    *TEXT_RULES,
    Rule(("image_projection.weight",), ("visual_projection.weight",)),
    Rule(("text_projection.weight",), ("text_projection.weight",)),
    _SCALE,
)
# What is read


def _image_tower(channels: int, patch: tuple[int, int], size: tuple[int, ...], blocks: Settings) -> dict[str, Any]:
    """EncoderConfig's settings of CLIP's image encoder."""
    modality = asdict(image(channels, patch))
    modality |= {"mean": CLIP_MEAN, "std": CLIP_STD} if channels == len(CLIP_MEAN) else {}
    tokenizer = {"modality": modality, "size": size, "position": "learned", "unbiased": True}
    return {"tokenizers": [tokenizer], "transformer": {**blocks, "input_norm": True}, "prefix": 1}


def text_settings(vocab: int, length: int, blocks: Settings) -> dict[str, Any]:
    tokenizer = {"modality": asdict(replace(TEXT, channels=vocab)), "size": (length,), "position": "learned"}
    return {"tokenizers": [tokenizer], "transformer": blocks, "prefix": 0}


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    text_heads: int | None = None,
    quick_gelu: bool = True,
    size: Size = None,
) -> Found:
    """OpenAI's files and those that open_clip trained, of ViTs; heads have 64 channels where not given.

    quick_gelu: OpenAI's models have it; most that open_clip's authors trained do not, and the file does not tell.
    """
    tensors = {
        key.removeprefix("module.").removeprefix("text."): value for key, value in state.items() if key not in _NUMBERS
    }
    needed = ("visual.conv1.weight", "visual.class_embedding", "positional_embedding", "text_projection")
    if absent := [key for key in needed if key not in tensors]:
        raise UserError(f"{source}: not a file of OpenAI's or open_clip's CLIP with a ViT: it lacks {absent[0]}")
    dim, channels, *patch = tensors["visual.conv1.weight"].shape
    vocab, text_dim = tensors["token_embedding.weight"].shape

    def blocks(theirs: str, width: int, count: int | None) -> dict[str, Any]:
        sizes = official_blocks(tensors, f"{theirs}transformer.resblocks.", width, count)
        return sizes | {"norm_eps": 1e-5, "activation": "quick_gelu" if quick_gelu else "gelu"}

    size = table_size(size, patch, len(tensors["visual.positional_embedding"]) - 1, source)
    encoder = _image_tower(channels, (patch[0], patch[1]), size, blocks("visual.", dim, heads))
    text_blocks = blocks("", text_dim, text_heads) | {"causal": True}
    text_encoder = text_settings(vocab, len(tensors["positional_embedding"]), text_blocks)
    settings = {"encoder": encoder, "text_encoder": text_encoder, "dim": tensors["text_projection"].shape[1]}
    return Found(settings | _POOLS, OPEN_CLIP, tensors)


def official_blocks(state: State, first: str, width: int, heads: int | None) -> dict[str, Any]:
    """TransformerConfig's settings of open_clip's blocks whose names begin with `first`."""
    return {
        "dim": width,
        "depth": depth(state, first),
        "heads": heads or default_heads(width),
        "hidden": len(state[f"{first}0.mlp.c_fc.weight"]),
    }


def blocks_of(config: Settings) -> dict[str, Any]:
    """Raises UserError for another activation."""
    if config["hidden_act"] not in _ACTIVATIONS:
        raise UserError(f"hidden_act {config['hidden_act']!r} is not one of {', '.join(_ACTIVATIONS)}")
    return {**blocks_settings({**config, "hidden_act": "gelu"}), "activation": _ACTIVATIONS[config["hidden_act"]]}


def _vision_settings(config: Settings, source: str) -> dict[str, Any]:
    size, patch = pair(config["image_size"]), pair(config["patch_size"])
    settings = _image_tower(config.get("num_channels", 3), patch, size, blocks_of(config))
    modality = settings["tokenizers"][0]["modality"]
    modality |= statistics(source, modality["mean"], modality["std"])
    return settings


def weights(state: State) -> dict[str, Tensor]:
    """Without the tables of numbers that older files hold."""
    return {key: value for key, value in state.items() if not key.endswith("position_ids")}


def read_clip(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A CLIPModel folder."""
    vision, text = _VISION | config["vision_config"], _TEXT | config["text_config"]
    tower = text_settings(text["vocab_size"], text["max_position_embeddings"], blocks_of(text) | {"causal": True})
    settings = {
        "encoder": _vision_settings(vision, source),
        "text_encoder": tower,
        "dim": config.get("projection_dim", 512),
        "end": None if text["eos_token_id"] == _LARGEST_ID else text["eos_token_id"],
        **_POOLS,
    }
    return Found(settings, TRANSFORMERS_CLIP, weights(state))


def read_vision(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The image encoder of a CLIPVisionModel folder or of a CLIPModel's."""
    settings = _vision_settings(_VISION | config.get("vision_config", config), source)
    prefix = "vision_model." if any(key.startswith("vision_model.") for key in state) else ""
    tensors = {key: value for key, value in weights(state).items() if key.startswith(prefix)}
    return Found(settings, vision_rules("", prefix), tensors)


def read_open_clip(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A folder with an open_clip_config.json, of a ViT of open_clip's own. Raises UserError for other poolings."""
    model, pictures = config["model_cfg"], config.get("preprocess_cfg", {})
    vision, text = model["vision_cfg"], model["text_cfg"]
    pools = vision.get("pool_type", "tok"), text.get("pool_type", "argmax")
    if pools[0] != "tok" or pools[1] not in ("argmax", "eos") or text.get("no_causal_mask"):
        raise UserError(
            f"{source}: of open_clip's models those with a class token and causal text are read, or SigLIP, not {model}"
        )
    quick_gelu, size = model.get("quick_gelu", False), pair(vision["image_size"])
    heads = vision["width"] // vision.get("head_width", 64)
    found = read_official({}, state, source, heads=heads, text_heads=text["heads"], quick_gelu=quick_gelu, size=size)
    settings = found.settings | {"end": text["eos_id"] if pools[1] == "eos" else None}
    for name, part in (("encoder", vision), ("text_encoder", text)):
        settings[name]["transformer"] |= {"norm_eps": part.get("norm_kwargs", {}).get("eps", 1e-5)}
    told = {name: tuple(pictures[name]) for name in ("mean", "std") if name in pictures}
    settings["encoder"]["tokenizers"][0]["modality"] |= told
    return replace(found, settings=settings)


def is_timm_siglip(config: Mapping[str, Any]) -> bool:
    """Whether an open_clip_config.json is of SigLIP, whose image encoder is timm's."""
    return config.get("model_cfg", {}).get("vision_cfg", {}).get("timm_pool") == "map"


# What is written


def is_tower(encoder: Settings, modality: str, **expected: Any) -> bool:
    """A plain pre-norm encoder of this modality with no more than the `expected` settings of its blocks."""
    blocks = {**encoder["transformer"], "activation": "gelu", "causal": False, "input_norm": False}
    names = [each["modality"]["name"] for each in encoder["tokenizers"]]
    return (
        names == [modality]
        and is_plain(blocks, "all")
        and all(encoder["transformer"][name] == value for name, value in expected.items())
        and encoder["transformer"]["final_norm"]
        and encoder["transformer"]["activation"] in _WRITTEN
        and not (encoder["pool_norm"] or encoder["classes"])
        and not (encoder["tokenizers"][0]["segments"] or encoder["tokenizers"][0]["offset"])
    )


def is_vision(encoder: Settings) -> bool:
    """Whether an encoder is CLIP's of pictures."""
    return vit.is_clip(encoder) and is_tower(encoder, "image", input_norm=True)


def _is_clip(settings: Settings) -> bool:
    """Whether other libraries can express it: two such encoders, the class and the end token as vectors, and two
    projections."""
    text, pools = settings["text_encoder"], {name: settings[name] for name in _POOLS}
    towers = is_vision(settings["encoder"]) and is_tower(text, "text", causal=True, input_norm=False)
    return towers and not text["prefix"] and pools == _POOLS and settings["dim"] is not None


def vision_config(encoder: Settings) -> dict[str, Any]:
    """Raises UserError for pictures that are not square."""
    transformer, tokenizer = encoder["transformer"], encoder["tokenizers"][0]
    sides = {"image_size": one_or_pair(tokenizer["size"]), "patch_size": one_or_pair(tokenizer["modality"]["patch"])}
    if not all(isinstance(side, int) for side in sides.values()):
        raise UserError(f"transformers' CLIP and SigLIP read square pictures in square patches; these are {sides}")
    blocks = {**blocks_config(transformer), "hidden_act": _WRITTEN[transformer["activation"]]}
    return {**blocks, **sides, "num_channels": tokenizer["modality"]["channels"]}


def text_config(encoder: Settings) -> dict[str, Any]:
    transformer, tokenizer = encoder["transformer"], encoder["tokenizers"][0]
    return {
        **blocks_config(transformer),
        "hidden_act": _WRITTEN[transformer["activation"]],
        "vocab_size": tokenizer["modality"]["channels"],
        "max_position_embeddings": tokenizer["size"][0],
    }


def write_clip(settings: Settings) -> Written:
    """As CLIPModel."""
    dim, end = settings["dim"], settings["end"]
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": dim,
        "vision_config": {
            "model_type": "clip_vision_model",
            "projection_dim": dim,
            **vision_config(settings["encoder"]),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "projection_dim": dim,
            **text_config(settings["text_encoder"]),
            "eos_token_id": _LARGEST_ID if end is None else end,
        },
    }
    return Written(config, TRANSFORMERS_CLIP, image_processor(settings["encoder"], "CLIPImageProcessor"))


def write_vision(settings: Settings) -> Written:
    """As CLIPVisionModel."""
    config = {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        **vision_config(settings),
    }
    return Written(config, vision_rules(), image_processor(settings, "CLIPImageProcessor"))


def write_open_clip(settings: Settings) -> Written:
    """As the folder that `open_clip.create_model("local-dir:...")` loads. Raises UserError for what it cannot."""
    (vision, pictures), (text, words) = (
        (settings[name]["transformer"], settings[name]["tokenizers"][0]) for name in ("encoder", "text_encoder")
    )
    if vision["activation"] != text["activation"] or pictures["modality"]["channels"] != 3:
        raise UserError("open_clip's CLIP has one GELU in both encoders, and pictures of 3 channels")

    def blocks(transformer: Settings) -> dict[str, Any]:
        ratio = (transformer["hidden"] or 4 * transformer["dim"]) / transformer["dim"]
        common = {"width": transformer["dim"], "layers": transformer["depth"], "mlp_ratio": ratio}
        return common | {"norm_kwargs": {"eps": transformer["norm_eps"]}}

    end = {} if settings["end"] is None else {"pool_type": "eos", "eos_id": settings["end"]}
    config = {
        "model_cfg": {
            "embed_dim": settings["dim"],
            "quick_gelu": vision["activation"] == "quick_gelu",
            "vision_cfg": {
                **blocks(vision),
                "image_size": one_or_pair(pictures["size"]),
                "patch_size": one_or_pair(pictures["modality"]["patch"]),
                "head_width": vision["dim"] // vision["heads"],
            },
            "text_cfg": {
                **blocks(text),
                "heads": text["heads"],
                "context_length": words["size"][0],
                "vocab_size": words["modality"]["channels"],
                **end,
            },
        },
        "preprocess_cfg": {
            "size": one_or_pair(pictures["size"]),
            "mean": list(pictures["modality"]["mean"]),
            "std": list(pictures["modality"]["std"]),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }
    return Written(config, OPEN_CLIP, name=OPEN_CLIP_CONFIG)


FORMS = (
    Form("CLIP", "official", "OpenAI's and open_clip's files", lambda _, state: True, read_official),
    Form(
        "CLIP",
        "transformers",
        "transformers' CLIPModel",
        lambda config, _: config.get("model_type") == "clip",
        read_clip,
        "clip",
        write=write_clip,
        fits=_is_clip,
    ),
    Form(
        "CLIP",
        "open_clip",
        "open_clip's CLIP",
        lambda config, _: "model_cfg" in config and not is_timm_siglip(config),
        read_open_clip,
        "open_clip",
        write=write_open_clip,
        fits=_is_clip,
    ),
    Form(
        "Encoder",
        "transformers",
        "transformers' CLIPVisionModel",
        lambda config, _: config.get("model_type") in ("clip", "clip_vision_model"),
        read_vision,
        "clip_vision",
        write=write_vision,
        fits=is_vision,
    ),
)
