"""Position tables: sin-cos in the layouts of the papers, and learned ones; both follow the grid of the input."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Layout = Literal["sincos", "sincos_row_first", "sincos_swapped", "sincos_interleaved", "learned"]
Resize = Literal["bicubic", "bilinear"]


def _sincos_axis(positions: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n {dim}"]:
    omega = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float64, device="cpu") / (dim // 2))
    angles = positions[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], dim=1)


@lru_cache(maxsize=64)
def sincos_table(grid: tuple[int, ...], dim: int, layout: Layout = "sincos") -> Float[Tensor, "patches {dim}"]:
    """The fixed table of `grid`, `[prod(grid), dim]` float32 on the CPU, shared by all callers.

    "sincos": one block `[sin, cos]` an axis, the LAST axis first (MAE, Audio-MAE, SiamMAE, I-JEPA: columns, then rows).
    "sincos_row_first": the same, the first axis first (MultiMAE, MoCo v3; V-JEPA's with three axes). With three axes
    each block takes ceil(dim / 6) * 2 channels and the whole is cut to dim.
    "sincos_swapped": "sincos" of the grid with its axes exchanged, read off in the order of the tokens as they are:
    every code is unique, but not at its place (Audio-MAE's authors build a table for 8 x 64 patches and have 64 x 8).
    "sincos_interleaved": the Transformer's table over the flattened index, sin and cos alternating (VideoMAE).
    """
    if layout == "sincos_interleaved":
        index = torch.arange(math.prod(grid), dtype=torch.float64, device="cpu")
        table = _sincos_axis(index, dim).unflatten(1, (2, -1)).transpose(1, 2).flatten(1)
        return table.float()
    if layout == "sincos_swapped":
        return sincos_table(grid[::-1], dim)
    width = -(-dim // (2 * len(grid))) * 2
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64, device="cpu") for n in grid), indexing="ij")
    blocks = [_sincos_axis(axis.flatten(), width) for axis in axes]
    if layout == "sincos":
        blocks.reverse()
    return torch.cat(blocks, dim=1)[:, :dim].float()


class Position(nn.Module):
    """A table of positions for a base grid, given for any other grid on request.

    A table that learns, or that weights were trained against (`trained`), is interpolated: bicubic over the last two
    axes (MAE's `interpolate_pos_embed`, transformers' `interpolate_pos_encoding`), or as `resize` says, as MultiMAE's
    authors do theirs of label maps and decoders; linear over time before them. There
    a shorter grid takes the first rows instead, as shorter texts do: another resolution shows the same scene, but fewer
    frames a part of it. A fixed sin-cos table that nothing was trained against yet is computed anew for another grid.
    recompute decides it whatever was trained: True for models that see many grids in training, or whose grid nobody
    knows. VideoMAE's fixed table is no parameter and in no checkpoint.
    """

    table: Tensor

    def __init__(
        self,
        grid: tuple[int, ...],
        dim: int,
        layout: Layout = "sincos",
        trainable: bool | None = None,
        recompute: bool | None = None,
        resize: Resize = "bicubic",
    ):
        super().__init__()
        self.grid, self.dim, self.layout, self.resize = grid, dim, layout, resize
        self.trainable = layout == "learned" if trainable is None else trainable
        if recompute and (self.trainable or layout == "learned"):
            raise ValueError(f"a table that learns cannot be computed anew: layout {layout!r}, recompute=True")
        self.recompute, self.trained = recompute, False
        if layout == "learned":
            table = nn.init.trunc_normal_(torch.empty(math.prod(grid), dim), std=0.02)
        else:
            table = sincos_table(grid, dim, layout).to(torch.get_default_device(), copy=True)
        if layout == "sincos_interleaved" and not self.trainable:
            self.register_buffer("table", table, persistent=False)
        else:
            self.table = nn.Parameter(table, requires_grad=self.trainable)

    def forward(self, grid: tuple[int, ...]) -> Float[Tensor, "patches dim"]:
        if grid == self.grid:
            return self.table
        if len(grid) != len(self.grid):
            raise ValueError(f"a position table for the grid {self.grid} cannot follow the grid {grid}")
        settled = self.trained or self.trainable or self.layout == "learned"
        recompute = not settled if self.recompute is None else self.recompute
        return sincos_table(grid, self.dim, self.layout).to(self.table) if recompute else self._interpolated(grid)

    def _interpolated(self, grid: tuple[int, ...]) -> Float[Tensor, "patches dim"]:
        base = self.grid
        if self.layout == "sincos_swapped":  # on the grid that its codes were made for
            base, grid = base[::-1], grid[::-1]
        table = self.table.T.unflatten(1, base)
        if len(grid) > 1:
            planes = F.interpolate(table.flatten(0, -3)[None], grid[-2:], mode=self.resize, align_corners=False)[0]
            table = planes.unflatten(0, table.shape[:-2])
        for axis, count in enumerate(grid[:-2] if len(grid) > 1 else grid, start=1):
            lines = table.movedim(axis, -1)[..., :count]
            if lines.shape[-1] < count:
                longer = F.interpolate(lines.flatten(0, -2)[None], count, mode="linear", align_corners=False)[0]
                lines = longer.unflatten(0, lines.shape[:-1])
            table = lines.movedim(-1, axis)
        return table.flatten(1).T


def mark_trained(module: nn.Module) -> None:
    """Every table in `module` was trained against: from now on other grids get it interpolated."""
    for part in module.modules():
        if isinstance(part, Position):
            part.trained = True
