"""Ids of words, and what was measured of them, written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from mmssl.data.vocabulary import Vocabulary, tokenizer_beside
from mmssl.objectives.figures import Cell
from mmssl.report.page import Piece

WORDS = "words.json"
Spelling = Callable[[Sequence[int], bool], str]
"""Some ids in a row as a text, with special tokens or without."""


def spelling(model: Path) -> Spelling:
    """By the tokenizer beside a model (see `tokenizer_beside`); without one, or without `tokenizers`, the numbers."""
    found = tokenizer_beside(model)
    try:
        tokenizer = None if found is None else Vocabulary.read(found).tokenizer()
    except ImportError:
        tokenizer = None
    return numbers if tokenizer is None else lambda ids, special: tokenizer.decode(ids, skip_special_tokens=not special)


def numbers(ids: Sequence[int], special: bool = True) -> str:
    """The ids themselves, of which nothing tells the special ones."""
    return " ".join(map(str, ids))


def pieces(cell: Cell, spelt: Spelling, special: bool = True) -> list[Piece]:
    """A cell as texts: words that stand together are spelt together, so that their parts join. special: see `Table`."""
    found: list[Piece] = []
    for marked, run in groupby(cell, lambda each: None if isinstance(each, str) else each.marked):
        if marked is None:
            found += [(each, False) for each in run if isinstance(each, str)]
        else:
            ids = [each.id for each in run if not isinstance(each, str)]
            found.append((spelt(ids, special).strip(), marked))
    return found


def words_told(found: Mapping[str, Any]) -> list[str]:
    """What `mmssl.commands.words.evaluate_words` measured, a sentence each, and a line for each class of texts."""
    counts, guess = found["all"], found["guess"]
    lines = [
        f"masked accuracy: {counts['accuracy']:.1%} of {counts['hidden']} hidden words, {counts['guess']:.1%} by "
        f"always saying {guess!r}"
    ]
    if "pseudo_perplexity" in found:
        lines.append(f"pseudo-perplexity of {found['texts']} texts: {found['pseudo_perplexity']:.4g}")
    return lines + [
        f"  {name}: {each['accuracy']:.1%} of {each['hidden']}, {each['guess']:.1%} by {guess!r}"
        for name, each in found["by_class"].items()
    ]
