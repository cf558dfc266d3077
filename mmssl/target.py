"""The tokenizer of what is predicted: patches as numbers to come close to, and the way back to something to look at."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from mmssl_kernels import (
    TargetNorm,
    gather_patches,
    grid_of,
    linear_cross_entropy,
    masked_patch_mse,
    normalized_patches,
    patchify,
    unpatchify,
)
from torch import Tensor, nn
from torch.nn import functional as F

from mmssl.masking import Mask, Positions
from mmssl.modality import Modality, zero_to_one
from mmssl.tokenizer import Batch, standardised

Distance = Literal["mse", "l1", "cross_entropy"]


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
        weights: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean squared error between the prediction and the hidden patches of raw `media`; weights: of each sample."""
        return masked_patch_mse(
            prediction,
            media,
            hide.index,
            patch=self.modality.patch,
            mean=self.mean,
            std=self.std,
            target_norm=self.norm,
            rows=hide.rows,
            weights=weights,
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


def usual_distance(modality: Modality) -> Distance:
    """Cross-entropy of labels; L1 of what has gaps or is standardised by sample, as MultiMAE's depth; squared error of
    others."""
    if modality.kind == "categorical":
        return "cross_entropy"
    return "l1" if modality.gaps or modality.per_sample else "mse"


class SampleTarget(PatchTarget):
    """Patches of any modality, compared within each sample and then over samples, which may have few or many of them.

    distance: between what is predicted and what is there: "mse", "l1", or "cross_entropy" of a categorical modality,
    whose prediction holds scores of all classes for each place (class fastest). What is not there (see `Modality`) is
    compared with nothing. Raises ValueError for a distance or a norm that the modality has no values for.
    """

    def __init__(self, modality: Modality, distance: Distance = "mse", norm: TargetNorm = "none"):
        super().__init__(modality, norm)
        self.distance = distance
        if (modality.kind == "categorical") != (distance == "cross_entropy"):
            raise ValueError(f"{modality.name} is {modality.kind}: {distance} does not compare such values")
        if norm != "none" and (distance != "mse" or modality.gaps):
            raise ValueError(f"{modality.name}: patches are standardised (norm {norm!r}) for mse, and where whole")

    def loss_of_samples(
        self, prediction: Float[Tensor, "hidden values"], batch: Batch, hide: Positions
    ) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
        """The mean over the samples that have something hidden, of the mean distance within each, and how many of them
        there are (EPFL-VILAB/MultiMAE, `criterion.py`: masked means, then a `nanmean`). 0 where there is none."""
        if self.distance == "mse" and not self.modality.gaps:  # in one kernel, which weighs samples
            assert hide.lengths is not None
            weights = hide.lengths.clamp(min=1).float().reciprocal()
            mean = self.loss(prediction, standardised(batch, self.modality), hide, weights)
            return mean, hide.samples
        distances, there = self._distances(prediction.float(), batch, hide)
        patches = torch.stack([(distances * there).sum(dim=1), there.sum(dim=1).float()], dim=1)
        total, number = hide.padded(patches).sum(dim=1).unbind(1)
        samples = number.count_nonzero()
        return (total / number.clamp(min=1)).sum() / samples.clamp(min=1), samples

    def samples(self, batch: Batch, hide: Positions) -> Int64[Tensor, ""]:
        """How many samples have something hidden to be compared with."""
        if not self.modality.gaps and self.modality.ignore is None:
            return hide.samples
        there = self.modality.there(self._hidden(batch, hide))
        return hide.padded(there.float()).sum(dim=(1, 2)).count_nonzero()

    def _hidden(self, batch: Batch, hide: Positions) -> Shaped[Tensor, "hidden places"]:
        """What is hidden: values standardised by sample where the modality asks for it, or ids."""
        modality, media = self.modality, standardised(batch, self.modality)
        media = media[:, None] if modality.kind == "categorical" else media
        return gather_patches(media, hide.index, modality.patch, hide.rows)

    def _wanted(self, batch: Batch, hide: Positions) -> tuple[Tensor, Bool[Tensor, "hidden places"]]:
        """What is hidden, normalised values or classes `[S, values]`, 0 where nothing is, and where something is."""
        hidden, modality = self._hidden(batch, hide), self.modality
        if modality.kind == "categorical":
            return modality.labelled(hidden)
        values = ((zero_to_one(hidden).unflatten(-1, (-1, modality.channels)) - self.mean) / self.std).flatten(-2)
        there = modality.there(values)
        return torch.where(there, values, 0.0), there

    def _distances(
        self, prediction: Float[Tensor, "hidden values"], batch: Batch, hide: Positions
    ) -> tuple[Float[Tensor, "hidden places"], Bool[Tensor, "hidden places"]]:
        """At each place of each hidden patch, and whether something is there."""
        wanted, there = self._wanted(batch, hide)
        if self.distance == "cross_entropy":
            scores = prediction.unflatten(-1, (-1, self.modality.channels)).flatten(0, 1)
            return F.cross_entropy(scores, wanted.flatten(), reduction="none").view_as(wanted), there
        difference = prediction - wanted
        return difference.square() if self.distance == "mse" else difference.abs(), there

    @torch.no_grad()
    def pictures(
        self, prediction: Float[Tensor, "hidden values"], batch: Batch, mask: Mask
    ) -> tuple[Float[Tensor, "batch channels *axes"], ...]:
        """What was seen (NaN elsewhere), the same with the prediction where it was hidden, and all there was (NaN where
        nothing was): values as the tokenizer gets them, of pictures 0-1, or class numbers. Of patches standardised by
        themselves mean and deviation are the original's."""
        modality, media = self.modality, standardised(batch, self.modality)
        keep, hide = (each.within(*mask.span(modality.name))[0] for each in (mask.keep, mask.hide))
        if modality.kind == "categorical":
            media = media[:, None].float().masked_fill(~modality.there(media)[:, None], torch.nan)
            values = prediction.unflatten(-1, (-1, modality.channels)).argmax(dim=-1).float()
        else:
            media = zero_to_one(media).float()
            values = prediction.float().unflatten(-1, (-1, modality.channels))
            if self.norm == "patch" and len(values):
                original = normalized_patches(media, hide.index, modality.patch, self.mean, self.std, rows=hide.rows)
                variance, mean = torch.var_mean(original, dim=-1, keepdim=True)
                values = values * (variance + 1e-6).sqrt()[..., None] + mean[..., None]
            values = (values * self.std + self.mean).flatten(-2)
        patches, grid = patchify(media, modality.patch), self.grid(media)
        kept, hidden = (each.boolean(patches.shape[1])[..., None] for each in (keep, hide))
        seen, there = torch.where(kept, patches, torch.nan), torch.where(kept | hidden, patches, torch.nan)
        columns = seen, seen.index_put((hide.rows, hide.index), values), there
        return tuple(unpatchify(each, modality.patch, grid) for each in columns)


def loss_of_texts(
    hidden: Float[Tensor, "hidden dim"], head: nn.Linear, text: Int64[Tensor, "batch positions"], hide: Positions
) -> tuple[Float[Tensor, ""], Int64[Tensor, ""]]:
    """Of what is known of hidden words, and the head that scores all words by it: the mean over the texts that have any
    of the mean cross-entropy within each, and how many texts these are (young-geng/m3ae_public,
    `cross_entropy_loss_and_accuracy`, where texts without any count as 0)."""
    wanted = text[hide.rows, hide.index]
    return linear_cross_entropy(hidden, head.weight, wanted, bias=head.bias, weights=hide.shares), hide.samples
