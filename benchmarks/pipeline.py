"""The input pipeline against torchvision's ImageFolder with the same transforms, on one machine's CPU.

    python -m benchmarks.pipeline [--data DIR] [--workers 1] [--rounds 5] [--size 224]

Both read the same folder of pictures (about 500 JPEGs of 500 x 375 are made when none is given), crop with
RandomResizedCrop(size, scale (0.2, 1), bicubic) and mirror half of them, with the same number of workers and the same
batches of 64. ImageFolder runs twice: as users write it for training (ToTensor, Normalize: float32 leaves the
loader) and with PILToTensor alone (uint8, as ours). The three alternate, so that what else the machine does hits all
alike; medians over the rounds and their ratios are printed as a table and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.machine import markdown, write
from mmssl.data import FolderSource, Loader, TrainView, View

BATCH = 64


def main() -> None:
    settings = arguments("Times the input pipeline against torchvision's ImageFolder.")
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.data or write_pictures(Path(scratch))
        crop = transforms.RandomResizedCrop(
            settings.size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        )
        pipelines = {"mmssl, uint8": our_pipeline(folder, TrainView(settings.size), settings.workers)}
        for name, convert in {
            "ImageFolder, PILToTensor": [transforms.PILToTensor()],
            "ImageFolder, ToTensor + Normalize": [
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ],
        }.items():
            chain = transforms.Compose([crop, transforms.RandomHorizontalFlip(), *convert])
            pipelines[name] = torchvision_pipeline(folder, chain, settings.workers)
        compare("pipeline", pipelines, settings)


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, help="a folder of class folders of pictures")
    parser.add_argument("--workers", type=int, default=1, help="processes on either side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    return parser.parse_args()


def our_pipeline(folder: Path, view: View, workers: int) -> Callable[[], Iterable[torch.Tensor]]:
    loader = Loader(FolderSource(folder), view, batch_size=BATCH, workers=workers)
    steps = round(loader.steps_per_epoch)
    return lambda: (batch["image"] for batch in loader.batches(0, steps))


def torchvision_pipeline(folder: Path, transform: Callable, workers: int) -> Callable[[], Iterable[torch.Tensor]]:
    loader = DataLoader(ImageFolder(folder, transform), BATCH, shuffle=True, num_workers=workers)
    return lambda: (images for images, _ in loader)


def rate(batches: Callable[[], Iterable[torch.Tensor]]) -> float:
    """Pictures a second of one pass, from the request for the first batch to the last one's arrival."""
    start = time.perf_counter()
    count = sum(len(images) for images in batches())
    return count / (time.perf_counter() - start)


def compare(
    name: str, pipelines: dict[str, Callable[[], Iterable[torch.Tensor]]], settings: argparse.Namespace
) -> None:
    """Times the pipelines in turn, the first of which is ours, prints their rates and writes them under this name."""
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {pipeline: [] for pipeline in pipelines}
    for _ in range(settings.rounds):
        for pipeline, batches in pipelines.items():
            rates[pipeline].append(rate(batches) / max(settings.workers, 1))
    rows, first = [], next(iter(rates))
    for pipeline, values in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[first], values, strict=True))
        rows.append(
            {
                "pipeline": pipeline,
                "pictures/s a worker": round(statistics.median(values)),
                "range": f"{min(values):.0f}-{max(values):.0f}",
                "mmssl is faster by": "" if pipeline == first else f"{ratio:.2f}x",
            }
        )
    chosen = {"workers": settings.workers, "size": settings.size, "batch": BATCH, "own data": bool(settings.data)}
    path = write(name, torch.device("cpu"), {"settings": chosen, "rows": rows})
    print(f"{markdown(rows)}\n\n{path}")


def write_pictures(root: Path, count: int = 512) -> Path:
    """Blurred noise over coarse blobs: as many bytes and coefficients a JPEG as a photo of that size has."""
    generator = np.random.default_rng(0)
    for number in range(count):
        blobs = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = Image.fromarray(generator.integers(0, 256, (375, 500, 3), dtype=np.uint8))
        picture = Image.blend(blobs, grain.filter(ImageFilter.GaussianBlur(1.0)), 0.4)
        path = root / f"class{number % 2}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)
    return root


if __name__ == "__main__":
    main()
