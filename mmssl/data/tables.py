"""Manifests of pairs: the rows of .csv, .tsv and .jsonl files, and of .parquet files, which may hold the pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from mmssl.data.decode import BrokenSample
from mmssl.data.documents import quiet
from mmssl.data.folders import Label, NoTestPart, cache_folder, label_keys, labels_of, parts_named
from mmssl.errors import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
# What columns are called where nobody says how: open_clip's names first.
PICTURES = ("filepath", "path", "file_name", "image", "jpg", "png")
CAPTIONS = ("title", "caption", "captions", "text", "txt")
_PROBES = 1000
# What stands in a row of a manifest, or why it is none.
Row = dict[str, Any] | str


class Table:
    """The pairs of a manifest, or of several .parquet files that lie below `root`.

    image, caption: the columns of the picture, a path relative to the manifest or, in .parquet, the file itself as
        `datasets` keeps it, and of the caption, or a list of several; the first of `PICTURES` and `CAPTIONS` that is
        there unless given. label: the column of the class (see `read_manifest`).

    .csv and .tsv have a header, and tabs between columns where that has one, else commas. `names` are the pictures'
    paths, or the manifest's name and the row's line; `captions` what stands there; `labels` as in `labels_of`, None for
    what is no pair; `broken` says why some are none, by their numbers.

    Raises UserError for what cannot be read, no rows, and a column that is not there.
    """

    def __init__(
        self, root: Path, paths: Sequence[Path], image: str | None, caption: str | None, label: str | None
    ) -> None:
        self.paths, path = paths, paths[0]
        self._pictures: Dataset | None = None
        self.names: list[str] = []
        self.captions: list[Any] = []
        self.broken: dict[int, str] = {}
        lines: Iterable[tuple[str, Row]]
        if path.suffix.lower() == ".parquet":
            fields, lines = self._of_parquet(root, paths, image, caption, label)
        else:
            fields, lines = _of_text(root, path)
        picture, told = _columns(path, fields, image, caption, label)
        rows: list[dict[str, Any]] = []
        for number, (place, row) in enumerate(lines):
            content = {} if isinstance(row, str) else row
            name = str(content.get(picture) or "")
            if isinstance(row, str):
                self.broken[number] = row
            elif self._pictures is None and not name:
                self.broken[number] = "has no picture"
            self.names.append(name or place)
            self.captions.append(content.get(told))
            rows.append({key: content[key] for key in label_keys(label) if key in content})
        whole = [number for number in range(len(rows)) if number not in self.broken]
        found = labels_of(path, "pair", [self.names[n] for n in whole], [rows[n] for n in whole], label)
        self.labels: list[Label | None] | None = None
        if found is not None:
            by_number = dict(zip(whole, found, strict=True))
            self.labels = [by_number.get(number) for number in range(len(rows))]

    def _of_parquet(
        self, root: Path, paths: Sequence[Path], image: str | None, caption: str | None, label: str | None
    ) -> tuple[list[str], list[tuple[str, Row]]]:
        """(all columns, the rows without the pictures' bytes, with their places); keeps the bytes mapped into memory,
        in `mmssl/parquet` of $XDG_CACHE_HOME or ~/.cache."""
        from datasets import ClassLabel, Dataset
        from datasets.exceptions import DatasetGenerationError
        from pyarrow import ArrowInvalid, types
        from pyarrow.parquet import ParquetFile

        places: list[str] = []
        for path in paths:
            try:
                with ParquetFile(path) as file:
                    schema, count = file.schema_arrow, file.metadata.num_rows
            except (ArrowInvalid, OSError) as error:
                raise UserError(f"The manifest {path} cannot be read ({error}); mend it.") from error
            picture, told = _columns(path, schema.names, image, caption, label)
            places += [f"{path.relative_to(root)}:{row}" for row in range(1, count + 1)]
        if not places:
            raise UserError(f"The manifest {paths[0]} lists no pair.")
        plain = list(dict.fromkeys(name for name in (told, *label_keys(label)) if name in schema.names))
        columns, files = list(dict.fromkeys([picture, *plain])), [str(path) for path in paths]
        with quiet():
            try:
                read = Dataset.from_parquet(files, columns=columns, cache_dir=str(cache_folder("parquet")))
            except DatasetGenerationError as error:
                raise UserError(f"{root} cannot be read as .parquet ({error.__cause__ or error}); mend it.") from error
        dataset = read.with_format("arrow")
        by_path = types.is_string(schema.field(picture).type) or types.is_large_string(schema.field(picture).type)
        if not by_path:
            self._pictures, self._picture = dataset.select_columns([picture]), picture
        rows = dataset.select_columns([*([picture] if by_path else []), *plain])[:].to_pylist()
        for name in label_keys(label):
            if isinstance(kind := read.features.get(name), ClassLabel):
                for row in rows:
                    row[name] = None if row[name] in (None, -1) else kind.int2str(row[name])
        return schema.names, list(zip(places, rows, strict=True))

    @property
    def holds_pictures(self) -> bool:
        """Whether the pictures' files are in it, and not only their paths."""
        return self._pictures is not None

    def picture(self, index: int) -> bytes | str:
        """The picture's file of row `index`, or its path; raises BrokenSample where there is none."""
        if self._pictures is None:
            return self.names[index]
        held = self._pictures[index][self._picture][0].as_py()
        held = held if isinstance(held, dict) else {"bytes": held}
        if found := held.get("bytes") or held.get("path"):
            return found
        raise BrokenSample("has no picture")


def _of_text(root: Path, path: Path) -> tuple[list[str], Iterator[tuple[str, Row]]]:
    """(columns, the rows with their places); UserError where the first thousand are none."""
    lines = _lines(path)
    first = list(islice(lines, _PROBES))
    fields = list(dict.fromkeys(name for _, row in first if isinstance(row, dict) for name in row))
    if not fields:
        wrong = f", and the first line {first[0][1]}" if first else ""
        raise UserError(f"The manifest {path} lists no pair{wrong}.")
    return fields, ((f"{path.relative_to(root)}:{line}", row) for line, row in chain(first, lines))


def _columns(
    path: Path, fields: Sequence[str], image: str | None, caption: str | None, label: str | None
) -> tuple[str, str]:
    """The columns of the pictures and the captions; UserError where one that is meant is not there."""
    where = f"The manifest {path}"
    if label is not None:
        field_meant(where, fields, label, (), "classes", "--label")
    return (
        field_meant(where, fields, image, PICTURES, "pictures", "--image-key"),
        field_meant(where, fields, caption, CAPTIONS, "captions", "--caption-key"),
    )


def field_meant(
    where: str, fields: Sequence[str], given: str | None, usual: Sequence[str], what: str, flag: str
) -> str:
    """The field of `where` that is `given`, or the first of the usual ones; UserError, which names those there are."""
    if given is None:
        found = next((name for name in usual if name in fields), None)
        if found is not None:
            return found
        raise UserError(
            f"{where} has none of {', '.join(usual)}, which are the usual names of {what}: name the one that is meant "
            f"by {flag}, of {', '.join(fields)}."
        )
    if given not in fields:
        raise UserError(f"{where} has no {given!r} but {', '.join(fields)}: {nearest(given, list(fields))}")
    return given


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    try:
        # bytes that are not UTF-8 break their row alone
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _objects(file) if path.suffix.lower() == ".jsonl" else _fields(file)
    except (OSError, csv.Error) as error:
        raise UserError(f"The manifest {path} cannot be read ({error}); mend it.") from error


def _fields(file: TextIO) -> Iterator[tuple[int, Row]]:
    header = file.readline()
    file.seek(0)
    reader = csv.DictReader(file, delimiter="\t" if "\t" in header else ",")
    for row in reader:
        yield reader.line_num, "has more fields than the header" if None in row else row


def _objects(file: TextIO) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"is no JSON ({error})"
                continue
            yield number, content if isinstance(content, dict) else "is no JSON object"


def parquet_files(root: Path, part: Literal["train", "test"] | None) -> list[Path]:
    """The .parquet files of a folder, or of `data` in it, as data sets lie on Hugging Face's hub; none where there are
    none.

    part: of files whose names begin with a part's, `train-00000-of-00002.parquet`, those of this one are taken, as
    `open_source` takes folders; NoTestPart where the test part is asked for, and there is none.
    """
    files = sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))
    names = {file: file.stem.partition("-")[0] for file in files}
    found = parts_named(root, sorted(set(names.values())))
    if files and part == "test" and found.test is None:
        raise NoTestPart(f"{root} has no test part: name its files test-*.parquet, or hold samples out of it.")
    chosen = found.test if part == "test" else found.train
    return [file for file in files if chosen is None or names[file] == chosen]
