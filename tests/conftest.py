"""Shapes in signatures are checked while the tests run; the hook must be in place before mmssl is imported."""

import os
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

with warnings.catch_warnings():
    # beartype warns of its own deprecations of hints it still checks
    warnings.simplefilter("ignore")
    if os.environ.get("MMSSL_CHECK_SHAPES", "1") == "1":
        install_import_hook(["mmssl", "mmssl_kernels"], "beartype.beartype")

import pytest
import torch


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where mmssl keeps what it has read, empty and not the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "mmssl"
