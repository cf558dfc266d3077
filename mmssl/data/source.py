"""Where samples come from: a folder of files, arrays in memory, or a part of another source."""

from __future__ import annotations

import gzip
import math
import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from io import BufferedReader, BytesIO
from itertools import accumulate, repeat
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from mmssl.data.decode import ENDINGS, BrokenSample, colour, decode_over, opened
from mmssl.data.folders import (
    Label,
    check_unnamed,
    checked,
    class_folders,
    endings,
    is_manifest,
    listed,
    part_meant,
    part_of,
    part_told,
    parts,
    read_manifest,
    top_folder,
    walk,
)
from mmssl.data.labels import multi_hot, rarest
from mmssl.data.shards import SHARD, Place, Shards
from mmssl.data.views import Keys
from mmssl.errors import UserError, as_text
from mmssl.masking.noise import permutation, uniform

IDX_PREFIX = {"train": "train", "test": "t10k"}
CLASSES_FILE = "classes.txt"
_PROBES = 100
_NAMED_ENDINGS = 8


@runtime_checkable
class Source(Protocol):
    """A fixed, ordered set of samples; a sample's number is its `sample_id`. A label is the number of its class among
    `classes`, or -1 for a sample that has none where others have."""

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
    # isinstance of a protocol asks for all that it names, which takes longer than a short text
    if (draw := getattr(source, "draw", None)) is not None:
        return draw(index, keys)
    return repeat(source.read(index), len(keys.sample_id))


def shares(stream: str, count: int, spread: int, keys: Keys) -> Float64[np.ndarray, "slots count"]:
    """`count` numbers in [0, 1) a slot: the noise's, or the middle of the draw-th of `spread` equal parts."""
    seed, sample_id, epoch, draw = keys
    if spread:
        return (((draw % spread).double() + 0.5) / spread)[:, None].expand(-1, count).numpy()
    return uniform(count, seed=seed, stream=stream, sample_id=sample_id, epoch=epoch, draw=draw).double().numpy()


