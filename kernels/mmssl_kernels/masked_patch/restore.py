"""The sequence a decoder reads: visible tokens where they came from, mask tokens elsewhere, positions added."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mmssl_kernels.frame import checks, op
from mmssl_kernels.masked_patch.pixels import pieces

TRITON = "mmssl_kernels.masked_patch.restore_triton"


def restore_tokens(
    tokens: Float[Tensor, "batch prefix_and_kept dim"],
    keep: Int64[Tensor, "*kept"],
    mask_token: Float[Tensor, "*kinds dim"],
    position: Float[Tensor, "prefix_and_patches dim"],
    *,
    prefix: int = 0,
    rows: Int64[Tensor, " flat"] | None = None,
    kind: Int64[Tensor, " patches"] | None = None,
    restore: Int64[Tensor, "*restored"] | None = None,
    restore_rows: Int64[Tensor, " flat_restored"] | None = None,
) -> Float[Tensor, "*sequence dim"]:
    """Undo the mask (MAE, arXiv 2111.06377, section 3): one write of the whole sequence, position included.

    tokens: `prefix` class or register tokens, then those of the patches in `keep`, then padding where `keep` is ragged
    (flat `[S]`, one sample after the other, with `rows` `[S]`). mask_token: `[dim]`, or `[M, dim]` with the `kind` of
    each position, below M (a mask token a modality). position: rows of the prefix first.

    Without `restore` the result is `[B, prefix + N, dim]`, all N positions. `restore` `[B, R]` asks for these positions
    alone, `[B, prefix + R, dim]`; flat `[S]` with `restore_rows` gives `[S, dim]` and needs prefix 0.
    Gradients: tokens, mask_token and position; all deterministic. The result has the wider of tokens' and position's
    dtypes. Tokens that belong to no position are not read and have a gradient of zero: padding, and where nobody checks
    positions those outside the grid, more of a sample than it has tokens, and all but the last of one position.

    Raises ValueError naming both shapes where sizes, positions or devices do not fit, TypeError for other dtypes.
    """
    checks.dtype(checks.FLOATS, tokens=tokens, mask_token=mask_token, position=position)
    checks.dtype((torch.int64,), kind=kind)
    checks.same_device(
        tokens=tokens, keep=keep, mask_token=mask_token, position=position, rows=rows, kind=kind, restore=restore,
        restore_rows=restore_rows,
    )  # fmt: skip
    if tokens.ndim != 3 or position.ndim != 2 or not 0 <= prefix <= min(len(position), tokens.shape[1]):
        raise ValueError(
            f"tokens of shape {tuple(tokens.shape)} and position of shape {tuple(position.shape)}: expected "
            f"(B, {prefix} + K, dim) and ({prefix} + N, dim)"
        )
    batch, width, dim = tokens.shape
    because = f"tokens have shape {tuple(tokens.shape)}"
    checks.shape((len(position), dim), because, position=position)
    checks.positions("keep", keep, rows, batch, len(position) - prefix)
    if rows is None:
        checks.shape((batch, width - prefix), f"{because}, {prefix} of a sample not of patches", keep=keep)
    elif keep.numel() and width == prefix:
        raise ValueError(f"keep has shape {tuple(keep.shape)}, but {because}, all of the prefix")
    if kind is None:
        checks.shape((dim,), f"{because}; several mask tokens need `kind`", mask_token=mask_token)
    else:
        if mask_token.ndim != 2 or not len(mask_token):
            raise ValueError(f"mask_token has shape {tuple(mask_token.shape)}, expected (kinds, {dim}): {because}")
        checks.shape((len(mask_token), dim), because, mask_token=mask_token)
        checks.shape((len(position) - prefix,), f"position has shape {tuple(position.shape)}", kind=kind)
    if restore is None and restore_rows is not None:
        raise ValueError(f"restore_rows without restore: {tuple(restore_rows.shape)} rows of no positions")
    if restore is not None:
        checks.positions("restore", restore, restore_rows, batch, len(position) - prefix)
        if restore_rows is not None and prefix:
            raise ValueError(f"flat restore of shape {tuple(restore.shape)} has no place for {prefix} prefix tokens")
    return _op(tokens, keep, rows, mask_token, position, kind, restore, restore_rows, prefix)


def check_values(
    tokens: Tensor,
    keep: Tensor,
    rows: Tensor | None,
    mask_token: Tensor,
    position: Tensor,
    kind: Tensor | None,
    restore: Tensor | None,
    restore_rows: Tensor | None,
    prefix: int,
) -> None:
    """Raises ValueError for positions, kinds or ragged rows that do not exist; on a GPU under the debug switch only."""
    batch, width = tokens.shape[:2]
    checks.position_values("keep", keep, rows, batch, len(position) - prefix)
    if restore is not None:
        checks.position_values("restore", restore, restore_rows, batch, len(position) - prefix)
    if not checks.values_are_checked(tokens):
        return
    if kind is not None and kind.numel():
        checks.values_below("kind", kind, len(mask_token))
    if rows is not None and rows.numel():
        if bool((rows.diff() < 0).any()):
            raise ValueError(f"keep's rows of shape {tuple(rows.shape)} must list one sample after the other")
        if (longest := int(rows.bincount().max())) > width - prefix:
            raise ValueError(f"keep has {longest} positions of one sample, tokens of shape {tuple(tokens.shape)} fewer")


def restored_shape(
    tokens: Tensor, position: Tensor, restore: Tensor | None, flat: bool, prefix: int
) -> tuple[int | torch.SymInt, ...]:
    """Shape of the result."""
    batch, _, dim = tokens.shape
    if restore is None:
        return batch, position.shape[0], dim
    return (restore.shape[0], dim) if flat else (batch, prefix + restore.shape[1], dim)


def first_slots(rows: Tensor, batch: int) -> Tensor:
    """Where each sample begins in flat rows that list one sample after the other."""
    return torch.searchsorted(rows.contiguous(), torch.arange(batch, device=rows.device))


def token_slots(keep: Tensor, rows: Tensor | None, batch: int, width: int, patches: int, prefix: int) -> Tensor:
    """`[batch, prefix + patches]`: the row of the flattened tokens that holds each position, -1 for a hidden one."""
    slots = keep.new_full((batch, prefix + patches + 1), -1)  # the last one takes the tokens that belong nowhere
    samples = torch.arange(batch, device=keep.device)
    slots[:, :prefix] = samples[:, None] * width + torch.arange(prefix, device=keep.device)
    if rows is None:
        rows, rank = samples[:, None], torch.arange(width - prefix, device=keep.device)
    else:
        rank = torch.arange(len(rows), device=keep.device) - first_slots(rows, batch)[rows]
    known = (keep >= 0) & (keep < patches) & (rank >= 0) & (rank < width - prefix)
    place = rows * slots.shape[1] + prefix + torch.where(known, keep, patches)
    # the last token of a position, whatever the order in which they are written
    slots.view(-1).scatter_reduce_(0, place.flatten(), (rows * width + prefix + rank).flatten(), "amax")
    return slots[:, :-1]


def wanted(restore: Tensor | None, restore_rows: Tensor | None, slots: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Of each row of the result: its position, prefix counted, and its token's slot."""
    batch, count = slots.shape
    every = torch.arange(count, device=slots.device).expand(batch, count)
    if restore is None:
        position = every
    elif restore_rows is None:
        position = torch.cat([every[:, :prefix], prefix + restore], dim=1)
    else:
        return restore, slots[restore_rows, restore]
    return position.flatten(), slots.gather(1, position).flatten()


