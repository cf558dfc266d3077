"""What M3AE learns from drawings and their names, beside MAE on the drawings alone and MLM on the names alone.

    python -m benchmarks.learning_m3ae --emoji DIR               # everything; a quarter of an hour on a CPU core
    python -m benchmarks.learning_m3ae --emoji DIR --steps 4     # does it run at all

The drawings are those of `benchmarks.learning_pairs`, with their names as the only captions, which do not tell the
category; word pieces are learnt from the names that are trained on. All three have an encoder of four blocks of 128,
see as many samples, and hide what their papers do.

Asked is the category, one of nine, by a linear probe on the mean of all tokens: of drawings alone, of names alone, and
of both, for names that were held out; and of drawings alone, for a vendor that was held out, whose names were not.
What MAE and MLM know together is their features side by side, twice as wide as M3AE's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from benchmarks.learning import minutes
from benchmarks.learning_pairs import CPU, FLAGS, LENGTH, PATCH, SEED, SIZE, Learner, settings, small, written
from benchmarks.machine import device_name, markdown, write
from mmssl import M3AE, MAE, MLM, Encoder
from mmssl.data import (
    EvalView,
    PairFiles,
    PairSource,
    PairView,
    TextSource,
    TextView,
    TrainView,
    Vocabulary,
    evaluation_batches,
    open_source,
)
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.evaluation import extract, linear_probe
from mmssl.objectives import m3ae_config, mae_config, mlm_config
from mmssl.report.run import write_report

WORDS = 2000
READS = {"drawings": ("image",), "names": ("text", "text.length"), "both": ("image", "text", "text.length")}
ASKED = {"names": "names held out", "vendor": "a vendor held out"}
Features = Float[Tensor, "pairs dim"]


@dataclass(frozen=True)
class Part:
    """Drawings with their names and categories."""

    path: Path
    vocabulary: Vocabulary

    @cached_property
    def source(self) -> PairSource:
        return PairSource(self.path, self.vocabulary, length=LENGTH, drawn=False, label="category")

    @property
    def categories(self) -> Int64[Tensor, " pairs"]:
        return torch.tensor(self.source.labels)

    @property
    def flags(self) -> int:
        return self.source.classes.index(FLAGS)

    def batches(self, reads: str) -> Iterator[dict[str, Tensor]]:
        view = PairView(EvalView(SIZE, resize=SIZE), LENGTH, self.vocabulary.pad)
        for batch in evaluation_batches(self.source, view, batch_size=128):
            yield {name: batch[name] for name in READS[reads]}

    def features(self, encoder: Encoder, reads: str) -> Features:
        return extract(encoder, self.batches(reads)).features


def parts(emoji: Path, out: Path) -> dict[str, Part]:
    """What is trained on and what is asked; in `out` the names that are trained on, and their word pieces."""
    data, words = written(emoji, out / "data", kinds=False), out / "tokenizer"
    if not words.is_dir():  # learnt twice they may come in another order
        files = PairFiles(data / "train.tar")
        names = list(dict.fromkeys(files.captions(number)[0] for number in range(len(files))))
        (out / "names.jsonl").write_text("\n".join(json.dumps({"text": name}) for name in names), encoding="utf-8")
        save_tokenizer(train_tokenizer(names, "wordpiece", WORDS), words)
    return {part: Part(data / f"{part}.tar", Vocabulary.read(words)) for part in ("train", *ASKED)}


def m3ae(vocabulary: Vocabulary) -> M3AE:
    words: dict[str, Any] = {"vocab": vocabulary.size, "length": LENGTH, "special": vocabulary.framing}
    config = m3ae_config("tiny", size=SIZE, patch=PATCH, **words, seed=SEED)
    return M3AE(replace(config, encoder=small(config.encoder)))


def mae() -> MAE:
    config = mae_config("tiny", size=SIZE, patch=PATCH, seed=SEED)
    return MAE(replace(config, encoder=small(config.encoder)))


def mlm(vocabulary: Vocabulary) -> MLM:
    words: dict[str, Any] = {"vocab": vocabulary.size, "mask": vocabulary.masked, "special": vocabulary.framing}
    config = mlm_config("tiny", **words, length=LENGTH, next_sentence=False, dupe_factor=0, seed=SEED)
    return MLM(replace(config, encoder=small(config.encoder)))


def learners(train: Part, other: Part, out: Path) -> dict[str, Learner]:
    """Run folder and learner."""
    vocabulary = train.vocabulary
    drawn, middle = TrainView(SIZE, scale=(0.5, 1.0), flip=0.0), EvalView(SIZE, resize=SIZE)
    view, held_out_view = (PairView(each, LENGTH, vocabulary.pad) for each in (drawn, middle))
    drawings, others = (open_source(part.path) for part in (train, other))
    texts = TextSource(out / "names.jsonl", vocabulary, packing="document", length=LENGTH)
    words = TextView(LENGTH, vocabulary.pad)
    return {
        "m3ae": Learner("M3AE", lambda: m3ae(vocabulary), lambda: train.source, view, other.source, held_out_view),
        "mae": Learner("MAE", mae, lambda: drawings, drawn, others, middle),
        "mlm": Learner("MLM", lambda: mlm(vocabulary), lambda: texts, words, texts, words),
    }


def share(predicted: Int64[Tensor, " pairs"], wanted: Int64[Tensor, " pairs"]) -> float:
    """Of those that are right, in per cent."""
    return round(100 * (predicted == wanted).double().mean().item(), 1)


def answers(asked: dict[str, Part], reads: str, features: Callable[[Part], Features] | None) -> dict[str, Any]:
    """Accuracies of a linear probe on the features, or of the largest category where None, with the flags and without.

    Names of the vendor that was held out were trained on: only its drawings are asked.
    """
    train = asked["train"]
    row: dict[str, Any] = {}
    known = None if features is None else features(train)
    for part, what in ASKED.items():
        found = None if features is None or (part == "vendor" and reads != "drawings") else features(asked[part])
        for flags in (False, True):
            keep = [torch.ones(len(each.categories), dtype=torch.bool) for each in (train, asked[part])]
            keep = keep if flags else [each.categories != each.flags for each in (train, asked[part])]
            wanted, labels = asked[part].categories[keep[1]], train.categories[keep[0]]
            column = f"{what}, {'with' if flags else 'without'} flags"
            if known is None:
                row[column] = share(labels.mode().values.expand_as(wanted), wanted)
            elif found is None:
                row[column] = "-"
            else:
                row[column] = share(linear_probe(known[keep[0]], labels).predict(found[keep[1]]), wanted)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning-m3ae"))
    parser.add_argument("--steps", type=int, default=500, help="of each training")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at its peak")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = parts(options.emoji, options.out)
    rows: list[dict[str, Any]] = []

    def tell(model: str, reads: str, took: float, features: Callable[[Part], Features] | None) -> None:
        rows.append({"model": model, "reads": reads, "training, minutes": took, **answers(asked, reads, features)})
        print(markdown(rows[-1:]), flush=True)

    def by(encoder: Encoder, reads: str) -> Callable[[Part], Features]:
        return lambda part: part.features(encoder, reads)

    tell("none: the largest category", "nothing", 0, None)
    torch.manual_seed(SEED)
    fresh = m3ae(asked["train"].vocabulary).encoder
    for reads in READS:
        tell("random initialisation", reads, 0, by(fresh, reads))
    encoders, took = {}, {}
    for name, learner in learners(asked["train"], asked["vendor"], options.out).items():
        torch.manual_seed(SEED)
        method, run = learner.make(), options.out / name
        learner.pretrained(method, settings(options.steps, options, log_every=20), run)
        print(write_report(run), flush=True)
        encoders[name], took[name] = method.encoder, minutes(run, options.batch_size)
    tell("MAE", "drawings", took["mae"], by(encoders["mae"], "drawings"))
    tell("MLM", "names", took["mlm"], by(encoders["mlm"], "names"))
    apart = [by(encoders[name], reads) for name, reads in (("mae", "drawings"), ("mlm", "names"))]
    both = round(took["mae"] + took["mlm"], 1)
    tell("MAE and MLM", "both", both, lambda part: torch.cat([features(part) for features in apart], dim=1))
    for reads in READS:
        tell("M3AE", reads, took["m3ae"], by(encoders["m3ae"], reads))
    used = {name: value for name, value in vars(options).items() if name not in ("emoji", "out")}
    print(f"\n{device_name(CPU)}\n\n{markdown(rows)}\n{write('learning-m3ae', CPU, {'settings': used, 'rows': rows})}")


if __name__ == "__main__":
    main()
