"""Tune a trained encoder on your own labelled pictures (He et al. 2021, arXiv 2111.06377, appendix A.1).

    python recipes/image_finetune.py --data DIR --model runs/image_mae       # this machine
    torchrun --nproc-per-node 8 recipes/image_finetune.py --data DIR --model runs/image_mae    # 8 GPUs

DIR holds a folder for each class, maybe below `train` and `val`; a manifest (.csv, .parquet, .jsonl) or tar shards with
labels do as well. MODEL is any ViT that mmssl reads: its own folders, transformers', timm's, the authors' files. The
defaults are those by which MAE's authors tune ViT-B on ImageNet-1k, to 83.6 % top-1: 100 epochs, batch 1024, AdamW with
a peak rate of 5e-4 * batch / 256, 0.65 of it from layer to layer downwards, RandAugment, random erasing, mixup, CutMix,
and the mean of the patches behind a norm of its own. ViT-L: `--epochs 50 --base-lr 1e-3 --layer-decay 0.75 --drop-path
0.2`, ViT-H the same with `--drop-path 0.3`. Nothing of that size has been tuned with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mmssl.cli import run
from mmssl.finetune import PictureRecipe
from mmssl.recipe import from_command_line


@dataclass(frozen=True, kw_only=True)
class ImageFinetune(PictureRecipe):
    """Tune an encoder and a head on labelled pictures."""

    out: Path = Path("runs/image_finetune")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the classifier in `final`."""


def main() -> None:
    from_command_line(ImageFinetune, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
