"""Other libraries' checkpoints: key maps and config maps, as data."""

from mmssl.interop import siammae, videomae
from mmssl.interop.encoders import official_encoder, transformers_encoder, transformers_form
from mmssl.interop.folder import (
    config_from_dict,
    loading,
    official_state,
    read_config,
    read_weights,
    resolve,
    save_folder,
)
from mmssl.interop.rules import KeyMap, Rule, to_ours, to_theirs
from mmssl.interop.vit import (
    AUTHORS_MAE,
    TRANSFORMERS_MAE,
    Found,
    depth,
    hub_names,
    image_processor,
    is_plain,
    timm_config,
    timm_vit,
)

__all__ = [
    "AUTHORS_MAE",
    "TRANSFORMERS_MAE",
    "Found",
    "KeyMap",
    "Rule",
    "config_from_dict",
    "depth",
    "hub_names",
    "image_processor",
    "is_plain",
    "loading",
    "official_encoder",
    "official_state",
    "read_config",
    "read_weights",
    "resolve",
    "save_folder",
    "siammae",
    "timm_config",
    "timm_vit",
    "to_ours",
    "to_theirs",
    "transformers_encoder",
    "transformers_form",
    "videomae",
]
