"""Where samples come from: a folder of pictures, arrays in memory, or a part of another source."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmssl.data.decode import BrokenSample, decode
from mmssl.errors import UserError
from mmssl.masking.noise import permutation

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".npy")
SPLIT_FOLDERS = {"train": ("train",), "test": ("val", "test")}
IDX_PREFIX = {"train": "train", "test": "t10k"}
CLASSES_FILE = "classes.txt"
_PROBES = 100


@runtime_checkable
class Source(Protocol):
    """A fixed, ordered set of samples; a sample's number is its `sample_id`."""

    channels: int
    labels: list[int] | None
    classes: list[str]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What a person calls sample `index` in a message: a path, for files."""
        ...

    def read(self, index: int) -> dict[str, Tensor]:
        """The sample's raw values, e.g. {"image": uint8 or float32 [C, H, W]}; raises BrokenSample with the reason."""
        ...


class FolderSource:
    """Every picture under a folder, at any depth, in the order of their relative paths.

    Files are taken by extension (JPEG, PNG, WebP, TIFF, .npy, any case) and decoded by content, see `decode`; hidden
    files and folders are left out. When all pictures lie in at least two first-level folders, these are the classes
    and `labels` are numbered in the classes' order; otherwise `labels` is None and `classes` is empty.

    Raises UserError when the folder is missing, or holds no picture, or none that can be read.
    """

    def __init__(self, root: str | Path, channels: int = 3) -> None:
        self.root = Path(root)
        self.channels = channels
        if not self.root.is_dir():
            problem = "is a file, not a folder" if self.root.exists() else "does not exist"
            raise UserError(f"{self.root} {problem}; give a folder of pictures.")
        files = sorted(_walk(self.root))
        self.paths = [path for path in files if path.lower().endswith(EXTENSIONS)]
        if not self.paths:
            holds = "has files but no picture" if files else "is empty"
            raise UserError(f"The folder {self.root} {holds}; pictures end in {', '.join(EXTENSIONS)}.")
        tops = [path.split("/", 1)[0] if "/" in path else None for path in self.paths]
        self.classes = sorted({top for top in tops if top is not None})
        if None in tops or len(self.classes) < 2:
            self.classes = []
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = [number[top] for top in tops if top is not None] if self.classes else None
        self._find_one_readable()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> dict[str, Tensor]:
        try:
            with open(self.root / self.paths[index], "rb") as file:
                return {"image": decode(file, self.channels)}
        except OSError as error:
            raise BrokenSample(f"cannot be opened ({error.strerror or type(error).__name__})") from error

    def _find_one_readable(self) -> None:
        reasons = []
        for index in range(min(len(self), _PROBES)):
            try:
                self.read(index)
                return
            except BrokenSample as error:
                reasons.append(error.reason)
        raise UserError(
            f"The folder {self.root} holds no readable picture: {len(reasons)} of {len(self)} files were tried, "
            f"and the first, {self.name(0)}, {reasons[0]}."
        )


def _walk(root: Path) -> Iterator[str]:
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back would be followed for ever
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(folder).relative_to(root)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))


class ArraySource:
    """Pictures of one size in memory, uint8 [N, C, H, W], with labels (one int a picture) or None."""

    def __init__(
        self,
        images: Tensor,
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        name: str = "array",
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}.")
        if labels is not None and len(labels) != len(images):
            raise ValueError(f"There are {len(labels)} labels for {len(images)} images; give one a picture.")
        self.images = images
        self.labels = None if labels is None else [int(label) for label in labels]
        self.classes = list(classes)
        self.channels = images.shape[1]
        self._name = name

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return f"{self._name}[{index}]"

    def read(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index]}


