"""The loader: batches are a function of (seed, step) alone, nothing is lost, and what is broken is counted once."""

import multiprocessing
import os
import subprocess
import sys
import warnings
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl.data import (
    ArraySource,
    BrokenSample,
    EvalView,
    Ledger,
    Loader,
    Stage,
    StagedLoader,
    TrainView,
    evaluation_batches,
)
from mmssl.data import FolderSource as Folder
from mmssl.errors import UserError


class Holes:
    """Numbered 8 x 8 pictures (picture i is filled with i) of which some are broken."""

    channels, classes = 1, ["even", "odd"]

    def __init__(self, count, broken=()):
        self.count, self.broken, self.labels = count, set(broken), [i % 2 for i in range(count)]

    def __len__(self):
        return self.count

    def name(self, index):
        return f"picture {index}"

    def read(self, index):
        if index in self.broken:
            raise BrokenSample("is truncated")
        return {"image": torch.full((1, 8, 8), index % 256, dtype=torch.uint8)}


def noise_source(count, side=12):
    generator = torch.Generator().manual_seed(0)
    return ArraySource(torch.randint(0, 256, (count, 1, side, side), generator=generator, dtype=torch.uint8))


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def keys_of(batch):
    return torch.stack([batch["epoch"], batch["sample_id"], batch["draw"]], 1).tolist()


def joined(parts):
    """The batches of all ranks, put side by side."""
    return [
        {key: torch.cat([b[key] for b in step]) if key != "step" else step[0][key] for key in step[0]}
        for step in zip(*parts, strict=True)
    ]


