"""Mask: which positions the encoder sees, and which positions are to be predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Positions:
    """Some positions of every sample's grid, ascending within a sample.

    Rectangular: `index` is `[B, K]`. Ragged: `index` is flat, `[S]`, the samples one after the other, and `lengths`
    `[B]` says how many belong to each; it stays flat down to the kernels.
    """

    index: Int64[Tensor, "*kept"]
    lengths: Int64[Tensor, " batch"] | None = None

    @classmethod
    def from_boolean(cls, chosen: Bool[Tensor, "batch positions"]) -> Positions:
        """The positions where `chosen` holds; ragged, even where every sample has the same number."""
        return cls(chosen.nonzero()[:, 1], chosen.sum(dim=1))

    @property
    def batch(self) -> int:
        return len(self.index if self.lengths is None else self.lengths)

    @property
    def rows(self) -> Int64[Tensor, " flat"] | None:
        """The sample of each flat position; None where the index is rectangular and says so by its shape."""
        if self.lengths is None:
            return None
        samples = torch.arange(len(self.lengths), device=self.index.device)
        return samples.repeat_interleave(self.lengths, output_size=len(self.index))

    def ascend(self) -> bool:
        """Whether each sample's positions ascend, none twice; reads the values."""
        rises = self.index.diff(dim=-1) > 0
        if (rows := self.rows) is not None:
            rises |= rows.diff() > 0  # a new sample starts anew
        return bool(rises.all())

    @property
    def samples(self) -> Int64[Tensor, ""]:
        """How many samples have any of these positions, of ragged ones."""
        assert self.lengths is not None
        return self.lengths.count_nonzero()

    @property
    def shares(self) -> Float[Tensor, " flat"]:
        """Of each flat position one over its sample's number of them: in a mean over positions that these weigh, each
        sample counts as much."""
        assert self.lengths is not None
        return self.lengths.clamp(min=1).float().reciprocal()[self.rows]

    def flat(self) -> Positions:
        """The same positions in the ragged form."""
        if self.lengths is not None:
            return self
        lengths = torch.full((len(self.index),), self.index.shape[1], device=self.index.device)
        return Positions(self.index.flatten(), lengths)

    def rectangular(self) -> Positions:
        """The same positions in the rectangular form, where each sample has as many, and any; reads the lengths."""
        if self.lengths is None:
            return self
        fewest, most = (int(each) for each in self.lengths.aminmax())
        return Positions(self.index.view(-1, most)) if 0 < fewest == most else self

    def padded(self, values: Float[Tensor, "flat dim"]) -> Float[Tensor, "batch longest dim"]:
        """Values of flat (ragged) positions as one row a sample, zeros behind the shorter ones."""
        flat = self.flat()
        rows, lengths = flat.rows, flat.lengths
        assert rows is not None and lengths is not None
        column = torch.arange(len(rows), device=rows.device) - (lengths.cumsum(0) - lengths)[rows]
        longest = int(lengths.max()) if self.lengths is not None else self.index.shape[1]
        return values.new_zeros(flat.batch, longest, values.shape[-1]).index_put((rows, column), values)

    def boolean(self, count: int) -> Bool[Tensor, "batch {count}"]:
        """True at these positions of a grid of `count`."""
        flat = self.flat()
        chosen = torch.zeros(self.batch, count, dtype=torch.bool, device=self.index.device)
        chosen[flat.rows, flat.index] = True
        return chosen

    def within(self, start: int, stop: int) -> tuple[Positions, Int64[Tensor, " flat"]]:
        """The part that lies in `[start, stop)`, counted from `start`, and where in the flat order it stood."""
        flat = self.flat()
        rows = flat.rows
        assert rows is not None
        slots = ((flat.index >= start) & (flat.index < stop)).nonzero()[:, 0]
        lengths = torch.bincount(rows[slots], minlength=self.batch)
        return Positions(flat.index[slots] - start, lengths), slots

    def to(self, device: torch.device | str) -> Positions:
        return Positions(self.index.to(device), None if self.lengths is None else self.lengths.to(device))


@dataclass(frozen=True)
class Mask:
    """What is kept and what is hidden.

    keep: the positions the encoder reads. targets: one or several sets to predict; they need not complement `keep`.
    sizes: positions of each modality's grid; several modalities share one concatenated grid, in this order.

    Raises ValueError where a position lies outside the grid, comes twice or out of order (values are checked on the CPU
    only).
    """

    keep: Positions
    targets: tuple[Positions, ...]
    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        for name, positions in (("keep", self.keep), *(("hide", target) for target in self.targets)):
            index = positions.index
            # reading values would break a compiled graph, and on a GPU wait for it
            if torch.compiler.is_compiling() or index.device.type != "cpu" or not index.numel():
                continue
            low, high = int(index.min()), int(index.max())
            if low < 0 or high >= self.count:
                raise ValueError(f"mask.{name} holds positions {low} to {high}, but the grid has {self.count}")
            if not positions.ascend():
                raise ValueError(f"mask.{name} of shape {tuple(index.shape)} does not ascend within each sample")

    @classmethod
    def from_batch(cls, batch: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Mask | None:
        """The mask that a batch carries, as `carried` has put it there; None where it has none."""
        if "mask.keep" not in batch:
            return None
        keep, hide = (Positions.from_boolean(batch[f"mask.{name}"]).rectangular() for name in ("keep", "hide"))
        return cls(keep, (hide,), sizes)

    @property
    def carried(self) -> dict[str, Tensor]:
        """`mask.keep` and `mask.hide` `[B, positions]`, bool: a batch that carries them can be split by samples."""
        return {"mask.keep": self.keep.boolean(self.count), "mask.hide": self.hide.boolean(self.count)}

    @property
    def count(self) -> int:
        """Positions of the whole (concatenated) grid."""
        return sum(self.sizes.values())

    @property
    def hide(self) -> Positions:
        """The hidden positions, where there is one set of them."""
        if len(self.targets) != 1:
            raise ValueError(f"this mask has {len(self.targets)} sets of targets; read mask.targets")
        return self.targets[0]

    def span(self, modality: str) -> tuple[int, int]:
        """Where `modality` lies in the concatenated grid: first position and the one after the last."""
        names = list(self.sizes)
        start = sum(self.sizes[name] for name in names[: names.index(modality)])
        return start, start + self.sizes[modality]

    def hidden(self, modality: str) -> tuple[Positions, Int64[Tensor, " flat"]]:
        """What is hidden of `modality`, within its own grid, and where in the flat order of `hide` it stands."""
        return self.hide.within(*self.span(modality))

    def to(self, device: torch.device | str) -> Mask:
        return Mask(self.keep.to(device), tuple(target.to(device) for target in self.targets), self.sizes)
