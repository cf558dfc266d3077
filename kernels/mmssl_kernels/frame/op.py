"""Registration with `torch.library`: one op, two implementations, and what tracing, autograd and autocast need."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, custom_op

from mmssl_kernels.frame.dispatch import backend

_library = Library("mmssl", "FRAGMENT")
_AUTOCAST = {"cuda": torch._C.DispatchKey.AutocastCUDA, "cpu": torch._C.DispatchKey.AutocastCPU}


def define(
    name: str,
    schema: str,
    fast: Callable[..., Any],
    triton: str | None,
    fake: Callable[..., Any],
    check: Callable[..., None] | None = None,
) -> Any:
    """Register `mmssl::name` and return it.

    fast: the PyTorch implementation. triton: the module whose function of the same name launches the kernels; it is
    imported at the first call that needs it. None: the op is PyTorch everywhere. fake: shapes and dtypes of the
    results, for tracing. check: what reads values and therefore runs with the op, not while it is traced.
    """

    def run(*arguments: Any) -> Any:
        if check is not None:
            check(*arguments)
        with without_autocast():
            if triton is None or backend(a for a in arguments if isinstance(a, Tensor)) == "torch":
                return fast(*arguments)
            return getattr(import_module(triton), fast.__name__)(*arguments)

    op = custom_op(f"mmssl::{name}", run, mutates_args=(), schema=schema)
    op.register_fake(fake)
    return op


def without_autocast() -> Any:
    """A context in which nothing is cast: an op's own products keep the dtypes it chose."""
    first, second = (torch._C.DispatchKeySet(key) for key in _AUTOCAST.values())
    return torch._C._ExcludeDispatchKeyGuard(first | second)


def lowered(tensor: Tensor) -> Tensor:
    """As autocast casts it, where autocast is on; float64 stays."""
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def autocast(op: Any, *names: str) -> None:
    """Under autocast the arguments with these names are cast, and no others: statistics and scales stay float32.

    `torch.library.register_autocast` would cast every floating-point argument.
    """
    overload = op._opoverload
    places = [i for i, argument in enumerate(overload._schema.arguments) if argument.name in names]
    name = overload._schema.name.removeprefix("mmssl::")
    for key in _AUTOCAST.values():

        def cast(*arguments: Any) -> Any:
            cast = list(arguments)
            for place in places:
                if cast[place] is not None:
                    cast[place] = lowered(cast[place])
            with without_autocast():
                return overload(*cast)

        _library.impl(name, cast, key.name)
