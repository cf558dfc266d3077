"""VideoMAE: the authors' files (MCG-NJU/VideoMAE) and transformers' VideoMAE, with their encoders of clips."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    Size,
    blocks_config,
    blocks_settings,
    decoder_fields,
    default_heads,
    depth,
    grid_of_size,
    head_fields,
    head_pool,
    head_settings,
    image_processor,
    is_plain,
    layer,
    one_or_pair,
    optional,
    pair,
    projection,
    statistics,
    timm_blocks,
    transformers_blocks,
)
from mmssl.interop.rules import KeyMap, Rule, State
from mmssl.modality import VIDEO

PAPERS_SIZE = (16, 224, 224)
# Heads of decoders by their width, where it is not 64 channels each: beside tiny (ours) and huge (the authors').
DECODER_HEADS = {96: 3, 640: 8}
# The norms behind transformers' decoder and behind its pooling have PyTorch's eps, whatever the config says.
TRANSFORMERS_EPS = 1e-5


def authors_encoder(ours: str = "", theirs: str = "") -> KeyMap:
    """An encoder under `ours` against the authors' under `theirs`: "encoder." when pretrained, "" when fine-tuned."""
    return (
        *projection(f"{ours}tokenizers.video", f"{theirs}patch_embed.proj"),
        *timm_blocks(f"{ours}transformer.blocks", f"{theirs}blocks", query_value=True),
        *optional(*layer(f"{ours}transformer.final_norm", f"{theirs}norm")),
        *optional(*layer(f"{ours}pool_norm", f"{theirs}fc_norm"), *layer(f"{ours}head", f"{theirs}head")),
    )


# What stands round the blocks of the decoder, the same in both.
_DECODER: KeyMap = (
    Rule(("decoder.embed.weight",), ("encoder_to_decoder.weight",)),
    Rule(("decoder.mask_token",), ("mask_token",), "shape", (1, 1, -1)),
    *layer("decoder.transformer.final_norm", "decoder.norm"),
    *layer("decoder.pred", "decoder.head"),
)
AUTHORS: KeyMap = (
    *authors_encoder("encoder.", "encoder."),
    *_DECODER,
    *timm_blocks("decoder.transformer.blocks", "decoder.blocks", query_value=True),
)


def transformers_videomae(ours: str = "", theirs: str = "") -> KeyMap:
    """An encoder under `ours` against transformers' VideoMAEModel under `theirs`, in the names of hub files."""
    return (
        *projection(f"{ours}tokenizers.video", f"{theirs}embeddings.patch_embeddings.projection"),
        *transformers_blocks(f"{ours}transformer.blocks", f"{theirs}encoder.layer", query_value=True),
        *optional(*layer(f"{ours}transformer.final_norm", f"{theirs}layernorm")),
        *optional(*layer(f"{ours}pool_norm", "fc_norm"), *layer(f"{ours}head", "classifier")),
    )


TRANSFORMERS: KeyMap = (
    *transformers_videomae("encoder.", "videomae."),
    *_DECODER,
    *transformers_blocks("decoder.transformer.blocks", "decoder.decoder_layers", query_value=True),
)


