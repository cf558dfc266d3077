"""Every property over every entry, and what each method costs."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._dynamo  # the first optimizer would import it, and the first method seem slow

from tests.conformance.runs import train_entry
from tests.conformance.table import TABLE, Entry

SECONDS = pytest.StashKey[defaultdict[str, float]]()
SHARED = "all together"
MOST = 6.0
"""Seconds of a core that a method may take, whatever else the cores do meanwhile."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SECONDS] = defaultdict(float)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes an `entry` is a property. Where an entry excepts it, it must fail."""
    if "entry" not in metafunc.fixturenames:
        return
    name = metafunc.function.__name__.removeprefix("test_")
    cases = []
    for entry in TABLE:
        reason = entry.exceptions.get(name)
        marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
        cases.append(pytest.param(entry, id=entry.name, marks=marks))
    metafunc.parametrize("entry", cases)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """As the ranks have: sums over threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders by method, filled by `run`."""
    return defaultdict(lambda: tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(entry: Entry, finished: dict[str, Path]) -> Path:
    """The folder of a finished run of this method."""
    known = entry.name in finished
    folder = finished[entry.name]
    if not known:
        train_entry(entry, folder)
    return folder


@pytest.fixture(scope="session")
def seconds(pytestconfig: pytest.Config) -> dict[str, float]:
    """Where a fixture for all methods books what each of them took."""
    return pytestconfig.stash[SECONDS]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    began = time.process_time()
    done = yield
    if item.path.parent == Path(__file__).parent:  # pytest asks this hook of all tests
        entry = getattr(item, "callspec", None) and item.callspec.params.get("entry")
        item.config.stash[SECONDS][entry.name if entry else SHARED] += time.process_time() - began
    return done


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    taken = dict(config.stash[SECONDS])
    terminalreporter.section("conformance: seconds of a core, a method")
    for entry in TABLE:
        if entry.name in taken:
            spent = taken[entry.name] + taken.get(f"booked {entry.name}", 0.0)
            terminalreporter.line(f"{entry.name:16}{spent:6.1f}{f', above {MOST:g}' if spent > MOST else ''}")
    terminalreporter.line(f"{SHARED:16}{taken.get(SHARED, 0.0):6.1f}")
