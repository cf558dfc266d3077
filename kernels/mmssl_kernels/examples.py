"""Calls of every op at sizes that users have, on tensors without data: what is compiled ahead of time.

Each makes its tensors on torch's default device. The first call that reaches a kernel is its representative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from mmssl_kernels.attention import Window, attention_triton, backward_triton
from mmssl_kernels.contrastive import nearest_triton, similarity_triton
from mmssl_kernels.masked_patch import embed_triton, mse_triton, restore_triton

B, N, K, DIM, WIDTH = 256, 196, 49, 768, 512


def _positions(samples: int, kept: int, ragged: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    shape = (samples * kept,) if ragged else (samples, kept)
    index = torch.zeros(shape, dtype=torch.int64)
    return index, index.clone() if ragged else None


def embed(
    pixels: torch.Tensor,
    patch: list[int],
    *,
    dtype: torch.dtype = torch.bfloat16,
    kept: int = K,
    dim: int = DIM,
    bias: bool = True,
    ragged: bool = False,
) -> None:
    """Forward and backward of `masked_patch_embed`, every gradient asked for."""
    channels = pixels.shape[1]
    values, patches = channels, 1
    for size, side in zip(pixels.shape[2:], patch, strict=True):
        values, patches = values * side, patches * (size // side)
    weight, position = torch.zeros(dim, values, dtype=dtype), torch.zeros(patches, dim, dtype=dtype)
    index, rows = _positions(len(pixels), kept, ragged)
    mean = torch.zeros(channels)
    places = torch.zeros(dim, dtype=dtype) if bias else None
    out = embed_triton.embed(pixels, weight, places, position, index, rows, mean, mean, patch)
    embed_triton.embed_backward(out, pixels, weight, index, rows, mean, mean, patch, patches, [True] * 3)


def restore(
    *,
    dtype: torch.dtype = torch.bfloat16,
    prefix: int = 1,
    kinds: int = 0,
    ragged: bool = False,
    subset: str = "",
    batch: int = B,
    width: int = WIDTH,
) -> None:
    """Forward and backward of `restore_tokens`, every gradient asked for."""
    tokens, position = torch.zeros(batch, prefix + K, width, dtype=dtype), torch.zeros(prefix + N, width, dtype=dtype)
    mask_token = torch.zeros(kinds, width, dtype=dtype) if kinds else torch.zeros(width, dtype=dtype)
    kind = torch.zeros(N, dtype=torch.int64) if kinds else None
    keep, rows = _positions(batch, K, ragged)
    wanted, wanted_rows = _positions(batch, N - K, subset == "ragged") if subset else (None, None)
    out = restore_triton.restore(tokens, keep, rows, mask_token, position, kind, wanted, wanted_rows, prefix)
    restore_triton.restore_backward(
        out, tokens, keep, rows, mask_token, position, kind, wanted, wanted_rows, prefix, [True] * 3
    )


def mse(
    pixels: torch.Tensor,
    patch: list[int],
    norm: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    hidden: int = N - K,
    ragged: bool = False,
    weighted: bool = False,
) -> None:
    """Forward and backward of `masked_patch_mse`."""
    channels, values = pixels.shape[1], pixels.shape[1]
    for side in patch:
        values *= side
    index, rows = _positions(len(pixels), hidden, ragged)
    prediction, mean = torch.zeros(*index.shape, values, dtype=dtype), torch.zeros(channels)
    weights = torch.zeros(len(pixels)) if weighted else None
    loss = mse_triton.mse(prediction, pixels, index, rows, mean, mean, weights, patch, norm)
    mse_triton.mse_backward(loss, prediction, pixels, index, rows, mean, mean, weights, patch, norm)


def similarity(
    *,
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 32768,
    size: int = 32768,
    dim: int = 512,
    kind: str = "softmax",
    exclude: int | None = None,
    columns: bool = False,
    labelled: bool = True,
    bias: bool = False,
    needs: tuple[bool, bool, bool, bool] = (True, True, True, False),
) -> None:
    """Forward and backward of the contrastive losses' tile engine."""
    x, y, scale = torch.zeros(rows, dim, dtype=dtype), torch.zeros(size, dim, dtype=dtype), torch.zeros(())
    labels = torch.zeros(rows, dtype=torch.int64) if labelled else None
    shift = torch.zeros(size) if bias else None
    sums, found, positives = similarity_triton.similarity_sums(x, y, scale, shift, labels, kind, exclude, columns, None)
    upstream = sums, found if columns else None, positives if labelled else None
    similarity_triton.similarity_backward(
        *upstream, x, y, scale, shift, labels, sums, found, kind, exclude, list(needs)
    )


