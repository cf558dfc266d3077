"""What lies under a root: files at any depth, or those that a manifest lists, and which folders mean a part."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmssl.errors import UserError

# Folders that mean a part, best first: `val` counts before `test`, as in timm, where a folder has both.
_PARTS = {
    "train": (("train", "training"), ("trainval",)),
    "test": (
        ("val", "valid", "validate", "validation", "dev", "eval", "evaluation", "holdout", "heldout"),
        ("test", "tests", "testing"),
    ),
}
_RANKS = {word: (part, rank) for part, ranks in _PARTS.items() for rank, words in enumerate(ranks) for word in words}
_NAME = re.compile(rf"({'|'.join(_RANKS)})(set|data|images|imgs|split|\d{{3,4}})?")
_UNLABELLED = ("unlabeled", "unlabelled")
_UNLABELLED_CELLS = (None, "")
_LISTED = 6
MANIFESTS = (".csv", ".jsonl")
# The name of a class, or of several.
Label = str | tuple[str, ...]


class NoTestPart(UserError):
    """The data has no test part of its own; `hold_out` makes one."""


class Parts(NamedTuple):
    """The first-level folders of a root by name: that of the training part, that of the test part, and all."""

    train: str | None
    test: str | None
    folders: list[str]


def part_meant(folder: str) -> Literal["train", "test"] | None:
    """The part that a folder's name means, in any case and with the usual ends: `Train`, `train2017`, `test_set`."""
    ranked = _ranked(folder)
    return None if ranked is None else ranked[0]


def no_class(folder: str) -> bool:
    """Whether a folder's name cannot be a class's: it means a part, or what has no class."""
    return _ranked(folder) is not None or _plain(folder) in _UNLABELLED


def parts(root: Path) -> Parts:
    """The parts of a folder, empty for a file; UserError when two folders mean one part equally well."""
    with_hidden = sorted(entry.name for entry in os.scandir(root) if _is_folder(entry)) if root.is_dir() else []
    return parts_named(root, [name for name in with_hidden if not name.startswith(".")])


def parts_named(root: Path, names: list[str]) -> Parts:
    """Which of some names in `root`, ascending, mean its parts; UserError when two mean one equally well."""
    train, test = (_best(root, part, names) for part in _PARTS)
    return Parts(train, test, names)


def _best(root: Path, part: str, folders: Sequence[str]) -> str | None:
    ranked = [(found[1], name) for name in folders if (found := _ranked(name)) and found[0] == part]
    best = [name for rank, name in ranked if rank == min(ranked)[0]]
    if len(best) > 1:
        raise UserError(
            f"{root} has the folders {best[0]} and {best[1]}, which both mean its {part} part: rename or move one of "
            "them."
        )
    return best[0] if best else None


def part_of(root: Path, split: str | None) -> Path:
    """The sub-folder that is one split of a folder, or the folder itself (see `open_source`).

    Raises NoTestPart when the test part is asked for and there is none, UserError when it cannot be told which
    folder is meant.
    """
    checked(split)
    found = parts(root)
    if split == "test":
        if found.test is None:
            raise NoTestPart(f"{root} has no test part: make the sub-folders train and val, or hold samples out of it.")
        return root / found.test
    if found.train is None:
        return root
    part, others = root / found.train, [name for name in found.folders if not no_class(name)]
    if found.test is None and others and not any(map(_is_folder, list(os.scandir(part)))):
        raise UserError(
            f"{root} has the folder {found.train} beside {listed(others)}: give {part} if it is the training part, or "
            "rename it if it is a class."
        )
    return part


def part_told(root: Path, part: Path, split: str | None) -> list[str]:
    """What a person is told of `part_of`'s choice: nothing where the folder itself was taken."""
    if part == root or not root.is_dir():
        return []
    found = parts(root)
    read = (found.train, found.test) if split else (part.name,)
    unread = [name for name in found.folders if name not in read and (found.train or part_meant(name))]
    taken = f"{root}: the {part_meant(part.name)} part is {part.name}"
    return [f"{taken}, not read: {listed(unread)}" if unread else taken]


def checked(split: str | None) -> Literal["train", "test"] | None:
    """A split's name as it is; ValueError when there is none such."""
    if split not in (None, "train", "test"):
        raise ValueError(f"split must be 'train', 'test' or None, not {split!r}.")
    return split  # type: ignore[return-value]


