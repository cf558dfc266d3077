"""How recipes that tune read pictures and clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmssl.data import (
    Clips,
    Compose,
    Crop,
    Erasing,
    EvalView,
    MultiView,
    RandAugment,
    Source,
    open_source,
    open_videos,
)
from mmssl.data.augment import Change
from mmssl.errors import UserError
from mmssl.finetune.recipe import FinetuneRecipe
from mmssl.modality import IMAGE, VIDEO
from mmssl.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class CropRecipe(FinetuneRecipe):
    """What recipes that read labelled pictures or clips can be told besides."""

    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of a picture's area in a crop."""
    flip: float = 0.5
    """Probability that a crop is mirrored; 0 where left and right mean something."""
    randaugment: tuple[float, int] = (9.0, 2)
    """Strength, 0 to 10, and number of the random operations on a crop; 0 0: none. Of uint8 in 1 or 3 channels."""
    erase: float = 0.25
    """Probability that a box of a crop is filled with noise."""

    def cut(self) -> MultiView:
        """Random crops at the size that the model reads, mirrored, changed and erased."""
        modality, (*_, height, width) = self.given.config.tokenizers[0].modality, self.input_size
        magnitude, operations = self.randaugment
        if operations and modality.channels not in (1, 3):
            raise UserError(f"RandAugment is for 1 or 3 channels, not for {modality.channels}: give --randaugment 9 0")
        changes: list[Change] = []
        if operations:
            changes.append(RandAugment(magnitude, operations, mean=modality.mean))
        if self.erase:
            changes.append(Erasing(self.erase, mean=modality.mean, std=modality.std))
        augmentation = Compose(tuple(changes)) if changes else None
        return MultiView((Crop((height, width), self.crop_scale, flip=self.flip, augmentation=augmentation),))


@dataclass(frozen=True, kw_only=True)
class PictureRecipe(CropRecipe):
    """What recipes that read labelled pictures can be told besides."""

    modality: ClassVar[str] = IMAGE.name
    positions_learn: ClassVar[bool] = True

    size: int | None = None
    """Side of the square crops, in pixels; the model's where not given. Positions are interpolated."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Height and width of the crops."""
        return (self.size, self.size) if self.size else super().input_size

    def opened(self, data: Path, split: str | None) -> Source:
        """The pictures of a path and a part of them."""
        channels = self.given.config.tokenizers[0].modality.channels
        return open_source(data, split, channels, self.background, self.label)

    def run(self) -> TrainResult:
        """Tune on pictures of `data`."""
        height, width = self.input_size
        return self.tune(self.cut(), EvalView((height, width)))


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(CropRecipe):
    """What recipes that read labelled videos can be told besides."""

    modality: ClassVar[str] = VIDEO.name

    stride: int = 4
    """From one frame of a clip to the next, in the video's average frame intervals."""
    clips: int = 5
    """Evenly spread clips of each video that are tested, whose probabilities are averaged."""
    repeats: int = 2
    """Samples of each video in an epoch; it is opened once for all of them."""
    randaugment: tuple[float, int] = (7.0, 4)
    """Strength, 0 to 10, and number of the random operations on a clip; 0 0: none. Of uint8 in 1 or 3 channels."""

    def _read(self, data: Path, split: str | None, spread: int) -> Source:
        (frames, height, width), channels = self.input_size, self.given.config.tokenizers[0].modality.channels
        return open_videos(
            data,
            split,
            Clips(frames, self.stride, spread=spread),
            channels=channels,
            short_side=int(max(height, width) / 0.875),
            label=self.label,
        )

    def opened(self, data: Path, split: str | None) -> Source:
        """Evenly spread clips of the videos of a path and a part of them."""
        return self._read(data, split, self.clips)

    def drawn(self, data: Path) -> Source:
        """Random clips of the videos of the training part."""
        return self._read(data, "train", 0)

    def run(self) -> TrainResult:
        """Tune on clips of the videos of `data`."""
        _, height, width = self.input_size
        return self.tune(self.cut(), EvalView((height, width)), repeats=self.repeats, clips=self.clips)
