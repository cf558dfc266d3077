"""The documents of text files: .txt, .jsonl, .csv and .parquet, plain or gzipped, read by Hugging Face `datasets`.

`datasets` writes what it reads as Arrow and maps it into memory, so that files may be larger than that.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mmssl.data.folders import cache_folder, endings
from mmssl.data.source import FileSource
from mmssl.errors import UserError, as_text

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Table

KINDS = (".txt", ".jsonl", ".csv", ".parquet")
_PROBES = 1000
# Stands for bytes that are not UTF-8: no character, and never to be interchanged (Unicode, section 23.7).
_NO_CHARACTER = "\uffff"
_REPLACED = "mmssl.no_character"
codecs.register_error(_REPLACED, lambda error: (_NO_CHARACTER, error.end))  # type: ignore[attr-defined]


class Document(NamedTuple):
    """A text, the number of its file among those read, of its line or row there, from 1, and its class."""

    file: int
    line: int
    text: str
    label: str | None


class Row(NamedTuple):
    """What a line or row of a file holds: a text and its class, or why there is none. Both None: nothing."""

    line: int
    text: str | None = None
    label: str | None = None
    wrong: str | None = None


class TextFiles(FileSource):
    """The text files of one kind in a folder, at any depth in the order of their paths, or one file.

    field: what .jsonl, .csv and .parquet call the text. label: what they call the class, if it is wanted.
    document: of .txt a document is a "line", or a "paragraph", lines that blank ones divide from others.

    Raises UserError when there is no such file, when a folder holds several kinds, and for a class of .txt.
    """

    kind = "text"
    extensions = tuple(f"{kind}{zipped}" for kind in KINDS for zipped in ("", ".gz"))
    in_shards = False
    class_folders = False

    def __init__(
        self,
        root: str | Path,
        *,
        field: str = "text",
        label: str | None = None,
        document: Literal["line", "paragraph"] = "line",
    ) -> None:
        self.given = root = Path(root)
        self.field, self.label, self.document = field, label, document
        if root.is_file() and not root.name.lower().endswith(self.extensions):
            raise UserError(f"{root} is no text: those end in {', '.join(KINDS)}, plain or with .gz behind.")
        folder, paths = (root.parent, [root.name]) if root.is_file() else (root, self.find(root)[0])
        if len({_kind(path) for path in paths}) > 1:
            several = endings([path.lower().removesuffix(".gz") for path in paths])
            raise UserError(f"{root} mixes kinds of texts, {several}: give a folder of one kind, or one file.")
        if label is not None and _kind(paths[0]) == ".txt":
            raise UserError(f"{root} has no {label!r}: those in .txt files have no classes.")
        super().__init__(folder, paths, None, channels=1)

    def documents(self, skipped: list[tuple[str, str]]) -> Iterator[Document]:
        """Every document, in order; what is none is entered in `skipped`, by its place with the reason, and blank lines
        are passed over.

        Raises UserError for a file that cannot be read at all, or that has no such field.
        """
        for number, name in enumerate(self.paths):
            path, told = self.root / name, as_text(name)
            with _scratch() as scratch, quiet():
                plain = _unzipped(path, scratch)
                if not plain.stat().st_size:
                    skipped.append((told, "is empty"))
                    continue
                for row in self._rows(plain, path, scratch):
                    if row.wrong is not None:
                        skipped.append((f"{told}:{row.line}", row.wrong))
                    elif row.text is not None and row.text.strip():
                        yield Document(number, row.line, row.text, row.label)

    def _rows(self, plain: Path, path: Path, scratch: Path) -> Iterator[Row]:
        """The rows of the file `path`, unzipped at `plain`."""
        from datasets.exceptions import DatasetGenerationError

        kind = _kind(path.name)
        read = {".txt": self._of_lines, ".jsonl": self._of_objects, ".csv": self._of_csv, ".parquet": self._of_parquet}
        try:
            yield from read[kind](plain, path, str(scratch))
        except DatasetGenerationError as error:
            raise UserError(
                f"{path} cannot be read as {kind} ({error.__cause__ or error}); mend or remove it."
            ) from error

    def _of_lines(self, plain: Path, path: Path, scratch: str) -> Iterator[Row]:
        kept: list[Row] = []  # the lines of a paragraph
        for row in _lines(plain, scratch):
            if row.wrong is not None or self.document == "line":
                yield row
            elif row.text and row.text.strip():
                kept.append(row)
            elif kept:
                yield _joined(kept)
                kept = []
        if kept:
            yield _joined(kept)

    def _of_objects(self, plain: Path, path: Path, scratch: str) -> Iterator[Row]:
        fields: set[str] = set()
        for number, row in enumerate(_lines(plain, scratch)):
            if number == _PROBES:
                self._check_fields(path, fields)
            if row.text is None or not row.text.strip():
                yield row
                continue
            try:
                content = json.loads(row.text)
            except (ValueError, RecursionError) as error:
                yield Row(row.line, wrong=f"is no JSON ({error})")
                continue
            if not isinstance(content, dict):
                yield Row(row.line, wrong="is no JSON object")
                continue
            if number < _PROBES:
                fields.update(content)
            yield self._checked(row.line, content.get(self.field), content.get(self.label) if self.label else None)
        self._check_fields(path, fields)

    def _of_csv(self, plain: Path, path: Path, scratch: str) -> Iterator[Row]:
        import pandas
        from datasets import Dataset, Features, Value

        options: dict[str, Any] = {"encoding_errors": _REPLACED, "keep_default_na": False, "skip_blank_lines": False}
        try:
            header = pandas.read_csv(plain, nrows=0, **options).columns
        except (ValueError, pandas.errors.ParserError) as error:
            raise UserError(f"{path} cannot be read as .csv ({error}); mend or remove it.") from error
        columns = self._check_fields(path, set(map(str, header)))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            features = Features({name: Value("string") for name in columns})
            options |= {"features": features, "cache_dir": scratch, "on_bad_lines": "warn"}
            tables = _tables(lambda: Dataset.from_csv(str(plain), **options))
        said = "\n".join(str(warning.message) for warning in told)
        wrong = {int(line): reason for line, reason in re.findall(r"Skipping line (\d+): (.*)", said)}
        yield from (Row(line, wrong=f"is no row of its table ({reason})") for line, reason in wrong.items())
        yield from self._of_tables(tables, (line for line in count(2) if line not in wrong))  # below the header

    def _of_parquet(self, plain: Path, path: Path, scratch: str) -> Iterator[Row]:
        from datasets import Dataset
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_schema

        try:
            names = read_schema(plain).names
        except (ArrowInvalid, OSError) as error:
            raise UserError(f"{path} cannot be read as .parquet ({error}); mend or remove it.") from error
        columns = self._check_fields(path, set(names))
        options: dict[str, Any] = {"columns": columns, "cache_dir": scratch, "batch_size": _PROBES}
        tables = _tables(lambda: Dataset.from_parquet(str(plain), **options))
        yield from self._of_tables(tables, count(1))

    def _of_tables(self, tables: Iterator[Table], lines: Iterator[int]) -> Iterator[Row]:
        for table in tables:
            labels = table[self.label] if self.label else [None] * len(table)
            for text, label in zip(table[self.field], labels, strict=True):
                yield self._checked(next(lines), text.as_py(), label.as_py() if label is not None else None)

    def _checked(self, line: int, text: object, label: object) -> Row:
        if text is None:
            return Row(line, wrong=f"has no {self.field!r}")
        if not isinstance(text, str):
            return Row(line, wrong=f"has a {self.field!r} that is no text but {text!r:.40}")
        if _NO_CHARACTER in text:
            return Row(line, wrong="is not UTF-8")
        try:
            text.encode()
        except UnicodeEncodeError:
            return Row(line, wrong="holds half a character (a lone surrogate)")
        return Row(line, text, None if label in (None, "") else str(label))

    def _check_fields(self, path: Path, fields: set[str]) -> list[str]:
        """The fields that are wanted; UserError, which names those there are, when one is not."""
        wanted = [self.field, *([self.label] if self.label else [])]
        for name in wanted:
            if name not in fields:
                has = f"only {', '.join(map(repr, sorted(fields)))}" if fields else "nor any other field"
                raise UserError(f"{path} has no field {name!r}, {has}: name the one that is meant.")
        return wanted


def _kind(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix


def _lines(plain: Path, scratch: str) -> Iterator[Row]:
    from datasets import Dataset

    options: dict[str, Any] = {"encoding": "utf-8-sig", "encoding_errors": _REPLACED, "cache_dir": scratch}
    tables = _tables(lambda: Dataset.from_text(str(plain), **options))
    for line, value in enumerate(chain.from_iterable(table["text"] for table in tables), 1):
        text = value.as_py()
        yield Row(line, wrong="is not UTF-8") if _NO_CHARACTER in text else Row(line, text)


def _tables(read: Callable[[], Dataset]) -> Iterator[Table]:
    """What is read now, in parts; nothing where there are no rows, for which `datasets` has an error."""
    try:
        dataset = read()
    except ValueError as error:
        if "no data" not in str(error):
            raise
        return iter(())
    return dataset.with_format("arrow").iter(batch_size=_PROBES)


def _joined(lines: list[Row]) -> Row:
    return Row(lines[0].line, "\n".join(line.text or "" for line in lines))


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for one file's Arrow, beside what is kept: large files fit there."""
    place = cache_folder("text")
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix="reading-") as name:
        yield Path(name)


def _unzipped(path: Path, scratch: Path) -> Path:
    """The file itself, or what was gzipped: `datasets` takes a changed .gz for the one it has unzipped before."""
    if not path.name.lower().endswith(".gz"):
        return path
    plain = scratch / f"plain{_kind(path.name)}"
    try:
        with gzip.open(path) as zipped, open(plain, "wb") as file:
            shutil.copyfileobj(zipped, file, 2**20)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unzipped ({error}); mend or remove it.") from error
    return plain


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no log of `datasets`, which repeats the errors that it raises."""
    import datasets

    bars, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            datasets.enable_progress_bars()
