"""transformers' BEiT: the form of a ViT that classifies the normalised mean of its patches, as MAE's tuned models do.

The positions between patches, which BEiT's own models have in their attention, are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.errors import UserError
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    embeddings,
    head_fields,
    head_pool,
    head_settings,
    hub_names,
    image_processor,
    layer,
    norms_agree,
    transformers_blocks,
)
from mmssl.interop.rules import KeyMap, State
from mmssl.interop.vit import is_plain_vit, picture_fields, transformers_settings

RULES: KeyMap = (
    *embeddings(
        "",
        "beit.embeddings.cls_token",
        "beit.embeddings.position_embeddings",
        "beit.embeddings.patch_embeddings.projection",
    ),
    *transformers_blocks("transformer.blocks", "beit.encoder.layer", keyless=True),
    *layer("pool_norm", "beit.pooler.layernorm"),
    *layer("head", "classifier"),
)
# What its config.json says of a ViT; all else is another model.
_PLAIN = {
    "use_absolute_position_embeddings": True,
    "use_relative_position_bias": False,
    "use_shared_relative_position_bias": False,
    "use_mean_pooling": True,
    "layer_scale_init_value": 0.0,
}


def read(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A BeitForImageClassification folder. UserError where it is no ViT."""
    different = [name for name, value in _PLAIN.items() if config.get(name) != value]
    if different or "classifier.weight" not in state:
        reason = f"its {different[0]} is {config.get(different[0])!r}" if different else "it lacks a classifier"
        raise UserError(f"{source}: of BEiT only classifiers are read that are a plain ViT, and {reason}")
    settings = transformers_settings(config, source)
    settings["transformer"] |= {"final_norm": False, "drop_path": config.get("drop_path_rate", 0.0)}
    return Found(settings | {"pool_norm": True} | head_settings(config, state), RULES, hub_names(state))


def write(settings: Settings) -> Written:
    """As BeitForImageClassification. Raises UserError for what it cannot express."""
    if not _fits(settings):
        raise UserError(
            f"transformers' BEiT classifies the normalised mean of square pictures' patches; this one is {settings}"
        )
    config = {
        "architectures": ["BeitForImageClassification"],
        "model_type": "beit",
        **picture_fields(settings),
        **_PLAIN,
        "drop_path_rate": settings["transformer"]["drop_path"],
        **head_fields(settings),
    }
    return Written(config, RULES, image_processor(settings, "ViTImageProcessor"))


def _fits(settings: Settings) -> bool:
    """A ViT with a head on the mean. It finds places in square pictures only."""
    height, width = settings["tokenizers"][0]["size"] if is_plain_vit(settings) else (0, 1)
    one_norm = settings["pool_norm"] and not settings["transformer"]["final_norm"] and norms_agree(settings)
    return height == width and one_norm and settings["classes"] > 0 and head_pool(settings) == "mean"


FORMS = (
    Form(
        "Encoder",
        "transformers",
        "transformers' BeitForImageClassification",
        lambda config, _: config.get("model_type") == "beit",
        read,
        "beit",
        write=write,
        fits=_fits,
    ),
)
