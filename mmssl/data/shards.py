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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from mmssl.data.decode import BrokenSample
from mmssl.data.folders import Label, cache_folder, endings
from mmssl.errors import UserError, as_text, nearest

SHARD = ".tar"


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

    `paths` are the samples' members, `shard.tar/member`; `labels` their classes by name, several each
    where the JSON has lists, None where no sample has any; `notes` say what was left out. The tars' indices are kept,
    by path, size and time, in the folder `mmssl/shards` of $XDG_CACHE_HOME or ~/.cache, where that can be written.

    Raises UserError for a file that is no plain tar, tars without such members, and a label that no sample has, or that
    is neither a value nor a list of them.
    """

    def __init__(
        self, folder: Path, tars: Sequence[str], kind: str, extensions: Sequence[str], label: str | None = None
    ) -> None:
        self.folder, description = folder, "cls" if label is None else "json"
        indices = [members_of(folder / tar) for tar in tars]
        self.paths: list[str] = []
        self._places: list[Place] = []
        self.notes: list[str] = []
        given: list[Place | None] = []
        others: list[str] = []
        for tar, index in zip(tars, indices):
            places = [Place(tar, *place) for place in zip(index.offsets.tolist(), index.sizes.tolist())]
            described = {_key(name): place for name, place in zip(index.names, places) if _ending(name) == description}
            taken = set()
            for name, place in zip(index.names, places):
                if not name.lower().endswith(tuple(extensions)) or (key := _key(name)) in taken:
                    others.append(name)
                    continue
                taken.add(key)
                self.paths.append(f"{tar}/{name}")
                self._places.append(place)
                given.append(described.get(key))
        if not self.paths:
            has = f" (they have {endings(others)})" if others else ""
            raise UserError(
                f"No shard in {folder} holds a {kind}, of {len(tars)}; {kind}s end in {', '.join(extensions[:8])}{has}."
            )
        if unused := [name for name in others if not name.endswith((".json", ".cls"))]:
            self.notes.append(as_text(f"{folder}: left out {len(unused)} members: {endings(unused)}"))
        self.labels = self._labels(given, label)

    @contextmanager
    def opened(self, index: int) -> Iterator[BytesIO]:
        """The member of sample `index`; raises BrokenSample when its shard has no such bytes."""
        yield BytesIO(self._bytes(self._places[index]))

    def _bytes(self, place: Place) -> bytes:
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

    def _labels(self, given: Sequence[Place | None], label: str | None) -> list[Label | None] | None:
        keys: set[str] = set()
        labels = [None if place is None else self._label(place, label, keys) for place in given]
        if any(name is not None for name in labels):
            return labels
        if label is None:
            return None
        raise UserError(
            f"No sample in the shards of {self.folder} has {label!r} in its JSON: "
            + (nearest(label, sorted(keys)) if keys else "there is none to be read beside them.")
        )

    def _label(self, place: Place, label: str | None, keys: set[str]) -> Label | None:
        """A sample's class, or several; None where its description cannot be read or has none. The JSON's keys join
        `keys`."""
        try:
            text = self._bytes(place).decode()
            if label is None:
                return text.strip() or None
            content = json.loads(text)
        except (BrokenSample, ValueError):
            return None
        if not isinstance(content, dict):
            return None
        keys.update(content)
        value = content.get(label)
        if isinstance(value, list) and not any(isinstance(name, (list, dict)) for name in value):
            return tuple(str(name) for name in value)
        if isinstance(value, (list, dict)):
            raise UserError(f"{label!r} is {value!r} in {place.tar}: name a key that has a class or a list of them.")
        return None if value in (None, "") else str(value)


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
    """The rest of it."""
    return PurePosixPath(name).name.partition(".")[2].lower()
