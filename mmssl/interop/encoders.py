"""Encoders of other libraries, whatever their family: what is in a file, and how one of ours is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmssl.errors import UserError
from mmssl.interop import videomae, vit
from mmssl.interop.rules import KeyMap
from mmssl.interop.vit import Found, Size


def official_encoder(
    state: Mapping[str, Tensor], source: str, *, heads: int | None, eps: float, size: Size = None
) -> Found:
    """The encoder in an authors' file of MAE, CropMAE, VideoMAE or timm; sizes are read off the shapes, and `size`."""
    family = videomae if videomae.matches(state) else vit
    return family.official_encoder(state, source, heads=heads, eps=eps, size=size)


def transformers_encoder(config: Mapping[str, Any], state: Mapping[str, Tensor], source: str) -> Found:
    """The encoder in a transformers folder, or timm's. Raises UserError for a model type that is not known."""
    if "architecture" in config and "pretrained_cfg" in config:  # timm's, by the names that only it writes
        return vit.timm_encoder(config, state, source)
    for family in (vit, videomae):
        if config.get("model_type") in family.MODEL_TYPES:
            return family.transformers_encoder(config, state)
    known = ", ".join((*vit.MODEL_TYPES, *videomae.MODEL_TYPES))
    raise UserError(f"{source}: model type {config.get('model_type')!r} is not a ViT; mmssl reads {known}")


def transformers_form(settings: Mapping[str, Any]) -> tuple[dict[str, Any], KeyMap]:
    """config.json and key map by which transformers reads an encoder of ours. UserError for what it cannot express."""
    if settings["tokenizers"][0]["modality"]["name"] == "video":
        return videomae.transformers_config(settings), videomae.transformers_videomae()
    return vit.transformers_config(settings), vit.transformers_vit()
