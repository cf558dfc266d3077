"""Labelled videos for propagation: folders in the layouts of DAVIS (masks) and JHMDB (key points)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from mmssl.data.decode import ENDINGS, BrokenSample, Colour, colour, decode, opened
from mmssl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

JOINTS_FILE = "joint_positions.mat"


@dataclass(frozen=True)
class MaskSequence:
    """A clip with the object of every pixel: 0 is background, 255 void (counts for nothing), others are objects."""

    name: str
    frames: UInt8[Tensor, "frames 3 height width"]
    masks: UInt8[Tensor, "frames height width"]


@dataclass(frozen=True)
class PointSequence:
    """A clip with the places (x, y) of key points in pixels (0 is the centre of the first one); NaN: not labelled."""

    name: str
    frames: UInt8[Tensor, "frames 3 height width"]
    points: Float[Tensor, "frames points 2"]


class DavisFolder:
    """Sequences of `JPEGImages/[480p/]SEQ/*.jpg` (or .png) with `Annotations/[480p/]SEQ/*.png` of the same names.

    Annotations are PNG with a palette or in grey, whose values are object ids; every frame needs one. `names` are the
    lines of `ImageSets/2017/val.txt` where it exists, else all sequences in order. Frames (bicubic) and masks (nearest)
    are resized so that the short side is `short_side` pixels, None leaves them as they are; transparent parts of frames
    show `background`, see `colour`. Sequences are read when they are asked for, one at a time.

    Raises UserError naming the file, the problem and the remedy.
    """

    def __init__(self, root: str | Path, short_side: int | None = 480, background: str = "white") -> None:
        self.root, self.short_side, self.background = Path(root), short_side, colour(background)
        self._pictures, self._annotations = (_resolution(self.root / kind) for kind in ("JPEGImages", "Annotations"))
        listed = self.root / "ImageSets" / "2017" / "val.txt"
        found = _folders(self._annotations)
        self.names = listed.read_text().split() if listed.is_file() else found
        if lost := [name for name in self.names if name not in found]:
            raise UserError(f"{listed} lists {lost[0]}, but {self._annotations / lost[0]} does not exist; fetch it.")
        if not self.names:
            raise UserError(f"{self._annotations} holds no sequence; give the root of a folder in DAVIS' layout.")

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[MaskSequence]:
        return map(self.read, self.names)

    def read(self, name: str) -> MaskSequence:
        """One sequence by its name."""
        paths = _pictures_in(self._pictures / name)
        annotations = [self._annotations / name / f"{path.stem}.png" for path in paths]
        if lost := [path for path in annotations if not path.is_file()]:
            raise UserError(f"{lost[0]} does not exist; every frame of {self._pictures / name} needs an annotation.")
        frames = [_resize_picture(_read_picture(path, self.background), self.short_side) for path in paths]
        masks = [_read_mask(path, self.short_side) for path in annotations]
        for path, frame, mask in zip(annotations, frames, masks, strict=True):
            if frame.shape[1:] != mask.shape:
                raise UserError(f"{path} has another aspect than its frame; use annotations of the same resolution.")
        return MaskSequence(name, _stack(frames, self._pictures / name), torch.stack(masks))


class JhmdbFolder:
    """Sequences with a `joint_positions.mat` each, at any depth: frames beside it, or in JHMDB's parallel folders.

    JHMDB has `joint_positions/CLASS/VIDEO/joint_positions.mat` and `Rename_Images/CLASS/VIDEO/00001.png`, ... The file
    holds `pos_img` [2, joints, frames]: x and y in pixels, counted from 1. `split_lists` are lists of JHMDB, e.g.
    `splits/brush_hair_test_split1.txt`: of their lines `VIDEO.avi 2` those with a 2 are the test videos;
    None takes all. Frames are resized so that the short side is `short_side` pixels (None: as they are), points with
    them; transparent parts of frames show `background`, see `colour`.

    Raises UserError naming the file, the problem and the remedy.
    """

    def __init__(
        self,
        root: str | Path,
        split_lists: Sequence[str | Path] | None = None,
        short_side: int | None = 320,
        background: str = "white",
    ) -> None:
        self.root, self.short_side, self.background = Path(root), short_side, colour(background)
        labels = {path.parent.relative_to(self.root).as_posix(): path for path in sorted(self.root.rglob(JOINTS_FILE))}
        if split_lists is not None:
            wanted = {video for path in split_lists for video in _test_videos(Path(path))}
            labels = {name: path for name, path in labels.items() if path.parent.name in wanted}
        if not labels:
            raise UserError(f"{self.root} holds no {JOINTS_FILE} of the videos asked for; give the root of JHMDB.")
        self._labels = labels
        self.names = list(labels)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[PointSequence]:
        return map(self.read, self.names)

    def read(self, name: str) -> PointSequence:
        """One sequence by its name: its folder's path within the root."""
        path = self._labels[name]
        places = _read_joints(path)
        beside = path.parent
        parallel = self.root / name.replace("joint_positions", "Rename_Images", 1)
        folder = parallel if parallel.is_dir() else beside
        pictures = _pictures_in(folder)
        if len(pictures) < len(places):
            raise UserError(f"{folder} has {len(pictures)} frames, but {path} has {len(places)}; fetch JHMDB again.")
        whole = [_read_picture(picture, self.background) for picture in pictures[: len(places)]]
        frames = [_resize_picture(picture, self.short_side) for picture in whole]
        width, height = whole[0].size
        new_height, new_width = frames[0].shape[1:]
        scale = torch.tensor([new_width / width, new_height / height])
        # The picture's edge, where scaling starts, lies half a pixel before the first centre: at 0.5, counted from 1.
        return PointSequence(name, _stack(frames, folder), (places - 0.5) * scale - 0.5)


