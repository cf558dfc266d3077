"""Pictures whose sides are measured, such as spectrograms, with their scales beside them, as PNG bytes.

Texts are of a grey that is read on a light page and on a dark one; the ground is transparent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mmssl.modality import Axis
from mmssl.report.curves import ticks
from mmssl.report.pictures import heat, png

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

_WIDEST = 940
_TALL, _LOW = 256, 128  # pictures beside each other, and below each other
_GAP, _LEFT, _BELOW, _ABOVE, _TICK = 8, 40, 22, 20, 4
_BASELINE = 15
_INK = (125, 135, 150, 255)
_TEXT = 12


def with_axes(columns: Sequence[Float[Tensor, "pictures 1 height width"]], axes: tuple[Axis, Axis]) -> bytes:
    """The pictures of one sample, one from each column, beside each other, or below each other where they are wide.

    Samples are numbered from 1. Values are 0-1 and drawn as heat; NaN is grey. axes: of the width, to the right, and of
    the height, upwards.
    """
    from PIL import Image, ImageDraw, ImageFont

    count, _, height, width = columns[0].shape
    enlarged = max(1, round(_TALL / height))
    beside = _LEFT + len(columns) * (enlarged * width + _GAP) <= _WIDEST
    if not beside:
        enlarged = max(1, round(_LOW / height))
    size = enlarged * width, enlarged * height
    columns_of_one, lines_of_one = (len(columns), 1) if beside else (1, len(columns))
    group = _LEFT + columns_of_one * (size[0] + _GAP), _ABOVE + lines_of_one * (size[1] + _GAP) + _BELOW
    across = min(count, 2, max(1, _WIDEST // group[0]))
    canvas = Image.new("RGBA", (across * group[0], -(-count // across) * group[1]))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT)
    for number in range(count):
        left, top = number % across * group[0] + _LEFT, number // across * group[1] + _ABOVE
        draw.text((left, top - 6), f"{number + 1}", _INK, font, "ls")
        for place, column in enumerate(columns):
            x, y = (left + place * (size[0] + _GAP), top) if beside else (left, top + place * (size[1] + _GAP))
            tile = (heat(column[number : number + 1])[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
            canvas.paste(Image.fromarray(tile.numpy()).resize(size, Image.Resampling.NEAREST), (x, y))
            if place == 0 or not beside:
                _up(draw, font, axes[1], x, y + size[1], size[1])
            if place == len(columns) - 1 or beside:
                _right(draw, font, axes[0], x, y + size[1], size[0])
        bottom = top + lines_of_one * (size[1] + _GAP) - _GAP
        draw.text((left - _TICK - 3, bottom + _BASELINE), axes[1].unit, _INK, font, "rs")
    return png(canvas)


def _up(draw: ImageDraw, font: FreeTypeFont | ImageFont, axis: Axis, left: int, bottom: int, length: int) -> None:
    """The scale on the left of a picture; texts that would touch the one below are left out."""
    free = float(bottom)
    for share, text in _places(axis):
        y = bottom - share * length
        draw.line((left - _TICK, y, left - 1, y), _INK)
        if y + _TEXT / 2 <= free:
            draw.text((left - _TICK - 3, y), text, _INK, font, "rm")
            free = y - _TEXT / 2


def _right(draw: ImageDraw, font: FreeTypeFont | ImageFont, axis: Axis, left: int, bottom: int, length: int) -> None:
    """The scale below a picture, its unit behind the last text; texts that would touch the one before are left out."""
    unit = draw.textlength(f" {axis.unit}", font)
    free = end = float(left)
    for share, text in _places(axis):
        x, half = left + share * length, draw.textlength(text, font) / 2
        draw.line((x, bottom, x, bottom + _TICK - 1), _INK)
        if x - half >= free - 1 and x + half + unit <= left + length + _GAP:
            draw.text((x, bottom + _BASELINE), text, _INK, font, "ms")
            end, free = x + half, x + half + _TEXT / 2
    draw.text((end, bottom + _BASELINE), f" {axis.unit}", _INK, font, "ls")


def _places(axis: Axis) -> Iterator[tuple[float, str]]:
    """The marks' places, as shares of the side's length, and what is written there."""
    edges = axis.edges
    marks = [(mark, _short(mark)) for mark in axis.marks] or ticks(edges[0], edges[-1])
    for mark, text in marks:
        yield float(np.interp(mark, edges, np.arange(len(edges)))) / (len(edges) - 1), text


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"
