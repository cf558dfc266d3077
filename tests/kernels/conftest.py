"""Every kernel test runs under deterministic algorithms, which also fill each new tensor with NaN before it is used."""

import pytest
import torch

from tests.kernels.support import TRITON

collect_ignore = [] if TRITON else ["test_triton.py"]


@pytest.fixture(autouse=True)
def _deterministic_and_poisoned():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
