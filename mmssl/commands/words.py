"""What `mmssl evaluate` says of a model of texts beside its features: how well it knows words that are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmssl.commands.features import say, views
from mmssl.commands.models import method_in
from mmssl.commands.reading import Reading
from mmssl.data import NoTestPart, Source, Vocabulary, notes, subset
from mmssl.data.labelled import test_part
from mmssl.evaluation import Counts, masked_accuracy, pseudo_perplexity, word_counts
from mmssl.objectives import MLM
from mmssl.pretraining.media import held_out_documents


def language_model(folder: Path, reading: Reading) -> MLM:
    """The model of a folder with its head, which predicts words. Raises UserError where there is an encoder alone, or
    no mask token."""
    method = method_in(folder, MLM, "which predicts no words", "whose predictions are no words")
    if method.config.mask is None and reading.tokenizer is not None:  # a folder of transformers says it there alone
        words = Vocabulary.read(reading.tokenizer)
        method.config = replace(method.config, mask=words.masked, special=words.framing)
    return method


def evaluate_words(
    method: MLM,
    opened: Callable[[Path, str | None], Source],
    data: Path,
    test: Path | None,
    reading: Reading,
    texts: int,
    device: torch.device,
) -> dict[str, Any]:
    """Masked accuracy and pseudo-perplexity of what is held out, as `mmssl.report.words.words_told` writes them out.

    The guess is the most frequent word of the training part. texts: so many, evenly spread, have their perplexity
    measured; 0: none. Where texts have classes, accuracies are also those of each.
    """
    shown, asked, held_out = documents(opened, data, test)
    say(notes(shown, asked))
    print(f"words: {len(shown)} texts to count them in, {len(asked)} asked{held_out}")
    guess = int(word_counts(method, _read(method, shown, reading, "counting")).argmax())
    classes = None if asked.labels is None else "label"
    found = masked_accuracy(
        method, _read(method, asked, reading, "masked"), guess=guess, classes=classes, device=device
    )
    assert reading.tokenizer is not None  # texts were opened by it
    result: dict[str, Any] = {
        "guess": Vocabulary.read(reading.tokenizer).tokenizer().id_to_token(guess),
        "all": _counts(found),
        "by_class": {asked.classes[number]: _counts(each) for number, each in found.by_class.items()},
    }
    if texts:
        some = subset(asked, torch.linspace(0, len(asked) - 1, min(texts, len(asked))).long().unique().tolist())
        one_by_one = pseudo_perplexity(method, _read(method, some, reading, "each word"), device=device)
        result |= {"pseudo_perplexity": one_by_one, "texts": len(some)}
    return result


def documents(
    opened: Callable[[Path, str | None], Source], data: Path, test: Path | None
) -> tuple[Source, Source, str]:
    """As `both_parts`, of texts that need no labels. Where there is no test part, it is what training holds out."""
    train = opened(data, "train")
    try:
        return train, test_part(opened, data, test), ""
    except NoTestPart:
        return *held_out_documents(train), " (those that training with --seed 0 holds out)"


def _counts(counts: Counts) -> dict[str, int | float]:
    return {"hidden": counts.hidden, "accuracy": counts.accuracy, "guess": counts.unigram}


def _read(method: MLM, source: Source, reading: Reading, what: str) -> Iterator[dict[str, Tensor]]:
    """The texts in batches, with a progress bar."""
    from rich.progress import Progress

    with Progress(transient=True) as bar:
        task = bar.add_task(what, total=len(source))
        for batch in views(method.encoder, source, reading):
            yield batch
            bar.advance(task, len(batch["sample_id"]))
