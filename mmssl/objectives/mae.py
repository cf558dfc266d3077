"""Masked autoencoder (He et al. 2021, arXiv 2111.06377): see a quarter of the patches, predict the rest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from mmssl import interop
from mmssl.decoder import DecoderConfig, decoder_size, mae_decoder_config
from mmssl.encoder import EncoderConfig, vit_config
from mmssl.errors import UserError
from mmssl.masking import Mask, batch_bits, random_mask, visible_count
from mmssl.modality import image
from mmssl.objectives.objective import Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.tokenizer import Batch

M = TypeVar("M", bound="MAE")


@dataclass(frozen=True)
class MAEConfig:
    """The defaults are the paper's ViT-B/16; the authors' released encoders were trained with `norm_pix`.

    mask_ratio: int(patches * (1 - mask_ratio)) stay visible. norm_pix: standardise each target patch.
    seed: of the masks.
    """

    encoder: EncoderConfig = vit_config("base")
    decoder: DecoderConfig = mae_decoder_config()
    mask_ratio: float = 0.75
    norm_pix: bool = False
    seed: int = 0


def mae_config(
    model: str = "base",
    *,
    size: int = 224,
    patch: int | None = None,
    channels: int = 3,
    drop_path: float = 0.0,
    mask_ratio: float = 0.75,
    norm_pix: bool = False,
    seed: int = 0,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
) -> MAEConfig:
    """MAE on square pictures. model: tiny, small, base, large or huge. patch: its side; None is 16, or 14 for huge.
    The decoder is the paper's from base on and smaller below where not given, see `decoder_size`.
    """
    patch = (14 if model == "huge" else 16) if patch is None else patch
    if min(patch, size, channels) < 1 or size % patch:
        raise UserError(
            f"patch {patch} does not divide pictures of {size} pixels and {channels} channels: "
            "choose another --size or --patch, all of them above 0"
        )
    modality = image(channels, (patch, patch))
    encoder = vit_config(model, modality=modality, input_size=(size, size), drop_path=drop_path)
    decoder = mae_decoder_config(*decoder_size(model, decoder_dim, decoder_depth))
    return MAEConfig(encoder, decoder, mask_ratio, norm_pix, seed)


class MAE(PixelObjective):
    """Hide most patches, encode the visible ones, decode the rest, compare pixels.

    Works on any one continuous modality: pictures, clips, spectrograms.
    """

    config_class = MAEConfig

    named = staticmethod(mae_config)

    def __init__(self, config: MAEConfig | str = "base", **settings: Any):
        super().__init__(config, settings)
        visible_count(math.prod(self.tokenizer.size_grid), self.config.mask_ratio)

    def hide(self, batch: Batch) -> Mask:
        """A random mask for every sample: int(N * (1 - mask_ratio)) patches stay."""
        sizes = self.encoder.sizes(batch)
        count = sizes[self.modality.name]
        noise = batch_bits(batch, count, seed=self.config.seed, stream=f"mask/{self.modality.name}")
        return random_mask(noise, visible_count(count, self.config.mask_ratio), sizes)

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        tokens = self.encoder(batch, mask)
        prediction = self.decoder(tokens, mask.hide, self.tokenizer.grid(batch))
        loss = self.loss(prediction, batch, mask.hide)
        return Output(loss, {"mse": loss.detach()}, prediction, mask)

    @classmethod
    def from_official(
        cls: type[M],
        source: str | Path | Mapping[str, Any],
        *,
        heads: int | None = None,
        decoder_heads: int = 16,
        size: int | tuple[int, ...] | None = None,
        mask_ratio: float = 0.75,
        norm_pix: bool | None = None,
    ) -> M:
        """From the authors' files or state dicts (facebookresearch/mae): full, encoder only, or fine-tuned.

        Sizes are read off the shapes; heads are the paper's for the width. size: of the pictures it was trained on,
        (height, width) or one side for both; taken for square where not given (see `Encoder.from_official`). norm_pix:
        the released encoders and `_full` files were trained with it (the default here), the `visualize` files without:
        the file does not tell. A file without a decoder leaves it freshly initialised, with a warning.
        """
        state, name = interop.official_state(source)
        settings, *_ = interop.official_encoder(state, name, heads=heads, eps=1e-6, size=size)
        encoder = interop.config_from_dict(EncoderConfig, settings)
        full = "decoder_embed.weight" in state
        decoder = mae_decoder_config()
        if full:
            depth = interop.depth(state, "decoder_blocks.")
            decoder = mae_decoder_config(len(state["decoder_embed.weight"]), depth, decoder_heads)
        mae = cls(MAEConfig(encoder, decoder, mask_ratio, True if norm_pix is None else norm_pix))
        rules = interop.AUTHORS_MAE if full else interop.timm_vit("encoder.")
        return mae.take(state, rules, name, whole=full)

    @classmethod
    def from_transformers(cls: type[M], config: dict[str, Any], state: dict[str, Tensor], source: str) -> M:
        if config.get("model_type") != "vit_mae":
            raise UserError(f"{source}: model type {config.get('model_type')!r} is not transformers' vit_mae")
        decoder = mae_decoder_config(
            config["decoder_hidden_size"],
            config["decoder_num_hidden_layers"],
            config["decoder_num_attention_heads"],
            config.get("layer_norm_eps", 1e-12),
        )
        transformer = dataclasses.replace(decoder.transformer, hidden=config["decoder_intermediate_size"])
        decoder = dataclasses.replace(decoder, transformer=transformer)
        encoder = interop.config_from_dict(EncoderConfig, interop.transformers_encoder(config, state, source)[0])
        mae = cls(MAEConfig(encoder, decoder, config["mask_ratio"], config.get("norm_pix_loss", False)))
        return mae.take(interop.hub_names(state), interop.TRANSFORMERS_MAE, source)

    def to_transformers(self, folder: str | Path) -> Path:
        """Write a folder that transformers' `ViTMAEForPreTraining` reads."""
        encoder, decoder = self.config.encoder.transformer, self.config.decoder.transformer
        if encoder.norm_eps != decoder.norm_eps:
            raise UserError(
                f"ViTMAE has one norm eps; encoder {encoder.norm_eps} and decoder {decoder.norm_eps} differ"
            )
        config = interop.transformers_form(dataclasses.asdict(self.config.encoder))[0]
        if not all(isinstance(config[name], int) for name in ("image_size", "patch_size")):
            raise UserError(
                f"ViTMAE's positions and decoder are for square pictures and patches; these are {config['image_size']} "
                f"and {config['patch_size']}: write the encoder alone, `encoder.to_transformers`"
            )
        config |= {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            "decoder_hidden_size": decoder.dim,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": decoder.mlp_width,
            "mask_ratio": self.config.mask_ratio,
            "norm_pix_loss": self.config.norm_pix,
        }
        state = interop.to_theirs(self.state_dict(), interop.TRANSFORMERS_MAE, self.modality.patch)
        processor = interop.image_processor(dataclasses.asdict(self.config.encoder), "ViTImageProcessor")
        return interop.save_folder(folder, config, state, processor)