class FileSource:
    """Files under one root by their relative paths, with labels (one int a file) or None: what such sources share.

    Where files have several labels each, `label_sets` holds the numbers of each file's classes and `labels` is None.

    A kind of file adds `kind`, `extensions` and `read`, and says whether it is read from tar shards, too, whether
    folders are its classes, and what files `beside` its own belong to them. `notes` are sentences on what was taken and
    what left out; `given` is the folder, manifest or shard that was asked for.
    """

    kind: ClassVar[str]
    extensions: ClassVar[tuple[str, ...]]
    in_shards: ClassVar[bool] = True
    class_folders: ClassVar[bool] = True
    beside: ClassVar[tuple[str, ...]] = ()
    given: Path
    texts: Sequence[str] = ()
    notes: Sequence[str] = ()
    shards: Shards | None = None

    def __init__(self, root: Path, paths: list[str], labels: Sequence[Label | None] | None, channels: int) -> None:
        """labels: each file's class by name, None for one without, or several each; the classes are numbered in their
        names' order."""
        self.root, self.paths, self.channels = root, paths, channels
        several = any(isinstance(label, tuple) for label in labels or ())
        names = [[as_text(name) for name in _names(label)] for label in labels or ()]
        self.classes = sorted({name for each in names for name in each})
        number = {name: label for label, name in enumerate(self.classes)}
        numbers = [tuple(number[name] for name in each) for each in names]
        self.label_sets = numbers if several else None
        self.labels = None if several or labels is None else [each[0] if each else -1 for each in numbers]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return as_text(self.paths[index])

    def opened(self, index: int) -> AbstractContextManager[BufferedReader | BytesIO]:
        """Sample `index`'s file, open for reading; whatever the operating system refuses then raises BrokenSample."""
        return self.shards.opened(index) if self.shards else opened(self.root / self.paths[index])

    def content(self, place: Place | str) -> bytes:
        """The bytes of a member of the shards, or of a file by its path below the root; raises BrokenSample where they
        cannot be read."""
        if isinstance(place, Place):
            assert self.shards is not None
            return self.shards.content(place)
        with opened(self.root / place) as file:
            return file.read()

    def read(self, index: int) -> dict[str, Tensor]:
        raise NotImplementedError

    @property
    def read_from(self) -> list[Path]:
        """The files that the samples are read from, in their order: a shard once."""
        paths = dict.fromkeys(place.tar for place in self.shards.places) if self.shards else self.paths
        return [self.root / path for path in paths]

    def located(self, root: Path, label: str | None = None) -> tuple[Path, list[str], Sequence[Label | None] | None]:
        """(folder, paths below it, labels) of the files of this kind: those that a manifest lists, or a tar shard or a
        folder holds (see `find`).

        label: what a manifest, or the JSON of a sample in shards, calls the class; in manifests `label` or `labels`
        unless given (see `read_manifest`).
        """
        self.given = root
        if is_manifest(root):
            return root.parent, *read_manifest(root, self.kind, label)
        if self.in_shards and root.suffix.lower() == SHARD and root.is_file():
            return root.parent, *self._sharded(root.parent, [root.name], label)
        return root, *self.find(root, label)

    def _sharded(
        self, folder: Path, tars: list[str], label: str | None
    ) -> tuple[list[str], Sequence[Label | None] | None]:
        self.shards = Shards(
            folder, tars, self.kind, self.extensions, label, {ending: (ending,) for ending in self.beside}
        )
        self.notes = self.shards.notes
        return self.shards.paths, self.shards.labels

    def find(self, root: Path, label: str | None = None) -> tuple[list[str], Sequence[Label | None] | None]:
        """(paths, labels) of the files of this kind in a folder, or in its tar shards where it has none itself.

        UserError when there are none. Sets `notes`, and `texts`, the files of a folder that lie beside its own.

        The first-level folders are the labels where there are at least two, names that mean a part (see `part_meant`)
        not counted; otherwise labels is None. A file that lies in no class folder has the label None.
        """
        if not root.is_dir():
            problem = "is a file, not a folder" if root.exists() else "does not exist"
            raise UserError(f"{root} {problem}; give a folder of {self.kind}s.")
        files, refused = walk(root)
        found = parts(root)
        apart = [] if found.train else [name for name in found.folders if part_meant(name)]
        inside = [path for path in files if top_folder(path) not in apart]
        paths = [path for path in inside if path.lower().endswith(self.extensions)]
        tars = [path for path in inside if path.lower().endswith(SHARD)]
        if not paths and tars and self.in_shards:
            return self._sharded(root, tars, label)
        if not paths:
            self._refuse(root, files, inside, apart)
        check_unnamed(root, label)
        labels = class_folders(paths) if self.class_folders else [None] * len(paths)
        labelled = len(set(labels) - {None}) > 1
        self.texts = [path for path in inside if path.lower().endswith(self.beside)]
        others = [path for path in inside if not path.lower().endswith((*self.extensions, *self.beside))]
        bare = sorted({top for top in map(top_folder, others) if top} - set(map(top_folder, paths)))
        astray = [path for path, label in zip(paths, labels, strict=True) if label is None] if labelled else []
        one = len(astray) == 1
        told = {
            f"left out, because the name means a part and no class: {listed(apart)}": apart,
            f"left out {len(others)} file{'s' * (len(others) > 1)}: {endings(others)}": others,
            f"no {self.kind} in {listed(bare)}": bare,
            f"{len(astray)} {self.kind}{'s' * (not one)} in no class folder, without a label: {listed(astray)}": astray,
            f"cannot be opened, and left out: {listed(refused)}": refused,
        }
        self.notes = [as_text(f"{root}: {note}") for note, what in told.items() if what]
        return paths, labels if labelled else None

    def _refuse(self, root: Path, files: list[str], inside: list[str], apart: list[str]) -> None:
        if len(inside) < len(files):
            raise UserError(
                f"The folder {root} holds no {self.kind} beside its test part; give {root / apart[0]} if that is meant."
            )
        holds = f"has files but no {self.kind}" if files else "is empty"
        known, more = ", ".join(self.extensions[:_NAMED_ENDINGS]), len(self.extensions) > _NAMED_ENDINGS
        has = f" (it has {endings(files)})" if files else ""
        raise UserError(f"The folder {root} {holds}; {self.kind}s end in {known}{' and others' * more}{has}.")

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
            f"{self.given} holds no readable {self.kind}: {len(reasons)} of {len(self)} files were tried, "
            f"and the first, {self.name(0)}, {reasons[0]}."
        )


F = TypeVar("F", bound=FileSource)


