"""Heads have the layers of their papers' code; the batch norm is torch's in one process."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmssl.errors import UserError
from mmssl.heads import GlobalBatchNorm, HeadConfig, mlp_head

Layers = list[tuple[str, set[str]]]
"""Names of layers and of what they learn."""
WEIGHT, BOTH = {"weight"}, {"weight", "bias"}
HIDDEN: Layers = [("Linear", WEIGHT), ("GlobalBatchNorm", BOTH), ("ReLU", set())]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            HeadConfig((20, 5), last_norm="scale"),  # SimCLR's
            [*HIDDEN, ("Linear", WEIGHT), ("GlobalBatchNorm", WEIGHT)],
        ),
        (
            HeadConfig((20, 20, 5), last_norm="fixed"),  # MoCo v3's on a ViT
            [*HIDDEN, *HIDDEN, ("Linear", WEIGHT), ("GlobalBatchNorm", set())],
        ),
        (
            HeadConfig((20, 5), bias="hidden"),  # BYOL's
            [("Linear", BOTH), ("GlobalBatchNorm", BOTH), ("ReLU", set()), ("Linear", WEIGHT)],
        ),
        (
            HeadConfig((20, 20, 5), norm=False, bias="all", activation="gelu"),  # DINO's
            [("Linear", BOTH), ("GELU", set()), ("Linear", BOTH), ("GELU", set()), ("Linear", BOTH)],
        ),
    ],
)
def test_heads_have_the_layers_of_their_papers(config: HeadConfig, expected: Layers) -> None:
    head = mlp_head(8, config)
    assert [(type(layer).__name__, {name for name, _ in layer.named_parameters()}) for layer in head] == expected
    assert head(torch.randn(6, 8)).shape == (6, 5)
    with pytest.raises(UserError, match=r"widths \(0,\) of a head"):
        HeadConfig((0,))


@pytest.mark.parametrize("learned", [True, False])
def test_in_one_process_the_norm_is_torchs(learned: bool) -> None:
    ours, torchs = GlobalBatchNorm(6, scale=learned, shift=learned), nn.BatchNorm1d(6, affine=learned)
    torchs.load_state_dict(ours.state_dict())
    for training in (True, True, False):
        ours.train(training), torchs.train(training)
        rows = torch.randn(5, 6) * 3 + 2
        inputs = [rows.clone().requires_grad_() for _ in range(2)]
        outs = [norm(x) for norm, x in zip((ours, torchs), inputs, strict=True)]
        for out in outs:
            (out**3).sum().backward()
        torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=0)
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=0, atol=0)
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict(), rtol=0, atol=0)
    for one, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_a_norm_that_scales_alone_learns_its_scale() -> None:
    norm, rows = GlobalBatchNorm(4, shift=False), torch.randn(6, 4)
    reference = copy.deepcopy(norm)
    (norm(rows) * rows).sum().backward()
    plain = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(norm.weight.grad, (plain * rows).sum(0))
    torch.testing.assert_close(reference.eval()(rows), rows / (1 + 1e-5) ** 0.5)


def test_low_precision_features_have_float32_statistics() -> None:
    norm, rows = GlobalBatchNorm(4), torch.randn(64, 4).bfloat16() + 100
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(rows)
    assert out.dtype == torch.bfloat16
    exact = rows.double()
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * exact.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * exact.var(0), rtol=1e-6, atol=0)
    expected = (exact - exact.mean(0)) / (exact.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(out.double(), expected, rtol=2**-8, atol=1e-3)
