"""What a run tells the outside: metrics.jsonl, a tracker, skipped.jsonl, settings.json, and a bar or plain lines.

Rank 0 alone keeps a journal. After a resume metrics.jsonl reads as if the run had never stopped, times apart.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mmssl.errors import UserError
from mmssl.training.checkpoints import names_full_disk, replace_file

_SILENCE = 10.0
"""Seconds after which a run says how it is."""


class Journal:
    """The open files of one run that has `start` of `total` steps behind it. `clock` gives seconds."""

    def __init__(
        self,
        run_dir: Path,
        start: int,
        total: int,
        settings: Mapping[str, Any],
        notes: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        tracker: str = "none",
    ) -> None:
        self.run_dir = run_dir
        self.start, self.total = start, total
        self._clock, self._spoke = clock, clock()
        self._track, self._end_tracking = _TRACKERS[tracker](run_dir, start + 1, settings)
        self._listed = -1
        self._held_out = ""
        replace_file(run_dir / "settings.json", json.dumps(settings, indent=1).encode())
        # lines after the checkpoint, or torn by a kill, are written again by the steps that are done again
        rows = [row for row in read_metrics(run_dir) if row["step"] <= start]
        replace_file(run_dir / "metrics.jsonl", _lines(rows))
        for row in rows:
            self._watch(row)
        self._bar = _progress_bar(start, total) if sys.stdout.isatty() else None
        for note in notes:
            self.say(note)

    def say(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        self._spoke = self._clock()
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def advance(self, step: int, seconds: float) -> None:
        """`step` steps are finished, the last took so many seconds: move the bar; the first tells how long all take."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)
        if step == self.start + 1 < self.total:
            rest = self.total - step
            self.say(
                f"the first step took {duration(seconds)}; the other {rest} would take {duration(rest * seconds)} at "
                "that pace, and mostly take less"
            )

    def tick(self, step: int, loss: Tensor, steps_per_second: float) -> None:
        """A line on a step that is not logged, where none was printed for ten seconds."""
        if self._quiet:  # only then, because reading the loss waits for the device
            self._tell(step, loss.item(), steps_per_second)

    def chunk(self, step: int, chunk: int, chunks: int) -> None:
        """The same in the middle of a step that is made of several chunks."""
        if self._quiet:
            self.say(f"step {step}/{self.total}: chunk {chunk} of {chunks}")

    @property
    def _quiet(self) -> bool:
        return self._clock() - self._spoke >= _SILENCE

    def _watch(self, row: Mapping[str, Any]) -> None:
        if (loss := row.get("heldout_loss")) is not None:
            self._held_out = f", held out {loss:.4f} at step {row['step']}"

    def _tell(self, step: int, loss: float, steps_per_second: float) -> None:
        summary = f"loss {loss:.4f}{self._held_out}, {steps_per_second:.3g} steps/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=summary)
            self._spoke = self._clock()
        else:
            left = duration((self.total - step) / steps_per_second)
            self.say(f"step {step}/{self.total}: {summary}, {left} left")

    def log(self, row: Mapping[str, Any], steps_per_second: float) -> None:
        """Record one row of metrics; numbers that are not finite become null, which every JSON reader knows."""
        path = self.run_dir / "metrics.jsonl"
        with names_full_disk(self.run_dir, f"{path.name} grows"), open(path, "ab") as file:
            file.write(_lines([row]))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must not outlive the metrics that led to it
        self._track(dict(_scalars(row)), row["step"])
        self._watch(row)
        self._tell(row["step"], row["loss"], steps_per_second)

    def list_skipped(self, skipped: Sequence[Sequence[str]]) -> None:
        """Write the names of the files that could not be read, why, and how many slots each lost, to skipped.jsonl."""
        if len(skipped) != self._listed:
            slots = Counter((name, reason) for name, reason in skipped)
            rows = ({"name": name, "reason": reason, "slots": count} for (name, reason), count in slots.items())
            replace_file(self.run_dir / "skipped.jsonl", _lines(rows))
            self._listed = len(skipped)

    def close(self) -> None:
        """Remove the bar, close the files."""
        if self._bar:
            self._bar.stop()
        self._end_tracking()


def duration(seconds: float) -> str:
    """A time as a person says it, to two digits or so."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}" if seconds < 10 * length else f"{seconds / length:.0f} {unit}"
    return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of `run_dir/metrics.jsonl`, none if there is no such file; damaged lines are left out."""
    path = run_dir / "metrics.jsonl"
    rows = []
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(_finite(row)) + "\n" for row in rows).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalars(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{name}/")
        elif name != "step" and value is not None:
            yield prefix + name, value


Tracker = tuple[Callable[[dict[str, float], int], None], Callable[[], object]]
"""Takes the numbers of a step, and ends."""


def _no_tracker(run_dir: Path, first_step: int, settings: Mapping[str, Any]) -> Tracker:
    return lambda numbers, step: None, lambda: None


def _tensorboard(run_dir: Path, first_step: int, settings: Mapping[str, Any]) -> Tracker:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the default must not need an extra
        return _no_tracker(run_dir, first_step, settings)
    board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=first_step)

    def track(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            board.add_scalar(name, value, step)
        board.flush()

    return track, board.close


def _wandb(run_dir: Path, first_step: int, settings: Mapping[str, Any]) -> Tracker:
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed: pip install 'mmssl[wandb]', or choose --tracker tensorboard") from None
    # the folder's path is the run's identity, so that a resumed run goes on in the same curves
    identity = hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=8).hexdigest()
    run = wandb.init(
        project="mmssl", name=run_dir.name, id=identity, resume="allow", dir=str(run_dir), config=dict(settings)
    )
    return lambda numbers, step: run.log(numbers, step=step), run.finish


_TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "none": _no_tracker}


def _progress_bar(start: int, total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    # rich's shared console remembers whether its first user was at a terminal
    bar = Progress(*columns, console=Console(), transient=True)
    bar.add_task("starting", total=total, completed=start)
    bar.start()
    return bar
