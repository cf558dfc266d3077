"""A toy objective and a toy loader for the training tests, and processes that train them and may be killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from mmssl_kernels import info_nce
from torch import Tensor, nn
from torch.distributed import TCPStore
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from mmssl.errors import UserError
from mmssl.heads import GlobalBatchNorm, HeadConfig, mlp_head
from mmssl.masking.noise import permutation, uniform
from mmssl.objectives.objective import Objective, Output
from mmssl.ranks import everywhere, training_ranks
from mmssl.schedules import cosine
from mmssl.teacher import Teacher
from mmssl.training import Interrupted, TrainSettings, distributed, train
from tests.processes import server

SAMPLES, WIDTH, BATCH = 22, 8, 4

BF16 = 2**-8
"""Relative: what a run under bf16 autocast promises between one batch and its chunks, and between one rank and several.
Activations are rounded sample by sample, whatever the batch. A weight's gradient is rounded once for each chunk and
rank, by 2**-9 at most, so two runs' updates differ by a unit of bf16, and their losses by less."""


@dataclass(frozen=True)
class ToyConfig:
    """Nothing to set."""


class Toy(Objective):
    """Predict a slow teacher's view of the input: dropout, a token, a teacher that moves after each step."""

    def __init__(self, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__()
        self.config = ToyConfig()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last, self.dropout = nn.Linear(WIDTH, width), nn.Linear(width, WIDTH), nn.Dropout(dropout)
        self.teacher = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(WIDTH))
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

    def before_step(self, progress: float) -> None:
        self.momentum = 0.9 + 0.1 * progress

    def after_step(self, progress: float) -> None:
        with torch.no_grad():
            self.teacher.weight.lerp_(self.last.weight @ self.first.weight, 1 - self.momentum)

    def forward(self, batch: dict[str, Tensor], mask: None = None) -> Output:
        x = batch["image"] + self.mask_token
        predicted = self.last(self.dropout(self.first(x).relu()))
        error = (predicted.float() - self.teacher(batch["image"]).float()) ** 2
        return Output(error.mean(), {"first": error[:, 0].mean()})

    def save_pretrained(self, folder: str | Path) -> Path:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "config.json").write_text("{}")
        return Path(folder)


class Pairs(Toy):
    """Find a sample's view by the teacher among those of all samples, which are kept apart from each other."""

    def __init__(self, dropout: float = 0.1, width: int = 16) -> None:
        super().__init__(dropout, width)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("passes", torch.zeros(()))

    def features(self, batch: dict[str, Tensor], mask: None = None) -> dict[str, Tensor]:
        self.passes += 1
        hidden = self.dropout(self.first(batch["image"] + self.mask_token).relu())
        rows = {"predicted": self.last(hidden), "wanted": self.teacher(batch["image"])}
        return {name: F.normalize(value.float(), dim=1) for name, value in rows.items()}

    def compare(self, features: dict[str, Tensor]) -> Output:
        nce = info_nce(features["predicted"], features["wanted"], self.log_scale.exp(), group=self.group)
        spread = everywhere(features["predicted"], self.group).var(0).mean()
        return Output(nce - spread, {"nce": nce, "spread": spread})

    forward = Objective.forward


class Views(Objective):
    """Predict a teacher's view of a turned sample: batch norms over all ranks, a momentum schedule, two rates."""

    lr_scales: ClassVar[dict[str, float]] = {"predictor": 2.0}

    def __init__(self) -> None:
        super().__init__()
        self.config = ToyConfig()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.student = mlp_head(WIDTH, HeadConfig((16, WIDTH), last_norm="scale"))
            self.predictor = mlp_head(WIDTH, HeadConfig((16, WIDTH)))
        self.teacher = Teacher(self.student)

    def before_step(self, progress: float) -> None:
        self.momentum = cosine(progress, 0.5, 1.0)

    def after_step(self, progress: float) -> None:
        self.teacher.follow(self.student, self.momentum)

    def forward(self, batch: dict[str, Tensor], mask: None = None) -> Output:
        predicted = self.predictor(self.student(batch["image"]))
        wanted = self.teacher(batch["image"].roll(1, dims=1))
        similarity = F.cosine_similarity(predicted.float(), wanted.float()).mean()
        return Output(2 - 2 * similarity, {"similarity": similarity})

    save_pretrained = Toy.save_pretrained


METHODS = {method.__name__: method for method in (Toy, Pairs, Views)}


