"""Batches as a pure function of (seed, step): the same for any number of workers and, joined, for any world size."""

from __future__ import annotations

import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmssl.data.decode import BrokenSample
from mmssl.data.labels import multi_hot
from mmssl.data.source import Source, blended, label_sets, read_slots, whole_of
from mmssl.data.views import Keys, View
from mmssl.errors import UserError
from mmssl.masking.noise import permutation, random_bits

SUBSTITUTES = 64


@dataclass
class Ledger:
    """What became of the slots consumed so far: `seen` + len(`skipped`) is their number.

    `blended`: the samples among them, by `sample_id`, where the background shows through transparency.
    """

    seen: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    blended: set[int] = field(default_factory=set)

    def record(self, slots: int, skipped: list[tuple[str, str]]) -> None:
        self.seen += slots - len(skipped)
        self.skipped += skipped

    def judge(self, ceiling: float, files: int, kind: str = "files") -> None:
        """Raises UserError as soon as more than `ceiling` of all `files` are known to be broken: a file counts once.

        One broken file is let pass however few there are, unless the ceiling is 0. kind: what they are called.
        """
        broken = dict(self.skipped)
        allowed = max(math.floor(ceiling * files), min(1, math.ceil(ceiling)))
        if len(broken) > allowed:
            first = "; ".join(f"{name} {reason}" for name, reason in islice(broken.items(), 3))
            more = f"; and {len(broken) - 3} more" if len(broken) > 3 else ""
            raise UserError(
                f"{len(broken)} of {files} {kind} cannot be read, and --max-skipped {ceiling:g} allows {allowed}: "
                f"{first}{more}. Mend or remove these {kind}, or raise --max-skipped."
            )


class Plan(NamedTuple):
    """What one batch is to be made of: its slots' places in their epoch, and the keys of the samples planned there.

    Of a batch with partners the second half are theirs, whose places and draws lie beyond all that the epoch has.
    """

    position: Int64[Tensor, " batch"]
    keys: Keys


class Reading(NamedTuple):
    """One batch made: its tensors, the broken rows as (row, name, reason), why the run cannot go on, or None, and
    the samples where the background shows."""

    batch: dict[str, Tensor]
    broken: list[tuple[int, str, str]]
    failure: str | None = None
    blended: Sequence[int] = ()


class Reader(Dataset):
    """The batch of every step, as `plan` says. A broken sample's row is filled by a substitute that the noise names.

    The row's view is drawn with the planned sample's keys. A substitute's `draw` lies beyond all repeats and is its
    slot's own, so it shares no mask with the same sample elsewhere in the epoch.
    """

    def __init__(self, source: Source, view: View, plan: Callable[[int], Plan], repeats: int = 1) -> None:
        self.source, self.view, self.plan, self.repeats = source, view, plan, repeats

    def __getitem__(self, step: int) -> Reading:
        plan = self.plan(step)
        sample_id, draw = plan.keys.sample_id.clone(), plan.keys.draw.clone()
        broken: list[tuple[int, str, str]] = []
        try:
            batch = self.view(self._samples(plan, sample_id, draw, broken), plan.keys)
        except UserError as error:  # as a value: a worker's exceptions arrive wrapped in their traceback
            return Reading({}, broken, str(error))
        batch |= {"sample_id": sample_id, "epoch": plan.keys.epoch, "draw": draw, "step": torch.tensor(step)}
        shown = [index for index in sample_id.unique().tolist() if blended(self.source, index)]
        return Reading(batch, broken, None, shown)

    def _samples(
        self, plan: Plan, sample_id: Tensor, draw: Tensor, broken: list[tuple[int, str, str]]
    ) -> Iterator[dict[str, Tensor]]:
        keys = plan.keys
        for index, group in groupby(range(len(sample_id)), sample_id.tolist().__getitem__):
            rows = list(group)  # repeats of a sample are neighbours and are decoded once
            slots = Keys(keys.seed, *(each[rows[0] : rows[-1] + 1] for each in keys[1:]))
            try:
                samples = read_slots(self.source, index, slots)
            except BrokenSample as error:
                for row in rows:
                    broken.append((row, self.source.name(index), error.reason))
                    sample_id[row], draw[row], sample = self._substitute(plan, row)
                    yield sample
            else:
                yield from samples

    def _substitute(self, plan: Plan, row: int) -> tuple[int, Tensor, dict[str, Tensor]]:
        """(sample_id, draw, sample) of what fills a broken row, drawn with its own keys."""
        keys, reason = plan.keys, ""
        slot, epoch = plan.position[row : row + 1], keys.epoch[row : row + 1]
        draw = self.repeats + slot
        tries = random_bits(SUBSTITUTES, seed=keys.seed, stream="substitute", sample_id=slot, epoch=epoch)[0]
        for index in (tries % len(self.source)).tolist():
            try:
                own = Keys(keys.seed, torch.tensor([index]), epoch, draw)
                return index, draw[0], next(iter(read_slots(self.source, index, own)))
            except BrokenSample as error:
                reason = f"{self.source.name(index)} {error.reason}"
        raise UserError(f"{SUBSTITUTES} samples in a row cannot be read, mend or remove them; the last: {reason}.")


