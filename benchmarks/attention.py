"""mmssl_attention against every installed peer, at the shapes that masked pretraining has.

    python -m benchmarks.attention                                          # fp32 on a CPU, bf16 and fp32 on a GPU
    python -m benchmarks.attention --cases clip-text --batch-share 0.02     # a quick look

A CPU gets a quarter of each batch. All sides of self-attention read one tensor `[B, N, 3, H, D]`, as a ViT's block
makes it, leave one gradient and give `[B, N, H D]`; what the peers' views of it cost is part of their time, masks are
made before. Swin's authors roll and partition the block's input, a third of what queries, keys and values are:
"partition" does it with all three, and the side that calls itself no peer is given windows and leaves them so. "padded
SDPA" is given its padding, too. A side that cannot do a case is left out, with its reason. The others must agree on
outputs and gradients, padding aside, then alternate in one process over several sets of inputs; times are medians,
"faster" is the median of the rounds' ratios of the peer's forward+backward to mmssl's, "runs" is who computes that. On
a GPU CUDA events are read; fp32 is IEEE. "floor" is the fewest bytes over the rate of a large copy or the FLOP of the
pairs that see each other over that of a large product, whichever takes longer, both rates measured in the same run.
"peak MiB" is what forward+backward needs beyond its inputs, on a CPU in a fresh process; "memory" is mmssl's share.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from typing import Any

import torch
from mmssl_kernels import Window, attention, attention_qkvpacked, explain_attention
from mmssl_kernels.attention.vendors import BACKENDS
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import kernels
from benchmarks.kernel_peers import OURS, Case, Setting, Side, Sides, Work, leaf
from benchmarks.kernels import BOTH, DTYPES, FORWARD, INPUT_SETS, TOLERANCE, Ceilings, Times, digits, ratio
from benchmarks.machine import copy_rate, device_name, in_fresh_process, markdown, product_rate, seconds, write

FORCED = "mmssl, Triton forced"
FLASH, PLAIN, PADDED, BEST = "SDPA flash", "plain PyTorch", "padded SDPA", "the best peer"
MATH, NO_PEER = "SDPA math (bias learns)", "no peer: windows given"
Way = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]  # q, k, v [B, H, N, D], mask, causal
Move = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """keys: where they are not the tokens. lengths: of sequences, from and to, all equally likely."""

    kind: str
    name: str
    batch: int
    heads: int
    tokens: int
    head_dim: int
    keys: int | None = None
    lengths: tuple[int, int] | None = None
    window: Window | None = None


AUDIO = Window((64, 8), (4, 4), (2, 0))
SHAPES = {
    "mae-encoder": Shape("dense", "MAE's encoder, ViT-B", 256, 12, 50, 64),
    "videomae-encoder": Shape("dense", "VideoMAE's encoder, ViT-B", 32, 12, 160, 64),
    "mae-decoder": Shape("dense", "MAE's decoder", 256, 16, 197, 32),
    "videomae-decoder": Shape("dense", "VideoMAE's decoder", 32, 6, 1568, 64),
    "mae-encoder-huge": Shape("dense", "MAE's encoder, ViT-H/14", 64, 16, 65, 80),
    "audio-mae-encoder": Shape("dense", "Audio-MAE's encoder, ViT-B", 64, 12, 103, 64),
    "clip-text": Shape("causal", "CLIP's text", 256, 8, 77, 64),
    "bert": Shape("padding", "BERT, lengths 32-128", 64, 12, 128, 64, lengths=(32, 128)),
    "audio-mae-decoder": Shape("windows", "Audio-MAE's decoder", 64, 16, 512, 32, window=AUDIO),
    "cross": Shape("cross", "queries of visible tokens", 32, 8, 187, 64, keys=197),
    "packed": Shape("packed", "lengths 20-300", 64, 12, 300, 64, lengths=(20, 300)),
}


def goal(shape: Shape, device: str, dtype: str) -> tuple[str, float] | None:
    """Whose time mmssl is to need which share of at most, forward and backward."""
    if (device, dtype) == ("cpu", "fp32") and not shape.window:
        return (PADDED, 1 / 1.5) if shape.kind == "packed" else (FLASH, 1.05)
    if (device, dtype) == ("cuda", "bf16"):
        limits = {197: 1.0, 1568: 1 / 0.95} if shape.kind == "dense" else {shape.tokens: 1 / 0.95}
        return BEST, limits.get(shape.tokens, 1 / 1.5)
    return None


def repeated(mask: Tensor, q: Tensor) -> Tensor:
    """A mask for every sample: one of windows holds those of one sample."""
    return mask if len(mask) == len(q) else mask.repeat(len(q) // len(mask), 1, 1, 1)


def sdpa(backends: list[SDPBackend], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """It raises where none of the backends can."""
    with sdpa_kernel(backends):
        return F.scaled_dot_product_attention(q, k, v, None if mask is None else repeated(mask, q), is_causal=causal)


def xformers(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    ops = import_module("xformers.ops")
    every = None if mask is None else repeated(mask, q).expand(*q.shape[:3], k.shape[2])
    bias = ops.LowerTriangularMask() if causal else every
    return ops.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_bias=bias).transpose(1, 2)


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """As timm and the authors of MAE, Swin and CLIP write it."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if causal:
        logits = logits + logits.new_full(logits.shape[-2:], -torch.inf).triu(1)
    if mask is not None:
        logits = (logits.unflatten(0, (-1, len(mask))) + mask).flatten(0, 1)
    return logits.softmax(-1) @ v


