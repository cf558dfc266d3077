"""A run that was killed ends with the same bits as one that was not; changed settings are told or refused."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.objectives.objective import Output
from mmssl.training import Interrupted, checkpoints, read_metrics, train
from mmssl.training.optim import cosine_schedule
from mmssl.training.stopping import stop_request
from tests.training_toy import Toy, ToyLoader, job, run_ranks, settings, strip

CPU = torch.device("cpu")


def run_toy(folder: Path, **loader: Any) -> int | None:
    """Train the toy in a process of its own: its exit code."""
    return run_ranks(1, [job(folder, loader=loader)])[0]


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, teacher, optimizer state, ledger and settings (by checksum), and the same metrics."""
    for step in (3, 6, 9, 12):
        manifest = Path(f"step-{step:08d}", "manifest.json")
        assert (one / manifest).read_bytes() == (other / manifest).read_bytes()
    assert strip(read_metrics(one)) == strip(read_metrics(other))
    assert (one / "skipped.jsonl").read_bytes() == (other / "skipped.jsonl").read_bytes()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(Toy(), ToyLoader(), settings(), folder, device=CPU)
    return folder


def test_killed_six_times_then_terminated_it_ends_with_the_same_bits(tmp_path: Path, uninterrupted: Path) -> None:
    for step in (0, 2, 3, 7, 11, 10):  # before the first save, right after a save, later, and earlier than last time
        assert run_toy(tmp_path, kill_at=step) == -signal.SIGKILL
    assert run_toy(tmp_path, kill_at=9, signal=signal.SIGTERM) == 75
    result = train(Toy(), ToyLoader(), settings(), tmp_path, device=CPU)
    assert (result.resumed_from, result.steps) == (10, 12)
    assert_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_every_step_is_answered_when_the_step_is_done(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    handlers = [signal.getsignal(known) for known in (signal.SIGTERM, signal.SIGINT)]
    for step in range(12):
        with nullcontext() if step == 11 else pytest.raises(Interrupted):  # after the last step the run is over
            train(Toy(), ToyLoader(kill_at=step, signal=number), settings(), tmp_path, device=CPU)
        assert checkpoints.newest(tmp_path) == (tmp_path / f"step-{step + 1:08d}", [])
        assert handlers == [signal.getsignal(known) for known in (signal.SIGTERM, signal.SIGINT)]
    assert "stopped by a signal after step 10, which is saved: run the same command again." in capsys.readouterr().out
    assert_same_run(tmp_path, uninterrupted)


class Counting(Toy):
    """Counts its forward passes in a buffer, as batch norms do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, batch: dict[str, Tensor], mask: None = None) -> Output:
        self.passes += 1
        return super().forward(batch, mask)


def test_a_signal_between_two_chunks_drops_the_step_and_saves_the_one_before(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    split = settings(accumulate=2)
    train(Counting(), ToyLoader(), split, tmp_path / "whole", device=CPU)
    for step in (0, 1, 3, 11):
        objective = Counting()
        with pytest.raises(Interrupted):
            train(objective, ToyLoader(kill_at=step, signal=signal.SIGINT), split, tmp_path / "run", device=CPU)
        assert objective.passes == 2 * step
        newest, _ = checkpoints.newest(tmp_path / "run")
        assert newest == (tmp_path / "run" / f"step-{step:08d}" if step else None)
        said, at_once = capfd.readouterr()
        assert f"stopped by a signal in step {step + 1}, which is dropped" in said
        assert at_once.strip().startswith("mmssl: SIGINT: stopping, the last finished step will be saved")
        assert (f"step {step} is saved" in said) == (step > 0)
    train(Counting(), ToyLoader(), split, tmp_path / "run", device=CPU)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT, which a process started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_stops_at_once() -> None:
    with stop_request() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_training_works_beside_the_main_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(train, Toy(), ToyLoader(), settings(steps=3), tmp_path, device=CPU).result()
    assert result.steps == 3


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    train(Toy(), ToyLoader(), settings(), tmp_path, device=CPU)
    before = read_metrics(tmp_path)
    loader = ToyLoader()
    result = train(Toy(), loader, settings(), tmp_path, device=CPU)
    assert (result.resumed_from, result.steps, result.metrics, loader.log) == (12, 12, {}, [])
    assert read_metrics(tmp_path) == before


def test_a_damaged_newest_checkpoint_is_named_and_the_run_goes_on_from_the_one_before(
    tmp_path: Path, uninterrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    os.truncate(tmp_path / "run" / "step-00000012" / "model.safetensors", 20)
    with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 13, "lo')  # torn by a kill
    capsys.readouterr()
    result = train(Toy(), ToyLoader(), settings(), tmp_path / "run", device=CPU)
    said = capsys.readouterr().out
    assert "step-00000012 is damaged: model.safetensors has 20 bytes instead of" in said
    assert "resuming after step 9 from" in said
    assert result.resumed_from == 9
    assert_same_run(tmp_path / "run", uninterrupted)


def test_without_a_whole_checkpoint_a_run_does_not_silently_start_anew(tmp_path: Path) -> None:
    train(Toy(), ToyLoader(), settings(steps=3), tmp_path, device=CPU)
    (tmp_path / "step-00000003" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest.json is missing. No whole checkpoint is left: remove them"):
        train(Toy(), ToyLoader(), settings(steps=3), tmp_path, device=CPU)


def test_a_full_disk_stops_the_run_and_names_the_folder(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.safetensors, "save", full)
        with pytest.raises(UserError, match=r"run: the disk is full: the checkpoint of step 3 needs .* MB and"):
            train(Toy(), ToyLoader(), settings(), tmp_path / "run", device=CPU)
    train(Toy(), ToyLoader(), settings(), tmp_path / "run", device=CPU)
    assert_same_run(tmp_path / "run", uninterrupted)


def test_changed_settings_are_told_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    old = {"model": {"width": 16}, "data": {"workers": 0, "folder": Path("pictures")}}
    train(Toy(), ToyLoader(), settings(), run, device=CPU, context=old)
    new = {"model": {"width": 32}, "data": {"workers": 4, "folder": Path("pictures")}, "noise": True}
    before = (run / "settings.json").read_bytes()
    with pytest.raises(UserError) as caught:
        train(Toy(), ToyLoader(), settings(base_lr=0.25, log_every=2), run, device=CPU, context=new)
    assert "(base_lr: 0.5 -> 0.25; model.width: 16 -> 32; noise: unset -> true)" in str(caught.value)
    assert "give the old values to resume it, or another folder" in str(caught.value)
    assert (run / "settings.json").read_bytes() == before
    capsys.readouterr()
    harmless = {"model": {"width": 16}, "data": {"workers": 4, "folder": Path("pictures")}, "noise": False}
    train(Toy(), ToyLoader(), settings(log_every=2, keep=3), run, device=CPU, context=harmless)
    said = capsys.readouterr().out
    assert all(f"changed: {change}" in said for change in ("data.workers: 0 -> 4", "keep: 0 -> 3", "log_every: 1 -> 2"))
    assert "noise" not in said


def test_tensorboard_hides_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Toy(), ToyLoader(), settings(), tmp_path, device=CPU)
    shutil.rmtree(tmp_path / "step-00000012")
    train(Toy(), ToyLoader(), settings(), tmp_path, device=CPU)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("loss")] == list(range(1, 13))


def test_a_finished_run_may_be_made_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for folder in (run, tmp_path / "shorter"):
        train(Toy(), ToyLoader(), settings(), folder, device=CPU)
    capsys.readouterr()
    longer = settings(steps=18, warmup_epochs=0.6)
    result = train(Toy(), ToyLoader(), longer, run, device=CPU)
    assert (result.resumed_from, result.steps) == (12, 18)
    rows, before = read_metrics(run), read_metrics(tmp_path / "shorter")
    assert strip(rows[:12]) == strip(before)
    peak, warmup = 0.5 * 4 / 256, 0.6 * 5.5
    assert [row["lr"] for row in rows[12:]] == [
        cosine_schedule(step, total=18, warmup=warmup, peak=peak, floor=0.0) for step in range(12, 18)
    ]
    said = capsys.readouterr().out
    assert "changed: steps: 12 -> 18" in said and "changed: warmup_epochs: 0.5 -> 0.6" in said
    assert (
        "the run goes on to step 18 instead of 12: the learning rate jumps from "
        f"{before[-1]['lr']:.3g} to {rows[12]['lr']:.3g}" in said
    )
    assert "steps 1 to 12 keep the rates they had" in said
    with pytest.raises(UserError, match="steps: 18 -> 12"):
        train(Toy(), ToyLoader(), settings(warmup_epochs=0.6), run, device=CPU)
    with pytest.raises(UserError, match=r"base_lr: 0.5 -> 0.25\)"):
        train(Toy(), ToyLoader(), settings(steps=20, warmup_epochs=0.6, base_lr=0.25), run, device=CPU)


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """It recorded fewer settings: those it lacks had their defaults."""
    train(Toy(), ToyLoader(), settings(steps=6, keep=1), tmp_path, device=CPU)
    (folder,) = tmp_path.glob("step-*")
    saved = checkpoints.load(folder)
    for name in ("ema", "warmup_steps", "tracker", "optimizer", "weight_decay_end"):
        del saved.meta["settings"][name]
    shutil.rmtree(folder)
    checkpoints.save(tmp_path, 6, saved.state, saved.meta)
    assert train(Toy(), ToyLoader(), settings(steps=6, keep=1), tmp_path, device=CPU).resumed_from == 6
    with pytest.raises(UserError, match=r"ema: null -> 0\.5"):
        train(Toy(), ToyLoader(), settings(steps=6, keep=1, ema=0.5), tmp_path, device=CPU)