def nearest(
    *,
    dtype: torch.dtype = torch.bfloat16,
    rows: int = 25000,
    size: int = 25000,
    dim: int = 512,
    k: int = 10,
    exclude: int | None = None,
) -> None:
    """Retrieval: the neighbours of each row, and the rank of a given one."""
    x, y = torch.zeros(rows, dim, dtype=dtype), torch.zeros(size, dim, dtype=dtype)
    nearest_triton.topk(x, y, k, exclude)
    nearest_triton.rank(x, y, torch.zeros(rows, dtype=torch.int64), exclude)


def attend(
    batch: int,
    heads: int,
    tokens: int,
    dim: int,
    *,
    dtype: torch.dtype = torch.bfloat16,
    keys: int | None = None,
    causal: bool = False,
    padding: bool = False,
    window: Window | None = None,
    learned: bool = False,
    packed: bool = False,
) -> None:
    """Forward and backward of `attention`, of a sequence with itself or, with `keys`, with another."""
    rows = () if packed else (batch,)
    shapes: list[tuple[int, ...]] = [(batch * tokens if packed else tokens, 3, heads, dim)]
    if keys is not None:
        shapes = [(tokens, heads, dim), (keys, heads, dim), (keys, heads, dim)]
    q, k, v = (*(torch.zeros(*rows, *shape, dtype=dtype) for shape in shapes), None, None)[:3]
    assert q is not None
    longest = tokens if window is None else window.tokens
    across = longest if keys is None else keys
    hidden = torch.zeros(batch, across, dtype=torch.bool) if padding else None
    bias = torch.zeros(heads, longest, across) if learned else None
    offsets = torch.zeros(batch + 1, dtype=torch.int32) if packed else None
    numbers = [] if window is None else window.numbers()
    tensors, settings = (q, k, v, hidden, bias, offsets, offsets), (longest, across, causal, numbers, dim**-0.5)
    out, sums = attention_triton.attention(*tensors, *settings)
    backward_triton.attention_backward(out, *tensors, out, sums, *settings, learned)


def _pictures(dtype: torch.dtype = torch.uint8, samples: int = B, size: int = 224) -> torch.Tensor:
    return torch.zeros(samples, 3, size, size, dtype=dtype)


def _clips() -> torch.Tensor:
    return torch.zeros(32, 3, 16, 224, 224, dtype=torch.uint8)


def _sounds() -> torch.Tensor:
    return torch.zeros(64, 1, 1024, 128)


