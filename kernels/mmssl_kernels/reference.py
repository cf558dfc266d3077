"""What the ops must equal, as their authors write it: everything computed and held, then selected or summed.

Plain PyTorch, differentiable, in the dtype of its floating-point inputs (float64 makes it an oracle). Tests and
benchmarks import these, and `plain`, for programs that run elsewhere; nothing else does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmssl_kernels.attention.problem import Window
from mmssl_kernels.patches import Patch, patchify


def normalized_pixels(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """All pixels, `(x - mean) / std` a channel, uint8 divided by 255 first; in mean's dtype."""
    values = pixels.to(mean.dtype) / (255 if pixels.dtype == torch.uint8 else 1)
    channel = (-1, *(1 for _ in pixels.shape[2:]))
    return (values - mean.view(channel)) / std.view(channel)


def selected(values: Tensor, index: Tensor, rows: Tensor | None) -> Tensor:
    """The `[B, N, D]` values at `[B, K]` or flat positions."""
    if rows is not None:
        return values[rows, index]
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def masked_patch_embed(
    pixels: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    index: Tensor,
    *,
    patch: Patch,
    mean: Tensor,
    std: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """Embed every patch, add positions, keep some (MAE's forward_encoder)."""
    tokens = patchify(normalized_pixels(pixels, mean, std), patch).to(weight.dtype) @ weight.T
    return selected((tokens if bias is None else tokens + bias) + position, index, rows)


def restore_tokens(
    tokens: Tensor,
    keep: Tensor,
    mask_token: Tensor,
    position: Tensor,
    *,
    prefix: int = 0,
    rows: Tensor | None = None,
    kind: Tensor | None = None,
    restore: Tensor | None = None,
    restore_rows: Tensor | None = None,
) -> Tensor:
    """Sample by sample: a row of mask tokens, the visible ones put in, positions added, some rows selected."""
    patches = len(position) - prefix
    tokens = tokens.to(torch.promote_types(tokens.dtype, position.dtype))
    mask_token = mask_token.to(tokens.dtype)
    filler = mask_token.expand(patches, -1) if kind is None else mask_token[kind]
    sequences = []
    for number, sample in enumerate(tokens):
        where = keep[number] if rows is None else keep[rows == number]
        full = filler.index_put((where,), sample[prefix : prefix + len(where)])
        sequences.append(torch.cat([sample[:prefix], full]) + position)
    full = torch.stack(sequences)
    if restore is None:
        return full
    if restore_rows is not None:
        return full[restore_rows, restore]
    return torch.cat([full[:, :prefix], selected(full[:, prefix:], restore, None)], dim=1)


def masked_patch_mse(
    prediction: Tensor,
    pixels: Tensor,
    index: Tensor,
    *,
    patch: Patch,
    mean: Tensor,
    std: Tensor,
    target_norm: str = "none",
    rows: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Patchify and normalise everything, select, square, average (MAE's and VideoMAE's losses)."""
    if target_norm == "channel":
        target = patchify(normalized_pixels(pixels, torch.zeros_like(mean), torch.ones_like(std)), patch)
        target = target.unflatten(-1, (-1, len(mean)))
        center, variance = target.mean(dim=-2, keepdim=True), target.var(dim=-2, keepdim=True)
        target = ((target - center) / (variance.sqrt() + 1e-6)).flatten(-2)
    else:
        target = patchify(normalized_pixels(pixels, mean, std), patch)
    if target_norm == "patch":
        center, variance = target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)
        target = (target - center) / (variance + 1e-6).sqrt()
    errors = (prediction.to(target.dtype) - selected(target, index, rows)).square().mean(dim=-1)
    if weights is None:
        return errors.mean()
    weight = weights[rows] if rows is not None else weights[:, None].expand_as(errors)
    return (errors * weight).sum() / weight.sum()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = False,
    key_padding: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
    max_q: int | None = None,
    max_k: int | None = None,
    window: Window | None = None,
    bias: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """All logits, those that are hidden -inf, softmax, product; windows are pairs of one window and region."""
    if cu_seqlens_q is not None:
        spans = [cu.tolist() for cu in (cu_seqlens_q, cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k)]
        found = [
            attention(q[None, a:b], k[None, c:d], v[None, c:d], causal=causal, scale=scale)[0]
            for a, b, c, d in zip(spans[0], spans[0][1:], spans[1], spans[1][1:])
        ]
        return torch.cat([*found, torch.zeros_like(q[spans[0][-1] :])])
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = torch.zeros_like(logits, dtype=torch.bool)
    if causal:
        hidden |= torch.ones(hidden.shape[2:], dtype=torch.bool, device=q.device).triu(1)
    if key_padding is not None:
        hidden |= key_padding[:, None, None]
    if window is not None:
        number, place = window_of_tokens(window, q.device)
        hidden |= number[:, None] != number
        bias = bias if bias is None else bias[:, place[:, None], place]
    logits = logits if bias is None else logits + bias
    hidden |= logits == -torch.inf
    logits = logits.masked_fill(hidden, -torch.inf)
    p = logits.to(torch.promote_types(q.dtype, torch.float32)).softmax(-1).masked_fill(hidden, 0)
    return torch.einsum("bhqk,bkhd->bqhd", p.to(v.dtype), v)


def window_of_tokens(window: Window, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each token: a number that those it sees have too, and its place in its window (Swin's masks and rolls)."""
    region, number, place = torch.zeros(3, *window.grid, dtype=torch.int64, device=device)
    cuts = [
        (slice(0, -size), slice(-size, -shift), slice(-shift, None)) if shift else (slice(None),)
        for size, shift in zip(window.size, window.shift)
    ]
    for one, rows in enumerate(cuts[0]):
        for other, columns in enumerate(cuts[1]):
            region[rows, columns] = 3 * one + other
    (height, width), across = window.size, window.grid[1] // window.size[1]
    for row in range(window.grid[0]):
        for column in range(window.grid[1]):
            number[row, column] = row // height * across + column // width
            place[row, column] = row % height * width + column % width
    rolled = (9 * number + region, place)
    one, other = (each.roll(window.shift, (0, 1)).flatten() for each in rolled)
    return one, other


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    *,
    labels: Tensor | None = None,
    symmetric: bool = True,
    exclude_self: bool = False,
    queue: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """The matrix of logits and two cross entropies (CLIP's pseudocode, MoCo's, SimCLR's)."""
    exact = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(exact), b.to(exact)
    if queue is not None:
        positives, negatives = (a * b).sum(1, keepdim=True), a @ queue.to(exact).T
        logits, labels = scale * torch.cat([positives, negatives], 1), torch.zeros(len(a), dtype=torch.int64)
    else:
        logits = scale * a @ b.T
    labels = torch.arange(len(a)) if labels is None else labels
    labels = labels.to(a.device)
    if exclude_self:
        logits = logits.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), -torch.inf)
    losses = F.cross_entropy(logits, labels, reduction="none")
    if symmetric:
        losses = (losses + F.cross_entropy(logits.T[labels], torch.arange(len(a)).to(labels), reduction="none")) / 2
    return losses.mean() if weights is None else (losses * weights).sum() / weights.sum()


