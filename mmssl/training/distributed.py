"""The few things a training loop asks of torch.distributed; in a single process each of them does nothing.

Ranks come from `torchrun`. Tensors on a GPU travel by NCCL, everything else by gloo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmssl.errors import UserError

T = TypeVar("T")


def init(device: str = "auto") -> torch.device:
    """Join the ranks that torchrun started, if it did, and say which device is this rank's.

    `device` is "auto" (a GPU where there is one), or any name torch knows. Raises UserError for "cuda" without a GPU.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device} was asked for, but torch sees no GPU here: use --device cpu.")
    under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= os.environ.keys()
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        local = torch.device(device)
    except RuntimeError:
        raise UserError(f"device {device!r} is none that torch knows: use auto, cpu or cuda.") from None
    if local.type == "cuda":
        torch.cuda.set_device(local)
    if under_torchrun and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if local.type == "cuda" else "gloo")
    return local


def shutdown() -> None:
    """Leave the group; call it once, at the end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among all, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over ranks, the same tensor on each; any shape, floating point."""
    if world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world_size()
    return values


def average_gradients(module: nn.Module) -> None:
    """Make the gradients of every rank their mean over ranks; one that a rank has not counts as zero."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
    flat = mean(torch.cat([gradient.reshape(-1) for gradient in gradients]))  # one message instead of hundreds
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


@torch.no_grad()
def as_on_first_rank(tensors: Iterable[Tensor]) -> None:
    """Every rank's tensors take the values that they have on rank 0."""
    for tensor in tensors if world_size() > 1 else ():
        values = tensor.contiguous()
        dist.broadcast(values, 0)
        tensor.copy_(values)


def any_rank(flags: Tensor) -> list[bool]:
    """For each of the boolean `flags [n]`, whether it is set on any rank. Waits for the device: one sync a call."""
    if world_size() > 1:
        flags = flags.to(torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return [bool(flag) for flag in flags.tolist()]


def gather(value: T) -> list[T]:
    """Every rank's `value`, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def on_first_rank(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, where alone it runs; if it raises UserError there, every rank raises it."""
    if world_size() == 1:
        return action()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = action()
        except UserError as error:
            outcome[1] = str(error)
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise UserError(outcome[1])
    return outcome[0]
