"""Compile every method; a program of its own, since the shape checks of the tests cannot be traced."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmssl.objectives import Objective
from mmssl.transformer import Transformer
from tests.conformance.table import TABLE, Entry

INDUCTORS = "MAE"
"""The method that is compiled to the end."""


def step(objective: Objective, model: nn.Module, *inputs: Any) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of `model`, which is `objective` or its compiled form."""
    objective.zero_grad()
    loss = model(*inputs).loss
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in objective.parameters() if parameter.grad is not None]


def assert_compiled_equals_eager(objective: Objective, compiled: nn.Module, *inputs: Any) -> None:
    (loss, gradients), (expected, exact) = (step(objective, model, *inputs) for model in (compiled, objective))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients, exact, rtol=1e-4, atol=1e-6)


def shallow(entry: Entry) -> Objective:
    """A method of one block a transformer: a second is traced as the first."""
    objective = entry.make()
    for part in objective.modules():
        if isinstance(part, Transformer):
            part.blocks = part.blocks[:1]
    return objective


def one_graph(entry: Entry) -> None:
    """A method's step in one graph, its mask drawn in it: the first graph break is an error."""
    objective, batch = shallow(entry), entry.batch(0)
    compiled = torch.compile(objective, backend="aot_eager_default_partitioner", fullgraph=True)
    assert_compiled_equals_eager(objective, compiled, batch)


def inductor(entry: Entry) -> None:
    """A method's step in one graph and in the code that Inductor writes for it, which g++ takes a second a kernel for.

    The decoder has no block: its code would be that of the encoder's at another size.
    """
    objective, batch = shallow(entry), entry.batch(0)
    objective.decoder.transformer.blocks = objective.decoder.transformer.blocks[:0]
    # in other processes its few files would wait for those to import torch
    compiled = torch.compile(objective, fullgraph=True, options={"compile_threads": 1})
    assert_compiled_equals_eager(objective, compiled, batch)


def outcome(check: Callable[[], None]) -> tuple[str, float]:
    """Why a check failed, if it did, and its seconds of a core."""
    torch._dynamo.reset()
    began, reason = time.process_time(), ""
    try:
        check()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
    return reason, time.process_time() - began


if __name__ == "__main__":
    gc.disable()  # tracing makes many small objects, and little waste
    torch.set_num_threads(1)
    checks = {entry.name: partial(inductor if entry.name == INDUCTORS else one_graph, entry) for entry in TABLE}
    print(json.dumps({name: outcome(check) for name, check in checks.items()}))
