"""A run is never silent for long, by an injected clock; what it says before its first step is true."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmssl import MAE
from mmssl.data import ArraySource
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.modality import image
from mmssl.objectives import MAEConfig
from mmssl.pretraining.header import header, next_steps
from mmssl.training import TrainSettings, train
from mmssl.training.journal import duration
from tests.training_toy import Toy, ToyLoader, settings

CPU = torch.device("cpu")


class Clock:
    """A clock whose every reading is a little later."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.mark.parametrize("tick", [0.5, 2.0])
def test_a_line_comes_every_ten_seconds_beside_log_every(tmp_path: Path, capsys: Any, tick: float) -> None:
    clock, spoken = Clock(tick), []
    write = sys.stdout.write

    def note(text: str) -> int:
        spoken.extend([clock.now] * text.count("\n"))
        return write(text)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.stdout, "write", note)
        train(Toy(), ToyLoader(), settings(steps=40, log_every=0), tmp_path, device=CPU, clock=clock)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the first step took ")
    assert all(": loss " in line and line.endswith(" left") for line in lines[1:])
    step = 6 * tick  # no more readings of the clock than that in one
    assert max(late - early for early, late in pairwise(spoken)) <= 10 + step
    assert min(late - early for early, late in pairwise(spoken[:-1])) >= 10


def test_a_step_of_many_chunks_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = settings(steps=2, batch_size=8, warmup_epochs=0.0, accumulate=8)
    train(Toy(), ToyLoader(batch_size=8), options, tmp_path, device=CPU, clock=Clock(4.0))
    said = capsys.readouterr().out
    assert "step 1/2: chunk 2 of 8" in said
    assert "chunk 8 of 8" not in said


def test_a_resumed_run_knows_its_last_held_out_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = settings(steps=12, save_every=6, validate_every=6)
    train(Toy(), ToyLoader(), options, tmp_path, device=CPU, validate=lambda *_: {"heldout_loss": 0.5})
    (tmp_path / "step-00000012" / "manifest.json").unlink()
    capsys.readouterr()
    train(Toy(), ToyLoader(), options, tmp_path, device=CPU, validate=lambda *_: {"heldout_loss": 0.25})
    step = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 7/12"))
    assert "held out 0.5000 at step 6" in step


def test_times_as_a_person_says_them() -> None:
    seconds = (0.0052, 3.21, 42.4, 89.0, 100.0, 3e3, 6e3, 86400.0, 2e5, 2e6)
    assert [duration(each) for each in seconds] == [
        "0.0052 s",
        "3.2 s",
        "42 s",
        "89 s",
        "1.7 min",
        "50 min",
        "1.7 h",
        "24 h",
        "2.3 days",
        "23 days",
    ]


def small() -> MAE:
    encoder = vit_config("tiny", modality=image(3, (8, 8)), input_size=(16, 16))
    return MAE(MAEConfig(encoder, mae_decoder_config(64, 2, 2)))


@pytest.mark.parametrize(
    ("ema", "save_every", "keep", "optimizer"),
    [(None, 2, 2, "auto"), (0.5, 2, 1, "auto"), (None, 0, 2, "auto"), (None, 2, 1, "lars")],
)
def test_the_header_is_true(tmp_path: Path, ema: float | None, save_every: int, keep: int, optimizer: str) -> None:
    pictures = ArraySource(torch.zeros(22, 3, 16, 16, dtype=torch.uint8), name="white")
    options = TrainSettings(
        steps=4, batch_size=4, accumulate=2, warmup_epochs=0.0, precision="fp32", save_every=save_every, keep=keep,
        ema=ema, optimizer=optimizer, tracker="none",
    )  # fmt: skip
    method = small()
    lines = dict(
        line.split(maxsplit=1) for line in header(method, pictures, pictures, options, 4, 5.5, tmp_path / "run", CPU)
    )
    assert lines["samples"] == "22 to train on, 22 held out"
    encoder, decoder = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (method.encoder, method.decoder))
    assert lines["model"] == (
        f"MAE: encoder {encoder:.3g} M parameters (tiny, 12 blocks of 192), decoder {decoder:.3g} M parameters "
        "(2 blocks of 64)"
    )
    assert lines["steps"] == "4, 0.7273 epochs of 5.5; batch 4, in 2 chunks of 2"
    assert lines["device"].endswith("float32")

    class Pictures(ToyLoader):
        def batches(self, start_step: int, stop_step: int) -> Any:
            for batch in super().batches(start_step, stop_step):
                yield {**batch, "image": torch.zeros(4, 3, 16, 16)}

    train(method, Pictures(), options, tmp_path / "run", device=CPU)
    weight = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()) / 1e6
    said = float(lines["folder"].split("about ")[1].split(" MB")[0])
    assert said == pytest.approx(weight, rel=0.02)


def test_the_last_lines_are_commands_on_the_users_data(tmp_path: Path) -> None:
    pictures = ArraySource(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), [0, 1, 0, 1], name="white")
    lines = next_steps(small(), pictures, Path("my pictures"), Path("runs/a"))
    assert lines[0] == "encoder: runs/a/final"
    assert lines[1].endswith("mmssl evaluate --model runs/a/final --data 'my pictures'")
    assert lines[3].endswith("mmssl export --model runs/a/final --to timm --out DIR")
    plain = ArraySource(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), name="white")
    assert "LABELLED_DIR" in next_steps(small(), plain, Path("data"), Path("runs/a"))[1]


def test_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'mmssl\[wandb\]'"):
        train(Toy(), ToyLoader(), settings(tracker="wandb"), tmp_path / "missing", device=CPU)
    logged: list[tuple[int, dict[str, float]]] = []
    started: list[dict[str, Any]] = []
    board = SimpleNamespace(log=lambda numbers, step: logged.append((step, numbers)), finish=lambda: started.append({}))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **told: started.append(told) or board))
    train(Toy(), ToyLoader(), settings(tracker="wandb", log_every=4), tmp_path / "run", device=CPU)
    assert [step for step, _ in logged] == [4, 8, 12]
    assert {"loss", "lr", "parts/first"} <= logged[0][1].keys()
    assert started[0]["resume"] == "allow" and started[0]["config"]["base_lr"] == 0.5 and started[1] == {}
    train(Toy(), ToyLoader(), settings(tracker="none"), tmp_path / "none", device=CPU)
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "none" / "tensorboard").exists()
