"""Masked autoencoder on your own pictures (He et al. 2021, arXiv 2111.06377).

    python recipes/image_mae.py --data DIR                                  # this machine
    torchrun --nproc-per-node 8 recipes/image_mae.py --data DIR             # 8 GPUs
    python recipes/image_mae.py --data DIR --model tiny --epochs 20 --batch-size 256    # a first look

DIR is a folder tree of JPEG, PNG, WebP, TIFF or .npy pictures (or of any kind that Pillow reads), of any size, with or
without class folders, or one with `train` and `val` inside. The defaults are the paper's ablation recipe: ViT-B/16 at
224 pixels, 800 epochs, batch 4096 (split into chunks of `--at-once` where memory is short), AdamW with a peak rate of
1.5e-4 * batch / 256, 40 epochs of warm-up, weight decay 0.05, three quarters of the patches hidden, crops of 20-100 %
of the area and flips. The decoder is the paper's, 8 blocks of 512, for base and above; tiny gets 4 blocks of 128, small
4 of 256.
Run the same command again to resume, also after a signal (exit code 75). The paper reports 83.6 % top-1 on ImageNet-1k
after fine-tuning a ViT-B trained 1600 epochs with `--norm-pix`; nothing of that size has been trained with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmssl.cli import run
from mmssl.data import EvalView, TrainView
from mmssl.objectives import MAE, MAEConfig, mae_config
from mmssl.pretraining.media import open_pictures
from mmssl.recipe import DecoderRecipe, from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True)
class ImageMAE(DecoderRecipe):
    """Pretrain a masked autoencoder on a folder of pictures."""

    objective = MAE

    out: Path = Path("runs/image_mae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Size of the encoder: 192, 384, 768, 1024 or 1280 wide."""
    size: int = 224
    """Side of the square crops, in pixels."""
    patch: int | None = None
    """Side of a patch: 16, or 14 for huge."""
    channels: int = 3
    """Channels of every picture; .npy files may have any number."""
    background: str = "white"
    """What transparent parts of pictures show: white, black, grey, #rrggbb or R,G,B."""
    mask_ratio: float = 0.75
    """Share of the patches that is hidden."""
    norm_pix: bool = False
    """Standardise each target patch, as the authors' released encoders were trained."""
    drop_path: float = 0.0
    """Probability of skipping a branch of the encoder's last block, growing linearly up to it."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of a picture's area in a crop."""

    def method(self) -> MAEConfig:
        """The settings of the masked autoencoder."""
        return mae_config(
            self.model,
            size=self.size,
            patch=self.patch,
            channels=self.channels,
            drop_path=self.drop_path,
            mask_ratio=self.mask_ratio,
            norm_pix=self.norm_pix,
            seed=self.seed,
            decoder_dim=self.decoder_dim,
            decoder_depth=self.decoder_depth,
        )

    def run(self) -> TrainResult:
        """Train on pictures of `data`."""
        return self.train(
            lambda: open_pictures(self.data, self.channels, self.seed, self.background, self.label),
            TrainView(self.size, scale=self.crop_scale),
            EvalView(self.size),
        )


def main() -> None:
    from_command_line(ImageMAE, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
