"""Which code runs an op: Triton for tensors on CUDA and ROCm devices, fast PyTorch for all others.

MMSSL_KERNELS=torch or =triton forces either (auto by default); with TRITON_INTERPRET=1 Triton's interpreter takes CPU
tensors. MMSSL_DEBUG=1 has every op check the values of its indices on any device, at the price of waiting for it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["triton", "torch"]
# Pixels of three axes beside batch and channel are the most that the kernels address.
MOST_AXES = 5


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; it is not imported for that."""
    return find_spec("triton") is not None


def wanted(on_gpu: bool) -> bool:
    """Whether Triton is to run on a device of this kind, whatever the tensors."""
    choice = os.environ.get("MMSSL_KERNELS", "auto")
    if choice not in ("auto", "triton", "torch"):
        raise ValueError(f"MMSSL_KERNELS={choice!r}: expected auto, triton or torch")
    return choice == "triton" or (choice == "auto" and on_gpu and has_triton())


def backend(tensors: Iterable[Tensor]) -> Backend:
    """The code for an op on these tensors.

    float64 and pixels of more than three axes take the PyTorch path everywhere: correct on any device, only slower.
    Raises ValueError where MMSSL_KERNELS holds another word, or asks for Triton where it cannot run.
    """
    tensors = list(tensors)
    on_gpu = tensors[0].is_cuda  # ROCm's devices go by this name too
    if not wanted(on_gpu) or any(tensor.dtype == torch.float64 or tensor.ndim > MOST_AXES for tensor in tensors):
        return "torch"
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"MMSSL_KERNELS=triton needs tensors on a GPU, or TRITON_INTERPRET=1; these are on {tensors[0].device}"
        )
    return "triton"


def values_are_checked(tensor: Tensor) -> bool:
    """Whether an op may read the values of its indices: free on a CPU, a synchronisation on a GPU."""
    return tensor.device.type == "cpu" or os.environ.get("MMSSL_DEBUG") == "1"


def family(device: torch.device) -> str:
    """The row of the configuration tables for a device.

    Chips without a row of their own share the one with the least shared memory and the oldest instructions.
    """
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")
