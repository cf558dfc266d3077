"""What a run tells the outside: metrics.jsonl, TensorBoard, skipped.jsonl, settings.json, and a bar or plain lines.

Rank 0 alone keeps a journal. After a resume metrics.jsonl reads as if the run had never stopped, times apart.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmssl.training.checkpoints import names_full_disk, replace_file


class Journal:
    """The open files of one run that has `start` of `total` steps behind it."""

    def __init__(
        self, run_dir: Path, start: int, total: int, settings: Mapping[str, Any], notes: Sequence[str] = ()
    ) -> None:
        self.run_dir = run_dir
        self.total = total
        self._listed = -1
        replace_file(run_dir / "settings.json", json.dumps(settings, indent=1).encode())
        # lines after the checkpoint, or torn by a kill, are written again by the steps that are done again
        replace_file(run_dir / "metrics.jsonl", _lines(row for row in read_metrics(run_dir) if row["step"] <= start))
        self._board = _tensorboard(run_dir / "tensorboard", first_step=start + 1)
        self._bar = _progress_bar(start, total) if sys.stdout.isatty() else None
        for note in notes:
            self.say(note)

    def say(self, text: str) -> None:
        """Print one line, above the bar where there is one."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)

    def advance(self, step: int) -> None:
        """Move the bar to `step` finished steps."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def log(self, row: Mapping[str, Any], steps_per_second: float) -> None:
        """Record one row of metrics; numbers that are not finite become null, which every JSON reader knows."""
        path = self.run_dir / "metrics.jsonl"
        with names_full_disk(self.run_dir, f"{path.name} grows"), open(path, "ab") as file:
            file.write(_lines([row]))
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must not outlive the metrics that led to it
        if self._board:
            for name, value in _scalars(row):
                self._board.add_scalar(name, value, row["step"])
            self._board.flush()
        summary = f"loss {row['loss']:.4f}, {steps_per_second:.2f} steps/s"
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=summary)
        else:
            minutes = (self.total - row["step"]) / steps_per_second / 60
            self.say(f"step {row['step']}/{self.total}: {summary}, {minutes:.1f} min left")

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
        if self._board:
            self._board.close()


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


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=first_step)


def _progress_bar(start: int, total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    # rich's shared console remembers whether its first user was at a terminal
    bar = Progress(*columns, console=Console(), transient=True)
    bar.add_task("starting", total=total, completed=start)
    bar.start()
    return bar
