"""What a loss and a mask depend on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmssl_kernels import unpatchify
from torch import Tensor

from mmssl.masking import Mask
from mmssl.objectives import Objective
from mmssl.training import read_metrics
from tests.conformance.runs import floating
from tests.conformance.table import Batch, Entry, rows


def test_the_loss_is_finite_and_falls(entry: Entry, run: Path) -> None:
    losses = [row["loss"] for row in read_metrics(run)]
    assert all(map(math.isfinite, losses))
    assert sum(losses[-2:]) < 0.92 * sum(losses[:2])  # each is the same two batches


def test_parts_are_scalars_and_make_up_the_loss(entry: Entry) -> None:
    out = entry.make()(entry.batch(0))
    assert out.loss.shape == () and out.parts
    for name, part in out.parts.items():
        assert part.shape == () and part.isfinite(), name
    torch.testing.assert_close(entry.total(out.parts), out.loss)


def places(mask: Mask) -> list[Tensor]:
    """What is kept and what is hidden, one row a sample: booleans `[B, positions]`."""
    return [positions.boolean(mask.count) for positions in (mask.keep, *mask.targets)]


def test_a_mask_depends_on_its_sample_alone(entry: Entry) -> None:
    objective, batch = entry.make(), entry.batch(0)
    whole, order = objective(batch).mask, torch.arange(len(batch["sample_id"])).flip(0)
    assert whole is not None
    for chosen in (order, order[:1], order[1:3]):
        alone = objective(rows(batch, chosen)).mask
        assert all(map(torch.equal, places(alone), [each[chosen] for each in places(whole)]))
    assert places(whole)[-1].unique(dim=0).shape[0] > 1
    for name in ("epoch", "draw"):
        other = objective({**batch, name: batch[name] + 1}).mask
        assert not all(map(torch.equal, places(other), places(whole))), name


def test_the_loss_is_the_mean_over_samples(entry: Entry) -> None:
    """Or of what samples have few or many of, weighed by how many each has."""
    objective, batch = entry.make().eval(), entry.batch(0)
    size = len(batch["sample_id"])
    counts = {name: count / size for name, count in objective.counts(batch).items()}
    with torch.no_grad():
        alone = [objective(rows(batch, slice(i, i + 1)) | counts).loss for i in range(size)]
        torch.testing.assert_close(torch.stack(alone).mean(), objective(batch).loss, rtol=1e-5, atol=0)


def overwritten(objective: Objective, batch: Batch, mask: Mask, hides: tuple[str, ...]) -> Batch:
    """The batch with other values where the mask hides them: not a number, other ids."""
    changed = dict(batch)
    hidden = torch.stack([target.boolean(mask.count) for target in mask.targets]).any(dim=0)
    for key in hides:
        name = key.partition(".")[0]
        tokenizer, values = objective.encoder.tokenizer(name), batch[key]
        here = hidden[:, slice(*mask.span(name))]
        if patch := tokenizer.modality.patch:
            here = unpatchify(here[..., None].expand(-1, -1, math.prod(patch)), patch, tokenizer.grid({name: values}))
            changed[key] = values.masked_fill(here, torch.nan)
        else:
            changed[key] = torch.where(here, (values + 1) % tokenizer.modality.channels, values)
        assert not torch.equal(changed[key], values)
    return changed


def test_hidden_values_are_unread(entry: Entry) -> None:
    """Neither tokens nor predictions nor a gradient of theirs; a loss may, and does, compare with what is hidden."""
    objective, batch = entry.make().eval(), floating(entry.batch(0))
    mask = objective(batch).mask
    assert mask is not None and entry.hides
    tokens: list[Tensor] = []
    objective.encoder.register_forward_hook(lambda module, inputs, found: tokens.append(found.x))
    read = []
    for values in (batch, overwritten(objective, batch, mask, entry.hides)):
        tokens.clear()
        objective.zero_grad()
        out = objective(values, mask)
        seen = tokens + ([] if out.prediction is None else [out.prediction]) + list(out.predictions.values())
        torch.stack([each.square().sum() for each in seen]).sum().backward()
        gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        read.append([each.detach() for each in seen] + gradients)
    assert len(read[0]) > len(tokens)
    for clean, dirty in zip(*read, strict=True):
        assert torch.equal(clean, dirty)


def test_evaluation_mode_is_repeatable(entry: Entry) -> None:
    objective, batch = entry.make().eval(), entry.batch(0)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    first, second = objective(batch), objective(batch)
    assert torch.equal(first.loss, second.loss)
    assert all(torch.equal(value, before[name]) for name, value in objective.state_dict().items())


# Activations are rounded to 8 bits, each by a share of 2**-9 at most and with either sign, and a loss is a mean over
# hundreds of them: what is left of the rounding of a few blocks is a few units of 2**-8.
NEAR = 2**-6


def test_bf16_is_near_fp32_and_its_gradients_are_finite(entry: Entry) -> None:
    objective, batch = entry.make(), entry.batch(0)
    exact = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        out = objective(batch)
    assert out.loss.item() == pytest.approx(exact.loss.item(), rel=NEAR)
    out.loss.float().backward()
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
