"""What every recipe can be told, and how it becomes a run; a recipe adds method, media and its paper's numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from mmssl.data import Clips, Pairs, Source, View
from mmssl.objectives import Objective
from mmssl.report.run import write_report
from mmssl.training import TrainResult, TrainSettings, distributed
from mmssl.workflow import accumulation, open_clips, pretrain


@dataclass(frozen=True)
class Recipe:
    """Data, length, optimizer and bookkeeping of a run; the defaults are MAE's."""

    data: Path
    """The media to train on."""
    out: Path = Path("runs/recipe")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    epochs: float = 800.0
    warmup_epochs: float | None = None
    """A twentieth of the epochs, at most 40, where not given."""
    batch_size: int = 4096
    """Samples of one optimizer step, over all processes."""
    at_once: int | None = None
    """Samples a process holds at once; a larger share of the batch is split (gradient accumulation). 64 on a CPU, 256
    on a GPU where not given."""
    base_lr: float = 1.5e-4
    """For 256 samples a step; scaled with the batch."""
    weight_decay: float = 0.05
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware has it."""
    compile: bool = False
    workers: int = 2
    """Processes that read media, for each training process."""
    max_skipped: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.001
    """Stop as soon as more than this share of the files, and more than one, cannot be read; 0: at the first."""
    log_every: int = 10
    save_every: int = 200
    validate_every: int = 100
    seed: int = 0
    device: str = "auto"

    def training(self, world_size: int, device: torch.device) -> TrainSettings:
        """The settings of the training loop."""
        at_once = (64 if device.type == "cpu" else 256) if self.at_once is None else self.at_once
        return TrainSettings(
            epochs=self.epochs,
            warmup_epochs=min(40.0, self.epochs / 20) if self.warmup_epochs is None else self.warmup_epochs,
            batch_size=self.batch_size,
            accumulate=accumulation(self.batch_size, world_size, at_once),
            base_lr=self.base_lr,
            weight_decay=self.weight_decay,
            min_lr=self.min_lr,
            precision=self.precision,
            compile=self.compile,
            seed=self.seed,
            log_every=self.log_every,
            save_every=self.save_every,
            validate_every=self.validate_every,
        )

    @property
    def min_lr(self) -> float:
        """The learning rate that the cosine ends with."""
        return 0.0

    def train(
        self,
        method: Callable[[], Objective],
        data: Callable[[], tuple[Source, Source]],
        view: View,
        held_out_view: View,
        *,
        repeats: int = 1,
        watch: int = 1024,
        afterwards: Callable[[Objective, torch.device], None] | None = None,
    ) -> TrainResult:
        """Train what `method` builds on the first of `data`'s sources, watching `watch` samples of the second.

        repeats: views of each sample in a row. `afterwards` runs on rank 0, before the report is drawn.
        """
        device = distributed.init(self.device)
        torch.manual_seed(self.seed)
        try:
            sources, objective = data(), method()
            context: dict[str, Any] = {"method": asdict(objective.config), "workers": self.workers}
            result = pretrain(
                objective,
                *sources,
                self.training(distributed.world_size(), device),
                self.out,
                view=view,
                held_out_view=held_out_view,
                device=device,
                workers=self.workers,
                repeats=repeats,
                watch=watch,
                ceiling=self.max_skipped,
                context=context,
            )
            if distributed.rank() == 0:
                try:
                    if afterwards is not None:
                        afterwards(objective, device)
                finally:
                    print(f"encoder: {self.out / 'final'}\nreport:  {write_report(self.out)}")
            return result
        finally:
            distributed.shutdown()


@dataclass(frozen=True)
class VideoRecipe(Recipe):
    """What recipes that read videos can be told besides."""

    size: int = 224
    """Side of the square crops, in pixels."""
    patch: int = 16
    """Side of a patch, in pixels."""
    short_side: int | None = None
    """Pixels on the shorter side that large videos are decoded at: 8/7 of the size where not given."""
    repeats: int = 1
    """Samples of each video that is opened: more where decoding is the bottleneck. An epoch shows as many of each video
    as one with `--repeats 1`, and opens fewer."""

    def training(self, world_size: int, device: torch.device) -> TrainSettings:
        """The settings of the training loop, whose epochs visit every video `repeats` times."""
        settings = super().training(world_size, device)
        assert settings.epochs is not None
        return replace(
            settings, epochs=settings.epochs / self.repeats, warmup_epochs=settings.warmup_epochs / self.repeats
        )

    def media(self, clips: Clips | Pairs) -> tuple[Source, Source]:
        """What is trained on, sampled as `clips` says, and what is held out, always the same samples of it."""
        short_side = self.short_side or self.size * 8 // 7
        return open_clips(self.data, clips, replace(clips, spread=1), short_side=short_side, seed=self.seed)
