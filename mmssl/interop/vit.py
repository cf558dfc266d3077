"""ViT encoders of pictures: files of the MAE family's authors (in timm's names), of transformers and of timm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.errors import UserError
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    Size,
    blocks_config,
    blocks_settings,
    default_heads,
    depth,
    embeddings,
    grid_of_size,
    head_fields,
    head_pool,
    head_settings,
    hub_names,
    image_processor,
    is_plain,
    layer,
    norms_agree,
    one_or_pair,
    optional,
    pair,
    statistics,
    table_size,
    timm_blocks,
    transformers_blocks,
)
from mmssl.interop.rules import KeyMap, State
from mmssl.modality import image
from mmssl.position import Layout, sincos_table

# timm's names of what a head sees.
_POOLS = {"mean": "avg", "class": "token"}


def timm_vit(ours: str = "", modality: str = "image", *, pre_norm: bool = False) -> KeyMap:
    """An encoder under `ours` against timm's ViT, whose names the authors' MAE files share; fine-tuned files too.
    pre_norm: CLIP's norm before the blocks, with which patches have no bias."""
    heads = (("transformer.final_norm", "norm"), ("pool_norm", "fc_norm"), ("head", "head"))
    return (
        *embeddings(ours, "cls_token", "pos_embed", "patch_embed.proj", modality, bias=not pre_norm),
        *(layer(f"{ours}transformer.input_norm", "norm_pre") if pre_norm else ()),
        *timm_blocks(f"{ours}transformer.blocks", "blocks"),
        *optional(*(rule for ours_, theirs in heads for rule in layer(f"{ours}{ours_}", theirs))),
    )


def transformers_vit(ours: str = "", theirs: str = "", norm: str = "transformer.final_norm") -> KeyMap:
    """An encoder under `ours` against transformers' ViTModel under `theirs`, in the names of hub files; norm: which of
    ours is theirs at the end, and a head if there is one."""
    first = f"{theirs}embeddings."
    patches = f"{first}patch_embeddings.projection"
    return (
        *embeddings(ours, f"{first}cls_token", f"{first}position_embeddings", patches),
        *transformers_blocks(f"{ours}transformer.blocks", f"{theirs}encoder.layer"),
        *layer(f"{ours}{norm}", f"{theirs}layernorm"),
        *optional(*layer(f"{ours}head", "classifier")),
    )


def official_settings(
    state: Mapping[str, Tensor], source: str, heads: int | None, eps: float, size: Size
) -> dict[str, Any]:
    """EncoderConfig's settings of an authors' ViT, read off its tensors. Raises UserError where it is none."""
    needed = ("patch_embed.proj.weight", "pos_embed", "cls_token", "blocks.0.mlp.fc1.weight")
    if absent := [key for key in needed if key not in state]:
        raise UserError(f"{source}: not a checkpoint of MAE's authors or of timm's ViT: it lacks {absent[0]}")
    dim, channels, *patch = state["patch_embed.proj.weight"].shape
    table, fine_tuned, pre_norm = state["pos_embed"][0, 1:], "fc_norm.weight" in state, "norm_pre.weight" in state
    size = table_size(size, patch, len(table), source)
    # half precision is off by less; a table that was trained is not
    grid, near = grid_of_size(size, patch, source), partial(torch.allclose, table.float().cpu(), atol=2e-3)
    layouts: tuple[Layout, ...] = ("sincos", "sincos_row_first")
    tokenizer = {
        "modality": asdict(image(channels, (patch[0], patch[1]))),
        "size": size,
        "position": next((each for each in layouts if near(sincos_table(grid, dim, each))), "learned"),
        "trainable": fine_tuned or None,
        "unbiased": pre_norm,
    }
    transformer = {
        "dim": dim,
        "depth": depth(state, "blocks."),
        "heads": heads or default_heads(dim),
        "hidden": len(state["blocks.0.mlp.fc1.weight"]),
        "norm_eps": eps,
        "input_norm": pre_norm,
        "final_norm": "norm.weight" in state,  # neither fine-tuned models nor MultiMAE's encoder have one
    }
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    # a head behind the norm of all tokens reads the class token's (facebookresearch/mae, `--cls_token`)
    pool = "class" if classes and not fine_tuned else None
    settings = {"tokenizers": [tokenizer], "transformer": transformer, "pool_norm": fine_tuned}
    return settings | {"classes": classes, "pool": pool}


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    eps: float = 1e-6,
    size: Size = None,
) -> Found:
    """The encoder in an authors' file; a decoder is left aside."""
    settings, pre_norm = official_settings(state, source, heads, eps, size), "norm_pre.weight" in state
    return Found(settings, timm_vit(pre_norm=pre_norm), without_decoder(state))


def without_decoder(state: State) -> dict[str, Tensor]:
    """The tensors of an authors' file but for MAE's decoder."""
    return {key: value for key, value in state.items() if not key.startswith(("decoder", "mask_token"))}


