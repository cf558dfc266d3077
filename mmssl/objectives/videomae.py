"""VideoMAE (Tong et al. 2022, arXiv 2203.12602): hide nine tenths of a clip in tubes, predict the tubes' pixels."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from mmssl.decoder import DecoderConfig, decoder_size
from mmssl.encoder import SIZES, EncoderConfig
from mmssl.errors import UserError
from mmssl.masking import Mask, batch_bits, tube_mask
from mmssl.modality import VIDEO, Modality
from mmssl.objectives.objective import Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.position import Layout
from mmssl.tokenizer import Batch, TokenizerConfig
from mmssl.transformer import TransformerConfig

# The table follows the flattened grid; it is in no checkpoint.
POSITION: Layout = "sincos_interleaved"
# Width, depth and heads of the decoder beside each encoder (the authors' code and scripts; tiny is ours).
DECODERS = {
    "tiny": (96, 4, 3),
    "small": (192, 4, 3),
    "base": (384, 4, 6),
    "large": (512, 12, 8),
    "huge": (640, 12, 8),
}


def videomae_decoder_config(dim: int = 384, depth: int = 4, heads: int = 6, norm_eps: float = 1e-6) -> DecoderConfig:
    """The decoder of the authors' code; the defaults are those of ViT-B."""
    transformer = TransformerConfig(dim, depth, heads, norm_eps=norm_eps, qkv_bias="query_value")
    return DecoderConfig(transformer, POSITION, "visible_hidden", bias=False)


def videomae_encoder_config(
    size: str = "base", *, modality: Modality = VIDEO, input_size: tuple[int, ...] = (16, 224, 224)
) -> EncoderConfig:
    """A ViT of the family's sizes on tubes: no class token, biases for queries and values only."""
    dim, depth, heads = SIZES[size]
    transformer = TransformerConfig(dim, depth, heads, qkv_bias="query_value")
    return EncoderConfig((TokenizerConfig(modality, input_size, POSITION),), transformer, prefix=0)


@dataclass(frozen=True)
class VideoMAEConfig:
    """The defaults are the paper's ViT-B on 16 frames.

    mask_ratio: int(mask_ratio * places of a frame) are hidden, in all frames alike. norm_pix: standardise each channel
    of each target tube; otherwise the target is the pixels in 0-1. seed: of the masks.
    """

    encoder: EncoderConfig = videomae_encoder_config()
    decoder: DecoderConfig = videomae_decoder_config()
    mask_ratio: float = 0.9
    norm_pix: bool = True
    seed: int = 0


def videomae_config(
    model: str = "base",
    *,
    frames: int = 16,
    size: int = 224,
    patch: int = 16,
    mask_ratio: float = 0.9,
    norm_pix: bool = True,
    seed: int = 0,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
) -> VideoMAEConfig:
    """The paper's encoder and decoder of one of its sizes, on clips of so many square frames, two of them in a tube.
    The decoder may be told to be another, see `decoder_size`.
    """
    decoder = videomae_decoder_config(*decoder_size(model, decoder_dim, decoder_depth, family=DECODERS))
    if min(patch, size, frames) < 1 or size % patch or frames % 2:
        raise UserError(
            f"tubes of 2 x {patch} x {patch} do not fill clips of {frames} x {size} pixels: "
            "choose an even --frames, and --size a multiple of --patch"
        )
    modality = dataclasses.replace(VIDEO, patch=(2, patch, patch))
    encoder = videomae_encoder_config(model, modality=modality, input_size=(frames, size, size))
    return VideoMAEConfig(encoder, decoder, mask_ratio, norm_pix, seed)


class VideoMAE(PixelObjective):
    """Hide the same places in all frames, encode the visible tubes, decode them and the hidden ones, compare pixels."""

    config_class = VideoMAEConfig
    undecayed = ("decoder.mask_token",)
    norm = "channel"

    named = staticmethod(videomae_config)

    def __init__(self, config: VideoMAEConfig | str = "base", **settings: Any):
        super().__init__(config, settings)
        grid, ratio = self.tokenizer.size_grid, self.config.mask_ratio
        if len(grid) != 3 or not 0 < int(ratio * math.prod(grid[1:])) < math.prod(grid[1:]):
            raise UserError(f"a mask ratio of {ratio} on the grid {grid}: VideoMAE hides some, not all, of the places")
        self._init()

    def _init(self) -> None:
        """Where the authors' initialisation is not MAE's: PyTorch's own for the convolution and the change of width."""
        nn.init.kaiming_uniform_(self.tokenizer.weight, a=5**0.5)
        self.decoder.embed.reset_parameters()
        nn.init.trunc_normal_(self.decoder.mask_token, std=0.02, a=-0.02, b=0.02)

    def predicted(self) -> Modality:
        """The pixels in 0-1: their statistics are not taken off where a patch is not standardised."""
        return self.modality.plain

    def hide(self, batch: Batch) -> Mask:
        """A tube mask for every sample: int(mask_ratio * places of a frame) are hidden in all of its frames."""
        time, height, width = self.tokenizer.grid(batch)
        places, name = height * width, self.modality.name
        noise = batch_bits(batch, places, seed=self.config.seed, stream=f"mask/{name}")
        keep = places - int(self.config.mask_ratio * places)
        return tube_mask(noise, keep, (time, height, width), self.encoder.sizes(batch))

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        visible = self.encoder(batch, mask)
        prediction = self.decoder(visible, mask.hide, self.tokenizer.grid(batch))
        loss = self.loss(prediction, batch, mask.hide)
        return Output(loss, {"mse": loss.detach()}, prediction, mask)
