"""SiamMAE (Gupta et al. 2023, arXiv 2305.14344): predict a frame of which 5 % is seen from another, earlier one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmssl.decoder import DecoderConfig, decoder_size
from mmssl.encoder import EncoderConfig, vit_config
from mmssl.errors import UserError
from mmssl.masking import Mask, batch_bits, random_mask, visible_count
from mmssl.modality import image, zero_to_one
from mmssl.objectives.figures import Figure
from mmssl.objectives.objective import Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.tokenizer import Batch, view
from mmssl.transformer import TransformerConfig


def siammae_decoder_config(dim: int = 256, depth: int = 4, heads: int = 8) -> DecoderConfig:
    """The paper's "cross-self" decoder; it does not tell its size: the defaults are CropMAE's beside ViT-S."""
    return DecoderConfig(TransformerConfig(dim, depth, heads, branches=("cross", "attn", "mlp")))


@dataclass(frozen=True)
class SiamMAEConfig:
    """The defaults are the paper's ViT-S/16.

    mask_ratio: int(patches * (1 - mask_ratio)) of the future frame stay visible. norm_pix: standardise each target
    patch. seed: of the masks.
    """

    encoder: EncoderConfig = vit_config("small")
    decoder: DecoderConfig = siammae_decoder_config()
    mask_ratio: float = 0.95
    norm_pix: bool = True
    seed: int = 0


def siammae_config(
    model: str = "small",
    *,
    size: int = 224,
    patch: int = 16,
    mask_ratio: float = 0.95,
    norm_pix: bool = True,
    seed: int = 0,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
) -> SiamMAEConfig:
    """SiamMAE on square frames. model: tiny, small, base, large or huge. The decoder: see `decoder_size`."""
    if min(patch, size) < 1 or size % patch:
        raise UserError(f"patch {patch} does not divide frames of {size} pixels: choose another --size")
    encoder = vit_config(model, modality=image(3, (patch, patch)), input_size=(size, size))
    decoder = siammae_decoder_config(*decoder_size(model, decoder_dim, decoder_depth))
    return SiamMAEConfig(encoder, decoder, mask_ratio, norm_pix, seed)


class SiamMAE(PixelObjective):
    """Encode the past frame whole and what is visible of the future one, decode the future reading the past.

    The batch holds `image`, the past frames, and `image.1`, the future ones, cut alike; no frame's number is told.
    """

    config_class = SiamMAEConfig

    named = staticmethod(siammae_config)

    def __init__(self, config: SiamMAEConfig | str = "small", **settings: Any):
        super().__init__(config, settings)
        visible_count(math.prod(self.tokenizer.size_grid), self.config.mask_ratio)

    def future(self, batch: Batch) -> Batch:
        """The batch with its future frames in the place of the past ones."""
        name = self.modality.name
        if f"{name}.1" not in batch:
            raise UserError(f"SiamMAE reads frame pairs, {name!r} and '{name}.1'; the batch holds {sorted(batch)}")
        return view(batch, 1)

    def wanted(self, batch: Batch) -> Tensor:
        """The future frames."""
        return self.future(batch)[self.modality.name]

    def hide(self, batch: Batch) -> Mask:
        """A random mask of every future frame: int(N * (1 - mask_ratio)) patches stay."""
        sizes, name = self.encoder.sizes(self.future(batch)), self.modality.name
        noise = batch_bits(batch, sizes[name], seed=self.config.seed, stream=f"mask/{name}.1")
        return random_mask(noise, visible_count(sizes[name], self.config.mask_ratio), sizes)

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        past = self.encoder(batch)
        future = self.encoder(self.future(batch), mask)
        prediction = self.decoder(future, mask.hide, self.tokenizer.grid(batch), past)
        loss = self.loss(prediction, batch, mask.hide)
        return Output(loss, {"mse": loss.detach()}, prediction, mask)

    @torch.no_grad()
    def figures(self, batch: Batch) -> list[Figure]:
        """The past frame first, which the model sees whole."""
        (figure,) = super().figures(batch)
        told = figure.caption.replace(": ", ": what the model sees whole, then the frame to predict: ", 1)
        columns = (zero_to_one(batch[self.modality.name]), *figure.columns)
        return [dataclasses.replace(figure, caption=told, columns=columns)]
