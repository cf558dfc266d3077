"""Starting a kernel, or writing down how it would be started, so that it can be compiled without a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from mmssl_kernels.frame.dispatch import family
from mmssl_kernels.tables import TABLES, Config


@dataclass(frozen=True)
class Launch:
    """One start of a kernel: programs along each axis, its arguments by name and its row of the table.

    Raises TypeError where the arguments are not the kernel's: Triton's interpreter would pass over those it lacks.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Config

    def __post_init__(self) -> None:
        if wrong := self.arguments.keys() ^ set(self.kernel.arg_names):
            raise TypeError(f"{self.kernel.__name__} and its launch differ in {', '.join(sorted(wrong))}")

    def start(self) -> None:
        self.kernel[self.grid](**self.arguments, num_warps=self.config.warps, num_stages=self.config.stages)


_record: ContextVar[tuple[str, list[Launch]] | None] = ContextVar("record", default=None)


@contextlib.contextmanager
def recorded(family: str) -> Iterator[list[Launch]]:
    """Have launches written down instead of made, as if on a device of this family."""
    launches: list[Launch] = []
    token = _record.set((family, launches))
    try:
        yield launches
    finally:
        _record.reset(token)


def choose(name: str, device: torch.device, size: int) -> Config:
    """The configuration of a kernel for a device and a problem of this size: the first bucket that holds it."""
    record = _record.get()
    rows = TABLES[name][family(device) if record is None else record[0]]
    return next(config for limit, config in rows if limit is None or size <= limit)


def precision(dtype: torch.dtype) -> str:
    """How float32 operands are multiplied: as the vendor's product is told to, exactly on AMD, where TF32 is rare."""
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"
    # knows what either of torch's interfaces set; get_float32_matmul_precision raises after some uses of the newer
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def launch(kernel: Any, grid: tuple[int, ...], config: Config, **arguments: Any) -> None:
    """Start `grid` programs of a kernel; an empty grid starts none."""
    made = Launch(kernel, grid, {**arguments, **config.blocks}, config)
    if (record := _record.get()) is not None:
        record[1].append(made)
    elif all(grid):
        # Triton launches on the current device, wherever the tensors are
        device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            made.start()