def hub_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A transformers VideoMAE state dict of any version under the names of hub files."""
    renamed = {"query.bias": "q_bias", "value.bias": "v_bias"}
    out = {}
    for key, value in state.items():
        for new, old in renamed.items():
            key = key.replace(f"attention.attention.{new}", f"attention.attention.{old}")
        out[key] = value
    return out


def official_settings(
    state: Mapping[str, Tensor], source: str, heads: int | None, eps: float, size: Size
) -> dict[str, Any]:
    """EncoderConfig's settings of an authors' encoder, read off its tensors.

    No tensor tells the clips' size. Where it is not given, 16 x 224 x 224, the paper's, is noted down, but nothing
    interpolated from a guess: positions are computed for every grid, right on clips of the size that was trained on.
    """
    part = "encoder." if "encoder.patch_embed.proj.weight" in state else ""
    dim, channels, *patch = state[f"{part}patch_embed.proj.weight"].shape
    fine_tuned = "fc_norm.weight" in state
    transformer = {
        "dim": dim,
        "depth": depth(state, f"{part}blocks."),
        "heads": heads or default_heads(dim),
        "hidden": len(state[f"{part}blocks.0.mlp.fc1.weight"]),
        "norm_eps": eps,
        "qkv_bias": "query_value" if f"{part}blocks.0.attn.q_bias" in state else "none",
        "final_norm": f"{part}norm.weight" in state,
    }
    classes = len(state["head.weight"]) if "head.weight" in state else 0
    # a head behind the norm of all tokens reads the first one's (MCG-NJU/VideoMAE, `use_mean_pooling`)
    pool = "class" if classes and not fine_tuned else None
    known = PAPERS_SIZE if size is None else (size,) if isinstance(size, int) else tuple(size)
    grid_of_size(known, patch, source)
    settings = _settings(channels, patch, known, transformer, recompute=True if size is None else None)
    return settings | {"pool_norm": fine_tuned, "classes": classes, "pool": pool}


def transformers_settings(config: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """EncoderConfig's settings of a VideoMAE config.json in the folder `source`; norms and head are those that the
    weights hold."""
    biases = config.get("qv_bias", config.get("qkv_bias", True))
    transformer = {
        **blocks_settings(config),
        "qkv_bias": "query_value" if biases else "none",
        "final_norm": any(key.removeprefix("videomae.") == "layernorm.weight" for key in state),
    }
    patch = (config.get("tubelet_size", 2), *pair(config["patch_size"]))
    size = (config.get("num_frames", 16), *pair(config["image_size"]))
    settings = _settings(config.get("num_channels", 3), patch, size, transformer)
    modality = settings["tokenizers"][0]["modality"]
    modality |= statistics(source, modality["mean"], modality["std"])
    head = head_settings(config, state)
    if "fc_norm.weight" in state:
        return settings | head | {"pool_norm": True, "pool_norm_eps": TRANSFORMERS_EPS}
    return settings | head | {"pool": "class" if head["classes"] else None}


def _settings(
    channels: int, patch: Any, size: tuple[int, ...], transformer: dict[str, Any], recompute: bool | None = None
) -> dict[str, Any]:
    if channels != VIDEO.channels:
        raise UserError(f"clips of {channels} channels: VideoMAE's checkpoints are read for {VIDEO.channels} (RGB)")
    modality = asdict(replace(VIDEO, patch=tuple(patch)))
    tokenizer = {"modality": modality, "size": size, "position": "sincos_interleaved", "recompute": recompute}
    return {"tokenizers": [tokenizer], "transformer": transformer, "prefix": 0}


def transformers_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that VideoMAEModel reads, or with a head VideoMAEForVideoClassification.

    Raises UserError for an encoder they cannot express.
    """
    transformer, tokenizer = settings["transformer"], settings["tokenizers"][0]
    modality, size = tokenizer["modality"], tokenizer["size"]
    patch, plain = modality["patch"], is_plain(transformer, "query_value")
    alone = len(settings["tokenizers"]) == 1 and settings["prefix"] == 0 and not settings["pooler"]
    if not (plain and alone and tokenizer["position"] == "sincos_interleaved" and modality["channels"] == 3):
        raise UserError(f"transformers' VideoMAE is a plain encoder of RGB clips; this one is {settings}")
    classes = settings["classes"]
    config = {
        "architectures": ["VideoMAEForVideoClassification" if classes else "VideoMAEModel"],
        "model_type": "videomae",
        **blocks_config(transformer),
        "qkv_bias": True,
        "num_frames": size[0],
        "image_size": one_or_pair(size[1:]),
        "tubelet_size": patch[0],
        "patch_size": one_or_pair(patch[1:]),
        "num_channels": modality["channels"],
        "use_mean_pooling": not transformer["final_norm"],
    }
    if classes:
        first = head_pool(settings) == "class"
        if (transformer["final_norm"], settings["pool_norm"]) != (first, not first):
            raise UserError(
                "transformers' VideoMAE classifies a normalised mean of tokens (pool_norm, no final_norm), or the "
                "first of normalised ones; this encoder does not, and its logits would differ"
            )
        if settings["pool_norm"]:
            fixed_eps("pooling", settings["pool_norm_eps"] or transformer["norm_eps"])
        config |= head_fields(settings)
    return config


def fixed_eps(norm: str, eps: float) -> None:
    """Warn where transformers will compute a norm with another eps than ours."""
    if eps != TRANSFORMERS_EPS:
        warnings.warn(
            f"transformers' VideoMAE has eps {TRANSFORMERS_EPS} in the norm of its {norm}, this model {eps}: outputs "
            "will differ by about a millionth",
            stacklevel=3,
        )


