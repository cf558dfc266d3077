"""Tune a trained encoder on your own labelled pictures (He et al. 2021, arXiv 2111.06377, appendix A.1).

    python recipes/image_finetune.py --data DIR --model runs/image_mae       # this machine
    torchrun --nproc-per-node 8 recipes/image_finetune.py --data DIR --model runs/image_mae    # 8 GPUs

DIR holds a folder for each class, maybe below `train` and `val`; a manifest (.csv, .parquet, .jsonl) or tar shards with
labels do as well. MODEL is any ViT that mmssl reads: its own folders, transformers', timm's, the authors' files. The
defaults are those by which MAE's authors tune ViT-B on ImageNet-1k, to 83.6 % top-1: 100 epochs, batch 1024, AdamW with
a peak rate of 5e-4 * batch / 256, 0.65 of it from layer to layer downwards, mixup, CutMix, and the mean of the patches
behind a norm of its own. ViT-L: `--epochs 50 --base-lr 1e-3 --layer-decay 0.75 --drop-path 0.2`, ViT-H the same
with `--drop-path 0.3`. Nothing of that size has been tuned with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from mmssl.cli import run
from mmssl.data import EvalView, Source, TrainView, open_source
from mmssl.finetune import FinetuneRecipe
from mmssl.recipe import from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True, kw_only=True)
class ImageFinetune(FinetuneRecipe):
    """Tune an encoder and a head on labelled pictures."""

    out: Path = Path("runs/image_finetune")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the classifier in `final`."""
    size: int | None = None
    """Side of the square crops, in pixels; the model's where not given. Positions are interpolated."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of a picture's area in a crop."""
    flip: float = 0.5
    """Probability that a crop is mirrored."""

    modality = "image"
    positions_learn = True

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the crops."""
        height, width = self.given.config.tokenizers[0].size
        return (self.size, self.size) if self.size else (height, width)

    def opened(self, data: Path, split: str | None) -> Source:
        """The pictures of a path and a part of them."""
        channels = self.given.config.tokenizers[0].modality.channels
        return open_source(data, split, channels, self.background, self.label)

    def run(self) -> TrainResult:
        """Tune on pictures of `data`."""
        return self.tune(TrainView(self.input_size, self.crop_scale, flip=self.flip), EvalView(self.input_size))


def main() -> None:
    from_command_line(ImageFinetune, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
