"""What CLIP, SigLIP, FLIP and LiT learn from drawings and their names, in the same minutes, from nothing and from ours.

    python -m benchmarks.learning_pairs --emoji DIR --glosses glosses.jsonl.gz                 # everything; 90 minutes
    python -m benchmarks.learning_pairs --emoji DIR --glosses glosses.jsonl.gz --minutes 0.1   # does it run at all

DIR holds the emoji of three vendors, google.tar, twitter.tar and fluent.tar: for each a picture and a JSON with its
`name`, `short_names`, `category` and `subcategory`, in files of the same name in all three. Two vendors' drawings are
trained on, but for a tenth of the names, by their hash. A drawing has two captions, of which one is drawn each time:
its name, and its category with the subcategory. All read word pieces of the glosses (see `benchmarks.learning_text`,
whose training is run, or found).

Asked are the drawings of names that were held out, by a vendor that was trained on, and those of a vendor that was not,
of names that were: each by its name among all of them, its name by the drawing, and the category by its own name
(zero-shot, nine of them). The 270 flags, which look alike, are a question of their own: everything is measured with and
without them.

All have blocks of one width, and as many steps as the minutes hold, by the time that a step takes alone at the start;
what MAE and MLM cost that others start from is not counted. The last two read with an MAE's and an MLM's encoders, once
fresh and once trained.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from benchmarks import learning_text
from benchmarks.learning import minutes
from benchmarks.machine import device_name, markdown, write
from mmssl import CLIP, FLIP, MAE, LiT, SigLIP
from mmssl.data import (
    EvalView,
    PairFiles,
    PairSource,
    PairView,
    Source,
    TrainView,
    View,
    Vocabulary,
    evaluation_batches,
    open_source,
    text_batch,
)
from mmssl.encoder import EncoderConfig
from mmssl.evaluation import PictureTower, class_vectors, extract, retrieval, text_features, zero_shot
from mmssl.objectives import CLIPConfig, Objective, clip_config, flip_config, mae_config, siglip_config
from mmssl.pretraining.pretrain import pretrain
from mmssl.pretraining.towers import known_pictures, take_towers, with_image_tower, with_text_tower
from mmssl.report.run import write_report
from mmssl.training import TrainSettings
from mmssl.training.journal import read_metrics

SIZE, PATCH, LENGTH, TRIED, SEED, CPU = 64, 16, 24, 8, 0, torch.device("cpu")
FLAGS = "flags"
TRAINED, OTHER = ("google", "twitter"), "fluent"
QUESTIONS = {"names": "names held out", "vendor": "a vendor held out"}


def written(emoji: Path, folder: Path, kinds: bool = True) -> Path:
    """The three parts as shards, in `folder`, once: runs that go on know their files by their times. kinds: whether a
    caption tells the category."""
    if (folder / "vendor.tar").is_file():
        return folder
    parts: dict[str, list[tuple[str, bytes, dict[str, Any]]]] = {"train": [], **{part: [] for part in QUESTIONS}}
    for vendor in (*TRAINED, OTHER):
        with tarfile.open(emoji / f"{vendor}.tar") as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
        for name, picture in content.items():
            if name.endswith(".json"):
                continue
            told = json.loads(content[f"{name[:-4]}.json"])
            apart = hashlib.blake2b(told["name"].encode()).digest()[0] % 10 == 0
            kind, what = told["category"].lower(), told["subcategory"].replace("-", " ")
            captions = [told["name"], *([f"{kind}: {what}"] if kinds else [])]
            entry = f"{vendor}-{name}", picture, {"caption": captions, "category": kind}
            if vendor != OTHER and not apart:
                parts["train"].append(entry)
            elif vendor == TRAINED[0] and apart:
                parts["names"].append(entry)
            elif vendor == OTHER and not apart:
                parts["vendor"].append(entry)
    folder.mkdir(parents=True, exist_ok=True)
    for part, entries in parts.items():
        with tarfile.open(folder / f"{part}.tar", "w") as tar:
            for name, picture, told in entries:
                for member, value in ((name, picture), (f"{name[:-4]}.json", json.dumps(told).encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(value)
                    tar.addfile(info, BytesIO(value))
    return folder


@dataclass(frozen=True)
class Asked:
    """Drawings that were not trained on; what: of which kind they are."""

    what: str
    path: Path
    vocabulary: Vocabulary

    @cached_property
    def files(self) -> PairFiles:
        return PairFiles(self.path, label="category")

    @cached_property
    def names(self) -> list[str]:
        return [self.files.captions(number)[0] for number in range(len(self.files))]

    def answers(self, model: CLIP) -> list[dict[str, Any]]:
        """What the model finds, with the flags and without them."""
        seen = extract(PictureTower(model), evaluation_batches(self.files, EvalView(SIZE, resize=SIZE), batch_size=64))
        read = partial(text_batch, vocabulary=self.vocabulary, length=LENGTH)
        told, classes = text_features(model, self.names, read), self.files.classes
        assert seen.labels is not None and classes is not None
        vectors = class_vectors(model, classes, read, ("{}",))
        flags = classes.index(FLAGS)
        others, kept = seen.labels != flags, torch.arange(len(classes)) != flags
        labels = seen.labels - (seen.labels > flags).long()
        return [
            {"asked": f"{self.what}, with flags", **found(seen.features, told, vectors, seen.labels)},
            {
                "asked": f"{self.what}, without flags",
                **found(seen.features[others], told[others], vectors[kept], labels[others]),
            },
        ]

    def guesses(self) -> list[dict[str, Any]]:
        """What any order finds, and the largest category."""
        assert self.files.labels is not None and self.files.classes is not None
        labels = torch.tensor(self.files.labels)
        return [
            {"asked": f"{self.what}, with flags", **guessed(labels)},
            {"asked": f"{self.what}, without flags", **guessed(labels[labels != self.files.classes.index(FLAGS)])},
        ]


def guessed(labels: Int64[Tensor, " pairs"]) -> dict[str, float]:
    """As `found`."""
    count = len(labels)
    shares = {f"{side} R@{k}": k / count for side in ("drawing", "name") for k in (1, 5, 10)}
    shares["category"] = (labels == labels.mode().values).double().mean().item()
    places = {f"{side} median": (count + 1) // 2 for side in ("drawing", "name")}
    return {"drawings": count, **{what: round(100 * share, 1) for what, share in shares.items()}, **places}


def found(
    seen: Float[Tensor, "pairs dim"],
    told: Float[Tensor, "pairs dim"],
    vectors: Float[Tensor, "classes dim"],
    labels: Int64[Tensor, " pairs"],
) -> dict[str, float]:
    """In per cent, but for the median place: of the drawing among all by its name, and of the name by its drawing."""
    both = dict(zip(("drawing", "name"), retrieval(seen, told, torch.arange(len(told))), strict=True))
    shares = {f"{side} R@{k}": share for side, found in both.items() for k, share in found.recalls.items()}
    shares["category"] = zero_shot(seen, vectors, labels).accuracy
    places = {f"{side} median": found.median for side, found in both.items()}
    return {"drawings": len(seen), **{what: round(100 * share, 1) for what, share in shares.items()}, **places}


def small(tower: EncoderConfig) -> EncoderConfig:
    return replace(tower, transformer=replace(tower.transformer, dim=128, depth=4, heads=2))


def pairs(config: CLIPConfig, vocabulary: Vocabulary) -> CLIPConfig:
    """The method's settings with small encoders."""
    encoder, text = small(config.encoder), small(config.text_encoder)
    dim = None if config.dim is None else encoder.transformer.dim
    return replace(config, encoder=encoder, text_encoder=text, dim=dim, end=vocabulary.sep)


