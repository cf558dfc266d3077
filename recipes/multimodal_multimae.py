"""MultiMAE on your own aligned rasters: pictures, depth, labels, any others (Bachmann et al. 2022, arXiv 2204.01678).

    python recipes/multimodal_multimae.py --data DIR --modalities image=rgb depth=depth semseg=semseg  # this machine
    torchrun --nproc-per-node 8 recipes/multimodal_multimae.py --data DIR --modalities image=rgb depth=depth  # 8 GPUs
    python recipes/multimodal_multimae.py --data DIR --modalities FILE.toml  # any other rasters, declared in a file
    mmssl data earth-tiles --data EARTH --out TILES  # a first look: colours, elevation, land
    python recipes/multimodal_multimae.py --data TILES --model tiny --size 64 --epochs 20 --batch-size 64

DIR holds a folder a modality, whose files have the same relative names but for their endings (`rgb/1.jpg`,
`depth/1.npy`, `semseg/1.png`), or `train` and `val` with such; or it is a manifest with a column a modality, or tar
shards (`1.rgb.jpg`, `1.depth.npy`). Files are 8 or 16-bit pictures, .npy or .tiff, labels palette PNG or numbers. All
of a sample have one size; a sample may lack some. A .toml file, `modalities.toml` in or beside DIR where --modalities
is not given, declares each as a table:

    [[modality]]
    name = "infrared"       # its key in batches; image, depth and semseg are known
    folder = "thermal"      # what holds its files: the name where not given
    kind = "continuous"     # or "labels", whose channels are the classes
    channels = 1
    patch = 16              # in values; labels stand every `stride` pixels, 4 where not given
    mean = 280.0            # one number, or one a channel
    std = 15.0

Values that are not a number (of any but image), and the label 255, are not there: no loss, no statistics. The
defaults are the paper's: ViT-B/16 at 224 pixels, 1600 epochs, batch 2048 (split into chunks of `--at-once` where
memory is short), AdamW with a peak rate of 1e-4 * batch / 256, 40 epochs of warm-up, weight decay 0.05, a sixth of
all tokens visible, shared out by a Dirichlet draw, crops of 20-100 % of the area and flips; decoders of 2 blocks of
256 for every encoder. The paper's depth and labels are other models' predictions on ImageNet-1k.
Run the same command again to resume, also after a signal (exit code 75). The paper reports 83.3 % top-1 on ImageNet-1k
after fine-tuning a ViT-B; nothing of that size has been trained with this recipe.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmssl.cli import run
from mmssl.data import AlignedView, Crop, EvalView
from mmssl.data.rasters import Raster, common_grid, declared
from mmssl.objectives import MultiMAE, MultiMAEConfig, multimae_config
from mmssl.pretraining.media import open_rasters
from mmssl.recipe import DecoderRecipe, from_command_line
from mmssl.training import TrainResult


@dataclass(frozen=True)
class MultimodalMultiMAE(DecoderRecipe):
    """Pretrain MultiMAE on aligned rasters."""

    objective = MultiMAE

    out: Path = Path("runs/multimodal_multimae")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    modalities: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=FOLDER ...|FILE.toml")] = ()
    """What each sample has: names of modalities and of the folders of their files, such as image=rgb depth=depth
    semseg=semseg, or a .toml file that declares any others; modalities.toml in or beside the data where not given."""
    model: Literal["tiny", "small", "base", "large", "huge"] = "base"
    """Size of the encoder: 192, 384, 768, 1024 or 1280 wide."""
    size: int = 224
    """Side of the square crops, in pixels."""
    visible: int | None = None
    """Tokens of all modalities together that stay visible: a sixth of them where not given."""
    alpha: float = 1.0
    """Of the Dirichlet distribution of their shares: below 1 one modality often has most, far above 1 all get alike."""
    subsets: bool = False
    """Draw some of the modalities first, which share the visible tokens."""
    norm_rgb: bool = True
    """Predict pictures standardised by patch as well, with a decoder of their own."""
    drop_path: float = 0.0
    """Probability of skipping a branch of the encoder's last block, growing linearly up to it."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Least and largest share of a sample's area in a crop."""
    decoder_dim: int | None = None
    """Width of each decoder, in channels: the paper's 256 where not given."""
    decoder_depth: int | None = None
    """Blocks of each decoder behind its cross-attention: the paper's 2 where not given."""
    epochs: float = 1600.0
    """Times that every sample is seen. May be raised on a run that is there, finished or not."""
    batch_size: int = 2048
    """Samples of one optimizer step, over all processes."""
    base_lr: float = 1e-4
    """Peak learning rate for 256 samples a step; scaled with the batch."""

    @property
    def reading(self) -> tuple[str, ...]:
        """Flags by which other commands read the data as this run does."""
        return ("--modalities", *self.modalities) if self.modalities else ()

    def rasters(self) -> tuple[Raster, ...]:
        """What is declared of the data."""
        return declared(self.data, self.modalities)

    def method(self) -> MultiMAEConfig:
        """The settings of MultiMAE."""
        rasters = self.rasters()
        return multimae_config(
            self.model,
            modalities=tuple(each.modality for each in rasters),
            grid=common_grid(rasters, self.size),
            drop_path=self.drop_path,
            norm_rgb=self.norm_rgb,
            visible=self.visible,
            alpha=self.alpha,
            subsets=self.subsets,
            seed=self.seed,
            decoder_dim=self.decoder_dim or 256,
            decoder_depth=2 if self.decoder_depth is None else self.decoder_depth,
        )

    def run(self) -> TrainResult:
        """Train on aligned rasters of `data`."""
        *sources, partial = open_rasters(self.data, self.modalities, self.seed, self.label)
        crops = Crop(self.size, self.crop_scale), EvalView(self.size)
        view, held_out_view = (AlignedView(crop, self.rasters(), partial) for crop in crops)
        return self.train(lambda: (sources[0], sources[1]), view, held_out_view)


def main() -> None:
    from_command_line(MultimodalMultiMAE, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
