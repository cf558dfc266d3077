"""Argument checks: what an op refuses, it refuses before anything runs, naming both sides.

Shapes, dtypes and devices are checked on every call. Values of indices are checked where that is free (see
`values_are_checked`); on a GPU the kernels clamp what they load, so that a wrong index never reads outside a tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmssl_kernels.frame.dispatch import values_are_checked

PIXELS = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)
FLOATS = PIXELS[1:]


def dtype(allowed: tuple[torch.dtype, ...], **tensors: Tensor | None) -> None:
    """Raises TypeError for a tensor of another dtype."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            names = ", ".join(str(each).removeprefix("torch.") for each in allowed)
            raise TypeError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}, expected {names}")


def same_device(**tensors: Tensor | None) -> None:
    """Raises ValueError where the tensors lie on more than one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        raise ValueError("one device is needed, got " + ", ".join(f"{k} on {v}" for k, v in devices.items()))


def shape(expected: tuple[int, ...], because: str, **tensors: Tensor | None) -> None:
    """Raises ValueError for a tensor of another shape; `because` says what the expected one follows from."""
    for name, tensor in tensors.items():
        if tensor is not None and tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}: {because}")


def positions(name: str, index: Tensor, rows: Tensor | None, batch: int, count: int) -> None:
    """Rectangular `[batch, K]`, or flat `[S]` with the sample of each in rows `[S]`; both int64.

    Where there is no sample or no position there is nothing to clamp to: then there must be no index either.
    """
    dtype((torch.int64,), **{name: index, f"{name}'s rows": rows})
    if rows is None and (index.ndim != 2 or index.shape[0] != batch):
        raise ValueError(f"{name} has shape {tuple(index.shape)}, expected ({batch}, K), or flat with rows")
    if rows is not None and (index.ndim != 1 or index.shape != rows.shape):
        raise ValueError(f"{name} has shape {tuple(index.shape)} and its rows {tuple(rows.shape)}; expected both flat")
    if index.numel() and not (batch and count):
        raise ValueError(f"{name} has shape {tuple(index.shape)}, but there are {batch} samples of {count} positions")


def position_values(name: str, index: Tensor, rows: Tensor | None, batch: int, count: int) -> None:
    """Raises ValueError where a position lies outside the grid, a row outside the batch, or one comes twice."""
    if not index.numel() or not values_are_checked(index):
        return
    for what, values, limit in ((name, index, count), (f"{name}'s rows", rows, batch)):
        if values is not None:
            values_below(what, values, limit)
    if rows is None:
        rows = torch.arange(batch, device=index.device)[:, None]
    seen = torch.zeros(batch * count, dtype=torch.bool, device=index.device)
    seen[(rows * count + index).flatten()] = True
    if int(seen.sum()) != index.numel():
        raise ValueError(f"{name} of shape {tuple(index.shape)} names a position of a sample more than once")


def values_below(name: str, values: Tensor, limit: int) -> None:
    """Raises ValueError unless 0 <= values < limit. Waits for the device."""
    low, high = (int(value) for value in values.aminmax())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} holds {low} to {high}, expected 0 to {limit - 1}")
