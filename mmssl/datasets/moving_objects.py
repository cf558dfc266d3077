"""A SEMI-SYNTHETIC set: real Fashion-MNIST items move over real videos, so that motion, item and masks are known.

Nothing about it is natural but its parts: quote results on it as semi-synthetic.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from mmssl.data.decode import BrokenSample
from mmssl.data.film import Film, import_av, within
from mmssl.data.sequences import MaskSequence
from mmssl.data.source import ArraySource, idx_source
from mmssl.datasets.fashion_mnist import CLASSES, fetch_fashion_mnist
from mmssl.datasets.real_clips import fetch_clips, video_files
from mmssl.errors import UserError
from mmssl.masking.noise import uniform

logger = logging.getLogger(__name__)

# Each class at an odd number is the time reversal of the one before it.
MOTIONS = ("left", "right", "up", "down", "clockwise", "counter-clockwise", "growing", "shrinking")
LABELLED, OTHER = 1, 2
_CLIPS, _FRAMES = 60, 6000
_STRIDES = 3
_RATE = 10
_SECONDS = 120.0
_MARKER = "moving-objects.json"
_PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0]
_FIELDS = (
    *("item", "coloured", "hue", "saturation", "scale"),
    *("other_item", "other_coloured", "other_hue", "other_saturation", "other_scale"),
    *("other_on_top", "other_y", "other_x", "other_angle", "other_drift"),
    *("along", "across", "travel", "tilt", "angle"),
    *("clip", "start", "stride", "top", "left", "mirrored"),
)


@dataclass(frozen=True)
class Truth:
    """What a sample shows: masks of the visible parts (0 background, 1 the labelled item, 2 the other), and the
    numbers of its motion in `MOTIONS` and of its item in the items' classes.
    """

    masks: UInt8[Tensor, "frames size size"]
    motion: int
    item: int


class MovingObjects:
    """A source of clips made on the fly: sample -> {"video": uint8 [3, T, S, S]}; a pure function of seed and index.

    A labelled item (resized by 0.8-1.4 of its size in a 64-pixel frame, grey or tinted) moves in one of eight ways; a
    second one, still or slowly drifting, may hide it or be hidden; the background is a crop of a real clip, running
    at 1 to 3 times its speed, maybe mirrored. Background and second item know nothing of the labels.

    The path of every second class of `MOTIONS` is one of the class before it, backwards, drawn from the same
    distribution: the set of a clip's frames, without their order, does not tell left from right, up from down,
    clockwise from counter-clockwise, or growing from shrinking. Classes take turns, so they are balanced.

    items: pictures uint8 [N, 1, n, n] with labels. backgrounds: uint8 [3, N, H, W] each, see `background_clips`.
    label: which class `labels` and `classes` are about; `motions` and `item_labels` hold both. stream: names the draws,
    so that the training and the test set of one seed differ. Raises ValueError where the parts do not fit.
    """

    channels = 3

    def __init__(
        self,
        items: ArraySource,
        backgrounds: Sequence[np.ndarray],
        count: int = 2000,
        *,
        frames: int = 16,
        size: int = 64,
        label: Literal["motion", "item"] = "motion",
        seed: int = 0,
        stream: str = "train",
    ) -> None:
        if items.labels is None or items.channels != 1 or items.images.shape[2] != items.images.shape[3]:
            raise ValueError(f"items must be labelled square grey pictures, not {list(items.images.shape)}.")
        if not backgrounds or any(min(clip.shape[2:]) < size or clip.shape[1] < frames for clip in backgrounds):
            raise ValueError(f"there must be backgrounds of at least {frames} frames of {size} x {size} pixels.")
        self.items, self.backgrounds = items, list(backgrounds)
        self.frames, self.size, self._stream = frames, size, f"moving-objects/{stream}"
        noise = uniform(len(_FIELDS), seed=seed, stream=self._stream, sample_id=torch.arange(count))
        self._noise = noise.double().numpy()
        self.motions = [index % len(MOTIONS) for index in range(count)]
        chosen = (self._noise[:, _FIELDS.index("item")] * len(items)).astype(int)
        self.item_labels = [items.labels[item] for item in chosen]
        self.labels: list[int] | None = self.motions if label == "motion" else self.item_labels
        self.classes = list(MOTIONS) if label == "motion" else items.classes

    def __len__(self) -> int:
        return len(self.motions)

    def name(self, index: int) -> str:
        return f"{self._stream}[{index}]"

    def read(self, index: int) -> dict[str, Tensor]:
        return {"video": torch.from_numpy(self._render(index)[0])}

    def truth(self, index: int) -> Truth:
        """The labels of a sample and the exact masks of its items."""
        return Truth(torch.from_numpy(self._render(index)[1]), self.motions[index], self.item_labels[index])

    def sequence(self, index: int) -> MaskSequence:
        """The sample as a sequence for label propagation."""
        video, masks = map(torch.from_numpy, self._render(index))
        return MaskSequence(f"{index:06d}-{MOTIONS[self.motions[index]]}", video.transpose(0, 1).contiguous(), masks)

    def _render(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The video, uint8 [3, T, S, S], and its masks, uint8 [T, S, S]."""
        draw = dict(zip(_FIELDS, self._noise[index].tolist(), strict=True))
        video = self._background(draw)
        moving = (LABELLED, "", *_labelled_path(MOTIONS[self.motions[index]], draw, self.frames))
        other = (OTHER, "other_", *_other_path(draw, self.frames))
        masks = np.zeros((self.frames, self.size, self.size), np.uint8)
        # The one behind is drawn first.
        for number, prefix, centres, scales in (moving, other) if draw["other_on_top"] < 0.5 else (other, moving):
            shade, alpha = self._place(draw[f"{prefix}item"], centres, scales)
            tint = _tint(*(draw[f"{prefix}{part}"] for part in ("coloured", "hue", "saturation")))
            clear = 1 - alpha
            for channel, strength in zip(video, tint, strict=True):
                channel *= clear
                channel += shade * np.float32(255 * strength)
            masks[alpha > 0] = number
        return (video + np.float32(0.5)).astype(np.uint8), masks

    def _background(self, draw: dict[str, float]) -> np.ndarray:
        """float32 [3, T, S, S] of whole numbers 0-255."""
        clip = self.backgrounds[int(draw["clip"] * len(self.backgrounds))]
        _, count, height, width = clip.shape
        stride = 1 + int(draw["stride"] * min(_STRIDES, (count - 1) // max(1, self.frames - 1)))
        start = int(draw["start"] * (count - stride * (self.frames - 1)))
        top, left = int(draw["top"] * (height - self.size + 1)), int(draw["left"] * (width - self.size + 1))
        stop = start + stride * (self.frames - 1) + 1
        crop = clip[:, start:stop:stride, top : top + self.size, left : left + self.size]
        return (crop[..., ::-1] if draw["mirrored"] < 0.5 else crop).astype(np.float32)

    def _place(self, which: float, centres: np.ndarray, scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Brightness times opacity, and opacity, float32 [T, S, S] in 0-1, of an item resampled at each frame's place.

        Bilinear resampling is a product with one matrix a side. Opacity below a half becomes 0, so that the picture
        outside the mask is the background, exactly.
        """
        grey = self.items.images[int(which * len(self.items)), 0].numpy().astype(np.float32) / 255
        # Smoothstep: the items' black surroundings are clear, and their dim parts are solid.
        rise = np.clip((grey - 0.03) / 0.22, 0, 1)
        opacity = rise * rise * (3 - 2 * rise)
        side, pixels = len(grey), np.arange(self.size, dtype=np.float32) + 0.5
        zoom = (self.size / 64 * 28 / side) * scales[:, None]
        places = (pixels - self.size * centres[:, :, None]) / zoom[..., None] + (side - 1) / 2
        tents = 1 - np.abs(places[..., None] - np.arange(side, dtype=np.float32))
        down, across = np.maximum(tents, 0).transpose(1, 0, 2, 3)
        # One product of all frames' rows, then one a frame: [T, S, 2 n] -> [T, 2 S, n] -> [T, 2 S, S].
        stretched = down.reshape(-1, side) @ np.concatenate([grey * opacity, opacity], axis=1)
        stretched = stretched.reshape(self.frames, 2 * self.size, side)
        both = (stretched @ across.transpose(0, 2, 1)).reshape(self.frames, self.size, 2, self.size)
        shade, alpha = both[:, :, 0], both[:, :, 1]
        solid = alpha >= 0.5
        return shade * solid, alpha * solid


def _labelled_path(motion: str, draw: dict[str, float], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Centres (y, x) [T, 2] in shares of the frame's side, and sizes [T] in shares of the item's, both float32."""
    number = MOTIONS.index(motion)
    kind = MOTIONS[number - number % 2]
    time = np.linspace(0, 1, frames)
    sizes = np.full(frames, 0.8 + 0.6 * draw["scale"])
    if kind in ("left", "up"):
        travel, tilt = 0.3 + 0.2 * draw["travel"], 0.4 * (draw["tilt"] - 0.5)
        along = 0.2 + travel / 2 + (0.6 - travel) * draw["along"] + travel * math.cos(tilt) * (0.5 - time)
        across = 0.3 + 0.4 * draw["across"] + travel * math.sin(tilt) * (0.5 - time)
        centres = np.stack([across, along] if kind == "left" else [along, across], axis=1)
    elif kind == "clockwise":
        radius, turn = 0.12 + 0.08 * draw["travel"], 0.6 + 0.4 * draw["tilt"]
        middle = 0.2 + radius + (0.6 - 2 * radius) * np.array([draw["along"], draw["across"]])
        # y points down, so growing angles turn clockwise.
        angle = 2 * math.pi * (draw["angle"] + turn * time)
        centres = middle + radius * np.stack([np.sin(angle), np.cos(angle)], axis=1)
    else:
        drift = 0.1 * draw["tilt"] * (time[:, None] - 0.5) * _direction(draw["angle"])
        centres = 0.35 + 0.3 * np.array([draw["along"], draw["across"]]) + drift
        # Growth by a constant factor a frame; smaller on the whole, so that the largest still fits.
        sizes = 0.75 * sizes * (1.6 + 0.6 * draw["travel"]) ** (time - 0.5)
    step = -1 if number % 2 else 1
    return centres[::step].astype(np.float32), sizes[::step].astype(np.float32)


def _other_path(draw: dict[str, float], frames: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_labelled_path`: still in half of the clips, else drifting by up to 0.15 in any direction."""
    length = 0.3 * max(0.0, draw["other_drift"] - 0.5)
    drift = length * np.linspace(-0.5, 0.5, frames)[:, None] * _direction(draw["other_angle"])
    centres = 0.2 + 0.6 * np.array([draw["other_y"], draw["other_x"]]) + drift
    return centres.astype(np.float32), np.full(frames, 0.8 + 0.6 * draw["other_scale"], np.float32)


def _direction(turn: float) -> np.ndarray:
    """The unit vector (y, x) after `turn` full turns."""
    return np.array([math.sin(2 * math.pi * turn), math.cos(2 * math.pi * turn)])


def _tint(coloured: float, hue: float, saturation: float) -> tuple[float, float, float]:
    """RGB in 0-1: white, which keeps an item grey, in 3 of 10 cases, else any hue with a saturation of 0.3-1."""
    strength = 0.3 + 0.7 * saturation if coloured >= 0.3 else 0.0
    red, green, blue = (1 - strength * min(1.0, max(0.0, 2 - abs((6 * hue - peak) % 6 - 3))) for peak in (0, 2, 4))
    return red, green, blue


def part_clips(folder: Path, split: Literal["train", "test"]) -> list[Path]:
    """The videos of a folder whose frames are backgrounds of this part.

    Every third one (from the second on, in the order of their paths) is for testing, the others for training; a single
    one is in both, which then show different times of it. Of large folders 60 are taken, spread evenly.
    """
    paths = video_files(folder)
    paths = paths[:: max(1, math.ceil(len(paths) / _CLIPS))]
    if len(paths) == 1:
        return paths
    return [path for number, path in enumerate(paths) if (number % 3 == 1) == (split == "test")]


def background_clips(folder: Path, split: Literal["train", "test"], frames: int, size: int) -> list[np.ndarray]:
    """Small copies of a folder's videos, uint8 [3, N, H, W] with a short side of 1.5 * `size` pixels, in memory.

    They are those of `part_clips`; of a single one the last quarter is for testing, and the rest for training. Of each
    clip its first frames are taken, in both parts together 6 000 or less. Files that cannot be decoded or are too short
    (fewer than `frames`) are logged and left out.

    Raises UserError where no clip is left.
    """
    paths = {*part_clips(folder, "train"), *part_clips(folder, "test")}
    single = len(paths) == 1
    clips = []
    for path in part_clips(folder, split):
        try:
            clip = _decode(path, round(1.5 * size), _FRAMES // len(paths))
        except BrokenSample as error:
            logger.warning("%s is left out: it %s.", path, error.reason)
            continue
        border = clip.shape[1] * 3 // 4
        clip = clip if not single else clip[:, border:] if split == "test" else clip[:, :border]
        if clip.shape[1] >= frames:
            clips.append(clip)
        else:
            logger.warning("%s is left out: %d frames of it are too few for %d.", path, clip.shape[1], frames)
    if not clips:
        raise UserError(
            f"{folder} holds {len(paths)} videos, and none serves as a {split} background: give one of at least "
            f"{4 * frames} frames, or two of at least {frames}."
        )
    return clips


def _decode(path: Path, short_side: int, most: int) -> np.ndarray:
    def frames() -> np.ndarray:
        film = Film(path)
        scale = short_side / min(film.height, film.width)
        size = max(short_side, round(film.height * scale)), max(short_side, round(film.width * scale))
        return film.read(lambda starts: np.arange(min(most, len(starts))), *size)

    return np.ascontiguousarray(within(_SECONDS, frames).transpose(3, 0, 1, 2))


def write_moving_objects(
    out: str | Path,
    clips: str | Path | None = None,
    items: str | Path | None = None,
    *,
    train: int = 2000,
    test: int = 500,
    sequences: int = 30,
    size: int = 64,
    frames: int = 16,
    seed: int = 0,
) -> Path:
    """Writes the set as files and returns `out`; at once where it is there already, complete and with these settings.

    `train/MOTION/000000.mp4` and `test/MOTION/...` (H.264 of nearly lossless quality without chroma subsampling, 10
    frames a second), `train-items.csv` and `test-items.csv` (path, label: the item's class), and the first
    `sequences` test clips in DAVIS' layout, lossless, in `davis/` (object 1 is the labelled item, 2 the other).
    Items are of Fashion-MNIST's training split in the one part and of its test split in the other; so are the
    backgrounds (see `background_clips`). Where `clips` or `items` is None they are fetched to folders beside `out`.

    Everything is written aside and moved into place when it is complete: an interrupted run leaves nothing behind that
    looks whole, and is done again. Needs PyAV (`pip install av`). Raises UserError where `out` holds something else.
    """
    from rich.progress import Progress

    out = Path(out)
    settings = {"train": train, "test": test, "sequences": sequences, "size": size, "frames": frames, "seed": seed}
    if min(train, test) < 1 or not 0 <= sequences <= test or size < 16 or size % 2 or frames < 3:
        raise UserError(
            "Give at least one clip a part, no more sequences than test clips, an even size from 16 pixels on and at "
            f"least three frames, not {settings}."
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / _MARKER).is_file():
            raise UserError(f"{out} exists and is no set of moving objects; choose another place.")
        _check_marker(out, settings, None if clips is None else Path(clips))
        return out
    items = Path(items) if items is not None else fetch_fashion_mnist(out.parent / "fashion-mnist")
    clips = fetch_clips(out.parent / "clips", clips)
    aside = out.parent / f".{out.name}.incomplete"
    shutil.rmtree(aside, ignore_errors=True)
    with Progress(transient=True) as bar:
        for part, count in (("train", train), ("test", test)):
            backgrounds = background_clips(clips, "train" if part == "train" else "test", frames, size)
            things = idx_source(items, part)
            things.classes = CLASSES
            made = MovingObjects(things, backgrounds, count, frames=frames, size=size, seed=seed, stream=part)
            task = bar.add_task(f"{part} clips", total=count)
            _write_clips(made, aside, part, progress=partial(bar.advance, task))
            for index in range(sequences if part == "test" else 0):
                _write_sequence(made.sequence(index), aside / "davis")
    (aside / _MARKER).write_text(json.dumps({**settings, "videos": _listed(clips)}))
    if out.exists():
        out.rmdir()
    os.replace(aside, out)
    return out


def _listed(clips: Path) -> dict[str, int]:
    """The background videos and their sizes in bytes: what tells one folder of them from another."""
    return {path.relative_to(clips).as_posix(): path.stat().st_size for path in video_files(clips)}


def _check_marker(out: Path, settings: dict[str, int], clips: Path | None) -> None:
    """Raises UserError where the set in `out` is not the one asked for."""
    try:
        found = json.loads((out / _MARKER).read_text())
        videos = found.pop("videos")
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{out / _MARKER} is damaged ({error}); delete {out} and make the set again.") from error
    if found != settings:
        raise UserError(f"{out} holds a set with {found}, not {settings}; choose another place, or delete it.")
    if clips is not None and videos != _listed(clips):
        raise UserError(
            f"{out} holds a set over other videos than those of {clips}; choose another place, or delete it."
        )


def _write_clips(source: MovingObjects, root: Path, part: str, progress: Callable[[], None]) -> None:
    paths = [f"{part}/{MOTIONS[source.motions[i]]}/{i:06d}.mp4" for i in range(len(source))]
    for index, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        _write_video(root / path, source.read(index)["video"].permute(1, 2, 3, 0).numpy())
        progress()
    with open(root / f"{part}-items.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label"))
        rows.writerows((path, source.items.classes[source.item_labels[i]]) for i, path in enumerate(paths))


def _write_video(path: Path, frames: np.ndarray) -> None:
    av = import_av()
    with av.open(str(path), "w") as container:
        # Chroma of full size: tinted items of a few pixels would bleed into the background.
        stream = container.add_stream("libx264", rate=_RATE, options={"crf": "10", "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], "yuv444p", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _write_sequence(sequence: MaskSequence, root: Path) -> None:
    from PIL import Image

    folders = [root / kind / sequence.name for kind in ("JPEGImages", "Annotations")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, (frame, mask) in enumerate(zip(sequence.frames, sequence.masks, strict=True)):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folders[0] / f"{number:05d}.png")
        picture = Image.fromarray(mask.numpy())
        picture.putpalette(_PALETTE)
        picture.save(folders[1] / f"{number:05d}.png")