def restore(
    tokens: Tensor,
    keep: Tensor,
    rows: Tensor | None,
    mask_token: Tensor,
    position: Tensor,
    kind: Tensor | None,
    restore: Tensor | None,
    restore_rows: Tensor | None,
    prefix: int,
) -> Tensor:
    """The PyTorch path: rows of mask token and position, the visible ones then written over."""
    batch, width, dim = tokens.shape
    patches = len(position) - prefix
    mask_token = mask_token.reshape(-1, dim)
    dtype = torch.promote_types(tokens.dtype, position.dtype)
    out = tokens.new_empty(restored_shape(tokens, position, restore, restore_rows is not None, prefix), dtype=dtype)
    flat, tokens = out.view(-1, dim), tokens.reshape(-1, dim)
    where, slot = wanted(restore, restore_rows, token_slots(keep, rows, batch, width, patches, prefix), prefix)
    hidden = position.to(dtype, copy=True)
    hidden[prefix:] += mask_token if kind is None else mask_token[kind]
    if restore is None:
        out.copy_(hidden)
    else:
        torch.index_select(hidden, 0, where, out=flat)
    (visible,) = (slot >= 0).nonzero(as_tuple=True)
    for piece in pieces(len(visible), dim):
        shown = visible[piece]
        kept = tokens.index_select(0, slot[shown]) + position.index_select(0, where[shown])
        flat.index_copy_(0, shown, kept)
    return out


