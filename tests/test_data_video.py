"""Videos: the right frames by time, decoded once, cut alike; broken files are counted and nothing ever hangs."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmssl.data import (
    BrokenSample,
    Clips,
    EvalView,
    Ledger,
    Loader,
    NoTestPart,
    Pairs,
    TrainView,
    VideoSource,
    evaluation_batches,
    hold_out,
    open_videos,
    subset,
)
from mmssl.data.video import TOLERANCE, Timeline, grey
from mmssl.errors import UserError
from tests.films import CODECS, assert_equal, decord_openings, film, film_tree, keys, noise_picture, numbers, steady


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return film_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def openings(monkeypatch):
    """The files that decord opens, in order."""
    return decord_openings(monkeypatch)


# Which frames


@given(count=st.integers(1, 200), frames=st.integers(1, 20), stride=st.integers(1, 6), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_a_steady_video_gives_every_stride_th_frame_and_then_its_last(count, frames, stride, seed):
    """Whatever the rounding of the container's times, here to milliseconds."""
    for fps in (15, 30000 / 1001, 60, 200):
        starts = np.round(np.arange(count) / fps, 3)
        timeline = Timeline(starts, starts[-1] / max(1, count - 1))
        shown = timeline.shown(Clips(frames, stride).times(timeline, keys(count=3, seed=seed)))
        assert shown.shape == (3, frames)
        room = max(1, count - (frames - 1) * stride)
        assert (shown[:, 0] < room).all()
        assert (shown == np.minimum(shown[:, :1] + np.arange(frames) * stride, count - 1)).all()


@given(seed=st.integers(0, 10_000), count=st.integers(2, 60))
@settings(max_examples=60, deadline=None)
def test_an_unsteady_video_gives_the_frames_on_the_screen_at_the_times(seed, count):
    starts = np.concatenate([[0.0], np.random.default_rng(seed).exponential(1.0, count - 1).cumsum()])
    timeline = Timeline(starts, starts[-1] / (count - 1))
    times = Clips(4, 2).times(timeline, keys(seed=seed))
    ahead = times + TOLERANCE * timeline.interval
    for time_, index in zip(ahead[0], timeline.shown(times)[0], strict=True):
        assert index == max(k for k in range(count) if starts[k] <= time_)


def test_every_start_comes_and_starts_are_uniform():
    first = steady(20).shown(Clips(4, 4).times(steady(20), keys(count=4000)))[:, 0]
    counts = np.bincount(first, minlength=8)
    assert len(counts) == 8
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)


def test_evaluation_takes_the_centre_or_evenly_spread_clips():
    assert steady(21).shown(Clips(5, 2, spread=1).times(steady(21), keys())).tolist() == [[6, 8, 10, 12, 14]]
    spread = steady(41).shown(Clips(2, 1, spread=4).times(steady(41), keys(count=4)))
    assert spread[:, 0].tolist() == [5, 15, 25, 35]
    every = steady(8).shown(Clips(1, 1, spread=8).times(steady(8), keys(count=8)))
    assert every[:, 0].tolist() == list(range(8))
    middle = Pairs((0.2, 0.4), spread=1).times(steady(61), keys())
    assert middle[0, 1] - middle[0, 0] == pytest.approx(0.3)
    assert middle.mean() == pytest.approx(1.0, abs=0.02)


