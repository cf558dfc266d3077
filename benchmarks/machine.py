"""What the numbers were measured on, and where they go."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


def device_name(device: torch.device) -> str:
    """The device as a person would call it; CPUs with their cores and instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Wall time of one call, the device's queue emptied before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the ceiling of everything that multiplies."""
    # large enough that the wait for the device is no part of the time
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(6)]
    return 2 * size**3 / statistics.median(times[1:])


def copy_rate(device: torch.device) -> float:
    """Bytes/s of a large copy, read and written: the ceiling of everything that only moves data."""
    size = 2**31 if device.type == "cuda" else 2**28
    source = torch.ones(size, dtype=torch.uint8, device=device)  # memory never written has no pages to read
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source), device) for _ in range(6)]
    return 2 * size / statistics.median(times[1:])


def peak_growth(action: Callable[[], Any], device: torch.device) -> int:
    """Bytes in use at the action's peak beyond those before it.

    The allocator's count on a GPU. On a CPU (Linux) the resident set's, and then in a fresh process only: memory that
    was freed before but not given back would hide growth.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        return torch.cuda.max_memory_allocated(device) - before
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew: building the inputs peaks too
    before = _resident_peak()
    action()
    return _resident_peak() - before


def _resident_peak() -> int:
    """The high-water mark of this process's resident set, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises in a new Python; it and its arguments travel by pickle."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def write(name: str, device: torch.device, content: dict[str, Any]) -> Path:
    """Write a result as JSON under results/, or where MMSSL_RESULTS says, named after the device."""
    folder = Path(os.environ.get("MMSSL_RESULTS", RESULTS))
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = folder / f"{name}-{slug}.json"
    path.write_text(json.dumps({"device": device_name(device), "torch": torch.__version__, **content}, indent=1) + "\n")
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a table."""
    names = list(rows[0])
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
