"""What BERT learns from dictionary glosses, against random initialisation and logistic regression on TF-IDF.

    python -m benchmarks.learning_text --data glosses.jsonl.gz                  # everything; half an hour on a CPU core
    python -m benchmarks.learning_text --data glosses.jsonl.gz --steps 20       # does it run at all

The texts are WordNet's glosses, JSON lines with `gloss`, `lemma` and `lexname`, the number of the lexicographer's file
that each is from (Debian's wordnet-base has the files they are made of). A tenth of the lemmas, by their hash, is held
out with all their glosses, and of these the ones that are, word for word, in the training part are left out: no gloss
and no lemma is on both sides. Tokenizer and model see the training part alone, without labels; the recipe's objective,
schedule and loop are used, on whole glosses, one a row, packed, RoBERTa's fresh masks and no next sentence.

Measured on what is held out: how many of the hidden words the model finds, beside the guess of always the most frequent
one; and accuracy and macro-F1 of a linear probe on the mean of all tokens, for the 25 files of nouns (noun.act to
noun.time; noun.Tops has other files' most general nouns). TF-IDF and its regression are scikit-learn's, as they come.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learning import aligned, minutes
from benchmarks.machine import device_name, markdown, write
from mmssl import MLM, Encoder
from mmssl.data import TextSource, TextView, Vocabulary, evaluation_batches
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.evaluation import extract, linear_probe, masked_accuracy, word_counts
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import write_report
from mmssl.training import TrainSettings

WORDS, LENGTH, SEED, CPU = 8000, 64, 0, torch.device("cpu")
NOUNS = range(4, 29)
SHOWN = 6  # held-out glosses whose neighbours are told


@dataclass(frozen=True)
class Part:
    """The glosses of a part, in the file `path`, and how they are read."""

    path: Path
    vocabulary: Vocabulary

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    @cached_property
    def nouns(self) -> list[int]:
        return [number for number, row in enumerate(self.rows) if int(row["lexname"]) in NOUNS]

    @property
    def texts(self) -> list[str]:
        """Of the nouns."""
        return [self.rows[number]["text"] for number in self.nouns]

    @property
    def classes(self) -> Int64[Tensor, " nouns"]:
        return torch.tensor([int(self.rows[number]["lexname"]) for number in self.nouns])

    def source(self, documents: Sequence[int] | None = None) -> TextSource:
        return TextSource(self.path, self.vocabulary, packing="document", length=LENGTH, documents=documents)

    def batches(self, documents: Sequence[int] | None = None) -> Iterator[dict[str, Tensor]]:
        return evaluation_batches(self.source(documents), self.view, batch_size=256)

    @property
    def view(self) -> TextView:
        return TextView(LENGTH, self.vocabulary.pad)

    def features(self, encoder: Encoder) -> Float[Tensor, "nouns dim"]:
        return extract(encoder, self.batches(self.nouns)).features


def parts(data: Path, folder: Path) -> tuple[Part, Part]:
    """What is trained on and what is held out, and the tokenizer of the former, kept in `folder`: word pieces that are
    learnt twice may come in another order."""
    files = {name: folder / f"{name}.jsonl" for name in ("train", "test")}
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(data, "rt", encoding="utf-8") as file:
        told = [json.loads(line) for line in file]
    apart = [hashlib.blake2b(row["lemma"].lower().encode()).digest()[0] % 10 == 0 for row in told]
    known = {row["gloss"] for row, held_out in zip(told, apart) if not held_out}
    chosen = {
        "train": [row for row, held_out in zip(told, apart) if not held_out],
        "test": [row for row, held_out in zip(told, apart) if held_out and row["gloss"] not in known],
    }
    for name, rows in chosen.items():
        lines = (json.dumps({"text": row["gloss"], "lexname": str(row["lexname"])}) for row in rows)
        files[name].write_text("\n".join(lines), encoding="utf-8")
    if not (words := folder / "tokenizer").is_dir():
        save_tokenizer(train_tokenizer((row["gloss"] for row in chosen["train"]), "wordpiece", WORDS), words)
    train, test = (Part(path, Vocabulary.read(words)) for path in files.values())
    return train, test


def objective(vocabulary: Vocabulary) -> MLM:
    """BERT-tiny, two blocks of 128, without next sentences."""
    torch.manual_seed(SEED)
    words = {"vocab": vocabulary.size, "mask": vocabulary.masked, "special": vocabulary.framing}
    return MLM("tiny", **words, length=LENGTH, next_sentence=False, dupe_factor=0, seed=SEED)


def pretrained(method: MLM, train: Part, test: Part, run: Path, options: argparse.Namespace) -> None:
    """Train into the run folder, or go on with what is there."""
    settings = TrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        warmup_steps=options.steps // 10,
        base_lr=options.rate * 256 / options.batch_size,
        weight_decay=0.01,
        optimizer="adamw",
        betas=(0.9, 0.98),
        eps=1e-6,
        decay="linear",
        clip_norm=1.0,
        log_every=50,
        save_every=500,
        validate_every=max(1, options.steps // 8),
        seed=SEED,
    )
    pretrain(
        method,
        train.source(),
        test.source(),
        settings,
        run,
        view=train.view,
        held_out_view=test.view,
        device=CPU,
        workers=options.workers,
        context={"method": asdict(method.config)},
        beside=train.vocabulary.files,
    )


def measured(predicted: Any, wanted: Any) -> dict[str, float]:
    """In per cent; macro-F1 as usual in 0-1."""
    return {
        "accuracy": round(100 * accuracy_score(wanted, predicted), 1),
        "macro-F1": round(float(f1_score(wanted, predicted, average="macro")), 3),
    }


def once(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What was measured, by an earlier call where this one goes on."""
    if not path.is_file():
        path.write_text(json.dumps(measure()))
    return json.loads(path.read_text())


