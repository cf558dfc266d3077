"""The losses over large matrices against every installed peer: forward+backward time and peak memory, N doubling.

    python -m benchmarks.contrastive                                         # fp32 on a CPU, bf16 and fp32 on a GPU
    python -m benchmarks.contrastive --losses info_nce --sizes 1024 2048     # a quick look

N pairs of D numbers for info_nce and siglip_loss, scale and bias learnable; N tokens for the heads that
linear_cross_entropy serves. Peers: `pip install --no-deps open_clip_torch ftfy wcwidth regex` (beside torchvision and
timm) and, on a GPU, `pip install --no-deps inf-cl`. bf16 is that of the rows and weights, without autocast; scale and
bias are float32. Sides must agree on loss and gradients before they are timed; fp32 is IEEE, save inf-cl's TF32.
Sides alternate in one process; times are medians, "faster" is the median of the rounds' ratios of the peer's time to
mmssl's. "floor" is 8 N M D FLOP (every logit made twice, two gradients; who keeps the logits needs only 6) over the
rate of a large product, measured in the same run. "peak MiB" is what a step needs beyond its inputs, its gradients
included, on a CPU in a fresh process a side; "memory" is mmssl's over the peer's. A side is not tried where the memory
of its last N, grown as the logits do, is not there, or one step so extrapolated takes longer than the budget.
The second table has the exponents of N with which time and peak memory grow.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import mmssl_kernels as kernels
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernel_peers import OURS, Side, leaf
from benchmarks.kernels import BOTH, DTYPES, FLOOR, MEMORY, TOLERANCE, check, digits, ratio, step, timed
from benchmarks.machine import device_name, in_fresh_process, markdown, peak_growth, product_rate, write

T = TypeVar("T")
OPEN_CLIP, PLAIN = "open_clip", "plain PyTorch"
INF_CL = "inf-cl (TF32), both directions, constant scale"
CHUNKED = "torch's linear_cross_entropy, chunked"
OF_HEADS = "linear_cross_entropy"
HEADS = (("BERT's head", 30522), ("BEiT's head", 8192))
TF32_TOLERANCE = 1e-2
OUT_OF_MEMORY = "out of memory"
SMALL = 1024  # where a side's memory is looked at before a first N that is larger


@dataclass(frozen=True)
class Goal:
    """mmssl's share of a side's time or memory in info_nce, D = 512, at most `limit` for these N."""

    device: str
    dtype: str
    smallest: int
    largest: int
    against: str
    what: str
    limit: float


GOALS = (
    Goal("cpu", "fp32", 16384, 16384, OPEN_CLIP, MEMORY, 1 / 15),
    Goal("cpu", "fp32", 16384, 16384, OPEN_CLIP, BOTH, 1 / 1.3),
    Goal("cpu", "fp32", 4096, 2**20, PLAIN, BOTH, 1.0),
    Goal("cpu", "fp32", 1, 4095, PLAIN, BOTH, 1.05),
    Goal("cuda", "bf16", 65536, 65536, FLOOR, BOTH, 1 / 0.6),
    Goal("cuda", "bf16", 65536, 65536, INF_CL, BOTH, 1 / 3),
    Goal("cuda", "bf16", 65536, 65536, OPEN_CLIP, MEMORY, 1 / 20),
)


def flash_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """One direction a call. On a single process its backward raises for a learnable scale."""
    from inf_cl import cal_inf_loss

    constant, width = scale.detach(), min(256, a.shape[1])
    return (cal_inf_loss(a, b, scale=constant, head_dim=width) + cal_inf_loss(b, a, scale=constant, head_dim=width)) / 2


def plain_clip_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    logits, own = scale * a @ b.T, torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def plain_sigmoid_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """As all pairs were negative, and what the positive ones differ by: no matrix of signs."""
    logits = scale * a @ b.T + bias
    return (F.softplus(logits).sum() - logits.diagonal().sum()) / len(a)


def chunked_head_loss(x: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    return F.linear_cross_entropy(x, weight, labels, linear_bias=bias, options=torch.nn.LinearCrossEntropyOptions())


SIDES: dict[str, dict[str, Callable[..., Tensor]]] = {
    "info_nce": {
        OURS: kernels.info_nce,
        OPEN_CLIP: lambda a, b, scale: import_module("open_clip.loss").ClipLoss()(a, b, scale),
        INF_CL: flash_loss,
        PLAIN: plain_clip_loss,
    },
    "siglip_loss": {
        OURS: kernels.siglip_loss,
        OPEN_CLIP: lambda a, b, scale, bias: import_module("open_clip.loss").SigLipLoss()(a, b, scale, bias),
        PLAIN: plain_sigmoid_loss,
    },
    OF_HEADS: {
        OURS: lambda x, weight, bias, labels: kernels.linear_cross_entropy(x, weight, labels, bias=bias),
        PLAIN: lambda x, weight, bias, labels: F.cross_entropy(F.linear(x, weight, bias), labels),
        CHUNKED: chunked_head_loss,
    },
}


def lacking(side: str) -> str:
    """Why a side cannot run here, if so."""
    if side == CHUNKED:
        return "" if hasattr(torch.nn, "LinearCrossEntropyOptions") else "this torch has no such function"
    package = {OPEN_CLIP: "open_clip", INF_CL: "inf_cl"}.get(side)
    return f"{package} is not installed" if package and not find_spec(package) else ""


@dataclass(frozen=True)
class Case:
    """One loss where it runs, of any N. classes: of a head, which no longer grow with N."""

    loss: str
    dim: int
    device: torch.device
    dtype: str
    head: str = ""
    classes: int = 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def text(self) -> str:
        shape = f"{self.head}, {self.dim} -> {self.classes}" if self.classes else f"D = {self.dim}"
        return f"{self.loss}: {shape}, {self.dtype}"

    @property
    def sides(self) -> list[str]:
        return [name for name in SIDES[self.loss] if not lacking(name) and (self.on_gpu or name != INF_CL)]

    def logits(self, n: int) -> int:
        return n * (self.classes or n)

    def inputs(self, n: int) -> dict[str, Tensor]:
        """Rows and their noisy partners; scale and bias as CLIP and SigLIP start."""
        dtype, generator = DTYPES[self.dtype], torch.Generator(self.device).manual_seed(0)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, device=self.device, generator=generator)

        if self.classes:
            labels = torch.randint(self.classes, (n,), device=self.device, generator=generator)
            weight, bias = 0.02 * normal(self.classes, self.dim), 0.02 * normal(self.classes)
            tensors = {"x": normal(n, self.dim), "weight": weight, "bias": bias}
            return {name: leaf(tensor.to(dtype)) for name, tensor in tensors.items()} | {"labels": labels}
        a = F.normalize(normal(n, self.dim))
        b = F.normalize(a + 2 * F.normalize(normal(n, self.dim)))
        numbers = {"scale": 1 / 0.07} if self.loss == "info_nce" else {"scale": 10.0, "bias": -10.0}
        scalars = {name: leaf(torch.tensor(value, device=self.device)) for name, value in numbers.items()}
        return {"a": leaf(a.to(dtype)), "b": leaf(b.to(dtype)), **scalars}

    def made(self, n: int, names: list[str]) -> dict[str, Side]:
        """Sides on the same inputs."""
        inputs = self.inputs(n)

        def side(name: str) -> Side:
            taken = [key for key in inputs if key != "labels" and not (name == INF_CL and key == "scale")]
            leaves = [inputs[key] for key in taken]
            return Side(
                lambda: SIDES[self.loss][name](**inputs),
                leaves,
                None,
                lambda *found: dict(zip(["loss", *taken], found)),
            )

        return {name: side(name) for name in names}


def agreeing(case: Case) -> list[str]:
    """The sides that run here; AssertionError where a loss or gradient is not mmssl's, of one tile and of several."""
    names = case.sides
    for n in (100, 300) if case.classes else (1000, 2304):
        sides = case.made(n, names)
        for name, side in sides.items():
            tolerance = max(TOLERANCE[DTYPES[case.dtype]], TF32_TOLERANCE if name == INF_CL else 0)
            try:
                check({OURS: replace(sides[OURS], results=side.results), name: side}, tolerance)
            except Exception as error:
                if name == OURS or isinstance(error, AssertionError):
                    raise
                traceback.print_exc()  # a peer that does not work with these versions
                names = [other for other in names if other != name]
    return names


