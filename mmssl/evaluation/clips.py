"""Clips as samples of an evaluation: encoders of pictures on clips, and several clips of one video or sound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from mmssl.encoder import Encoder
from mmssl.errors import UserError
from mmssl.evaluation.features import FeatureSet


class FrameEncoder(nn.Module):
    """An encoder of pictures on clips: the features of a clip's frames one after the other, `frames * dim` numbers.

    Joined and not averaged, because an average could not tell a movement from its reverse.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    def features(
        self, batch: Mapping[str, Tensor], pool: Literal["mean", "class"] = "mean"
    ) -> Float[Tensor, "batch frames_dim"]:
        """`batch` holds `video` `[B, C, T, H, W]`."""
        frames = batch["video"].transpose(1, 2)
        return self.encoder.features({"image": frames.flatten(0, 1)}, pool).unflatten(0, frames.shape[:2]).flatten(1)


def average_clips(features: FeatureSet, clips: int) -> FeatureSet:
    """One feature a video or sound, the mean of its clips; `features` has `clips` in a row for each.

    Raises UserError where clips of one are missing, because it could not be read.
    """
    return _first_of(features, clips, features.features.reshape(_rows(features, clips)).mean(dim=1))


def join_clips(features: FeatureSet, clips: int) -> FeatureSet:
    """The features of all clips of a video or sound in one row, as `average_clips` finds them."""
    return _first_of(features, clips, features.features.reshape(_rows(features, clips)).flatten(1))


def _rows(features: FeatureSet, clips: int) -> tuple[int, int, int]:
    if len(features) % clips:
        raise UserError(
            f"{len(features)} clips are not {clips} of each sample: some could not be read; evaluate with one clip"
        )
    return len(features) // clips, clips, features.features.shape[1]


def _first_of(features: FeatureSet, clips: int, values: Float[Tensor, "samples dim"]) -> FeatureSet:
    labels = None if features.labels is None else features.labels[::clips]
    return FeatureSet(values, labels, features.names and features.names[::clips])
