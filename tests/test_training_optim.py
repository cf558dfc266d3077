"""Decay groups, layer-wise rates and the schedule against the rules written in methods.md 0.5."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmssl import VideoMAE
from mmssl.objectives import videomae_config
from mmssl.training import adamw, cosine_schedule, learning_rate, parameter_groups


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


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.05), (1, 0.0), (2, 0.1), (3, 1.0), (10, 9.9)])
def test_every_step_of_the_shortest_runs_trains(total: int, warmup: float) -> None:
    rates = [cosine_schedule(step, total=total, warmup=warmup, peak=1.0, floor=0.0) for step in range(total)]
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
