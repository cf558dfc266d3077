"""Input that no method can work with gets one sentence that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmssl.errors import UserError
from tests.conformance.runs import TwoBatches, train_entry
from tests.conformance.table import Entry, rows


def test_another_modality_is_named(entry: Entry) -> None:
    batch = entry.batch(0)
    read = {name.partition(".")[0] for name in entry.make().encoder.tokenizers}
    other = {name: values for name, values in batch.items() if name.partition(".")[0] not in read}
    with pytest.raises(UserError, match="smell"):
        entry.make()({**other, "smell": torch.rand(len(batch["sample_id"]), 3)})


def test_another_shape_is_named(entry: Entry) -> None:
    batch, objective = entry.batch(0), entry.make()
    name = next(iter(objective.encoder.tokenizers))
    with pytest.raises(UserError, match=rf"{name}: got .*shape \({len(batch['sample_id'])}, .*expected"):
        objective({**batch, name: torch.cat([batch[name]] * 5, dim=1)})


def test_an_empty_batch_is_named(entry: Entry) -> None:
    with pytest.raises(UserError, match="no sample"):
        entry.make()(rows(entry.batch(0), slice(0)))


def test_values_that_are_not_finite_stop_the_run_and_name_its_samples(entry: Entry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 1: the loss is not finite on rank 0, with the samples sample-0, "):
        train_entry(entry, tmp_path, TwoBatches(entry, poison=True))
    assert not list(tmp_path.glob("step-*"))
