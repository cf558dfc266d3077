"""The settings of a run, what they come to on this machine, and which of them a resumed run may change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch

from mmssl.errors import UserError
from mmssl.interop import config_from_dict

HARMLESS = frozenset(
    {
        "log_every",
        "save_every",
        "validate_every",
        "keep",
        "tracker",
        "compile",
        "accumulate",
        "workers",
        "device",
        "world_size",
        "autocast",
    }
)
"""Settings, by the last part of their name, that a resumed run may change: they say how often something is written or
where the work is done, not what is computed. (Another device or world size may round differently.)"""
SCHEDULE = frozenset({"epochs", "steps", "warmup_epochs", "warmup_steps"})
"""Settings that a resumed run may change where it becomes longer: what is done keeps the rates it had."""


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train; the defaults are MAE's for pretraining (arXiv 2111.06377, table 8).

    Exactly one of `epochs` and `steps` is given; `warmup_steps`, where given, replaces `warmup_epochs`. `batch_size`
    counts the samples of one optimizer step over all ranks and all `accumulate` chunks; the peak learning rate is
    `base_lr * batch_size / 256`, from which it falls by `decay` to `min_lr`. `optimizer` "auto" is that of the method's
    paper (`Objective.optimizer`); "adam_uncorrected" is BERT's. `eps` is what Adam adds to the root of its second
    moment, the optimizer's own where None: 1e-8, BERT's 1e-6. The weight decay goes by a cosine from `weight_decay` to
    `weight_decay_end`, where that is given (DINO). `precision` "auto" is bf16 autocast where the hardware has bf16
    instructions, else float32. `log_every`, `save_every`, `validate_every` are in steps, 0 for never; the last step is
    always logged and saved, and validated unless `validate_every` is 0. The newest `keep` checkpoints stay, all with 0.
    `clip_norm` is the largest norm of all gradients together. `ema`, 0 to below 1 a step, keeps a moving average of the
    weights beside them: it is validated and left as the result, as timm's users expect (see `Average`). `tracker` gets
    the metrics besides metrics.jsonl.
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 4096
    base_lr: float = 1.5e-4
    optimizer: Literal["auto", "adamw", "lars", "sgd", "adam_uncorrected"] = "auto"
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_epochs: float = 40.0
    warmup_steps: int | None = None
    eps: float | None = None
    decay: Literal["cosine", "linear"] = "cosine"
    min_lr: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    accumulate: int = 1
    seed: int = 0
    log_every: int = 20
    save_every: int = 1000
    validate_every: int = 0
    keep: int = 2
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "steps": self.steps, "batch_size": self.batch_size, "base_lr": self.base_lr}
        positive |= {"clip_norm": self.clip_norm, "eps": self.eps}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}={value} must be a number above 0.")
        every = {"log_every": self.log_every, "save_every": self.save_every, "validate_every": self.validate_every}
        rates = {"warmup_epochs": self.warmup_epochs, "weight_decay": self.weight_decay, "min_lr": self.min_lr}
        rates["weight_decay_end"] = self.weight_decay_end or 0.0
        for name, value in (every | rates | {"keep": self.keep, "warmup_steps": self.warmup_steps or 0}).items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name}={value} must be 0 or more.")
        if self.accumulate < 1 or not 0 <= self.seed < 2**63:
            raise UserError(f"accumulate={self.accumulate} must be above 0, seed={self.seed} in [0, 2**63).")

        if not all(0 <= share < 1 for share in (*self.betas, self.ema or 0.0)):
            raise UserError(f"betas={self.betas} and ema={self.ema} must be 0 or more and below 1.")

    def warmup(self, steps_per_epoch: float) -> float:
        """Steps over which the learning rate grows."""
        return self.warmup_epochs * steps_per_epoch if self.warmup_steps is None else float(self.warmup_steps)

    def total_steps(self, steps_per_epoch: float) -> int:
        """The optimizer steps of the whole run. Raises UserError when the settings leave none after the warm-up."""
        if self.epochs is not None and self.steps is None:
            # a product such as 3 * (10 / 3) must not round up to an eleventh step
            total = math.ceil(self.epochs * steps_per_epoch - 1e-6)
        elif self.steps is not None and self.epochs is None:
            total = self.steps
        else:
            raise UserError(f"give epochs or steps, one of the two: epochs={self.epochs}, steps={self.steps}.")
        warmup = self.warmup(steps_per_epoch)
        if total <= warmup:
            name = "warmup_epochs" if self.warmup_steps is None else "warmup_steps"
            raise UserError(
                f"{name}={getattr(self, name):g} takes {warmup:.0f} steps and the run has {total}: "
                f"lower {name} or train longer."
            )
        return total


def large_batch(batch_size: int, steps_per_epoch: float, total: int) -> list[str]:
    """A sentence where one step shows every sample more than once, and which batch size would not; else none."""
    if steps_per_epoch >= 1:
        return []
    samples = round(steps_per_epoch * batch_size)
    fitting = 2 ** max(0, math.floor(math.log2(max(1, samples / 8))))
    epochs = total / steps_per_epoch
    return [
        f"the batch of {batch_size} is larger than the data: each step shows all {samples} samples "
        f"{1 / steps_per_epoch:.1f} times, so the run has {total} step{'s' * (total > 1)} ({epochs:.1f} epochs); "
        f"--batch-size {fitting} would make {math.ceil(epochs * samples / fitting - 1e-6)} of it."
    ]


def slow_average(ema: float | None, total: int) -> list[str]:
    """A sentence where the run is too short for its average to forget the first weights; else none."""
    if ema is None or (left := ema**total) < 0.05:
        return []
    return [
        f"ema {ema:g} averages over about {1 / (1 - ema):.0f} steps and the run has {total}: {left:.0%} of the result "
        f"will be the first weights; --ema {max(0.0, 1 - 5 / total):.4g} would forget them."
    ]


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The type that `precision` autocasts to on `device`; None for plain float32.

    On a CPU "auto" asks for bf16 instructions (AVX512_BF16 or AMX): without them bf16 is emulated and slow.
    """
    if precision not in ("auto", "fp32", "bf16"):
        raise UserError(f'precision is "auto", "fp32" or "bf16", not "{precision}".')
    if precision == "auto":
        if device.type == "cuda":
            has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            has_bf16 = device.type == "cpu" and (
                torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            )
        precision = "bf16" if has_bf16 else "fp32"
    return torch.bfloat16 if precision == "bf16" else None


