"""What MultiMAE learns from tiles of the Earth, against MAE on colours alone, random initialisation and raw pixels.

    python -m benchmarks.learning_multimae --earth DIR                 # everything; half an hour on one CPU core
    python -m benchmarks.learning_multimae --earth DIR --steps 20      # does it run at all

DIR holds the rasters of `mmssl data earth-tiles`, which cuts them into aligned tiles of colours, elevation in metres
and land, ocean and lakes, 64 pixels a side, in parts that lie in other blocks of longitude. MultiMAE learns from all
three, MAE from the colours. Both have the same encoder, four blocks of 128 on patches of 8, see the same samples for as
many steps, and as many patches of each: 32, MultiMAE of 192, MAE of 64. MAE is trained with the paper's 16, too.

Asked is every pixel of the test part, by a linear probe from the features of a patch to all pixels in it, fitted on the
training part: elevation on land from colours (R² and mean absolute error in metres), land from elevation, and land from
colours (intersection over union, of tiles where land meets the ocean apart). Beside the encoders stand the same probe
of random initialisation, of the patch's raw values, of the tile's latitude and of nothing; of land from elevation also
"above 0 m is land".
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning import minutes
from benchmarks.machine import device_name, markdown, write
from mmssl import MAE, Encoder, MultiMAE
from mmssl.data import AlignedSource, AskedView, Crop, EvalView, Source, evaluation_batches, subset
from mmssl.data.aligned import TARGET, open_declared
from mmssl.data.rasters import Raster, declared
from mmssl.datasets import write_earth_tiles
from mmssl.datasets.earth import TILE, latitude
from mmssl.encoder import EncoderConfig
from mmssl.evaluation import (
    Question,
    cell_nothing,
    cell_number,
    cell_tokens,
    cell_values,
    fit_dense,
    grid_of_cells,
    score_dense,
    untrained,
)
from mmssl.evaluation.dense import CellFeatures, LabelScores
from mmssl.objectives import Objective
from mmssl.objectives.mae import mae_config
from mmssl.objectives.multimae import multimae_config
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import write_report
from mmssl.training import TrainSettings

PATCH, SEED, CPU = 8, 0, torch.device("cpu")
ENCODER: dict[str, Any] = {"dim": 128, "depth": 4, "heads": 4}
DECODER: dict[str, Any] = {"decoder_dim": 64, "decoder_depth": 1}
OCEAN, LAND, KINDS = 0, 1, ("ocean", "land", "lake")
VISIBLE = 32
MULTI = "MultiMAE"
ALONE = {f"MAE on colours, {visible} patches": visible for visible in (VISIBLE, 16)}
WHOLE = EvalView(TILE, resize=TILE)


def methods(rasters: Mapping[str, Raster]) -> dict[str, tuple[Objective, list[Raster]]]:
    """Each with the rasters that it reads."""
    torch.manual_seed(SEED)
    cells = TILE // PATCH
    multi = multimae_config(
        "tiny", modalities=tuple(each.modality for each in rasters.values()), grid=(cells, cells), visible=VISIBLE,
        seed=SEED, **DECODER,
    )  # fmt: skip
    found: dict[str, tuple[Objective, list[Raster]]] = {
        MULTI: (MultiMAE(replace(multi, encoder=small(multi.encoder))), [*rasters.values()])
    }
    for name, visible in ALONE.items():
        alone = mae_config(
            "tiny", size=TILE, patch=PATCH, norm_pix=True, mask_ratio=1 - visible / cells**2, seed=SEED, **DECODER
        )
        found[name] = MAE(replace(alone, encoder=small(alone.encoder))), [rasters["image"]]
    return found


def small(encoder: EncoderConfig) -> EncoderConfig:
    """The same with a transformer that learns in minutes."""
    return replace(encoder, transformer=replace(encoder.transformer, **ENCODER))


def pretrained(
    name: str, method: Objective, rasters: Sequence[Raster], data: Path, run: Path, options: argparse.Namespace
) -> None:
    """Train one method into its run folder, or go on with what is there."""
    settings = TrainSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        warmup_steps=options.steps // 10,
        base_lr=1e-3 * 256 / options.batch_size,
        log_every=20,
        save_every=500,
        validate_every=max(1, options.steps // 4),
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
        held_out_view=val.view(WHOLE),
        device=CPU,
        workers=options.workers,
        watch=64,
        context={"method": name},
    )


@dataclass(frozen=True)
class Asked:
    """What is asked of a raster at every pixel. where: a label map, whose land counts alone."""

    data: Path
    source: Raster
    target: Raster
    where: Raster | None = None

    def part(self, name: str) -> AlignedSource:
        rasters = dict.fromkeys([self.source, self.target, *([self.where] if self.where else [])])
        return open_declared(self.data / name, None, tuple(rasters))

    def batches(self, part: Source) -> Iterator[dict[str, torch.Tensor]]:
        view = AskedView(WHOLE, (self.source,), self.target, self.where)
        return evaluation_batches(part, view, batch_size=66)

    def rows(self, encoders: Mapping[str, Encoder]) -> list[dict[str, Any]]:
        """What probes of all encoders that read the source make of the test part."""
        reads = {name: each.eval() for name, each in encoders.items() if self.source.name in each.tokenizers}
        first = next(iter(reads.values()))
        where = (self.where.name, (LAND,)) if self.where else None
        question = Question(self.target.modality, partial(grid_of_cells, first), where)
        floor = "none: largest class" if question.labels else "none: mean"

        def ways(part: AlignedSource, chosen: Sequence[int]) -> dict[str, CellFeatures]:
            north = {number: latitude(part.name(index)) for number, index in enumerate(chosen)}
            floors = {floor: cell_nothing(first), "latitude": cell_number(first, north)}
            raw = {"raw values of the patch": cell_values(first)}
            return {**floors, **raw, **{name: cell_tokens(each) for name, each in reads.items()}}

        train, test = self.part("train"), self.part("test")
        fitted = fit_dense(ways(train, range(len(train))), question, self.batches(train), samples=len(train), seed=SEED)

        def scored(chosen: Sequence[int]) -> dict[str, dict[str, Any]]:
            part = subset(test, chosen)
            found = score_dense(fitted, ways(test, chosen), question, self.batches(part))
            return {row.representation: row.scores for row in found} | self.known(part)

        found = scored(range(len(test)))
        if not question.labels:
            return [
                {"encoder": name, "R²": round(each["r2"], 3), "mean absolute error, m": round(each["absolute"], 1)}
                for name, each in found.items()
            ]
        coast = scored(self.coast(test))
        return [
            {
                "encoder": name,
                **percent(each),
                **{f"coast: {column}": value for column, value in percent(coast[name]).items()},
            }
            for name, each in found.items()
        ]

    def known(self, part: Source) -> dict[str, dict[str, Any]]:
        """Of land from elevation what needs no model: all above 0 m, each label being that of the pixel in the middle
        of those that it stands for."""
        if self.source.name != "elevation" or self.target.name != "land":
            return {}
        scores, stride = LabelScores.none(len(KINDS)), self.target.stride
        for batch in self.batches(part):
            middle = batch["elevation"][:, 0, stride // 2 :: stride, stride // 2 :: stride]
            scores.add(torch.where(middle > 0, LAND, OCEAN).flatten(), batch[f"land{TARGET}"].flatten())
        return {"none: land above 0 m": scores.told()}

    def coast(self, part: AlignedSource) -> list[int]:
        """The tiles that have both land and ocean."""
        found = []
        for index in range(len(part)):
            kinds = part.read(index)["land"].unique().tolist()
            found += [index] if {OCEAN, LAND} <= set(kinds) else []
        return found


def percent(scores: Mapping[str, Any]) -> dict[str, float]:
    """Pixels that are right, and intersection over union of the kinds, all in per cent."""
    shares = {f"{kind} IoU, %": scores["iou"][number] or 0.0 for number, kind in enumerate(KINDS)}
    return {name: round(100 * share, 1) for name, share in {"accuracy, %": scores["accuracy"], **shares}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--earth", type=Path, required=True, help="folder with the three rasters")
    parser.add_argument("--out", type=Path, default=Path("runs/learning-multimae"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    data = options.out / "tiles"
    counts = write_earth_tiles(data, options.earth)
    rasters = {raster.name: raster for raster in declared(data)}
    made = methods(rasters)
    encoders = {"random initialisation": untrained(made[MULTI][0].encoder)}
    training: list[dict[str, Any]] = []
    for name, (method, read) in made.items():
        run = options.out / name.lower().replace(", ", "-").replace(" ", "-")
        pretrained(name, method, read, data, run, options)
        encoders[name] = method.encoder
        visible = ALONE.get(name, VISIBLE)
        tokens = options.steps * options.batch_size * visible
        spent = {"visible patches": visible, "million visible patches in all": round(tokens / 1e6, 2)}
        training.append({"encoder": name, **spent, "minutes": minutes(run, options.batch_size)})
        print(f"{markdown(training)}\n{write_report(run)}", flush=True)
    asked: dict[str, Callable[[Mapping[str, Encoder]], list[dict[str, Any]]]] = {
        "elevation": Asked(data, rasters["image"], rasters["elevation"], rasters["land"]).rows,
        "land": Asked(data, rasters["elevation"], rasters["land"]).rows,
        "colours": Asked(data, rasters["image"], rasters["land"]).rows,
    }
    content: dict[str, Any] = {"training": training}
    for name, each in asked.items():
        content[name] = each(encoders)
        print(f"\n{name}\n\n{markdown(content[name])}", flush=True)
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "earth")}
    content = {"settings": settings, "tiles": counts, **content}
    print(f"\n{device_name(CPU)}\n\n{write('learning-multimae', CPU, content)}")


if __name__ == "__main__":
    main()
