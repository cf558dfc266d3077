"""Each op of mmssl_kernels against every installed peer, on whatever device is there.

    python -m benchmarks.kernels                                    # all ops: fp32 on a CPU, bf16 and fp32 on a GPU
    python -m benchmarks.kernels --ops restore_tokens --batch 8     # a quick look

What the sides are stands in `benchmarks.kernel_peers`. They must agree on outputs and gradients before they are timed.
Sides alternate in one process over several sets of inputs; times are medians, "faster" is the median of the rounds'
ratios of the peer's forward+backward to mmssl's. On a GPU CUDA events are read; fp32 is IEEE on every side, and cuDNN
may choose its fastest algorithm.
"floor" is the fewest bytes over the rate of a large copy or the FLOP over that of a large product, whichever takes
longer, both rates measured in the same run. "peak MiB" is what forward+backward needs beyond its inputs, the gradients
that it leaves included, on a CPU in a fresh process a side; "memory" is mmssl's over the peer's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernel_peers import CASES, COMPILED, CONVOLVE, OURS, PATCHIFY, VENDOR, Case, Setting, Side, Work
from benchmarks.machine import copy_rate, device_name, in_fresh_process, markdown, peak_growth, product_rate, write

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Norm of the difference over the norm: rounding alone, float32's and that of bf16 operands.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
INPUT_SETS = 3
FLOOR = "the floor"
FORWARD, BOTH, MEMORY = "forward", "forward+backward", "memory"
MakeCase = Callable[..., Case]
Times = dict[str, list[float]]  # seconds of FORWARD and of BOTH, a round each


@dataclass(frozen=True)
class Goal:
    """mmssl's share of a side's time or memory, at most `limit`."""

    device: str
    op: str
    against: str
    what: str
    limit: float


GOALS = (
    Goal("cpu", "masked_patch_embed", CONVOLVE, BOTH, 0.5),
    Goal("cpu", "masked_patch_embed", CONVOLVE, MEMORY, 1.0),
    Goal("cpu", "masked_patch_mse", PATCHIFY, BOTH, 1.0),
    Goal("cpu", "masked_patch_mse", PATCHIFY, MEMORY, 0.3),
    Goal("cuda", "masked_patch_embed", VENDOR, FORWARD, 1.15),
    Goal("cuda", "masked_patch_embed", VENDOR, BOTH, 1.15),
    Goal("cuda", "restore_tokens", FLOOR, FORWARD, 1.3),
    Goal("cuda", "restore_tokens", FLOOR, BOTH, 1.3),
    Goal("cuda", "masked_patch_mse", FLOOR, FORWARD, 1.3),
    Goal("cuda", "masked_patch_mse", FLOOR, BOTH, 1.3),
)


@dataclass(frozen=True)
class Ceilings:
    """What the device does at best: bytes/s read and written, FLOP/s."""

    copy: float
    product: float

    def seconds(self, work: Work) -> float:
        return max(work.bytes / self.copy, work.flop / self.product)


def step(side: Side) -> Tensor:
    """Forward and backward; the output."""
    for leaf in side.leaves:
        leaf.grad = None
    out = side.forward()
    out.backward(side.upstream)
    return out.detach()


def check(sides: dict[str, Side], tolerance: float) -> None:
    """Raises AssertionError where a side's outputs or gradients are not mmssl's."""
    found = {name: side.results(step(side), *[leaf.grad for leaf in side.leaves]) for name, side in sides.items()}
    for name, results in found.items():
        for what, expected in found[OURS].items():
            error = float((results[what].float() - expected.float()).norm() / expected.float().norm())
            if not error <= tolerance:
                raise AssertionError(f"{name}: {what} differs by {error:.1e} from mmssl's, {tolerance:.0e} is allowed")


def timed(side: Side, flush: Tensor | None) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward.

    flush: on a GPU, written to before. That empties the L2 cache and keeps the device busy while the CPU enqueues the
    side's kernels, so that the events show the device's time and not the CPU's.
    """
    for leaf in side.leaves:
        leaf.grad = None
    if flush is None:
        start = time.perf_counter()
        out = side.forward()
        middle = time.perf_counter()
        out.backward(side.upstream)
        return middle - start, time.perf_counter() - start
    before, between, after = (torch.cuda.Event(enable_timing=True) for _ in range(3))
    flush.zero_()
    before.record()
    out = side.forward()
    between.record()
    out.backward(side.upstream)
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(between) / 1e3, before.elapsed_time(after) / 1e3


def race(sets: list[dict[str, Side]], rounds: int, flush: Tensor | None) -> dict[str, Times]:
    """All sides, round by round, over rotating inputs."""
    times: dict[str, Times] = {name: {FORWARD: [], BOTH: []} for name in sets[0]}
    for index in range(-INPUT_SETS, rounds):
        sides = sets[index % INPUT_SETS]
        for name in list(sides) if index % 2 else list(sides)[::-1]:
            forward, both = timed(sides[name], flush)
            if index >= 0:  # the rounds before warm up
                times[name][FORWARD].append(forward)
                times[name][BOTH].append(both)
    return times


def memory(make: MakeCase, setting: Setting, side: str) -> int:
    """Peak of one step. One on tiny inputs comes before: libraries and threads start there."""
    step(make(replace(setting, batch=1)).sides()[side]())
    chosen = make(setting).sides()[side]()
    return peak_growth(lambda: step(chosen), setting.device)


