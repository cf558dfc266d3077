"""A linear probe of a trained encoder on your own labelled pictures (He et al. 2021, arXiv 2111.06377, appendix A.1).

    python recipes/image_probe.py --data DIR --model runs/image_mae

The encoder stays as it is; a batch norm without scale and shift and a linear layer are trained on its class token, with
random crops and flips. The defaults are MAE's authors': LARS, a peak rate of 0.1 * batch / 256, batch 16384, 90 epochs,
no weight decay, nothing mixed or smoothed. They report 67.8 % for ViT-B on ImageNet-1k. `--pool mean` looks at the mean
of the patches. `mmssl evaluate` fits a probe to features of unchanged pictures instead, which takes a fraction of
the time and has no rate to be chosen.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from mmssl.cli import run
from mmssl.encoder import Pool
from mmssl.finetune import PictureRecipe
from mmssl.recipe import from_command_line


@dataclass(frozen=True, kw_only=True)
class ImageProbe(PictureRecipe):
    """Train a linear layer on what an encoder makes of labelled pictures."""

    head_norm: ClassVar[bool] = True
    positions_learn: ClassVar[bool] = False

    out: Path = Path("runs/image_probe")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the classifier in `final`."""
    epochs: float = 90.0
    """Times that every sample is seen. May be raised on a run that is there, finished or not."""
    batch_size: int = 16384
    """Samples of one optimizer step, over all processes."""
    base_lr: float = 0.1
    """Peak learning rate for 256 samples a step; scaled with the batch."""
    optimizer: Literal["auto", "adamw", "lars", "sgd", "adam_uncorrected"] = "lars"
    """auto: AdamW."""
    weight_decay: float = 0.0
    """A step and unit of learning rate, of matrices alone."""
    betas: tuple[float, float] = (0.9, 0.999)
    """The first is the momentum of LARS."""
    pool: Pool = "class"
    """What the head sees: the class token, or the mean of the patches, behind a norm of its own."""
    tuned_blocks: int | None = 0
    """How many of the last blocks learn, too."""
    layer_decay: float = 1.0
    """The learning rate of a layer, as a share of that of the layer above it, where blocks learn."""
    drop_path: float = 0.0
    """Probability of skipping a branch of the last block, growing linearly up to it."""
    smoothing: float = 0.0
    """Share of a label that is spread over all classes."""
    mixup: float = 0.0
    """Alpha of the shares by which samples are mixed with others; 0: never."""
    cutmix: float = 0.0
    """Alpha of the areas that stay a sample's own around a box of another; 0: never."""
    randaugment: tuple[float, int] = (9.0, 0)
    """Strength, 0 to 10, and number of the random operations on a crop; none by default."""
    erase: float = 0.0
    """Probability that a box of a crop is filled with noise."""
    head_std: float = 0.01
    """Standard deviation of the head's first weights."""

    @property
    def paper_warmup(self) -> float:
        """10 of the paper's 90 epochs, in that proportion where there are fewer."""
        return min(10.0, self.epochs / 9)

    @property
    def warmup_share(self) -> float:
        """The same share of `--steps`."""
        return 1 / 9

    @property
    def paper_min_lr(self) -> float:
        """The rate falls to 0."""
        return 0.0


def main() -> None:
    from_command_line(ImageProbe, __doc__).run()


if __name__ == "__main__":
    sys.exit(run(main))
