"""How well a masked language model knows the words of held-out texts: masked accuracy and pseudo-perplexity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int64
from torch import Tensor

from mmssl.errors import UserError
from mmssl.evaluation.features import evaluation_mode
from mmssl.objectives import MLM
from mmssl.objectives.words import NOT_WANTED

Batch = Mapping[str, Tensor]


@dataclass
class Counts:
    """Hidden words, how many of them the model finds, and how many the guess of always one word."""

    hidden: int = 0
    found: int = 0
    guessed: int = 0

    @property
    def accuracy(self) -> float:
        """The share that the model finds, 0-1; NaN where none is hidden."""
        return self.found / self.hidden if self.hidden else math.nan

    @property
    def unigram(self) -> float:
        """The share that the guess finds, 0-1; NaN where none is hidden."""
        return self.guessed / self.hidden if self.hidden else math.nan


@dataclass
class MaskedAccuracy(Counts):
    """`Counts` of all hidden words, and `by_class` those of each class of words or texts."""

    by_class: dict[int, Counts] = field(default_factory=dict)


def word_counts(model: MLM, batches: Iterable[Batch]) -> Int64[Tensor, " words"]:
    """How often each word stands in the texts, special tokens and padding left out: the unigram distribution."""
    counts = torch.zeros(len(model.bias), dtype=torch.int64)
    for batch in batches:
        counts += batch["text"][_words(model, batch)].cpu().bincount(minlength=len(counts))
    return counts


@torch.no_grad()
def masked_accuracy(
    model: MLM,
    batches: Iterable[Batch],
    *,
    guess: int,
    classes: str | None = None,
    device: torch.device | str = "cpu",
) -> MaskedAccuracy:
    """Of the words that the model's own masking hides (80 % shown as the mask token, 10 % as another word, 10 % as they
    are, unless its config says otherwise), how many are its likeliest word (Devlin et al. 2018, arXiv 1810.04805,
    appendix C.2, "Masked LM accuracy").

    batches: as the loader gives them. guess: the word that is always said for comparison, the most frequent one in the
    training texts: `int(word_counts(model, training_batches).argmax())`. classes: the key of the batch that holds
    classes, int64 `[B]` of texts (`label`) or `[B, N]` of words; words of a class below 0 count in the whole alone.

    Raises UserError for a batch without that key.
    """
    total, device = MaskedAccuracy(), torch.device(device)
    model.to(device)
    with evaluation_mode(model):
        for batch in batches:
            on_device = {name: value.to(device) for name, value in batch.items()}
            out = model(on_device)
            assert out.mask is not None and out.prediction is not None
            hide, wanted = out.mask.hide.flat(), model.wanted(on_device, out.mask.hide)
            found, guessed = out.prediction.argmax(dim=1) == wanted, wanted == guess
            _add(total, found, guessed)
            if classes is None:
                continue
            if classes not in batch:
                raise UserError(f"the batch holds no classes {classes!r}, only {sorted(batch)}")
            of = on_device[classes]
            kinds = of[hide.rows] if of.ndim == 1 else of[hide.rows, hide.index]
            for kind in kinds[kinds >= 0].unique().tolist():
                here = kinds == kind
                _add(total.by_class.setdefault(kind, Counts()), found[here], guessed[here])
    total.by_class = dict(sorted(total.by_class.items()))
    return total


@torch.no_grad()
def pseudo_perplexity(
    model: MLM,
    batches: Iterable[Batch],
    *,
    texts: int | None = None,
    at_once: int = 64,
    device: torch.device | str = "cpu",
) -> float:
    """exp of the mean -log p(word | all other words of its text), each word masked by itself (Salazar et al. 2020,
    "Masked Language Model Scoring", arXiv 1910.14659, section 2.2): 1 at best, the vocabulary's size by chance.

    It costs a forward pass of a text for each of its words, `at_once` of them together: `texts` are the first so many,
    all where None. Words are tokens of the tokenizer, so that models of other tokenizers do not compare; special tokens
    and padding are none.

    Raises UserError where the model has no mask token or there is no word.
    """
    device, mask = torch.device(device), model.config.mask
    if mask is None:
        raise UserError("this model has no mask token, so that no word can be masked: set `mask` in its config")
    model.to(device)
    total, count = 0.0, 0
    with evaluation_mode(model):
        for batch in _first(batches, texts):
            on_device = {name: batch[name].to(device) for name in batch if name.startswith("text")}
            rows, places = _words(model, on_device).nonzero(as_tuple=True)
            for start in range(0, len(rows), at_once):
                some, where = rows[start : start + at_once], places[start : start + at_once]
                one = {name: values[some] for name, values in on_device.items() if name != "text.next"}
                which = torch.arange(len(some), device=device)
                target = torch.full_like(one["text"], NOT_WANTED)
                target[which, where] = one["text"][which, where]
                masked = one["text"].index_put((which, where), torch.tensor(mask, device=device))
                total += float(model({**one, "text": masked, "text.target": target}).loss) * len(some)
                count += len(some)
    if not count:
        raise UserError("there is no word to be masked: give texts of more than special tokens")
    return math.exp(total / count)


def _words(model: MLM, batch: Batch) -> Tensor:
    """Where a batch has words: neither padding nor special tokens, bool `[B, N]`."""
    valid = model.encoder.everything(batch).boolean(batch["text"].shape[1])
    return model.candidates(batch, valid)


def _add(counts: Counts, found: Tensor, guessed: Tensor) -> None:
    counts.hidden += len(found)
    counts.found += int(found.sum())
    counts.guessed += int(guessed.sum())


def _first(batches: Iterable[Batch], texts: int | None) -> Iterator[Batch]:
    """Batches up to so many texts in all."""
    left = texts
    for batch in batches:
        if left is None:
            yield batch
            continue
        size = len(batch["text"])
        yield {name: value[:left] if value.shape[:1] == (size,) else value for name, value in batch.items()}
        if (left := left - size) <= 0:
            return
