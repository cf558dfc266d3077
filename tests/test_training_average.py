"""The moving average of the weights: what it holds, that it survives a kill, and that it is what a run leaves."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmssl.errors import UserError
from mmssl.training import checkpoints, train
from tests.training_toy import Toy, ToyLoader, job, run_ranks, settings

CPU = torch.device("cpu")


class Noting(Toy):
    """Keeps its weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.past = [self.learning()]

    def learning(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.named_parameters() if value.requires_grad}

    def after_step(self, progress: float) -> None:
        super().after_step(progress)
        self.past.append(self.learning())


def test_the_average_is_validated_checkpointed_and_left(tmp_path: Path) -> None:
    validated: list[dict[str, Tensor]] = []

    def validate(objective: Noting, step: int) -> dict[str, float]:
        validated.append(objective.learning())
        return {}

    options = settings(ema=0.75, validate_every=6)
    plain, averaged = Noting(), Noting()
    train(plain, ToyLoader(), replace(options, ema=None), tmp_path / "plain", device=CPU)
    train(averaged, ToyLoader(), options, tmp_path / "averaged", device=CPU, validate=validate)
    torch.testing.assert_close(averaged.past, plain.past, rtol=0, atol=0)  # watching changes nothing
    expected, held = dict(plain.past[0]), []
    for weights in plain.past[1:]:
        expected = {name: 0.75 * value + 0.25 * weights[name] for name, value in expected.items()}
        held.append(expected)
    torch.testing.assert_close(validated, [held[5], held[11]])
    torch.testing.assert_close(averaged.learning(), held[11])
    newest, _ = checkpoints.newest(tmp_path / "averaged")
    assert newest is not None
    state = checkpoints.load(newest).state
    torch.testing.assert_close(state["ema"], averaged.learning(), rtol=0, atol=0)
    assert all(torch.equal(state["model"][name], value) for name, value in plain.past[-1].items())
    assert torch.equal(averaged.teacher.weight, plain.teacher.weight)


def test_a_killed_run_ends_with_the_same_average(tmp_path: Path) -> None:
    options = settings(ema=0.9)
    train(Toy(), ToyLoader(), options, tmp_path / "whole", device=CPU)
    killed = job(tmp_path / "killed", settings={"ema": 0.9}, loader={"kill_at": 8})
    assert run_ranks(1, [killed])[0] == -signal.SIGKILL
    assert train(Toy(), ToyLoader(), options, tmp_path / "killed", device=CPU).resumed_from == 6
    for step in (9, 12):
        manifest = Path(f"step-{step:08d}", "manifest.json")
        assert (tmp_path / "whole" / manifest).read_bytes() == (tmp_path / "killed" / manifest).read_bytes()


def test_a_run_too_short_for_its_average_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Toy(), ToyLoader(), settings(ema=0.99), tmp_path, device=CPU)
    said = capsys.readouterr().out
    assert "averages over about 100 steps and the run has 12: 89% of the result will be the first weights" in said
    with pytest.raises(UserError, match=r"ema=1.0 must be 0 or more and below 1"):
        settings(ema=1.0)
