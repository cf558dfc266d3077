"""Two gloo processes do what one does: the same batches, the same losses, the same stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mmssl.errors import UserError
from mmssl.training import checkpoints, distributed, read_metrics, train
from tests.training_toy import BF16, WIDTH, Pairs, Toy, ToyLoader, Views, held_out, job, normed, run_ranks, settings

PLAIN = {"toy": {"dropout": 0.0}}
SHORT = {"steps": 6, "save_every": 6, "validate_every": 3, "tracker": "none"}

TOLERANCE = 1e-5
"""Relative. A loss is the mean of 32 positive float32 numbers; summing them in another order moves it by at most
31 * 2**-24 = 1.8e-6. Gradients are such sums too, so the weights inherit an error of that size from each of the twelve
steps, and 1e-5 leaves room for its root-mean-square growth, sqrt(12) times."""


UNEVEN = {"uneven": [7, 2], "idle": [9, 0]}
"""Samples of each rank."""


def uneven_rows() -> torch.Tensor:
    return torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks train the jobs one after the other; a job's folder says how it ended."""
    folder = tmp_path_factory.mktemp("two")
    names = ("plain", "split", "pairs", "pairs split", "views", *UNEVEN, "averaged", "bf16")
    for name in (*names, "poisoned", "signalled", "dropped"):
        (folder / name).mkdir()
    for name in UNEVEN:
        torch.save(uneven_rows(), folder / name / "rows.pt")
    (folder / "damaged" / "step-00000003").mkdir(parents=True)
    jobs = [
        job(folder / "plain", **PLAIN),
        job(folder / "split", **PLAIN, settings={"accumulate": 2}),
        job(folder / "pairs", **PLAIN, method="Pairs", settings=SHORT),
        job(folder / "pairs split", **PLAIN, method="Pairs", settings={**SHORT, "accumulate": 2}),
        job(folder / "views", method="Views", settings=SHORT),
        *(job(folder / name, parts=parts) for name, parts in UNEVEN.items()),
        job(folder / "averaged", **PLAIN, settings={"ema": 0.5}),
        job(folder / "bf16", **PLAIN, settings={"precision": "bf16"}),
        job(folder / "poisoned", **PLAIN, loader={"poison": 5}),
        job(folder / "signalled", **PLAIN, loader={"kill_at": 4, "signal": 15}, signalled=1),
        job(folder / "signalled", **PLAIN),
        job(folder / "dropped", **PLAIN, settings={"accumulate": 2}, loader={"kill_at": 4, "signal": 15}, signalled=1),
        job(folder / "damaged", **PLAIN),
    ]
    assert run_ranks(2, jobs) == [0, 0]
    return folder


def numbers(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def outcome(folder: Path, rank: int) -> Any:
    return json.loads((folder / f"outcome-{rank}.json").read_text())


def test_two_ranks_see_the_global_batches_and_the_losses_of_one(runs: Path, tmp_path: Path) -> None:
    loader = ToyLoader()
    train(Toy(dropout=0.0), loader, settings(), tmp_path, device=torch.device("cpu"))
    (_, first), (_, second) = outcome(runs / "plain", 0), outcome(runs / "plain", 1)
    assert [one + other for one, other in zip(first, second, strict=True)] == loader.log
    alone = read_metrics(tmp_path)
    for run in ("plain", "split", "signalled"):
        together = read_metrics(runs / run)
        for name in ("loss", "grad_norm"):
            assert [row[name] for row in together] == pytest.approx([row[name] for row in alone], rel=TOLERANCE)
        for name in ("step", "seen", "skipped", "lr"):
            assert [row[name] for row in together] == [row[name] for row in alone]
        assert (runs / run / "final" / "config.json").exists()


def test_the_average_of_two_ranks_weights_is_that_of_one(runs: Path, tmp_path: Path) -> None:
    train(Toy(dropout=0.0), ToyLoader(), settings(ema=0.5), tmp_path, device=torch.device("cpu"))
    alone, two = (checkpoints.load(run / "step-00000012").state for run in (tmp_path, runs / "averaged"))
    assert alone.keys() == two.keys() and "ema" in alone
    torch.testing.assert_close(two["ema"], alone["ema"], rtol=1e-4, atol=1e-6)


def test_samples_are_compared_across_ranks_and_chunks_as_in_one_batch(runs: Path, tmp_path: Path) -> None:
    method, cpu = Pairs(dropout=0.0), torch.device("cpu")
    train(method, ToyLoader(), settings(**SHORT), tmp_path, device=cpu, validate=held_out)
    alone, weights = read_metrics(tmp_path), checkpoints.load(tmp_path / "step-00000006").state["model"]
    del weights["passes"]  # counts chunks
    for run in ("pairs", "pairs split"):
        together = read_metrics(runs / run)
        for name in ("loss", "grad_norm", "heldout_loss"):  # the last is the first rank's, of its samples alone
            assert numbers(together, name) == pytest.approx(numbers(alone, name), rel=TOLERANCE)
        state = checkpoints.load(runs / run / "step-00000006").state["model"]
        torch.testing.assert_close({name: state[name] for name in weights}, weights, rtol=1e-4, atol=1e-6)


def test_a_teacher_and_batch_norms_of_two_ranks_are_those_of_one(runs: Path, tmp_path: Path) -> None:
    train(Views(), ToyLoader(), settings(**SHORT), tmp_path, device=torch.device("cpu"), validate=held_out)
    alone, together = read_metrics(tmp_path), read_metrics(runs / "views")
    for name in ("loss", "heldout_loss"):
        assert numbers(together, name) == pytest.approx(numbers(alone, name), rel=TOLERANCE)
    one, two = (checkpoints.load(run / "step-00000006").state["model"] for run in (tmp_path, runs / "views"))
    assert any(name.startswith("teacher.module.1.running") for name in one)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", UNEVEN)
def test_uneven_ranks_are_normed_by_the_statistics_of_all_and_learn_as_one_process(runs: Path, parts: str) -> None:
    first, second = (torch.load(runs / parts / f"normed-{rank}.pt") for rank in (0, 1))
    alone = normed(uneven_rows())
    together = {name: torch.cat([first.pop(name), second.pop(name)]) for name in ("out", "of rows", "far")}
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # float32 numbers near 1000 have an ulp of 6e-5, and their squares one of 0.06
    torch.testing.assert_close(together.pop("far"), alone.pop("far"), rtol=0, atol=1e-3)
    torch.testing.assert_close({**together, **first}, alone, rtol=1e-10, atol=1e-12)


def test_two_ranks_in_bf16_give_the_losses_of_one_within_a_unit_of_bf16(runs: Path, tmp_path: Path) -> None:
    low = settings(precision="bf16")
    train(Toy(dropout=0.0), ToyLoader(), low, tmp_path, device=torch.device("cpu"))
    alone, together = read_metrics(tmp_path), read_metrics(runs / "bf16")
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in together] == pytest.approx([row[name] for row in alone], rel=BF16)