def read_official_encoder(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    eps: float = 1e-6,
    size: Size = None,
) -> Found:
    """The encoder in an authors' file, pretrained or fine-tuned."""
    part = "encoder." if "encoder.patch_embed.proj.weight" in state else ""
    settings = official_settings(state, source, heads, eps, size)
    return Found(settings, authors_encoder("", part), _without_decoder(state))


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    size: Size = None,
) -> Found:
    """Pretrained, or fine-tuned without a decoder.

    size: frames, height and width of the clips it was trained on, which no tensor tells: where it is given, clips of
    other sizes get interpolated positions, else computed ones. Heads: the paper's for the widths.
    """
    if not _is_authors({}, state):
        raise UserError(f"{source}: not a checkpoint of VideoMAE's authors: it lacks patch_embed.proj.weight of 5 axes")
    settings = {"encoder": official_settings(state, source, heads, 1e-6, size)}
    if "encoder_to_decoder.weight" not in state:
        return Found(settings, authors_encoder("encoder."), state, whole=False)
    dim = len(state["encoder_to_decoder.weight"])
    heads = decoder_heads or DECODER_HEADS.get(dim, max(1, dim // 64))
    blocks = {"dim": dim, "depth": depth(state, "decoder.blocks."), "heads": heads, "qkv_bias": "query_value"}
    return Found(settings | {"decoder": _decoder(blocks)}, AUTHORS, state)


def _decoder(transformer: dict[str, Any]) -> dict[str, Any]:
    """DecoderConfig's settings."""
    return {
        "transformer": transformer,
        "position": "sincos_interleaved",
        "sequence": "visible_hidden",
        "bias": False,
    }


def read_transformers_encoder(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The encoder in a transformers folder."""
    prefix = "videomae." if any(key.startswith("videomae.") for key in state) else ""
    tensors = _without_decoder(hub_names(state))
    return Found(transformers_settings(config, state, source), transformers_videomae("", prefix), tensors)


def read_transformers(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A VideoMAEForPreTraining folder."""
    encoder = transformers_settings(config, state, source)
    kept = {"final_norm_eps": TRANSFORMERS_EPS, "qkv_bias": encoder["transformer"]["qkv_bias"]}
    decoder = _decoder(blocks_settings(config, "decoder_") | kept)
    settings = {"encoder": encoder, "decoder": decoder, "norm_pix": config.get("norm_pix_loss", True)}
    return Found(settings, TRANSFORMERS, hub_names(state))


def write_transformers_encoder(settings: Settings) -> Written:
    """As VideoMAEModel, or with a head VideoMAEForVideoClassification."""
    rules = transformers_videomae("", "videomae." if settings["classes"] else "")
    return Written(transformers_config(settings), rules, image_processor(settings, "VideoMAEImageProcessor"))


def write_transformers(settings: Settings) -> Written:
    """As VideoMAEForPreTraining, which predicts square patches."""
    decoder_part, decoder = decoder_fields(settings), settings["decoder"]["transformer"]
    config = transformers_config(settings["encoder"])
    if not isinstance(config["patch_size"], int):
        raise UserError(
            f"VideoMAEForPreTraining predicts square patches; these are {config['patch_size']}: write the encoder "
            "alone, `encoder.to_transformers`"
        )
    fixed_eps("decoder", decoder["final_norm_eps"] or decoder["norm_eps"])
    config |= decoder_part | {"architectures": ["VideoMAEForPreTraining"]}
    return Written(config, TRANSFORMERS, image_processor(settings["encoder"], "VideoMAEImageProcessor"))


def _without_decoder(state: State) -> dict[str, Tensor]:
    parts = ("decoder.", "mask_token", "encoder_to_decoder")
    return {key: value for key, value in state.items() if not key.startswith(parts)}


def _is_authors(_: Mapping[str, Any], state: State) -> bool:
    return any(key.endswith("patch_embed.proj.weight") and value.ndim == 5 for key, value in state.items())


FORMS = (
    Form("Encoder", "official", "VideoMAE's authors' files", _is_authors, read_official_encoder, media="video"),
    Form(
        "Encoder",
        "transformers",
        "transformers' VideoMAEModel",
        lambda config, _: config.get("model_type") == "videomae",
        read_transformers_encoder,
        "vit",
        "video",
        write_transformers_encoder,
        lambda settings: not settings["classes"],
    ),
    Form(
        "Encoder",
        "transformers",
        "transformers' VideoMAEForVideoClassification",
        lambda config, state: config.get("model_type") == "videomae" and "classifier.weight" in state,
        read_transformers_encoder,
        "vit",
        "video",
        write_transformers_encoder,
        lambda settings: settings["classes"] > 0,
    ),
    Form("VideoMAE", "official", "the authors' files", lambda _, state: True, read_official, media="video"),
    Form(
        "VideoMAE",
        "transformers",
        "transformers' VideoMAEForPreTraining",
        lambda config, state: config.get("model_type") == "videomae" and "mask_token" in state,
        read_transformers,
        "videomae",
        "video",
        write_transformers,
    ),
)
