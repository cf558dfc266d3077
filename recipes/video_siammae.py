"""SiamMAE on your own videos (Gupta et al. 2023, arXiv 2305.14344).

    python recipes/video_siammae.py --data DIR                              # this machine
    torchrun --nproc-per-node 8 recipes/video_siammae.py --data DIR         # 8 GPUs
    python recipes/video_siammae.py --data DIR --model tiny --size 64 --patch 8 --epochs 100 --batch-size 64

DIR is a folder tree of MP4, AVI, MKV or WebM files, with or without class folders, or one with `train` and `val`
inside; or a manifest, .csv or .jsonl, with a `path` for each video. `--tracks DAVIS_DIR` follows objects through
DAVIS-style folders with the trained features and shows it in the report. The defaults are the paper's recipe for
Kinetics-400: ViT-S/16 at 224 pixels, 2000 epochs, batch 2048, AdamW with weight decay 0.05, 40 epochs of warm-up, two
pairs of frames from each video, 95 % of the future frame hidden, one crop (50-100 % of the area) and flip for both.
Run the same command again to resume, also after a signal (exit code 75).

The paper leaves choices open and its authors published no code; taken here are: the gap between both frames uniform in
4/30 to 48/30 seconds (the paper's 4 to 48 frames of 30 a second); the decoder's size, MAE's 8 blocks of 512; a block's
order, cross-attention, self-attention, MLP, each behind a norm; decoder positions and both class tokens on the past
frame as well; 1.5e-4 as a base rate, multiplied by batch / 256 as in MAE. The paper reports J&F 62.0 on DAVIS-2017;
nothing of that size has been trained with this recipe. What has been is in benchmarks/learning.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

from mmssl.cli import run
from mmssl.data import DavisFolder, EvalView, Pairs, TrainView
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.evaluation import Propagation, evaluate_masks, mask_table, propagate_masks
from mmssl.modality import image
from mmssl.objectives import Objective, SiamMAE, SiamMAEConfig
from mmssl.recipe import Recipe
from mmssl.report.run import save_tracks
from mmssl.workflow import open_clips


@dataclass(frozen=True)
class VideoSiamMAE(Recipe):
    """Pretrain SiamMAE on a folder of videos."""

    out: Path = Path("runs/video_siammae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "small"
    size: int = 224
    """Side of the square crops, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    gap: tuple[float, float] = (4 / 30, 48 / 30)
    """Seconds from the past to the future frame, uniform in this range."""
    short_side: int | None = None
    """Pixels on the shorter side that videos are decoded at: 8/7 of the size where not given."""
    repeats: int = 2
    """Pairs of frames of each video that is opened."""
    mask_ratio: float = 0.95
    norm_pix: bool = True
    """Standardise each target patch."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    tracks: Path | None = None
    """DAVIS-style folder (JPEGImages, Annotations) to follow objects in with the trained encoder."""
    epochs: float = 2000.0
    warmup_epochs: float | None = 40.0
    batch_size: int = 2048
    """Pairs of one optimizer step, over all processes."""

    def method(self) -> SiamMAEConfig:
        """The settings of SiamMAE."""
        if min(self.patch, self.size) < 1 or self.size % self.patch:
            raise UserError(f"patch {self.patch} does not divide frames of {self.size} pixels: choose another --size")
        modality = image(3, (self.patch, self.patch))
        encoder = vit_config(self.model, modality=modality, input_size=(self.size, self.size))
        return SiamMAEConfig(encoder, mask_ratio=self.mask_ratio, norm_pix=self.norm_pix, seed=self.seed)

    def follow(self, objective: Objective, device: torch.device) -> None:
        """Propagate the masks of `--tracks`: scores on the screen, four sequences for the report."""
        if self.tracks is None:
            return
        folder, encoder = DavisFolder(self.tracks, short_side=None), objective.encoder
        print(mask_table(evaluate_masks(encoder, folder, Propagation(), device=device)))
        shown = []
        for sequence in itertools.islice(folder, 4):
            predicted = propagate_masks(encoder, sequence.frames, sequence.masks[0], Propagation(), device=device)
            shown.append((sequence.frames, predicted, sequence.masks))
        save_tracks(self.out, shown)


def main() -> None:
    config = tyro.cli(VideoSiamMAE, description=__doc__)
    pairs = Pairs(config.gap)
    config.train(
        lambda: SiamMAE(config.method()),
        lambda: open_clips(
            config.data,
            pairs,
            dataclasses.replace(pairs, spread=1),
            short_side=config.short_side or config.size * 8 // 7,
            seed=config.seed,
        ),
        TrainView(config.size, scale=config.crop_scale),
        EvalView(config.size),
        repeats=config.repeats,
        watch=256,
        afterwards=config.follow,
    )


if __name__ == "__main__":
    sys.exit(run(main))
