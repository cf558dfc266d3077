"""The training loop: one function that reads from top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.masking.noise import stream_key
from mmssl.objectives.objective import Objective
from mmssl.position import mark_trained
from mmssl.training import checkpoints, distributed
from mmssl.training.average import Average
from mmssl.training.gradients import Gradients, chunked_norms
from mmssl.training.journal import Journal
from mmssl.training.optim import optimizer_for, schedule, set_learning_rate, set_weight_decay
from mmssl.training.resume import Batch, BatchSource, ledger_totals, resume, save
from mmssl.training.settings import TrainSettings, autocast_dtype, large_batch, record, slow_average
from mmssl.training.stopping import Interrupted, stop_request

Prepare = Callable[[Batch], Batch]
"""Finishes a batch on the device."""


@dataclass(frozen=True)
class TrainResult:
    """`steps` finished in all, `resumed_from` of them by earlier processes, and the last row of metrics.

    `metrics` is that of rank 0, empty on other ranks and when there was nothing left to do.
    """

    steps: int
    resumed_from: int
    metrics: dict[str, Any]


def train(
    objective: Objective,
    loader: BatchSource,
    settings: TrainSettings,
    run_dir: Path,
    *,
    device: torch.device,
    prepare: Prepare | None = None,
    validate: Callable[[Objective, int], Mapping[str, float]] | None = None,
    on_log: Callable[[dict[str, Any]], None] | None = None,
    context: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainResult:
    """Train `objective` on `loader`, or go on with the newest whole checkpoint in `run_dir`.

    `prepare(batch)` finishes the loader's batches on the device, before they are split into chunks; it is not compared
    on resume, as it is to say where work is done and not what is computed. `context` holds the caller's own settings
    (model, data): they are kept beside `settings` and compared on resume.
    `validate(objective, step)` runs on rank 0, in eval mode and without gradients, and must not use collectives; its
    numbers join the metrics. `on_log` gets each row of metrics. `objective.before_step(progress)` comes before the
    forward pass and is the place for schedules, `after_step(progress)` after the optimizer and is the place for
    teachers; `progress` is the share of steps already done. With `settings.ema` what is validated, and what is left in
    `objective` and the folder `final`, are the averaged weights; checkpoints hold both. `clock` gives seconds.

    Every random choice of a step follows from (seed, step, rank), torch's global generator included, which is seeded
    anew each step; so a resumed run gives the same bits on a CPU. Raises UserError for settings that cannot be met, a
    loss or gradient that is not finite (before the optimizer or a teacher changes), a full disk, too many broken files;
    Interrupted after SIGTERM or SIGINT, which are answered by a line at once and heard after each chunk of a step: one
    that is not finished then is dropped, as if it had never begun.
    """
    world, main = distributed.world_size(), distributed.rank() == 0
    if loader.batch_size != settings.batch_size:
        raise ValueError(f"the loader's batch_size is {loader.batch_size}, the settings' {settings.batch_size}.")
    if settings.batch_size % (world * settings.accumulate):
        raise UserError(
            f"batch_size={settings.batch_size} does not divide into {world} ranks x accumulate={settings.accumulate}: "
            "choose a multiple."
        )
    total = settings.total_steps(loader.steps_per_epoch)
    rates = schedule(settings, loader.steps_per_epoch)
    low_precision = autocast_dtype(settings.precision, device)
    where = {"device": device.type, "world_size": world, "autocast": str(low_precision or "off")}
    settled = record(settings, {**(context or {}), **where})

    objective.to(device).train()
    optimizer = optimizer_for(objective, settings, device)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    average = None if settings.ema is None else Average(objective, settings.ema)
    start, notes = resume(run_dir, objective, optimizer, loader, settled, average)
    notes += large_batch(settings.batch_size, loader.steps_per_epoch, total) + slow_average(settings.ema, total)
    notes += chunked_norms(objective, settings.batch_size // world // settings.accumulate, settings.accumulate)
    gradients_of = Gradients(objective, settings.accumulate, device, low_precision, settings.compile)

    row: dict[str, Any] = {}
    book = partial(Journal, run_dir, start, total, settled, notes, clock, settings.tracker)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_request())
        journal = stack.enter_context(closing(book())) if main else None
        if journal and world == 1:  # also when the run stops between two log lines
            stack.callback(lambda: journal.list_skipped(ledger_totals(loader)["skipped"]))
        # closed on the way out, whatever the reason, so that the loader's workers end with the loop
        batches = stack.enter_context(closing(cast(Generator[Batch, None, None], loader.batches(start, total))))
        seen, skipped = loader.ledger.seen, len(loader.ledger.skipped)
        busy, busy_steps, began = 0.0, 0, clock()
        for step, batch in enumerate(batches, start):
            if len(batch["sample_id"]) * world != settings.batch_size:
                raise ValueError(
                    f"the loader gave {len(batch['sample_id'])} samples to each of {world} ranks, which is not "
                    f"batch_size={settings.batch_size}: give it rank= and world_size=."
                )
            progress = step / total
            rate = rates(step)
            set_learning_rate(optimizer, rate)
            set_weight_decay(optimizer, settings, progress)
            optimizer.zero_grad()
            _seed(settings.seed, step)
            objective.before_step(progress)
            batch = placed(batch, device, prepare)
            gradients = gradients_of(batch, stop, partial(journal.chunk, step + 1) if journal else None)
            if gradients is None:
                loader.ledger.seen = seen  # the batch that was begun will be read again
                del loader.ledger.skipped[skipped:]
                if step > 0:
                    save(run_dir, step, objective, optimizer, loader, settled, settings.keep, average)
                saved = f"step {step} is saved" if step else "and none was finished before"
                raise _stopped(journal, f"in step {step + 1}, which is dropped", saved)
            loss, parts = gradients
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

            not_finite = ~(loss.isfinite() & norm.isfinite())
            stopping = torch.tensor(stop.made, device=device)
            any_not_finite, any_stopping = distributed.any_rank(torch.stack([not_finite, stopping]))
            if any_not_finite:
                raise _not_finite_error(run_dir, step, loader, batch, loss, norm)
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
            optimizer.step()
            objective.after_step(progress)
            if average:
                average.follow()

            done, took = step + 1, clock() - began
            busy, busy_steps = busy + took, busy_steps + 1
            if journal:
                journal.advance(done, took)
            if _due(settings.log_every, done, total) or _due(settings.validate_every, done, total) or done == total:
                names = sorted(parts)
                values = distributed.mean(torch.stack([loss, *(parts[name] for name in names)])).tolist()
                ledger = ledger_totals(loader)
                if journal:
                    row = {
                        "step": done,
                        "epoch": done / loader.steps_per_epoch,
                        "loss": values[0],
                        "parts": dict(zip(names, values[1:], strict=True)),
                        "lr": rate,
                        "grad_norm": norm.item(),
                        "samples_per_second": busy_steps * settings.batch_size / busy,
                        "seen": ledger["seen"],
                        "skipped": len(ledger["skipped"]),
                    }
                    if validate and _due(settings.validate_every, done, total):
                        with average.in_place() if average else nullcontext():
                            row.update(_validation(validate, objective, done))
                    journal.log(row, busy_steps / busy)
                    journal.list_skipped(ledger["skipped"])
                    if on_log:
                        on_log(row)
                busy, busy_steps = 0.0, 0
            elif journal:
                journal.tick(done, loss, busy_steps / busy)
            if any_stopping or done == total or _due(settings.save_every, done, total):
                save(run_dir, done, objective, optimizer, loader, settled, settings.keep, average)
            if any_stopping and done < total:
                raise _stopped(journal, f"after step {done}", "which is saved")
            seen, skipped = loader.ledger.seen, len(loader.ledger.skipped)
            began = clock()
    if average:
        average.settle()
    mark_trained(objective)  # on every rank, as saving does on the first
    if main:
        objective.save_pretrained(run_dir / "final")
    distributed.barrier()
    return TrainResult(max(start, total), start, row)


def placed(batch: Batch, device: torch.device, prepare: Prepare | None = None) -> Batch:
    """A loader's batch as the objective reads it: on the device, and there finished by `prepare`."""
    batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return batch if prepare is None else prepare(batch)


