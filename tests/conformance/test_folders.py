"""What is written is read back, by us and by others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mmssl import Encoder
from mmssl.errors import UserError
from mmssl.modality import zero_to_one
from mmssl.objectives import load
from tests.conformance.table import Entry
from tests.parity import assert_states_equal, normalised, randomize, relative


def test_a_folder_holds_the_method_exactly(entry: Entry, tmp_path: Path) -> None:
    objective = randomize(entry.make())
    folder = objective.save_pretrained(tmp_path)
    written = json.loads((folder / "config.json").read_text())
    assert written["mmssl"] == entry.name
    for again in (type(objective).from_pretrained(folder), load(folder)):
        assert type(again) is type(objective)
        assert again.config == objective.config
        assert_states_equal(again.state_dict(), objective.state_dict())
        assert torch.equal(again.eval()(entry.batch(0)).loss, objective.eval()(entry.batch(0)).loss)
    encoder = Encoder.from_pretrained(folder)
    assert_states_equal(encoder.state_dict(), objective.encoder.state_dict())
    alone = Encoder.from_pretrained(encoder.save_pretrained(tmp_path / "encoder"))
    assert_states_equal(alone.state_dict(), encoder.state_dict())
    again.save_pretrained(tmp_path / "twice")
    assert json.loads((tmp_path / "twice" / "config.json").read_text()) == written


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_other_libraries_take_the_encoder_or_it_says_why_not(entry: Entry, library: str, tmp_path: Path) -> None:
    encoder, batch = randomize(entry.make()).encoder.eval(), entry.batch(0)
    if library not in entry.exports:
        with pytest.raises(UserError, match=library):
            encoder.to_timm() if library == "timm" else encoder.to_transformers(tmp_path)
        return
    first = next(iter(encoder.tokenizers))  # of several modalities, that of pictures is taken
    read = {name: values for name, values in batch.items() if name.partition(".")[0] == first}
    tokens = encoder(read).x
    if library == "timm":
        media = zero_to_one(batch[first])
        found = encoder.to_timm().eval().forward_features(normalised(encoder.only(first), media))
    else:
        found = Encoder.from_pretrained(encoder.to_transformers(tmp_path)).eval()(read).x
    assert relative(found, tokens) < 1e-5