def _resolution(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; give the root of a folder in DAVIS' layout.")
    return folder / "480p" if (folder / "480p").is_dir() else folder


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _pictures_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; the frames of the sequence belong there.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.name[0] != ".")
    if not paths:
        raise UserError(f"{folder} holds no frame; put pictures there that end in .jpg or .png.")
    return paths


def _resized(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    scale = 1 if short_side is None else short_side / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _read_picture(path: Path, background: Colour) -> Image.Image:
    """A frame in RGB."""
    from PIL import Image

    try:
        with opened(path) as file:
            values = decode(file, 3, background)
    except BrokenSample as error:
        raise UserError(f"{path} cannot be read as a picture (it {error.reason}); fetch it again.") from error
    values = (values * 255).round().clamp(0, 255).to(torch.uint8) if values.is_floating_point() else values
    return Image.fromarray(values.permute(1, 2, 0).numpy())


def _resize_picture(picture: Image.Image, short_side: int | None) -> UInt8[Tensor, "3 height width"]:
    from PIL import Image

    resized = picture.resize(_resized(*picture.size, short_side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _read_mask(path: Path, short_side: int | None) -> UInt8[Tensor, "height width"]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L", "1"):
                raise UserError(f"{path} has mode {image.mode}; store object ids as a palette or grey 8-bit PNG.")
            # Converting a palette picture would give the colours' brightness; its indices are the ids.
            mask = image.resize(_resized(*image.size, short_side), Image.Resampling.NEAREST)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a picture ({error}); fetch it again.") from error
    return torch.from_numpy(np.array(mask).astype(np.uint8))


def _stack(frames: list[Tensor], folder: Path) -> UInt8[Tensor, "frames 3 height width"]:
    if len({frame.shape for frame in frames}) > 1:
        raise UserError(f"The frames in {folder} have different sizes; a sequence needs one size.")
    return torch.stack(frames)


def _test_videos(path: Path) -> list[str]:
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return [video.removesuffix(".avi") for video, part in lines if part == "2"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a JHMDB split ({error}); its lines are `VIDEO.avi 1`.") from error


def _read_joints(path: Path) -> Float[Tensor, "frames joints 2"]:
    """pos_img as it is in the file, counted from 1."""
    from scipy.io import loadmat

    try:
        places = np.asarray(loadmat(path)["pos_img"], np.float32)
    except Exception as error:  # scipy raises many types on damaged files
        raise UserError(f"{path} cannot be read as key points ({error!r}); fetch it again.") from error
    if places.ndim != 3 or len(places) != 2 or not places.shape[2]:
        raise UserError(f"{path} has pos_img of shape {places.shape}, not [2, joints, frames]; fetch it again.")
    return torch.from_numpy(places).permute(2, 1, 0)
