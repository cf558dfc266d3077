"""SIGTERM and SIGINT during a run: answered at once, heard between two chunks, so that no finished step is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mmssl.training import distributed


class Interrupted(SystemExit):
    """SIGTERM or SIGINT came; the last finished step was saved. Exit code 75 (EX_TEMPFAIL): run the command again."""

    def __init__(self) -> None:
        super().__init__(75)


@dataclass
class StopRequest:
    """Whether SIGTERM or SIGINT came."""

    made: bool = False

    def anywhere(self, device: torch.device) -> bool:
        """Whether it came to any rank; every rank must ask. Waits for the device where there are several."""
        if distributed.world_size() == 1:
            return self.made
        return distributed.any_rank(torch.tensor([self.made], device=device))[0]


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Note SIGTERM and SIGINT instead of dying of them, and say so at once.

    A second Ctrl-C stops at once. A second SIGTERM does not: schedulers and torchrun both send one.
    """
    request = StopRequest()
    before: dict[int, Any] = {}

    def note(number: int, _: Any) -> None:
        if not request.made:
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            line = f"\nmmssl: {signal.Signals(number).name}: stopping, the last finished step will be saved{again}\n"
            os.write(2, line.encode())  # a print here could meet the one that it interrupts
        request.made = True
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():  # Python lets no other thread handle signals
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
