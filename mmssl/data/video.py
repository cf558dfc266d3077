"""Videos: which frames of a file make a sample, by time, and reading just those (see `film`), within a time limit.

`VideoSource(root, Clips(frames=16, stride=4), short_side=256)` gives `video` [C, T, H, W], `Pairs()` two frames
`image` and `image.1`; `TrainView` and `EvalView` cut them as they cut pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt8
from torch import Tensor

from mmssl.data.decode import BrokenSample
from mmssl.data.film import Film, import_av, import_decord, within
from mmssl.data.folders import part_of
from mmssl.data.source import FileSource, shares, told_of_part
from mmssl.data.views import Keys
from mmssl.errors import UserError

# Container times are rounded (Matroska's to milliseconds) and cameras jitter: a frame that begins within this share of
# the average interval after the asked time is the one meant.
TOLERANCE = 0.25


class Timeline(NamedTuple):
    """When a video's frames begin, float64 seconds from the first one's start, and the average time between two."""

    starts: Float64[np.ndarray, " frames"]
    interval: float

    def shown(self, times: Float64[np.ndarray, "slots times"]) -> Int64[np.ndarray, "slots times"]:
        """The frames on the screen at these times; after the end, the last."""
        after = np.searchsorted(self.starts, times + TOLERANCE * self.interval, side="right")
        return np.maximum(after - 1, 0)


@runtime_checkable
class Sampling(Protocol):
    """Which frames of a video are a sample."""

    def times(self, video: Timeline, keys: Keys) -> Float64[np.ndarray, "slots frames"]:
        """The times of each slot's frames."""
        ...

    def sample(self, frames: UInt8[Tensor, "frames height width channels"]) -> dict[str, Tensor]:
        """A slot's frames as its sample."""
        ...


@dataclass(frozen=True)
class Clips:
    """{"video": uint8 [C, frames, H, W]}: frames that are `stride` average frame intervals apart in time.

    Frame k is the one shown at start + k * stride * interval, so that a steady video gives exactly every stride-th
    frame and an unsteady one the frames that a viewer would see then; after the end the last frame repeats. With
    `spread` 0 the start is random, from the noise's stream "clip"; with `spread` n, draw d gives clip d of n evenly
    spread ones (n = 1: the centre), for evaluation with `repeats=n`.
    """

    frames: int = 16
    stride: int = 4
    spread: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.stride < 1 or self.spread < 0:
            raise UserError(
                f"Clips need frames and stride of at least 1 and a spread of at least 0, not {self.frames}, "
                f"{self.stride} and {self.spread}."
            )

    def times(self, video: Timeline, keys: Keys) -> Float64[np.ndarray, "slots frames"]:
        places = max(1, len(video.starts) - (self.frames - 1) * self.stride)
        first = np.floor(shares("clip", 1, self.spread, keys) * places)
        return (first + np.arange(self.frames) * self.stride) * video.interval

    def sample(self, frames: UInt8[Tensor, "frames height width channels"]) -> dict[str, Tensor]:
        return {"video": frames.permute(3, 0, 1, 2)}


@dataclass(frozen=True)
class Pairs:
    """{"image": the past, "image.1": the future}, uint8 [C, H, W] both: SiamMAE's pairs of frames.

    The future is the frame shown `gap` seconds after the past one began, uniform in the range given (the default is
    the paper's 4 to 48 frames at 30 a second), or the next frame where that is later, and the past is uniform over what
    leaves room for it; a video too short for the gap gives its first and last frame. With `spread` n, draw d gives pair
    d of n evenly spread ones with the middle gap.
    """

    gap: tuple[float, float] = (4 / 30, 48 / 30)
    spread: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.gap[0] <= self.gap[1] or self.spread < 0:
            raise UserError(
                f"Pairs need two ascending gaps in seconds and a spread of at least 0, not {self.gap}, {self.spread}."
            )

    def times(self, video: Timeline, keys: Keys) -> Float64[np.ndarray, "slots frames"]:
        places = shares("pair", 2, self.spread, keys)
        middle = 0.5 if self.spread else places[:, 1:]
        end = video.starts[-1]
        gap = np.minimum(self.gap[0] + middle * (self.gap[1] - self.gap[0]), end)
        last = len(video.starts) - 1
        past = np.minimum(video.shown(places[:, :1] * (end - gap)), max(0, last - 1))
        # slow videos: a pair is two frames wherever there are two
        future = np.maximum(video.starts[past] + gap, video.starts[np.minimum(past + 1, last)])
        return np.concatenate([video.starts[past], future], 1)

    def sample(self, frames: UInt8[Tensor, "frames height width channels"]) -> dict[str, Tensor]:
        past, future = frames.permute(0, 3, 1, 2)
        return {"image": past, "image.1": future}