@given(fps=st.sampled_from([15, 25, 30, 60]), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_the_gap_of_a_pair_is_in_seconds_at_every_frame_rate(fps, seed):
    timeline = steady(10 * fps, fps)
    times = Pairs().times(timeline, keys(count=200, seed=seed))
    gaps = times[:, 1] - times[:, 0]
    assert (gaps >= 4 / 30 - 1e-9).all() and (gaps <= 48 / 30 + 1e-9).all()
    assert gaps.min() < 0.3 and gaps.max() > 1.4
    past, future = timeline.shown(times).T
    assert (np.abs((future - past) / fps - gaps) <= 1 / fps).all()
    assert (times[:, 1] <= timeline.starts[-1] + 1 / fps).all()
    assert past.min() < fps and past.max() > 7 * fps


def test_a_video_too_short_for_the_gap_gives_its_ends():
    assert steady(3).shown(Pairs().times(steady(3), keys(count=5))).tolist() == [[0, 2]] * 5
    assert steady(1).shown(Pairs().times(steady(1), keys(count=2))).tolist() == [[0, 0]] * 2
    gaps = np.ptp(steady(16).shown(Pairs().times(steady(16), keys(count=300))), 1)
    assert (gaps.min(), gaps.max()) == (4, 15)


@pytest.mark.parametrize("wrong", [lambda: Clips(0), lambda: Clips(4, 0), lambda: Clips(spread=-1)])
def test_wrong_clips_are_refused(wrong):
    with pytest.raises(UserError, match="Clips need"):
        wrong()


def test_wrong_pairs_and_sources_are_refused(tree):
    with pytest.raises(UserError, match="two ascending gaps"):
        Pairs((0.5, 0.1))
    for options in ({"channels": 4}, {"short_side": 0}, {"time_limit": 0.0}):
        with pytest.raises(UserError, match="1 or 3 channels"):
            VideoSource(tree, Clips(), **options)


# Reading files


@pytest.mark.parametrize("suffix", CODECS)
def test_every_container_gives_the_frames_asked_for(tmp_path, suffix):
    film(tmp_path / f"a{suffix}")
    source = VideoSource(tmp_path, Clips(5, 3))
    for seed in range(4):
        (sample,) = source.draw(0, keys(seed=seed))
        clip = sample["video"]
        assert (clip.dtype, clip.shape) == (torch.uint8, (3, 5, 32, 64))
        first = numbers(clip)[0]
        assert numbers(clip) == [first + 3 * k for k in range(5)]
    late = numbers(VideoSource(tmp_path, Clips(4, 1, spread=40)).read(0)["video"])
    assert late == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_variable_frame_rate_goes_by_time(tmp_path, suffix):
    """Twenty frames a thirtieth apart, then twenty a third apart: 17 frames stretch over the whole film's time."""
    pts = [*range(20), *range(20, 220, 10)]
    film(tmp_path / f"a{suffix}", pts=pts)
    interval = pts[-1] / 39
    chosen = numbers(VideoSource(tmp_path, Clips(13, 3, spread=1)).read(0)["video"])
    begin = round((39 - 36) / 2 + 0.5) * interval
    wanted = begin + 3 * interval * np.arange(13) + TOLERANCE * interval
    assert chosen == [max(k for k in range(40) if pts[k] <= time_) for time_ in wanted]
    assert sum(number < 20 for number in chosen) < 4


def test_a_short_clip_repeats_its_last_frame(tmp_path):
    film(tmp_path / "a.mp4", count=5)
    assert numbers(VideoSource(tmp_path, Clips(6, 2)).read(0)["video"]) == [0, 2, 4, 4, 4, 4]
    film(tmp_path / "b" / "one.mp4", count=1)
    assert numbers(VideoSource(tmp_path / "b", Clips(3, 2)).read(0)["video"]) == [0, 0, 0]
    pair = VideoSource(tmp_path / "b", Pairs()).read(0)
    assert torch.equal(pair["image"], pair["image.1"])


def test_a_pair_is_two_pictures_of_one_video(tmp_path):
    film(tmp_path / "a.mkv", count=50, fps=15)
    pairs = list(VideoSource(tmp_path, Pairs()).draw(0, keys(count=30)))
    assert {(name, value.dtype, tuple(value.shape)) for pair in pairs for name, value in pair.items()} == {
        (name, torch.uint8, (3, 32, 64)) for name in ("image", "image.1")
    }
    gaps = [numbers(pair["image.1"][:, None])[0] - numbers(pair["image"][:, None])[0] for pair in pairs]
    assert min(gaps) >= 2 and max(gaps) <= 24 and len(set(gaps)) > 8


def test_frames_are_decoded_at_the_size_asked_for_and_never_enlarged(tmp_path):
    film(tmp_path / "a.mkv", size=(120, 200))
    for short_side, shape in ((60, (60, 100)), (30, (30, 50)), (90, (120, 200)), (None, (120, 200)), (500, (120, 200))):
        clip = VideoSource(tmp_path, Clips(4, 2, 1), short_side=short_side).read(0)["video"]
        assert clip.shape == (3, 4, *shape)
        assert numbers(clip) == [17, 19, 21, 23]


def test_a_telephones_rotation_is_applied(tmp_path):
    """The display matrix in an MP4's track header, as a telephone held upright writes it."""
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64] = 250
    path = film(tmp_path / "a.mp4", count=3, picture=picture)
    one = (1 << 16).to_bytes(4, "big")
    none, minus, last = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True), (1 << 30).to_bytes(4, "big")
    header = path.read_bytes()
    place = header.index(b"".join([one, none, none, none, one, none, none, none, last]), header.index(b"tkhd"))
    turned = b"".join([none, one, none, minus, none, none, (64 << 16).to_bytes(4, "big"), none, last])
    path.write_bytes(header[:place] + turned + header[place + 36 :])
    clip = VideoSource(tmp_path, Clips(1, 1)).read(0)["video"]
    assert clip.shape == (3, 1, 128, 64)
    quarters = [clip[:, 0, a : a + 40, b : b + 20].float().mean() > 125 for a in (10, 74) for b in (6, 38)]
    assert quarters == [False, True, False, False]


