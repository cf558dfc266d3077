"""Masked autoencoder (He et al. 2021, arXiv 2111.06377): see a quarter of the patches, predict the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mmssl.decoder import DecoderConfig, decoder_size, mae_decoder_config
from mmssl.encoder import EncoderConfig, square_pictures, vit_config
from mmssl.masking import Mask, batch_bits, random_mask, visible_count
from mmssl.objectives.objective import Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.tokenizer import Batch


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
    modality, input_size = square_pictures(size, patch, channels)
    encoder = vit_config(model, modality=modality, input_size=input_size, drop_path=drop_path)
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