class Loader:
    """The training batches of a source; `batch_size` is that of all ranks together.

    Slot s = step * batch_size + i belongs to epoch s // (len(source) * repeats); each epoch visits every sample
    `repeats` times (neighbouring slots, `draw` 0, 1, ...) in an order that the noise gives for (seed, epoch), and
    batches run on across epochs, so nothing is dropped. Without `shuffle` the order is the source's. There is no
    state: `batches(start, stop)` gives the same batches whenever it is called, for any number of `workers`
    (processes beside this one), and rank r of `world_size` gets the r-th part of each.

    A broken sample's slot is filled by a substitute and entered in `ledger` (this rank's) as its batch is consumed;
    where more than `ceiling` of the files, and more than one, are broken, the run stops with a UserError. So are, from
    the beginning, the lines of texts that were skipped when these were opened (see `TextSource`).

    labelled: batches hold `label`, int64 [B], or bool [B, classes] where samples have several. A sample without a label
        among others that have one has -1.
    partners: batches hold another sample for each row, to be mixed with: every `NAME` [B, ...] but `sample_id`, `epoch`
        and `draw` is followed by `NAME.partner` [B, ...]. The noise draws it uniformly among all samples but the row's
        own (stream "mix/partner"), and it is cut as one more repeat of its own, so that chunks, ranks and workers
        change nothing (timm mixes with the batch in reverse). A broken partner has a substitute, too, which may by
        chance be the row's own sample, as a lone sample's partner is. `ledger` counts partners like all slots: `seen`
        and `skipped` together grow by 2 B a batch.
    """

    def __init__(
        self,
        source: Source,
        view: View,
        *,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
        shuffle: bool = True,
        ceiling: float = 0.001,
        labelled: bool = False,
        partners: bool = False,
    ) -> None:
        if len(source) == 0:
            raise UserError("The data source is empty; there is nothing to make batches of.")
        if not 0 <= ceiling <= 1:
            raise UserError(f"--max-skipped, the ceiling of broken files, is a share in [0, 1], not {ceiling}.")
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"A batch of {batch_size} cannot be divided among {world_size} processes; use a multiple.")
        if not 0 <= rank < world_size or workers < 0 or repeats < 1:
            raise UserError(f"rank {rank}, world_size {world_size}, workers {workers} or repeats {repeats} is wrong.")
        self.source, self.view, self.batch_size, self.seed, self.workers = source, view, batch_size, seed, workers
        self.rank, self.world_size, self.repeats, self.shuffle = rank, world_size, repeats, shuffle
        self.ceiling, self.partners = ceiling, partners
        self._labels = _labels_of(source) if labelled else None
        if labelled and self._labels is None:
            raise UserError(
                "The samples have no labels: give a folder with a folder for each class, or a manifest with `label`."
            )
        self.ledger = Ledger()
        # A source of texts has met its bad lines when it was opened; ranks are added up.
        if (met := getattr(whole_of(source), "ledger", None)) is not None:
            met.judge(ceiling, met.seen + len(met.skipped), "lines")
            self.ledger.skipped += met.skipped if rank == 0 else []
        self._orders: dict[int, Tensor] = {}

    @property
    def steps_per_epoch(self) -> float:
        return len(self.source) * self.repeats / self.batch_size

    def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Tensor]]:
        """This rank's batches of the steps [start_step, stop_step): the views' tensors [B, ...] (see TrainView),
        `sample_id`, `epoch` and `draw` int64 [B], `step` int64 scalar; labels and partners where asked for.

        Raises UserError at the batch with which too many files turn out broken.
        """
        reader = Reader(self.source, self.view, self.plan, self.repeats)
        for batch, broken, _, shown in read_ahead(reader, range(start_step, stop_step), self.workers):
            self.ledger.record(len(batch["sample_id"]), [(name, reason) for _, name, reason in broken])
            self.ledger.blended.update(shown)
            if broken:
                self.ledger.judge(self.ceiling, len(self.source))
            if self._labels is not None:
                batch["label"] = self._labels[batch["sample_id"]]
                if "partner" in batch:  # of a source that mixes itself
                    batch["label.partner"] = self._labels[batch["partner"]]
            yield _apart(batch) if self.partners else batch

    def plan(self, step: int) -> Plan:
        """What this rank's batch of one step is made of, before a file is opened."""
        share = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * share
        slot = torch.arange(first, first + share)
        epoch_slots = len(self.source) * self.repeats
        epoch, position = slot // epoch_slots, slot % epoch_slots
        sample_id = torch.empty_like(slot)
        for number in epoch.unique().tolist():
            inside = epoch == number
            sample_id[inside] = self._order(number)[position[inside] // self.repeats]
        plan = Plan(position, Keys(self.seed, sample_id, epoch, position % self.repeats))
        return self._with_partners(plan) if self.partners else plan

    def _with_partners(self, plan: Plan) -> Plan:
        """As many rows again: a partner for each of the plan's."""
        keys, count = plan.keys, len(self.source)
        further = random_bits(1, stream="mix/partner", **keys._asdict())[:, 0] % max(1, count - 1)
        # Substitutes have the draws from `repeats` on, one for each place.
        slots = count * self.repeats
        position = slots + plan.position
        theirs = (keys.sample_id + 1 + further) % count, keys.epoch, self.repeats + slots + position
        return Plan(
            torch.cat([plan.position, position]),
            Keys(self.seed, *(torch.cat(both) for both in zip(keys[1:], theirs, strict=True))),
        )

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            count = len(self.source)
            order = permutation(count, seed=self.seed, stream="order", epoch=epoch) if self.shuffle else None
            self._orders = {epoch: torch.arange(count) if order is None else order}
        return self._orders[epoch]


def evaluation_batches(
    source: Source, view: View, *, batch_size: int, workers: int = 0, repeats: int = 1, ledger: Ledger | None = None
) -> Iterator[dict[str, Tensor]]:
    """Every sample `repeats` times (neighbouring rows, `draw` 0, 1, ...: the clips of a video), in the source's order,
    the last batch short; with `label` int64 [B] if the source has labels, bool [B, classes] if several a sample.

    Broken samples are left out and entered in `ledger`, if one is given, once a row. The noise's keys are seed 0,
    epoch 0 and the draw. Raises UserError when nothing can be read.
    """
    if batch_size < 1 or workers < 0 or repeats < 1:
        raise UserError(
            f"batch_size={batch_size} and repeats={repeats} must be above 0 and workers={workers} not negative."
        )
    ledger = Ledger() if ledger is None else ledger
    labels = _labels_of(source)
    reader = Reader(source, view, partial(_plan_in_order, len(source), repeats, batch_size), repeats)
    for batch, broken, _, shown in read_ahead(reader, range(-(-len(source) * repeats // batch_size)), workers):
        ledger.record(len(batch["sample_id"]), [(name, reason) for _, name, reason in broken])
        ledger.blended.update(shown)
        if labels is not None:
            batch["label"] = labels[batch["sample_id"]]
        if broken:
            whole = torch.ones(len(batch["sample_id"]), dtype=torch.bool)
            whole[[row for row, _, _ in broken]] = False
            batch = {key: value[whole] if value.ndim else value for key, value in batch.items()}
        if len(batch["sample_id"]):
            yield batch


def _labels_of(source: Source) -> Int64[Tensor, " samples"] | Bool[Tensor, "samples classes"] | None:
    """Each sample's label, or which of the classes it has where samples have several; None where there are none."""
    if (sets := label_sets(source)) is not None:
        return multi_hot(sets, len(source.classes))
    return None if source.labels is None else torch.tensor(source.labels)


def _apart(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The rows of a batch with partners apart: the second half as `NAME.partner` behind the first, `NAME`."""
    apart: dict[str, Tensor] = {}
    for name, value in batch.items():
        apart[name] = value[: len(value) // 2] if value.ndim else value
        if value.ndim and name not in Keys._fields:
            apart[f"{name}.partner"] = value[len(value) // 2 :]
    return apart


def _plan_in_order(count: int, repeats: int, batch_size: int, step: int) -> Plan:
    rows = torch.arange(step * batch_size, min((step + 1) * batch_size, count * repeats))
    return Plan(rows, Keys(0, rows // repeats, torch.zeros_like(rows), rows % repeats))


def read_ahead(reader: Reader, steps: Sequence[int], workers: int) -> Iterator[Reading]:
    """The steps' readings in their order, made by `workers` processes ahead of time, or here when there are none."""
    # more workers than cores are the caller's choice; forking is torch's
    with warnings.catch_warnings(), _sigterm_held_back():
        warnings.simplefilter("ignore")
        readings = iter(
            DataLoader(
                reader,
                batch_size=None,
                sampler=steps,
                num_workers=workers,
                collate_fn=_unchanged,
                worker_init_fn=_outlive_sigterm,
                pin_memory=torch.cuda.is_available(),
                generator=torch.Generator(),  # otherwise torch's global generator would be advanced
            )
        )
    for reading in readings:
        if reading.failure is not None:
            raise UserError(reading.failure)
        yield reading


def _unchanged(reading: Any) -> Any:
    return reading


@contextmanager
def _sigterm_held_back() -> Iterator[None]:
    """SIGTERM waits, here and in the processes that are forked meanwhile, until they are ready for it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_sigterm(worker: int) -> None:
    """A scheduler signals every process, but the main one needs its batches to end the step and save: in a worker
    only the parent's SIGTERM, by which it is taken down when the program exits, counts."""
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait_for_parent, daemon=True).start()