def test_grey_is_pillows(tmp_path):
    picture = noise_picture()
    expected = np.array(Image.fromarray(picture).convert("L"))
    assert np.array_equal(grey(torch.from_numpy(picture)[None])[0, ..., 0], expected)
    film(tmp_path / "a.mkv", count=2, picture=picture)
    source = VideoSource(tmp_path, Clips(2, 1), channels=1)
    assert source.channels == 1
    assert np.array_equal(source.read(0)["video"], np.stack([expected] * 2)[None])


# Views


@pytest.mark.parametrize("size", [(40, 64), (70, 96)])
def test_all_that_a_sample_holds_is_cut_alike_and_as_a_picture_would_be(tmp_path, size):
    """A still film: every frame of a clip, and both of a pair, must come out as the one picture does."""
    picture = noise_picture(*size)
    film(tmp_path / "a.mkv", count=9, picture=picture)
    clip, pair = (VideoSource(tmp_path, clips).read(0) for clips in (Clips(3, 2), Pairs()))
    still = {"image": torch.from_numpy(picture).permute(2, 0, 1)}
    for view in (TrainView(32), EvalView(32)):
        rows = keys(count=8)
        expected = view([still] * 8, rows)["image"]
        made = view([clip] * 8, rows)["video"]
        assert (made.dtype, made.shape) == (torch.uint8, (8, 3, 3, 32, 32))
        assert made.is_contiguous()
        assert torch.equal(made, expected[:, :, None].expand_as(made))
        both = view([pair] * 8, rows)
        assert torch.equal(both["image"], expected) and torch.equal(both["image.1"], expected)
    assert not torch.equal(expected[0], TrainView(32)([still], keys())["image"][0])


def test_several_views_of_a_clip_and_what_cannot_be_named(tmp_path):
    clip = {"video": torch.randint(0, 256, (3, 4, 40, 50), dtype=torch.uint8)}
    made = TrainView(16, views=2)([clip, clip], keys(count=2))
    assert {name: batch.shape for name, batch in made.items()} == dict.fromkeys(("video", "video.1"), (2, 3, 4, 16, 16))
    assert not torch.equal(made["video"], made["video.1"])
    frame = torch.zeros(3, 40, 50, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"samples hold image\.1 already"):
        TrainView(16, views=2)([{"image": frame, "image.1": frame}], keys())
    with pytest.raises(UserError, match=r"agree in height and width.*image \[3, 40, 50\].*depth \[1, 20, 25\]"):
        TrainView(16)([{"image": frame, "depth": frame[:1, :20, :25]}], keys())
    with pytest.raises(UserError, match="One sample holds image and another video"):
        TrainView(16)([{"image": frame}, clip], keys(count=2))


