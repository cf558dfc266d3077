"""Compiled methods equal those that are not, and are one graph."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conformance.table import TABLE, Entry
from tests.processes import environment


@pytest.fixture(scope="module")
def outcomes(seconds: dict[str, float]) -> dict[str, tuple[str, float]]:
    """Why each check failed, empty where it did not, and its seconds."""
    call = [sys.executable, "-m", "tests.conformance.compile_all"]
    done = subprocess.run(call, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    for entry in TABLE:
        seconds[f"booked {entry.name}"] += told[entry.name][1]
    return told


def test_inductors_code_equals_eager(outcomes: dict[str, tuple[str, float]]) -> None:
    assert outcomes["inductor"][0] == ""


def test_it_compiles_to_one_graph(entry: Entry, outcomes: dict[str, tuple[str, float]]) -> None:
    assert outcomes[entry.name][0] == ""