def transformers_settings(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """EncoderConfig's settings of a ViT or ViTMAE config.json in the folder `source`."""
    modality = asdict(image(config.get("num_channels", 3), pair(config["patch_size"])))
    tokenizer = {
        "modality": modality | statistics(source, modality["mean"], modality["std"]),
        "size": pair(config["image_size"]),
        "position": "sincos" if config["model_type"] == "vit_mae" else "learned",
    }
    qkv_bias = "all" if config.get("qkv_bias", True) else "none"
    return {"tokenizers": [tokenizer], "transformer": {**blocks_settings(config), "qkv_bias": qkv_bias}}


def read_transformers(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The encoder in a transformers folder."""
    prefix = "vit." if any(key.startswith("vit.") for key in state) else ""
    # Pooler and decoder are heads of other tasks.
    kept = {k: v for k, v in hub_names(state).items() if k.startswith((prefix, "classifier.")) and "pooler." not in k}
    head = head_settings(config, state)
    settings = transformers_settings(config, source) | head | {"pool": "class" if head["classes"] else None}
    return Found(settings, transformers_vit("", prefix), kept)


def transformers_config(settings: Settings) -> dict[str, Any]:
    """The config.json that ViTModel reads, and that ViTMAE's shares; with a head ViTForImageClassification. Raises
    UserError for what they cannot express."""
    if not (_is_vit(settings) or _is_vit_classifier(settings)):
        raise UserError(f"transformers' ViT is a plain encoder of pictures; this one is {settings}")
    classes = settings["classes"]
    return {
        "architectures": ["ViTForImageClassification" if classes else "ViTModel"],
        "model_type": "vit",
        **picture_fields(settings),
        "qkv_bias": True,
        **(head_fields(settings) if classes else {}),
    }


def picture_fields(settings: Settings) -> dict[str, Any]:
    """The sizes of a ViT of pictures as config.json fields."""
    tokenizer = settings["tokenizers"][0]
    return {
        **blocks_config(settings["transformer"]),
        "image_size": one_or_pair(tokenizer["size"]),
        "patch_size": one_or_pair(tokenizer["modality"]["patch"]),
        "num_channels": tokenizer["modality"]["channels"],
    }


def _is_vit(settings: Settings) -> bool:
    """Whether transformers' ViTModel can express it."""
    normed = settings["transformer"]["final_norm"] and not settings["pool_norm"]
    return is_plain_vit(settings) and normed and not settings["classes"]


def _is_vit_classifier(settings: Settings) -> bool:
    """Whether transformers' ViTForImageClassification can, which normalises all tokens and reads the class token: the
    norm of that alone, behind the pooling, is the same."""
    one_norm = settings["transformer"]["final_norm"] != settings["pool_norm"] and norms_agree(settings)
    return is_plain_vit(settings) and one_norm and settings["classes"] > 0 and settings["pool"] == "class"


def write_transformers(settings: Settings) -> Written:
    """As ViTModel, which makes a random pooler where there is none: here it is the tanh of the class token."""
    dim = settings["transformer"]["dim"]
    pooler = {"pooler.dense.weight": torch.eye(dim), "pooler.dense.bias": torch.zeros(dim)}
    config, processor = transformers_config(settings), image_processor(settings, "ViTImageProcessor")
    return Written(config, transformers_vit(), processor, pooler)


def write_classifier(settings: Settings) -> Written:
    """As ViTForImageClassification."""
    config, processor = transformers_config(settings), image_processor(settings, "ViTImageProcessor")
    norm = "pool_norm" if settings["pool_norm"] else "transformer.final_norm"
    return Written(config, transformers_vit("", "vit.", norm), processor)


def is_plain_vit(settings: Settings, modality: str = "image") -> bool:
    """One modality, a class token, pre-norm blocks with GELU and every bias: what other ViTs are."""
    names = [tokenizer["modality"]["name"] for tokenizer in settings["tokenizers"]]
    usual = not (settings["tokenizers"][0]["unbiased"] or settings["modality_embedding"] or settings["pooler"])
    return names == [modality] and settings["prefix"] == 1 and usual and is_plain(settings["transformer"], "all")


def is_clip(settings: Settings) -> bool:
    """What CLIP's image encoder is: plain, but for a norm before the blocks and patches without a bias, and either
    GELU."""
    transformer, (tokenizer, *_) = settings["transformer"], settings["tokenizers"]
    own = transformer["input_norm"] and tokenizer["unbiased"] and transformer["norm_eps"] == 1e-5
    blocks = {**transformer, "input_norm": False, "activation": "gelu"}
    biased = [{**each, "unbiased": False} for each in settings["tokenizers"]]
    plain = is_plain_vit({**settings, "transformer": blocks, "tokenizers": biased})
    return own and plain and transformer["activation"] in ("gelu", "quick_gelu")


def read_timm(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The encoder in a folder of timm's ViT of pictures, with the statistics noted there."""
    details, found = config["pretrained_cfg"], read_official({}, state, source, **timm_options(config))
    if "norm_pre.weight" in state:
        activation = "quick_gelu" if "quickgelu" in config["architecture"] else "gelu"
        found.settings["transformer"] |= {"norm_eps": 1e-5, "activation": activation}
    told = {"mean": tuple(details["mean"]), "std": tuple(details["std"])}
    found.settings["tokenizers"][0]["modality"] |= told
    found.settings.update(timm_head(config, found.settings["classes"], source))
    return found


def timm_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """What timm's config.json tells of an encoder that its tensors do not."""
    size = tuple(config["pretrained_cfg"]["input_size"][1:])
    return {"heads": config.get("model_args", {}).get("num_heads"), "size": size}


def timm_head(config: Mapping[str, Any], classes: int, source: str) -> dict[str, Any]:
    """EncoderConfig's settings of the head of a timm folder: what it sees, and its classes' names. UserError where that
    is neither the class token nor a mean."""
    if not classes:
        return {}
    pool = config.get("model_args", {}).get("global_pool") or config.get("global_pool", "token")
    if pool not in _POOLS.values():
        raise UserError(f"{source}: its head reads tokens pooled by {pool!r}, which only timm has")
    names = config.get("label_names") or config["pretrained_cfg"].get("label_names") or ()
    if isinstance(names, Mapping):  # by number, which may have gaps
        names = [names.get(str(number), "") for number in range(classes)]
    return {
        "pool": next(ours for ours, theirs in _POOLS.items() if theirs == pool),
        "labels": tuple(names) if len(names) == classes else (),
    }


def _is_timm_vit(settings: Settings) -> bool:
    """Whether timm's ViT can express it."""
    name = settings["tokenizers"][0]["modality"]["name"]
    one_norm_at_most = not (settings["transformer"]["final_norm"] and settings["pool_norm"])
    plain = is_clip(settings) or is_plain_vit(settings, name)
    return one_norm_at_most and name in ("image", "audio") and plain and head_pool(settings) in _POOLS


def write_timm(settings: Settings) -> Written:
    """As the folder by which `timm.create_model("local-dir:...", pretrained=True)` builds a plain ViT of any size, of
    pictures or spectrograms."""
    transformer, tokenizer = settings["transformer"], settings["tokenizers"][0]
    name, clip = tokenizer["modality"]["name"], is_clip(settings)
    if not _is_timm_vit(settings):
        raise UserError(f"timm's ViT is a plain encoder of pictures or spectrograms; this one is {settings}")
    modality, size, classes = tokenizer["modality"], list(tokenizer["size"]), settings["classes"]
    quick = {"act_layer": "quick_gelu"} if transformer["activation"] == "quick_gelu" else {}
    variant = ("clip_quickgelu_" if quick else "clip_") if clip else ""
    config = {
        "architecture": f"vit_base_patch16_{variant}224",  # timm must know it; the sizes below replace all of its own
        "num_classes": classes,
        "num_features": transformer["dim"],
        "global_pool": _POOLS[head_pool(settings)],
        **({"label_names": list(settings["labels"])} if settings["labels"] else {}),
        "model_args": {
            "img_size": size,
            "patch_size": list(modality["patch"]),
            "in_chans": modality["channels"],
            "embed_dim": transformer["dim"],
            "depth": transformer["depth"],
            "num_heads": transformer["heads"],
            "mlp_ratio": (transformer["hidden"] or 4 * transformer["dim"]) / transformer["dim"],
            "global_pool": _POOLS[head_pool(settings)],
            "fc_norm": settings["pool_norm"],
            **({"pre_norm": True} if clip else {}),
            **({} if transformer["final_norm"] or settings["pool_norm"] else {"final_norm": False}),
            **quick,
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
    return Written(config, timm_vit("", name, pre_norm=clip))


def timm_model(settings: Settings) -> nn.Module:
    """timm's VisionTransformer of these settings, with fresh weights. Raises UserError where it cannot express them."""
    from timm.models.vision_transformer import VisionTransformer

    config = write_timm(settings).config
    norm = partial(nn.LayerNorm, eps=settings["transformer"]["norm_eps"])
    return VisionTransformer(**config["model_args"], num_classes=config["num_classes"], norm_layer=norm)


def is_timm(config: Mapping[str, Any], _: State) -> bool:
    """Whether a config.json has the names that only timm writes."""
    return "architecture" in config and "pretrained_cfg" in config


FORMS = (
    Form("Encoder", "official", "files of the MAE family's authors", lambda _, state: True, read_official),
    Form(
        "Encoder",
        "transformers",
        "transformers' ViTModel",
        lambda config, _: config.get("model_type") in ("vit", "vit_mae"),
        read_transformers,
        "vit",
        write=write_transformers,
        fits=_is_vit,
    ),
    Form(
        "Encoder",
        "transformers",
        "transformers' ViTForImageClassification",
        lambda config, state: config.get("model_type") == "vit" and "classifier.weight" in state,
        read_transformers,
        "vit",
        write=write_classifier,
        fits=_is_vit_classifier,
    ),
    Form(
        "Encoder",
        "timm",
        "timm's VisionTransformer",
        is_timm,
        read_timm,
        "timm",
        write=write_timm,
        fits=_is_timm_vit,
    ),
)
