"""What is shown of methods that predict words: guesses for hidden words, and which words lie near each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F

from mmssl.masking import Mask, Positions
from mmssl.objectives.figures import Cell, Figure, Table, Token

NOT_WANTED = -100
"""What stands in `text.target` where no word is wanted."""
_HEADING = "What it predicts"
_GUESSES = ("first guess", "second", "third", "fourth", "fifth")
_HIDDEN, _AROUND = 3, 10  # hidden words of a text, and words to either side of one
_ASKED = 8  # words whose neighbours are told


def word_figures(
    read: Int64[Tensor, "batch positions"],
    mask: Mask,
    wanted: Int64[Tensor, " hidden"],
    scores: Float[Tensor, "hidden words"] | None,
    table: Float[Tensor, "words dim"],
    special: Collection[int],
) -> list[Figure]:
    """What `predicted_words` and `near_words` show, the latter of the hidden words; nothing where none is hidden."""
    if scores is None or not len(wanted):
        return []
    return [predicted_words(read, mask, wanted, scores), near_words(table, wanted, special)]


def predicted_words(
    read: Int64[Tensor, "batch positions"],
    mask: Mask,
    wanted: Int64[Tensor, " hidden"],
    scores: Float[Tensor, "hidden words"],
) -> Figure:
    """The first hidden words of each text, one a row: the text around it as the model reads it, the word itself, and
    the five likeliest with their probabilities.

    read: the ids that the model reads. wanted, scores: the hidden words and the model's scores of all, in the order of
    `mask.hide`.
    """
    hide, lengths = mask.hide.flat(), mask.keep.flat().lengths
    assert hide.rows is not None and lengths is not None
    best = scores.float().softmax(dim=1).topk(min(len(_GUESSES), scores.shape[1]), dim=1)
    told: Counter[int] = Counter()
    rows: list[tuple[Cell, ...]] = []
    for number, (text, place) in enumerate(zip(hide.rows.tolist(), hide.index.tolist(), strict=True)):
        told[text] += 1
        if told[text] > _HIDDEN:
            continue
        first, last = max(0, place - _AROUND), min(int(lengths[text]), place + _AROUND + 1)
        words = (Token(word, at == place) for at, word in enumerate(read[text, first:last].tolist(), first))
        around: Cell = (*["…"] * (first > 0), *words, *["…"] * (last < int(lengths[text])))
        word = int(wanted[number])
        shares = zip(best.indices[number].tolist(), best.values[number].tolist(), strict=True)
        rows.append((around, (Token(word),), *((Token(each, each == word), f"{p:.0%}") for each, p in shares)))
    head = ("a text, as it is read", "hidden", *_GUESSES[: best.indices.shape[1]])
    caption = (
        "Held-out texts with hidden words, one a row and marked where it was, the likeliest words in its place with "
        "their probabilities, and the right one marked among them."
    )
    return Figure("words", _HEADING, caption, table=Table(head, tuple(rows)))


def restored_words(
    text: Int64[Tensor, "batch positions"],
    read: Positions,
    hide: Positions,
    scores: Float[Tensor, "hidden words"],
) -> Table:
    """Each text as the model reads it, which does without the hidden words, then with its likeliest word in the place
    of each, the right ones marked, and then as it is.

    read, hide: positions that are read and hidden, the latter in the order of `scores`.
    """
    guessed = text.index_put((hide.rows, hide.index), scores.argmax(dim=1))
    hidden, there = hide.boolean(text.shape[1]), read.boolean(text.shape[1])
    rows: list[tuple[Cell, ...]] = []
    for words, guesses, gone, seen in zip(*(each.tolist() for each in (text, guessed, hidden, there)), strict=True):
        places = [place for place in range(len(words)) if gone[place] or seen[place]]
        rows.append(
            (
                tuple("_" if gone[place] else Token(words[place]) for place in places),
                tuple(Token(guesses[place], gone[place] and guesses[place] == words[place]) for place in places),
                tuple(Token(words[place]) for place in places),
            )
        )
    return Table(("what it sees", "what it predicts", "the text"), tuple(rows))


def near_words(table: Float[Tensor, "words dim"], asked: Int64[Tensor, " some"], special: Collection[int]) -> Figure:
    """A few of the words that are asked for, each with the five that are nearest to it in the table of words, by
    cosine similarity; none of them special."""
    few = [word for word in dict.fromkeys(asked.tolist()) if word not in special][:_ASKED]
    unit = F.normalize(table.float(), dim=1)
    nearness = unit[few] @ unit.T
    nearness[:, list(special)] = -torch.inf
    nearness[range(len(few)), few] = -torch.inf
    count = min(len(_GUESSES), max(0, len(table) - len(set(special)) - 1))
    near = nearness.topk(count, dim=1)
    rows: list[tuple[Cell, ...]] = []
    for word, ids, cosines in zip(few, near.indices.tolist(), near.values.tolist(), strict=True):
        rows.append(((Token(word),), *((Token(each), f"{s:.2f}") for each, s in zip(ids, cosines, strict=True))))
    head = ("word", *(("nearest", *_GUESSES[1:])[:count]))
    caption = "Words and those nearest to them in the model's table of words, with the cosine between the two."
    return Figure("neighbours", _HEADING, caption, table=Table(head, tuple(rows)))
