"""The tokenizer of what is predicted: patches as numbers to come close to, and the way back to something to look at."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Shaped
from mmssl_kernels import TargetNorm, grid_of, masked_patch_mse, normalized_patches, unpatchify
from torch import Tensor, nn

from mmssl.masking import Positions
from mmssl.modality import Modality


class PatchTarget(nn.Module):
    """Patches of a continuous modality, which need not be the one that is read.

    norm: how a patch is standardised (see `masked_patch_mse`): "patch" by its mean and deviation (MAE), "channel" by
    those of each of its channels (VideoMAE); "none": by the modality's statistics alone.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, modality: Modality, norm: TargetNorm = "none"):
        super().__init__()
        self.modality, self.norm = modality, norm
        self.register_buffer("mean", torch.tensor(modality.mean), persistent=False)
        self.register_buffer("std", torch.tensor(modality.std), persistent=False)

    @property
    def values(self) -> int:
        """Numbers in one patch."""
        return math.prod(self.modality.patch) * self.modality.channels

    def grid(self, media: Shaped[Tensor, "batch channels *axes"]) -> tuple[int, ...]:
        """Patches along each axis."""
        return grid_of(tuple(media.shape), self.modality.patch)

    def loss(
        self,
        prediction: Float[Tensor, "*hidden values"],
        media: Shaped[Tensor, "batch channels *axes"],
        hide: Positions,
    ) -> Float[Tensor, ""]:
        """Mean squared error between the prediction and the hidden patches of raw `media`."""
        return masked_patch_mse(
            prediction,
            media,
            hide.index,
            patch=self.modality.patch,
            mean=self.mean,
            std=self.std,
            target_norm=self.norm,
            rows=hide.rows,
        )

    @torch.no_grad()
    def filled(
        self,
        prediction: Float[Tensor, "batch hidden values"],
        media: Shaped[Tensor, "batch channels *axes"],
        hide: Positions,
    ) -> Float[Tensor, "batch channels *axes"]:
        """`media`, pictures and clips in 0-1, with its hidden patches replaced by the prediction, to look at.

        A prediction of standardised patches lacks their means and deviations: they are taken from the original, as the
        authors' demos do.
        """
        count, channels = math.prod(self.grid(media)), (-1, self.modality.channels)
        every = torch.arange(count, device=media.device).expand(len(media), count)
        patches = normalized_patches(media, every, self.modality.patch, self.mean, self.std)
        where, prediction = hide.index[..., None].expand_as(prediction), prediction.float()
        if self.norm != "none":
            hidden, values = patches.gather(1, where).unflatten(-1, channels), prediction.unflatten(-1, channels)
            axes = (-1, -2) if self.norm == "patch" else (-2,)
            variance, center = torch.var_mean(hidden, dim=axes, keepdim=True)
            deviation = (variance + 1e-6).sqrt() if self.norm == "patch" else variance.sqrt() + 1e-6
            prediction = (values * deviation + center).flatten(-2)
        shown = patches.scatter(1, where, prediction).unflatten(-1, channels) * self.std + self.mean
        return unpatchify(shown.flatten(2), self.modality.patch, self.grid(media))

    def where(self, hide: Positions, media: Shaped[Tensor, "batch channels *axes"]) -> Bool[Tensor, "batch 1 *axes"]:
        """The places of `media` that lie in hidden patches."""
        grid, patch = self.grid(media), self.modality.patch
        hidden = hide.boolean(math.prod(grid))
        return unpatchify(hidden[..., None].expand(-1, -1, math.prod(patch)), patch, grid)
