"""Masked autoencoder (He et al. 2021, arXiv 2111.06377): see a quarter of the patches, predict the rest."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from mmssl_kernels import masked_patch_mse, normalized_patches, unpatchify
from torch import Tensor

from mmssl import interop
from mmssl.decoder import Decoder, DecoderConfig, mae_decoder_config
from mmssl.encoder import (
    Encoder,
    EncoderConfig,
    encoder_config_from_official,
    encoder_config_from_transformers,
    official_state,
    single_modality,
    vit_config,
)
from mmssl.errors import UserError
from mmssl.masking import Mask, batch_bits, random_mask, visible_count
from mmssl.objectives.objective import Objective, Output
from mmssl.tokenizer import Batch, PatchTokenizer

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


class MAE(Objective):
    """Hide most patches, encode the visible ones, decode the rest, compare pixels.

    Works on any one continuous modality: pictures, clips, spectrograms.
    """

    config_class = MAEConfig

    def __init__(self, config: MAEConfig = MAEConfig()):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.encoder)
        self.modality = single_modality(self.encoder)
        tokenizer = self.tokenizer
        visible_count(math.prod(tokenizer.size_grid), config.mask_ratio)
        self.decoder = Decoder(
            config.decoder, self.encoder.dim, tokenizer.size_grid, config.encoder.prefix, tokenizer.values
        )

    @property
    def tokenizer(self) -> PatchTokenizer:
        """The encoder's tokenizer; it holds the statistics that the target is normalised by."""
        tokenizer = self.encoder.tokenizer(self.modality.name)
        if not isinstance(tokenizer, PatchTokenizer):
            raise ValueError(f"MAE predicts pixels; {self.modality.name} has none")
        return tokenizer

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
        loss = masked_patch_mse(
            prediction,
            batch[self.modality.name],
            mask.hide.index,
            patch=self.modality.patch,
            mean=self.tokenizer.mean,
            std=self.tokenizer.std,
            target_norm="patch" if self.config.norm_pix else "none",
            rows=mask.hide.rows,
        )
        return Output(loss, {"mse": loss.detach()}, prediction, mask)

    @torch.no_grad()
    def reconstruct(self, batch: Batch, out: Output) -> Float[Tensor, "batch channels *axes"]:
        """The input with its hidden patches replaced by the prediction, 0-1 values, for pictures.

        With `norm_pix` the prediction lacks each patch's mean and deviation; they are taken from the original, as the
        authors' demo does.
        """
        if out.mask is None or out.prediction is None:
            raise ValueError("reconstruct needs an output with a mask and a prediction")
        pixels, grid, hide = batch[self.modality.name], self.tokenizer.grid(batch), out.mask.hide.index
        every = self.encoder.everything(batch).index
        patches = normalized_patches(pixels, every, self.modality.patch, self.tokenizer.mean, self.tokenizer.std)
        where, prediction = hide[..., None].expand_as(out.prediction), out.prediction.float()
        if self.config.norm_pix:
            variance, center = torch.var_mean(patches.gather(1, where), dim=-1, keepdim=True)
            prediction = prediction * (variance + 1e-6).sqrt() + center
        channels = patches.scatter(1, where, prediction).unflatten(-1, (-1, self.modality.channels))
        return unpatchify((channels * self.tokenizer.std + self.tokenizer.mean).flatten(2), self.modality.patch, grid)

    @classmethod
    def from_official(
        cls: type[M],
        source: str | Path | Mapping[str, Any],
        *,
        heads: int | None = None,
        decoder_heads: int = 16,
        mask_ratio: float = 0.75,
        norm_pix: bool | None = None,
    ) -> M:
        """From the authors' files or state dicts (facebookresearch/mae): full, encoder only, or fine-tuned.

        Sizes are read off the shapes; heads are the paper's for the width. norm_pix: the released encoders and `_full`
        files were trained with it (the default here), the `visualize` files without: the file does not tell. A file
        without a decoder leaves it freshly initialised, with a warning.
        """
        state, name = official_state(source)
        encoder = encoder_config_from_official(state, heads, 1e-6)
        full = "decoder_embed.weight" in state
        decoder = mae_decoder_config()
        if full:
            depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("decoder_blocks."))
            decoder = mae_decoder_config(len(state["decoder_embed.weight"]), depth, decoder_heads)
        mae = cls(MAEConfig(encoder, decoder, mask_ratio, True if norm_pix is None else norm_pix))
        rules = interop.AUTHORS_MAE if full else interop.timm_vit("encoder.")
        values = interop.to_ours(state, rules, mae.state_dict(), name)
        if not full:
            warnings.warn(f"{name} holds no decoder: it starts from fresh weights", stacklevel=2)
            values = {**mae.state_dict(), **values}
        mae.load_state_dict(values)
        return mae

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
        encoder = encoder_config_from_transformers(config)
        mae = cls(MAEConfig(encoder, decoder, config["mask_ratio"], config.get("norm_pix_loss", False)))
        names = interop.hub_names(state)
        mae.load_state_dict(interop.to_ours(names, interop.TRANSFORMERS_MAE, mae.state_dict(), source))
        return mae

    def to_transformers(self, folder: str | Path) -> Path:
        """Write a folder that transformers' `ViTMAEForPreTraining` reads."""
        encoder, decoder = self.config.encoder.transformer, self.config.decoder.transformer
        if encoder.norm_eps != decoder.norm_eps:
            raise UserError(
                f"ViTMAE has one norm eps; encoder {encoder.norm_eps} and decoder {decoder.norm_eps} differ"
            )
        config = {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            **self.encoder.transformers_config(),
            "decoder_hidden_size": decoder.dim,
            "decoder_num_hidden_layers": decoder.depth,
            "decoder_num_attention_heads": decoder.heads,
            "decoder_intermediate_size": decoder.mlp_width,
            "mask_ratio": self.config.mask_ratio,
            "norm_pix_loss": self.config.norm_pix,
        }
        state = interop.to_theirs(self.state_dict(), interop.TRANSFORMERS_MAE, self.modality.patch)
        return interop.save_folder(folder, config, state)
