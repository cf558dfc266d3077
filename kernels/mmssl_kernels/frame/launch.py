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
    """One start of a kernel: programs along each axis, its arguments by name and its row of the table."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    config: Config


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
    lowered = torch.get_float32_matmul_precision() != "highest" and torch.version.hip is None
    return "tf32" if dtype == torch.float32 and lowered else "ieee"


def launch(kernel: Any, grid: tuple[int, ...], config: Config, **arguments: Any) -> None:
    """Start `grid` programs of a kernel; an empty grid starts none."""
    arguments |= config.blocks
    if (record := _record.get()) is not None:
        record[1].append(Launch(kernel, grid, arguments, config))
    elif all(grid):
        # Triton launches on the current device, wherever the tensors are
        device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            kernel[grid](**arguments, num_warps=config.warps, num_stages=config.stages)
