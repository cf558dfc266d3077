"""`restore_tokens` in Triton: every row of the result is written once, every row of its gradient read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmssl_kernels.frame.launch import choose, launch
from mmssl_kernels.masked_patch.restore import empty_gradients, first_slots, restored_shape
from mmssl_kernels.masked_patch.slots_triton import position_sums, slot_map


@triton.jit
def restore_kernel(
    tokens, slots, mask_token, kind, position, restore, restore_rows, out, total, N, R, prefix, width, kinds, B, D,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """BLOCK_R rows of the result: the token in a position's slot, or its mask token; plus the position."""
    r = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    valid = r < total
    if restore_rows is not None:
        b = tl.load(restore_rows + r, mask=valid, other=0)
        b = tl.minimum(tl.maximum(b, 0), B - 1)
        n = tl.load(restore + r, mask=valid, other=0)
        listed = valid
    else:
        b = r // (prefix + R)
        n = r % (prefix + R) - prefix
        listed = valid & (n >= 0)
        if restore is not None:
            n = tl.where(listed, tl.load(restore + b * R + n, mask=listed, other=0), n)
    n = tl.minimum(n, N - 1)
    n = tl.where(listed, tl.maximum(n, 0), n)
    slot = tl.load(slots + b * N + n, mask=listed, other=-1).to(tl.int64)
    slot = tl.where(listed, slot, b * width + prefix + n)
    both = valid[:, None] & (d < D)[None, :]
    kept = (slot >= 0)[:, None]
    x = tl.load(tokens + slot[:, None] * D + d[None, :], mask=both & kept, other=0.0).to(tl.float32)
    if kind is None:
        filler = tl.load(mask_token + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    else:
        m = tl.load(kind + n, mask=listed, other=0)
        m = tl.minimum(tl.maximum(m, 0), kinds - 1)
        filler = tl.load(mask_token + m[:, None] * D + d[None, :], mask=both & ~kept, other=0.0).to(tl.float32)
    x = tl.where(kept, x, filler)
    x += tl.load(position + (prefix + n)[:, None] * D + d[None, :], mask=both, other=0.0).to(tl.float32)
    tl.store(out + r[:, None] * D + d[None, :], x.to(out.dtype.element_ty), mask=both)


def keep_slots(keep: Tensor, rows: Tensor | None, batch: int, width: int, patches: int, prefix: int) -> Tensor:
    """The slot map of the patches' tokens; ragged samples begin a row of tokens each."""
    starts = None if rows is None else first_slots(rows, batch)
    return slot_map(keep, rows, batch, patches, prefix=prefix, width=width, starts=starts)


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
    """A slot map, then one launch."""
    batch, width, dim = tokens.shape
    patches, mask_tokens = len(position) - prefix, mask_token.numel() // dim
    dtype = torch.promote_types(tokens.dtype, position.dtype)
    out = tokens.new_empty(restored_shape(tokens, position, restore, restore_rows is not None, prefix), dtype=dtype)
    total = out.numel() // dim
    config = choose("restore", tokens.device, dim)
    launch(
        restore_kernel,
        (triton.cdiv(total, config.blocks["BLOCK_R"]), triton.cdiv(dim, config.blocks["BLOCK_D"])),
        config,
        tokens=tokens.contiguous(),
        slots=keep_slots(keep, rows, batch, width, patches, prefix),
        mask_token=mask_token.contiguous(),
        kind=kind if kind is None else kind.contiguous(),
        position=position.contiguous(),
        restore=restore if restore is None else restore.contiguous(),
        restore_rows=restore_rows if restore_rows is None else restore_rows.contiguous(),
        out=out,
        total=total,
        N=patches,
        R=patches if restore is None else restore.shape[-1],
        prefix=prefix,
        width=width,
        kinds=mask_tokens,
        B=batch,
        D=dim,
    )
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
    """One pass over the gradient hands the visible rows to the tokens and sums the others by position."""
    d_tokens, d_mask, d_position = empty_gradients(tokens, mask_token, position, needs)
    batch, width, dim = tokens.shape
    patches = len(position) - prefix
    places = None
    if restore is not None:
        spread = None if restore_rows is not None else prefix + restore.shape[1]
        places = slot_map(restore, restore_rows, batch, patches, prefix=prefix, width=spread)
    if needs[0]:
        d_tokens.zero_()  # some tokens may belong to no position
    sums, hidden = position_sums(
        grad.reshape(-1, dim).contiguous(),
        batch,
        patches,
        places=places,
        slots=keep_slots(keep, rows, batch, width, patches, prefix) if needs[0] or needs[1] else None,
        d_tokens=d_tokens if needs[0] else None,
        prefix=prefix,
        restored=patches if restore is None else restore.shape[-1],
        width=width,
    )
    if needs[2]:
        d_position.copy_(sums)
    if needs[1]:
        hidden = hidden[prefix:]
        if kind is None:
            d_mask.copy_(hidden.sum(0))
        else:
            for number, row in enumerate(d_mask):
                row.copy_((hidden * (kind == number)[:, None]).sum(0))
    return d_tokens, d_mask, d_position
