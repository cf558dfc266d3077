"""How each kernel is cut into programs, by device family and size of the problem: data, chosen in Python.

A row is (largest size it serves, configuration); None serves the rest. What "size" counts stands beside each kernel.
Triton's autotuner is not used: it needs a device to time on, and forgets its choice under Inductor.
None of these rows has been timed yet: see benchmarks/GPU_TODO.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Config:
    """blocks: the kernel's block sizes by name. warps: of one program. stages: of the software pipeline. values: how
    many a program holds in registers, where its block sizes follow from that and from the problem.
    """

    blocks: Mapping[str, int]
    warps: int = 4
    stages: int = 2
    values: int = 0


Rows = tuple[tuple[int | None, Config], ...]


def _everywhere(rows: Rows, interpreter: Config) -> dict[str, Rows]:
    return {**dict.fromkeys(FAMILIES, rows), "interpreter": ((None, interpreter),)}


def _product(m: int, n: int, k: int, warps: int, stages: int, **more: int) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, **more}, warps, stages)


def _tiles(half: dict[str, Config], single: Config, interpreter: Config) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Of 16-bit and of 32-bit operands: one row a family."""
    interpreted: dict[str, Rows] = {"interpreter": ((None, interpreter),)}
    of_half: dict[str, Rows] = {family: ((None, config),) for family, config in half.items()}
    of_single: dict[str, Rows] = dict.fromkeys(FAMILIES, ((None, single),))
    return {**of_half, **interpreted}, {**of_single, **interpreted}


# Attention pads a head to a power of two; wider ones are left to others.
WIDEST_HEAD = 128


def one_tile(dtype: torch.dtype, head_dim: int) -> int:
    """Tokens of a sequence up to which one program holds all logits of a head, forward and backward."""
    return 64 if dtype in (torch.float16, torch.bfloat16) and head_dim <= 64 else 32


# A tile of logits in registers is taken along both axes; where the gradient is built beside it 128 x 128 would spill.
_INTERPRETED = _product(64, 64, 64, 1, 1, GROUP=2)
_SUMS = _tiles(
    {
        "sm_80": _product(128, 128, 32, 8, 3, GROUP=8),
        "sm_90": _product(128, 128, 64, 8, 3, GROUP=8),
        "sm_100": _product(128, 64, 64, 8, 3, GROUP=8),
        "gfx942": _product(128, 64, 32, 8, 2, GROUP=8),
    },
    single=_product(64, 64, 32, 4, 2, GROUP=8),
    interpreter=_INTERPRETED,
)
_GRADIENTS = _tiles(
    {
        "sm_80": _product(128, 64, 32, 4, 3, GROUP=8),
        "sm_90": _product(128, 64, 64, 4, 3, GROUP=8),
        "sm_100": _product(128, 64, 64, 8, 3, GROUP=8),
        "gfx942": _product(128, 64, 32, 8, 2, GROUP=8),
    },
    single=_product(64, 64, 32, 4, 2, GROUP=8),
    interpreter=_INTERPRETED,
)

# Beside its tile a program keeps a list of neighbours of each row.
_NEAREST = _tiles(
    {
        "sm_80": _product(128, 64, 32, 8, 3),
        "sm_90": _product(128, 64, 64, 8, 3),
        "sm_100": _product(128, 64, 64, 8, 3),
        "gfx942": _product(64, 64, 32, 8, 2),
    },
    single=_product(64, 32, 32, 4, 2),
    interpreter=_product(64, 64, 64, 1, 1),
)


def _rectangle(m: int, n: int, warps: int, stages: int = 2) -> Config:
    return Config({"BLOCK_M": m, "BLOCK_N": n}, warps, stages)


def _square(block: int, warps: int, stages: int = 2) -> Config:
    return _rectangle(block, block, warps, stages)


