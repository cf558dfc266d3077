"""Every kernel test runs under deterministic algorithms, which also fill each new tensor with NaN before it is used.

Pieces of the PyTorch path are so small that every call takes several.
"""

import pytest
import torch
from mmssl_kernels.masked_patch import pixels

from tests.kernels.support import TRITON

collect_ignore = [] if TRITON else ["test_triton.py"]


@pytest.fixture(autouse=True)
def _deterministic_poisoned_and_in_pieces(monkeypatch):
    monkeypatch.setattr(pixels, "PIECE_BYTES", 2500)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
