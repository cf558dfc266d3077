"""What recipes that tune a trained model on labelled media share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import torch
import tyro

from mmssl.data import Ledger, Source, Subset, View, evaluation_batches
from mmssl.data.labelled import both_parts, counted, few
from mmssl.data.source import redrawn
from mmssl.encoder import Encoder, Pool
from mmssl.errors import UserError
from mmssl.finetune.classifier import Classifier, ClassifierConfig
from mmssl.finetune.judge import Answers, answers, measures, told
from mmssl.finetune.mixing import Mixing
from mmssl.finetune.start import encoder_of, keeps_head, tuned, with_head
from mmssl.objectives import Objective
from mmssl.pretraining.initial import take
from mmssl.recipe import Recipe
from mmssl.report.classes import CLASSES
from mmssl.training import TrainResult, autocast_dtype, distributed
from mmssl.training.checkpoints import replace_file
from mmssl.training.loop import Prepare, placed


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe(Recipe):
    """Settings of a run that tunes; the defaults are MAE's for ViT-B."""

    objective = Classifier
    modality: ClassVar[str]
    """The kind of media that is read."""
    positions_learn: ClassVar[bool] = False
    """Whether tables of positions learn that pretraining left as they were."""
    head_norm: ClassVar[bool] = False
    """Whether a batch norm stands before a fresh head."""
    pooler: ClassVar[bool] = False
    """Whether a layer of tanh does, BERT's."""

    init: Annotated[str | None, tyro.conf.Suppress] = None
    model: str
    """What is tuned: a model's or a run's folder of mmssl, one of transformers or timm, the authors' file (.pth,
    .safetensors), or a Hugging Face id."""
    scratch: bool = False
    """Take the model's sizes alone, and start from random weights."""
    test: Path | None = None
    """What to test on, such as a second manifest, where DATA has no part for it; otherwise a fifth is held out."""
    per_class: int | None = None
    """So many samples of each class alone, drawn by the seed; all where not given."""
    epochs: float = 100.0
    """Times that every sample is seen. May be raised on a run that is there, finished or not."""
    batch_size: int = 1024
    """Samples of one optimizer step, over all processes."""
    base_lr: float = 5e-4
    """Peak learning rate for 256 samples a step; scaled with the batch."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Shares of the past, a step, in AdamW's two moving moments of the gradient; the first is LARS's and SGD's."""
    pool: Pool = "mean"
    """What the head sees: the mean of the patches, behind a norm of its own, or the class token."""
    layer_decay: float = 0.65
    """The learning rate of a layer, as a share of that of the layer above it; 1: the same for all."""
    tuned_blocks: int | None = None
    """How many of the last blocks learn; all, and the embedding, where not given; 0: the head alone."""
    drop_path: float = 0.1
    """Probability of skipping a branch of the last block, growing linearly up to it."""
    smoothing: float = 0.1
    """Share of a label that is spread over all classes."""
    mixup: float = 0.8
    """Alpha of the shares by which samples are mixed with others; 0: never."""
    cutmix: float = 1.0
    """Alpha of the areas that stay a sample's own around a box of another; 0: never."""
    mixed: float = 1.0
    """Probability that a sample is mixed at all."""
    head_std: float = 2e-5
    """Standard deviation of the head's first weights."""

    @property
    def paper_warmup(self) -> float:
        """Epochs of warm-up: 5 of the papers' 100, in that proportion where there are fewer."""
        return min(5.0, self.epochs / 20)

    @property
    def paper_min_lr(self) -> float:
        """The learning rate that the papers' schedule ends with."""
        return 1e-6

    def opened(self, data: Path, split: str | None) -> Source:
        """The media of a path and a part of them, as they are tested on."""
        raise NotImplementedError

    def drawn(self, data: Path) -> Source | None:
        """Those of the training part as they are trained on, where that draws other samples of the same files."""
        return None

    @cached_property
    def given(self) -> Encoder:
        """The encoder of `model`."""
        return encoder_of(self.model, self.modality)

    @property
    def input_size(self) -> tuple[int, ...]:
        """The size of input that the model reads from now on."""
        return self.given.config.tokenizers[0].size

    @property
    def mixing(self) -> Mixing:
        """How samples are mixed with their partners."""
        return Mixing(self.mixup, self.cutmix, probability=self.mixed)

    @property
    def hidden_axes(self) -> tuple[float, float]:
        """Shares of the grid's rows and columns that are left out in training."""
        return 0.0, 0.0

    def classifier(self, media: Subset) -> Classifier:
        """What is tuned: the model with a head for the classes of `media`, its own where it knows them by name."""
        given = self.given
        several = media.label_sets is not None
        alike = (given.config.pool or "mean", given.config.head_norm) == (self.pool, self.head_norm)
        if kept := alike and keeps_head(given, media.classes, several):
            config = given.config
        else:
            before = {"head_norm": self.head_norm, "pooler": self.pooler, "several": several}
            config = with_head(given.config, media.classes, self.pool, **before)
        encoder = tuned(config, size=self.input_size, drop_path=self.drop_path, positions_learn=self.positions_learn)
        objective = Classifier(
            ClassifierConfig(
                encoder,
                layer_decay=self.layer_decay,
                tuned_blocks=self.tuned_blocks,
                smoothing=self.smoothing,
                mixing=self.mixing,
                head_std=self.head_std,
                hidden=self.hidden_axes,
                seed=self.seed,
            )
        )
        if not self.scratch:
            take(objective.encoder, given, self.model, but=() if kept else ("head.", "head_norm."))
        if distributed.rank() == 0:
            what = "random weights, its sizes alone" if self.scratch else "its encoder"
            head = "and its head" if kept and not self.scratch else "and a fresh head"
            print(f"{'starts':<9} from {self.model}: {what} {head} for {counted(media)}", flush=True)
        return objective

    def tune(
        self,
        view: View,
        held_out_view: View,
        *,
        prepare: Prepare | None = None,
        repeats: int = 1,
        clips: int = 1,
        beside: Mapping[str, bytes] | None = None,
        mixed: Callable[[Subset], Subset] | None = None,
    ) -> TrainResult:
        """Train on the samples of the training part that have labels, watched on all of the test part; what becomes of
        each of its classes is left in the run folder.

        clips: so many of each sample are tested, and averaged. mixed: makes of the training part a source whose samples
        come mixed with others.
        """

        @cache
        def parts() -> tuple[Subset, Subset]:
            train, test, how = both_parts(self.opened, self.data, self.test)
            if distributed.rank() == 0:
                print(f"{'test part':<9} {counted(test)}{how}", flush=True)
            train = train if self.per_class is None else few(train, self.per_class, self.seed)
            if (drawn := self.drawn(self.data)) is not None:
                train = redrawn(train, drawn)
            return train if mixed is None else mixed(train), test

        if clips < 1:
            raise UserError(f"--clips {clips}: at least one clip of each sample is tested")

        def asked(objective: Objective, device: torch.device, ledger: Ledger | None = None) -> Answers:
            assert isinstance(objective, Classifier)
            at_once = max(1, (self.at_once or 64) // clips) * clips
            batches = evaluation_batches(
                parts()[1],
                held_out_view,
                batch_size=at_once,
                workers=self.workers,
                repeats=clips,
                ledger=ledger,
            )
            placed_ = (placed(batch, device, prepare) for batch in batches)
            return answers(objective, placed_, clips, autocast_dtype(self.precision, device))

        def judge(objective: Objective, step: int) -> dict[str, float]:
            return measures(*asked(objective, next(objective.parameters()).device))

        def afterwards(objective: Objective, device: torch.device) -> None:
            ledger = Ledger()
            found = told(*asked(objective, device, ledger), parts()[1].classes)
            for name, reason in dict(ledger.skipped).items():
                print(f"held-out sample skipped: {name} {reason}")
            replace_file(self.out / CLASSES, json.dumps(found, indent=1).encode())
            print(f"{found['metric']}: {100 * found['accuracy']:.2f} % of {found['samples']} that are held out")
            ledger.judge(self.max_skipped, len(parts()[1]))

        return self.train(
            parts,
            view,
            held_out_view,
            prepare=prepare,
            repeats=repeats,
            watch=12,
            made=lambda: self.classifier(parts()[0]),
            judge=judge,
            labelled=True,
            partners=self.mixing.mixes,
            afterwards=afterwards,
            beside=beside,
            told={"tuned": "random weights" if self.scratch else self.model},
        )