class VideoSource(FileSource):
    """The videos of a folder or a manifest, read as `clips` samples them (`pip install decord2 av`).

    root: a folder, whose files that end as `extensions` lists, at any depth, are taken in the order of their paths
        (classes as in FolderSource); or a manifest, `.csv` with a header or `.jsonl`, with the key `path`, relative
        to the manifest, and optionally `label` (or what `label` says), the class's name, or `labels`, several of them
        (see `read_manifest`).
    channels: 3 (RGB) or 1 (grey, as Pillow's "L").
    short_side: videos at least twice as large are decoded at this many pixels on the shorter side (FFmpeg's bicubic
        filter, antialiased; the other side as the aspect asks); others, and all with None, at their own size, because
        resizing every frame on the way to those asked for would cost more than views of larger ones.
    time_limit: seconds that reading one file may take, for all clips drawn of it. What takes longer is broken; the
        thread that reads it is abandoned, and goes on using a core if the decoder hangs for good.

    Frame k is the k-th that comes out when FFmpeg plays the file, at the time when it is shown, whatever the container
    and the codec (see `film`); where frames are lost within a damaged file, the ones before them stay on. H.264, VP8,
    VP9 and AV1 in MP4, MOV, MKV and WebM are read through decord where it counts their frames right, everything else
    through PyAV. Films that lack the times of their frames, such as H.264 in AVI, are decoded from end to end once.

    All clips of a sample's neighbouring slots come from one pass over its file. Rotation metadata is applied. Videos
    that are cut short give the frames they have where their container allows, and are BrokenSample otherwise.

    Raises UserError when decord, PyAV or the root is missing, the manifest is wrong, or no video can be read.
    """

    kind = "video"
    in_shards = False  # decoders want paths
    extensions = (
        *(".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".ogv", ".mxf"),
        *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
    )

    def __init__(
        self,
        root: str | Path,
        clips: Sampling,
        *,
        channels: int = 3,
        short_side: int | None = None,
        time_limit: float = 30.0,
        label: str | None = None,
    ) -> None:
        if channels not in (1, 3) or (short_side is not None and short_side < 1) or time_limit <= 0:
            raise UserError(
                f"Videos have 1 or 3 channels, not {channels}; short_side={short_side} and time_limit={time_limit} "
                "must be above 0."
            )
        import_decord()
        import_av()
        super().__init__(*self.located(Path(root), label), channels)
        self.clips, self.short_side, self.time_limit = clips, short_side, time_limit
        self._films: dict[int, Film] = {}
        self.find_one_readable()

    @property
    def sampling(self) -> str:
        return f"{self.clips}, short_side={self.short_side}"

    def read(self, index: int) -> dict[str, Tensor]:
        """What evaluation takes as draw 0."""
        zero = torch.zeros(1, dtype=torch.int64)
        return next(self.draw(index, Keys(0, torch.tensor([index]), zero, zero)))

    def draw(self, index: int, keys: Keys) -> Iterator[dict[str, Tensor]]:
        """One sample for each of the slots of `keys`, from one pass over the file; raises BrokenSample."""
        frames, chosen = within(self.time_limit, lambda: self._frames(index, keys))
        return (self.clips.sample(pick(frames, rows)) for rows in chosen.tolist())

    def _frames(
        self, index: int, keys: Keys
    ) -> tuple[UInt8[Tensor, "frames height width channels"], Int64[Tensor, "slots frames_of_one"]]:
        """The frames that the slots need, each once, and which of them make which slot."""
        film = self._films.get(index) or Film(self.root / self.paths[index])
        self._films[index] = film
        rows: list[Int64[Tensor, "slots frames_of_one"]] = []

        def choose(starts: Float64[np.ndarray, " all"]) -> Int64[np.ndarray, " needed"]:
            video = timeline(starts)
            shown = video.shown(self.clips.times(video, keys))
            needed, chosen = np.unique(shown, return_inverse=True)
            rows.append(torch.from_numpy(chosen.reshape(shown.shape)))
            return needed

        frames = torch.from_numpy(film.read(choose, *self._size(film)))
        return frames if self.channels == 3 else grey(frames), rows[-1]

    def _size(self, film: Film) -> tuple[int, int]:
        """Height and width that frames are decoded at."""
        shrink = (self.short_side or film.height) / min(film.height, film.width)
        # FFmpeg resizes every frame on the way to those asked for: it pays where much is thrown away
        if shrink > 0.5:
            return film.height, film.width
        return max(1, round(shrink * film.height)), max(1, round(shrink * film.width))


def open_videos(
    path: str | Path,
    split: str | None,
    clips: Sampling,
    *,
    channels: int = 3,
    short_side: int | None = None,
    time_limit: float = 30.0,
    label: str | None = None,
) -> VideoSource:
    """The `split` of a folder of videos ("train", "test" or None, see `open_source`), or of a manifest, which has no
    parts; the rest as in VideoSource.
    """
    part = part_of(Path(path), split)
    source = VideoSource(part, clips, channels=channels, short_side=short_side, time_limit=time_limit, label=label)
    return told_of_part(source, Path(path), split)


def timeline(starts: Float64[np.ndarray, " frames"]) -> Timeline:
    """The timeline of frames that begin at these seconds; raises BrokenSample when time does not go on."""
    interval = float(starts[-1]) / max(1, len(starts) - 1)
    if not (np.diff(starts) >= 0).all() or (len(starts) > 1 and interval <= 0):
        raise BrokenSample("has frames whose times are missing or run backwards")
    return Timeline(starts, interval)


def pick(frames: UInt8[Tensor, "frames h w c"], rows: list[int]) -> UInt8[Tensor, "frames_of_one h w c"]:
    """These rows; where they follow one another, as a lone clip's do, without a copy, which costs as much as a cut."""
    run = range(rows[0], rows[0] + len(rows))
    return frames[run.start : run.stop] if rows == list(run) else frames[rows]


def grey(frames: UInt8[Tensor, "frames height width 3"]) -> UInt8[Tensor, "frames height width 1"]:
    """ITU-R 601's luma in Pillow's fixed-point weights, so that a frame is as grey as the same picture."""
    red, green, blue = frames.to(torch.int32).unbind(-1)
    return (red * 19595 + green * 38470 + blue * 7471 + 2**15 >> 16).to(torch.uint8)[..., None]