def call_cost(make: MakeCase, setting: Setting, repeats: int = 100) -> tuple[float, float]:
    """Seconds the CPU takes to enqueue mmssl's forward, and forward and backward, on inputs too small to wait for."""
    side = make(replace(setting, batch=8)).sides()[OURS]()
    costs = []
    for call in (side.forward, lambda: step(side)):
        for count in (10, repeats):  # the first ones warm up
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(count):
                call()
            cost = (time.perf_counter() - start) / count
        costs.append(cost)
    return costs[0], costs[1]


def ratio(a: list[float], b: list[float]) -> float:
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def digits(value: float) -> str:
    """Three of them, without an exponent."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def compare(
    op: str, make: MakeCase, setting: Setting, rounds: int, ceilings: Ceilings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The table's rows of one case, and what became of its goals."""
    case, on_gpu = make(setting), setting.device.type == "cuda"
    sets = [{name: side() for name, side in make(setting, seed).sides().items()} for seed in range(INPUT_SETS)]
    check(sets[0], TOLERANCE[setting.dtype])
    flush = torch.empty(2**31, dtype=torch.uint8, device=setting.device) if on_gpu else None
    times = race(sets, rounds, flush)
    del sets, flush
    peaks = {
        name: memory(make, setting, name) if on_gpu else in_fresh_process(memory, make, setting, name)
        for name in times
        if on_gpu or name != COMPILED  # on a CPU the compiler's own memory would be counted
    }
    forward, backward = (ceilings.seconds(work) for work in case.work())
    floor, ours = {FORWARD: [forward] * rounds, BOTH: [forward + backward] * rounds}, times[OURS]
    name = f"{op}: {case.text}, {next(name for name, dtype in DTYPES.items() if dtype == setting.dtype)}"
    rows = [
        {
            "op and shape": name,
            "side": side,
            "forward ms": digits(1e3 * statistics.median(measured[FORWARD])),
            "forward+backward ms": digits(1e3 * statistics.median(measured[BOTH])),
            "range": f"{digits(1e3 * min(measured[BOTH]))}-{digits(1e3 * max(measured[BOTH]))}",
            "faster": "" if side == OURS else f"{ratio(measured[BOTH], ours[BOTH]):.2f}x",
            "floor ms": digits(1e3 * (forward + backward)),
            "of floor": f"{ratio(measured[BOTH], floor[BOTH]):.2f}x",
            "peak MiB": digits(peaks[side] / 2**20) if side in peaks else "",
            "memory": f"{peaks[OURS] / peaks[side]:.2f}" if side != OURS and side in peaks else "",
        }
        for side, measured in times.items()
    ]
    theirs = {**times, FLOOR: floor}
    goals = []
    for goal in GOALS:
        if goal.op == op and goal.device == setting.device.type and goal.against in theirs:
            found = (
                peaks[OURS] / peaks[goal.against]
                if goal.what == MEMORY
                else ratio(ours[goal.what], theirs[goal.against][goal.what])
            )
            goals.append({"case": name, **asdict(goal), "found": round(found, 3), "passed": found <= goal.limit})
    return rows, goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="fp32 on a CPU, bf16 and fp32 on a GPU")
    parser.add_argument("--rounds", type=int, help="9 on a CPU, 50 on a GPU")
    parser.add_argument("--batch", type=int, help="pictures, 8 to a clip: 64 on a CPU, 256 on a GPU")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of the peers that gain by it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device, on_gpu = torch.device(options.device), options.device.startswith("cuda")
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
    content: dict[str, list[dict[str, Any]]] = {"rows": [], "goals": [], "ceilings": [], "calls": []}
    failed = []
    for dtype in options.dtypes or (["bf16", "fp32"] if on_gpu else ["fp32"]):
        setting = Setting(device, DTYPES[dtype], options.batch or (256 if on_gpu else 64), options.compile)
        # the best of three, since whatever else the machine does only ever lowers a ceiling
        rates = [(copy_rate(device), product_rate(device, setting.dtype)) for _ in range(3)]
        ceilings = Ceilings(*map(max, zip(*rates, strict=True)))
        content["ceilings"].append(
            {"dtype": dtype, "copy GB/s": digits(ceilings.copy / 1e9), "GFLOP/s": digits(ceilings.product / 1e9)}
        )
        for op in options.ops:
            for make in CASES[op]:
                try:
                    rows, goals = compare(op, make, setting, options.rounds or (50 if on_gpu else 9), ceilings)
                    if on_gpu:
                        forward, both = (digits(1e6 * cost) for cost in call_cost(make, setting))
                        call = {"CPU cost of a call": rows[0]["op and shape"], "forward us": forward}
                        content["calls"].append({**call, "forward+backward us": both})
                except Exception:  # on a rented machine the other cases are still wanted
                    traceback.print_exc()
                    failed.append(f"{op}, {make(setting).text}, {dtype}")
                    continue
                content["rows"] += rows
                content["goals"] += goals
                print(markdown(rows), end="\n\n", flush=True)
                path = write("kernels", device, content)
    for table in ("rows", "ceilings", "calls"):
        if content[table]:
            print(f"{device_name(device)}\n\n{markdown(content[table])}\n")
    for goal in content["goals"]:
        verdict = f'{goal["what"]} {goal["found"]} of "{goal["against"]}", goal {goal["limit"]}'
        print(f"{'pass' if goal['passed'] else 'MISS'}  {goal['case']}: {verdict}")
    if content["rows"]:
        print(f"\n{path}")
    sys.exit(f"failed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
