"""From a source of media to a run folder: training, watched on what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mmssl.data import (
    DrawnSource,
    FolderSource,
    Ledger,
    Loader,
    Source,
    Stage,
    StagedLoader,
    View,
    blending_told,
    evaluation_batches,
    subset,
)
from mmssl.encoder import Encoder
from mmssl.errors import UserError, as_text
from mmssl.evaluation import effective_rank, extract, watched_accuracies
from mmssl.objectives import Objective
from mmssl.pretraining.header import header
from mmssl.report.run import PICTURES
from mmssl.training import TrainResult, TrainSettings, autocast_dtype, distributed, train
from mmssl.training.checkpoints import replace_file
from mmssl.training.loop import Prepare, placed

_SHOWN = 12

Judge = Callable[[Objective, int], Mapping[str, float]]
"""Measures an objective in eval mode at a step, for the curves."""


def accumulation(batch_size: int, world_size: int, at_once: int) -> int:
    """Into how many equal chunks a rank's batch is split so that none is larger than `at_once`.

    Raises UserError for a batch that does not divide among the processes, or none at all.
    """
    local = batch_size // world_size
    if local < 1 or batch_size % world_size or at_once < 1:
        raise UserError(
            f"a batch of {batch_size}, {at_once} at once, does not divide among {world_size} processes: "
            "choose a positive multiple"
        )
    chunks = next(chunks for chunks in range(1, local + 1) if local % chunks == 0 and local // chunks <= at_once)
    if chunks > 1 and 4 * (local // chunks) < at_once:
        raise UserError(
            f"a batch of {batch_size} over {world_size} processes splits into chunks of {local // chunks} at most, far "
            f"below {at_once} at once: choose a batch with more divisors, such as a power of two"
        )
    return chunks


def pretrain(
    objective: Objective,
    media: Source,
    held_out: Source,
    settings: TrainSettings,
    run_dir: Path,
    *,
    view: View,
    held_out_view: View,
    device: torch.device,
    prepare: Prepare | None = None,
    workers: int = 0,
    repeats: int = 1,
    watch: int = 1024,
    ceiling: float = 0.001,
    context: Mapping[str, Any] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    beside: Mapping[str, bytes] | None = None,
    first: Stage | None = None,
    judge: Judge | None = None,
    labelled: bool = False,
    partners: bool = False,
) -> TrainResult:
    """Train on `media`, watching loss and effective rank on `watch` samples of `held_out`, and where these have labels,
    what kNN and a linear probe make of their features; or what `judge` finds, instead.

    prepare: what the views leave to the device, done there with each batch of training and with those that are watched
    (see `mmssl.audio.spectrograms`). repeats: views of each sample in a row, for media that are costly to open. The run
    folder gets all a report needs. beside: files, by name, that go with the model: into the run's folder and its last
    model's. first: what the first steps read instead of `media`. labelled, partners: what batches of training hold
    besides (see `Loader`).
    """
    if as_text(str(run_dir)) != str(run_dir):
        raise UserError(f"the run folder {run_dir} has a name that is not UTF-8, which TensorBoard needs: rename it.")
    loading = partial(
        Loader,
        batch_size=settings.batch_size,
        seed=settings.seed,
        workers=workers,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        repeats=repeats,
        ceiling=ceiling,
        labelled=labelled,
        partners=partners,
    )
    rest = loading(media, view)
    low_precision = autocast_dtype(settings.precision, device)
    total, epoch = settings.total_steps(rest.steps_per_epoch), rest.steps_per_epoch
    switch = 0 if first is None else round(first.share * total)
    loader = rest if first is None else StagedLoader(loading(first.media, first.view), rest, switch)
    if distributed.rank() == 0:
        for line in header(objective, media, held_out, settings, total, epoch, run_dir, device):
            print(line, flush=True)
        if first is not None:
            print(f"{'first':<9} {switch} steps read {len(first.media)} samples as {first.view}", flush=True)
    reads = {name for part in objective.modules() if isinstance(part, Encoder) for name in part.tokenizers}
    watched, shown = distributed.on_first_rank(
        lambda: _watched(held_out, held_out_view, watch, ceiling, device, prepare, reads)
    )

    def validate(objective: Objective, step: int) -> dict[str, float]:
        with torch.autocast(device.type, low_precision, enabled=low_precision is not None):
            mean = held_out_loss(objective, watched, device)
        found = extract(objective.encoder, watched, device=device)
        rank = effective_rank(found.features)
        return {"heldout_loss": mean, "effective_rank": rank, **watched_accuracies(found)}

    def logged(row: dict[str, Any]) -> None:
        if not (run_dir / PICTURES).is_file():  # not before the run is known to go on, but soon: a report needs them
            _leave(run_dir, {PICTURES: save(shown), **(beside or {})})
        if on_log:
            on_log(row)

    told: dict[str, Any] = {**(context or {}), **_told(media, view), "repeats": repeats}
    if first is not None:
        told["first"] = {"share": first.share, **_told(first.media, first.view)}
    result = train(
        objective,
        loader,
        settings,
        run_dir,
        device=device,
        prepare=prepare,
        validate=judge or validate,
        on_log=logged,
        context=told,
    )
    seen_through = set[int]().union(*distributed.gather(loader.ledger.blended))
    if distributed.rank() == 0:
        for line in blending_told(len(seen_through)):
            print(line)
        _leave(run_dir, {PICTURES: save(shown), **(beside or {})})
        _leave(run_dir / "final", beside or {})
    return result


def _told(media: Source, view: View) -> dict[str, str]:
    """What is read, as a resumed run must find it."""
    sampling = {"sampling": media.sampling} if isinstance(media, (DrawnSource, FolderSource)) else {}
    return {"view": str(view), "media": fingerprint(media), **sampling}


def _leave(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        replace_file(folder / name, content)


def held_out_loss(objective: Objective, watched: list[dict[str, Tensor]], device: torch.device) -> float:
    """The mean over the watched samples, or of a method that compares samples the loss of all of them together."""
    batches = ({name: value.to(device) for name, value in batch.items()} for batch in watched)
    if objective.compares_samples:
        found = [objective.features(batch) for batch in batches]
        return float(objective.compare({name: torch.cat([each[name] for each in found]) for name in found[0]}).loss)
    counts = [len(batch["sample_id"]) for batch in watched]
    losses = [float(objective(batch).loss) for batch in batches]
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


def _watched(
    held_out: Source,
    view: View,
    most: int,
    ceiling: float,
    device: torch.device,
    prepare: Prepare | None,
    reads: Set[str],
) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Batches of the held-out samples that are watched, on the CPU, and what the report shows of the first: all of the
    modalities that the model `reads`, and what `prepare` made it of. Samples that cannot be read are named."""
    chosen = torch.linspace(0, len(held_out) - 1, min(len(held_out), most)).long().unique().tolist()
    ledger = Ledger()
    batches: list[dict[str, Tensor]] = []
    firsts: list[dict[str, Tensor]] = []
    for read in evaluation_batches(subset(held_out, chosen), view, batch_size=max(1, most // 16), ledger=ledger):
        batch = {name: value.cpu() for name, value in placed(read, device, prepare).items()}
        if sum(len(each["sample_id"]) for each in batches) < _SHOWN:
            firsts.append({n: v for n, v in (read | batch).items() if n.partition(".")[0] in reads or n not in batch})
        batches.append(batch)
    for name, reason in ledger.skipped:
        print(f"held-out sample skipped: {name} {reason}")
    for line in blending_told(len(ledger.blended)):
        print(f"held-out samples: {line}")
    ledger.judge(ceiling, len(chosen))
    return batches, {name: torch.cat([first[name] for first in firsts])[:_SHOWN] for name in firsts[0]}


def fingerprint(source: Source) -> str:
    """How many samples, and a hash of their names: what a resumed run must find unchanged, wherever it lies."""
    digest = hashlib.blake2b(digest_size=8)
    for index in range(len(source)):
        digest.update(source.name(index).encode("utf-8", "surrogateescape") + b"\0")
    return f"{len(source)} samples, {digest.hexdigest()}"