def test_a_loss_that_is_not_finite_on_one_rank_stops_every_rank_with_one_message(runs: Path) -> None:
    (message, first), (same, second) = outcome(runs / "poisoned", 0), outcome(runs / "poisoned", 1)
    assert message == same
    step, blamed = next(
        (step, rank) for step in range(12) for rank, log in enumerate((first, second)) if 5 in log[step : step + 1][0]
    )
    assert message.startswith(f"step {step + 1}: the loss is not finite on rank {blamed}, with the samples picture-")
    assert "picture-5.jpg" in message
    assert len(first) == len(second) == step + 1


def test_what_stops_the_first_rank_stops_every_rank_with_its_message(runs: Path) -> None:
    (message, first), (same, second) = outcome(runs / "damaged", 0), outcome(runs / "damaged", 1)
    assert message == same
    assert "manifest.json is missing" in message
    assert first == second == []


def test_a_signal_to_one_rank_stops_all_after_the_same_step_and_the_run_resumes(runs: Path) -> None:
    for rank in (0, 1):
        ended, log = outcome(runs / "signalled", rank)
        assert (ended, len(log)) == ("", 7)
    assert (runs / "signalled" / "step-00000005").exists()


def test_a_signal_to_one_rank_between_its_chunks_drops_the_step_of_all(runs: Path) -> None:
    assert [len(outcome(runs / "dropped", rank)[1]) for rank in (0, 1)] == [5, 5]
    newest, _ = checkpoints.newest(runs / "dropped")
    assert newest == runs / "dropped" / "step-00000004"
    ledger = checkpoints.load(newest).meta["ledger"]
    assert ledger["seen"] + len(ledger["skipped"]) == 4 * 4


def test_a_run_of_two_ranks_resumes_on_one(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = runs / "signalled" / "step-00000005"
    path.rename(tmp_path / path.name)
    result = train(Toy(dropout=0.0), ToyLoader(), settings(), tmp_path, device=torch.device("cpu"))
    assert (result.resumed_from, result.metrics["seen"] + result.metrics["skipped"]) == (5, 48)
    assert "changed: world_size: 2 -> 1" in capsys.readouterr().out
    alone, two = (checkpoints.load(run / "step-00000012").state["model"] for run in (tmp_path, runs / "plain"))
    torch.testing.assert_close(alone, two, rtol=1e-4, atol=1e-6)


def test_in_one_process_everything_is_a_no_op() -> None:
    values = torch.tensor([1.0, 2.0])
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    assert distributed.mean(values) is values
    assert distributed.any_rank(torch.tensor([True, False])) == [True, False]
    assert distributed.gather("mine") == ["mine"]
    assert distributed.on_first_rank(lambda: 3) == 3
    distributed.barrier()
    distributed.shutdown()
    assert distributed.init("cpu") == torch.device("cpu")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert distributed.init() == torch.device("cpu")
    with pytest.raises(UserError, match="device cuda was asked for, but torch sees no GPU"):
        distributed.init("cuda")
