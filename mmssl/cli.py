"""`mmssl demo | data | embed | evaluate | export | report`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mmssl.errors import UserError


def run(command: Callable[[], None]) -> int:
    """Run a command for a person: bad input gives one sentence and exit code 2, Ctrl-C exit code 130."""
    try:
        command()
    except (UserError, OSError) as error:
        print(f"mmssl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


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
class Data:
    """Fetch a data set: the path you give, a Debian package on this machine, a download, the first that works."""

    name: tyro.conf.Positional[Literal["fashion-mnist"]]
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """A folder that already has the files."""
    out: Path = Path("runs/data/fashion-mnist")

    def __call__(self) -> None:
        from mmssl.data import fetch_fashion_mnist

        print(fetch_fashion_mnist(self.out, self.source))


@dataclass(frozen=True)
class Embed:
    """Write one feature vector a picture: .parquet (name, label, feature) or .npz (names, labels, features)."""

    model: Path
    """Model folder: of this library or transformers' ViT or ViTMAE."""
    data: Path
    """Folder of pictures."""
    out: Path = Path("features.parquet")
    pool: Literal["mean", "class"] = "mean"
    batch_size: int = 64
    workers: int = 2
    device: str = "auto"

    def __call__(self) -> None:
        from mmssl.commands import embed

        embed(self.model, self.data, self.out, self.pool, self.batch_size, self.workers, self.device)


@dataclass(frozen=True)
class Evaluate:
    """kNN and linear probe of a frozen encoder on a labelled folder (class folders; may hold `train` and `val`)."""

    model: Path
    """Model folder: of this library or transformers' ViT or ViTMAE."""
    data: Path
    """Labelled pictures; without a test part a fifth is held out."""
    out: Path | None = None
    """Folder for accuracies.json."""
    pool: Literal["mean", "class"] = "mean"
    batch_size: int = 64
    workers: int = 2
    device: str = "auto"

    def __call__(self) -> None:
        from mmssl.commands import evaluate

        evaluate(self.model, self.data, self.out, self.pool, self.batch_size, self.workers, self.device)


@dataclass(frozen=True)
class Export:
    """Write a model for transformers (ViTMAE: `vit_mae`, ViT: `vit`, a folder each) or timm (its weights)."""

    model: Path
    out: Path
    to: Literal["vit_mae", "vit", "timm"] = "vit"

    def __call__(self) -> None:
        from mmssl.commands import export

        export(self.model, self.out, self.to)


@dataclass(frozen=True)
class Report:
    """Draw report.html of a finished run again."""

    run: tyro.conf.Positional[Path]

    def __call__(self) -> None:
        from mmssl.report.run import write_report

        print(write_report(self.run))


def main() -> None:
    command = tyro.cli(Demo | Data | Embed | Evaluate | Export | Report, prog="mmssl", description=__doc__)
    sys.exit(run(command))