# Batches


def test_workers_batch_layout_and_company_change_nothing(tree):
    source = VideoSource(tree, Clips(4, 2), short_side=24)
    view = TrainView(16)

    def run(start=0, stop=3, **changes):
        options = {"batch_size": 8, "seed": 3, "repeats": 2, "ceiling": 1.0} | changes
        loader = Loader(source, view, **options)
        made = list(loader.batches(start, stop))
        assert loader.ledger.seen + len(loader.ledger.skipped) == len(made) * options["batch_size"]
        return made

    whole = run()
    assert (whole[0]["video"].dtype, whole[0]["video"].shape) == (torch.uint8, (8, 3, 4, 16, 16))
    assert_equal(whole, run(workers=2))
    assert_equal(whole, run(0, 1) + run(1, 3))
    rows = {key: torch.cat([batch[key] for batch in whole]) for key in whole[0] if key != "step"}
    singles = run(stop=24, batch_size=1)
    assert_equal([rows], [{key: torch.cat([batch[key] for batch in singles]) for key in rows}])


def test_seeds_epochs_and_draws_take_other_frames(tmp_path):
    film(tmp_path / "a.mkv")
    source = VideoSource(tmp_path, Clips(1, 1))
    starts = [
        [numbers(sample["video"])[0] for sample in source.draw(0, keys(count=12, **change))]
        for change in ({}, {"seed": 1}, {"epoch": 1})
    ]
    assert all(len(set(family)) > 4 for family in starts)
    assert len({tuple(family) for family in starts}) == 3


def test_repeats_decode_the_file_once(tmp_path, openings):
    for name in "abc":
        film(tmp_path / f"{name}.mp4")
    source = VideoSource(tmp_path, Clips(4, 2))
    openings.clear()  # one readable file was looked for
    made = list(Loader(source, TrainView(16), batch_size=12, repeats=4).batches(0, 2))
    assert sorted(openings) == ["a.mp4", "a.mp4", "b.mp4", "b.mp4", "c.mp4", "c.mp4"]
    starts = {tuple(row.flatten().tolist()) for row in made[0]["video"][:, 0, 0, 0]}
    assert len(starts) > 3
    openings.clear()
    list(evaluation_batches(subset(source, [1]), EvalView(16), batch_size=8, repeats=8))
    assert openings == ["b.mp4"]


def test_evaluation_takes_several_clips_of_each_video(tree):
    ledger = Ledger()
    source = VideoSource(tree, Clips(2, 1, spread=3))
    made = list(evaluation_batches(source, EvalView(16), batch_size=7, repeats=3, ledger=ledger))
    assert [len(batch["video"]) for batch in made] == [7, 7, 1]
    rows = {key: torch.cat([batch[key] for batch in made]) for key in ("video", "sample_id", "draw", "label")}
    assert rows["sample_id"].tolist() == [i for i in range(5) for _ in range(3)]
    assert rows["draw"].tolist() == [0, 1, 2] * 5
    assert rows["label"].tolist() == [0] * 9 + [1] * 6
    assert [numbers(clip)[0] for clip in rows["video"][:3]] == [6, 19, 32]
    assert (ledger.seen, [name for name, _ in ledger.skipped]) == (15, ["dog/words.mp4"] * 3)
    assert torch.equal(source.read(0)["video"], next(source.draw(0, keys()))["video"])


def test_a_subset_draws_with_its_own_numbers(tree):
    source = VideoSource(tree, Clips(2, 1))
    part = subset(source, [3])
    (ours,), (theirs,) = part.draw(0, keys(0)), source.draw(3, keys(0))
    assert torch.equal(ours["video"], theirs["video"])
    rest, held = hold_out(source, 0.5)
    assert (len(rest), len(held), rest.classes) == (3, 3, ["cat", "dog"])


