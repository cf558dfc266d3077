"""What the numbers were measured on, and where they go."""

from __future__ import annotations

import json
import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

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


def product_rate(device: torch.device, dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a large matrix product, the ceiling of everything else."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(6)]
    return 2 * size**3 / statistics.median(times[1:])


def write(name: str, device: torch.device, content: dict[str, Any]) -> Path:
    """Write a result as JSON under results/, named after the device."""
    RESULTS.mkdir(exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    path = RESULTS / f"{name}-{slug}.json"
    path.write_text(json.dumps({"device": device_name(device), "torch": torch.__version__, **content}, indent=1) + "\n")
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a table."""
    names = list(rows[0])
    lines = [names, ["---"] + ["---:"] * (len(names) - 1), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
