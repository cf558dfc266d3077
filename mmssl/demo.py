"""`mmssl demo`: pretrain a small masked autoencoder on real pictures, evaluate it, show what it learned."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from mmssl.data import EvalView, Source, TrainView, evaluation_batches, open_source
from mmssl.datasets import digits_source, fetch_fashion_mnist
from mmssl.decoder import DecoderConfig
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import UserError
from mmssl.evaluation import FeatureSet, Row, evaluate, extract, label_budgets, penalties, pivot, pixels
from mmssl.modality import Modality
from mmssl.objectives import MAE, MAEConfig
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import ACCURACIES, write_report
from mmssl.tokenizer import TokenizerConfig
from mmssl.training import TrainSettings
from mmssl.transformer import TransformerConfig

# Mean and deviation of Fashion-MNIST's training pixels.
_MEAN, _STD = (0.286,), (0.353,)
CROPS = (0.6, 1.0)


def demo_config(size: int) -> MAEConfig:
    """The demo's departures from the paper, chosen by `benchmarks/demo_search.py`: large patches and a wide and shallow
    encoder, because a few minutes on a CPU are not enough for depth to pay, and a small decoder."""
    patch = size // 4
    modality = Modality("image", ("height", "width"), 1, (patch, patch), mean=_MEAN, std=_STD)
    encoder = EncoderConfig((TokenizerConfig(modality, (size, size)),), TransformerConfig(192, 2, 4))
    return MAEConfig(encoder, DecoderConfig(TransformerConfig(64, 1, 4)))


def demo_settings(epochs: float) -> TrainSettings:
    """Short training wants a higher rate than the paper's 1.5e-4 and a smaller batch than 4096."""
    return TrainSettings(
        epochs=epochs,
        warmup_epochs=epochs / 12,
        batch_size=256,
        base_lr=3e-3,
        precision="fp32",  # the README's numbers on every CPU, whether it has bf16 or not
        log_every=20,
        save_every=500,
        validate_every=100,
    )


def demo(data: Path | None, out: Path) -> None:
    """Data, pretraining, evaluation, report; every step says what it does."""
    console, start = Console(), time.perf_counter()
    train, test, epochs = _sources(data, console)
    size = train.read(0)["image"].shape[-1]
    console.print(f"Pretraining a masked autoencoder on {len(train):,} unlabelled pictures ...")
    torch.manual_seed(0)
    mae = MAE(demo_config(size))
    untrained = Encoder(mae.config.encoder)
    whole = EvalView(size, resize=size)
    view = TrainView(size, scale=CROPS)
    cpu = torch.device("cpu")
    told = {"method": asdict(mae.config)}
    settings = demo_settings(epochs)
    pretrain(mae, train, test, settings, out, view=view, held_out_view=whole, device=cpu, context=told)

    console.print(f"Evaluating the frozen features of {len(train) + len(test):,} pictures ...")
    rows = compare(train, test, {"random init": untrained, "pretrained": mae.encoder}, whole)
    (out / ACCURACIES).write_text(json.dumps([asdict(row) for row in rows], indent=1))
    console.print(accuracy_table(rows))
    console.print(penalties(rows), soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s. Report: {write_report(out)}", soft_wrap=True)


def compare(train: Source, test: Source, encoders: dict[str, Encoder], view: EvalView) -> list[Row]:
    """Accuracies of raw pixels and of each encoder, with a progress bar."""
    sets = (train, test)
    found: dict[str, list[FeatureSet]] = {}
    with Progress(transient=True) as bar:
        task = bar.add_task("features", total=len(encoders) * sum(map(len, sets)))
        found["raw pixels"] = [pixels(evaluation_batches(part, view, batch_size=500)) for part in sets]
        for name, encoder in encoders.items():
            found[name] = []
            for part in sets:
                advance = partial(_advance, bar, task, int(bar.tasks[task].completed))
                found[name].append(extract(encoder, evaluation_batches(part, view, batch_size=500), progress=advance))
        labels = found["raw pixels"][0].labels
        assert labels is not None
        budgets = label_budgets(labels)
        probes = bar.add_task("probes", total=2 * len(budgets) * len(found))
        rows = []
        for name, (shown, asked) in found.items():
            rows += evaluate(shown, asked, budgets, representation=name, progress=lambda _: bar.advance(probes))
    return rows


def _advance(bar: Progress, task: TaskID, base: int, done: int) -> None:
    bar.update(task, completed=base + done)


def accuracy_table(rows: list[Row]) -> Table:
    """Accuracies in %, a line a representation."""
    columns, lines = pivot(rows)
    shown = Table("", title="What the features are worth: top-1 accuracy, %")
    for probe, budget in columns:
        shown.add_column(f"{probe}\n{budget}", justify="right", no_wrap=True)
    for name, cells in lines.items():
        shown.add_row(name, *(str(cell or "").replace(" ± ", "±") for cell in cells))
    return shown


def _sources(data: Path | None, console: Console) -> tuple[Source, Source, float]:
    """Training and test pictures, and how many epochs suit them."""
    try:
        folder = fetch_fashion_mnist(Path("runs/data/fashion-mnist"), data)
    except UserError as error:
        if data is not None:
            raise
        console.print(f"Fashion-MNIST cannot be had here, so scikit-learn's digits stand in for it: {error}")
        return digits_source("train"), digits_source("test"), 150.0
    return open_source(folder, "train"), open_source(folder, "test"), 5.0
