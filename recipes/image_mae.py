"""Masked autoencoder on your own pictures (He et al. 2021, arXiv 2111.06377).

    python recipes/image_mae.py --data DIR                                  # this machine
    torchrun --nproc-per-node 8 recipes/image_mae.py --data DIR             # 8 GPUs
    python recipes/image_mae.py --data DIR --model tiny --epochs 20 --batch-size 256    # a first look

DIR is a folder tree of JPEG, PNG, WebP, TIFF or .npy pictures, of any size, with or without class folders, or one with
`train` and `val` inside. The defaults are the paper's ablation recipe: ViT-B/16 at 224 pixels, 800 epochs, batch 4096
(split into chunks of `--at-once` where memory is short), AdamW with a peak rate of 1.5e-4 * batch / 256, 40 epochs of
warm-up, weight decay 0.05, three quarters of the patches hidden, crops of 20-100 % of the area and flips.
Run the same command again to resume, also after a signal (exit code 75). The paper reports 83.6 % top-1 on ImageNet-1k
after fine-tuning a ViT-B trained 1600 epochs with `--norm-pix`; nothing of that size has been trained with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from mmssl.cli import run
from mmssl.data import EvalView, TrainView
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.modality import image
from mmssl.objectives import MAE, MAEConfig
from mmssl.report.run import write_report
from mmssl.training import TrainSettings, distributed
from mmssl.workflow import accumulation, open_pictures, pretrain


@dataclass(frozen=True)
class ImageMAE:
    """Pretrain a masked autoencoder on a folder of pictures."""

    data: Path
    """Folder of pictures."""
    out: Path = Path("runs/image_mae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    size: int = 224
    """Side of the square crops, in pixels."""
    patch: int | None = None
    """Side of a patch: 16, or 14 for huge."""
    channels: int = 3
    """Channels of every picture; .npy files may have any number."""
    mask_ratio: float = 0.75
    norm_pix: bool = False
    """Standardise each target patch, as the authors' released encoders were trained."""
    epochs: float = 800.0
    warmup_epochs: float | None = None
    """A twentieth of the epochs where not given: 40 of 800."""
    batch_size: int = 4096
    """Pictures of one optimizer step, over all processes."""
    at_once: int | None = None
    """Pictures a process holds at once; a larger share of the batch is split (gradient accumulation). 64 on a CPU, 256
    on a GPU where not given."""
    base_lr: float = 1.5e-4
    weight_decay: float = 0.05
    drop_path: float = 0.0
    crop_scale: tuple[float, float] = (0.2, 1.0)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware has it."""
    compile: bool = False
    workers: int = 2
    """Processes that read pictures, for each training process."""
    max_skipped: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.001
    """Stop when more than this share of the pictures cannot be read."""
    log_every: int = 10
    save_every: int = 200
    validate_every: int = 100
    seed: int = 0
    device: str = "auto"

    def method(self) -> MAEConfig:
        """The settings of the masked autoencoder."""
        patch = (14 if self.model == "huge" else 16) if self.patch is None else self.patch
        if min(patch, self.size, self.channels) < 1 or self.size % patch:
            raise UserError(
                f"patch {patch} does not divide pictures of {self.size} pixels and {self.channels} channels: "
                "choose another --size or --patch, all of them above 0"
            )
        modality = image(self.channels, (patch, patch))
        encoder = vit_config(self.model, modality=modality, input_size=(self.size, self.size), drop_path=self.drop_path)
        return MAEConfig(encoder, mae_decoder_config(), self.mask_ratio, self.norm_pix, self.seed)

    def training(self, world_size: int, device: torch.device) -> TrainSettings:
        """The settings of the training loop."""
        at_once = (64 if device.type == "cpu" else 256) if self.at_once is None else self.at_once
        return TrainSettings(
            epochs=self.epochs,
            warmup_epochs=self.epochs / 20 if self.warmup_epochs is None else self.warmup_epochs,
            batch_size=self.batch_size,
            accumulate=accumulation(self.batch_size, world_size, at_once),
            base_lr=self.base_lr,
            weight_decay=self.weight_decay,
            precision=self.precision,
            compile=self.compile,
            seed=self.seed,
            log_every=self.log_every,
            save_every=self.save_every,
            validate_every=self.validate_every,
        )


def main() -> None:
    config = tyro.cli(ImageMAE, description=__doc__)
    device = distributed.init(config.device)
    torch.manual_seed(config.seed)
    try:
        pictures, held_out = open_pictures(config.data, config.channels, config.seed)
        pretrain(
            MAE(config.method()),
            pictures,
            held_out,
            config.training(distributed.world_size(), device),
            config.out,
            view=TrainView(config.size, scale=config.crop_scale),
            held_out_view=EvalView(config.size),
            device=device,
            workers=config.workers,
            ceiling=config.max_skipped,
            context={"method": asdict(config.method()), "workers": config.workers},
        )
        if distributed.rank() == 0:
            print(f"encoder: {config.out / 'final'}\nreport:  {write_report(config.out)}")
    finally:
        distributed.shutdown()


if __name__ == "__main__":
    sys.exit(run(main))
