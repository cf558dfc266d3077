"""The README's numbers are those of the result files, and its Python runs."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import PAGES, filled

README = PAGES[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_result_files(page):
    assert filled(page.read_text()) == page.read_text()


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_example(README)
    assert names["features"].shape == (2, 768) and names["vit"].config.hidden_size == 192
    assert Path("mae_hf/config.json").is_file()


def test_the_kernels_example_runs():
    names = run_example(README.parent / "kernels" / "README.md")
    assert names["tokens"].shape == (2, 2, 64) and names["loss"].ndim == 0


def run_example(readme):
    code = "\n".join(re.findall(r"```python\n(.*?)```", readme.read_text(), flags=re.DOTALL))
    names: dict = {}
    exec(compile(code, str(readme), "exec"), names)
    return names


@pytest.mark.parametrize("link", re.findall(r"\]\((?!http)([^)]+)\)", README.read_text()))
def test_what_it_links_to_exists(link):
    assert (README.parent / link).is_file()
