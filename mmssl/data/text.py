"""Texts: rows of tokens packed from documents of any length, and the view that makes batches of them.

`open_texts(data, tokenizer, "train", packing="full", length=512)` gives rows, `TextView(512)` batches with `text`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmssl.data.corpus import encoded, kept
from mmssl.data.documents import TextFiles
from mmssl.data.folders import part_of
from mmssl.data.loader import Ledger
from mmssl.data.packing import SHORTEST, Packing, Rows, packed
from mmssl.data.source import FileSource, told_of_part
from mmssl.data.views import Keys
from mmssl.data.vocabulary import Vocabulary
from mmssl.errors import UserError

# What stands behind the end of each kind of values: `text` is told by the view.
_PADDING = {"text.segment": 0, "text.words": -1}


class TextSource(FileSource):
    """Rows of tokens of the documents of .txt, .jsonl, .csv or .parquet files, plain or gzipped (`pip install datasets
    tokenizers`).

    root: a folder with files of one kind, or one file. tokenizer: a tokenizer.json of any origin, or a folder with one.
    packing: what makes a row of at most `length` tokens: "full", RoBERTa's full sentences, contiguous ones of as many
        documents as fit, with a separator between documents; "segment", BERT's two segments, the second of half of the
        rows from another document; "document", the beginning of each document.
    field, label, document: see `TextFiles`. A class needs rows that are documents.
    documents: the numbers of those to take, all unless given.
    dupe_factor: BERT packs its texts so many times; epoch e sees the copy e % dupe_factor. Copies may differ by a few
        rows: an epoch has as many as the largest, and what others lack is filled with their first ones. seed: of the
        segments.

    A sample is `text`, int64 [tokens], `[CLS] ... [SEP] ... [SEP]`; `text.words`, the number of the word each token is
    of, -1 for special ones; and of segments `text.segment`, 0 and 1, and `text.next`, 0 where the second follows the
    first, 1 where it is from another document.

    Documents are encoded once, and what is no document (bytes that are not UTF-8, JSON that is none, no text) is in
    `ledger`. Raises UserError where there is no document or no such field, see `TextFiles` and `Vocabulary.read`.
    """

    kind = TextFiles.kind

    def __init__(
        self,
        root: str | Path,
        tokenizer: str | Path | Vocabulary,
        *,
        packing: Packing = "full",
        length: int = 512,
        field: str = "text",
        label: str | None = None,
        document: Literal["line", "paragraph"] = "line",
        documents: Sequence[int] | None = None,
        dupe_factor: int = 1,
        seed: int = 0,
    ) -> None:
        if length < SHORTEST or dupe_factor < 1:
            raise UserError(
                f"Rows of texts have at least {SHORTEST} tokens and one copy, not length={length} and "
                f"dupe_factor={dupe_factor}."
            )
        if label is not None and packing != "document":
            raise UserError(f"A row has the class {label!r} where it is one document: take packing 'document'.")
        self.files = TextFiles(root, field=field, label=label, document=document)
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.read(tokenizer)
        _ = self.vocabulary.beginning  # a row needs it, and encoding takes long
        self.packing, self.length, self.seed = packing, length, seed
        self.corpus = encoded(self.files, self.vocabulary)
        self.chosen = np.arange(len(self.corpus)) if documents is None else np.array(documents, np.int64)
        super().__init__(self.files.root, self.files.paths, None, self.vocabulary.size)
        self.given, self.notes = self.files.given, [*self.files.notes, *self.corpus.notes]
        self.ledger = Ledger(len(self.chosen), self.corpus.skipped)
        if label is not None:
            self.classes, self.labels = self.corpus.classes, self.corpus.labels[self.chosen].tolist()
        # Only segments are drawn.
        copies = dupe_factor if packing == "segment" else 1
        self.copies = [_Kept(self._rows_folder(copy)) for copy in range(copies)]
        self._count = max(len(copy.rows) for copy in self.copies)

    def _rows_folder(self, copy: int) -> Path:
        of = hashlib.blake2b(self.chosen.tobytes(), digest_size=8)
        of.update(repr((self.packing, self.length, self.seed if self.packing == "segment" else 0, copy)).encode())
        make = partial(packed, self.corpus, self.chosen, self.packing, self.length, self.seed, copy)
        return kept(self.corpus.folder / f"rows-{of.hexdigest()}", lambda aside: make().save(aside))

    def __len__(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        """The file and the line of the document that row `index` of the first copy begins in."""
        rows, corpus = self.copies[0].rows, self.corpus
        token = rows.runs[rows.first[index % len(rows)], 0]
        sentence = np.searchsorted(corpus.sentences, token, side="right") - 1
        file, line = corpus.places[np.searchsorted(corpus.documents, sentence, side="right") - 1].tolist()
        return f"{self.files.name(file)}:{line}"

    @property
    def sampling(self) -> str:
        drawn = f", {len(self.copies)} copies of seed {self.seed}" if self.packing == "segment" else ""
        return f"{self.packing} of {self.length}{drawn}, {self.corpus.folder.name}"

    def read(self, index: int) -> dict[str, Tensor]:
        """Row `index` of the first copy."""
        return self._composed(self.copies[0].rows, index)

    def draw(self, index: int, keys: Keys) -> Iterator[dict[str, Tensor]]:
        """Row `index` of each slot's copy."""
        copies = (self.copies[epoch % len(self.copies)].rows for epoch in keys.epoch.tolist())
        return (self._composed(rows, index) for rows in copies)

    def _composed(self, rows: Rows, index: int) -> dict[str, Tensor]:
        index %= len(rows)
        runs = rows.runs[rows.first[index] : rows.first[index + 1]].tolist()
        text = np.empty(1 + sum(end - start + 1 for start, end in runs), np.int64)
        begins, segment = np.zeros(len(text), np.bool_), np.zeros(len(text), np.int64)
        text[0], at, framing = self.vocabulary.beginning, 1, [0]
        for number, (start, end) in enumerate(runs):
            stop = at + end - start
            text[at:stop], text[stop] = self.corpus.ids[start:end], self.vocabulary.sep
            begins[at:stop], begins[at] = self.corpus.begins[start:end], True
            segment[at : stop + 1] = number
            framing.append(stop)
            at = stop + 1
        words = begins.cumsum() - 1
        words[framing] = -1
        sample = {"text": torch.from_numpy(text), "text.words": torch.from_numpy(words)}
        if self.packing == "segment":
            sample |= {"text.segment": torch.from_numpy(segment), "text.next": torch.tensor(int(rows.other[index]))}
        return sample


