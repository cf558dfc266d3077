"""How rows of tokens are packed from documents: BERT's pairs of segments, RoBERTa's full sentences, or one a document.

A row is a few runs of the corpus's tokens, `[CLS] run [SEP] run [SEP] ...`, so that nothing is copied, however rows are
packed, and a row is read as fast as its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64

from mmssl.data.corpus import Corpus, mapped
from mmssl.errors import UserError
from mmssl.masking.noise import random_bits

Packing = Literal["segment", "full", "document"]
SHORTEST = 5  # [CLS] a [SEP] b [SEP]
_BITS = 62  # of a number of the noise
_AT_ONCE = 2**16  # sentences or rows
_SHORT = 10  # of so many documents one is packed into shorter rows


class Rows(NamedTuple):
    """Packed rows: the runs [first[i], first[i + 1]) make row i.

    runs: int64 [runs, 2], first token and the one after the last. first: int64 [rows + 1]. other: int64 [rows], 0 where
    the second run follows the first, 1 where it is from another document; empty where rows are no pairs.
    """

    runs: Int64[np.ndarray, "runs 2"]
    first: Int64[np.ndarray, " bounds"]
    other: Int64[np.ndarray, " pairs"]

    def __len__(self) -> int:
        return len(self.first) - 1

    def save(self, folder: Path) -> None:
        for name, array in self._asdict().items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> Rows:
        """Memory-mapped."""
        return cls(*(mapped(folder / f"{name}.npy") for name in cls._fields))


class Sentences(NamedTuple):
    """The sentences of some documents: int64 [sentences], the first token of each and the one after its last; and int64
    [documents + 1], the sentence that each document begins with, and the number of all."""

    start: Int64[np.ndarray, " sentences"]
    end: Int64[np.ndarray, " sentences"]
    bounds: Int64[np.ndarray, " bounds"]

    @property
    def tokens(self) -> Int64[np.ndarray, " more"]:
        """How many tokens lie before each sentence, and last, how many there are."""
        return np.concatenate([[0], np.cumsum(self.end - self.start)])


def packed(
    corpus: Corpus, documents: Int64[np.ndarray, " chosen"], packing: Packing, length: int, seed: int, copy: int
) -> Rows:
    """The rows, of at most `length` tokens, of some of the corpus's documents, in that order.

    "segment": BERT's, see `_segments`. "full": RoBERTa's full sentences, as many as fit, one document behind the other,
    with a separator between them. "document": one row each, of which what is too long is cut off. Sentences that do not
    fit into a row are divided. seed, copy: of the noise that segments are drawn by. Raises UserError for segments of a
    single document.
    """
    if packing == "document":
        starts, ends = (corpus.sentences[corpus.documents[documents + k]] for k in (0, 1))
        runs = np.stack([starts, np.minimum(ends, starts + length - 2)], 1)
        return Rows(runs, np.arange(len(runs) + 1), np.zeros(0, np.int64))
    if packing == "full":
        return _full(_sentences(corpus, documents, length - 2), length)
    return _segments(_sentences(corpus, documents, length - 3), length - 3, seed, copy)


def _sentences(corpus: Corpus, documents: Int64[np.ndarray, " chosen"], longest: int) -> Sentences:
    """The sentences of some documents, divided where they have more than `longest` tokens."""
    first, last = (corpus.documents[documents + k] for k in (0, 1))
    bounds = np.concatenate([[0], np.cumsum(last - first)])
    chosen = np.arange(bounds[-1]) + np.repeat(first - bounds[:-1], last - first)
    start, end = corpus.sentences[chosen], corpus.sentences[chosen + 1]
    parts = -(-(end - start) // longest)
    before = np.concatenate([[0], np.cumsum(parts)])
    start = np.repeat(start, parts) + longest * (np.arange(before[-1]) - np.repeat(before[:-1], parts))
    return Sentences(start, np.minimum(start + longest, np.repeat(end, parts)), before[bounds])


def _full(sentences: Sentences, length: int) -> Rows:
    count, tokens = len(sentences.start), sentences.tokens
    ended = np.zeros(count + 1, np.int64)  # documents that end before each sentence
    ended[sentences.bounds[1:]] = 1
    ended = np.cumsum(ended)
    # A row of the sentences [p, q) has, beside its tokens, one that begins it, a separator for each document that ends
    # before sentence q - 1 does, and one at its end.
    reach, taken = tokens[1:] + ended[:-1], tokens + ended
    first = [0]
    while first[-1] < count:
        first.append(int(np.searchsorted(reach, taken[first[-1]] + length - 2, side="right")))
    cuts = np.union1d(np.array(first), sentences.bounds)
    runs = np.stack([sentences.start[cuts[:-1]], sentences.end[cuts[1:] - 1]], 1)
    return Rows(runs, np.searchsorted(cuts, first), np.zeros(0, np.int64))


def _segments(sentences: Sentences, room: int, seed: int, copy: int) -> Rows:
    """Pairs of segments as google-research/bert makes them (`create_instances_from_document`).

    A document's sentences are taken until they have `room` tokens (in one of ten documents a random number below it)
    and cut at a random sentence: the second part is the next segment, or, for half of the pairs and where there is one
    sentence alone, one from a random place of another document, and then the second part is taken again. What is too
    long is cut, a token at a time, off the longer segment's beginning or end.
    """
    start, end, bounds = sentences
    tokens, others = sentences.tokens, len(bounds) - 2
    if others < 1:
        raise UserError("Segments of other documents need a second one, and there is one alone: pack full sentences.")
    pairs: list[tuple[int, int, int, int, int]] = []

    def reached(first: int, size: int, stop: int) -> int:
        """The sentence before which there are `size` tokens from `first` on, or `stop`."""
        return min(max(int(np.searchsorted(tokens, tokens[first] + size)), first + 1), stop)

    for document, numbers in _numbers(bounds, seed, copy):
        begin, stop = bounds[document : document + 2].tolist()
        short, shorter = numbers[0, :2].tolist()
        size = 2 + shorter % (room - 1) if short % _SHORT == 0 else room
        at = begin
        while at < stop:
            cut, other, which, where = numbers[at - begin, 2:].tolist()
            chunk = reached(at, size, stop)
            middle = at + 1 + (cut % (chunk - at - 1) if chunk - at > 1 else 0)
            if chunk - at > 1 and other % 2 == 0:
                pairs.append((at, middle, middle, chunk, 0))
                at = chunk
                continue
            which = which % others
            low, high = bounds[which + (which >= document) :][:2].tolist()
            second = low + where % (high - low)
            wanted = size - int(tokens[middle] - tokens[at])
            pairs.append((at, middle, second, reached(second, wanted, high), 1))
            at = middle
    table = np.array(pairs)
    runs = np.stack([start[table[:, 0]], end[table[:, 1] - 1], start[table[:, 2]], end[table[:, 3] - 1]], 1)
    return Rows(_shortened(runs, room, seed, copy).reshape(-1, 2), np.arange(0, 2 * len(runs) + 1, 2), table[:, 4])


def _numbers(
    bounds: Int64[np.ndarray, " bounds"], seed: int, copy: int
) -> Iterator[tuple[int, Int64[np.ndarray, "sentences 6"]]]:
    """Each document with the noise of its sentences, int64 [sentences, 6]."""
    document = 0
    while document < len(bounds) - 1:
        last = max(int(np.searchsorted(bounds, bounds[document] + _AT_ONCE, side="right")) - 1, document + 1)
        some = torch.arange(int(bounds[document]), int(bounds[last]))
        numbers = random_bits(6, seed=seed, stream="segment", sample_id=some, epoch=copy).numpy()
        for each in range(document, last):
            yield each, numbers[bounds[each] - bounds[document] : bounds[each + 1] - bounds[document]]
        document = last


def _shortened(runs: Int64[np.ndarray, "rows 4"], room: int, seed: int, copy: int) -> Int64[np.ndarray, "rows 4"]:
    """Pairs of runs of `room` tokens at most: each token that is too much is taken from the longer one, the second
    where they are equal, from its beginning or its end."""
    sizes = runs[:, [1, 3]] - runs[:, [0, 2]]
    excess = np.maximum(sizes.sum(1) - room, 0)
    longer = sizes - sizes[:, ::-1]
    most = np.clip(longer, 0, excess[:, None])
    rest = excess - most.sum(1)
    lost = most + np.stack([rest // 2, rest - rest // 2], 1)
    for begin in range(0, len(runs), _AT_ONCE):
        some = np.flatnonzero(excess[begin : begin + _AT_ONCE]) + begin
        if not len(some):
            continue
        for side in (0, 1):
            front = _heads(lost[some, side], seed, f"shorten/{side}", some, copy)
            runs[some, 2 * side] += front
            runs[some, 2 * side + 1] -= lost[some, side] - front
    return runs


def _heads(
    tosses: Int64[np.ndarray, " some"], seed: int, stream: str, rows: Int64[np.ndarray, " some"], copy: int
) -> Int64[np.ndarray, " some"]:
    """How many of each row's tosses of a coin are heads."""
    words = -(-max(1, int(tosses.max())) // _BITS)
    bits = random_bits(words, seed=seed, stream=stream, sample_id=torch.from_numpy(rows), epoch=copy).numpy()
    left = np.clip(tosses[:, None] - _BITS * np.arange(words), 0, _BITS)
    return np.bitwise_count(bits & ((1 << left) - 1)).sum(1, dtype=np.int64)
