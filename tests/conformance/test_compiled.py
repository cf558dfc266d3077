"""Compiled methods equal those that are not, and are one graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conformance import compile_all
from tests.conformance.conftest import SHARED
from tests.conformance.table import TABLE, Entry
from tests.processes import printed


@pytest.fixture(scope="module")
def outcomes(seconds: dict[str, float]) -> dict[str, tuple[str, float]]:
    """Why each check failed, empty where it did not, and its seconds: Inductor's are of no method."""
    told = json.loads(printed(Path(compile_all.__file__)))
    for entry in TABLE:
        inductors = entry.name == compile_all.INDUCTORS
        seconds[SHARED if inductors else f"booked {entry.name}"] += told[entry.name][1]
    return told


def test_it_compiles_to_one_graph(entry: Entry, outcomes: dict[str, tuple[str, float]]) -> None:
    assert outcomes[entry.name][0] == ""
