"""Models and runs that earlier versions wrote are read, and gone on with, with the numbers they had."""

import json
import shutil
from pathlib import Path

import pytest

from mmssl.encoder import Encoder
from mmssl.objectives import load
from tests.formats.write import HERE, numbers, run

WRITTEN = sorted(HERE.glob("*/*/expected.json"))


@pytest.mark.parametrize("expected", WRITTEN, ids=lambda path: "/".join(path.parts[-3:-1]))
def test_what_was_written_gives_the_same_numbers(expected: Path, tmp_path: Path) -> None:
    folder, told = expected.parent, json.loads(expected.read_text())
    method, objective = folder.name, load(folder / "objective")
    found = numbers(objective, Encoder.from_pretrained(folder / "encoder"), method)
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-5)
    for got, wanted in zip(found["features"], told["features"], strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
    # resumed in the middle, by a model whose own weights the checkpoint replaces
    shutil.copytree(folder / "run", tmp_path / "run")
    assert run(load(folder / "objective"), method, tmp_path / "run") == [
        {name: pytest.approx(value, rel=1e-4) for name, value in row.items()} for row in told["rows"]
    ]
