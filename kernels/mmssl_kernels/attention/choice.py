"""Who computes attention, by device and shape: a table, what each candidate cannot do, and the first one that can.

    triton     the kernels of this package
    blocks     their PyTorch path: any device and dtype, a block of rows of logits at a time
    cudnn, flash, efficient    one backend each of torch's scaled_dot_product_attention; flash exists on CPUs too
    xformers   its memory_efficient_attention, which takes packed sequences

SDPA's own fallback, "math", which holds every logit, is not among them: it never runs.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

from mmssl_kernels.attention.problem import Problem
from mmssl_kernels.frame.dispatch import family
from mmssl_kernels.tables import WIDEST_HEAD

Implementation = Literal["triton", "blocks", "cudnn", "flash", "efficient", "xformers"]
Rows = tuple[tuple[int | None, tuple[Implementation, ...]], ...]

_NEVER_LAST: tuple[Implementation, ...] = ("xformers", "triton", "blocks")
_EFFICIENT: Rows = ((None, ("efficient", "xformers", "blocks")),)
_FLASH: Rows = ((256, ("triton", "flash", "efficient", "blocks")), (None, ("flash", "efficient", *_NEVER_LAST)))
_CUDNN: Rows = (
    (256, ("triton", "cudnn", "flash", "efficient", "blocks")),
    (None, ("cudnn", "flash", "efficient", *_NEVER_LAST)),
)
# A row: the longest sequence it serves (None: any), and the candidates in order of preference. "cpu" is measured
# (benchmarks/attention.md). The others are not yet: see benchmarks/GPU_TODO.md.
CHOICES: dict[tuple[str, int], Rows] = {
    ("cpu", 16): ((None, ("flash", "blocks")),),
    ("cpu", 32): ((None, ("flash", "blocks")),),
    ("sm_80", 16): _FLASH,
    ("sm_90", 16): _CUDNN,
    ("sm_100", 16): _CUDNN,
    ("gfx942", 16): _FLASH,
    ("sm_80", 32): _EFFICIENT,
    ("sm_90", 32): _EFFICIENT,
    ("sm_100", 32): _EFFICIENT,
    ("gfx942", 32): _EFFICIENT,
    ("older", 16): _EFFICIENT,
    ("older", 32): _EFFICIENT,
    ("other", 16): ((None, ("blocks",)),),
    ("other", 32): ((None, ("blocks",)),),
}
SDPA: tuple[Implementation, ...] = ("cudnn", "flash", "efficient")


@dataclass(frozen=True)
class Explanation:
    """Who computes a call of attention. passed_over: who came before in the table, and why it cannot.

    deterministic: whether the backward pass gives the same bits every time, as torch is set now.
    """

    implementation: Implementation
    row: str
    passed_over: tuple[tuple[Implementation, str], ...]
    deterministic: bool

    def __str__(self) -> str:
        others = "".join(f"; not {name}: {reason}" for name, reason in self.passed_over)
        bits = "deterministic" if self.deterministic else "not deterministic"
        return f"{self.implementation} ({self.row}{others}); its backward is {bits}"


@functools.cache
def has_xformers() -> bool:
    """Whether it is installed and has an operator for this torch: its own may have been built for another."""
    if find_spec("xformers") is None:
        return False
    from xformers.ops import fmha

    return any(operator.is_available() for operator in (fmha.flash.FwOp, fmha.cutlass.FwOp))


def obstacle(name: Implementation, problem: Problem) -> str:
    """Why a candidate cannot compute this, or nothing."""
    if name == "blocks":
        return ""
    if name == "triton":
        if not problem.triton:
            return "Triton does not run here"
        if not problem.half and problem.family != "cpu":
            return "float16 and bfloat16 only"
        return f"heads of more than {WIDEST_HEAD}" if problem.head_dim > WIDEST_HEAD else ""
    if problem.windowed:
        return "it has no windows"
    if name == "xformers":
        return _xformers_obstacle(problem)
    if problem.packed:
        return "it takes no packed sequences"
    if problem.bias_gradient:
        return "the bias gets no gradient"
    if problem.causal + problem.padding + problem.bias > 1:
        return "it would need a mask of every query and key"
    if problem.causal and (problem.queries != problem.keys or not problem.positive):
        return "causal with as many keys as queries and a positive scale only"
    if problem.exact_bias:
        return "it would round the bias to the queries' dtype"
    if not problem.queries or not problem.keys:
        return "nothing to attend to"
    return "" if problem.family == "cpu" else _sdpa_obstacle(name, problem)


def _sdpa_obstacle(name: Implementation, problem: Problem) -> str:
    """On a GPU."""
    if problem.gradient and problem.deterministic and name != "flash":
        return "its backward is not deterministic"
    if name == "efficient":
        step = 8 if problem.half else 4
        fits = problem.dtype != torch.float64 and problem.head_dim % step == 0
        return "" if fits else f"heads of {step}, {2 * step}, ..., no float64"
    if not problem.half:
        return "float16 and bfloat16 only"
    if problem.padding or problem.bias:  # cuDNN has given NaN gradients with one: pytorch issue 196678
        return "no mask"
    if name == "cudnn" and min(problem.queries, problem.keys) < 2:
        return "two queries and keys at least"
    widest = 128 if name == "cudnn" else 192  # beyond, flash trains on some chips only
    return "" if problem.head_dim % 8 == 0 and problem.head_dim <= widest else f"heads of 8, 16, ... {widest}"


def _xformers_obstacle(problem: Problem) -> str:
    if not has_xformers():
        return "not installed, or not for this torch"
    if not problem.packed or problem.causal:
        return "taken for packed sequences alone, not causal"
    if torch.compiler.is_compiling():
        return "it does not compile"
    if problem.gradient and problem.deterministic:
        return "its backward is not deterministic"
    return "" if problem.dtype != torch.float64 and problem.head_dim % 8 == 0 else "heads of 8, 16, ..., no float64"


def candidates(problem: Problem) -> tuple[str, tuple[Implementation, ...]]:
    """The row of the table that serves a problem: its name and its candidates."""
    width = 16 if problem.half else 32
    rows = CHOICES[problem.family, width]
    limit, names = next(row for row in rows if row[0] is None or problem.longest <= row[0])
    if problem.forced:
        names = ("triton", "blocks")
    size = "any length" if limit is None and len(rows) == 1 else f"up to {limit}" if limit else "long sequences"
    return f"{problem.family}, {width} bit, {size}", names


def choose(problem: Problem) -> Implementation:
    """The first candidate that can: the last one, "blocks", always can."""
    return next(name for name in candidates(problem)[1] if not obstacle(name, problem))


def explain(problem: Problem) -> Explanation:
    """The same, with reasons."""
    row, names = candidates(problem)
    chosen = choose(problem)
    reasons = tuple((name, obstacle(name, problem)) for name in names[: names.index(chosen)])
    ours = chosen in ("triton", "blocks") or problem.family == "cpu"
    return Explanation(chosen, row, reasons, ours or (chosen == "flash" and problem.deterministic))


def place_of(device: torch.device) -> str:
    """The rows of the table that serve a device."""
    if device.type == "cuda":
        recent = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return family(device) if recent else "older"
    return "cpu" if device.type == "cpu" else "other"


def forced() -> bool:
    """Whether the environment asks for Triton and nothing else."""
    return os.environ.get("MMSSL_KERNELS") == "triton"
