"""What methods share that predict the pixels of hidden patches: encoder, decoder, target, and what is shown of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from mmssl_kernels import TargetNorm
from torch import Tensor

from mmssl.decoder import Decoder
from mmssl.encoder import Encoder, single_modality
from mmssl.interop import Form
from mmssl.masking import Positions
from mmssl.modality import Modality
from mmssl.objectives.figures import Figure
from mmssl.objectives.objective import Objective, Output
from mmssl.target import PatchTarget
from mmssl.tokenizer import Batch, PatchTokenizer


class PixelObjective(Objective):
    """Reads one continuous modality and predicts hidden patches; `config` has encoder, decoder, mask_ratio, norm_pix.

    norm: how a target patch is standardised where `norm_pix` is set (see `PatchTarget`). A method that predicts other
    channels than it reads says which, `predicted`, and how they come from a batch, `wanted`.
    """

    norm: ClassVar[TargetNorm] = "patch"

    def __init__(self, config: Any, settings: Mapping[str, Any]):
        """An encoder and a light decoder, as the config says (see `Objective.configured`)."""
        super().__init__()
        self.config = config = self.configured(config, settings)
        self.encoder = Encoder(config.encoder)
        self.target = PatchTarget(self.predicted(), self.norm if config.norm_pix else "none")
        grid, prefix, recompute = self.tokenizer.size_grid, config.encoder.prefix, self.tokenizer.config.recompute
        self.decoder = Decoder(config.decoder, self.encoder.dim, grid, prefix, self.target.values, recompute)

    @property
    def modality(self) -> Modality:
        """The one modality of the encoder."""
        return single_modality(self.encoder)

    @property
    def tokenizer(self) -> PatchTokenizer:
        """The encoder's tokenizer; it holds the statistics that the input is normalised by."""
        tokenizer = self.encoder.tokenizer(self.modality.name)
        if not isinstance(tokenizer, PatchTokenizer):
            raise ValueError(f"{type(self).__name__} predicts pixels; {self.modality.name} has none")
        return tokenizer

    def predicted(self) -> Modality:
        """What is predicted, in patches as large as those that are read; the same as is read where a method says
        nothing else."""
        return self.modality

    def wanted(self, batch: Batch) -> Shaped[Tensor, "batch channels *axes"]:
        """The raw media whose hidden patches are predicted."""
        return batch[self.modality.name]

    @property
    def forms(self) -> dict[str, Form]:
        """None where other channels are predicted than read: no library's class does that."""
        return super().forms if self.target.modality.channels == self.modality.channels else {}

    def loss(self, prediction: Float[Tensor, "*hidden values"], batch: Batch, hide: Positions) -> Float[Tensor, ""]:
        """Mean squared error between the prediction and the hidden patches."""
        return self.target.loss(prediction, self.wanted(batch), hide)

    def reconstruct(self, batch: Batch, out: Output) -> Float[Tensor, "batch channels *axes"]:
        """What was wanted, its hidden patches replaced by the prediction (see `PatchTarget.filled`)."""
        if out.mask is None or out.prediction is None:
            raise ValueError("reconstruct needs an output with a mask and a prediction")
        return self.target.filled(out.prediction, self.wanted(batch), out.mask.hide)

    @torch.no_grad()
    def figures(self, batch: Batch) -> list[Figure]:
        """What was hidden (grey), what the model predicts there (nothing asks it to predict what it sees), what was
        there."""
        out, media = self(batch), self.wanted(batch)
        shown, hidden = self.target.modality, self.target.where(out.mask.hide, media)
        original = shown.brightness(media)
        predicted = torch.where(hidden, shown.brightness(self.reconstruct(batch, out)), original)
        columns = tuple(map(shown.upright, (torch.where(hidden, torch.nan, original), predicted, original)))
        kind = "clips" if media.ndim == 5 else "sounds" if shown.name == "audio" else "pictures"
        share = float(hidden.float().mean())
        caption = f"Held-out {kind}: {share:.0%} hidden (grey), what the model predicts there, the original"
        if self.config.norm_pix:
            caption += " (the model predicts standardised patches: their mean and contrast are the original's)"
        return [
            Figure("reconstructions", "What it predicts", f"{caption}.", columns, axes=shown.scales(media.shape[2:]))
        ]
