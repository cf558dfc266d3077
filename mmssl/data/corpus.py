"""Documents as tokens, encoded once and kept by the hash of all that they depend on, memory-mapped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock
from jaxtyping import Bool, Int32, Int64, Shaped

from mmssl.data.documents import Document, TextFiles
from mmssl.data.folders import cache_folder, listed
from mmssl.data.vocabulary import Vocabulary
from mmssl.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_FORMAT = 1
# Sentences end with their line, and after a full stop, where nothing but a reader could tell.
_STOP = re.compile(r"[.!?](?=\s)|[。！？]")
_LONGEST = 10_000  # characters of what is encoded at once
_AT_ONCE = 2**20  # characters
_REMARKABLE = 2**20  # characters of a document


class Corpus:
    """Encoded documents, as they lie in `folder`, which `encoded` writes and names by the hash of all they depend on.

    ids: uint16 or int32 [tokens], of all documents one behind the other, without special tokens of their own.
    begins: bool [tokens], where a word begins. sentences: int64 [sentences + 1], the token that each begins with, and
    the number of tokens. documents: int64 [documents + 1], the sentence that each begins with, and their number.
    places: int64 [documents, 2], file and line. labels: int64 [documents] among `classes`, -1 for none.
    skipped: what was no document, by its place, with the reason. longest: the places of documents of a million
    characters and more.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        about = json.loads((folder / "about.json").read_text())
        self.ids = np.asarray(np.memmap(folder / "ids", about["dtype"], "r"))
        self.begins = np.asarray(np.memmap(folder / "begins", np.bool_, "r"))
        names = ("sentences", "documents", "places", "labels")
        self.sentences, self.documents, self.places, self.labels = (mapped(folder / f"{name}.npy") for name in names)
        self.classes: list[str] = about["classes"]
        self.skipped: list[tuple[str, str]] = [(place, reason) for place, reason in about["skipped"]]
        self.longest: list[str] = about["longest"]

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.folder,)  # what is mapped is not copied into a worker

    def __len__(self) -> int:
        return len(self.documents) - 1

    @property
    def notes(self) -> list[str]:
        """What a person should be told of how the documents were read."""
        count, some = len(self.skipped), [f"{place} {reason}" for place, reason in self.skipped]
        told = {
            f"{count} line{'s' * (count > 1)} skipped, {len(self)} documents read: {listed(some)}": some,
            f"longer than a million characters: {listed(self.longest)}": self.longest,
        }
        return [note for note, what in told.items() if what]


def mapped(path: Path) -> Shaped[np.ndarray, ...]:
    """An array of a .npy file, memory-mapped."""
    return np.asarray(np.load(path, mmap_mode="r"))


