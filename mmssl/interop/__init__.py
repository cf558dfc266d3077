"""Other libraries' checkpoints: key maps and config maps, as data."""

from mmssl.interop import bert, clip, mae, multimae, siammae, videomae, vit
from mmssl.interop.folder import (
    config_from_dict,
    load,
    loading,
    official_state,
    read_config,
    read_weights,
    resolve,
    save_folder,
)
from mmssl.interop.forms import Form, Found, Library, Written
from mmssl.interop.registry import form_of, form_read, forms_of, save_as
from mmssl.interop.rules import KeyMap, Rule, to_ours, to_theirs

__all__ = [
    "Form",
    "Found",
    "KeyMap",
    "Library",
    "Rule",
    "Written",
    "bert",
    "clip",
    "config_from_dict",
    "form_of",
    "form_read",
    "forms_of",
    "load",
    "loading",
    "mae",
    "multimae",
    "official_state",
    "read_config",
    "read_weights",
    "resolve",
    "save_as",
    "save_folder",
    "siammae",
    "to_ours",
    "to_theirs",
    "videomae",
    "vit",
]
