"""Models and runs that earlier versions wrote are read, and gone on with, with the numbers they had."""

import json
import shutil
from pathlib import Path

import pytest

from mmssl.encoder import Encoder
from mmssl.objectives import load
from tests.formats.write import HERE, numbers, run

WRITTEN = sorted(HERE.glob("*/*.tar.xz"))


@pytest.mark.parametrize("archive", WRITTEN, ids=lambda path: f"{path.parent.name}/{path.name.partition('.')[0]}")
def test_what_was_written_gives_the_same_numbers(archive: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(archive, tmp_path, filter="data")
    told, objective = json.loads((tmp_path / "expected.json").read_text()), load(tmp_path / "objective")
    method = archive.name.partition(".")[0]
    found = numbers(objective, Encoder.from_pretrained(tmp_path / "encoder"), method)
    assert found["loss"] == pytest.approx(told["loss"], rel=1e-5)
    for got, wanted in zip(found["features"], told["features"], strict=True):
        assert got == pytest.approx(wanted, abs=1e-5)
    # resumed in the middle, by a model whose own weights the checkpoint replaces
    assert run(load(tmp_path / "objective"), method, tmp_path / "run") == [
        {name: pytest.approx(value, rel=1e-4) for name, value in row.items()} for row in told["rows"]
    ]
