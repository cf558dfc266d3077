"""WebDataset's tar shards as an indexed source: where every member lies, learned once, and each read by itself.

A sample is the members of one key, `0001.png` and `0001.json`: any source of single files (pictures, sounds) takes its
own kind of member for the sample and its label from another one. Nothing is unpacked and no order is imposed: the
loader asks for samples by number, as of a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from mmssl.data.decode import BrokenSample
from mmssl.data.folders import Label, cache_folder, endings, listed, walk
from mmssl.errors import UserError, as_text, nearest

SHARD = ".tar"
_END = 1024  # two blocks


class Members(NamedTuple):
    """The regular files of one tar, in their order: where each begins and its size, in bytes."""

    names: list[str]
    offsets: Int64[np.ndarray, " members"]
    sizes: Int64[np.ndarray, " members"]


class Place(NamedTuple):
    """Where a member lies: its tar, and in bytes its offset there and its size."""

    tar: str
    offset: int
    size: int


class Shards:
    """The samples of one kind in the tar files `tars`, paths below `folder`: in their order, then that of the members.

    extensions: what members of the kind end in, in any case; of several with one key the first counts.
    label: the key of the class in each sample's JSON; None takes the text of its member `.cls`, where there are such.
    beside: endings of members that belong to the samples, by what they are called here: {".txt": (".txt",)}.

    `paths` are the samples' members, `shard.tar/member`, and `places` where these lie; `labels` their classes by name,
    several each where the JSON has lists, None where no sample has any; `beside` where each sample's member of these
    endings lies, the last of several, and `alone` a member of each key that has such alone; `notes` say what was left
    out, and which tar is cut short. The tars' indices are kept, by path, size and time, in the folder `mmssl/shards` of
    $XDG_CACHE_HOME or ~/.cache, where that can be written.

    Raises UserError for a file that is no plain tar, tars without such members, and a label that no sample has, or that
    is neither a value nor a list of them.
    """

    def __init__(
        self,
        folder: Path,
        tars: Sequence[str],
        kind: str,
        extensions: Sequence[str],
        label: str | None = None,
        beside: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        self.folder, description = folder, ".cls" if label is None else ".json"
        called = {ending: name for name, endings in beside.items() for ending in endings}
        fields = {**called, description: called.get(description, description)}
        indices = [members_of(folder / tar) for tar in tars]
        self.paths: list[str] = []
        self.alone: list[str] = []
        self.beside: dict[str, list[Place | None]] = {name: [] for name in beside}
        self.places: list[Place] = []
        self.notes: list[str] = []
        given: list[Place | None] = []
        others: list[str] = []
        for tar, index in zip(tars, indices):
            places = [Place(tar, *place) for place in zip(index.offsets.tolist(), index.sizes.tolist())]
            described: dict[str, dict[str, Place]] = {field: {} for field in fields.values()}
            for name, place in zip(index.names, places):
                if (field := fields.get(_ending(name))) is not None:
                    described[field][_key(name)] = place
            taken = set()
            for name, place in zip(index.names, places):
                if not name.lower().endswith(tuple(extensions)) or (key := _key(name)) in taken:
                    others.append(name)
                    continue
                taken.add(key)
                self.paths.append(f"{tar}/{name}")
                self.places.append(place)
                given.append(described[fields[description]].get(key))
                for field, found in self.beside.items():
                    found.append(described[field].get(key))
            for name in index.names:
                if _ending(name) in called and (key := _key(name)) not in taken:
                    taken.add(key)
                    self.alone.append(f"{tar}/{name}")
        if not self.paths:
            has = f" (they have {endings(others)})" if others else ""
            raise UserError(
                f"No shard in {folder} holds a {kind}, of {len(tars)}; {kind}s end in {', '.join(extensions[:8])}{has}."
            )
        if unused := [name for name in others if not name.endswith((".json", ".cls", *called))]:
            self.notes.append(as_text(f"{folder}: left out {len(unused)} members: {endings(unused)}"))
        if cut := [tar for tar in tars if not _ends(folder / tar)]:
            self.notes.append(as_text(f"{folder}: cut short, what came last may be missing: {listed(cut)}"))
        self.labels = self._labels(given, label)

    @contextmanager
    def opened(self, index: int) -> Iterator[BytesIO]:
        """The member of sample `index`; raises BrokenSample when its shard has no such bytes."""
        yield BytesIO(self.content(self.places[index]))

    def content(self, place: Place) -> bytes:
        """The bytes of a member; raises BrokenSample when its shard has no such."""
        try:
            descriptor = os.open(self.folder / place.tar, os.O_RDONLY)
            try:
                data = os.pread(descriptor, place.size, place.offset)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BrokenSample(f"cannot be opened ({error.strerror or type(error).__name__})") from error
        if len(data) < place.size:
            raise BrokenSample(f"is cut short: its shard ends after {len(data)} of {place.size} bytes")
        return data

    def _labels(self, given: Sequence[Place | None], label: str | None) -> Sequence[Label | None] | None:
        texts = [None if place is None else self._text(place) for place in given]
        if label is not None:
            wheres = [place.tar if place else "" for place in given]
            return classes_in_json(texts, label, f"the shards of {self.folder}", wheres)
        labels = [(text or b"").decode(errors="ignore").strip() or None for text in texts]
        return labels if any(labels) else None

    def _text(self, place: Place) -> bytes | None:
        try:
            return self.content(place)
        except BrokenSample:
            return None


def classes_in_json(texts: Iterable[bytes | None], label: str, where: str, places: Sequence[str]) -> list[Label | None]:
    """The class, or the classes, that each JSON has under the key `label`; None where it cannot be read or has none.

    where, places: what holds them all, and each, for the UserError about a key that none has, or that has neither a
    value nor a list of them.
    """
    keys: set[str] = set()
    labels: list[Label | None] = []
    for text, place in zip(texts, places, strict=True):
        content = object_in(text)
        keys.update(content)
        value = content.get(label)
        if isinstance(value, list) and not any(isinstance(name, (list, dict)) for name in value):
            labels.append(tuple(str(name) for name in value))
        elif isinstance(value, (list, dict)):
            raise UserError(f"{label!r} is {value!r} in {place}: name a key that has a class or a list of them.")
        else:
            labels.append(None if value in (None, "") else str(value))
    if any(name is not None for name in labels):
        return labels
    raise UserError(
        f"No sample in {where} has {label!r} in its JSON: "
        + (nearest(label, sorted(keys)) if keys else "there is none to be read beside them.")
    )


def object_in(text: bytes | None) -> dict[str, Any]:
    """The JSON object of a text, empty for all that is none."""
    try:
        content = json.loads(text or b"")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _ends(path: Path) -> bool:
    """Whether a tar has the zeros that end it."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END))
        return not any(file.read())