def walk(root: Path) -> tuple[list[str], list[str]]:
    """(files, folders that cannot be opened) by their paths relative to `root`, sorted, hidden ones left out.

    Links are followed, two to one folder both; only those that lead back to a folder above themselves are not.
    """
    files, refused = [], []
    waiting = [("", frozenset[tuple[int, int]]())]
    while waiting:
        relative, above = waiting.pop()
        folder = root / relative
        try:
            state = folder.stat()
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError:
            refused.append(relative)
            continue
        here = (state.st_dev, state.st_ino)
        if here in above:
            continue
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            if _is_folder(entry):
                waiting.append((path, above | {here}))
            else:
                files.append(path)
    return sorted(files), sorted(refused)


def cache_folder(purpose: str) -> Path:
    """The folder of what is kept for one purpose: `mmssl/PURPOSE` of $XDG_CACHE_HOME or ~/.cache. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmssl" / purpose


def is_manifest(root: Path) -> bool:
    return root.suffix.lower() in MANIFESTS and root.is_file()


def read_manifest(path: Path, kind: str, label: str | None = None) -> tuple[list[str], list[Label] | None]:
    """(paths, labels) of a .csv or .jsonl file of some `kind` of files, labels None where no row has one.

    label: the key of the class; `label` where None, or if no row has that, `labels`. A label is a class's name, or a
    tuple of several: where a .jsonl file has lists, and under the key `labels`, whose text is parted at each `;`, or
    where no row has such, at each `,`. An empty list says that a file has none of the classes.

    Raises UserError when it is not such, or some rows have labels and others none.
    """
    rows = rows_of(path)
    if any("path" not in row for row in rows):
        raise UserError(f'The manifest {path} has rows without "path"; name each {kind}\'s file there.')
    paths = [str(row["path"]) for row in rows]
    return paths, labels_of(path, kind, paths, rows, label)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a .csv file with a header, or the objects of a .jsonl file; UserError when it is not such."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            if path.suffix.lower() == ".csv":
                return list(csv.DictReader(file))
            return [dict(json.loads(line)) for line in file if line.strip()]
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"The manifest {path} cannot be read ({error}); mend it.") from error


def class_folders(paths: Sequence[str]) -> list[Label | None]:
    """The first-level folder of each path as its class; None where it lies in none, or in one that cannot be."""
    tops = [top_folder(path) for path in paths]
    return [None if top is None or no_class(top) else top for top in tops]


def check_unnamed(root: Path, label: str | None) -> None:
    """Raises UserError where `label` names the class of files whose folders are their classes."""
    if label is not None:
        raise UserError(f"The classes of {root} are its folders; {label!r} names those of manifests and shards.")


def top_folder(path: str) -> str | None:
    """The first-level folder that a path lies in."""
    return path.split("/", 1)[0] if "/" in path else None


def label_keys(label: str | None) -> tuple[str, ...]:
    """What a manifest may call the class, the first one first."""
    return (label,) if label else ("label", "labels")


def labels_of(
    path: Path, kind: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], label: str | None = None
) -> list[Label] | None:
    """The labels of a manifest's rows, of files of these names, as `read_manifest` has them."""
    if not names:
        raise UserError(f"The manifest {path} lists no {kind}.")
    keys = label_keys(label)
    key = next((key for key in keys if any(row.get(key) not in _UNLABELLED_CELLS for row in rows)), keys[0])
    given = [row.get(key) for row in rows]
    bare = [name for name, label in zip(names, given, strict=True) if label in _UNLABELLED_CELLS]
    if len(bare) == len(names):
        if label is not None:
            raise UserError(f"No row of the manifest {path} has a {label!r}.")
        return None
    if bare:
        raise UserError(
            f"The manifest {path} labels {len(names) - len(bare)} of its {len(names)} {kind}s, {bare[0]} is the first "
            "without; label all or none."
        )
    if key != "labels" and not any(isinstance(label, list) for label in given):
        return [str(label) for label in given]
    mark = ";" if any(isinstance(label, str) and ";" in label for label in given) else ","
    parted = [label if isinstance(label, list) else str(label).split(mark) for label in given]
    return [tuple(name for each in names if (name := str(each).strip())) for names in parted]


def endings(paths: Sequence[str]) -> str:
    """How many files end in what, the most frequent first: "10 .txt, 2 .heic"."""
    counts = Counter(os.path.splitext(path)[1].lower() or "without an ending" for path in paths)
    return listed([f"{count} {ending}" for ending, count in sorted(counts.items(), key=lambda item: (-item[1], item))])


def listed(names: Sequence[str]) -> str:
    """The first of some names, for a sentence."""
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _ranked(folder: str) -> tuple[Literal["train", "test"], int] | None:
    match = _NAME.fullmatch(_plain(folder))
    return None if match is None else _RANKS[match[1]]  # type: ignore[return-value]


def _plain(folder: str) -> str:
    return re.sub(r"[\W_]+", "", folder.lower())