class Subset:
    """Some samples of another source, in the order given; sample_id counts within the subset."""

    def __init__(self, source: Source, indices: Sequence[int]) -> None:
        self.source = source
        self.indices = [int(index) for index in indices]
        self.channels = source.channels
        self.labels = None if source.labels is None else [source.labels[index] for index in self.indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def read(self, index: int) -> dict[str, Tensor]:
        return self.source.read(self.indices[index])


def subset(source: Source, indices: Sequence[int]) -> Subset:
    """The samples at `indices` as a source of their own."""
    return Subset(source, indices)


def hold_out(source: Source, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """(the rest, the held-out part): a random `fraction` of the samples, at least one, the same for the same seed.

    Raises UserError when one of the two parts would be empty.
    """
    count = max(1, round(fraction * len(source)))
    if not 0 < fraction < 1 or count >= len(source):
        raise UserError(f"Holding out {fraction} of {len(source)} samples leaves one part empty; change the fraction.")
    order = permutation(len(source), seed=seed, stream="hold-out").tolist()
    return subset(source, sorted(order[count:])), subset(source, sorted(order[:count]))


class NoTestPart(UserError):
    """The data has no test part of its own; `hold_out` makes one."""


def open_source(path: str | Path, split: str | None = None, channels: int | None = None) -> Source:
    """The source that a path holds: IDX files (Fashion-MNIST's layout), a folder with splits, or a plain folder.

    split: "train", "test", or None for the training part where there are parts and everything otherwise. A folder
        has parts when it has the sub-folder `train` and one of `val` and `test` (the first of these counts).
    channels: what every picture is converted to; None takes the files' own (1) for IDX and 3 for folders.

    Raises UserError when the path, the split or a readable picture is missing.
    """
    if split not in (None, "train", "test"):
        raise ValueError(f"split must be 'train', 'test' or None, not {split!r}.")
    root = Path(path)
    if any((root / _idx_name(prefix, "images")).exists() for prefix in IDX_PREFIX.values()):
        return idx_source(root, split or "train", channels)
    folders = {
        part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in SPLIT_FOLDERS.items()
    }
    if None not in folders.values():
        return FolderSource(folders[split or "train"] or root, channels or 3)
    if split == "test":
        raise NoTestPart(f"{root} has no test part: make the sub-folders train and val, or hold pictures out of it.")
    return FolderSource(root, channels or 3)


def idx_source(root: Path, split: str = "train", channels: int | None = None) -> ArraySource:
    """One split of a folder of gzipped IDX files: `{train,t10k}-images-idx3-ubyte.gz` and `-labels-idx1-ubyte.gz`.

    With `channels` above 1 the grey values are repeated. Classes are named by the lines of `classes.txt` where there
    is one, and by their numbers otherwise. Raises UserError when a file is missing or damaged.
    """
    images = torch.from_numpy(read_idx(root / _idx_name(IDX_PREFIX[split], "images")))[:, None]
    labels = read_idx(root / _idx_name(IDX_PREFIX[split], "labels")).tolist()
    if len(images) != len(labels) or not labels:
        raise UserError(f"{root} holds {len(images)} {split} pictures but {len(labels)} labels; fetch it again.")
    names = root / CLASSES_FILE
    classes = names.read_text().split("\n")[:-1] if names.exists() else [str(n) for n in range(max(labels) + 1)]
    return ArraySource(images.expand(-1, channels or 1, -1, -1), labels, classes, name=f"{root.name}/{split}")


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file; raises UserError when it is missing or damaged."""
    try:
        with gzip.open(path) as file:
            data = file.read()
        dimensions = data[3]
        shape = struct.unpack_from(f">{dimensions}I", data, 4)
        if data[:3] != b"\0\0\x08":
            raise ValueError("it does not start like an IDX file of bytes")
        return np.frombuffer(bytearray(data), np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, IndexError, struct.error, ValueError) as error:
        raise UserError(f"{path} cannot be read as a gzipped IDX file ({error}); fetch the data again.") from error


def _idx_name(prefix: str, content: str) -> str:
    return f"{prefix}-images-idx3-ubyte.gz" if content == "images" else f"{prefix}-labels-idx1-ubyte.gz"
