"""What one call of attention asks for, in numbers and flags: all that the choice of who computes it depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Window:
    """Local attention: windows of a grid of row-major tokens, which `shift` moves as `torch.roll(x, -shift)` would.

    What the roll brings together from opposite sides of the grid does not see each other (Swin, arXiv 2103.14030,
    section 3.2). All are (rows, columns). Every other block of Audio-MAE's decoder: `Window((64, 8), (4, 4), (2, 0))`.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if not len(self.grid) == len(self.size) == len(self.shift) == 2:
            raise ValueError(f"grid {self.grid}, size {self.size} and shift {self.shift} are pairs: (rows, columns)")
        for grid, size, shift in zip(self.grid, self.size, self.shift):
            if grid < 1 or size < 1 or grid % size or not 0 <= shift < size:
                raise ValueError(
                    f"windows of {self.size} tokens shifted by {self.shift} do not tile a grid of {self.grid}: a size "
                    "divides the grid and a shift is smaller than it"
                )

    @property
    def tokens(self) -> int:
        """Of one window."""
        return self.size[0] * self.size[1]

    @property
    def count(self) -> int:
        """Windows of a grid."""
        return self.grid[0] * self.grid[1] // self.tokens

    def numbers(self) -> list[int]:
        """As a registered op takes them."""
        return [*self.grid, *self.size, *self.shift]


def window_of(numbers: list[int]) -> Window | None:
    """The inverse of `Window.numbers`; an empty list is no window."""
    if not numbers:
        return None
    return Window((numbers[0], numbers[1]), (numbers[2], numbers[3]), (numbers[4], numbers[5]))


@dataclass(frozen=True)
class Problem:
    """family: "cpu", that of a GPU, "older" (one before sm_80) or "other" (neither). queries, keys: of one sequence (a
    window is one), the longest where they vary.

    triton: whether the kernels can run, `forced` where nothing else may. gradient: of any input. exact_bias: its
    dtype is not the queries'. positive: the scale is.
    """

    family: str
    dtype: torch.dtype
    queries: int
    keys: int
    head_dim: int
    causal: bool = False
    padding: bool = False
    packed: bool = False
    windowed: bool = False
    bias: bool = False
    bias_gradient: bool = False
    exact_bias: bool = False
    positive: bool = True
    gradient: bool = True
    deterministic: bool = False
    triton: bool = True
    forced: bool = False

    @property
    def longest(self) -> int:
        return max(self.queries, self.keys)

    @property
    def half(self) -> bool:
        return self.dtype in (torch.float16, torch.bfloat16)
