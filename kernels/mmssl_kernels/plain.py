"""Our ops as plain PyTorch, for programs that must run where this package is not: `torch.export`, ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmssl_kernels import reference


def _masked_patch_embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    index: Tensor,
    rows: Tensor | None,
    mean: Tensor,
    std: Tensor,
    patch: list[int],
) -> Tensor:
    return reference.masked_patch_embed(
        pixels, weight, bias, position, index, patch=tuple(patch), mean=mean, std=std, rows=rows
    )


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {torch.ops.mmssl.masked_patch_embed.default: _masked_patch_embed}
"""For `ExportedProgram.run_decompositions`; rectangular attention is PyTorch's own already."""
