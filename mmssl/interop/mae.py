"""MAE: the authors' files (facebookresearch/mae) and transformers' ViTMAE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmssl.errors import UserError
from mmssl.interop import vit
from mmssl.interop.forms import Form, Found, Settings, Written
from mmssl.interop.parts import (
    Size,
    blocks_settings,
    decoder,
    decoder_fields,
    depth,
    hub_names,
    image_processor,
    timm_blocks,
    transformers_blocks,
)
from mmssl.interop.rules import KeyMap, State

AUTHORS_DECODER = decoder("decoder_embed", "mask_token", "decoder_pos_embed", "decoder_norm", "decoder_pred")


def authors(modality: str = "image") -> KeyMap:
    """The authors' names, on media of this modality."""
    blocks = timm_blocks("decoder.transformer.blocks", "decoder_blocks")
    return (*vit.timm_vit("encoder.", modality), *AUTHORS_DECODER, *blocks)


AUTHORS = authors()
TRANSFORMERS: KeyMap = (
    *vit.transformers_vit("encoder.", "vit."),
    *decoder(
        "decoder.decoder_embed",
        "decoder.mask_token",
        "decoder.decoder_pos_embed",
        "decoder.decoder_norm",
        "decoder.decoder_pred",
    ),
    *transformers_blocks("decoder.transformer.blocks", "decoder.decoder_layers"),
)


def read_official(
    _: Mapping[str, Any],
    state: State,
    source: str,
    *,
    heads: int | None = None,
    decoder_heads: int | None = None,
    size: Size = None,
) -> Found:
    """Full, encoder only, or fine-tuned; decoder_heads: the paper's 16 where not given.

    The released encoders and `_full` files were trained with `norm_pix` (the default here), the `visualize` files
    without: the file does not tell.
    """
    settings: dict[str, Any] = {"encoder": vit.official_settings(state, source, heads, 1e-6, size), "norm_pix": True}
    if "decoder_embed.weight" not in state:
        return Found(settings, vit.timm_vit("encoder."), state, whole=False)
    blocks = {"dim": len(state["decoder_embed.weight"]), "depth": depth(state, "decoder_blocks.")}
    return Found(settings | {"decoder": {"transformer": blocks | {"heads": decoder_heads or 16}}}, AUTHORS, state)


def read_transformers(config: Mapping[str, Any], state: State, source: str) -> Found:
    """A ViTMAEForPreTraining folder."""
    settings = {
        "encoder": vit.transformers_settings(config, source),
        "decoder": {"transformer": blocks_settings(config, "decoder_")},
        "mask_ratio": config["mask_ratio"],
        "norm_pix": config.get("norm_pix_loss", False),
    }
    return Found(settings, TRANSFORMERS, hub_names(state))


def write_transformers(settings: Settings) -> Written:
    """As ViTMAEForPreTraining, whose positions and decoder are for square pictures and patches."""
    decoder_part = decoder_fields(settings)
    config = vit.transformers_config(settings["encoder"])
    if not all(isinstance(config[name], int) for name in ("image_size", "patch_size")):
        raise UserError(
            f"ViTMAE's positions and decoder are for square pictures and patches; these are {config['image_size']} "
            f"and {config['patch_size']}: write the encoder alone, `encoder.to_transformers`"
        )
    config |= decoder_part | {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        "mask_ratio": settings["mask_ratio"],
    }
    return Written(config, TRANSFORMERS, image_processor(settings["encoder"], "ViTImageProcessor"))


FORMS = (
    Form("MAE", "official", "the authors' files", lambda _, state: True, read_official),
    Form(
        "MAE",
        "transformers",
        "transformers' ViTMAEForPreTraining",
        lambda config, _: config.get("model_type") == "vit_mae",
        read_transformers,
        "vit_mae",
        write=write_transformers,
    ),
)
