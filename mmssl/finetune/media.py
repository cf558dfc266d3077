"""How recipes that tune read pictures and clips."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmssl.data import Clips, EvalView, Source, TrainView, open_source, open_videos
from mmssl.finetune.recipe import FinetuneRecipe
from mmssl.modality import IMAGE, VIDEO
from mmssl.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class PictureRecipe(FinetuneRecipe):
    """What recipes that read labelled pictures can be told besides."""

    modality: ClassVar[str] = IMAGE.name
    positions_learn: ClassVar[bool] = True

    size: int | None = None
    """Side of the square crops, in pixels; the model's where not given. Positions are interpolated."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of a picture's area in a crop."""
    flip: float = 0.5
    """Probability that a crop is mirrored."""

    @property
    def input_size(self) -> tuple[int, ...]:
        """Height and width of the crops."""
        return (self.size, self.size) if self.size else super().input_size

    def opened(self, data: Path, split: str | None) -> Source:
        channels = self.given.config.tokenizers[0].modality.channels
        return open_source(data, split, channels, self.background, self.label)

    def run(self) -> TrainResult:
        """Tune on pictures of `data`."""
        height, width = self.input_size
        view = TrainView((height, width), self.crop_scale, flip=self.flip)
        return self.tune(view, EvalView((height, width)))


@dataclass(frozen=True, kw_only=True)
class ClipRecipe(FinetuneRecipe):
    """What recipes that read labelled videos can be told besides."""

    modality: ClassVar[str] = VIDEO.name

    stride: int = 4
    """From one frame of a clip to the next, in the video's average frame intervals."""
    clips: int = 5
    """Evenly spread clips of each video that are tested, whose probabilities are averaged."""
    repeats: int = 2
    """Samples of each video that is opened; an epoch shows as many of each as one with `--repeats 1`."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of a frame's area in a crop."""
    flip: float = 0.5
    """Probability that a clip is mirrored; 0 where left and right mean something."""

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
        return self._read(data, split, self.clips)

    def drawn(self, data: Path) -> Source:
        return self._read(data, "train", 0)

    def run(self) -> TrainResult:
        """Tune on clips of the videos of `data`."""
        _, height, width = self.input_size
        view = TrainView((height, width), self.crop_scale, flip=self.flip)
        return self.tune(view, EvalView((height, width)), repeats=self.repeats, clips=self.clips)
