"""Masks over one modality's grid. Each strategy takes counts, so that a method rounds as its authors do."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor

from mmssl.errors import UserError
from mmssl.masking.mask import Mask, Positions


def lowest(
    noise: Shaped[Tensor, "batch positions"], count: int
) -> tuple[Int64[Tensor, "batch {count}"], Int64[Tensor, "batch rest"]]:
    """The `count` positions of lowest noise of each sample and the others, both ascending."""
    order = noise.argsort(dim=1, stable=True)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def visible_count(count: int, mask_ratio: float) -> int:
    """int(count * (1 - mask_ratio)), as MAE's authors round; UserError where that hides nothing or everything."""
    keep = int(count * (1 - mask_ratio)) if 0 <= mask_ratio <= 1 else 0
    _check_kept(keep, count)
    return keep


def _check_kept(keep: int, count: int) -> None:
    if not 0 < keep < count:
        raise UserError(
            f"keeping {keep} of {count} patches hides {'nothing' if keep >= count else 'everything'}: "
            f"choose a mask ratio that keeps between 1 and {count - 1}"
        )


def random_mask(noise: Shaped[Tensor, "batch positions"], keep: int, sizes: Mapping[str, int]) -> Mask:
    """MAE's mask: keep the `keep` positions of lowest noise, hide the rest (arXiv 2111.06377, section 3).

    Raises UserError where nothing or everything would be hidden.
    """
    _check_kept(keep, noise.shape[1])
    kept, hidden = lowest(noise, keep)
    return Mask(Positions(kept), (Positions(hidden),), sizes)


def axes_mask(
    noise: tuple[Shaped[Tensor, "batch rows"], Shaped[Tensor, "batch columns"]],
    keep: tuple[int, int],
    sizes: Mapping[str, int],
) -> Mask:
    """Whole rows and whole columns of a grid are hidden, as SpecAugment hides times and frequencies (Audio-MAE, arXiv
    2207.06405, section 3.2): `keep` of each, those of lowest noise, are left, and what lies in both is kept.

    Raises UserError where nothing or everything would be hidden.
    """
    rows, columns = (axis.shape[1] for axis in noise)
    _check_kept(math.prod(keep), rows * columns)
    down, across = (lowest(axis, count)[0] for axis, count in zip(noise, keep, strict=True))
    kept = (down[:, :, None] * columns + across[:, None, :]).flatten(1)
    hidden = torch.ones(len(kept), rows * columns, dtype=torch.bool, device=kept.device).scatter(1, kept, False)
    return Mask(Positions(kept), (Positions(hidden.nonzero()[:, 1].view(len(kept), -1)),), sizes)


def tube_mask(
    noise: Shaped[Tensor, "batch places"], keep: int, grid: tuple[int, int, int], sizes: Mapping[str, int]
) -> Mask:
    """VideoMAE's mask: one random mask of the places of a frame, repeated in all time slices (arXiv 2203.12602)."""
    time, height, width = grid
    if noise.shape[1] != height * width:
        raise ValueError(f"tube noise of shape {tuple(noise.shape)} against the grid {grid}: one value a place")
    flat = random_mask(noise, keep, {"frame": height * width})
    start = torch.arange(time, device=noise.device)[:, None] * (height * width)
    kept, hidden = ((start + part.index[:, None]).flatten(1) for part in (flat.keep, flat.hide))
    return Mask(Positions(kept), (Positions(hidden),), sizes)


def block(
    top: Int64[Tensor, " batch"], left: Int64[Tensor, " batch"], size: tuple[int, int], grid: tuple[int, int]
) -> Bool[Tensor, "batch positions"]:
    """One rectangle of `size` (rows, columns) a sample, as a boolean grid (BEiT, I-JEPA)."""
    rows, columns = (torch.arange(n, device=top.device) for n in grid)
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + size[0])
    in_columns = (columns >= left[:, None]) & (columns < left[:, None] + size[1])
    return (in_rows[:, :, None] & in_columns[:, None, :]).flatten(1)
