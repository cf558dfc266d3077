"""The table is whole, and its exceptions name properties that there are."""

from __future__ import annotations

import importlib
from pathlib import Path

from mmssl.objectives import METHODS
from tests.conformance.table import TABLE


def test_every_method_of_the_package_has_an_entry() -> None:
    inside = {name for name, method in METHODS.items() if method.__module__.startswith("mmssl.")}
    assert inside <= {entry.name for entry in TABLE}
    for entry in TABLE:
        assert type(entry.make()).__name__ == entry.name


def test_exceptions_name_a_property_and_give_a_reason() -> None:
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    modules = [importlib.import_module(f"tests.conformance.{file.stem}") for file in files]
    properties = {name.removeprefix("test_") for module in modules for name in vars(module) if name.startswith("test_")}
    for entry in TABLE:
        assert entry.exceptions.keys() <= properties, entry.name
        assert all(entry.exceptions.values())
