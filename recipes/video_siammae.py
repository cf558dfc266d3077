"""SiamMAE on your own videos (Gupta et al. 2023, arXiv 2305.14344).

    python recipes/video_siammae.py --data DIR                              # this machine
    torchrun --nproc-per-node 8 recipes/video_siammae.py --data DIR         # 8 GPUs
    python recipes/video_siammae.py --data DIR --model tiny --size 64 --patch 8 --epochs 100 --batch-size 64

DIR is a folder tree of MP4, AVI, MKV or WebM files, with or without class folders, or one with `train` and `val`
inside; or a manifest, .csv or .jsonl, with a `path` for each video. `--tracks DAVIS_DIR` follows objects through
DAVIS-style folders with the trained features and shows it in the report. The defaults are the paper's recipe for
Kinetics-400: ViT-S/16 at 224 pixels, 2000 epochs, batch 2048, AdamW with weight decay 0.05, 40 epochs of warm-up, two
pairs of frames of each video that is opened, 95 % of the future frame hidden, one crop (50-100 % of the area) and one
flip for both.
Run the same command again to resume, also after a signal (exit code 75).

The paper leaves choices open and its authors published no code; taken here are: the gap between both frames uniform in
4/30 to 48/30 seconds (the paper's 4 to 48 frames of 30 a second); the decoder's size, CropMAE's 4 blocks of 256 beside
ViT-S, 4 of 128 beside tiny, MAE's 8 of 512 beside base and above; a block's order, cross-attention, self-attention,
MLP, each behind a norm; decoder positions and both class tokens on the past frame as well; 1.5e-4 as a base rate,
multiplied by batch / 256 as in MAE. The paper reports J&F 62.0 on DAVIS-2017; nothing of that size has been trained
with this recipe. What has been is in benchmarks/learning.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmssl.cli import run
from mmssl.data import DavisFolder, EvalView, Pairs, TrainView
from mmssl.evaluation import MaskRow, mask_rows, mask_table, propagate_masks
from mmssl.objectives import Objective, SiamMAE, SiamMAEConfig, siammae_config
from mmssl.recipe import VideoRecipe, from_command_line
from mmssl.report.run import save_tracks
from mmssl.training import TrainResult


@dataclass(frozen=True)
class VideoSiamMAE(VideoRecipe):
    """Pretrain SiamMAE on a folder of videos."""

    objective = SiamMAE

    out: Path = Path("runs/video_siammae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "small"
    """Size of the encoder: 192, 384, 768, 1024 or 1280 wide."""
    gap: tuple[float, float] = (4 / 30, 48 / 30)
    """Seconds from the past to the future frame, uniform in this range."""
    repeats: int = 2
    """Pairs of frames of each video that is opened; an epoch shows as many of each as one with `--repeats 1`."""
    mask_ratio: float = 0.95
    """Share of the future frame's patches that is hidden."""
    norm_pix: bool = True
    """Standardise each target patch."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Least and largest share of a frame's area in a crop."""
    tracks: Path | None = None
    """DAVIS-style folder (JPEGImages, Annotations) to follow objects in with the trained encoder."""
    epochs: float = 2000.0
    """Times that every video is seen, a pair of frames each time. May be raised on a run that is there."""
    batch_size: int = 2048
    """Pairs of one optimizer step, over all processes."""

    def method(self) -> SiamMAEConfig:
        """The settings of SiamMAE."""
        return siammae_config(
            self.model,
            size=self.size,
            patch=self.patch,
            mask_ratio=self.mask_ratio,
            norm_pix=self.norm_pix,
            seed=self.seed,
            decoder_dim=self.decoder_dim,
            decoder_depth=self.decoder_depth,
        )

    def follow(self, folder: DavisFolder, objective: Objective, device: torch.device) -> None:
        """Propagate the masks of `folder`: scores on the screen, four sequences for the report."""
        rows: list[MaskRow] = []
        shown: list[tuple[Tensor, Tensor, Tensor]] = []
        for sequence in folder:
            masks = propagate_masks(objective.encoder, sequence.frames, sequence.masks[0], device=device)
            rows += mask_rows(sequence.name, masks, sequence.masks)
            if len(shown) < 4:
                shown.append((sequence.frames, masks, sequence.masks))
        save_tracks(self.out, shown)
        print(mask_table(rows))

    def run(self) -> TrainResult:
        """Train on pairs of frames of `data`."""
        folder = None if self.tracks is None else DavisFolder(self.tracks, short_side=None)
        return self.train(
            lambda: self.media(Pairs(self.gap)),
            TrainView(self.size, scale=self.crop_scale),
            EvalView(self.size),
            repeats=self.repeats,
            watch=256,
            afterwards=None if folder is None else partial(self.follow, folder),
        )


def main() -> None:
    from_command_line(VideoSiamMAE, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