class FolderSource(FileSource):
    """Every picture under a folder, at any depth, in the order of their relative paths.

    Files are taken by their ending, in any case (those of Pillow's kinds of pictures, see `mmssl.data.decode.ENDINGS`,
    and .npy), and decoded by content on `background`, see `decode` and `colour`; hidden files and folders are left out.
    Where pictures lie in at least two first-level folders, these are the classes, numbered in the order of their names,
    and pictures elsewhere have the label -1; otherwise `labels` is None and `classes` is empty. Names that mean a part
    of the data (train, valid, Test ...) are never classes. `notes` say what was left out. Manifests (see `VideoSource`)
    and tar shards (see `Shards`) are read, too; `label` is what they call the class.

    `blended` are the numbers of the pictures, of those read so far in this process, where the background shows.

    Raises UserError when the folder is missing, or holds no picture, or none that can be read.
    """

    kind = "picture"
    extensions = (*ENDINGS, ".npy")

    def __init__(
        self, root: str | Path, channels: int = 3, background: str = "white", label: str | None = None
    ) -> None:
        self.background, self.blended = colour(background), set[int]()
        super().__init__(*self.located(Path(root), label), channels)
        self.find_one_readable()

    @property
    def sampling(self) -> str:
        return f"background={self.background}"

    def read(self, index: int) -> dict[str, Tensor]:
        with self.opened(index) as file:
            image, blended = decode_over(file, self.channels, self.background)
        if blended:
            self.blended.add(index)
        return {"image": image}


def _names(label: Label | None) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else () if label is None else (label,)


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
        sets = label_sets(source)
        self.label_sets = None if sets is None else [sets[index] for index in self.indices]
        self.classes = source.classes

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        return self.source.name(self.indices[index])

    def read(self, index: int) -> dict[str, Tensor]:
        return self.source.read(self.indices[index])

    @property
    def sampling(self) -> str:
        return getattr(self.source, "sampling", "")

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        return read_slots(self.source, self.indices[index], keys)


class JoinedSource:
    """The samples of several sources, which need not hold the same media, one source after the other.

    Labels are those of the first source; the samples of others have none. `ledger` is that of a source which has one,
    such as texts. Raises UserError without any source.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        if not sources:
            raise UserError("There is nothing to read: give at least one source.")
        first, self.sources = sources[0], list(sources)
        self.starts = list(accumulate((len(source) for source in sources), initial=0))
        self.channels, self.classes = first.channels, first.classes
        self.labels = None if first.labels is None else first.labels + [-1] * (len(self) - len(first))
        ledgers = [getattr(whole_of(source), "ledger", None) for source in sources]
        self.ledger = next((ledger for ledger in ledgers if ledger is not None), None)

    def __len__(self) -> int:
        return self.starts[-1]

    def place(self, index: int) -> tuple[Source, int]:
        """The source that sample `index` is of, and its number there."""
        number = bisect_right(self.starts, index) - 1
        return self.sources[number], index - self.starts[number]

    def name(self, index: int) -> str:
        source, own = self.place(index)
        return source.name(own)

    def read(self, index: int) -> dict[str, Tensor]:
        source, own = self.place(index)
        return source.read(own)

    @property
    def sampling(self) -> str:
        return "; ".join(getattr(source, "sampling", "") for source in self.sources)

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        return read_slots(*self.place(index), keys)


def label_sets(source: Source) -> list[tuple[int, ...]] | None:
    """The numbers of each sample's classes, where samples have several labels each; None otherwise."""
    return getattr(source, "label_sets", None)


def subset(source: Source, indices: Sequence[int]) -> Subset:
    """The samples at `indices` as a source of their own."""
    return Subset(source, indices)


def redrawn(part: Subset, source: Source) -> Subset:
    """The same samples, under the same class numbers, out of `source`, which has the files of what `part` is taken from
    and draws its samples otherwise."""
    indices, whole = part.indices, part.source
    while isinstance(whole, Subset):
        indices, whole = [whole.indices[index] for index in indices], whole.source
    again = subset(source, indices)
    again.labels, again.label_sets, again.classes = part.labels, part.label_sets, part.classes
    return again


def notes(*sources: Source) -> list[str]:
    """What a person should be told of how these sources were found, each sentence once."""
    whole = [whole_of(part) for source in sources for part in _parts(source)]
    return list(dict.fromkeys(note for source in whole if isinstance(source, FileSource) for note in source.notes))


def _parts(source: Source) -> list[Source]:
    return source.sources if isinstance(source, JoinedSource) else [source]


def whole_of(source: Source) -> Source:
    """What a subset, of subsets, is taken from; others themselves."""
    return whole_of(source.source) if isinstance(source, Subset) else source