@dataclass
class Ledger:
    seen: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class ToyLoader:
    """The contract of mmssl.data.Loader over numbers made from noise; sample 3 counts as broken."""

    batch_size: int = BATCH
    rank: int = 0
    world_size: int = 1
    poison: int | None = None
    kill_at: int | None = None
    signal: int = signal.SIGKILL
    ledger: Ledger = field(default_factory=Ledger)
    log: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.steps_per_epoch = SAMPLES / self.batch_size
        self.source = SimpleNamespace(name=lambda sample: f"picture-{sample}.jpg")

    def batches(self, start_step: int, stop_step: int) -> Generator[dict[str, Tensor], None, None]:
        for step in range(start_step, stop_step):
            if step == self.kill_at:
                os.kill(os.getpid(), self.signal)
            local = self.batch_size // self.world_size
            first = step * self.batch_size + self.rank * local
            slots = range(first, first + local)
            orders = [permutation(SAMPLES, seed=0, stream="order", epoch=slot // SAMPLES) for slot in slots]
            samples = torch.stack([order[slot % SAMPLES] for slot, order in zip(slots, orders, strict=True)])
            image = uniform(WIDTH, seed=0, stream="toy", sample_id=samples)
            if self.poison is not None:
                image[samples == self.poison] = torch.nan
            broken = int((samples == 3).sum())
            self.ledger.skipped += [("picture-3.jpg", "truncated")] * broken
            self.ledger.seen += local - broken
            self.log.append(samples.tolist())
            epoch = torch.tensor([slot // SAMPLES for slot in slots])
            yield {
                "image": image,
                "sample_id": samples,
                "epoch": epoch,
                "draw": torch.zeros_like(epoch),
                "step": torch.tensor(step),
            }


def settings(**changes: Any) -> TrainSettings:
    plain = {"steps": 12, "batch_size": BATCH, "base_lr": 0.5, "warmup_epochs": 0.5, "log_every": 1}
    plain |= {"save_every": 3, "keep": 0, "precision": "fp32"}
    return TrainSettings(**(plain | changes))


def strip(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of metrics without the one number that depends on the clock."""
    return [{name: value for name, value in row.items() if name != "samples_per_second"} for row in rows]


def job(folder: Path, **options: Any) -> str:
    """One training for `run_ranks`."""
    return json.dumps({"folder": str(folder), **options})


def held_out(objective: Objective, step: int) -> dict[str, float]:
    """What the first rank watches, alone."""
    return {"heldout_loss": objective(next(ToyLoader().batches(0, 1))).loss.item()}


def normed(rows: Tensor) -> dict[str, Tensor]:
    """What batch norms over all ranks make of this rank's `rows`, and what a loss of all of them teaches."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = mlp_head(WIDTH, HeadConfig((6, 5), last_norm="scale")).double()
    model = DistributedDataParallel(head) if dist.is_initialized() else head
    learning = rows.double().requires_grad_()
    out = model(learning)
    everybody = everywhere(out, training_ranks())
    ((out**3).sum() * distributed.world_size() / len(everybody) + everybody.std(0).sum()).backward()
    gradients = {f"gradient of {name}": value.grad for name, value in head.named_parameters()}
    of_rows = {"out": out.detach(), "of rows": learning.grad / distributed.world_size()}
    return {**of_rows, "far": GlobalBatchNorm(WIDTH)(rows + 1000).detach(), **gradients, **dict(head.named_buffers())}


Prepared = tuple[Objective, Any, TrainSettings]


def toy(options: dict[str, Any], rank: int, count: int) -> Prepared:
    """What a job of the toy trains on one rank."""
    loader = ToyLoader(rank=rank, world_size=count, **options.get("loader", {}))
    method = METHODS[options.get("method", "Toy")](**options.get("toy", {}))
    return method, loader, settings(**options.get("settings", {}))


def run_ranks(
    count: int, jobs: list[str], prepare: Callable[[dict[str, Any], int, int], Prepared] = toy
) -> list[int | None]:
    """Train each job in turn in `count` processes of their own, as torchrun would: their exit codes."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [server().Process(target=run_rank, args=(rank, count, store.port, jobs, prepare)) for rank in range(count)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return [process.exitcode for process in ranks]


def run_rank(
    rank: int, count: int, port: int, jobs: list[str], prepare: Callable[[dict[str, Any], int, int], Prepared]
) -> None:
    """One process of `run_ranks`; how a job ended on this rank is left in the job's folder."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    device = distributed.init("cpu")
    outcome: str | BaseException = ""
    for options in map(json.loads, jobs):
        folder = Path(options["folder"])
        if "parts" in options:  # of a batch, one a rank
            rows = torch.load(folder / "rows.pt").split(options["parts"])[rank]
            torch.save(normed(rows), folder / f"normed-{rank}.pt")
            continue
        objective, loader, chosen = prepare(options, rank, count)
        if rank != options.get("signalled", rank):
            loader.kill_at = None
        validate = held_out if prepare is toy else None
        try:
            train(objective, loader, chosen, folder, device=device, validate=validate)
            outcome = ""
        except UserError as error:
            outcome = str(error)
        except Interrupted as stop:
            outcome = stop
        (folder / f"outcome-{rank}.json").write_text(json.dumps([str(outcome), loader.log]))
    distributed.shutdown()
    if isinstance(outcome, Interrupted):
        raise outcome
