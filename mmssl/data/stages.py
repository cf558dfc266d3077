"""Runs whose first steps read other samples than the rest, as BERT's read rows of 128 tokens before those of 512."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from mmssl.data.loader import Loader
from mmssl.data.source import Source
from mmssl.data.views import View
from mmssl.errors import UserError


@dataclass(frozen=True)
class Stage:
    """What the first `share` of a run's steps read, 0 to 1, in place of what the rest reads."""

    media: Source
    view: View
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UserError(f"The first stage of a run has a share of its steps between 0 and 1, not {self.share}.")


class StagedLoader:
    """The batches of `first` for the steps below `switch`, from there on those of `rest`: what the loop needs of a
    loader, and as the two a pure function of (seed, step).

    Both count from step 0, so that the epochs by which masks are drawn go on where rows become longer and fewer. An
    epoch has as many steps as one of `rest`. What the two skip is in one ledger; lines of texts that were skipped when
    both were opened are in it once. source: that of the last batch.
    """

    def __init__(self, first: Loader, rest: Loader, switch: int) -> None:
        if first.batch_size != rest.batch_size:
            raise ValueError(f"stages of one run have one batch size, not {first.batch_size} and {rest.batch_size}")
        self.first, self.rest, self.switch = first, rest, switch
        self.batch_size, self.steps_per_epoch, self.source = rest.batch_size, rest.steps_per_epoch, first.source
        self.ledger = rest.ledger = first.ledger

    def batches(self, start_step: int, stop_step: int) -> Iterator[dict[str, Tensor]]:
        """See `Loader.batches`."""
        before, behind = (start_step, min(stop_step, self.switch)), (max(start_step, self.switch), stop_step)
        for loader, (start, stop) in ((self.first, before), (self.rest, behind)):
            if start < stop:
                self.source = loader.source
                yield from loader.batches(start, stop)
