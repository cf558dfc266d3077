"""Compile every kernel for every device family without a device, and check what the compiler says of it.

    python -m mmssl_kernels.frame.aot          # every configuration in the tables; exit code 1 where one does not fit
    python -m mmssl_kernels.frame.aot --quick  # one representative a kernel and family

What is compiled is what the ops would launch on the example calls of `mmssl_kernels.examples`: the launchers run on
tensors without data and their launches are recorded. Triton caches by the source's hash, so a second run is quick.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mmssl_kernels.examples import EXAMPLES
from mmssl_kernels.frame.launch import Launch, recorded
from mmssl_kernels.tables import FAMILIES, TABLES, Config

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that one program may use.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}
POINTERS = {
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}


@dataclass(frozen=True)
class Report:
    """What the compiler says of one kernel: bytes of shared memory, and bytes (CUDA) or registers (HIP) spilled."""

    kernel: str
    example: str
    family: str
    shared: int
    spills: int

    @property
    def problem(self) -> str | None:
        """Why this must not ship, if it must not."""
        if self.shared > SHARED_LIMIT[self.family]:
            return f"needs {self.shared} bytes of shared memory, {self.family} has {SHARED_LIMIT[self.family]}"
        return f"spills {self.spills}" if self.spills else None


def source(launch: Launch) -> ASTSource:
    """The kernel specialised as Triton's launcher would: 1 is a constant, multiples of 16 and pointers are aligned."""
    signature, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name] = POINTERS[value.dtype] if isinstance(value, Tensor) else number(value)
        if isinstance(value, Tensor) or (type(value) is int and value % 16 == 0):
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def number(value: int | float) -> str:
    """The type Triton gives an argument that is a number."""
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def compiled(launch: Launch, family: str) -> Any:
    options = {"num_warps": launch.config.warps, "num_stages": launch.config.stages}
    return triton.compile(source(launch), target=TARGETS[family], options=options)


def spills(binary: Any, family: str) -> int:
    """Local memory of a thread in bytes (CUDA), or spilled registers (HIP)."""
    if family == "gfx942":
        return sum(int(count) for count in re.findall(r"\.[sv]gpr_spill_count: *(\d+)", binary.asm["amdgcn"]))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return sum(int(count) for count in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


def launches(family: str, quick: bool) -> Iterator[tuple[str, Launch]]:
    """What the example calls would launch on this family; one of each kernel if `quick`."""
    seen: set[Any] = set()
    for name, call in EXAMPLES.items():
        with recorded(family) as found, torch.device("meta"):
            call()
        for launch in found:
            if not (quick and launch.kernel in seen):
                seen.add(launch.kernel)
                yield name, launch


def untried(family: str) -> list[str]:
    """Rows of the tables that no example reaches."""
    reached: list[Config] = [launch.config for _, launch in launches(family, quick=False)]
    return [
        f"{name}, {limit or 'rest'}"
        for name, rows in TABLES.items()
        for limit, config in rows[family]
        if not any(config is other for other in reached)
    ]


def reports(quick: bool, families: tuple[str, ...] = FAMILIES) -> Iterator[Report]:
    """Compile, one after the other."""
    for family in families:
        for example, launch in launches(family, quick):
            binary = compiled(launch, family)
            yield Report(launch.kernel.__name__, example, family, binary.metadata.shared, spills(binary, family))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES)
    options = parser.parse_args()
    problems = (
        [] if options.quick else [f"no example reaches {row}, {f}" for f in options.families for row in untried(f)]
    )
    for report in reports(options.quick, tuple(options.families)):
        fits = report.problem or "fits"
        print(
            f"{report.family:7} {report.kernel:26} {report.shared:7} bytes shared  {fits}  {report.example}", flush=True
        )
        if report.problem:
            problems.append(f"{report.family} {report.kernel} ({report.example}): {report.problem}")
    print("\n".join(problems) or "every kernel fits")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
