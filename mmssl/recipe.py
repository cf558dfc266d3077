"""What every recipe can be told, and how it becomes a run; a recipe adds method, media and its paper's numbers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_type_hints

import torch
import tyro

from mmssl.data import Clips, Pairs, Source, Stage, View
from mmssl.errors import UserError
from mmssl.interop import config_from_dict
from mmssl.objectives import Objective
from mmssl.pretraining.header import next_steps
from mmssl.pretraining.initial import start_from
from mmssl.pretraining.media import open_clips
from mmssl.pretraining.pretrain import Judge, accumulation, pretrain
from mmssl.report.run import write_report
from mmssl.training import TrainResult, TrainSettings, distributed
from mmssl.training.loop import Prepare

R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class Recipe:
    """Data, length, optimizer and bookkeeping of a run; the defaults are MAE's.

    A recipe names the method it trains, `objective`; `method` gives its settings, and `run` trains it.
    """

    objective: ClassVar[type[Objective]]
    data: Path
    """The media to train on."""
    label: str | None = None
    """What a manifest, or the JSON beside a sample in tar shards, calls the class: accuracies on what is held out are
    among the curves then. Where not given `label` in manifests, in shards the text of `.cls`."""
    out: Path = Path("runs/recipe")
    """Run folder: checkpoints, metrics.jsonl, TensorBoard files, report.html and the encoder in `final`."""
    config: Path | None = None
    """A run's settings.json, to repeat it: its flags are the defaults of these, all but `--out`, and `--data` too."""
    init: str | None = None
    """Weights to start from instead of random ones: a model's or a run's folder of mmssl, one of transformers, the
    authors' file (.pth, .safetensors), or a Hugging Face id. The decoder comes along where there is one."""
    epochs: float = 800.0
    """Times that every sample is seen. May be raised on a run that is there, finished or not."""
    steps: int | None = None
    """Optimizer steps of the whole run, instead of `--epochs`."""
    warmup_epochs: float | None = None
    """Epochs over which the learning rate grows: a twentieth of the epochs, at most 40, where not given."""
    warmup_steps: int | None = None
    """The same in steps, instead: the same share of `--steps` where those are given and this is not."""
    batch_size: int = 4096
    """Samples of one optimizer step, over all processes."""
    at_once: int | None = None
    """Samples a process holds at once; a larger share of the batch is split (gradient accumulation). 64 on a CPU, 256
    on a GPU where not given."""
    base_lr: float = 1.5e-4
    """Peak learning rate for 256 samples a step; scaled with the batch."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up."""
    min_lr: float | None = None
    """Learning rate at the end, not scaled; the paper's where not given."""
    optimizer: Literal["auto", "adamw", "lars", "sgd", "adam_uncorrected"] = "auto"
    """auto: the paper's. adam_uncorrected: BERT's AdamW, whose moments are not corrected for starting at 0."""
    weight_decay: float = 0.05
    """A step and unit of learning rate, of matrices alone."""
    weight_decay_end: float | None = None
    """Weight decay that a cosine ends with; constant where unset."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Shares of the past, a step, in AdamW's two moving moments of the gradient; the first is LARS's and SGD's."""
    eps: float | None = None
    """What Adam adds to the root of its second moment; the optimizer's own where not given, 1e-8, of adam_uncorrected
    1e-6."""
    clip_norm: float | None = None
    """Longest gradient, as the norm over all parameters: longer ones are scaled down to it. Not clipped where unset."""
    ema: float | None = None
    """Share of the past, a step (such as 0.9999), in a moving average of the weights. Kept beside them; it is what is
    validated and what `final` holds, as timm's scripts take it. No average where unset."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 autocast where the hardware has it."""
    compile: bool = False
    """Let torch.compile speed up the steps; the first takes a minute or so."""
    workers: int = 2
    """Processes that read media, for each training process."""
    max_skipped: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.001
    """Stop as soon as more than this share of the files, and more than one, cannot be read; 0: at the first."""
    log_every: int = 10
    """Steps from one row of metrics to the next. Something is printed every 10 seconds in any case."""
    save_every: int = 200
    """Steps from one checkpoint to the next; 0: at the end alone."""
    validate_every: int = 100
    """Steps from one look at the held-out media to the next; 0: never."""
    keep: int = 2
    """Newest checkpoints that stay on the disk; 0: all."""
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    """Who gets the metrics besides metrics.jsonl; wandb needs `pip install 'mmssl[wandb]'`."""
    seed: int = 0
    """Of the order of the data, views, masks and first weights."""
    device: str = "auto"
    """auto: a GPU where there is one; or cpu, cuda, cuda:1 ..."""

    def filled(self: R, paper: Mapping[str, Any]) -> R:
        """Itself, with these settings where none are given."""
        return replace(self, **{name: value for name, value in paper.items() if getattr(self, name) is None})

    def training(self, world_size: int, device: torch.device) -> TrainSettings:
        """The settings of the training loop."""
        at_once = (64 if device.type == "cpu" else 256) if self.at_once is None else self.at_once
        warmup_steps = self.warmup_steps
        if self.steps is not None and self.warmup_epochs is None and warmup_steps is None:
            warmup_steps = int(self.steps * self.warmup_share)
        return TrainSettings(
            epochs=self.epochs if self.steps is None else None,
            steps=self.steps,
            warmup_epochs=self.paper_warmup if self.warmup_epochs is None else self.warmup_epochs,
            warmup_steps=warmup_steps,
            batch_size=self.batch_size,
            accumulate=accumulation(self.batch_size, world_size, at_once),
            base_lr=self.base_lr,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            weight_decay_end=self.weight_decay_end,
            betas=self.betas,
            eps=self.eps,
            decay=self.decay,
            min_lr=self.paper_min_lr if self.min_lr is None else self.min_lr,
            clip_norm=self.clip_norm,
            ema=self.ema,
            precision=self.precision,
            compile=self.compile,
            seed=self.seed,
            log_every=self.log_every,
            save_every=self.save_every,
            validate_every=self.validate_every,
            keep=self.keep,
            tracker=self.tracker,
        )

    @property
    def warmup_share(self) -> float:
        """The share of `--steps` in which the learning rate grows, where nothing else is said."""
        return 1 / 20

    @property
    def paper_warmup(self) -> float:
        """Epochs of warm-up in the paper's share of the whole, at most as many as there."""
        return min(40.0, self.epochs / 20)

    @property
    def paper_min_lr(self) -> float:
        """The learning rate that the paper's schedule ends with."""
        return 0.0

    @property
    def own_decoder(self) -> bool:
        """Whether the decoder's sizes were asked for, so that one of other sizes is refused."""
        return False

    @property
    def reading(self) -> tuple[str, ...]:
        """Flags by which other commands read the data as this run does."""
        return ()

    @property
    def place(self) -> Path:
        """Where the media are that the model can be asked about afterwards."""
        return self.data

    def method(self) -> Any:
        """The settings of the method, as its config holds them."""
        raise NotImplementedError

    def build(self) -> Objective:
        """The method with fresh weights. Where a user's own has further settings in its config, they keep their
        defaults."""
        return self.objective(self.objective.completed(self.method()))

    def train(
        self,
        data: Callable[[], tuple[Source, Source]],
        view: View,
        held_out_view: View,
        *,
        prepare: Prepare | None = None,
        repeats: int = 1,
        watch: int = 1024,
        afterwards: Callable[[Objective, torch.device], None] | None = None,
        beside: Mapping[str, bytes] | None = None,
        first: Callable[[], Stage] | None = None,
        made: Callable[[], Objective] | None = None,
        judge: Judge | None = None,
        labelled: bool = False,
        partners: bool = False,
        told: Mapping[str, Any] | None = None,
    ) -> TrainResult:
        """Train the method on the first of `data`'s sources, watching `watch` samples of the second.

        prepare: finishes batches on the device (see `pretrain`). repeats: views of each sample in a row. `afterwards`
        runs on rank 0, before the report is drawn. made: what is trained, where `build` cannot tell without the data.
        told: what a resumed run must find as it was.
        All else goes to `pretrain`.
        """
        device = distributed.init(self.device)
        torch.manual_seed(self.seed)
        try:
            sources, objective = data(), (made or self.build)()
            stage = None if first is None else first()
            told_by = {name: value for name, value in asdict(self).items() if name not in ("config", "out")}
            context: dict[str, Any] = {"workers": self.workers, "recipe": told_by, **(told or {})}
            if self.init is not None:
                objective, taken = start_from(objective, self.init, own_decoder=self.own_decoder)
                context["init"] = self.init
                if distributed.rank() == 0:
                    print(taken, flush=True)
            context["method"] = asdict(objective.config)
            result = pretrain(
                objective,
                *sources,
                self.training(distributed.world_size(), device),
                self.out,
                view=view,
                held_out_view=held_out_view,
                device=device,
                prepare=prepare,
                workers=self.workers,
                repeats=repeats,
                watch=watch,
                ceiling=self.max_skipped,
                context=context,
                beside=beside,
                first=stage,
                judge=judge,
                labelled=labelled,
                partners=partners,
            )
            if distributed.rank() == 0:
                if (skipped := result.metrics.get("skipped", 0)) > 0:
                    print(
                        f"skipped: {skipped} times a sample that cannot be read, as {self.out / 'skipped.jsonl'} tells"
                    )
                try:
                    if afterwards is not None:
                        afterwards(objective, device)
                finally:
                    print(f"report:  {write_report(self.out)}")
                    print(*next_steps(objective, sources[0], self.place, self.out, self.label, self.reading), sep="\n")
            return result
        finally:
            distributed.shutdown()


