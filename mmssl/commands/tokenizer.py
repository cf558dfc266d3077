"""`mmssl tokenizer`: learn the words of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmssl.commands.features import say
from mmssl.data import BrokenSample, PairFiles
from mmssl.data.clip_tokenizer import clip_tokenizer
from mmssl.data.documents import TextFiles
from mmssl.data.folders import part_of
from mmssl.data.shards import in_shards
from mmssl.data.source import FileSource
from mmssl.data.vocabulary import Kind, save_tokenizer, train_tokenizer
from mmssl.errors import UserError


def learn_tokenizer(data: Path, kind: Kind, size: int, out: Path, field: str = "text", lowercase: bool = True) -> None:
    """Train a tokenizer on the texts of `data`, or of its training part, in tar shards on the captions of pictures,
    write it to the folder `out`, and say of how many documents it knows how many tokens. Lines that are no text are
    skipped, counted and listed.

    Raises UserError where there is no text, and for so few tokens that the characters alone are more.
    """
    skipped, count = list[tuple[str, str]](), 0
    files, read = _opened(part_of(data, None), field, skipped)

    def texts() -> Iterator[str]:
        nonlocal count
        for text in read:
            count += 1
            yield text

    try:
        trained = train_tokenizer(texts(), kind, size, lowercase=lowercase)
    except UserError:
        raise
    except Exception as error:  # tokenizers raises nothing more special, for too few tokens or characters
        raise UserError(f"No {kind} tokenizer of {size} tokens can be learnt from {data} ({error}).") from error
    if not count:
        raise UserError(f"{data} holds no text to learn a tokenizer from; {len(skipped)} lines were skipped.")
    if (least := trained.get_vocab_size()) > size:
        raise UserError(f"A {kind} tokenizer of {data} has at least {least} tokens, more than --vocab {size}.")
    save_tokenizer(trained, out)
    say([*files.notes, *(f"skipped {place}: {reason}" for place, reason in skipped)])
    print(f"{out} holds a {kind} tokenizer of {least} tokens, learnt from {count} documents ({len(skipped)} skipped)")


def _opened(root: Path, field: str, skipped: list[tuple[str, str]]) -> tuple[FileSource, Iterator[str]]:
    """What the texts of `root` are read from, and they themselves: in tar shards the captions of pictures."""
    if not in_shards(root):
        files = TextFiles(root, field=field)
        return files, (document.text for document in files.documents(skipped))
    pairs = PairFiles(root, caption_key=None if field == "text" else field)
    return pairs, _captions(pairs, skipped)


def _captions(pairs: PairFiles, skipped: list[tuple[str, str]]) -> Iterator[str]:
    for index in range(len(pairs)):
        try:
            yield from pairs.captions(index)
        except BrokenSample as error:
            skipped.append((pairs.name(index), error.reason))


def write_clip_tokenizer(out: Path, merges: Path | None = None) -> None:
    """Write CLIP's tokenizer to the folder `out`; see `clip_tokenizer`."""
    tokenizer = clip_tokenizer(merges)
    save_tokenizer(tokenizer, out)
    print(f"{out} holds CLIP's {tokenizer.get_vocab_size()} tokens")
