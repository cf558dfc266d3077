"""A checkpoint is whole or not there: kills at every stage of a save, damage, a full disk, and bit-exact contents."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl import version
from mmssl.errors import UserError
from mmssl.training import adamw, checkpoints, parameter_groups


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code under test may catch it."""


def state(step: int) -> dict[str, dict[str, Tensor]]:
    weight = torch.arange(6.0).reshape(2, 3) + step
    return {"model": {"weight": weight, "tied": weight, "row": weight[1]}, "optimizer": {"weight/step": weight[0, 0]}}


def save(run_dir: Path, step: int, keep: int = 2) -> Path:
    return checkpoints.save(run_dir, step, state(step), {"note": step}, keep)


def newest_step(run_dir: Path) -> int | None:
    """The step of the newest whole checkpoint, after making sure that it holds that step's values."""
    path, _ = checkpoints.newest(run_dir)
    if path is None:
        return None
    loaded = checkpoints.load(path)
    assert loaded.meta == {"note": loaded.step}
    assert loaded.state.keys() == {"model", "optimizer"}
    for group, tensors in state(loaded.step).items():
        assert loaded.state[group].keys() == tensors.keys()
        assert all(torch.equal(loaded.state[group][name], tensor) for name, tensor in tensors.items())
    return loaded.step


def test_contents_come_back_bit_for_bit(tmp_path: Path) -> None:
    special = {
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]).view(torch.int32).view(torch.float32),
        "half": torch.tensor([1e-3, 3.0], dtype=torch.bfloat16),
        "whole": torch.tensor(2**62 + 1),
        "columns": torch.arange(6).reshape(2, 3).t(),
        "empty": torch.zeros(0, 3),
    }
    path = checkpoints.save(tmp_path, 7, {"model": special}, {"rate": 0.1, "names": ["ä"]})
    loaded = checkpoints.load(path)
    assert (loaded.step, loaded.meta) == (7, {"rate": 0.1, "names": ["ä"]})
    for name, tensor in special.items():
        back = loaded.state["model"][name]
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        assert torch.equal(*(one.contiguous().reshape(-1).view(torch.uint8) for one in (back, tensor)))


def test_the_newest_are_kept_and_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (5, 99_999_999, 100_000_000):
        save(tmp_path, step)
    assert newest_step(tmp_path) == 100_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]
    save(tmp_path, 100_000_001, keep=0)
    assert len(list(tmp_path.iterdir())) == 3


def test_no_run_yet(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda path: (path / "optimizer.safetensors").unlink(), "optimizer.safetensors is missing"),
        (lambda path: (path / "manifest.json").write_text("[1]"), "manifest.json is not a manifest"),
        (lambda path: os.truncate(path / "model.safetensors", 100), "model.safetensors has 100 bytes instead of"),
        (lambda path: os.truncate(path / "meta.json", 0), "meta.json has 0 bytes instead of"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, damage: Callable[[Path], Any], reason: str
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    path, problems = checkpoints.newest(tmp_path)
    assert path == tmp_path / "step-00000001"
    assert len(problems) == 1
    assert "step-00000002 is damaged" in problems[0]
    assert reason in problems[0]
    assert newest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert newest_step(tmp_path) == 2


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, 3)
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        stride = 3 if file.name == "manifest.json" else 29  # in every byte; the other files are under a checksum
        for bit in range(0, len(whole) * 8, stride):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            assert checkpoints.damage(path) is not None, f"{file.name}, bit {bit}"
        file.write_bytes(whole)
    assert checkpoints.damage(path) is None


def test_a_renamed_checkpoint_is_not_taken_for_another_step(tmp_path: Path) -> None:
    save(tmp_path, 3).rename(tmp_path / "step-00000009")
    path, problems = checkpoints.newest(tmp_path)
    assert path is None
    assert "that of step 3" in problems[0]


