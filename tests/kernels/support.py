"""One suite for every implementation of the ops.

Plainly run, it tests the PyTorch path on the CPU. TRITON_INTERPRET=1 MMSSL_KERNELS=triton runs the Triton code in its
interpreter (`make test` does both), MMSSL_DEVICE=cuda runs it on a GPU (`benchmarks/gpu.sh`).
"""

import inspect
import itertools
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device(os.environ.get("MMSSL_DEVICE", "cpu"))
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
TRITON = INTERPRETED or DEVICE.type == "cuda"
# Triton's interpreter computes garbage in bfloat16; on a GPU attention's kernels take nothing but the 16-bit ones.
DTYPES = [torch.float32, torch.float16] + ([] if INTERPRETED else [torch.bfloat16])
EXAMPLES = 8 if INTERPRETED else 40


def bare(op: Callable[..., Any]) -> Callable[..., Any]:
    """The op as users call it, without the tests' own shape checks."""
    return inspect.unwrap(op)


def with_dtypes(*choices: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Every combination of these in every dtype; in the interpreter, where a dtype is but a cast, in each by turns."""
    turns = itertools.cycle(DTYPES)
    cases = itertools.product(*choices)
    return [(*case, dtype) for case in cases for dtype in ([next(turns)] if INTERPRETED else DTYPES)]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(DEVICE, dtype)


def pixels_of(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, dtype=torch.uint8).to(DEVICE)
    return torch.rand(shape).to(DEVICE, dtype)


def positions(batch: int, count: int, kept: int) -> Tensor:
    """Distinct positions, in no order."""
    return torch.rand(batch, count).argsort(dim=1)[:, :kept].to(DEVICE)


def ragged(lengths: list[int], count: int) -> tuple[Tensor, Tensor]:
    """Flat positions and rows, samples one after the other."""
    index = torch.cat([torch.randperm(count)[:length] for length in lengths])
    rows = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return index.to(DEVICE), rows.to(DEVICE)


def strided(values: dict[str, Any]) -> dict[str, Any]:
    """Every tensor as every other element of one twice as large."""
    return {k: torch.stack([v, v], -1)[..., 0] if isinstance(v, Tensor) else v for k, v in values.items()}


def upstream_of(out: Tensor) -> Tensor:
    """The same gradient for results of one shape."""
    turned = torch.randn(out.shape[::-1], generator=torch.Generator().manual_seed(5))
    return turned.permute(tuple(reversed(range(out.ndim)))).to(out.device, out.dtype)  # strided, where it has axes


def gradients(function: Callable[..., Tensor], leaves: dict[str, Tensor], fixed: dict[str, Any], dtype: Any) -> dict:
    """The result and the gradients of `leaves`, which are first cast to `dtype` (None: left as they are)."""
    made = {
        name: torch.empty_strided(leaf.shape, leaf.stride(), dtype=dtype or leaf.dtype, device=leaf.device)
        .copy_(leaf.detach())
        .requires_grad_()
        for name, leaf in leaves.items()
    }
    out = function(**made, **fixed)
    out.backward(upstream_of(out))
    return {"result": out.detach(), **{name: leaf.grad for name, leaf in made.items()}}


def as_good_as(
    found: dict[str, Tensor], eager: dict[str, Tensor], oracle: dict[str, Tensor], terms: float = 0.0
) -> None:
    """Each tensor's error norm against float64 is at most twice eager's in the same dtypes and four roundings more.

    Roundings are of the exact value and, for gradients, of the upstream values they are sums of (`terms`: the norm of
    these where the result is one number); eager may be lucky.
    """
    upstream = upstream_of(oracle["result"]).norm().item() if oracle["result"].ndim else terms
    for name, exact in oracle.items():
        assert found[name].shape == exact.shape, name
        assert found[name].dtype == eager[name].dtype, name
        ours, theirs = ((each[name].double() - exact).norm().item() for each in (found, eager))
        rounded = exact.norm().item() + (0 if name == "result" else upstream)
        bound = 2 * theirs + 4 * torch.finfo(eager[name].dtype).eps * rounded
        assert ours <= bound, f"{name}: error {ours:.3g}, eager {theirs:.3g}, allowed {bound:.3g}"


def doubled(fixed: dict[str, Any]) -> dict[str, Any]:
    """Floating-point tensors in float64."""
    return {k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in fixed.items()}


def check_parity(op: Any, reference: Any, leaves: dict[str, Tensor], fixed: dict[str, Any], terms: float = 0.0) -> dict:
    """The op against its reference in the same dtypes and in float64; what the op found."""
    found, eager = (gradients(function, leaves, fixed, None) for function in (op, reference))
    as_good_as(found, eager, gradients(reference, leaves, doubled(fixed), torch.float64), terms)
    return found


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return out