FUSED: Way = partial(sdpa, list(BACKENDS.values()))
ON_GPU: dict[str, Way] = {f"SDPA {name}": partial(sdpa, [backend]) for name, backend in BACKENDS.items()}
ON_GPU |= {"xformers": xformers, PLAIN: plain}
ON_CPU = {name: ON_GPU[name] for name in (FLASH, PLAIN)}


def partition(window: Window, x: Tensor) -> Tensor:
    """`[B windows, tokens of one, ...]` of `[B, N, ...]`, as Swin's authors roll and copy it."""
    (rows, columns), shift = window.size, [-shift for shift in window.shift]
    x = x.unflatten(1, window.grid).roll(shift, (1, 2)).unflatten(2, (-1, columns)).unflatten(1, (-1, rows))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def merge(window: Window, x: Tensor) -> Tensor:
    """The inverse."""
    down, across = (grid // size for grid, size in zip(window.grid, window.size))
    x = x.unflatten(1, window.size).unflatten(0, (-1, down, across)).transpose(2, 3)
    return x.flatten(3, 4).flatten(1, 2).roll(window.shift, (1, 2)).flatten(1, 2)


class Attention(Case):
    """The inputs of one shape: of cross-attention q, k and v, else qkv and perhaps a bias. Some methods are sides."""

    def __init__(self, shape: Shape, setting: Setting, seed: int = 0):
        self.shape, self.setting, self.batch = shape, setting, setting.batch
        self.packed, self.causal, self.padding = (shape.kind == kind for kind in ("packed", "causal", "padding"))
        heads, dim, generator = shape.heads, shape.head_dim, torch.Generator(setting.device).manual_seed(seed)
        shortest, longest = shape.lengths or (shape.tokens, shape.tokens)
        lengths = torch.randint(shortest, longest + 1, (self.batch,), generator=torch.Generator().manual_seed(0))
        self.lengths: list[int] = lengths.tolist()
        self.longest = max(self.lengths) if self.packed else shape.tokens
        self.valid = (torch.arange(self.longest) < lengths[:, None]).to(setting.device)
        self.hidden = ~self.valid if self.padding else None
        self.offsets = F.pad(lengths.cumsum(0), (1, 0)).to(setting.device, torch.int32)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, device=setting.device, generator=generator).to(setting.dtype)

        rows = (sum(self.lengths),) if self.packed else (self.batch, shape.tokens)
        held = (self.batch, shape.keys or 0)
        sizes = {"q": rows, "k": held, "v": held} if shape.keys else {"qkv": (*rows, 3)}
        self.inputs = {name: normal(*size, heads, dim) for name, size in sizes.items()}
        if shape.window:
            self.inputs["bias"] = normal(heads, shape.window.tokens, shape.window.tokens)
        self.upstream = normal(*rows, heads * dim)
        tokens = f"{shape.tokens} on {shape.keys}" if shape.keys else f"{self.longest}"
        of = "" if self.batch == shape.batch else f" of {shape.batch}"
        self.text = f"{shape.kind}: {shape.name}, batch {self.batch}{of}, {heads} heads, N = {tokens}, D = {dim}"

    @cached_property
    def mask(self) -> Tensor | None:
        """`[B, 1, 1, N]`, added to logits: minus infinity where keys are padding."""
        mask = torch.zeros_like(self.valid, dtype=self.setting.dtype).masked_fill(~self.valid, -torch.inf)
        return mask[:, None, None] if self.padding or self.packed else None

    @cached_property
    def apart(self) -> Tensor:
        """`[windows, 1, tokens, tokens]`: -100, as with Swin's authors, for pairs that rolling brought together."""
        assert self.shape.window
        (height, width), (down, right) = self.shape.window.grid, self.shape.window.shift
        regions = (torch.arange(height)[:, None] < down) * 2 + (torch.arange(width) < right) * 1
        regions = partition(self.shape.window, regions.flatten()[None])
        return ((regions[:, None, :, None] != regions[:, None, None]) * -100.0).to(self.upstream)

    def work(self) -> tuple[Work, Work]:
        n, heads = self.shape.tokens, self.shape.heads
        pairs = self.batch * (n * (n + 1) // 2 if self.causal else n * (self.shape.keys or n))
        if self.shape.window:
            pairs = self.batch * int((self.apart == 0).sum())
        elif self.packed or self.padding:
            pairs = sum(length * (length if self.packed else n) for length in self.lengths)
        given = sum(x.nbytes for name, x in self.inputs.items() if name != "bias")
        out, flop = self.upstream.nbytes, heads * self.shape.head_dim * pairs
        return Work(given + out, 4 * flop), Work(2 * given + out, 10 * flop)

    def runs(self) -> str:
        """Who computes mmssl's side."""
        shape, dtype, device = self.shape, self.setting.dtype, self.setting.device
        q, k = ((self.batch, n, shape.heads, shape.head_dim) for n in (self.longest, shape.keys or self.longest))
        explain = partial(explain_attention, causal=self.causal, key_padding=self.padding, packed=self.packed)
        return explain(q, k, dtype=dtype, device=device, window=shape.window, bias=bool(shape.window)).implementation

    def sides(self) -> Sides:
        on_gpu, window = self.setting.device.type == "cuda", self.shape.window
        forwards: dict[str, Callable[..., Tensor]] = {OURS: self.ours}
        if on_gpu and self.runs() != "triton":
            forwards[FORCED] = self.forced
        ways, moved = ON_GPU if on_gpu else ON_CPU, dict[str, Callable[[], Side]]()
        if window:
            ways = {MATH: partial(sdpa, [SDPBackend.MATH]), **ways}
            able = {name: way for name, way in ways.items() if name != FLASH}  # it takes no bias that learns
            forwards |= {f"partition, {name}": partial(self.windowed, way, False) for name, way in able.items()}
            best = "SDPA efficient" if on_gpu else MATH
            moves = (partial(move, window) for move in (partition, merge))
            moved = {f"{NO_PEER}, {best}": partial(self.side, partial(self.windowed, ways[best], True), *moves)}
        elif self.packed:
            padded = partial(self.attend, FUSED, self.mask)
            moved = {PADDED: partial(self.side, padded, self.padded_to_longest, self.counted)}
            forwards["one SDPA call a sequence"] = self.one_by_one
            forwards |= {"torch's varlen_attn": self.varlen, "xformers": self.xformers} if on_gpu else {}
        else:
            forwards |= {name: partial(self.attend, way, self.mask) for name, way in ways.items()}
        counted = self.counted if self.padding else None
        return {name: partial(self.side, forward, None, counted) for name, forward in forwards.items()} | moved

    def side(self, forward: Callable[..., Tensor], there: Move | None = None, back: Move | None = None) -> Side:
        """there: from the rows of tokens as mmssl has them to those of this side. back: to those that count."""
        leaves = {name: leaf(there(x) if there and name != "bias" else x) for name, x in self.inputs.items()}

        def results(*found: Tensor) -> dict[str, Tensor]:
            named = dict(zip(["output", *leaves], found))
            return {name: back(x) if back and name != "bias" else x for name, x in named.items()}

        upstream = there(self.upstream) if there else self.upstream
        return Side(lambda: forward(*leaves.values()), list(leaves.values()), upstream, results)

    def counted(self, x: Tensor) -> Tensor:
        """Rows `[total, ...]` that are no padding, of `[B, N, ...]`."""
        return x[self.valid]

    def padded_to_longest(self, x: Tensor) -> Tensor:
        """The inverse, padding of zeros."""
        out = x.new_zeros(*self.valid.shape, *x.shape[1:])
        out[self.valid] = x
        return out

    def ours(self, *x: Tensor) -> Tensor:
        if self.shape.keys:
            return attention(*x).flatten(-2)
        options: dict[str, Any] = {"causal": self.causal, "key_padding": self.hidden, "window": self.shape.window}
        if self.packed:
            options |= {"cu_seqlens": self.offsets, "max_seqlen": self.longest}
        return attention_qkvpacked(x[0], bias=x[1] if len(x) > 1 else None, **options).flatten(-2)

    def forced(self, *x: Tensor) -> Tensor:
        before = os.environ.get("MMSSL_KERNELS", "auto")
        os.environ["MMSSL_KERNELS"] = "triton"
        try:
            return self.ours(*x)
        finally:
            os.environ["MMSSL_KERNELS"] = before

    def attend(self, way: Way, mask: Tensor | None, *x: Tensor) -> Tensor:
        """x: qkv `[B, N, 3, H, D]`, or three tensors."""
        q, k, v = (each.transpose(1, 2) for each in (x if len(x) == 3 else x[0].unbind(2)))
        return way(q, k, v, mask, self.causal).transpose(1, 2).flatten(2)

    def windowed(self, way: Way, given: bool, qkv: Tensor, bias: Tensor) -> Tensor:
        """given: in windows, and left so."""
        assert self.shape.window
        out = self.attend(way, bias + self.apart, qkv if given else partition(self.shape.window, qkv))
        return out if given else merge(self.shape.window, out)

    def one_by_one(self, qkv: Tensor) -> Tensor:
        return torch.cat([self.attend(FUSED, None, x[None])[0] for x in qkv.split(self.lengths)])

    def varlen(self, qkv: Tensor) -> Tensor:
        varlen = import_module("torch.nn.attention.varlen").varlen_attn
        return varlen(*qkv.unbind(1), self.offsets, self.offsets, self.longest, self.longest).flatten(1)

    @cached_property
    def blocks(self) -> Any:
        blocks = import_module("xformers.ops").fmha.BlockDiagonalMask
        return blocks.from_seqlens(self.lengths, device=self.valid.device)

    def xformers(self, qkv: Tensor) -> Tensor:
        attend = import_module("xformers.ops").memory_efficient_attention
        return attend(*qkv[None].unbind(2), attn_bias=self.blocks)[0].flatten(1)


def tried(case: Attention) -> tuple[float, dict[str, str]]:
    """Seconds of one step of all sides together, and why some cannot."""
    total, reasons = 0.0, dict[str, str]()
    for name, make in case.sides().items():
        try:
            kernels.step(side := make())
            total += seconds(partial(kernels.step, side), case.setting.device)
        except Exception as error:
            if name == OURS:
                raise
            reasons[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return total, reasons


def judged(shape: Shape, name: str, setting: Setting, dtype: str, times: dict[str, Times]) -> list[dict[str, Any]]:
    """What became of a case's goal, if it has one."""
    peers = {side: measured[BOTH] for side, measured in times.items() if not side.startswith((OURS, NO_PEER))}
    against, limit = goal(shape, setting.device.type, dtype) or ("", 0.0)
    if not against:
        return []
    side = min(peers, key=lambda side: statistics.median(peers[side])) if against == BEST else against
    share = ratio(times[OURS][BOTH], peers[side]) if side in peers else None
    found = ("not measured", None) if share is None else (round(share, 3), share <= limit)
    verdict = {"case": name, "what": BOTH, "against": side if side == against else f"{against}, {side}"}
    return [{**verdict, "limit": round(limit, 3), "found": found[0], "passed": found[1]}]


def compare(key: str, setting: Setting, dtype: str, rounds: int, budget: float, ceilings: Ceilings) -> dict[str, Any]:
    """The tables' rows of one case."""
    make, on_gpu = partial(Attention, SHAPES[key]), setting.device.type == "cuda"
    case = make(setting)
    name, runs = f"{case.text}, {dtype}", case.runs()
    takes, reasons = tried(case)
    for side, reason in reasons.items():
        print(f"left out: {side}, {name}: {reason}", file=sys.stderr, flush=True)
    seeded = [make(setting, seed).sides() for seed in range(INPUT_SETS)]
    sets = [{name: side() for name, side in sides.items() if name not in reasons} for sides in seeded]
    kernels.check(sets[0], TOLERANCE[setting.dtype])
    rounds = min(rounds, max(3, int(budget / takes) - INPUT_SETS))
    flush = torch.empty(2**31, dtype=torch.uint8, device=setting.device) if on_gpu else None
    times = kernels.race(sets, rounds, flush)
    del seeded, sets, flush
    peak: Any = kernels.memory if on_gpu else lambda *given: in_fresh_process(kernels.memory, *given)
    peaks = {side: peak(make, setting, side) for side in times}
    floor, ours = sum(map(ceilings.seconds, case.work())), times[OURS][BOTH]
    rows = [
        {
            "case": name,
            "side": side,
            "runs": runs if side == OURS else "",
            "forward ms": digits(1e3 * statistics.median(measured[FORWARD])),
            "forward+backward ms": digits(1e3 * statistics.median(measured[BOTH])),
            "range": f"{digits(1e3 * min(measured[BOTH]))}-{digits(1e3 * max(measured[BOTH]))}",
            "faster": "" if side == OURS else f"{ratio(measured[BOTH], ours):.2f}x",
            "floor ms": digits(1e3 * floor),
            "of floor": f"{statistics.median(measured[BOTH]) / floor:.2f}x",
            "peak MiB": digits(peaks[side] / 2**20),
            "memory": "" if side == OURS else f"{peaks[OURS] / peaks[side]:.2f}",
        }
        for side, measured in times.items()
    ]
    left_out = [{"case": name, "side": side, "why": reason} for side, reason in reasons.items()]
    return {"rows": rows, "goals": judged(case.shape, name, setting, dtype, times), "left_out": left_out}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), help="fp32 on a CPU, bf16 and fp32 on a GPU")
    parser.add_argument("--rounds", type=int, help="at most, as the budget allows: 25 on a CPU, 50 on a GPU")
    parser.add_argument("--budget", type=float, default=10, help="seconds of timing a case")
    parser.add_argument("--batch-share", type=float, help="of each batch: 1/4 on a CPU, 1 on a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device, on_gpu = torch.device(options.device), options.device.startswith("cuda")
    rounds, share = options.rounds or (50 if on_gpu else 25), options.batch_share or (1 if on_gpu else 1 / 4)
    content: dict[str, list[dict[str, Any]]] = {"rows": [], "goals": [], "ceilings": [], "left_out": []}
    failed = []
    for dtype in options.dtypes or (["bf16", "fp32"] if on_gpu else ["fp32"]):
        # the best of three, since whatever else the machine does only ever lowers a ceiling
        rates = [(copy_rate(device), product_rate(device, DTYPES[dtype])) for _ in range(3)]
        ceilings = Ceilings(*map(max, zip(*rates, strict=True)))
        content["ceilings"].append(
            {"dtype": dtype, "copy GB/s": digits(ceilings.copy / 1e9), "GFLOP/s": digits(ceilings.product / 1e9)}
        )
        for key in options.cases:
            setting = Setting(device, DTYPES[dtype], max(1, round(share * SHAPES[key].batch)))
            try:
                found = compare(key, setting, dtype, rounds, options.budget, ceilings)
            except Exception:  # on a rented machine the other cases are still wanted
                traceback.print_exc()
                failed.append(f"{key}, {dtype}")
                continue
            for table, rows in found.items():
                content[table] += rows
            failed += [f"{key}, {dtype}: {FORCED}" for row in found["left_out"] if row["side"] == FORCED]
            print(markdown(found["rows"]), end="\n\n", flush=True)
            path = write("attention", device, content)
    print(f"{device_name(device)}\n\n{markdown(content['ceilings'])}\n")
    for one in content["goals"]:
        mark = "-   " if one["passed"] is None else "pass" if one["passed"] else "MISS"
        print(f'{mark}  {one["case"]}: {one["what"]} {one["found"]} of "{one["against"]}", goal {one["limit"]}')
    if content["rows"]:
        print(f"\n{path}")
    sys.exit(f"failed: {'; '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