# Folders and manifests


def test_a_tree_has_classes_and_splits(tree, tmp_path):
    source = VideoSource(tree, Clips(2, 1))
    assert source.paths == ["cat/1.avi", "cat/3.webm", "cat/short.mkv", "dog/0.mp4", "dog/2.mkv", "dog/words.mp4"]
    assert (source.classes, source.labels) == (["cat", "dog"], [0, 0, 0, 1, 1, 1])
    for name in ("train/x/1.mkv", "train/y/2.mkv", "val/x/3.mkv"):
        film(tmp_path / name, count=2)
    assert open_videos(tmp_path, "train", Clips(2, 1)).labels == [0, 1]
    assert open_videos(tmp_path, "test", Clips(2, 1), channels=1, short_side=16).read(0)["video"].shape == (
        1,
        2,
        16,
        32,
    )
    with pytest.raises(NoTestPart, match="has no test part"):
        open_videos(tree, "test", Clips())
    with pytest.raises(UserError, match=r"has files but no video; videos end in \.mp4"):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "a.png").touch()
        VideoSource(tmp_path / "empty", Clips())


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_manifest_lists_videos_with_or_without_labels(tmp_path, kind):
    for name in ("far/b.mkv", "a.mkv"):
        film(tmp_path / name, count=2)

    def write(rows):
        path = tmp_path / f"list.{kind}"
        if kind == "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        else:
            names = list(rows[0])
            path.write_text("\n".join([",".join(names), *(",".join(f'"{row[n]}"' for n in names) for row in rows)]))
        return path

    rows = [{"path": "far/b.mkv", "label": "jump, high"}, {"path": "a.mkv", "label": "bow"}]
    source = open_videos(write(rows), "train", Clips(2, 1))
    assert (source.paths, source.classes, source.labels) == (["far/b.mkv", "a.mkv"], ["bow", "jump, high"], [1, 0])
    assert numbers(source.read(0)["video"]) == [0, 1]
    source = VideoSource(write([{"path": "a.mkv"}, {"path": "gone.mkv"}]), Clips(2, 1))
    assert (source.labels, source.classes) == (None, [])
    with pytest.raises(BrokenSample, match="No such file"):
        source.read(1)
    with pytest.raises(NoTestPart):
        open_videos(write(rows), "test", Clips())
    for wrong, words in (
        ([{"file": "a.mkv"}], 'without "path"'),
        ([{"path": "a.mkv", "label": "x"}, {"path": "a.mkv", "label": ""}], "labels 1 of its 2"),
    ):
        with pytest.raises(UserError, match=words):
            VideoSource(write(wrong), Clips())
    (tmp_path / f"list.{kind}").write_bytes(b"path\n\xff\xfe" if kind == "csv" else b"{")
    with pytest.raises(UserError, match="cannot be read"):
        VideoSource(tmp_path / f"list.{kind}", Clips())
    (tmp_path / f"list.{kind}").write_text("path\n" if kind == "csv" else "")
    with pytest.raises(UserError, match="lists no video"):
        VideoSource(tmp_path / f"list.{kind}", Clips())


@pytest.mark.parametrize("fps", [0.5, 1, 3, 24])
def test_the_frames_of_a_pair_differ_wherever_a_video_has_two(fps):
    many = keys(count=200)
    for count in (2, 3, 40):
        video = steady(count, float(fps))
        past, future = video.shown(Pairs().times(video, many)).T
        assert (past < future).all()


def test_a_clip_that_spans_its_video_shows_the_same_frames_backwards():
    """What benchmarks/learning.py rests on: a movement and its reverse differ in the order of frames alone."""
    video = steady(15, 10.0)
    shown = video.shown(Clips(8, 2, spread=1).times(video, keys())).flatten()
    assert shown.tolist() == list(range(0, 15, 2)) == (14 - shown[::-1]).tolist()