def siglip_loss(a: Tensor, b: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sum over the matrix, divided by its rows (SigLIP's pseudocode)."""
    exact = torch.promote_types(a.dtype, torch.float32)
    logits = scale * a.to(exact) @ b.to(exact).T + bias
    signs = 2 * torch.eye(len(a), dtype=exact, device=a.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(a)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    weights: Tensor | None = None,
) -> Tensor:
    """The logits, then their cross entropy."""
    exact = torch.promote_types(x.dtype, torch.float32)
    logits = F.linear(x.to(exact), weight.to(exact), bias if bias is None else bias.to(exact))
    logits, labels = logits.flatten(0, -2), labels.flatten()
    if weights is None:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index)
    weights = weights.flatten() * (labels != ignore_index)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return (losses * weights).sum() / weights.sum()


def similarity_topk(a: Tensor, b: Tensor, k: int, *, exclude: int | None = None) -> tuple[Tensor, Tensor]:
    """The matrix of similarities, sorted by row; stable, so that of equal ones the first comes first."""
    values, indices = similarities(a, b, exclude).sort(dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


def similarity_rank(a: Tensor, b: Tensor, column: Tensor, *, exclude: int | None = None) -> Tensor:
    """The matrix of similarities, compared with one of each row; of equal ones the first comes first."""
    matrix = similarities(a, b, exclude)
    own = matrix.gather(1, column[:, None])
    number = torch.arange(len(b), device=a.device)
    others, first = number != column[:, None], number < column[:, None]
    return (others & (~(matrix <= own) | ((matrix == own) & first))).sum(1)


def similarities(a: Tensor, b: Tensor, exclude: int | None) -> Tensor:
    """All of them; minus infinity where row i meets column i + exclude."""
    exact = torch.promote_types(a.dtype, torch.float32)
    hidden = torch.zeros(len(a), len(b), dtype=torch.bool, device=a.device)
    if exclude is not None:
        columns = torch.arange(len(b), device=a.device)
        hidden = columns == torch.arange(len(a), device=a.device)[:, None] + exclude
    return (a.to(exact) @ b.to(exact).T).masked_fill(hidden, -torch.inf)
