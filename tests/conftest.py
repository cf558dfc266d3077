"""Shapes in signatures are checked while the tests run; the hook must be in place before mmssl is imported."""

import os
import warnings

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