def blended(source: Source, index: int) -> bool:
    """Whether sample `index` was read, in this process, and is a picture where the background shows."""
    if isinstance(source, Subset):
        return blended(source.source, source.indices[index])
    if isinstance(source, JoinedSource):
        return blended(*source.place(index))
    return isinstance(source, FolderSource) and index in source.blended


def blending_told(count: int) -> list[str]:
    """What a person is told of so many blended pictures."""
    are = "1 picture has" if count == 1 else f"{count} pictures have"
    return [f"{are} transparent parts, which show the background (--background, white unless said)"] if count else []


def hold_out(source: Source, fraction: float, seed: int = 0, stratify: bool = True) -> tuple[Subset, Subset]:
    """(the rest, the held-out part): a random `fraction` of the samples, at least one, the same for the same seed.

    Where there are labels, the fraction is taken of each class unless `stratify` is False: at least one sample is held
    out and at least one stays, and a class of one sample stays whole. (Few samples a class make the held-out part
    larger than the fraction. Where every class has one sample, nothing can be stratified.) Of several labels the rarest
    of a sample counts, and samples stay whose classes would otherwise be in the held-out part alone.

    Raises UserError when one of the two parts would be empty.
    """
    count = max(1, round(fraction * len(source)))
    if not 0 < fraction < 1 or count >= len(source):
        raise UserError(
            f"Holding out {fraction} of {len(source)} samples leaves one part empty; "
            "add samples, or make two parts of them (train and val)."
        )
    order = permutation(len(source), seed=seed, stream="hold-out").tolist()
    held = order[:count]
    sets = label_sets(source)
    groups = source.labels if sets is None else rarest(multi_hot(sets, len(source.classes))).tolist()
    if stratify and groups is not None:
        members: dict[int, list[int]] = {}
        for index in order:
            members.setdefault(groups[index], []).append(index)
        taken = _shares({label: len(members[label]) for label in sorted(members)}, fraction, count)
        held = [index for label, some in members.items() for index in some[: taken[label]]] or held
    apart = set(held)
    if sets is not None:
        stays = {label for index in order if index not in apart for label in sets[index]}
        for index in held:
            if not stays.issuperset(sets[index]):
                apart.remove(index)
                stays.update(sets[index])
    return subset(source, [index for index in range(len(source)) if index not in apart]), subset(source, sorted(apart))


def _shares(sizes: dict[int, int], fraction: float, count: int) -> dict[int, int]:
    """How many of each class are held out: `count` in all, rounded so that the largest remainders come first, but
    at least one of a class and never all."""
    taken = {label: min(max(1, math.floor(fraction * size)), size - 1) for label, size in sizes.items()}
    for label in sorted(sizes, key=lambda label: taken[label] - fraction * sizes[label]):
        if sum(taken.values()) < count and taken[label] < sizes[label] - 1:
            taken[label] += 1
    return taken


def told_of_part(source: F, root: Path, split: str | None) -> F:
    """`source`, whose notes now say which part of `root` it is."""
    source.notes = [*map(as_text, part_told(root, source.root, split)), *source.notes]
    return source


def open_source(
    path: str | Path,
    split: str | None = None,
    channels: int | None = None,
    background: str = "white",
    label: str | None = None,
) -> Source:
    """The source that a path holds: IDX files (Fashion-MNIST's layout), a folder with splits or a plain one, a manifest
    or tar shards.

    split: "train", "test", or None for the training part where there are parts and everything otherwise. Parts are
        first-level folders by their names, in any case: `train` or `training`, and of `val`, `valid`, `validation`,
        `dev`, `eval` and the like, else `test` or `testing`, the one that is there. (`train2017` and `test_set` are
        such names, too.) They are never classes. What lies beside both is not read. A folder with a test part and no
        training part is trained on whatever else it holds; one with a training part alone has no test part.
    channels: what every picture is converted to; None takes the files' own (1) for IDX and 3 for folders.
    background: what transparent parts of pictures show, see `colour`.
    label: what manifests, and the JSON of samples in shards, call the class.

    The source's `notes` say which part was taken and what was left out. Raises UserError when the path, the split or
    a readable picture is missing, when two folders mean one part, and when a flat `train`, beside other folders and no
    test part, may be a class.
    """
    root = Path(path)
    if any((root / _idx_name(prefix, "images")).exists() for prefix in IDX_PREFIX.values()):
        if label is not None:
            raise UserError(
                f"The classes of {root} are in its IDX files; {label!r} names those of manifests and shards."
            )
        return idx_source(root, checked(split) or "train", channels)
    return told_of_part(FolderSource(part_of(root, split), channels or 3, background, label), root, split)


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
