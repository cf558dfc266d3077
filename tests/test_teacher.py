"""A teacher follows by its formula, is never trained, keeps the objective's mode, and survives a stop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmssl.schedules import cosine
from mmssl.teacher import Teacher
from mmssl.training import Interrupted, checkpoints, parameter_groups, train
from tests.training_toy import ToyLoader, Views, settings

CPU = torch.device("cpu")


def test_it_follows_by_its_momentum() -> None:
    student = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    teacher = Teacher(student)
    expected = {name: value.detach().clone() for name, value in student.named_parameters()}
    for momentum in (0.9, 0.5, 1.0):
        with torch.no_grad():
            for name, value in student.named_parameters():
                value += torch.randn_like(value)
                expected[name] = momentum * expected[name] + (1 - momentum) * value
        teacher.follow(student, momentum)
        torch.testing.assert_close(dict(teacher.module.named_parameters()), expected)
    teacher.follow(student, 0.0)
    assert all(torch.equal(*pair) for pair in zip(teacher.module.parameters(), student.parameters(), strict=True))


def test_it_may_be_built_without_what_the_student_drops() -> None:
    student, still = (nn.Sequential(nn.Linear(3, 4), nn.Dropout(drop)) for drop in (0.5, 0.0))
    teacher = Teacher(still)
    teacher.follow(student, 0.0)
    rows = torch.randn(6, 3)
    assert torch.equal(teacher(rows), student[0](rows))


def test_it_is_never_trained_and_nothing_learns_through_it() -> None:
    method = Views()
    rows = torch.randn(4, 8, requires_grad=True)
    assert not method.teacher(rows).requires_grad
    trained = {parameter for group in parameter_groups(method, 0.05) for parameter in group["params"]}
    assert trained.isdisjoint(method.teacher.parameters())
    assert trained == {parameter for part in (method.student, method.predictor) for parameter in part.parameters()}


def test_its_batch_norms_see_its_own_passes_while_the_objective_trains() -> None:
    method, rows = Views(), torch.randn(6, 8)
    norm = method.teacher.module[1]
    method.student(rows + 1)
    method.teacher.follow(method.student, 0.0)
    assert norm.num_batches_tracked == 0
    out = method.teacher(rows)
    assert norm.num_batches_tracked == 1
    torch.testing.assert_close(out.mean(0), torch.zeros(8), rtol=0, atol=1e-6)
    method.eval()
    method.teacher(rows)
    assert norm.num_batches_tracked == 1


def test_a_stopped_run_ends_with_the_same_teacher_bit_for_bit(tmp_path: Path) -> None:
    options = settings(steps=6, tracker="none", log_every=0)
    whole = Views()
    train(whole, ToyLoader(), options, tmp_path / "whole", device=CPU)
    with pytest.raises(Interrupted):
        train(Views(), ToyLoader(kill_at=3, signal=15), options, tmp_path / "run", device=CPU)
    train(Views(), ToyLoader(), options, tmp_path / "run", device=CPU)
    one, other = (checkpoints.load(tmp_path / name / "step-00000006").state for name in ("whole", "run"))
    torch.testing.assert_close(other, one, rtol=0, atol=0)
    assert whole.momentum == cosine(5 / 6, 0.5, 1.0)
    first, last = (dict(method.teacher.module.named_parameters())["0.weight"] for method in (Views(), whole))
    assert not torch.equal(first, last) and not torch.equal(last, whole.student[0].weight)
    assert not any(name.startswith("teacher") for name in one["optimizer"])
