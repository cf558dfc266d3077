"""Pairs from tar shards to batches against `webdataset` used plainly, on one core (`pip install webdataset`).

    python -m benchmarks.pair_pipeline [--data DIR] [--rounds 5] [--size 224]

Both read the same shards (512 JPEGs of 500 x 375 with a caption each are made when none are given), in a shuffled
order, crop with open_clip's RandomResizedCrop(size, scale (0.9, 1), bicubic), read captions as CLIP's tokens, and make
batches of 64 in one process of one thread. webdataset runs twice: as open_clip does for training (ToTensor, Normalize:
float32 leaves the loader) and with PILToTensor alone (uint8, as ours); its tokenizer is open_clip's, and its
shuffle has room for 1000 samples. Captions alone, without a look at the pictures, are timed too. All alternate, so that
what else the machine does hits all alike; medians over the rounds and their ratios are printed as a table and written
to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path

import open_clip
import torch
from torchvision import transforms

from benchmarks.machine import markdown, write
from benchmarks.pipeline import BATCH, write_pictures
from mmssl.data import Loader, PairSource, PairView, TrainView, open_pairs
from mmssl.data.clip_tokenizer import clip_tokenizer
from mmssl.data.vocabulary import save_tokenizer

OURS, OURS_TEXT, THEIR_TEXT = "mmssl, uint8", "mmssl, captions alone", "open_clip's tokenizer, captions alone"
SENTENCE = "a photo of the small old dog, cat & boat beside a house that stands in the 1950's, red and yellow"
WORDS = SENTENCE.split()


def main() -> None:
    parser = argparse.ArgumentParser(description="Times pairs from shards against webdataset.")
    parser.add_argument("--data", type=Path, help="a folder of tar shards of .jpg and .txt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = settings.data or write_shards(Path(scratch))
        save_tokenizer(clip_tokenizer(), Path(scratch) / "words")
        source = open_pairs(folder, Path(scratch) / "words")
        captions = [source.captions(index)[0] for index in range(len(source))]
        normalised = [transforms.ToTensor(), transforms.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))]
        ways = {
            OURS: our_pairs(source, settings.size),
            "webdataset, PILToTensor": their_pairs(folder, settings.size, [transforms.PILToTensor()]),
            "webdataset, ToTensor + Normalize": their_pairs(folder, settings.size, normalised),
        }
        rows = compared(ways, settings.rounds)
        encode, tokenizer = source.vocabulary.encoder(77), open_clip.tokenizer.SimpleTokenizer()
        rows += compared({OURS_TEXT: lambda: map(encode, captions), THEIR_TEXT: lambda: map(tokenizer, captions)}, 5)
    chosen = {"rounds": settings.rounds, "size": settings.size, "batch": BATCH, "own data": bool(settings.data)}
    path = write("pair-pipeline", torch.device("cpu"), {"settings": chosen, "rows": rows})
    print(f"{markdown(rows)}\n\n{path}")


def compared(ways: Mapping[str, Callable[[], Iterable[object]]], rounds: int) -> list[dict[str, object]]:
    """Pairs a second of each way, and the median of the first one's ratios to it."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, batches in ways.items():
            start = time.perf_counter()
            count = sum(len(batch) if isinstance(batch, torch.Tensor) and batch.ndim == 4 else 1 for batch in batches())
            rates[name].append(count / (time.perf_counter() - start))
    first = next(iter(rates.values()))
    rows: list[dict[str, object]] = []
    for name, values in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(first, values, strict=True))
        rows.append(
            {
                "pipeline": name,
                "pairs/s": round(statistics.median(values)),
                "range": f"{min(values):.0f}-{max(values):.0f}",
                "mmssl is faster by": "" if values is first else f"{ratio:.2f}x",
            }
        )
    return rows


def our_pairs(source: PairSource, size: int) -> Callable[[], Iterable[torch.Tensor]]:
    loader = Loader(source, PairView(TrainView(size, scale=(0.9, 1.0), flip=0.0), 77), batch_size=BATCH)
    steps = len(source) // BATCH
    return lambda: (batch["image"] for batch in loader.batches(0, steps))


def their_pairs(folder: Path, size: int, convert: list) -> Callable[[], Iterable[torch.Tensor]]:
    import webdataset

    mode = transforms.InterpolationMode.BICUBIC
    prepare = transforms.Compose([transforms.RandomResizedCrop(size, scale=(0.9, 1.0), interpolation=mode), *convert])
    tokenizer = open_clip.tokenizer.SimpleTokenizer()

    def read() -> Iterable[torch.Tensor]:
        shards = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False, empty_check=False)
        pairs = shards.shuffle(1000).decode("pil").to_tuple("jpg", "txt").map_tuple(prepare, tokenizer)
        return (images for images, _ in pairs.batched(BATCH, partial=False))

    return read


def write_shards(root: Path) -> Path:
    """Four shards of 128 pairs; captions of 5 to 20 words."""
    folder = root / "shards"
    folder.mkdir()
    for number, path in enumerate(sorted(write_pictures(root / "pictures").rglob("*.jpg"))):
        words = [WORDS[(number * step) % len(WORDS)] for step in range(1, 6 + number % 16)]
        with tarfile.open(folder / f"{number // 128}.tar", "a") as tar:
            for ending, content in ((".jpg", path.read_bytes()), (".txt", " ".join(words).encode())):
                member = tarfile.TarInfo(f"{number:05}{ending}")
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
    return folder


if __name__ == "__main__":
    main()
