"""Audio-MAE: the authors' files (facebookresearch/AudioMAE), pretrained with either decoder, or fine-tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch

from mmssl.errors import UserError
from mmssl.interop import mae, vit
from mmssl.interop.forms import Form, Found
from mmssl.interop.parts import Size, depth, layer
from mmssl.interop.rules import KeyMap, Rule, State
from mmssl.modality import AUDIO
from mmssl.position import sincos_table

_OURS, _THEIRS = "decoder.transformer.blocks.{i}", "decoder_blocks.{i}"

GLOBAL = mae.authors("audio")
LOCAL: KeyMap = (
    *GLOBAL,
    Rule((f"{_OURS}.attn.layer.temperature",), (f"{_THEIRS}.attn.tau",)),
    *layer(f"{_OURS}.attn.layer.offset1", f"{_THEIRS}.attn.meta_mlp.fc1"),
    *layer(f"{_OURS}.attn.layer.offset2", f"{_THEIRS}.attn.meta_mlp.fc2"),
)


def _is_authors(_: Mapping[str, Any], state: State) -> bool:
    weight = state.get("patch_embed.proj.weight")
    return weight is not None and weight.ndim == 4 and weight.shape[1] == 1 and "pos_embed" in state


def encoder_settings(state: State, source: str, heads: int | None, eps: float, size: Size) -> dict[str, Any]:
    """EncoderConfig's settings of an authors' encoder, read off its tensors.

    size: (times, mel bands) of the spectrograms it was trained on; 128 bands and as many times as its table tells where
    not given. The table tells whether its codes are at their places.
    """
    if not _is_authors({}, state):
        raise UserError(f"{source}: not a checkpoint of Audio-MAE: it lacks patch_embed.proj.weight of one channel")
    _, _, *patch = state["patch_embed.proj.weight"].shape
    table = state["pos_embed"][0, 1:]
    if size is None:
        bands = 128 // patch[1]
        size = (len(table) // bands * patch[0], bands * patch[1]) if len(table) % bands == 0 else None
    settings = vit.official_settings(state, source, heads, eps, size)
    tokenizer = settings["tokenizers"][0]
    grid = tuple(side // by for side, by in zip(tokenizer["size"], patch))
    if tokenizer["position"] == "learned":
        swapped = sincos_table(grid, table.shape[1], "sincos_swapped")
        if torch.allclose(table.float().cpu(), swapped, atol=2e-3):
            tokenizer["position"] = "sincos_swapped"
    tokenizer["modality"] = asdict(replace(AUDIO, patch=tuple(patch)))
    tokenizer["trainable"] = False  # fixed in fine-tuning, too
    return settings


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
    rules = vit.timm_vit("", "audio")
    return Found(encoder_settings(state, source, heads, eps, size), rules, vit.without_decoder(state))


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    size: Size = None,
) -> Found:
    """Pretrained with the local or the global decoder, or fine-tuned; decoder_heads: the paper's 16 where not given."""
    encoder = encoder_settings(state, source, heads, 1e-6, size)
    settings: dict[str, Any] = {"encoder": encoder}
    if "decoder_embed.weight" not in state:
        return Found(settings, vit.timm_vit("encoder.", "audio"), state, whole=False)
    blocks: dict[str, Any] = {"dim": len(state["decoder_embed.weight"]), "depth": depth(state, "decoder_blocks.")}
    blocks |= {"heads": decoder_heads or 16, "hidden": len(state["decoder_blocks.0.mlp.fc1.weight"])}
    local = "decoder_blocks.0.attn.tau" in state
    if local:
        hidden = len(state["decoder_blocks.0.attn.meta_mlp.fc1.weight"])
        blocks |= {"norm_order": "res_post", "window": {"hidden": hidden}}
    settings["decoder"] = {"transformer": blocks, "position": encoder["tokenizers"][0]["position"]}
    return Found(settings, LOCAL if local else GLOBAL, state)


def _is_timm(config: Mapping[str, Any], state: State) -> bool:
    """A ViT of timm's on spectrograms: one channel, of AudioSet's size or with the negative mean of log-mel values."""
    if not vit.is_timm(config, state):
        return False
    details = config["pretrained_cfg"]
    channels, *size = details["input_size"]
    return channels == 1 and (size == [1024, 128] or details["mean"][0] < 0)


def read_timm(config: Mapping[str, Any], state: State, source: str) -> Found:
    """The encoder in a folder of timm's ViT on spectrograms: gaunernst's ports of Audio-MAE, and what we write.

    Statistics are those noted there, or AudioSet's where they are none of log-mel values or the deviation not doubled.
    """
    found = read_official_encoder({}, state, source, **vit.timm_options(config))
    (mean,), (std,) = (config["pretrained_cfg"][name] for name in ("mean", "std"))
    if mean < 0 and not math.isclose(2 * std, AUDIO.std[0], rel_tol=1e-3):
        found.settings["tokenizers"][0]["modality"] |= {"mean": (mean,), "std": (std,)}
    found.settings.update(vit.timm_head(config, found.settings["classes"], source))
    return found


FORMS = (
    Form(
        "Encoder",
        "timm",
        "timm's VisionTransformer",
        _is_timm,
        read_timm,
        "timm",
        "audio",
        vit.write_timm,
    ),
    Form("Encoder", "official", "Audio-MAE's authors' files", _is_authors, read_official_encoder, media="audio"),
    Form("AudioMAE", "official", "the authors' files", lambda _, state: True, read_official, media="audio"),
)
