"""What a run computes and writes: metrics, accumulation, compile, bf16, the stop at a value that is not finite."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.objectives.objective import Objective, Output
from mmssl.training import TrainSettings, autocast_dtype, read_metrics, train
from mmssl.training.optim import cosine_schedule
from tests.training_toy import BATCH, BF16, SAMPLES, Toy, ToyLoader, settings

CPU = torch.device("cpu")


def test_metrics_tell_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen_by_hook: list[dict[str, Any]] = []

    def validate(objective: Objective, step: int) -> dict[str, float]:
        assert not objective.training
        assert not torch.is_grad_enabled()
        return {"heldout_loss": step / 2, "effective_rank": float("nan")}

    result = train(
        Toy(),
        ToyLoader(),
        settings(log_every=4, validate_every=6, min_lr=1e-3),
        tmp_path,
        device=CPU,
        validate=validate,
        on_log=seen_by_hook.append,
        context={"model": {"width": 16}},
    )
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [4, 6, 8, 12]
    assert [row.get("heldout_loss") for row in rows] == [None, 3.0, None, 6.0]
    assert rows[1]["effective_rank"] is None  # NaN is not JSON
    assert (result.steps, result.resumed_from, result.metrics["step"]) == (12, 0, 12)
    assert [row["step"] for row in seen_by_hook] == [4, 6, 8, 12]
    for row in rows:
        assert row["epoch"] == pytest.approx(row["step"] * BATCH / SAMPLES)
        assert row["seen"] + row["skipped"] == row["step"] * BATCH
        peak, warmup = 0.5 * BATCH / 256, 0.5 * SAMPLES / BATCH
        assert row["lr"] == cosine_schedule(row["step"] - 1, total=12, warmup=warmup, peak=peak, floor=1e-3)
        assert row["grad_norm"] > 0
        assert row["samples_per_second"] > 0
        assert row["parts"].keys() == {"first"}
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert skipped == [{"name": "picture-3.jpg", "reason": "truncated", "slots": rows[-1]["skipped"]}]
    assert rows[-1]["skipped"] > 1
    assert json.loads((tmp_path / "settings.json").read_text())["model.width"] == 16
    assert (tmp_path / "final" / "config.json").exists()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("the first step took ")
    assert "; the other 11 would take " in lines[0]
    assert lines[1].startswith("step 4/12: loss ")
    assert "steps/s" in lines[1] and "held out" not in lines[1]
    assert "held out 3.0000 at step 6" in lines[3]


def test_tensorboard_has_the_same_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(Toy(), ToyLoader(), settings(log_every=4), tmp_path, device=CPU)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    rows = read_metrics(tmp_path)
    assert [(event.step, event.value) for event in board.Scalars("loss")] == [
        (row["step"], pytest.approx(row["loss"])) for row in rows
    ]
    assert set(board.Tags()["scalars"]) == {*rows[0].keys() - {"step", "parts"}, "parts/first"}


def test_a_terminal_gets_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    train(Toy(), ToyLoader(), settings(steps=6), tmp_path, device=CPU)
    shown = capsys.readouterr().out
    assert "6/6" in shown
    assert "steps/s" in shown
    assert "step 6/6:" not in shown


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", BF16)])
def test_accumulation_trains_the_same(tmp_path: Path, precision: str, tolerance: float) -> None:
    for chunks in (1, 2, 4):
        options = settings(accumulate=chunks, precision=precision)
        train(Toy(dropout=0.0), ToyLoader(), options, tmp_path / str(chunks), device=CPU)
    whole, *split = (read_metrics(tmp_path / name) for name in ("1", "2", "4"))
    for rows in split:
        assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], rel=tolerance)


def test_a_run_of_one_step_trains_and_a_batch_larger_than_the_data_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objective, before = Toy(), Toy().state_dict()
    shortest = replace(settings(), steps=None, epochs=6.0, batch_size=10 * SAMPLES, warmup_epochs=0.3)
    train(objective, ToyLoader(batch_size=10 * SAMPLES), shortest, tmp_path, device=CPU)
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    assert all(not torch.equal(value, before[name]) for name, value in trained.items())
    (row,) = read_metrics(tmp_path)
    assert row["lr"] > 0.4 * 0.5 * 10 * SAMPLES / 256
    said = capsys.readouterr().out.splitlines()[0]
    assert said == (
        "the batch of 220 is larger than the data: each step shows all 22 samples 10.0 times, so the run has 1 step "
        "(10.0 epochs); --batch-size 2 would make 110 of it."
    )


def test_gradients_are_clipped_and_logged_as_they_were(tmp_path: Path) -> None:
    class Watch(Toy):
        def after_step(self, progress: float) -> None:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    norms: list[float] = []
    train(Watch(), ToyLoader(), settings(steps=4, clip_norm=0.01), tmp_path, device=CPU)
    assert norms == pytest.approx([0.01] * 4, rel=1e-3)
    assert all(row["grad_norm"] > 0.02 for row in read_metrics(tmp_path))


def test_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typed(Toy):
        def forward(self, batch: dict[str, Tensor], mask: None = None) -> Output:
            types.append(self.first(batch["image"]).dtype)
            return super().forward(batch, mask)

    types: list[torch.dtype] = []
    train(Typed(), ToyLoader(), settings(steps=3, precision="bf16"), tmp_path / "bf16", device=CPU)
    assert set(types) == {torch.bfloat16}
    train(Typed(), ToyLoader(), settings(steps=3, precision="fp32"), tmp_path / "fp32", device=CPU)
    assert types[3:] == [torch.float32] * 3
    for avx512, amx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=avx512: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=amx: has)
        assert autocast_dtype("auto", CPU) == (torch.bfloat16 if avx512 or amx else None)
    with pytest.raises(ValueError, match='not "fp16"'):
        autocast_dtype("fp16", CPU)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_value_that_is_not_finite_stops_the_run_before_anything_moves(tmp_path: Path, where: str) -> None:
    class Watch(Toy):
        def forward(self, batch: dict[str, Tensor], mask: None = None) -> Output:
            before.update({name: value.clone() for name, value in self.state_dict().items()})
            out = super().forward(batch, mask)
            if where == "gradient" and 5 in batch["sample_id"]:
                endless = (self.mask_token - self.mask_token.detach()).abs().sum().sqrt()  # the slope of sqrt at 0
                return replace(out, loss=out.loss + endless)
            return out

    before: dict[str, Tensor] = {}
    objective, loader = Watch(), ToyLoader(poison=5 if where == "loss" else None)
    with pytest.raises(UserError) as caught:
        train(objective, loader, settings(batch_size=BATCH), tmp_path, device=CPU)
    poisoned = next(step for step, samples in enumerate(loader.log) if 5 in samples)
    message = str(caught.value)
    assert message.startswith(f"step {poisoned + 1}: the {where}")
    assert "is not finite on rank 0" in message
    assert all(f"picture-{sample}.jpg" in message for sample in loader.log[poisoned])
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())
    listed = json.loads((tmp_path / "not_finite.json").read_text())
    assert (listed["step"], listed["ranks"], len(listed["samples"])) == (poisoned + 1, [0], BATCH)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": None}, "give epochs or steps"),
        ({"epochs": 1.0}, "give epochs or steps"),
        ({"warmup_epochs": 40.0}, r"warmup_epochs=40 takes 220 steps and the run has 12: lower"),
        ({"accumulate": 3}, "batch_size=4 does not divide into 1 ranks x accumulate=3"),
    ],
)
def test_settings_that_cannot_be_met(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        train(Toy(), ToyLoader(), settings(**changes), tmp_path, device=CPU)


def test_a_loader_that_disagrees_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the loader's batch_size is 8, the settings' 4"):
        train(Toy(), ToyLoader(batch_size=8), settings(), tmp_path, device=CPU)
    with pytest.raises(ValueError, match="gave 2 samples to each of 1 ranks"):
        train(Toy(), ToyLoader(world_size=2), settings(), tmp_path, device=CPU)


def test_a_run_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be the run's folder"):
        train(Toy(), ToyLoader(), settings(), tmp_path / "file", device=CPU)


def test_epochs_count_whole_steps_and_do_not_round_up_by_a_hair() -> None:
    plain = replace(settings(), steps=None)
    assert replace(plain, epochs=3.0).total_steps(10 / 3) == 10
    assert replace(plain, epochs=2.0).total_steps(5.5) == 11
    assert replace(plain, epochs=1.0).total_steps(5.5) == 6


def test_the_defaults_are_those_of_the_paper() -> None:
    paper = TrainSettings(epochs=800.0)
    assert (paper.batch_size, paper.base_lr, paper.weight_decay) == (4096, 1.5e-4, 0.05)
    assert (paper.betas, paper.warmup_epochs, paper.min_lr, paper.clip_norm) == ((0.9, 0.95), 40, 0.0, None)
