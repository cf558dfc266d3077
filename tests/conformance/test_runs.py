"""What the loop promises, for every method: chunks, ranks, kills, and what a run leaves behind."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmssl.encoder import Encoder
from mmssl.evaluation import extract
from mmssl.report.run import PICTURES, write_report
from mmssl.training import checkpoints, read_metrics
from tests.conformance.runs import SAVED, STEPS, TwoBatches, prepare, train_entry
from tests.conformance.table import ENTRIES, TABLE, Entry
from tests.training_toy import job, run_ranks, strip

# Sums over chunks and ranks go in another order, which moves a float32 sum by a few units of 2**-24. AdamW divides by
# the size of a gradient, so where this is next to nothing the difference grows to a step of the rate: over the steps a
# loss inherits a share of it.
CLOSE = 1e-4
CHECKPOINT = f"step-{STEPS:08d}"


def assert_trained_alike(one: Path, other: Path) -> None:
    """The first step, whose weights are the same, within 1e-5; those behind it within `CLOSE`."""
    rows, expected = read_metrics(one), read_metrics(other)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    for name in ("loss", "grad_norm"):
        assert rows[0][name] == pytest.approx(expected[0][name], rel=1e-5)
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected], rel=CLOSE)


def test_chunks_train_as_the_whole_batch_does(entry: Entry, run: Path, tmp_path: Path) -> None:
    train_entry(entry, tmp_path, accumulate=2)
    assert_trained_alike(tmp_path, run)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, seconds: dict[str, float]) -> Path:
    """The runs of two ranks, which train the methods one after the other."""
    folder = tmp_path_factory.mktemp("two")
    for entry in TABLE:
        (folder / entry.name).mkdir()
    run_ranks(2, [job(folder / entry.name, entry=entry.name) for entry in TABLE], prepare)
    for entry in TABLE:
        size = len(entry.batch(0)["sample_id"])
        seconds[f"booked {entry.name}"] += sum(
            size / row["samples_per_second"] for row in read_metrics(folder / entry.name)
        )
    return folder


def test_two_ranks_finish(ranks: Path) -> None:
    assert all((ranks / entry.name / CHECKPOINT).is_dir() for entry in TABLE)


def test_two_ranks_train_as_one_does(entry: Entry, run: Path, ranks: Path) -> None:
    assert_trained_alike(ranks / entry.name, run)


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, teachers, queues, optimizer state, ledger and settings, by checksum; the same metrics."""
    manifest = Path(CHECKPOINT, "manifest.json")
    assert (one / manifest).read_bytes() == (other / manifest).read_bytes()
    assert strip(read_metrics(one))[-(STEPS - SAVED) :] == strip(read_metrics(other))[-(STEPS - SAVED) :]


def test_a_resumed_run_ends_with_the_same_bits(entry: Entry, run: Path, tmp_path: Path) -> None:
    half = f"step-{SAVED:08d}"
    shutil.copytree(run / half, tmp_path / half)
    loader = TwoBatches(entry)
    train_entry(entry, tmp_path, loader)
    assert loader.log == list(range(SAVED, STEPS))
    assert_same_run(tmp_path, run)


def test_a_killed_process_loses_nothing_of_a_teacher(finished: dict[str, Path], tmp_path: Path) -> None:
    entry = ENTRIES["TwoViews"]
    if entry.name not in finished:
        train_entry(entry, finished[entry.name])
    assert run_ranks(1, [job(tmp_path, entry=entry.name, kill_at=SAVED + 1)], prepare) == [-signal.SIGKILL]
    train_entry(entry, tmp_path)
    assert_same_run(tmp_path, finished[entry.name])
    state = checkpoints.load(tmp_path / CHECKPOINT).state["model"]
    slow, fast = (
        state[f"{which}.transformer.blocks.0.attn.layer.qkv.weight"] for which in ("teachers.0.module", "encoder")
    )
    assert not torch.equal(slow, fast)


def test_features_are_those_of_the_encoder(entry: Entry) -> None:
    """Of a batch as the loader gives it, whatever else is in there, one row a sample."""
    encoder, batches = entry.make().encoder, [entry.batch(step) for step in range(2)]
    found = extract(encoder, batches, device=torch.device("cpu"))
    assert found.features.shape == (sum(len(batch["sample_id"]) for batch in batches), encoder.dim)
    with torch.no_grad():
        torch.testing.assert_close(found.features, torch.cat([encoder.eval().features(batch) for batch in batches]))


def test_a_run_is_reported(entry: Entry, run: Path) -> None:
    reads = {name for part in entry.make().modules() if isinstance(part, Encoder) for name in part.tokenizers}
    shown = {name: values for name, values in entry.batch(0).items() if name.partition(".")[0] in reads}
    save_file({name: values.contiguous() for name, values in shown.items()}, run / PICTURES)
    page = write_report(run).read_text()
    assert f"{entry.name} on media. It trained for {STEPS} steps" in page
    assert page.partition("How it learned")[0].count("<figure>") >= 2
