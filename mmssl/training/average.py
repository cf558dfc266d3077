"""A moving average of the weights: it follows them from step to step, and is what a run leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """values[name] = decay * values[name] + (1 - decay) * parameter after each step, starting at the first weights.

    Of the parameters that learn; frozen ones, teachers and buffers are the module's own. There is no warm-up of the
    decay, as in timm (`--model-ema`), whose scripts judge and load the average where there is one: so do ours.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.values = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._follow = get_ema_multi_avg_fn(decay)

    def follow(self) -> None:
        """Move a step towards the weights."""
        self._follow(list(self.values.values()), list(self._parameters.values()), None)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Take the values of a checkpoint."""
        for name, value in self.values.items():
            value.copy_(values[name])

    def settle(self) -> None:
        """Leave the average in the module, for good."""
        self._put(self.values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the average meanwhile, and its own weights again afterwards."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self.settle()
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
