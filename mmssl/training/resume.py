"""What a run must put on the disk, and take from it, to go on as if it had never stopped.

That is the model, the optimizer, the settings and the ledger of the loader. Nothing else: the order of the data and
every random choice follow from the step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmssl.errors import UserError
from mmssl.objectives.objective import Objective
from mmssl.training import checkpoints, distributed
from mmssl.training.average import Average
from mmssl.training.optim import schedule
from mmssl.training.settings import compare, lengthened, recorded

Batch = dict[str, Tensor]


@runtime_checkable
class BatchSource(Protocol):
    """What the loop needs of a loader: `mmssl.data.Loader` has it."""

    @property
    def batch_size(self) -> int: ...

    @property
    def steps_per_epoch(self) -> float: ...

    @property
    def ledger(self) -> Any: ...

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]: ...


def ledger_totals(loader: BatchSource) -> dict[str, Any]:
    """The counts and the list of skipped samples, summed over ranks."""
    shares = distributed.gather((loader.ledger.seen, list(loader.ledger.skipped)))
    return {"seen": sum(seen for seen, _ in shares), "skipped": [list(entry) for _, some in shares for entry in some]}


def save(
    run_dir: Path,
    step: int,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    loader: BatchSource,
    settled: Mapping[str, Any],
    keep: int,
    average: Average | None = None,
) -> None:
    """Save the whole run after `step` steps, from rank 0. Every rank calls this."""
    meta = {"settings": settled, "ledger": ledger_totals(loader)}
    state = {"model": objective.state_dict(), "optimizer": checkpoints.optimizer_state(objective, optimizer)}
    state |= {} if average is None else {"ema": average.values}
    distributed.on_first_rank(lambda: checkpoints.save(run_dir, step, state, meta, keep, objective.told()))


def resume(
    run_dir: Path,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: BatchSource,
    settled: Mapping[str, Any],
    average: Average | None = None,
) -> tuple[int, list[str]]:
    """Load the newest whole checkpoint, if there is one: its step (else 0), and what the user should be told."""

    def find() -> tuple[Path | None, list[str]]:
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{run_dir} cannot be the run's folder ({error.strerror}): choose another.") from error
        path, problems = checkpoints.newest(run_dir)
        if path is None and problems:
            raise UserError(f"{' '.join(problems)} No whole checkpoint is left: remove them to start anew.")
        return path, problems

    path, notes = distributed.on_first_rank(find)
    if path is None:
        return 0, notes
    saved = checkpoints.load(path)
    changes = compare(saved.meta["settings"], settled)
    objective.load_state_dict(saved.state["model"])
    checkpoints.load_optimizer_state(objective, optimizer, saved.state["optimizer"])
    if average is not None:
        average.load(saved.state["ema"])
    if distributed.rank() == 0:  # the counts are sums over ranks, however many there were
        loader.ledger.seen = saved.meta["ledger"]["seen"]
        loader.ledger.skipped = [tuple(entry) for entry in saved.meta["ledger"]["skipped"]]
    notes = [*notes, f"resuming after step {saved.step} from {path}", *(f"changed: {change}" for change in changes)]
    if lengthened(saved.meta["settings"], settled):
        notes.append(_rescheduled(saved.meta["settings"], settled, saved.step, loader.steps_per_epoch))
    return saved.step, notes


def _rescheduled(old: Mapping[str, Any], new: Mapping[str, Any], step: int, steps_per_epoch: float) -> str:
    """What a longer schedule changes from `step` finished steps on, and what it cannot."""
    (before, rates), (after, longer) = (
        (settings.total_steps(steps_per_epoch), schedule(settings, steps_per_epoch))
        for settings in (recorded(old), recorded(new))
    )
    return (
        f"the run goes on to step {after} instead of {before}: the learning rate jumps from {rates(step - 1):.3g} to "
        f"{longer(step):.3g}, where the longer schedule is by then; steps 1 to {step} keep the rates they had, so this "
        "is not quite the run that is as long from its start."
    )
