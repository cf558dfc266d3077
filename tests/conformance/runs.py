"""Runs of the loop over the entries of the table."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jaxtyping
import torch

from mmssl.modality import zero_to_one
from mmssl.training import TrainSettings, train
from tests.conformance.table import ENTRIES, Batch, Entry, rows
from tests.training_toy import Ledger, Prepared

STEPS, SAVED = 6, 3


@dataclass
class TwoBatches:
    """The contract of mmssl.data.Loader over an entry's first two batches, in turn; `poison` makes media NaN."""

    entry: Entry
    rank: int = 0
    world_size: int = 1
    poison: bool = False
    kill_at: int | None = None
    ledger: Ledger = field(default_factory=Ledger)
    log: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.made = [self.entry.batch(step) for step in range(2)]
        self.batch_size = len(self.made[0]["sample_id"])
        self.steps_per_epoch = 2.0
        self.source = SimpleNamespace(name=lambda sample: f"sample-{sample}")

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        local = self.batch_size // self.world_size
        for step in range(start_step, stop_step):
            if step == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            batch = rows(self.made[step % 2], slice(self.rank * local, (self.rank + 1) * local))
            if self.poison:
                batch = {name: value * torch.nan for name, value in media(floating(batch)).items()} | keys_of(batch)
            self.ledger.seen += local
            self.log.append(step)
            yield {**batch, "step": torch.tensor(step)}


def is_media(values: torch.Tensor) -> bool:
    return values.ndim > 2


def media(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if is_media(values)}


def keys_of(batch: Batch) -> Batch:
    return {name: values for name, values in batch.items() if not is_media(values)}


def floating(batch: Batch) -> Batch:
    """The batch with its media as floating point, as which they may be not a number."""
    return {name: zero_to_one(values) if is_media(values) else values for name, values in batch.items()}


def settings(entry: Entry, **changes: Any) -> TrainSettings:
    size = len(entry.batch(0)["sample_id"])
    plain = {"steps": STEPS, "batch_size": size, "base_lr": entry.rate * 256 / size, "warmup_epochs": 0.0}
    plain |= {"log_every": 1, "save_every": SAVED, "keep": 0, "precision": "fp32", "tracker": "none"}
    return TrainSettings(**(plain | changes))


def train_entry(entry: Entry, folder: Path, loader: TwoBatches | None = None, **changes: Any) -> None:
    """Train a fresh objective; every call starts from the same weights.

    Shapes are checked where a property calls a method once: over dozens of calls the checks take more than the steps.
    """
    torch.manual_seed(0)
    loader = loader or TwoBatches(entry)
    with shapes_unchecked():
        train(entry.make(), loader, settings(entry, **changes), folder, device=torch.device("cpu"))


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def prepare(options: dict[str, Any], rank: int, count: int) -> Prepared:
    """What a job of `run_ranks` trains on one rank."""
    torch.manual_seed(0)
    entry = ENTRIES[options["entry"]]
    return entry.make(), TwoBatches(entry, rank, count, kill_at=options.get("kill_at")), settings(entry)