class _Kept:
    """Rows as they lie in a folder, which are not copied into a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, Rows.load(folder)

    def __reduce__(self) -> tuple[type[_Kept], tuple[Path]]:
        return _Kept, (self.folder,)


@dataclass(frozen=True)
class TextView:
    """Rows of tokens as a batch: `text` int64 [B, length], `pad` behind the rows' ends, their lengths `text.length`
    int64 [B], and what else the samples hold, `text.words` with -1 and `text.segment` with 0 behind the ends.

    Raises UserError for a row that is longer than `length`.
    """

    length: int
    pad: int = 0

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        rows = list(samples)
        lengths = [len(row["text"]) for row in rows]
        if max(lengths) > self.length:
            raise UserError(f"A row of {max(lengths)} tokens does not fit into {self.length}: pack shorter ones.")
        batch: dict[str, Tensor] = {"text.length": torch.tensor(lengths)}
        filled = torch.arange(self.length) < batch["text.length"][:, None]
        for name, value in rows[0].items():
            values = [row[name] for row in rows]
            if value.ndim == 0:
                batch[name] = torch.stack(values)
            else:
                behind = torch.full((len(rows), self.length), _PADDING.get(name, self.pad))
                batch[name] = behind.masked_scatter_(filled, torch.cat(values))
        return batch


def open_texts(
    path: str | Path, tokenizer: str | Path | Vocabulary, split: str | None = None, **settings: Any
) -> TextSource:
    """The `split` of a folder of texts ("train", "test" or None, see `open_source`), or of one file, which has no
    parts; the rest as in TextSource."""
    return told_of_part(TextSource(part_of(Path(path), split), tokenizer, **settings), Path(path), split)