def encoded(files: TextFiles, vocabulary: Vocabulary) -> Corpus:
    """The documents of `files` as tokens of `vocabulary`: those that were kept where no byte of them, no name and no
    setting has changed; made and kept otherwise, in `mmssl/text` of $XDG_CACHE_HOME or ~/.cache.

    Raises UserError where there is no document, and what `TextFiles.documents` raises.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (_FORMAT, vocabulary.digest, files.field, files.label, files.document):
        digest.update(f"{part}\0".encode())
    for name in files.paths:
        digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
        with open(files.root / name, "rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    folder = cache_folder("text") / digest.hexdigest()
    return Corpus(kept(folder, lambda aside: _encode(files, vocabulary, aside)))


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, once it is whole: `make` fills one beside it, which is renamed. Other processes wait for the first."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if not folder.is_dir():
            aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix="making-"))
            try:
                make(aside)
                os.replace(aside, folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return folder


def _encode(files: TextFiles, vocabulary: Vocabulary, folder: Path) -> None:
    skipped: list[tuple[str, str]] = []
    lengths: list[Int64[np.ndarray, " sentences"]] = []
    counts: list[int] = []
    places: list[tuple[int, int]] = []
    labels: list[str | None] = []
    longest: list[str] = []
    tokenizer = vocabulary.tokenizer()
    dtype = np.dtype(np.uint16 if vocabulary.size <= 2**16 else np.int32)
    special = np.array(sorted(vocabulary.special))
    with open(folder / "ids", "wb") as ids_file, open(folder / "begins", "wb") as begins_file:
        for some in _bundles(files.documents(skipped)):
            for document, (ids, begins, ends) in zip(some, _tokens(tokenizer, some), strict=True):
                place = f"{files.name(document.file)}:{document.line}"
                if np.isin(ids, special).all():
                    skipped.append((place, "holds nothing but special tokens"))
                    continue
                ids_file.write(ids.astype(dtype).tobytes())
                begins_file.write(begins.tobytes())
                lengths.append(ends)
                counts.append(len(ends))
                places.append((document.file, document.line))
                labels.append(document.label)
                if len(document.text) > _REMARKABLE:
                    longest.append(place)
    if not counts:
        first = f" and the first, {skipped[0][0]}, {skipped[0][1]}" if skipped else ""
        raise UserError(f"{files.given} holds no text to read: {len(skipped)} lines were tried{first}.")
    classes = sorted({label for label in labels if label is not None})
    number = {label: index for index, label in enumerate(classes)}
    arrays = {
        "sentences": np.concatenate([[0], np.cumsum(np.concatenate(lengths))]),
        "documents": np.cumsum([0, *counts]),
        "places": np.array(places),
        "labels": np.array([-1 if label is None else number[label] for label in labels]),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array.astype(np.int64))
    about: dict[str, Any] = {"dtype": dtype.name, "classes": classes, "skipped": skipped, "longest": longest}
    (folder / "about.json").write_text(json.dumps(about))


def _bundles(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents of about a million characters together."""
    some: list[Document] = []
    size = 0
    for document in documents:
        some.append(document)
        size += len(document.text)
        if size >= _AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


Encoded = tuple[Int32[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"], Int64[np.ndarray, " sentences"]]


def _tokens(tokenizer: Tokenizer, documents: list[Document]) -> Iterator[Encoded]:
    """Each document's ids, where its words begin, and the lengths of its sentences that have any token."""
    pieces = [sentences(document.text) for document in documents]
    flat, parts = list(chain.from_iterable(pieces)), []
    while flat:
        size = count = 0
        while count < len(flat) and size < _AT_ONCE:
            size, count = size + len(flat[count]), count + 1
        parts.append(_encoded_pieces(tokenizer, flat[:count]))
        del flat[:count]
    lengths = np.concatenate([part[2] for part in parts])
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids, begins = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
    first = 0
    for some in pieces:
        last = first + len(some)
        own = slice(bounds[first], bounds[last])
        sizes = lengths[first:last]
        yield ids[own], begins[own], sizes[sizes > 0]
        first = last


def _encoded_pieces(tokenizer: Tokenizer, pieces: list[str]) -> Encoded:
    encodings = tokenizer.encode_batch(pieces, add_special_tokens=False)
    lengths = np.array([len(encoding) for encoding in encodings], np.int64)
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, total)
    numbers = chain.from_iterable(encoding.word_ids for encoding in encodings)
    words = np.fromiter((-1 if number is None else number for number in numbers), np.int32, total)
    begins = np.ones(total, np.bool_)
    begins[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
    begins[(np.cumsum(lengths) - lengths)[lengths > 0]] = True
    return ids, begins, lengths


def sentences(text: str) -> list[str]:
    """What a text is made of, at most ten thousand characters each; the space before a sentence stays with it, because
    byte pairs read it, and only what is behind the last one is left out."""
    pieces: list[str] = []
    space = ""
    for number, line in enumerate(text.split("\n")):
        space += "\n" * (number > 0)
        if not line or line.isspace():
            space += line
            continue
        line, space = space + line, ""
        stops = [0, *(match.end() for match in _STOP.finditer(line)), len(line)]
        pieces += chain.from_iterable(_cut(line[first:last]) for first, last in pairwise(stops))
    return [piece for piece in pieces if piece and not piece.isspace()]


def _cut(sentence: str) -> Iterator[str]:
    """A sentence in parts that are not too long, cut before a space where there is one."""
    start = 0
    while len(sentence) - start > _LONGEST:
        space = sentence.rfind(" ", start + 1, start + _LONGEST)
        stop = space if space > 0 else start + _LONGEST
        yield sentence[start:stop]
        start = stop
    yield sentence[start:]
