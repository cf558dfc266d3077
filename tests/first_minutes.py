"""A stranger's first five minutes: a folder of pictures with class folders becomes a model loaded in timm.

    python tests/first_minutes.py              # full size; prints the seconds to each milestone (`make first-minutes`)

`tests/test_first_minutes.py` runs the same at toy size. Nothing but commands that a user types is called, and the last
program imports timm alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
MMSSL = "from mmssl.cli import main; main()"
ELSEWHERE = """
import sys
import timm, torch

model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True, num_classes=0).eval()
print(tuple(model(torch.zeros(1, *model.pretrained_cfg["input_size"])).shape))
assert not any(name.startswith("mmssl") for name in sys.modules)
"""


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    pictures: int
    side: int
    patch: int
    epochs: int
    batch: int


FULL, TOY = Scale(200, 64, 8, 60, 50), Scale(24, 16, 8, 2, 8)


def write_pictures(folder: Path, scale: Scale) -> Path:
    """Four classes of PNG files: stripes of four directions, of any width, phase and colour, under noise."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[: scale.side, : scale.side] / scale.side
    for number in range(scale.pictures):
        label = number % 4
        angle, waves, phase = np.pi * label / 4, generator.uniform(2, 6), generator.uniform(0, 2 * np.pi)
        stripes = np.sin(2 * np.pi * waves * (np.cos(angle) * columns + np.sin(angle) * rows) + phase)
        colour = generator.uniform(30, 120, 3)
        values = 128 + stripes[..., None] * colour + generator.normal(0, 12, (scale.side, scale.side, 3))
        path = folder / f"direction{label}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(path)
    return folder


Call = Callable[[str, list[str]], Iterator[str]]
"""Runs a program, its text, with these arguments: the lines that it prints, each as it comes. Raises RuntimeError with
what one that failed said."""


def started(program: str, arguments: list[str]) -> Iterator[str]:
    """In a new Python."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": paths}
    call, said = [sys.executable, "-c", program, *arguments], ""
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            yield line
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{said}")


def first_minutes(folder: Path, scale: Scale, call: Call) -> dict[str, float]:
    """Seconds from the first command typed to each milestone; `folder` takes the pictures, the run and the export."""
    data, run, export = write_pictures(folder / "pictures", scale), folder / "run", folder / "timm"
    milestones: dict[str, float] = {}
    start = time.perf_counter()

    def typed(*arguments: object, milestone: str, program: str = MMSSL) -> str:
        said = ""
        for line in call(program, list(map(str, arguments))):
            said += line
            milestones.setdefault("first line", time.perf_counter() - start)
            if line.startswith("step "):
                milestones.setdefault("first step", time.perf_counter() - start)
        milestones[milestone] = time.perf_counter() - start
        return said

    sizes = ["--model", "tiny", "--size", scale.side, "--patch", scale.patch]
    length = ["--epochs", scale.epochs, "--batch-size", scale.batch, "--workers", 0]
    typed("train", "mae", "--data", data, "--out", run, *sizes, *length, milestone="trained")
    print(typed("evaluate", "--model", run, "--data", data, "--workers", 0, milestone="evaluated"))
    typed("export", "--model", run, "--to", "timm", "--out", export, milestone="exported")
    shape = typed(export, program=ELSEWHERE, milestone="loaded in timm")
    if shape.strip() != "(1, 192)":
        raise RuntimeError(f"timm's model gives {shape}")
    return milestones


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = first_minutes(Path(folder), FULL, started)
    for name, seconds in found.items():
        print(f"{name:<16} {seconds:6.1f} s")


if __name__ == "__main__":
    main()