def from_command_line(
    kind: type[R], description: str | None = None, arguments: Sequence[str] | None = None, prog: str | None = None
) -> R:
    """The recipe that the command line asks for; with `--config`, what it leaves open is as in that run."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--config", type=Path)
    path = names.parse_known_args([each for each in arguments if each not in ("-h", "--help")])[0].config
    if path is None:
        return tyro.cli(kind, prog=prog, description=description, args=arguments)
    return tyro.cli(kind, prog=prog, description=description, args=arguments, default=repeated(kind, path))


def repeated(kind: type[R], path: Path) -> R:
    """The recipe whose run wrote `path`, a settings.json, but for its run folder.

    Raises UserError for a file that is none, or one of another recipe or an older version.
    """
    try:
        flat = json.loads(path.read_text())
        told = {name.removeprefix("recipe."): flat[name] for name in flat if name.startswith("recipe.")}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read as a run's settings.json ({error})") from error
    if "data" not in told:
        raise UserError(f"{path}: does not say by which flags its run was started: an older version's, or no recipe's?")
    hints = get_type_hints(kind)
    # what was never given is no setting of that run, also where a recipe has given up a flag since
    told = {name: value for name, value in told.items() if name in hints or value is not None}
    if unknown := sorted(set(told) - set(hints)):
        raise UserError(f"{path}: {kind.__name__} has no setting {unknown[0]!r}: it is the run of another recipe")
    for name, value in told.items():
        if isinstance(value, str) and Path in (hints[name], *get_args(hints[name])):
            told[name] = Path(value)
    return config_from_dict(kind, told)


@dataclass(frozen=True)
class DecoderRecipe(Recipe):
    """What recipes of methods with a decoder can be told besides."""

    decoder_dim: int | None = None
    """Width of the decoder, in channels; for base and above the paper's where not given, for tiny and small less."""
    decoder_depth: int | None = None
    """Blocks of the decoder, as above."""

    @property
    def own_decoder(self) -> bool:
        """Whether the decoder's sizes were asked for, so that one of other sizes is refused."""
        return bool(self.decoder_dim or self.decoder_depth)


@dataclass(frozen=True)
class VideoRecipe(DecoderRecipe):
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
        epochs = None if settings.epochs is None else settings.epochs / self.repeats
        return replace(settings, epochs=epochs, warmup_epochs=settings.warmup_epochs / self.repeats)

    def media(self, clips: Clips | Pairs) -> tuple[Source, Source]:
        """What is trained on, sampled as `clips` says, and what is held out, always the same samples of it."""
        short_side = self.short_side or self.size * 8 // 7
        middle = replace(clips, spread=1)
        return open_clips(self.data, clips, middle, short_side=short_side, seed=self.seed, label=self.label)