# A chip with less shared memory than an A100 takes the sm_80 rows, so these stay below 99 KiB.
# AMD has 64 KiB a workgroup and gains nothing from deep pipelines.
TABLES: dict[str, dict[str, Rows]] = {
    # size: kept patches of the whole batch
    "embed_16_bit": {
        "sm_80": ((2048, _product(64, 64, 32, 4, 3)), (None, _product(128, 128, 32, 8, 3))),
        "sm_90": ((2048, _product(64, 64, 64, 4, 3)), (None, _product(128, 128, 32, 8, 4))),
        "sm_100": ((2048, _product(64, 64, 64, 4, 3)), (None, _product(128, 128, 32, 8, 4))),
        "gfx942": ((2048, _product(64, 64, 32, 4, 2)), (None, _product(128, 128, 32, 8, 2))),
        "interpreter": ((None, _product(64, 64, 256, 1, 1)),),
    },
    "embed_32_bit": {
        **dict.fromkeys(FAMILIES, ((2048, _product(32, 64, 32, 4, 2)), (None, _product(64, 64, 32, 4, 2)))),
        "interpreter": ((None, _product(64, 64, 256, 1, 1)),),
    },
    # size: logits
    "similarity_16_bit": _SUMS[0],
    "similarity_32_bit": _SUMS[1],
    "similarity_gradient_16_bit": _GRADIENTS[0],
    "similarity_gradient_32_bit": _GRADIENTS[1],
    "nearest_16_bit": _NEAREST[0],
    # on gfx942 more rows would spill scalar registers
    "nearest_32_bit": {**_NEAREST[1], "gfx942": ((None, _product(16, 64, 32, 4, 1)),)},
    # size: tokens of the longest sequence; the name ends with the widest head
    "attention_64": {
        **dict.fromkeys(FAMILIES, ((16, _square(16, 1)), (32, _square(32, 2)), (None, _square(64, 4, 1)))),
        "sm_90": ((16, _square(16, 1)), (32, _square(32, 2)), (None, _square(64, 4))),
        "gfx942": ((16, _square(16, 1)), (32, _square(32, 2)), (None, _rectangle(64, 32, 4, 1))),
        "interpreter": ((None, _square(64, 1)),),
    },
    "attention_128": _everywhere(((32, _square(32, 2, 1)), (None, _square(32, 4))), _square(64, 1)),
    "attention_one_tile_backward_64": _everywhere(
        ((16, _square(16, 1)), (32, _square(32, 4)), (None, _square(64, 4))), _square(64, 1)
    ),
    "attention_one_tile_backward_128": _everywhere(((None, _square(32, 2)),), _square(32, 1)),
    "attention_backward_64": {
        "sm_80": ((None, _rectangle(64, 32, 4)),),
        "sm_90": ((None, _square(64, 4)),),
        "sm_100": ((None, _square(64, 4)),),
        "gfx942": ((None, _rectangle(64, 32, 4)),),
        "interpreter": ((None, _rectangle(64, 32, 1)),),
    },
    "attention_backward_128": {
        "sm_80": ((None, _square(32, 8, 1)),),
        "sm_90": ((None, _rectangle(64, 16, 8, 1)),),
        "sm_100": ((None, _rectangle(64, 32, 8)),),
        "gfx942": ((None, _rectangle(64, 32, 4, 1)),),
        "interpreter": ((None, _rectangle(32, 64, 1)),),
    },
    "attention_bias_gradient_64": _everywhere(((None, _rectangle(64, 32, 4)),), _square(64, 1)),
    "attention_bias_gradient_128": _everywhere(((None, _square(32, 8, 1)),), _square(64, 1)),
    # size: values of one patch
    "normalized_patches": _everywhere(
        ((None, Config({"BLOCK_S": 4, "BLOCK_V": 512})),), Config({"BLOCK_S": 64, "BLOCK_V": 1024})
    ),
    # size: positions of the whole batch
    "slot_map": _everywhere(((None, Config({"BLOCK": 256})),), Config({"BLOCK": 4096})),
    # size: width of a token
    "restore": _everywhere(((None, Config({"BLOCK_R": 4, "BLOCK_D": 512})),), Config({"BLOCK_R": 64, "BLOCK_D": 512})),
    "position_sums": _everywhere(
        ((None, Config({"BLOCK_B": 8, "BLOCK_D": 256})),), Config({"BLOCK_B": 64, "BLOCK_D": 512})
    ),
    # size: values of one patch
    "masked_patch_mse": _everywhere(
        (
            (1024, Config({}, warps=2, values=1024)),
            (2048, Config({}, warps=4, values=2048)),
            (None, Config({}, warps=8, values=4096)),
        ),
        Config({}, values=16384),
    ),
}
