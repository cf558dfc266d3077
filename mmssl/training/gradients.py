"""The gradients of a step whose batch may be split into chunks, among ranks, or both.

A loss that is a mean over samples is that of its chunks, one after the other. In a mean over other things, such as
hidden words, each chunk counts as much as it has of them (see `Objective.counts`). A loss over the whole batch, such as
CLIP's, needs the features of all chunks at once, but not their graphs: first come all features without a graph, then
one loss of them, then each chunk again with its share of the features' gradient (GradCache, Gao et al. 2021, arXiv
2101.06983, algorithm 1; BASIC, Pham et al. 2021, arXiv 2111.10050). That costs a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmssl.heads import GlobalBatchNorm
from mmssl.objectives.objective import Objective
from mmssl.training import distributed
from mmssl.training.resume import Batch
from mmssl.training.stopping import StopRequest

OnChunk = Callable[[int, int], None]
"""Hears how many passes of all are done."""


class Gradients:
    """Of the loss of a batch in `chunks` equal chunks, by an objective that is on `device`.

    low_precision: what forward passes are autocast to, if to anything. compile: they are compiled.
    """

    def __init__(
        self,
        objective: Objective,
        chunks: int,
        device: torch.device,
        low_precision: torch.dtype | None = None,
        compile: bool = False,
    ) -> None:
        self.objective, self.chunks, self.device = objective, chunks, device
        self.autocast = torch.autocast(device.type, low_precision, enabled=low_precision is not None)
        self.by_features = objective.compares_samples and chunks > 1
        if self.by_features:
            self.features = torch.compile(objective.features) if compile else objective.features
            distributed.as_on_first_rank(objective.parameters())
            return
        self.model: nn.Module = torch.compile(objective) if compile else objective  # type: ignore[assignment]
        if distributed.world_size() > 1:
            devices = [device] if device.type == "cuda" else None
            self.model = DistributedDataParallel(self.model, device_ids=devices)

    def __call__(
        self, batch: Batch, stop: StopRequest, on_chunk: OnChunk | None = None
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Leave them, averaged over ranks, in the parameters, which have none yet; the loss and its parts, detached.

        Loss and parts are this rank's. None where a stop was asked for between two chunks; then the gradients are worth
        nothing, and buffers, such as statistics that forward passes move, are as before.
        """
        size = len(batch["sample_id"])
        bounds = [chunk * size // self.chunks for chunk in range(self.chunks + 1)]
        batch = self._counted(batch)
        shares = [
            {name: value[start:end] if value.shape[:1] == (size,) else value for name, value in batch.items()}
            for start, end in pairwise(bounds)
        ]
        before = self._buffers() if self.chunks > 1 else []
        made = (self._of_features if self.by_features else self._of_chunks)(shares, stop, on_chunk)
        if made is None:
            self._put(before)
        return made

    @torch.no_grad()
    def _counted(self, batch: Batch) -> Batch:
        """The batch with what is drawn for it, and what the objective counts, for an average chunk of all ranks; itself
        where there is but one."""
        if self.chunks * distributed.world_size() == 1:
            return batch
        batch = {**self.objective.drawn(batch)}
        if not (found := self.objective.counts(batch)):
            return batch
        means = distributed.mean(torch.stack(list(found.values())).float()) / self.chunks
        return batch | dict(zip(found, means, strict=True))

    def _of_chunks(
        self, shares: list[Batch], stop: StopRequest, on_chunk: OnChunk | None
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        losses: list[Tensor] = []
        parts: list[dict[str, Tensor]] = []
        for chunk, share in enumerate(shares):
            if chunk > 0 and self._stopped(stop, chunk, len(shares), on_chunk):
                return None
            waits = isinstance(self.model, DistributedDataParallel) and chunk < len(shares) - 1
            with cast(DistributedDataParallel, self.model).no_sync() if waits else nullcontext():
                with self.autocast:
                    out = self.model(share)
                (out.loss / len(shares)).backward()
            losses.append(out.loss.detach().float())
            parts.append({name: value.detach().float() for name, value in out.parts.items()})
        means = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        return torch.stack(losses).mean(), means

    def _of_features(
        self, shares: list[Batch], stop: StopRequest, on_chunk: OnChunk | None
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        distributed.as_on_first_rank(self.objective.buffers())  # as DistributedDataParallel does before a forward pass
        first = self._buffers()
        states, found = [], []
        for chunk, share in enumerate(shares):
            if chunk > 0 and self._stopped(stop, chunk, 2 * len(shares), on_chunk):
                return None
            states.append(self._random_state())
            with torch.no_grad(), self.autocast:
                found.append(self.features(share))
        leaves = {name: torch.cat([each[name] for each in found]).requires_grad_() for name in found[0]}
        with self.autocast:
            out = self.objective.compare(leaves)
        out.loss.backward()
        last = self._buffers()

        self._put(first)  # a second pass is the first one again, whatever its batch norms counted
        start = 0
        for chunk, (share, state) in enumerate(zip(shares, states, strict=True), len(shares)):
            if self._stopped(stop, chunk, 2 * len(shares), on_chunk):
                return None
            self._put_random_state(state)
            with self.autocast:
                features = self.features(share)
            end = start + len(share["sample_id"])
            slopes = {name: leaf.grad[start:end] for name, leaf in leaves.items() if leaf.grad is not None}
            learnt = [name for name in slopes if features[name].requires_grad]
            torch.autograd.backward([features[name] for name in learnt], [slopes[name] for name in learnt])
            start = end
        self._put(last)
        distributed.average_gradients(self.objective)
        return out.loss.detach().float(), {name: value.detach().float() for name, value in out.parts.items()}

    def _stopped(self, stop: StopRequest, done: int, passes: int, on_chunk: OnChunk | None) -> bool:
        if on_chunk:
            on_chunk(done, passes)
        return stop.anywhere(self.device)

    def _buffers(self) -> list[Tensor]:
        return [buffer.clone() for buffer in self.objective.buffers()]

    def _put(self, buffers: Sequence[Tensor]) -> None:
        for buffer, value in zip(self.objective.buffers(), buffers, strict=True):
            buffer.copy_(value)

    def _random_state(self) -> Any:
        return torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None

    def _put_random_state(self, state: Any) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], self.device)


def chunked_norms(objective: Objective, chunk: int, chunks: int) -> list[str]:
    """A sentence where batch norms will see chunks instead of the batch; else none."""
    if chunks == 1 or not any(isinstance(part, GlobalBatchNorm) for part in objective.modules()):
        return []
    return [
        f"batch norms normalise each chunk of {chunk} samples a process by itself, so {chunks} chunks are not quite "
        "one batch: raise --at-once to hold more at once"
    ]