half, single = torch.float16, torch.float32
EXAMPLES: dict[str, Callable[[], None]] = {
    "ViT-B/16": lambda: embed(_pictures(), [16, 16]),
    "ViT-B/16, fp16": lambda: embed(_pictures(half), [16, 16], dtype=half),
    "ViT-B/16, fp32": lambda: embed(_pictures(single), [16, 16], dtype=single),
    "ViT-B/16, channels last": lambda: embed(_pictures().to(memory_format=torch.channels_last), [16, 16]),
    "ViT-H/14": lambda: embed(_pictures(), [14, 14], kept=64, dim=1280),
    "ViT-S/16, small batch, ragged, no bias": lambda: embed(
        _pictures(samples=16), [16, 16], dim=384, ragged=True, bias=False
    ),
    "ViT-S/16, small batch, fp32": lambda: embed(_pictures(samples=16), [16, 16], dtype=single, dim=384),
    "VideoMAE": lambda: embed(_clips(), [2, 16, 16], kept=160),
    "Audio-MAE": lambda: embed(_sounds(), [16, 16], kept=102),
    "MAE decoder": lambda: restore(),
    "MAE decoder, fp32": lambda: restore(dtype=single),
    "demo decoder": lambda: restore(dtype=single, width=96, batch=16),
    "MultiMAE decoder, ragged": lambda: restore(kinds=3, ragged=True),
    "hidden ones only": lambda: restore(subset="rectangular"),
    "hidden ones only, ragged": lambda: restore(subset="ragged", prefix=0, ragged=True),
    "MAE loss": lambda: mse(_pictures(), [16, 16], "patch"),
    "MAE loss, fp32, weighted": lambda: mse(_pictures(single), [16, 16], "patch", dtype=single, weighted=True),
    "MAE loss, pixels, ragged": lambda: mse(_pictures(), [16, 16], "none", ragged=True),
    "VideoMAE loss": lambda: mse(_clips(), [2, 16, 16], "channel", hidden=1408),
    "Audio-MAE loss": lambda: mse(_sounds(), [16, 16], "patch", hidden=410),
    "large patches": lambda: mse(_pictures(), [32, 32], "patch", hidden=37),
    "CLIP": lambda: similarity(columns=True),
    "CLIP, fp16": lambda: similarity(columns=True, dtype=half),
    "CLIP, fp32": lambda: similarity(columns=True, dtype=single),
    "SimCLR": lambda: similarity(rows=8192, size=8192, dim=128, exclude=0),
    "MoCo, fp32": lambda: similarity(
        rows=256, size=65536, dim=128, labelled=False, dtype=single, needs=(True, False, False, False)
    ),
    "SigLIP": lambda: similarity(kind="sigmoid", bias=True, needs=(True, True, True, True)),
    "retrieval": lambda: nearest(k=32),
    "retrieval, fp16, itself": lambda: nearest(dtype=half, exclude=0),
    "retrieval of a million, fp32": lambda: nearest(dtype=single, rows=1000, size=2**20),
    "accuracy in the batch, fp32": lambda: nearest(dtype=single, rows=4096, size=4096, k=1),
    "kNN, fp32": lambda: nearest(dtype=single, rows=50000, size=2**20, dim=384, k=20),
    "MAE encoder": lambda: attend(256, 12, 50, 64),
    "VideoMAE encoder": lambda: attend(32, 12, 160, 64),
    "VideoMAE encoder, fp16": lambda: attend(32, 12, 160, 64, dtype=half),
    "MAE's decoder": lambda: attend(256, 16, 197, 32),
    "ViT-H encoder": lambda: attend(64, 16, 65, 80),
    "ViT-g encoder": lambda: attend(64, 16, 50, 88),
    "few tokens": lambda: attend(256, 12, 30, 64),
    "few tokens, wide heads": lambda: attend(256, 12, 30, 128),
    "Audio-MAE's decoder": lambda: attend(64, 16, 512, 32, window=Window((64, 8), (4, 4), (2, 0)), learned=True),
    "SiamMAE's decoder": lambda: attend(32, 8, 187, 64, keys=197),
    "CLIP's text": lambda: attend(256, 8, 77, 64, causal=True),
    "BERT": lambda: attend(64, 12, 128, 64, padding=True),
    "BEiT": lambda: attend(64, 12, 197, 64, learned=True),
    "BEiT, wide heads": lambda: attend(64, 12, 197, 128, learned=True),
    "mixed sequences": lambda: attend(64, 12, 300, 64, packed=True),
    "BERT's head": lambda: similarity(rows=5000, size=30522, dim=768, bias=True, needs=(True, True, False, True)),
}
