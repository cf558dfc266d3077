"""Audio-MAE (Huang et al. 2022, arXiv 2207.06405): hide four fifths of a spectrogram's patches, predict them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from mmssl.decoder import DecoderConfig, decoder_size, mae_decoder_config
from mmssl.encoder import EncoderConfig, vit_config
from mmssl.errors import UserError
from mmssl.masking import Mask, axes_mask, batch_bits, random_mask, visible_count
from mmssl.modality import AUDIO
from mmssl.objectives.objective import Output
from mmssl.objectives.pixels import PixelObjective
from mmssl.position import Layout
from mmssl.tokenizer import Batch
from mmssl.transformer import TransformerConfig, WindowConfig

# Width, blocks and heads of the local decoder beside each encoder: the authors' from small on (16 blocks, whatever
# "dec512d8b" says), a lighter one of ours beside tiny.
LOCAL_DECODERS = {
    "tiny": (128, 8, 4),
    "small": (512, 16, 16),
    "base": (512, 16, 16),
    "large": (512, 16, 16),
    "huge": (512, 16, 16),
}


def local_decoder_config(
    dim: int = 512, depth: int = 16, heads: int = 16, dropout: float = 0.0, position: Layout = "sincos"
) -> DecoderConfig:
    """The decoder of the released model: windows of 4 x 4 patches, shifted along time in every other block."""
    window = WindowConfig(dropout=dropout)
    return DecoderConfig(TransformerConfig(dim, depth, heads, norm_order="res_post", window=window), position)


@dataclass(frozen=True)
class AudioMAEConfig:
    """The defaults are the paper's ViT-B on ten seconds, but for positions at their places (see `audiomae_config`).

    mask_ratio: int(patches * (1 - mask_ratio)) stay visible. axes_ratio: instead, shares of the times and of the mel
    bands that are hidden whole, as SpecAugment's. norm_pix: standardise each target patch. seed: of the masks.
    """

    encoder: EncoderConfig = vit_config("base", modality=AUDIO, input_size=(1024, 128))
    decoder: DecoderConfig = local_decoder_config()
    mask_ratio: float = 0.8
    axes_ratio: tuple[float, float] | None = None
    norm_pix: bool = True
    seed: int = 0


def audiomae_config(
    model: str = "base",
    *,
    frames: int = 1024,
    mel: int = 128,
    patch: int | tuple[int, int] = 16,
    decoder: Literal["local", "global"] = "local",
    position: Layout = "sincos",
    dropout: float = 0.0,
    mask_ratio: float = 0.8,
    axes_ratio: tuple[float, float] | None = None,
    norm_pix: bool = True,
    mean: float = AUDIO.mean[0],
    std: float = AUDIO.std[0] / 2,
    seed: int = 0,
    decoder_dim: int | None = None,
    decoder_depth: int | None = None,
) -> AudioMAEConfig:
    """Audio-MAE on spectrograms of `frames` times (10 ms each) and `mel` bands.

    model: tiny, small, base, large or huge. patch: its side, or its times and its bands. decoder: "local" attends
    within windows, "global" is MAE's. position: "sincos_swapped" is the authors' table, whose codes are not at their
    places. dropout: of the local decoder's position bias, the authors' 0.1 or none. mean, std: of the data's log-mel
    values, AudioSet's by default; twice the deviation is divided by, as the authors do.
    """
    times, bands = (patch, patch) if isinstance(patch, int) else patch
    if min(times, bands, frames, mel) < 1 or frames % times or mel % bands:
        raise UserError(
            f"patches of {times} x {bands} do not fill {frames} times x {mel} mel bands: choose another --frames"
        )
    modality = dataclasses.replace(AUDIO, patch=(times, bands), mean=(mean,), std=(2 * std,))
    encoder = vit_config(model, modality=modality, input_size=(frames, mel))
    tokenizer = dataclasses.replace(encoder.tokenizers[0], position=position)
    if decoder == "local":
        sizes = decoder_size(model, decoder_dim, decoder_depth, family=LOCAL_DECODERS)
        light = local_decoder_config(*sizes, dropout, position)
    else:
        light = dataclasses.replace(
            mae_decoder_config(*decoder_size(model, decoder_dim, decoder_depth)), position=position
        )
    encoder = dataclasses.replace(encoder, tokenizers=(tokenizer,))
    return AudioMAEConfig(encoder, light, mask_ratio, axes_ratio, norm_pix, seed)


class AudioMAE(PixelObjective):
    """Hide most patches of a spectrogram, encode the visible ones, decode all of them locally, compare values."""

    config_class = AudioMAEConfig

    named = staticmethod(audiomae_config)

    def __init__(self, config: AudioMAEConfig | str = "base", **settings: Any):
        super().__init__(config, settings)
        self._tiled(self.tokenizer.size_grid)
        visible_count(math.prod(self.tokenizer.size_grid), self.config.mask_ratio)

    def _tiled(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        """The grid itself; UserError where the decoder's windows do not tile it."""
        window = self.config.decoder.transformer.window
        if window is not None and any(side % by for side, by in zip(grid, window.size)):
            times, bands = (by * patch for by, patch in zip(window.size, self.modality.patch))
            raise UserError(
                f"windows of {window.size} patches do not tile {grid} of them: take a multiple of {times} "
                f"times (--frames) and of {bands} mel bands, or the global decoder (--decoder global)"
            )
        return grid

    def hide(self, batch: Batch) -> Mask:
        """A random mask for every sample: int(N * (1 - mask_ratio)) patches stay, or that share of times and bands."""
        sizes, name = self.encoder.sizes(batch), self.modality.name
        times, bands = self.tokenizer.grid(batch)
        count = times * bands if self.config.axes_ratio is None else times + bands
        noise = batch_bits(batch, count, seed=self.config.seed, stream=f"mask/{name}")
        if self.config.axes_ratio is None:
            return random_mask(noise, visible_count(count, self.config.mask_ratio), sizes)
        of_times, of_bands = self.config.axes_ratio
        keep = int(times * (1 - of_times)), int(bands * (1 - of_bands))
        return axes_mask((noise[:, :times], noise[:, times:]), keep, sizes)

    def forward(self, batch: Batch, mask: Mask | None = None) -> Output:
        mask = self.hide(batch) if mask is None else mask
        tokens = self.encoder(batch, mask)
        prediction = self.decoder(tokens, mask.hide, self._tiled(self.tokenizer.grid(batch)))
        loss = self.loss(prediction, batch, mask.hide)
        return Output(loss, {"mse": loss.detach()}, prediction, mask)
