"""Decay groups, rates and their multiples, and each optimizer against its paper's rule and through a kill."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmssl import VideoMAE
from mmssl.errors import UserError
from mmssl.objectives import videomae_config
from mmssl.training import adamw, checkpoints, cosine_schedule, learning_rate, parameter_groups, train
from mmssl.training.optim import MOMENTS, linear_schedule, optimizer_for, schedule, set_learning_rate
from mmssl.training.optimizers import LARS, UncorrectedAdam
from tests.training_toy import Toy, ToyLoader, settings

CPU = torch.device("cpu")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_tokens = nn.Parameter(torch.zeros(1, 6))
        self.mask_token = nn.Parameter(torch.zeros(6))
        self.position = nn.Parameter(torch.zeros(4, 6), requires_grad=False)
        self.blocks = nn.ModuleList([nn.Linear(6, 6), nn.LayerNorm(6)])
        self.table = nn.ParameterDict({"bias": nn.Parameter(torch.zeros(3, 3))})


def named_groups(module: nn.Module, groups: list[dict]) -> dict[str, dict]:
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {names[parameter]: group for group in groups for parameter in group["params"]}


def test_matrices_and_tokens_decay_vectors_and_biases_do_not_and_frozen_ones_are_left_out() -> None:
    module = Small()
    groups = named_groups(module, parameter_groups(module, 0.05))
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "class_tokens": 0.05,
        "mask_token": 0.05,
        "blocks.0.weight": 0.05,
        "blocks.0.bias": 0.0,
        "blocks.1.weight": 0.0,
        "blocks.1.bias": 0.0,
        "table.bias": 0.0,
    }


def test_a_method_may_name_what_does_not_decay() -> None:
    method = VideoMAE(videomae_config("small"))
    groups = named_groups(method, parameter_groups(method, 0.05, method.undecayed))
    free = {name.rsplit(".", 1)[-1] for name, group in groups.items() if not group["weight_decay"]}
    assert free == {"mask_token", "query_value_bias", "bias", "weight"}
    assert groups["encoder.transformer.blocks.0.attn.layer.qkv.weight"]["weight_decay"] == 0.05
    assert groups["encoder.transformer.blocks.0.attn.norm.weight"]["weight_decay"] == 0.0
    assert not any("position" in name for name in groups)


def test_the_longest_prefix_multiplies_the_rate() -> None:
    module = Small()
    scales = {"blocks": 0.5, "blocks.1": 0.25, "table.bias": 3.0}
    groups = parameter_groups(module, 0.05, lr_scales=scales)
    optimizer = torch.optim.SGD(groups, lr=0.0)
    set_learning_rate(optimizer, 2.0)
    rates = {name: group["lr"] for name, group in named_groups(module, optimizer.param_groups).items()}
    assert rates == {
        "class_tokens": 2.0,
        "mask_token": 2.0,
        "blocks.0.weight": 1.0,
        "blocks.0.bias": 1.0,
        "blocks.1.weight": 0.5,
        "blocks.1.bias": 0.5,
        "table.bias": 6.0,
    }
    with pytest.raises(ValueError, match="no parameter's name begins with 'block'"):
        parameter_groups(module, 0.05, lr_scales={"block": 0.5})


def authors_rate(epoch: float, *, epochs: float, warmup: float, peak: float, floor: float) -> float:
    """methods.md 0.5; facebookresearch/mae evaluates it at the beginning of each step."""
    if epoch < warmup:
        return peak * epoch / warmup
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


@pytest.mark.parametrize("steps_per_epoch", [1.0, 7.0, 312.5])
def test_the_schedule_is_the_authors_half_a_step_later(steps_per_epoch: float) -> None:
    total = int(100 * steps_per_epoch)
    for step in range(0, total, 13):
        ours = cosine_schedule(step, total=total, warmup=20 * steps_per_epoch, peak=2.0, floor=0.5)
        epoch = (step + 0.5) / steps_per_epoch
        theirs = authors_rate(epoch, epochs=100.0, warmup=20.0, peak=2.0, floor=0.5)
        assert ours == pytest.approx(theirs, rel=1e-12)


def test_a_line_is_fairseqs_half_a_step_later() -> None:
    rate = schedule(settings(steps=100, warmup_steps=20, base_lr=2.0 * 256 / 4, min_lr=0.5, decay="linear"), 10.0)
    for step in range(100):
        done = step + 0.5
        # PolynomialDecayLRSchedule of power 1, its rates at num_updates = done
        theirs = 2.0 * done / 20 if done <= 20 else (2.0 - 0.5) * (1 - (done - 20) / (100 - 20)) + 0.5
        assert rate(step) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("falling", [cosine_schedule, linear_schedule])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0.05), (1, 0.0), (2, 0.1), (3, 1.0), (10, 9.9)])
def test_every_step_of_the_shortest_runs_trains(falling: Any, total: int, warmup: float) -> None:
    rates = [falling(step, total=total, warmup=warmup, peak=1.0, floor=0.0) for step in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert max(rates) > 0.4


def test_the_peak_rate_scales_with_the_batch() -> None:
    assert learning_rate(1.5e-4, 4096) == pytest.approx(2.4e-3)  # MAE's pretraining


def test_fused_adamw_takes_the_same_step_as_the_plain_one() -> None:
    torch.manual_seed(0)
    ours, plain = nn.Linear(5, 5), nn.Linear(5, 5)
    plain.load_state_dict(ours.state_dict())
    fused = adamw(parameter_groups(ours, 0.05), (0.9, 0.95), torch.device("cpu"))
    assert fused.defaults["fused"]
    for group in fused.param_groups:
        group["lr"] = 0.1
    reference = torch.optim.AdamW(
        [{"params": [plain.weight], "weight_decay": 0.05}, {"params": [plain.bias], "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.95),
        foreach=False,
    )
    for module, optimizer in ((ours, fused), (plain, reference)):
        for scale in (1.0, 3.0):
            optimizer.zero_grad()
            (module(torch.ones(2, 5)) ** 2).mean().mul(scale).backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-6, atol=1e-7)


def lars(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], adapts: bool) -> Tensor:
    """moco/optimizer.py of facebookresearch/moco-v3, for one tensor; rate 0.1, momentum 0.9, decay 0.05."""
    if adapts:
        gradient = gradient + 0.05 * weight
        if weight.norm() > 0 and gradient.norm() > 0:
            gradient = gradient * (0.001 * weight.norm() / gradient.norm())
    state["mu"] = 0.9 * state.get("mu", 0) + gradient
    return weight - 0.1 * state["mu"]


def bert(weight: Tensor, gradient: Tensor, state: dict[str, Tensor], decays: bool) -> Tensor:
    """`AdamWeightDecayOptimizer` of google-research/bert, for one tensor; rate 0.1, decay 0.05."""
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * gradient
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * gradient**2
    update = state["m"] / (state["v"].sqrt() + 1e-6)
    return weight - 0.1 * (update + 0.05 * weight if decays else update)


@pytest.mark.parametrize(
    ("ours", "rule"),
    [(lambda groups: LARS(groups, 0.1, 0.9), lars), (lambda groups: UncorrectedAdam(groups, 0.1, (0.9, 0.999)), bert)],
)
def test_our_optimizers_are_their_papers_rules(ours: Any, rule: Any) -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)]).double()
    nn.init.zeros_(layers[1].weight)  # where LARS has no ratio
    module = nn.Sequential(*layers)
    expected = {name: value.detach().clone() for name, value in module.named_parameters()}
    states: dict[str, dict[str, Tensor]] = {name: {} for name in expected}
    optimizer = ours(parameter_groups(module, 0.05))
    for step in range(4):
        optimizer.zero_grad()
        ((module(torch.randn(7, 5, dtype=torch.float64)) - step) ** 2).mean().backward()
        for name, parameter in module.named_parameters():
            expected[name] = rule(expected[name], parameter.grad, states[name], name.endswith("weight"))
        optimizer.step()
    torch.testing.assert_close({name: value.detach() for name, value in module.named_parameters()}, expected)
    frozen = nn.Linear(2, 2)
    ours(parameter_groups(frozen, 0.05)).step()  # nothing has a gradient


def test_sgd_and_adamw_are_torchs() -> None:
    for name, kind in (("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("auto", torch.optim.AdamW)):
        optimizer = optimizer_for(Toy(), settings(optimizer=name, betas=(0.7, 0.95)), CPU)
        assert type(optimizer) is kind
        assert optimizer.defaults.get("momentum", 0.7) == 0.7
        assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05, 0.0}


def test_a_method_has_its_papers_optimizer_unless_told() -> None:
    class Paper(Toy):
        optimizer, lr_scales = "lars", {"first": 0.2}

    asked = optimizer_for(Paper(), settings(), CPU)
    assert type(asked) is LARS
    assert {group["lr_scale"] for group in asked.param_groups} == {1.0, 0.2}
    assert type(optimizer_for(Paper(), settings(optimizer="sgd"), CPU)) is torch.optim.SGD
    Paper.optimizer = "adam"
    with pytest.raises(UserError, match="optimizer 'adam' is none of auto, adamw, adam_uncorrected, lars, sgd"):
        optimizer_for(Paper(), settings(), CPU)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_stopped_run_ends_with_the_same_bits_and_moments(tmp_path: Path, name: str) -> None:
    options = settings(steps=6, base_lr=0.02, optimizer=name, weight_decay_end=0.4, tracker="none", log_every=0)
    train(Toy(), ToyLoader(), options, tmp_path / "whole", device=CPU)
    with pytest.raises(SystemExit):
        train(Toy(), ToyLoader(kill_at=3, signal=15), options, tmp_path / "run", device=CPU)
    train(Toy(), ToyLoader(), options, tmp_path / "run", device=CPU)
    whole, run = (checkpoints.load(tmp_path / each / "step-00000006").state for each in ("whole", "run"))
    torch.testing.assert_close(run, whole, rtol=0, atol=0)
    tensors = [path for path in whole["optimizer"] if not path.endswith("/step")]
    assert len(tensors) == MOMENTS[name] * sum(p.requires_grad for p in Toy().parameters())


def test_weight_decay_goes_by_a_cosine_and_spares_what_does_not_decay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decays: list[list[float]] = []
    step = torch.optim.AdamW.step

    def noting(optimizer: torch.optim.AdamW) -> None:
        decays.append([group["weight_decay"] for group in optimizer.param_groups])
        step(optimizer)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    options = settings(steps=4, weight_decay=0.04, weight_decay_end=0.4, tracker="none")
    train(Toy(), ToyLoader(), options, tmp_path, device=CPU)
    cosines = [0.4 - 0.18 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
    assert decays == [[pytest.approx(value), 0.0] for value in cosines]
    with pytest.raises(UserError, match=r"weight_decay_end=-1\.0 must be 0 or more"):
        settings(weight_decay_end=-1.0)
