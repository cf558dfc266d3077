"""A compiled run, in a process of its own: the shape checks of the tests cannot be traced."""

from tests.processes import printed

PLAIN_NAMES = """
import sys
from functools import partial
from pathlib import Path

import torch
from mmssl.training import checkpoints, train
from tests.training_toy import Toy, ToyLoader, settings

folder, cpu = Path(sys.argv[1]), torch.device("cpu")
torch.compile = partial(torch.compile, backend="aot_eager_default_partitioner")
for name in ("plain", "compiled"):
    train(Toy(), ToyLoader(), settings(steps=3, compile=name == "compiled"), folder / name, device=cpu)
plain, compiled = (checkpoints.load(folder / name / "step-00000003").state for name in ("plain", "compiled"))
for group in plain:
    torch.testing.assert_close(compiled[group], plain[group])
"""

# Which patches of which modality are hidden, and how many, is drawn anew in every epoch.
COUNTS = """
import torch
from torch._dynamo.utils import counters
from tests.conformance.compile_all import shallow
from tests.conformance.table import ENTRIES

entry = ENTRIES["MultiMAE"]
compiled, batch = torch.compile(shallow(entry), backend="eager"), entry.batch(0)
for epoch in range(6):
    out = compiled({**batch, "epoch": torch.full_like(batch["epoch"], epoch)})
    out.loss.backward()
    print(counters["stats"]["unique_graphs"], *(len(prediction) for prediction in out.predictions.values()))
"""


def test_a_compiled_run_saves_the_plain_names_and_values(tmp_path):
    printed(PLAIN_NAMES, tmp_path)


def test_other_counts_of_hidden_patches_are_not_compiled_anew():
    # the second step learns what may change
    _, second, *later = (line.split() for line in printed(COUNTS).splitlines())
    assert {graphs for graphs, *_ in later} == {second[0]}
    assert len({tuple(counts) for _, *counts in later}) == len(later)