def memory(case: Case, n: int, side: str) -> int:
    """Peak of one step. One on tiny inputs comes before: libraries and threads start there."""
    step(case.made(8, [side])[side])
    chosen = case.made(n, [side])[side]
    return max(1, peak_growth(lambda: step(chosen), case.device))


def peak(case: Case, n: int, side: str) -> int:
    return memory(case, n, side) if case.on_gpu else in_fresh_process(memory, case, n, side)


def available(device: torch.device) -> float:
    """Bytes that a side may take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def unless_too_large(action: Callable[[], T]) -> T | None:
    """None where memory ran out. A fresh process that was killed counts as that."""
    try:
        return action()
    except (torch.OutOfMemoryError, MemoryError, BrokenProcessPool):
        return None
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return None


@dataclass(frozen=True)
class Measured:
    """A side at one N. times: seconds of forward and backward, a round each. note: why there are none."""

    side: str
    n: int
    times: list[float]
    peak: int = 0
    note: str = ""


def obstacle(case: Case, n: int, side: str, past: list[Measured], budget: float) -> str:
    """Why a side cannot be tried at this N, if so."""
    if over := [found.n for found in past if found.side == side and found.note == OUT_OF_MEMORY]:
        return f"not tried: {OUT_OF_MEMORY} at N = {over[0]}"
    done = [found for found in past if found.side == side and found.times]
    if not done and n <= SMALL:
        return ""
    last = done[-1] if done else Measured(side, SMALL, [0.0], peak(case, SMALL, side))
    growth = case.logits(n) / case.logits(last.n)
    if last.peak * growth > 0.9 * available(case.device):
        return f"not tried: would need about {digits(last.peak * growth / 2**30)} GiB"
    takes = statistics.median(last.times) * growth
    return f"not tried: a step would take about {takes:.0f} s" if takes > budget else ""


def race(sides: dict[str, Side], rounds: int, budget: float, flush: Tensor | None) -> dict[str, list[float]]:
    """Seconds of all sides' steps, round by round, as many as the slowest one's budget allows. Empty: out of memory.

    A first pass warms up; where no second one fits the budget it is the measurement: of such long steps that is little.
    """
    tried = {name: unless_too_large(partial(timed, side, flush)) for name, side in sides.items()}
    first = {name: found[1] for name, found in tried.items() if found}
    rounds = min(rounds, int(budget / max(first.values(), default=budget)))
    if rounds < 2:
        return {name: [both] for name, both in first.items()}
    times: dict[str, list[float]] = {name: [] for name in first}
    for index in range(rounds):
        for name in list(first) if index % 2 else list(first)[::-1]:
            times[name].append(timed(sides[name], flush)[1])
    return times


def measure(case: Case, names: list[str], n: int, past: list[Measured], rounds: int, budget: float) -> list[Measured]:
    """The sides at one N, memory first: what does not fit is not timed."""
    notes = {name: obstacle(case, n, name, past, budget) for name in names}
    found = {name: unless_too_large(partial(peak, case, n, name)) for name in names if not notes[name]}
    peaks = {name: value for name, value in found.items() if value is not None}
    flush = torch.empty(2**30, dtype=torch.uint8, device=case.device) if case.on_gpu else None
    times = race(case.made(n, list(peaks)), rounds, budget, flush)
    missing = {name: Measured(name, n, [], note=notes[name] or OUT_OF_MEMORY) for name in names if name not in times}
    return [missing.get(name) or Measured(name, n, times[name], peaks[name]) for name in names]


def table(case: Case, found: list[Measured], rate: float) -> list[dict[str, Any]]:
    """The rows of one N."""
    ours, floor = found[0], 8 * case.logits(found[0].n) * case.dim / rate
    rows = []
    for one in found:
        versus = one is not ours and one.times and ours.times
        ms = [digits(1e3 * pick(one.times)) for pick in (statistics.median, min, max)] if one.times else [one.note, ""]
        rows.append(
            {
                "loss": case.text,
                "N": one.n,
                "side": one.side,
                "forward+backward ms": ms[0],
                "range": "-".join(ms[1:]),
                "faster": f"{ratio(one.times, ours.times):.2f}x" if versus else "",
                "floor ms": digits(1e3 * floor),
                "of floor": f"{statistics.median(one.times) / floor:.2f}x" if one.times else "",
                "peak MiB": digits(one.peak / 2**20) if one.times else "",
                "memory": f"{ours.peak / one.peak:.3f}" if versus else "",
            }
        )
    return rows


def judged(case: Case, found: list[Measured], rate: float) -> list[dict[str, Any]]:
    """What became of the goals at one N."""
    ours, n, by_name, verdicts = found[0], found[0].n, {one.side: one for one in found}, []
    floor = Measured(FLOOR, n, [8 * case.logits(n) * case.dim / rate] * len(ours.times))
    for goal in GOALS:
        meant = (goal.device, goal.dtype, "info_nce", 512) == (case.device.type, case.dtype, case.loss, case.dim)
        if not (meant and goal.smallest <= n <= goal.largest):
            continue
        verdict = {"case": f"{case.text}, N = {n}", **asdict(goal)}
        theirs = floor if goal.against == FLOOR else by_name.get(goal.against)
        if theirs and theirs.times and ours.times:
            share = ours.peak / theirs.peak if goal.what == MEMORY else ratio(ours.times, theirs.times)
            verdicts.append({**verdict, "found": round(share, 3), "passed": share <= goal.limit})
        else:
            why = ours.note or (theirs.note if theirs else lacking(goal.against) or f"{goal.against} failed")
            verdicts.append({**verdict, "found": f"not measured: {why}", "passed": None})
    return verdicts


def growth(case: Case, found: list[Measured]) -> list[dict[str, Any]]:
    """Exponents of N fitted to the four largest N of each side."""
    rows = []
    for name in dict.fromkeys(one.side for one in found):
        last = [one for one in found if one.side == name and one.times][-4:]
        if len(last) > 1:
            sizes = [math.log(one.n) for one in last]
            time = statistics.linear_regression(sizes, [math.log(statistics.median(one.times)) for one in last])
            space = statistics.linear_regression(sizes, [math.log(one.peak) for one in last])
            row = {"loss": case.text, "side": name, "N": f"{last[0].n}-{last[-1].n}"}
            rows.append({**row, "exponent of time": f"{time.slope:.2f}", "exponent of peak": f"{space.slope:.2f}"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--sizes", nargs="+", type=int, help="N: from 1024, of heads from 512, as far as makes sense")
    parser.add_argument("--dim", type=int, default=512, help="D of the pairs")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="fp32 on a CPU, bf16 and fp32 on a GPU")
    parser.add_argument("--rounds", type=int, default=9, help="at most, as the budget allows")
    parser.add_argument("--budget", type=float, help="seconds a side and N: 120 on a CPU, 20 on a GPU")
    parser.add_argument("--name", default="contrastive", help="of the file of results")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device, on_gpu = torch.device(options.device), options.device.startswith("cuda")
    budget = options.budget or (20 if on_gpu else 120)
    content: dict[str, list[dict[str, Any]]] = {"rows": [], "growth": [], "goals": [], "ceilings": []}
    failed = []
    for dtype in options.dtypes or (["bf16", "fp32"] if on_gpu else ["fp32"]):
        # the best of three, since whatever else the machine does only ever lowers a ceiling
        rate = max(product_rate(device, DTYPES[dtype]) for _ in range(3))
        content["ceilings"].append({"dtype": dtype, "GFLOP/s": digits(rate / 1e9)})
        cases = [Case(loss, options.dim, device, dtype) for loss in options.losses if loss != OF_HEADS]
        cases += [Case(OF_HEADS, 768, device, dtype, *head) for head in HEADS if OF_HEADS in options.losses]
        for case in cases:
            first, last = (512, 32768 if on_gpu else 4096) if case.classes else (1024, 2**20 if on_gpu else 32768)
            doubling = [2**power for power in range(first.bit_length() - 1, last.bit_length())]
            found, fitted = list[Measured](), content["growth"]
            try:
                names = agreeing(case)
                failed += [f"{case.text}: {name}" for name in case.sides if name not in names]
                for n in sorted(options.sizes or doubling):
                    found += (these := measure(case, names, n, found, options.rounds, budget))
                    content["rows"] += (rows := table(case, these, rate))
                    content["goals"] += judged(case, these, rate)
                    content["growth"] = fitted + growth(case, found)
                    print(markdown(rows), end="\n\n", flush=True)
                    path = write(options.name, device, content)
                    if not these[0].times:
                        break
            except Exception:  # on a rented machine the other cases are still wanted
                traceback.print_exc()
                failed.append(case.text)
    for name in ("rows", "growth", "ceilings"):
        if content[name]:
            print(f"{device_name(device)}\n\n{markdown(content[name])}\n")
    for goal in content["goals"]:
        verdict = f'{goal["found"]}; {goal["what"]} at most {digits(goal["limit"])} of "{goal["against"]}"'
        mark = "-   " if goal["passed"] is None else "pass" if goal["passed"] else "MISS"
        print(f"{mark}  {goal['case']}: {verdict}")
    if content["rows"]:
        print(f"\n{path}")
    sys.exit(f"failed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