def probed(shown: Tensor, asked: Tensor, train: Part, test: Part) -> dict[str, float]:
    """A linear probe on features of the two parts."""
    return measured(linear_probe(shown, train.classes).predict(asked), test.classes)


def by_counts(train: Part, test: Part) -> dict[str, float]:
    """TF-IDF and logistic regression."""
    counting = TfidfVectorizer()
    model = LogisticRegression(max_iter=1000).fit(counting.fit_transform(train.texts), train.classes.numpy())
    return measured(model.predict(counting.transform(test.texts)), test.classes)


def found(method: MLM, test: Part, guess: int) -> dict[str, float]:
    """Hidden words found, in per cent."""
    return {"masked accuracy": round(100 * masked_accuracy(method, test.batches(), guess=guess).accuracy, 1)}


def neighbours(shown: Tensor, asked: Tensor, train: Part, test: Part) -> list[dict[str, str]]:
    """A few held-out glosses of nouns and the training glosses whose features are nearest, standardised, by cosine."""
    mean, deviation = shown.mean(dim=0), shown.std(dim=0)
    few = torch.linspace(0, len(asked) - 1, SHOWN + 2).long()[1:-1]
    near = F.normalize((asked[few] - mean) / deviation) @ F.normalize((shown - mean) / deviation).T
    known, held_out = train.texts, test.texts
    return [
        {"held-out gloss": held_out[number], "nearest": known[best[0]], "second": known[best[1]]}
        for number, best in zip(few.tolist(), near.topk(2, dim=1).indices.tolist())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning-text"))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate at its peak")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    train, test = parts(options.data, options.out)
    print(f"{len(train.rows)} glosses to train on, {len(test.rows)} held out, {len(test.nouns)} of them nouns'")
    method, run = objective(train.vocabulary), options.out / "bert"
    counts = word_counts(method, train.batches())
    guess = int(counts.argmax())
    by_guessing = masked_accuracy(method, test.batches(), guess=guess).unigram
    largest = test.classes.mode().values.expand(len(test.nouns))
    guesses = {**measured(largest, test.classes), "masked accuracy": round(100 * by_guessing, 1)}
    rows: list[dict[str, Any]] = [{"encoder": "none: always the largest class, or word", **guesses}]

    def both() -> tuple[Tensor, Tensor]:
        return train.features(method.encoder), test.features(method.encoder)

    def untrained() -> dict[str, float]:
        return {**probed(*both(), train, test), **found(method, test, guess)}

    rows.append({"encoder": "random initialisation", **once(options.out / "random.json", untrained)})
    print(markdown(aligned(rows)), flush=True)
    pretrained(method, train, test, run, options)
    read = both()
    learnt = {**probed(*read, train, test), **found(method, test, guess)}
    rows.append({"encoder": "BERT", **learnt, "training, minutes": minutes(run, options.batch_size)})
    print(markdown(aligned(rows)), flush=True)
    rows.append({"encoder": "TF-IDF", **once(options.out / "tf-idf.json", lambda: by_counts(train, test))})
    near = neighbours(*read, train, test)
    print(f"{markdown(near)}\n\n{markdown(aligned(rows))}\n\n{write_report(run)}", flush=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "out")}
    content = {"settings": settings, "rows": aligned(rows), "neighbours": near}
    print(f"\n{device_name(CPU)}\n\n{write('learning-text', CPU, content)}")


if __name__ == "__main__":
    main()
