"""Counter-based noise: a pure function of (seed, stream, epoch, sample_id, draw, position).

No generator state is carried, so a mask or a crop is the same on CPU and GPU, for any batch layout, worker count or
world size, and a run resumes in the middle of an epoch without saving anything. The function is Threefry-2x32 with
20 rounds (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011), folded once per coordinate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt32
from mmssl_kernels.frame import op
from torch import Tensor

Word = TypeVar("Word", int, Tensor, UInt32[np.ndarray, "..."])

_MASK = 0xFFFFFFFF
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


class Keys(NamedTuple):
    """What the noise of a batch is keyed by, one value a slot."""

    seed: int
    sample_id: Int64[Tensor, " batch"]
    epoch: Int64[Tensor, " batch"]
    draw: Int64[Tensor, " batch"]


def threefry2x32(key: tuple[Word, Word], counter: tuple[Word, Word]) -> tuple[Word, Word]:
    """Two 32-bit words from a 64-bit key and a 64-bit counter: ints in [0, 2**32), uint32 arrays, or int32 tensors,
    which torch can shift and which hold the same bits (all additions wrap round; every device computes them alike)."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    whole = isinstance(key[0], int)
    # Arrays of their own: all that follows is done in place.
    x: Any = counter[0] + keys[0]
    y: Any = counter[1] + keys[1]
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x += y
            if whole:
                x, y = x & _MASK, y & _MASK
            lifted = y << rotation
            y >>= 32 - rotation
            y &= (1 << rotation) - 1  # the shift repeats the sign of an int32
            y |= lifted
            y ^= x
        x += keys[(block + 1) % 3]
        y += keys[(block + 2) % 3] + block + 1
    return (x & _MASK, y & _MASK) if whole else (x, y)


def _stream_root(seed: int, stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


# Hashing has no graph. This is all that `torch.compiler.assume_constant_result` does, but for importing the compiler,
# which would take as long as torch itself.
_stream_root._dynamo_marked_constant = True  # type: ignore[attr-defined]


def stream_key(seed: int, stream: str, epoch: int = 0, draw: int = 0) -> tuple[int, int]:
    """The 64-bit key of one stream in one epoch; `stream` names purpose, modality and view ("mask/image", "crop/1")."""
    return threefry2x32(_stream_root(seed, stream), (epoch & _MASK, draw & _MASK))


def random_bits(
    count: int,
    *,
    seed: int,
    stream: str,
    sample_id: Int64[Tensor, " batch"],
    epoch: Int64[Tensor, " batch"] | int = 0,
    draw: Int64[Tensor, " batch"] | int = 0,
    where: Bool[Tensor, "batch {count}"] | None = None,
) -> Int64[Tensor, "batch {count}"]:
    """`count` integers in [0, 2**62) a sample, uniform and independent across every coordinate.

    `epoch` and `draw` are one value for the batch or one a sample. where: which ones are asked for; a CPU, which is
    slow at this, leaves the others 0.
    """
    device = sample_id.device
    epoch = torch.as_tensor(epoch, dtype=torch.int64, device=device).expand_as(sample_id)
    draw = torch.as_tensor(draw, dtype=torch.int64, device=device).expand_as(sample_id)
    # Its hundreds of operations feed each other twice: Inductor, which would make one loop of them, takes minutes.
    bits = _BITS if torch.compiler.is_compiling() else _bits
    asked = where if device.type == "cpu" else None
    return bits(*stream_key(seed, stream), count, sample_id, epoch, draw, asked)


def _bits(
    first: int, second: int, count: int, sample_id: Tensor, epoch: Tensor, draw: Tensor, where: Tensor | None
) -> Tensor:
    on_cpu = sample_id.device.type == "cpu"  # where NumPy's calls cost a third of torch's, and most arrays are small

    def word(value: Tensor) -> Any:
        return value.numpy().astype(np.uint32) if on_cpu else value.to(torch.int32)

    def number(word: Any) -> Tensor:
        return torch.from_numpy(word.astype(np.int64)) if on_cpu else word.long() & _MASK

    root = word(torch.full_like(sample_id, first)), word(torch.full_like(sample_id, second))
    key = threefry2x32(threefry2x32(root, (word(epoch), word(draw))), (word(sample_id), word(sample_id >> 32)))
    if where is None:
        position, key = word(torch.arange(count, device=sample_id.device)), (key[0][:, None], key[1][:, None])
    else:
        row, column = where.numpy().nonzero()
        position, key = column.astype(np.uint32), (key[0][row], key[1][row])
    high, low = threefry2x32(key, (position, 0 * position))
    bits = number(high) << 30 | number(low) >> 2
    return bits if where is None else bits.new_zeros(where.shape).masked_scatter_(where, bits)


_BITS = op.define(
    "random_bits",
    "(int first, int second, SymInt count, Tensor sample_id, Tensor epoch, Tensor draw, Tensor? where) -> Tensor",
    fast=_bits,
    triton=None,
    fake=lambda first, second, count, sample_id, *rest: sample_id.new_empty(len(sample_id), count),
)


def uniform(
    count: int,
    *,
    seed: int,
    stream: str,
    sample_id: Int64[Tensor, " batch"],
    epoch: Int64[Tensor, " batch"] | int = 0,
    draw: Int64[Tensor, " batch"] | int = 0,
) -> Float[Tensor, "batch {count}"]:
    """`count` float32 numbers in [0, 1) a sample, multiples of 2**-24 (see `random_bits`)."""
    bits = random_bits(count, seed=seed, stream=stream, sample_id=sample_id, epoch=epoch, draw=draw)
    return (bits >> 38).to(torch.float32) * 2.0**-24


def permutation(count: int, *, seed: int, stream: str, epoch: int = 0) -> Int64[Tensor, " {count}"]:
    """A uniformly random order of `count` items, the same everywhere: what a data loader visits in one epoch."""
    anchor = torch.zeros(1, dtype=torch.int64)
    return random_bits(count, seed=seed, stream=stream, sample_id=anchor, epoch=epoch)[0].argsort(stable=True)


def batch_bits(
    batch: Mapping[str, Tensor],
    count: int,
    *,
    seed: int,
    stream: str,
    where: Bool[Tensor, "batch {count}"] | None = None,
) -> Int64[Tensor, "batch {count}"]:
    """`random_bits` for the samples of a batch, by the coordinates the loader put into it.

    A batch without `sample_id` (a user's own loop) draws from torch's generator instead: its masks are never frozen.
    """
    sample_id = batch.get("sample_id")
    if sample_id is None:
        values = next(iter(batch.values()))
        return torch.randint(2**62, (len(values), count), device=values.device)
    epoch, draw = batch.get("epoch", 0), batch.get("draw", 0)
    return random_bits(count, seed=seed, stream=stream, sample_id=sample_id, epoch=epoch, draw=draw, where=where)
