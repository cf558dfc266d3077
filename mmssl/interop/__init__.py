"""Other libraries' checkpoints: key maps and config maps, as data."""

from mmssl.interop.folder import config_from_dict, loading, read_config, read_weights, resolve, save_folder, unwrap
from mmssl.interop.rules import KeyMap, Rule, to_ours, to_theirs
from mmssl.interop.vit import (
    AUTHORS_MAE,
    TRANSFORMERS_MAE,
    hub_names,
    timm_vit,
    transformers_vit,
    transformers_vit_config,
)

__all__ = [
    "AUTHORS_MAE",
    "TRANSFORMERS_MAE",
    "KeyMap",
    "Rule",
    "config_from_dict",
    "hub_names",
    "loading",
    "read_config",
    "read_weights",
    "resolve",
    "save_folder",
    "timm_vit",
    "to_ours",
    "to_theirs",
    "transformers_vit",
    "transformers_vit_config",
    "unwrap",
]
