"""Tune a trained encoder of spectrograms on your own labelled sounds (Audio-MAE, Huang et al. 2022, arXiv 2207.06405).

    python recipes/audio_finetune.py --data DIR --model runs/audio_audiomae

DIR holds a folder for each class, maybe below `train` and `val`, or is a manifest (.csv, .jsonl) with a label, or
several, a sound. The defaults are those by which Audio-MAE's authors tune ViT-B on the balanced part of AudioSet, to
37.0 mAP: 60 epochs, batch 32, a peak rate of 1e-3 * batch / 256, 0.75 of it from layer to layer downwards, half of the
sounds mixed with another, random gain and roll, times and mel bands set to 0 (SpecAugment) and a fifth of both left
out, and the mean of the patches behind a norm of its own. Nothing of that size has been tuned with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mmssl.audio import RATE, samples_of, spectrograms
from mmssl.cli import run
from mmssl.data import MixedSource, SoundClips, SoundView, Source, open_sounds
from mmssl.errors import UserError
from mmssl.finetune import FinetuneRecipe
from mmssl.modality import AUDIO
from mmssl.recipe import from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class AudioFinetune(FinetuneRecipe):
    """Tune an encoder and a head on labelled sounds."""

    modality: ClassVar[str] = AUDIO.name

    out: Path = Path("runs/audio_finetune")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the classifier in `final`."""
    epochs: float = 60.0
    """Times that every sound is heard. May be raised on a run that is there, finished or not."""
    batch_size: int = 32
    """Sounds of one optimizer step, over all processes."""
    base_lr: float = 1e-3
    """Peak learning rate for 256 samples a step; scaled with the batch."""
    weight_decay: float = 5e-4
    """A step and unit of learning rate, of matrices alone."""
    layer_decay: float = 0.75
    """The learning rate of a layer, as a share of that of the layer above it; 1: the same for all."""
    smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    mixed: float = 0.5
    """Probability that a sound is mixed with another one, by a share from Beta(10, 10)."""
    mixup: float = 0.0
    """Spectrograms are not mixed: sounds are."""
    cutmix: float = 0.0
    """Nor is this done to them."""
    gain: bool = True
    """Multiply each sound by a random factor around 1."""
    roll: bool = True
    """Roll each sound round by a random time."""
    spec_augment: tuple[int, int] = (192, 48)
    """Most frames in a row, and most mel bands, that are set to 0."""
    hidden: tuple[float, float] = (0.2, 0.2)
    """Shares of the times and of the mel bands, in patches, that are left out in training."""
    clips: int = 1
    """Evenly spread clips of each sound that are tested, and averaged."""

    @property
    def paper_warmup(self) -> float:
        """4 epochs of 60."""
        return min(4.0, self.epochs / 15)

    @property
    def warmup_share(self) -> float:
        """The same share of `--steps`."""
        return 1 / 15

    @property
    def hidden_axes(self) -> tuple[float, float]:
        """Shares of the times and of the mel bands that are left out in training."""
        return self.hidden

    def _read(self, data: Path, split: str | None, spread: int) -> Source:
        seconds = samples_of(self.input_size[0]) / RATE
        return open_sounds(data, split, SoundClips(seconds, spread=spread), label=self.label)

    def opened(self, data: Path, split: str | None) -> Source:
        """Evenly spread clips of the sounds of a path and a part of them."""
        return self._read(data, split, self.clips)

    def drawn(self, data: Path) -> Source:
        """Random clips of the sounds of the training part."""
        return self._read(data, "train", 0)

    def run(self) -> TrainResult:
        """Tune on sounds of `data`."""
        if max(self.mixup, self.cutmix) > 0:
            raise UserError("sounds are mixed as waveforms, by --mixed: leave --mixup and --cutmix at 0")
        frames = self.input_size[0]
        view = SoundView(frames, gain=self.gain, roll=self.roll, spec_augment=self.spec_augment)
        held_out = SoundView(frames, on_device=True)  # the report lets one hear what is tested
        mixed = (lambda media: MixedSource(media, self.mixed)) if self.mixed else None
        return self.tune(view, held_out, prepare=spectrograms, clips=self.clips, mixed=mixed)


def main() -> None:
    from_command_line(AudioFinetune, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
