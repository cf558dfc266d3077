"""The settings of a run, what they come to on this machine, and which of them a resumed run may change."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from mmssl.errors import UserError

HARMLESS = frozenset(
    {
        "log_every",
        "save_every",
        "validate_every",
        "keep",
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


@dataclass(frozen=True)
class TrainSettings:
    """How long and how to train; the defaults are MAE's for pretraining (arXiv 2111.06377, table 8).

    Exactly one of `epochs` and `steps` is given. `batch_size` counts the samples of one optimizer step over all ranks
    and all `accumulate` chunks; the peak learning rate is `base_lr * batch_size / 256`. `precision` "auto" is bf16
    autocast where the hardware has bf16 instructions, else float32. `log_every`, `save_every`, `validate_every` are in
    steps, 0 for never; the last step is always logged and saved, and validated unless `validate_every` is 0. The
    newest `keep` checkpoints stay, all with 0.
    """

    epochs: float | None = None
    steps: int | None = None
    batch_size: int = 4096
    base_lr: float = 1.5e-4
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_epochs: float = 40.0
    min_lr: float = 0.0
    clip_norm: float | None = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    accumulate: int = 1
    seed: int = 0
    log_every: int = 20
    save_every: int = 1000
    validate_every: int = 0
    keep: int = 2

    def __post_init__(self) -> None:
        positive = {"epochs": self.epochs, "steps": self.steps, "batch_size": self.batch_size, "base_lr": self.base_lr}
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}={value} must be a number above 0.")
        every = {"log_every": self.log_every, "save_every": self.save_every, "validate_every": self.validate_every}
        rates = {"warmup_epochs": self.warmup_epochs, "weight_decay": self.weight_decay, "min_lr": self.min_lr}
        for name, value in (every | rates | {"keep": self.keep}).items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name}={value} must be 0 or more.")
        if self.accumulate < 1 or not 0 <= self.seed < 2**63:
            raise UserError(f"accumulate={self.accumulate} must be above 0, seed={self.seed} in [0, 2**63).")

    def total_steps(self, steps_per_epoch: float) -> int:
        """The optimizer steps of the whole run. Raises UserError when the settings leave none after the warm-up."""
        if self.epochs is not None and self.steps is None:
            # a product such as 3 * (10 / 3) must not round up to an eleventh step
            total = math.ceil(self.epochs * steps_per_epoch - 1e-6)
        elif self.steps is not None and self.epochs is None:
            total = self.steps
        else:
            raise UserError(f"give epochs or steps, one of the two: epochs={self.epochs}, steps={self.steps}.")
        warmup = self.warmup_epochs * steps_per_epoch
        if total <= warmup:
            raise UserError(
                f"warmup_epochs={self.warmup_epochs:g} takes {warmup:.0f} steps and the run has {total}: "
                "lower warmup_epochs or train longer."
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
    """What changed, as sentences, if a resumed run may change it.

    Raises UserError listing the changes that it may not make.
    """
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    said = {name: f"{name}: {_shown(old, name)} -> {_shown(new, name)}" for name in changed}
    refused = [said[name] for name in changed if name.rpartition(".")[2] not in HARMLESS]
    if refused:
        raise UserError(
            f"the run was started with other settings ({'; '.join(refused)}), and its past steps would have been "
            "different: give the old values to resume it, or another folder to start a new run."
        )
    return list(said.values())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    return json.dumps(values[name]) if name in values else "unset"
