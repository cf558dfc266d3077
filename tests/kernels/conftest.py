"""Every kernel test runs under deterministic algorithms, which also fill each new tensor with NaN before it is used.

Where the interpreter has nothing to say it is not asked: who is chosen; memory, since it copies all storages; what
torch.compile makes of the operations, whose registrations are the same; ranks, which compare what the PyTorch path
finds in float64. Pieces and tiles of the PyTorch path, and chunks of the Triton code, are so small that every call
takes several.
"""

import pytest
import torch
from mmssl_kernels.attention import blocks
from mmssl_kernels.contrastive import losses, similarity
from mmssl_kernels.masked_patch import pixels

from tests.kernels.support import INTERPRETED, TRITON

_WITHOUT_KERNELS = ["test_attention_choice.py", "test_attention_memory.py", "test_compiled.py"]
_WITHOUT_KERNELS += ["test_contrastive_distributed.py"]
collect_ignore = _WITHOUT_KERNELS if INTERPRETED else [] if TRITON else ["test_triton.py"]

if INTERPRETED:
    # Most of an interpreted run was Triton's own: it would prepare its language anew for every function that a kernel
    # calls, and compute whether integers overflow, of which it tells nobody outside of its debug mode.
    from triton.runtime import interpreter

    prepared: set[str] = set()

    def called(function, *arguments, **named):
        if (module := function.fn.__module__) not in prepared:
            interpreter._patch_lang(function.fn)
            prepared.add(module)
        return function.rewrite()(*arguments, **named)

    interpreter.InterpretedFunction.__call__ = called
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture(autouse=True)
def _deterministic_poisoned_and_in_pieces(monkeypatch):
    monkeypatch.setattr(pixels, "PIECE_BYTES", 2500)
    monkeypatch.setattr(blocks, "TOGETHER", 300)
    monkeypatch.setattr(blocks, "ROWS", 200)
    monkeypatch.setattr(similarity, "TILE", 50)
    monkeypatch.setattr(losses, "WHOLE", 0)
    monkeypatch.setattr(similarity, "BLOCK", 60)
    monkeypatch.setattr(similarity, "FEWEST", 3)
    if TRITON:
        from mmssl_kernels.attention import backward_triton
        from mmssl_kernels.contrastive import nearest_triton, similarity_triton

        monkeypatch.setattr(backward_triton, "PARTIALS", 5000)
        monkeypatch.setattr(nearest_triton, "PROGRAMS", 2)
        for name in ("PARTIALS", "GRADIENTS", "CHUNK_ROWS"):
            monkeypatch.setattr(similarity_triton, name, 64)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
