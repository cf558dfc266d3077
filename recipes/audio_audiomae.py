"""Audio-MAE on your own sounds (Huang et al. 2022, arXiv 2207.06405).

    python recipes/audio_audiomae.py --data DIR                              # this machine
    torchrun --nproc-per-node 8 recipes/audio_audiomae.py --data DIR         # 8 GPUs
    python recipes/audio_audiomae.py --data DIR --model tiny --frames 64 --epochs 100 --batch-size 64

DIR is a folder tree of WAV, FLAC, Ogg, Opus or MP3 files of any rate and number of channels, with or without class
folders, or one with `train` and `val` inside; a manifest, .csv or .jsonl, with a `path` for each sound; or WebDataset
shards, .tar. The defaults are the paper's recipe for AudioSet: ViT-B/16 on ten seconds (1024 frames of 10 ms), 33
epochs, batch 512, AdamW with weight decay 1e-4 and a base rate of 2e-4, 3 epochs of warm-up, 80 % of the patches
hidden, sixteen blocks of windows in the decoder, a random gain. Run the same command again to resume, also after a
signal (exit code 75).

Where this is not the authors' code: positions are at their places (`--position sincos_swapped` is the authors' table,
which is not); the local decoder's position bias has no dropout (`--dropout 0.1` is theirs); `--roll` rolls the sound,
which theirs means to and does not. `--mean` and `--std` are AudioSet's: give your own data's where it is unlike it. The
paper reports 47.3 mAP on AudioSet after fine-tuning; nothing of that size has been trained with this recipe. What has:
four blocks of ViT-tiny on 1673 spoken syllables, 2000 steps of 64 (45 minutes on half a CPU core), after which a linear
probe tells the tone of syllables never heard with 91.1 % accuracy and their initial consonant with 39.7 %, of random
initialisation with 84.3 and 32.4 % (benchmarks/learning.md).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmssl.audio import RATE, samples_of, spectrograms
from mmssl.cli import run
from mmssl.data import SoundView
from mmssl.modality import AUDIO
from mmssl.objectives import AudioMAE, AudioMAEConfig, audiomae_config
from mmssl.pretraining.media import open_recordings
from mmssl.recipe import DecoderRecipe, from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True)
class AudioAudioMAE(DecoderRecipe):
    """Pretrain Audio-MAE on a folder of sounds."""

    objective = AudioMAE

    out: Path = Path("runs/audio_audiomae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Size of the encoder: 192, 384, 768, 1024 or 1280 wide."""
    frames: int = 1024
    """Length of a clip in frames of 10 ms; shorter sounds are padded, of longer ones a random part is taken."""
    patch: int | tuple[int, int] = 16
    """Side of a patch: so many frames and mel bands; or the two apart, such as 4 32 for sounds below a second."""
    decoder: Literal["local", "global"] = "local"
    """local: attention in windows of 4 x 4 patches; global: MAE's."""
    position: Literal["sincos", "sincos_swapped"] = "sincos"
    """sincos: positions at their places; sincos_swapped: the authors' table."""
    dropout: float = 0.0
    """Of the local decoder's position bias."""
    mask_ratio: float = 0.8
    """Share of the patches that is hidden."""
    axes_ratio: tuple[float, float] | None = None
    """Hide whole times and whole mel bands instead: the share of each."""
    norm_pix: bool = True
    """Standardise each target patch."""
    gain: bool = True
    """Multiply each sound by a random factor around 1."""
    roll: bool = False
    """Roll each sound round by a random time."""
    log_mel: Literal["workers", "device"] = "workers"
    """Where spectrograms are computed while training: by the workers, or where the model is. May be changed on a run
    that is there."""
    mean: float = AUDIO.mean[0]
    """Mean of the data's log-mel values."""
    std: float = AUDIO.std[0] / 2
    """Standard deviation of the data's log-mel values."""
    epochs: float = 33.0
    """Times that every sound is heard. May be raised on a run that is there."""
    batch_size: int = 512
    """Sounds of one optimizer step, over all processes."""
    base_lr: float = 2e-4
    """Peak learning rate for 256 samples a step; scaled with the batch."""
    weight_decay: float = 1e-4
    """AdamW's, a step and unit of learning rate, of matrices alone."""

    @property
    def paper_warmup(self) -> float:
        """3 epochs of 33."""
        return min(3.0, self.epochs / 11)

    def method(self) -> AudioMAEConfig:
        """The settings of Audio-MAE."""
        return audiomae_config(
            self.model,
            frames=self.frames,
            patch=self.patch,
            decoder=self.decoder,
            position=self.position,
            dropout=self.dropout,
            mask_ratio=self.mask_ratio,
            axes_ratio=self.axes_ratio,
            norm_pix=self.norm_pix,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
            decoder_dim=self.decoder_dim,
            decoder_depth=self.decoder_depth,
        )

    def run(self) -> TrainResult:
        """Train on clips of the sounds of `data`."""
        return self.train(
            lambda: open_recordings(self.data, samples_of(self.frames) / RATE, self.seed, self.label),
            SoundView(self.frames, gain=self.gain, roll=self.roll, on_device=self.log_mel == "device"),
            SoundView(self.frames, on_device=True),  # the report lets one hear what is watched
            prepare=spectrograms,
        )


def main() -> None:
    from_command_line(AudioAudioMAE, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
