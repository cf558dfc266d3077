"""What MultiMAE learns from tiles of the Earth, against MAE on colours alone, random initialisation and raw pixels.

    python -m benchmarks.learning_multimae --earth DIR                  # everything; 20 minutes on one CPU core
    python -m benchmarks.learning_multimae --earth DIR --minutes 0.1    # does it run at all

DIR holds the rasters of `mmssl data earth-tiles`, which cuts them into aligned tiles of colours, elevation in metres and
land, ocean and lakes, 64 pixels a side; the test part lies in other blocks of longitude. MultiMAE learns from all three,
MAE from the colours; both have the same encoder, four blocks of 192 on patches of 8, and as many steps as the minutes
hold, by the time that a step takes alone at the start. Neither sees the test part.

Asked is the test part, every pixel, by a linear probe from the features of a patch to all its pixels, fitted on the
training part: elevation on land from colours (R² and mean absolute error in metres), land from elevation and land from
colours (mean IoU and pixel accuracy, and those of tiles where land and ocean meet alone). Floors are the same probe of
the raw values of the patch, of the tile's latitude and of nothing; of land from elevation also "above 0 m".
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning import minutes
from benchmarks.machine import device_name, markdown, write
from mmssl import MAE, Encoder, MultiMAE
from mmssl.data import AlignedSource, AskedView, Crop, EvalView, Source, evaluation_batches, subset
from mmssl.data.aligned import TARGET
from mmssl.data.rasters import Raster, declared_in
from mmssl.datasets import write_earth_tiles
from mmssl.datasets.earth import TILE, latitude
from mmssl.evaluation import (
    Question,
    cell_nothing,
    cell_number,
    cell_tokens,
    cell_values,
    fit_dense,
    grid_of_cells,
    score_dense,
)
from mmssl.evaluation.dense import LabelScores
from mmssl.objectives import Objective
from mmssl.objectives.mae import mae_config
from mmssl.objectives.multimae import multimae_config
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import write_report
from mmssl.training import TrainSettings
from mmssl.training.journal import read_metrics

PATCH, DEPTH, DECODER, TRIED, SEED, CPU = 8, 4, (96, 1), 8, 0, torch.device("cpu")
OCEAN, LAND = 0, 1
MULTI, ALONE = "MultiMAE", "MAE on colours"


def methods(rasters: dict[str, Raster]) -> dict[str, tuple[Callable[[], Objective], tuple[Raster, ...]]]:
    """Each with the rasters that it reads."""

    def multi() -> MultiMAE:
        modalities, cells = tuple(raster.modality for raster in rasters.values()), TILE // PATCH
        config = multimae_config(
            "tiny", modalities=modalities, grid=(cells, cells), seed=SEED,
            decoder_dim=DECODER[0], decoder_depth=DECODER[1],
        )  # fmt: skip
        return MultiMAE(replace(config, encoder=_shallow(config.encoder)))

    def alone() -> MAE:
        config = mae_config(
            "tiny", size=TILE, patch=PATCH, norm_pix=True, seed=SEED,
            decoder_dim=DECODER[0], decoder_depth=DECODER[1],
        )  # fmt: skip
        return MAE(replace(config, encoder=_shallow(config.encoder)))

    return {MULTI: (multi, tuple(rasters.values())), ALONE: (alone, (rasters["image"],))}


def _shallow(encoder: Any) -> Any:
    return replace(encoder, transformer=replace(encoder.transformer, depth=DEPTH))


def pretrained(
    make: Callable[[], Objective], rasters: tuple[Raster, ...], data: Path, run: Path, options: argparse.Namespace
) -> Objective:
    """Trained for as many steps as the minutes hold, or on from what is there."""
    with tempfile.TemporaryDirectory() as scratch:
        _trained(make(), rasters, data, Path(scratch) / "run", TRIED, 1, options)
        rows = read_metrics(Path(scratch) / "run")[TRIED // 2 :]
    second = statistics.median(options.batch_size / row["samples_per_second"] for row in rows)
    torch.manual_seed(SEED)
    method = make()
    _trained(method, rasters, data, run, max(TRIED, round(60 * options.minutes / second)), 20, options)
    return method


def _trained(
    method: Objective,
    rasters: tuple[Raster, ...],
    data: Path,
    run: Path,
    steps: int,
    log_every: int,
    options: argparse.Namespace,
) -> None:
    settings = TrainSettings(
        steps=steps,
        batch_size=options.batch_size,
        warmup_steps=steps // 10,
        base_lr=options.rate * 256 / options.batch_size,
        log_every=log_every,
        save_every=1000,
        validate_every=max(1, steps // 4),
        seed=SEED,
    )
    train, val = (AlignedSource(data / part, rasters) for part in ("train", "val"))
    pretrain(
        method,
        train,
        val,
        settings,
        run,
        view=train.view(Crop(TILE, scale=(0.5, 1.0))),
        held_out_view=val.view(EvalView(TILE, resize=TILE)),
        device=CPU,
        watch=64,
        context={"method": type(method).__name__},
    )


@dataclass(frozen=True)
class Asked:
    """What is asked of a raster at every pixel."""

    data: Path
    source: Raster
    target: Raster
    where: Raster | None = None

    def part(self, name: str) -> AlignedSource:
        rasters = [self.source, self.target, *([self.where] if self.where else [])]
        return AlignedSource(self.data / name, rasters)

    def batches(self, part: Source) -> Iterator[dict[str, Tensor]]:
        view = AskedView(EvalView(TILE, resize=TILE), (self.source,), self.target, self.where)
        return evaluation_batches(part, view, batch_size=66)

    def rows(self, encoders: dict[str, Encoder]) -> list[dict[str, Any]]:
        """What probes of all encoders that read the source make of the test part."""
        reads = {name: each.eval() for name, each in encoders.items() if self.source.name in each.tokenizers}
        first = next(iter(reads.values()))
        train, test = self.part("train"), self.part("test")
        question = Question(
            self.target.modality, lambda batch: grid_of_cells(first, batch), ("land", (LAND,)) if self.where else None
        )
        floors = {"none: mean, or largest class": cell_nothing(first), "raw pixels of the patch": cell_values(first)}
        ways = {**floors, **{name: cell_tokens(each) for name, each in reads.items()}}
        latitudes = {part: {i: latitude(part.name(i)) for i in range(len(part))} for part in (train, test)}

        def all_ways(part: AlignedSource) -> dict[str, Any]:
            return {"latitude": cell_number(first, latitudes[part]), **ways}

        fitted = fit_dense(all_ways(train), question, self.batches(train), samples=len(train))
        found = {row.representation: row.scores for row in score_dense(fitted, all_ways(test), question, self.batches(test))}
        if not question.labels:
            return [
                {"encoder": name, "R²": round(each["r2"], 3), "error, m": round(each["absolute"])}
                for name, each in found.items()
            ]
        coast = subset(test, self.coast(test))
        beside = score_dense({n: fitted[n] for n in ways}, ways, question, self.batches(coast))
        apart = {row.representation: row.scores for row in beside}
        if self.source.name == "elevation":
            name = "none: above 0 m"
            found[name], apart[name] = (self.above(part) for part in (test, coast))
        return [
            {
                "encoder": name,
                **{what: round(100 * each[key], 1) for what, key in (("mean IoU", "miou"), ("accuracy", "accuracy"))},
                **{f"{kind} IoU": round(100 * each["iou"][number], 1) for number, kind in enumerate(KINDS)},
                **{f"coast, {kind} IoU": round(100 * apart[name]["iou"][number], 1) for number, kind in enumerate(KINDS)},
            }
            for name, each in found.items()
            if name in apart
        ]