def in_shards(root: Path) -> bool:
    """Whether a path is a shard, or a folder of nothing else."""
    if root.is_dir():
        files, _ = walk(root)
        return bool(files) and all(path.lower().endswith(SHARD) for path in files)
    return root.suffix.lower() == SHARD and root.is_file()


def members_of(path: Path) -> Members:
    """The members of a tar, from the cache where it knows this one; UserError when it is no plain tar.

    Of a tar that is cut short, those whose headers are there.
    """
    state = path.stat()
    mark = f"{path.absolute()}\0{state.st_size}\0{state.st_mtime_ns}".encode("utf-8", "surrogateescape")
    kept = cache_folder("shards") / f"{hashlib.blake2b(mark, digest_size=16).hexdigest()}.npz"
    # whatever is wrong with what was kept, it is made anew
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile), np.load(kept) as arrays:
        names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]
        return Members(names, arrays["offsets"], arrays["sizes"])
    members = _scan(path)
    with suppress(OSError):
        _keep(kept, members)
    return members


def _scan(path: Path) -> Members:
    found = []
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar, suppress(tarfile.ReadError):
            for member in tar:
                if member.isreg() and not member.issparse() and not PurePosixPath(member.name).name.startswith("."):
                    found.append((member.name, member.offset_data, member.size))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a plain tar ({error}); unpack or repack it.") from error
    offsets, sizes = (np.array([member[k] for member in found], np.int64) for k in (1, 2))
    return Members([member[0] for member in found], offsets, sizes)


def _keep(path: Path, members: Members) -> None:
    """Written aside and renamed: other processes may be at it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name}\0" for name in members.names).encode("utf-8", "surrogateescape")
    handle, aside = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as file:
        np.savez(file, names=np.frombuffer(text, np.uint8), offsets=members.offsets, sizes=members.sizes)
    os.replace(aside, path)


def _key(name: str) -> str:
    """What a sample's members have in common: the path up to the first dot of the file's name."""
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _ending(name: str) -> str:
    """The rest of it, with the dot."""
    _, dot, rest = PurePosixPath(name).name.partition(".")
    return dot + rest.lower()