def test_killed_at_any_stage_of_a_save_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call that touches the disk is, in turn, the last one: made only half, or made and then followed by death."""
    calls = fatal = 0
    half = False

    def mortal(function: Callable[..., Any], halfway: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == fatal and half:
                halfway(*arguments)
                raise Killed
            result = function(*arguments, **keywords)
            if calls == fatal:
                raise Killed
            return result

        return call

    def remove_half(path: Path, **_: Any) -> None:
        for entry in sorted(path.iterdir())[::2]:
            entry.unlink()

    monkeypatch.setattr(checkpoints.os, "fsync", mortal(os.fsync, lambda handle: os.truncate(handle, 0)))
    monkeypatch.setattr(checkpoints.os, "rename", mortal(os.rename, lambda *_: None))
    monkeypatch.setattr(checkpoints.shutil, "rmtree", mortal(shutil.rmtree, remove_half))
    monkeypatch.setattr(Path, "mkdir", mortal(Path.mkdir, lambda *_: None))

    outcomes = []
    for half in (False, True):
        stage = 0
        while True:
            stage += 1
            run_dir = tmp_path / f"{half}-{stage}"
            calls, fatal = 0, 0
            run_dir.mkdir()
            save(run_dir, 1)
            os.truncate(save(run_dir, 3) / "model.safetensors", 9)  # the next save also replaces a damaged one
            calls, fatal = 0, stage
            try:
                save(run_dir, 3, keep=1)
                break
            except (Killed, OSError):
                fatal = 0
            outcomes.append(newest_step(run_dir))
            assert outcomes[-1] in (1, 3)
            save(run_dir, 4, keep=1)
            assert newest_step(run_dir) == 4
            assert [path.name for path in run_dir.iterdir()] == ["step-00000004"]
    assert len(outcomes) > 16
    assert set(outcomes) == {1, 3}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_and_leaves_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    save(tmp_path, 1)

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.os, "fsync", full)
        with pytest.raises(
            UserError, match=r"disk is full: the checkpoint of step 2 needs 0\.0 MB and .* MB are free"
        ) as caught:
            save(tmp_path, 2)
    assert str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_step(tmp_path) == 1


def test_other_errors_of_the_file_system_are_not_called_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints.os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        save(tmp_path, 2)


def test_a_whole_checkpoint_of_the_same_step_is_left_as_it_is(tmp_path: Path) -> None:
    path = save(tmp_path, 2)
    before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
    assert checkpoints.save(tmp_path, 2, state(9), {}) == path
    assert {file.name: file.stat().st_mtime_ns for file in path.iterdir()} == before


def trained(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = adamw(parameter_groups(module, 0.05), (0.9, 0.95), torch.device("cpu"))
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(5, 3)).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1
        optimizer.step()
    return module, optimizer


def test_optimizer_state_goes_by_parameter_name_and_comes_back_exactly(tmp_path: Path) -> None:
    module, optimizer = trained(0)
    tensors = checkpoints.optimizer_state(module, optimizer)
    assert {name for name in tensors if name.startswith("0.weight")} == {
        "0.weight/step",
        "0.weight/exp_avg",
        "0.weight/exp_avg_sq",
    }
    path = checkpoints.save(tmp_path, 1, {"optimizer": tensors}, {})
    other, fresh = trained(1)
    checkpoints.load_optimizer_state(other, fresh, checkpoints.load(path).state["optimizer"])
    again = checkpoints.optimizer_state(other, fresh)
    assert again.keys() == tensors.keys()
    assert all(
        torch.equal(again[name], tensor) and again[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    with pytest.raises(ValueError, match=r"optimizer state for 5\.weight"):
        checkpoints.load_optimizer_state(other, fresh, {"5.weight/step": torch.tensor(1.0)})


def test_nothing_is_pickled(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "manifest.json").read_text())["files"].keys() == {
        "model.safetensors",
        "optimizer.safetensors",
        "meta.json",
    }


def test_a_checkpoint_of_a_later_format_names_the_version_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "stamp", lambda: {"format": 99, "version": "7.1"})
    path = save(tmp_path, 3)
    assert checkpoints.damage(path) is None
    with pytest.raises(UserError, match=r"written by mmssl 7\.1 in format 99, .*: read it with mmssl 7\.1"):
        checkpoints.load(path)
