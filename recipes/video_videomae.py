"""VideoMAE on your own videos (Tong et al. 2022, arXiv 2203.12602).

    python recipes/video_videomae.py --data DIR                             # this machine
    torchrun --nproc-per-node 8 recipes/video_videomae.py --data DIR        # 8 GPUs
    python recipes/video_videomae.py --data DIR --model tiny --size 64 --patch 8 --stride 1 --epochs 20 --batch-size 64

DIR is a folder tree of MP4, AVI, MKV or WebM files, with or without class folders, or one with `train` and `val`
inside; or a manifest, .csv or .jsonl, with a `path` for each video. The defaults are the paper's recipe for
Kinetics-400: ViT-B on 16 frames, every fourth, at 224 pixels, 800 epochs, batch 2048 (split into chunks of `--at-once`
where memory is short), AdamW with a peak rate of 1.5e-4 * batch / 256, 40 epochs of warm-up, weight decay 0.05, nine
tenths of the places hidden in all frames alike, multi-scale crops and no flips. For Something-Something use
`--stride 2 --epochs 2400`, for UCF101 `--mask-ratio 0.75 --epochs 3200 --batch-size 192 --base-lr 3e-4`.
Departures: crops are resized by an antialiased bicubic filter, the authors' bilinearly; "tiny" is not the paper's, its
decoder has 4 blocks of 96; the others' are the authors' (small: 4 of 192).
Run the same command again to resume, also after a signal (exit code 75). The paper reports 80.0 % top-1 on
Kinetics-400 after fine-tuning ViT-B (800 epochs); nothing of that size has been trained with this recipe. What has been
is in benchmarks/learning.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmssl.cli import run
from mmssl.data import Clips, EvalView, MultiScaleView
from mmssl.objectives import VideoMAE, VideoMAEConfig, videomae_config
from mmssl.recipe import VideoRecipe, from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True)
class VideoVideoMAE(VideoRecipe):
    """Pretrain VideoMAE on a folder of videos."""

    objective = VideoMAE

    out: Path = Path("runs/video_videomae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Size of the encoder: 192, 384, 768, 1024 or 1280 wide."""
    frames: int = 16
    """Frames of a clip."""
    stride: int = 4
    """From one frame of a clip to the next, in the video's average frame intervals."""
    mask_ratio: float = 0.9
    """Share of the places that is hidden, in all frames alike."""
    norm_pix: bool = True
    """Standardise each channel of each target tube."""
    batch_size: int = 2048
    """Clips of one optimizer step, over all processes."""

    @property
    def paper_min_lr(self) -> float:
        """The authors' last rate, 1e-5, scaled with the batch as the peak is."""
        return 1e-5 * self.batch_size / 256

    def method(self) -> VideoMAEConfig:
        """The settings of VideoMAE."""
        return videomae_config(
            self.model,
            frames=self.frames,
            size=self.size,
            patch=self.patch,
            mask_ratio=self.mask_ratio,
            norm_pix=self.norm_pix,
            seed=self.seed,
            decoder_dim=self.decoder_dim,
            decoder_depth=self.decoder_depth,
        )

    def run(self) -> TrainResult:
        """Train on clips of `data`."""
        return self.train(
            lambda: self.media(Clips(self.frames, self.stride)),
            MultiScaleView(self.size),
            EvalView(self.size),
            repeats=self.repeats,
            watch=64,
        )


def main() -> None:
    from_command_line(VideoVideoMAE, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
