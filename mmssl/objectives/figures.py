"""What a method shows of itself: pictures side by side, or tables of words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from mmssl.modality import Axis


@dataclass(frozen=True)
class Token:
    """A word in a table, by its id: the report writes it out where it finds the tokenizer. marked: it stands out."""

    id: int
    marked: bool = False


Palette = Literal["colours", "heat", "classes"]
"""How the values of pictures are shown: as they are, the first channel as heat, or whole numbers, each a colour."""

Cell = tuple[Token | str, ...]
"""What stands in one place of a table: words and plain texts."""


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as `head` has names; a cell is of words, plain texts, or both. special: whether tokens that
    are no words, such as [CLS], are written out, too."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    special: bool = True


@dataclass(frozen=True)
class Figure:
    """Something to look at, for the report: pictures, or a table of words, maybe with pictures.

    columns: the same samples in each, to be seen side by side (clips: one below the other): pictures [B, C, H, W] or
    clips [B, C, T, H, W] of values in 0-1, of any channels, NaN where there is nothing to see. palettes: of each column
    of pictures, where they are not all colours; "classes" holds class numbers. axes: what the pixels of pictures mean,
    to the right and upwards, where that is measured. table: its rows stand behind the pictures of one sample each,
    where there are any. Figures of one heading stand together.
    """

    name: str
    heading: str
    caption: str
    columns: tuple[Tensor, ...] = ()
    palettes: tuple[Palette, ...] = ()
    axes: tuple[Axis, Axis] | None = None
    table: Table | None = None
