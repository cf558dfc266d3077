"""What methods share that predict the pixels of hidden patches: the target, its loss, and the way back to pixels."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from mmssl_kernels import TargetNorm, masked_patch_mse, normalized_patches, unpatchify
from torch import Tensor

from mmssl import interop
from mmssl.decoder import Decoder
from mmssl.encoder import Encoder, single_modality
from mmssl.errors import UserError, nearest
from mmssl.masking import Positions
from mmssl.modality import Modality
from mmssl.objectives.objective import Objective, Output
from mmssl.position import mark_trained
from mmssl.tokenizer import Batch, PatchTokenizer

P = TypeVar("P", bound="PixelObjective")


class PixelObjective(Objective):
    """Predicts hidden patches of one continuous modality; `config` has `norm_pix`.

    named: the config for a model of the ViT family and further keywords, which `__init__` takes as well.

    norm: how a target patch is standardised where `norm_pix` is set (see `masked_patch_mse`). Otherwise the target is
    the pixels, normalised by the modality's statistics or, with `raw`, in 0-1.
    """

    named: ClassVar[Callable[..., Any]]
    norm: ClassVar[TargetNorm] = "patch"
    raw: ClassVar[bool] = False

    def __init__(self, config: Any, settings: Mapping[str, Any]):
        """An encoder and a light decoder, as `config.encoder` and `config.decoder` say.

        Where config is the name of a model, `named` makes it, with these settings.
        """
        super().__init__()
        kind, known = type(self).__name__, list(inspect.signature(self.named).parameters)[1:]
        for name in settings:
            if name not in known:
                raise UserError(f"{kind} has no setting {name!r}: {nearest(name, known)}")
        if isinstance(config, str):
            config = self.named(config, **settings)
        elif settings:
            raise UserError(f"{kind} takes a whole config, or a model's name and {', '.join(settings)}: not both")
        self.config = config
        self.encoder = Encoder(config.encoder)
        grid, prefix, recompute = self.tokenizer.size_grid, config.encoder.prefix, self.tokenizer.config.recompute
        self.decoder = Decoder(config.decoder, self.encoder.dim, grid, prefix, self.tokenizer.values, recompute)

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

    def target(self, batch: Batch) -> Batch:
        """The batch whose pixels are hidden and predicted."""
        return batch

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = self.tokenizer.mean, self.tokenizer.std
        return (torch.zeros_like(mean), torch.ones_like(std)) if self.raw else (mean, std)

    def loss(self, prediction: Float[Tensor, "*hidden values"], batch: Batch, hide: Positions) -> Float[Tensor, ""]:
        """Mean squared error between the prediction and the hidden patches."""
        mean, std = self._statistics()
        return masked_patch_mse(
            prediction,
            self.target(batch)[self.modality.name],
            hide.index,
            patch=self.modality.patch,
            mean=mean,
            std=std,
            target_norm=self.norm if self.config.norm_pix else "none",
            rows=hide.rows,
        )

    @torch.no_grad()
    def reconstruct(self, batch: Batch, out: Output) -> Float[Tensor, "batch channels *axes"]:
        """The target with its hidden patches replaced by the prediction, 0-1 values, to look at.

        With `norm_pix` the prediction lacks each patch's mean and deviation; they are taken from the original, as the
        authors' demos do.
        """
        if out.mask is None or out.prediction is None:
            raise ValueError("reconstruct needs an output with a mask and a prediction")
        batch, hide, (mean, std) = self.target(batch), out.mask.hide.index, self._statistics()
        pixels, channels = batch[self.modality.name], (-1, self.modality.channels)
        every = self.encoder.everything(batch).index
        patches = normalized_patches(pixels, every, self.modality.patch, mean, std)
        where, prediction = hide[..., None].expand_as(out.prediction), out.prediction.float()
        if self.config.norm_pix:
            hidden, values = patches.gather(1, where).unflatten(-1, channels), prediction.unflatten(-1, channels)
            axes = (-1, -2) if self.norm == "patch" else (-2,)
            variance, center = torch.var_mean(hidden, dim=axes, keepdim=True)
            deviation = (variance + 1e-6).sqrt() if self.norm == "patch" else variance.sqrt() + 1e-6
            prediction = (values * deviation + center).flatten(-2)
        shown = patches.scatter(1, where, prediction).unflatten(-1, channels) * std + mean
        return unpatchify(shown.flatten(2), self.modality.patch, self.tokenizer.grid(batch))

    def take(self: P, state: Mapping[str, Tensor], rules: interop.KeyMap, source: str, whole: bool = True) -> P:
        """Load another library's tensors; a file without a decoder (not `whole`) leaves it as it is, with a warning."""
        values = interop.to_ours(state, rules, self.state_dict(), source)
        if not whole:
            warnings.warn(f"{source} holds no decoder: it starts from fresh weights", stacklevel=3)
            values = {**self.state_dict(), **values}
        self.load_state_dict(values)
        mark_trained(self if whole else self.encoder)
        return self
