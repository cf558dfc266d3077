"""Clips a second on one core: the video pipeline against decord used plainly, on the same files.

    python -m benchmarks.video_pipeline [--data DIR] [--rounds 5] [--size 224]

All read the same videos (six of 320 x 240 pixels are made when none are given), one random clip of 16 frames, 4 apart,
of each, and cut one random box of it to `size` pixels square. Ours asks for a shorter side of `size` * 8 / 7, with one
clip a file and with four (repeated sampling), in batches of 4, and once more with decord kept out of it: as HEVC, and
all else whose frames decord would miscount, is read. Plainly: a VideoReader at the videos' own size and one told to
resize (to what ours decodes at, known beforehand), get_batch, and torch's antialiased bicubic resize of the box; with
one decoding thread each, as ours. They alternate, so that what else the machine does hits all alike; medians
over the rounds and their ratios are printed as a table and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop

from benchmarks.machine import markdown, write
from mmssl.data import Clips, Loader, TrainView, VideoSource

CLIPS = Clips(frames=16, stride=4)
OURS = "mmssl"
MINIMUM_CLIPS, BATCH = 24, 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the video pipeline against decord used plainly.")
    parser.add_argument("--data", type=Path, help="a folder of videos")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=224)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, short_side = settings.data or write_videos(Path(scratch)), settings.size * 8 // 7
        source, pyav = (VideoSource(folder, CLIPS, short_side=short_side) for _ in range(2))
        files = [source.root / path for path in source.paths]
        shapes = [(height, width) for *_, height, width in (source.read(i)["video"].shape for i in range(len(files)))]
        for index in range(len(files)):
            pyav.read(index)
            pyav._films[index]._decord = False
        ways: dict[str, Callable[[int], int]] = {
            OURS: partial(our_clips, source, settings.size, 1),
            f"{OURS}, 4 clips a file": partial(our_clips, source, settings.size, 4),
            f"{OURS}, through PyAV": partial(our_clips, pyav, settings.size, 1),
            "decord, own size": partial(plain_clips, files, [None] * len(files), settings.size),
            "decord, width and height": partial(plain_clips, files, shapes, settings.size),
        }
        passes = -(-MINIMUM_CLIPS // len(files))
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(settings.rounds):
            for name, clips in ways.items():
                rates[name].append(rate(clips, passes))
    report(rates, settings, len(files))


def our_clips(source: VideoSource, size: int, repeats: int, passes: int) -> int:
    """Reads every file `passes` times; the number of clips made."""
    loader = Loader(source, TrainView(size), batch_size=BATCH, repeats=repeats)
    return sum(len(batch["video"]) for batch in loader.batches(0, round(passes * loader.steps_per_epoch)))


def plain_clips(files: list[Path], shapes: Sequence[tuple[int, int] | None], size: int, passes: int) -> int:
    """The same as a user writes it, one clip after another."""
    import decord

    generator = np.random.default_rng(0)
    for _ in range(passes):
        for path, shape in zip(files, shapes, strict=True):
            resized = {"height": shape[0], "width": shape[1]} if shape else {}
            reader = decord.VideoReader(str(path), num_threads=1, **resized)
            span = (CLIPS.frames - 1) * CLIPS.stride + 1
            start = generator.integers(max(1, len(reader) - span + 1))
            indices = np.minimum(start + np.arange(CLIPS.frames) * CLIPS.stride, len(reader) - 1)
            frames = torch.from_numpy(reader.get_batch(indices).asnumpy()).permute(0, 3, 1, 2)
            top, left, height, width = RandomResizedCrop.get_params(frames, [0.2, 1.0], [3 / 4, 4 / 3])
            box = frames[..., top : top + height, left : left + width]
            interpolate(box, (size, size), mode="bicubic", antialias=True).transpose(0, 1).contiguous()
    return passes * len(files)


def rate(clips: Callable[[int], int], passes: int) -> float:
    """Clips a second."""
    start = time.perf_counter()
    return clips(passes) / (time.perf_counter() - start)


def report(rates: dict[str, list[float]], settings: argparse.Namespace, files: int) -> None:
    rows = []
    for name, values in rates.items():
        ratio = statistics.median(theirs / ours for ours, theirs in zip(rates[OURS], values, strict=True))
        rows.append(
            {
                "way": name,
                "clips/s": f"{statistics.median(values):.1f}",
                "range": f"{min(values):.1f}-{max(values):.1f}",
                "against mmssl": f"{ratio:.2f}x",
            }
        )
    chosen = {"size": settings.size, "files": files, "rounds": settings.rounds, "own data": bool(settings.data)}
    path = write("video-pipeline", torch.device("cpu"), {"settings": chosen, "rows": rows})
    print(f"{markdown(rows)}\n\n{path}")


def write_videos(root: Path, count: int = 6, frames: int = 150) -> Path:
    """Blobs that drift over a grainy background, in H.264 with B-frames."""
    import av

    generator = np.random.default_rng(0)
    for number in range(count):
        ground = torch.from_numpy(generator.integers(0, 256, (1, 3, 40, 80), dtype=np.uint8))
        scene = interpolate(ground, (480, 960), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
        with av.open(str(root / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.height, stream.width, stream.pix_fmt = 240, 320, "yuv420p"
            for k in range(frames):
                grain = generator.integers(0, 16, (240, 320, 1), dtype=np.uint8)
                view = np.minimum(scene[k : k + 240, 3 * k : 3 * k + 320], 239) + grain
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), "rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 30)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return root


if __name__ == "__main__":
    main()