def record(settings: TrainSettings, context: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and the caller's `context` as one flat dict of JSON values, nested names joined by dots."""
    return _flat(json.loads(json.dumps({**context, **asdict(settings)}, default=str)))


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed, as sentences, if a resumed run may change it: what is harmless, and the schedule of a longer run.

    Runs of older versions go on: a setting of `TrainSettings` that `old` lacks had its default, any other one was off,
    as no version knew it (None, 0, false). `recipe.` names say by which flags a run was started, not what it is. Raises
    UserError listing the changes that may not be made.
    """
    old = {**record(TrainSettings(), {}), **old}
    old, new = ({name: values[name] for name in values if not name.startswith("recipe.")} for values in (old, new))
    longer = lengthened(old, new)
    old |= {name: value for name, value in new.items() if name not in old and not value}
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    said = {name: f"{name}: {_shown(old, name)} -> {_shown(new, name)}" for name in changed}
    harmless = HARMLESS | SCHEDULE if longer else HARMLESS
    refused = [said[name] for name in changed if name.rpartition(".")[2] not in harmless]
    if refused:
        raise UserError(
            f"the run was started with other settings ({'; '.join(refused)}), and its past steps would have been "
            "different: give the old values to resume it, or another folder to start a new run."
        )
    return list(said.values())


def lengthened(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether the run was given more epochs or steps."""
    pairs = [(old.get(name), new.get(name)) for name in ("epochs", "steps")]
    return any(before is not None and after is not None and before < after for before, after in pairs)


def recorded(flat: Mapping[str, Any]) -> TrainSettings:
    """The settings in what `record` gave."""
    known = {field.name: flat[field.name] for field in fields(TrainSettings) if field.name in flat}
    return config_from_dict(TrainSettings, known)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "unset"