def restore_backward(
    grad: Tensor,
    tokens: Tensor,
    keep: Tensor,
    rows: Tensor | None,
    mask_token: Tensor,
    position: Tensor,
    kind: Tensor | None,
    restore: Tensor | None,
    restore_rows: Tensor | None,
    prefix: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, mask_token and position; what is not needed stays empty."""
    d_tokens, d_mask, d_position = empty_gradients(tokens, mask_token, position, needs)
    batch, width, dim = tokens.shape
    slots = token_slots(keep, rows, batch, width, len(position) - prefix, prefix)
    where, slot = wanted(restore, restore_rows, slots, prefix)
    grad = grad.reshape(-1, dim)
    if needs[0]:
        (visible,) = (slot >= 0).nonzero(as_tuple=True)
        d_tokens.zero_()
        for piece in pieces(len(visible), dim):
            shown = visible[piece]
            d_tokens.view(-1, dim).index_copy_(0, slot[shown], grad.index_select(0, shown).to(tokens.dtype))
    if needs[1]:
        hidden = (slot < 0).to(grad.dtype)[None]
        if kind is not None:
            of_kind = torch.nn.functional.one_hot(kind[(where - prefix).clamp(min=0)], len(mask_token)).T
            hidden = hidden * of_kind
        d_mask.copy_((hidden @ grad).view_as(mask_token))
    if needs[2]:
        d_position.zero_().index_add_(0, where, grad.to(position.dtype))
    return d_tokens, d_mask, d_position


def empty_gradients(
    tokens: Tensor, mask_token: Tensor, position: Tensor, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten gradients of tokens, mask token and position; of no size where not needed."""
    like = (tokens, mask_token, position)
    first, second, third = (
        each.new_empty(each.shape if need else (0,)) for each, need in zip(like, needs, strict=True)
    )
    return first, second, third


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, prefix = inputs
    ctx.save_for_backward(*tensors)
    ctx.prefix = prefix


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = [ctx.needs_input_grad[place] for place in (0, 3, 4)]
    found = _backward_op(grad, *ctx.saved_tensors, ctx.prefix, needs)
    of_tokens, of_mask, of_position = (each if need else None for each, need in zip(found, needs, strict=True))
    return of_tokens, None, None, of_mask, of_position, None, None, None, None


_arguments = (
    "Tensor tokens, Tensor keep, Tensor? rows, Tensor mask_token, Tensor position, Tensor? kind, Tensor? restore, "
    "Tensor? restore_rows, int prefix"
)


def _fake(tokens: Tensor, keep: Any, rows: Any, mask_token: Any, position: Tensor, kind: Any, *rest: Any) -> Tensor:
    restore, restore_rows, prefix = rest
    shape = restored_shape(tokens, position, restore, restore_rows is not None, prefix)
    return tokens.new_empty(shape, dtype=torch.promote_types(tokens.dtype, position.dtype))


_op = op.define("restore_tokens", f"({_arguments}) -> Tensor", restore, TRITON, fake=_fake, check=check_values)
_backward_op = op.define(
    "restore_tokens_backward",
    f"(Tensor grad, {_arguments}, bool[] needs) -> (Tensor, Tensor, Tensor)",
    restore_backward,
    TRITON,
    fake=lambda grad, tokens, keep, rows, mask_token, position, *rest: empty_gradients(
        tokens, mask_token, position, rest[-1]
    ),
)
_op.register_autograd(_differentiate, setup_context=_save)