def _due(every: int, done: int, total: int) -> bool:
    return every > 0 and (done % every == 0 or done == total)


def _seed(seed: int, step: int) -> None:
    high, low = stream_key(seed, "train/torch", epoch=step, draw=distributed.rank())
    torch.manual_seed(high << 32 | low)


def _stopped(journal: Journal | None, when: str, saved: str) -> Interrupted:
    if journal:
        journal.say(f"stopped by a signal {when}, {saved}: run the same command again.")
    return Interrupted()


def _validation(validate: Callable[[Objective, int], Mapping[str, float]], objective: Objective, step: int) -> Any:
    objective.eval()
    with torch.no_grad():
        values = validate(objective, step)
    objective.train()
    return values


def _not_finite_error(
    run_dir: Path, step: int, loader: BatchSource, batch: Batch, loss: Tensor, norm: Tensor
) -> UserError:
    """Every rank calls this; rank 0 lists all samples of the ranks to blame in not_finite.json."""
    reports = distributed.gather((bool(loss.isfinite()), bool(norm.isfinite()), batch["sample_id"].tolist()))
    blamed = [rank for rank, (loss_is_finite, _, _) in enumerate(reports) if not loss_is_finite]
    what = "loss" if blamed else "gradient norm"
    blamed = blamed or [rank for rank, (_, norm_is_finite, _) in enumerate(reports) if not norm_is_finite]
    name = getattr(getattr(loader, "source", None), "name", str)
    samples = [name(sample) for rank in blamed for sample in reports[rank][2]]
    listing = run_dir / "not_finite.json"
    if distributed.rank() == 0:
        checkpoints.replace_file(listing, json.dumps({"step": step + 1, "ranks": blamed, "samples": samples}).encode())
    return UserError(
        f"step {step + 1}: the {what} is not finite on rank {', '.join(map(str, blamed))}, with the samples "
        f"{', '.join(samples[:8])}{f' and {len(samples) - 8} more, see {listing}' if len(samples) > 8 else ''}; "
        "nothing was changed by this step: look at these samples, lower base_lr, or use precision fp32."
    )
