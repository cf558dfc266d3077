"""Where samples come from: a folder of files, arrays in memory, or a part of another source."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from mmssl.data.decode import BrokenSample, decode, opened
from mmssl.data.views import Keys
from mmssl.errors import UserError
from mmssl.masking.noise import permutation

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


@runtime_checkable
class DrawnSource(Source, Protocol):
    """A source whose sample is another one in each slot (clips of a video), as the noise's keys say."""

    @property
    def sampling(self) -> str:
        """What decides on the samples beside the keys; a resumed run must find it unchanged."""
        ...

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        """One sample for each of the slots that `keys` describes, all made of `index`, which is opened once.

        The file is read in the call, which raises BrokenSample; what is iterated then is whole.
        """
        ...


def read_slots(source: Source, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
    """Sample `index` for each of the slots of `keys`, read once; raises BrokenSample with the reason."""
    if isinstance(source, DrawnSource):
        return source.draw(index, keys)
    return repeat(source.read(index), len(keys.sample_id))


class FileSource:
    """Files under one root by their relative paths, with labels (one int a file) or None: what such sources share.

    A kind of file adds `kind`, `extensions` and `read`.
    """

    kind: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]

    def __init__(self, root: Path, paths: list[str], labels: Sequence[str] | None, channels: int) -> None:
        """labels: each file's class by name; the classes are numbered in the order of their names."""
        self.root, self.paths, self.channels = root, paths, channels
        self.classes = sorted(set(labels or ()))
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = None if labels is None else [number[name] for name in labels]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError

    @classmethod
    def find(cls, root: Path) -> tuple[list[str], list[str] | None]:
        """(paths, labels) of the files of this kind in a folder; UserError when there are none.

        When all lie in at least two first-level folders, these are the labels; otherwise labels is None.
        """
        if not root.is_dir():
            problem = "is a file, not a folder" if root.exists() else "does not exist"
            raise UserError(f"{root} {problem}; give a folder of {cls.kind}s.")
        files = sorted(_walk(root))
        paths = [path for path in files if path.lower().endswith(cls.extensions)]
        if not paths:
            holds = f"has files but no {cls.kind}" if files else "is empty"
            raise UserError(f"The folder {root} {holds}; {cls.kind}s end in {', '.join(cls.extensions)}.")
        tops = [path.split("/", 1)[0] for path in paths if "/" in path]
        return paths, tops if len(tops) == len(paths) and len(set(tops)) > 1 else None

    def find_one_readable(self) -> None:
        """Raises UserError when none of the first files can be read."""
        reasons = []
        for index in range(min(len(self), _PROBES)):
            try:
                self.read(index)
                return
            except BrokenSample as error:
                reasons.append(error.reason)
        raise UserError(
            f"{self.root} holds no readable {self.kind}: {len(reasons)} of {len(self)} files were tried, "
            f"and the first, {self.name(0)}, {reasons[0]}."
        )


class FolderSource(FileSource):
    """Every picture under a folder, at any depth, in the order of their relative paths.

    Files are taken by extension (JPEG, PNG, WebP, TIFF, .npy, any case) and decoded by content, see `decode`; hidden
    files and folders are left out. When all pictures lie in at least two first-level folders, these are the classes
    and `labels` are numbered in the classes' order; otherwise `labels` is None and `classes` is empty.

    Raises UserError when the folder is missing, or holds no picture, or none that can be read.
    """

    kind = "picture"
    extensions = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".npy")

    def __init__(self, root: str | Path, channels: int = 3) -> None:
        root = Path(root)
        super().__init__(root, *self.find(root), channels)
        self.find_one_readable()

    def read(self, index: int) -> dict[str, Tensor]:
        with opened(self.root / self.paths[index]) as file:
            return {"image": decode(file, self.channels)}


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

    @property
    def sampling(self) -> str:
        return self.source.sampling if isinstance(self.source, DrawnSource) else ""

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        return read_slots(self.source, self.indices[index], keys)


def subset(source: Source, indices: Sequence[int]) -> Subset:
    """The samples at `indices` as a source of their own."""
    return Subset(source, indices)


def hold_out(source: Source, fraction: float, seed: int = 0) -> tuple[Subset, Subset]:
    """(the rest, the held-out part): a random `fraction` of the samples, at least one, the same for the same seed.

    Raises UserError when one of the two parts would be empty.
    """
    count = max(1, round(fraction * len(source)))
    if not 0 < fraction < 1 or count >= len(source):
        raise UserError(
            f"Holding out {fraction} of {len(source)} samples leaves one part empty; "
            "add samples, or make two parts of them (train and val)."
        )
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
    root = Path(path)
    if any((root / _idx_name(prefix, "images")).exists() for prefix in IDX_PREFIX.values()):
        return idx_source(root, _checked(split) or "train", channels)
    return FolderSource(part_of(root, split), channels or 3)


def part_of(root: Path, split: str | None) -> Path:
    """The sub-folder that is one split of a folder (see `open_source`), or the folder itself when it has no parts.

    Raises NoTestPart when the test part is asked for and there is none.
    """
    _checked(split)
    folders = {
        part: next((root / n for n in names if (root / n).is_dir()), None) for part, names in SPLIT_FOLDERS.items()
    }
    if None not in folders.values():
        return folders[split or "train"] or root
    if split == "test":
        raise NoTestPart(f"{root} has no test part: make the sub-folders train and val, or hold samples out of it.")
    return root


def _checked(split: str | None) -> str | None:
    if split not in (None, "train", "test"):
        raise ValueError(f"split must be 'train', 'test' or None, not {split!r}.")
    return split


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