def mae() -> MAE:
    config = mae_config("tiny", size=SIZE, patch=PATCH, norm_pix=True, seed=SEED)
    return MAE(replace(config, encoder=small(config.encoder)))


def settings(steps: int, options: argparse.Namespace, log_every: int) -> TrainSettings:
    return TrainSettings(
        steps=steps,
        batch_size=options.batch_size,
        warmup_steps=steps // 10,
        save_every=500,
        validate_every=max(1, steps // 4),
        seed=SEED,
        base_lr=options.rate * 256 / options.batch_size,
        weight_decay=0.1,
        betas=(0.9, 0.98),
        log_every=log_every,
    )


@dataclass(frozen=True)
class Learner:
    """A method with what it reads in training."""

    name: str
    make: Callable[[], Objective]
    media: Callable[[], Source]
    view: View
    held_out: Source
    held_out_view: View

    def train(self, run: Path, options: argparse.Namespace) -> Objective:
        """For the minutes that are asked for, or on from what is there."""
        count = learning_text.once(run.with_suffix(".json"), lambda: {"steps": self.steps(options)})["steps"]
        torch.manual_seed(SEED)
        method = self.make()
        self.pretrained(method, settings(int(count), options, log_every=20), run)
        print(write_report(run), flush=True)
        return method

    def steps(self, options: argparse.Namespace) -> int:
        """How many fit into the minutes."""
        with tempfile.TemporaryDirectory() as scratch:
            self.pretrained(self.make(), settings(TRIED, options, log_every=1), Path(scratch) / "run")
            rows = read_metrics(Path(scratch) / "run")[TRIED // 2 :]
        second = statistics.median(options.batch_size / row["samples_per_second"] for row in rows)
        return max(TRIED, round(60 * options.minutes / second))

    def pretrained(self, method: Objective, asked: TrainSettings, run: Path) -> None:
        pretrain(
            method,
            self.media(),
            self.held_out,
            asked,
            run,
            view=self.view,
            held_out_view=self.held_out_view,
            device=CPU,
            watch=256,
            context={"method": self.name},
        )


def learners(data: Path, out: Path, words: Path, vocabulary: Vocabulary) -> dict[str, Learner]:
    """Run folder and learner, those first that others start from."""
    drawings, others = (open_source(data / f"{part}.tar") for part in ("train", "vendor"))
    sizes: dict[str, Any] = {"size": SIZE, "patch": PATCH, "length": LENGTH, "vocab": vocabulary.size}
    clip, siglip, flip = (
        pairs(config, vocabulary)
        for config in (
            clip_config("tiny", **sizes),
            siglip_config("tiny", **sizes, attend_padding=False, pad=vocabulary.pad),
            flip_config("tiny", **sizes),
        )
    )
    pictures = str(out / "mae")
    drawn, middle = TrainView(SIZE, scale=(0.5, 1.0), flip=0.0), EvalView(SIZE, resize=SIZE)
    view, held_out_view = (PairView(each, LENGTH, vocabulary.pad) for each in (drawn, middle))
    train, held_out = (
        PairSource(data / f"{part}.tar", vocabulary, length=LENGTH, drawn=part == "train")
        for part in ("train", "vendor")
    )

    def alone(name: str, method: type[CLIP], config: CLIPConfig) -> Learner:
        return Learner(name, lambda: method(config), lambda: train, view, held_out, held_out_view)

    def ours(start: bool) -> CLIP:
        model = CLIP(with_text_tower(with_image_tower(clip, pictures), str(words), vocabulary.size))
        take_towers(model, *((pictures, str(words)) if start else (None, None)))
        return model

    def locked() -> LiT:
        model = LiT(LiT.completed(with_image_tower(clip, pictures, "mean")))
        take_towers(model, pictures, None)
        return model

    def known() -> Source:
        return known_pictures(train, locked(), held_out_view, out / "features", CPU)

    usual = alone("CLIP", CLIP, clip)
    features = PairView(None, LENGTH, vocabulary.pad)
    return {
        "mae": Learner("MAE", mae, lambda: drawings, drawn, others, middle),
        "clip": usual,
        "siglip": alone("SigLIP", SigLIP, siglip),
        "flip": alone("FLIP, half of the patches", FLIP, flip),
        "lit": Learner("LiT on our MAE", locked, known, features, held_out, held_out_view),
        "clip-fresh": replace(usual, name="CLIP of an MAE's and an MLM's encoders, fresh", make=lambda: ours(False)),
        "clip-ours": replace(usual, name="the same from our MAE and our MLM", make=lambda: ours(True)),
    }


def asked(model: Objective, tests: list[Asked]) -> list[dict[str, Any]]:
    assert isinstance(model, CLIP)
    return [row for test in tests for row in test.answers(model)]


def told(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of one question together."""
    columns = dict.fromkeys(["asked", *rows[0]])
    return sorted([{column: row[column] for column in columns} for row in rows], key=lambda row: row["asked"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--emoji", type=Path, required=True)
    parser.add_argument("--glosses", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/learning-pairs"))
    parser.add_argument("--minutes", type=float, default=6.0, help="of each training")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate at its peak")
    parser.add_argument(
        "--text-steps", type=int, default=3000, help="of the MLM, as benchmarks.learning_text's --steps"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, texts = written(options.emoji, options.out / "data"), options.out.parent / "learning-text"
    glosses, others = learning_text.parts(options.glosses, texts)
    usual = argparse.Namespace(steps=options.text_steps, batch_size=64, rate=2e-3, workers=0)
    learning_text.pretrained(learning_text.objective(glosses.vocabulary), glosses, others, texts / "bert", usual)
    vocabulary = glosses.vocabulary
    tests = [Asked(what, data / f"{part}.tar", vocabulary) for part, what in QUESTIONS.items()]
    rows: list[dict[str, Any]] = []
    for folder, learner in learners(data, options.out, texts / "bert", vocabulary).items():
        run = options.out / folder
        if folder == "clip":
            torch.manual_seed(SEED)
            untrained = {"model": "random initialisation", "steps": 0, "training, minutes": 0}
            rows += [{**untrained, **row} for row in asked(learner.make(), tests)]
            guess = {**untrained, "model": "none: any order, and the largest category"}
            rows += [{**guess, **row} for test in tests for row in test.guesses()]
        model = learner.train(run, options)
        if folder != "mae":
            took = {
                "model": learner.name,
                "steps": read_metrics(run)[-1]["step"],
                "training, minutes": minutes(run, options.batch_size),
            }
            rows += [{**took, **row} for row in asked(model, tests)]
            print(markdown(told(rows)), flush=True)
    rows = told(rows)
    used = {name: value for name, value in vars(options).items() if name not in ("emoji", "glosses", "out")}
    print(f"\n{device_name(CPU)}\n\n{write('learning-pairs', CPU, {'settings': used, 'rows': rows})}")


if __name__ == "__main__":
    main()
