"""Tune a trained encoder of clips on your own labelled videos (VideoMAE, Tong et al. 2022, arXiv 2203.12602, table 9).

    python recipes/video_finetune.py --data DIR --model runs/video_videomae

DIR holds a folder for each class, maybe below `train` and `val`, or is a manifest (.csv, .parquet, .jsonl) with labels.
The defaults are those by which VideoMAE's authors tune ViT-B on Kinetics-400, to 81.5 % top-1: 75 epochs of two clips a
video, batch 512, a peak rate of 5e-4 * batch / 256, 0.75 of it from layer to layer downwards, RandAugment, random
erasing, mixup, CutMix, and the mean of the patches behind a norm of its own. Of each video five clips are tested and
averaged; the authors show three crops of each besides. Nothing of that size has been tuned with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mmssl.cli import run
from mmssl.finetune import ClipRecipe
from mmssl.recipe import from_command_line


@dataclass(frozen=True, kw_only=True)
class VideoFinetune(ClipRecipe):
    """Tune an encoder and a head on labelled videos."""

    out: Path = Path("runs/video_finetune")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the classifier in `final`."""
    epochs: float = 75.0
    """Times that every video is seen. May be raised on a run that is there, finished or not."""
    batch_size: int = 512
    """Clips of one optimizer step, over all processes."""
    layer_decay: float = 0.75
    """The learning rate of a layer, as a share of that of the layer above it; 1: the same for all."""


def main() -> None:
    from_command_line(VideoFinetune, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