@given(count=st.integers(1, 40), batch=st.integers(1, 50), repeats=st.integers(1, 3), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_every_sample_comes_exactly_once_an_epoch_and_repeat(count, batch, repeats, seed):
    loader = Loader(noise_source(count, 2), TrainView(2), batch_size=batch, seed=seed, repeats=repeats)
    epochs = 3
    steps = -(-epochs * count * repeats // batch)
    seen = Counter()
    for step, made in enumerate(loader.batches(0, steps)):
        assert (int(made["step"]), len(made["image"])) == (step, batch)
        seen.update(map(tuple, keys_of(made)))
    whole = [(e, i, d) for e in range(epochs) for i in range(count) for d in range(repeats)]
    assert all(seen[key] == 1 for key in whole)
    assert max(seen.values()) == 1
    assert loader.ledger.seen == steps * batch
    assert loader.steps_per_epoch == count * repeats / batch


@pytest.mark.parametrize("broken", [(), (3, 8)])
def test_workers_world_size_and_where_one_starts_change_nothing(broken):
    """23 samples twice in batches of 6 over three epochs, so that most epochs end inside a batch."""
    source, steps = Holes(23, broken), 20

    def run(start=0, stop=steps, **changes):
        options = {"batch_size": 6, "seed": 5, "repeats": 2, "ceiling": 1.0} | changes
        return list(Loader(source, TrainView(8, views=2), **options).batches(start, stop))

    whole = run()
    assert whole[0].keys() == {"image", "image.1", "sample_id", "epoch", "draw", "step"}
    assert (whole[0]["image"].dtype, whole[0]["image"].shape) == (torch.uint8, (6, 1, 8, 8))
    assert {whole[0][key].dtype for key in ("sample_id", "epoch", "draw", "step")} == {torch.int64}
    for workers in (1, 3):
        assert_equal(whole, run(workers=workers))
    for world_size in (2, 3):
        assert_equal(whole, joined([run(rank=rank, world_size=world_size) for rank in range(world_size)]))
    assert_equal(whole, run(0, 7) + run(7, 9, workers=2) + run(9))
    different = run(seed=6)
    assert any(not torch.equal(a["sample_id"], b["sample_id"]) for a, b in zip(whole, different, strict=True))


def test_stages_change_at_one_step_wherever_one_starts():
    def loader(count, **changes):
        return Loader(Holes(count, broken=(3,)), TrainView(8), batch_size=6, ceiling=1.0, **changes)

    def staged():
        return StagedLoader(loader(40), loader(9), switch=7)

    whole = staged()
    batches = list(whole.batches(0, 12))
    assert_equal(batches, [*loader(40).batches(0, 7), *loader(9).batches(7, 12)])
    assert [int(batch["step"]) for batch in batches] == list(range(12))
    assert (whole.ledger.seen + len(whole.ledger.skipped), whole.steps_per_epoch) == (72, 1.5)
    assert {name for name, _ in whole.ledger.skipped} == {"picture 3"}
    for start in (5, 7, 9):
        later = staged()
        assert_equal(list(later.batches(start, 12)), batches[start:])
        assert len(later.source) == 9
    with pytest.raises(UserError, match="between 0 and 1, not 1"):
        Stage(Holes(4), TrainView(8), 1.0)


def test_epochs_are_shuffled_apart_and_shuffling_can_be_left_out():
    source = noise_source(50)
    first, second = (b["sample_id"].tolist() for b in Loader(source, TrainView(4), batch_size=50).batches(0, 2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert len({tuple(first), tuple(second), tuple(range(50))}) == 3
    (plain,) = Loader(source, TrainView(4), batch_size=50, shuffle=False).batches(1, 2)
    assert plain["sample_id"].tolist() == list(range(50))


def test_repeats_of_a_sample_are_decoded_once():
    reads = []

    class Counting(Holes):
        def read(self, index):
            reads.append(index)
            return super().read(index)

    list(Loader(Counting(10), TrainView(4), batch_size=20, repeats=4).batches(0, 2))
    assert sorted(reads) == list(range(10))


def test_a_broken_slot_gets_a_substitute_and_is_counted_once():
    broken = {2, 5, 11}
    loader = Loader(Holes(40, broken), TrainView(8), batch_size=10, ceiling=0.2, workers=2)
    batches = loader.batches(0, 12)
    for done in range(1, 13):
        made = next(batches)
        assert broken.isdisjoint(made["sample_id"].tolist())
        assert torch.equal(made["image"][:, 0, 0, 0].long(), made["sample_id"])
        assert loader.ledger.seen + len(loader.ledger.skipped) == done * 10
    expected = Counter({(f"picture {index}", "is truncated"): 3 for index in broken})
    assert Counter(loader.ledger.skipped) == expected


def test_a_substitute_shares_no_key_with_the_sample_itself():
    keys = Counter()
    for made in Loader(Holes(8, {1, 2, 3}), TrainView(8), batch_size=8, repeats=2, ceiling=1.0).batches(0, 20):
        keys.update(map(tuple, keys_of(made)))
    assert max(keys.values()) == 1


def test_more_broken_files_than_the_ceiling_stop_the_run_as_soon_as_that_is_certain():
    loader = Loader(Holes(1000, range(0, 1000, 4)), TrainView(4), batch_size=10, ceiling=0.02)
    sentence = (
        r"^(2[1-9]|30) of 1000 files cannot be read, and --max-skipped 0.02 allows 20: "
        r"picture \d+ is truncated; .*; and \d+ more\. Mend or remove these files, or raise --max-skipped\.$"
    )
    with pytest.raises(UserError, match=sentence):
        list(loader.batches(0, 100))
    assert loader.ledger.seen + len(loader.ledger.skipped) < 300
    with pytest.raises(UserError, match="2 of 70 files"):
        list(Loader(Holes(70, {3, 9}), TrainView(4), batch_size=10).batches(0, 7))
    with pytest.raises(UserError, match="1 of 2 files"):
        list(Loader(Holes(2, {0}), TrainView(4), batch_size=2, ceiling=0.0, shuffle=False).batches(0, 5))


def test_a_broken_file_counts_once_and_one_alone_is_let_pass():
    for ceiling in (0.001, 0.1):
        loader = Loader(Holes(70, {3}), TrainView(4), batch_size=10, ceiling=ceiling)
        assert len(list(loader.batches(0, 70))) == 70
        assert len(loader.ledger.skipped) == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_nothing_readable_is_one_sentence_from_any_process(workers):
    source = Holes(5, range(5))
    with pytest.raises(UserError, match=r"^64 samples in a row .* is truncated\.$"):
        list(Loader(source, TrainView(4), batch_size=2, workers=workers).batches(0, 1))
    with pytest.raises(UserError, match=r"^64 samples in a row"):
        list(evaluation_batches(source, EvalView(4), batch_size=2, workers=workers))


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="batch of 10 cannot be divided among 3 processes"):
        Loader(noise_source(4), TrainView(4), batch_size=10, world_size=3)
    with pytest.raises(UserError, match="source is empty"):
        Loader(Holes(0), TrainView(4), batch_size=1)
    with pytest.raises(ValueError, match="rank 2"):
        Loader(noise_source(4), TrainView(4), batch_size=2, rank=2, world_size=2)


def test_no_generator_is_touched_and_nothing_warns():
    before = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for workers in (0, 2 * (os.cpu_count() or 1) + 1):
            list(Loader(noise_source(8), TrainView(4), batch_size=4, workers=workers).batches(0, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_a_signal_to_the_process_group():
    """A scheduler's SIGTERM reaches the workers too, and the main process still needs its batches to end the step."""
    batches = Loader(noise_source(64), TrainView(4), batch_size=4, workers=6).batches(0, 40)
    made = [next(batches)]
    workers = multiprocessing.active_children()
    assert len(workers) == 6
    subprocess.run(["kill", "-TERM", *(str(worker.pid) for worker in workers)], check=True)
    made += list(batches)
    assert [int(batch["step"]) for batch in made] == list(range(40))


def test_a_program_that_stops_in_the_middle_ends_at_once():
    script = """
import torch
from mmssl.data import ArraySource, Loader, TrainView

source = ArraySource(torch.zeros(64, 1, 8, 8, dtype=torch.uint8))
batches = Loader(source, TrainView(8), batch_size=4, workers=2).batches(0, 1000)
print(int(next(batches)["step"]))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_visits_everything_once_in_order_and_leaves_broken_files_out(workers):
    source, ledger = Holes(11, {0, 4, 8, 9, 10}), Ledger()
    made = list(evaluation_batches(source, EvalView(8), batch_size=4, workers=workers, ledger=ledger))
    assert [batch["sample_id"].tolist() for batch in made] == [[1, 2, 3], [5, 6, 7]]
    assert [batch["label"].tolist() for batch in made] == [[1, 0, 1], [1, 0, 1]]
    assert [batch["image"][:, 0, 0, 0].tolist() for batch in made] == [[1, 2, 3], [5, 6, 7]]
    assert [int(batch["step"]) for batch in made] == [0, 1]
    assert ledger == Ledger(6, [(f"picture {i}", "is truncated") for i in (0, 4, 8, 9, 10)])
    unlabelled = list(evaluation_batches(noise_source(5), EvalView(12), batch_size=3))
    assert [len(batch["image"]) for batch in unlabelled] == [3, 2]
    assert "label" not in unlabelled[0]


def test_a_real_folder_with_one_bad_file_trains_and_lists_it(tmp_path):
    from PIL import Image

    for number in range(9):
        Image.new("RGB", (40 + number, 70 - number), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "4.png").write_bytes(b"")
    loader = Loader(Folder(tmp_path), TrainView(16), batch_size=9, ceiling=0.5)
    (made,) = loader.batches(0, 1)
    assert made["image"].shape == (9, 3, 16, 16)
    assert torch.equal(made["image"][:, 0, 0, 0].long(), made["sample_id"])
    assert loader.ledger.skipped == [("4.png", "is empty (zero bytes)")]


class SeveralLabels(Holes):
    """Each picture has the classes of its number's last two bits."""

    def __init__(self, count):
        super().__init__(count)
        self.labels, self.label_sets = None, [tuple(k for k in (0, 1) if i >> k & 1) for i in range(count)]


def test_labels_come_with_the_samples_also_where_each_has_several():
    for made in Loader(Holes(9, {4}), TrainView(8), batch_size=6, ceiling=1.0, labelled=True).batches(0, 6):
        assert made["label"].dtype == torch.int64
        assert torch.equal(made["label"], made["image"][:, 0, 0, 0].long() % 2)
    for made in Loader(SeveralLabels(9), TrainView(8), batch_size=6, labelled=True).batches(0, 3):
        assert torch.equal(made["label"], torch.stack([made["sample_id"] % 2 == 1, made["sample_id"] % 4 > 1], 1))
    assert "label" not in next(Loader(Holes(9), TrainView(8), batch_size=6).batches(0, 1))
    with pytest.raises(UserError, match="The samples have no labels"):
        Loader(noise_source(4), TrainView(4), batch_size=2, labelled=True)


@pytest.mark.parametrize("broken", [(), (3, 8)])
def test_partners_are_the_same_for_any_workers_ranks_and_start(broken):
    """23 samples twice in batches of 6 over three epochs."""
    source, steps = Holes(23, broken), 20

    def run(start=0, stop=steps, **changes):
        options = {"batch_size": 6, "seed": 5, "repeats": 2, "ceiling": 1.0, "labelled": True, "partners": True}
        return list(Loader(source, TrainView(8, views=2), **options | changes).batches(start, stop))

    whole = run()
    names = [name for medium in ("image", "image.1", "label") for name in (medium, f"{medium}.partner")]
    assert list(whole[0]) == [*names[:4], "sample_id", "epoch", "draw", "step", *names[4:]]
    assert {len(whole[0][name]) for name in [*names, "sample_id", "epoch", "draw"]} == {6}
    assert_equal(whole, run(workers=2))
    assert_equal(whole, joined([run(rank=rank, world_size=2) for rank in range(2)]))
    assert_equal(whole, run(0, 7) + run(7, 9, workers=1) + run(9))
    alone = run(partners=False)
    assert_equal(alone, [{name: made[name] for name in alone[0]} for made in whole])


def as_they_are(samples, keys):
    return {"image": torch.stack([sample["image"] for sample in samples])}


def partner_of(batch):
    """The samples' numbers, which are the pictures' values."""
    return batch["image.partner"][:, 0, 0, 0].long()


def test_partners_are_other_samples_uniformly_anew_in_each_epoch_and_repeat():
    count, repeats, epochs = 6, 4, 60
    options = {"repeats": repeats, "labelled": True, "partners": True}
    loader = Loader(Holes(count), as_they_are, batch_size=count * repeats, **options)
    found = torch.zeros(count, count)
    drawn = []
    for made in loader.batches(0, epochs):
        partner = partner_of(made)
        assert (partner != made["sample_id"]).all()
        assert torch.equal(made["label.partner"], partner % 2)
        found.index_put_((made["sample_id"], partner), torch.ones(len(partner)), accumulate=True)
        drawn.append(partner[made["sample_id"].argsort(stable=True)].view(count, repeats))
    expected = epochs * repeats / (count - 1)
    others = found[~torch.eye(count, dtype=torch.bool)]
    assert (others - expected).abs().max() < 4.5 * expected**0.5
    numbers = torch.stack(drawn)
    for one, another in ((numbers[1:], numbers[:-1]), (numbers[..., 1:], numbers[..., :-1])):
        assert abs((one == another).float().mean() - 1 / (count - 1)) < 0.06
    (lone,) = Loader(Holes(1), TrainView(8), batch_size=2, partners=True).batches(0, 1)
    assert partner_of(lone).tolist() == [0, 0]


def test_a_partner_shares_no_view_with_the_same_sample_elsewhere():
    """Crops of noise: as many different pictures as rows, of partners and substitutes, too."""

    class Torn(ArraySource):
        def read(self, index):
            if index in (1, 6):
                raise BrokenSample("is truncated")
            return super().read(index)

    pictures = torch.randint(0, 256, (8, 1, 60, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    loader = Loader(Torn(pictures), TrainView(12), batch_size=8, repeats=2, ceiling=1.0, partners=True)
    rows = [made[name].flatten(1) for made in loader.batches(0, 10) for name in ("image", "image.partner")]
    assert len(torch.cat(rows).unique(dim=0)) == 160


def test_broken_partners_are_substituted_and_counted_like_other_slots():
    broken = {2, 5}
    loader = Loader(Holes(40, broken), TrainView(8), batch_size=10, ceiling=0.2, labelled=True, partners=True)
    for done, made in enumerate(loader.batches(0, 40), 1):
        assert broken.isdisjoint(partner_of(made).tolist())
        assert torch.equal(partner_of(made) % 2, made["label.partner"])
        assert torch.equal(made["image"][:, 0, 0, 0].long(), made["sample_id"])
        assert loader.ledger.seen + len(loader.ledger.skipped) == 20 * done
    times = Counter(loader.ledger.skipped)
    assert times.keys() == {("picture 2", "is truncated"), ("picture 5", "is truncated")}
    assert 2 * 10 < times.total() < 2 * 35  # ten times in their own slots, and about ten as partners


def test_a_partner_that_is_the_neighbouring_rows_sample_is_decoded_once():
    reads = []

    class Counting(Holes):
        def read(self, index):
            reads.append(index)
            return super().read(index)

    (made,) = Loader(Counting(2), TrainView(8), batch_size=6, repeats=3, partners=True).batches(0, 1)
    assert partner_of(made).tolist() == [1 - index for index in made["sample_id"].tolist()]
    assert len(reads) == 3  # the first, the second, which is also the first's partner, and the first again
