"""The gradients of a batch in chunks are those of the batch, also where the loss compares its samples."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mmssl.heads import HeadConfig, mlp_head
from mmssl.objectives import Objective
from mmssl.pretraining.pretrain import held_out_loss
from mmssl.training import Interrupted, checkpoints, read_metrics, train
from mmssl.training.gradients import Gradients, chunked_norms
from mmssl.training.stopping import StopRequest
from tests.training_toy import BF16, Pairs, Toy, ToyLoader, settings, strip

CPU = torch.device("cpu")
BATCH = next(ToyLoader(batch_size=8).batches(0, 1))


def found(objective: Objective, chunks: int, low_precision: torch.dtype | None = None) -> tuple[Tensor, dict, dict]:
    """Loss, parts and every gradient of one batch."""
    torch.manual_seed(1)
    objective.zero_grad()
    loss, parts = Gradients(objective, chunks, CPU, low_precision)(BATCH, StopRequest())
    return loss, parts, {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", [Toy, Pairs])
def test_gradients_of_chunks_are_those_of_the_whole_batch(kind: type[Objective]) -> None:
    whole, *split = (found(kind(dropout=0.0), chunks) for chunks in (1, 2, 4))
    assert "log_scale" in whole[2] or kind is Toy
    for each in split:
        torch.testing.assert_close(each, whole, rtol=1e-5, atol=1e-7)


def test_low_precision_moves_them_by_its_rounding_alone() -> None:
    (loss, _, whole), (same, _, split) = (found(Pairs(dropout=0.0), chunks, torch.bfloat16) for chunks in (1, 4))
    assert loss.item() == pytest.approx(same.item(), rel=BF16)
    length = torch.nn.utils.get_total_norm(whole.values())
    assert torch.nn.utils.get_total_norm([whole[name] - split[name] for name in whole]) < BF16 * length


def test_the_second_pass_drops_what_the_first_one_dropped() -> None:
    objective, reference = Pairs(dropout=0.5), Pairs(dropout=0.5)
    loss, _, gradients = found(objective, 2)
    torch.manual_seed(1)
    halves = [reference.features({"image": half}) for half in BATCH["image"].chunk(2)]
    expected = reference.compare({name: torch.cat([half[name] for half in halves]) for name in halves[0]}).loss
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradients, {name: dict(reference.named_parameters())[name].grad for name in gradients})


def test_buffers_count_every_chunk_once() -> None:
    objective = Pairs()
    found(objective, 4)
    assert objective.passes == 4


def test_what_is_compiled_is_what_the_chunks_call() -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "compile", lambda call: compiled.append(call) or call)
        compiled: list = []
        objective = Pairs()
        Gradients(objective, 2, CPU, compile=True)
        Gradients(objective, 1, CPU, compile=True)
    assert compiled == [objective.features, objective]


@pytest.mark.parametrize("passes", range(1, 8))
def test_a_stop_is_heard_between_any_two_passes(passes: int) -> None:
    class Late(StopRequest):
        def anywhere(self, device: torch.device) -> bool:
            return heard[-1][0] == passes

    heard: list[tuple[int, int]] = []
    assert Gradients(Pairs(), 4, CPU)(BATCH, Late(), lambda *told: heard.append(told)) is None
    assert heard == [(done, 8) for done in range(1, passes + 1)]


def test_a_run_that_compares_samples_is_stopped_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    options = settings(accumulate=2)
    train(Pairs(), ToyLoader(), options, tmp_path / "whole", device=CPU)
    for step in (2, 7):
        with pytest.raises(Interrupted):
            train(Pairs(), ToyLoader(kill_at=step, signal=signal.SIGINT), options, tmp_path / "run", device=CPU)
    train(Pairs(), ToyLoader(), options, tmp_path / "run", device=CPU)
    assert strip(read_metrics(tmp_path / "run")) == strip(read_metrics(tmp_path / "whole"))
    whole, run = (checkpoints.load(tmp_path / name / "step-00000012").state for name in ("whole", "run"))
    torch.testing.assert_close(run, whole, rtol=0, atol=0)
    assert run["model"]["passes"] == 24


def test_a_method_that_compares_samples_is_watched_as_one_batch() -> None:
    objective = Pairs(dropout=0.0).eval()
    halves = [{name: value[rows] for name, value in BATCH.items() if value.ndim} for rows in (slice(2), slice(2, None))]
    with torch.no_grad():
        loss = held_out_loss(objective, halves, CPU)
        assert loss == pytest.approx(objective(BATCH).loss.item(), rel=1e-5)
        assert loss > held_out_loss(objective, halves[:1], CPU)


def test_batch_norms_of_chunks_are_told_of() -> None:
    objective = Pairs()
    assert not chunked_norms(objective, 2, 4)
    objective.head = mlp_head(4, HeadConfig((8, 4)))
    assert not chunked_norms(objective, 8, 1)
    assert "each chunk of 2 samples" in chunked_norms(objective, 2, 4)[0]
