"""The frames that were asked for: as PyAV reads them in order, at every width and by every name."""

import math
import os
import sys

import av
import decord
import numpy as np
import pytest
import torch

from mmssl.data import Clips, Pairs, VideoSource
from mmssl.data.film import Film
from mmssl.errors import UserError
from tests.films import copied, decord_openings, in_order, keys, numbered, steady

CLOSED = {"x265-params": "log-level=none:bframes=3:b-adapt=0:open-gop=0"}
CODECS = {
    "h264": ("libx264", {}),
    "hevc": ("libx265", {}),
    "hevc-closed": ("libx265", CLOSED),
    "mpeg4": ("mpeg4", {}),
    "mpeg2": ("mpeg2video", {}),
}
WHOLE = [(codec, suffix) for codec in CODECS for suffix in ("mp4", "mkv", "mov", "avi", "ts")]
WHOLE = [(codec, suffix) for codec, suffix in WHOLE if not (codec.startswith("hevc") and suffix == "avi")]
CUTS = [
    (codec, suffix, cut)
    for codec in CODECS
    for suffix in ("mp4", "mkv")
    for cut in ("from a keyframe", "from anywhere")
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A film by the name of its codec and its ending, alone in its folder, made at the first asking."""
    root = tmp_path_factory.mktemp("films")

    def make(codec, suffix="mp4"):
        path = root / f"{codec}-{suffix}" / f"a.{suffix}"
        encoder, options = CODECS[codec]
        return path if path.exists() else numbered(path, encoder, **options)

    return make


def close(ours, expected):
    """The same pictures, but for the rounding of their conversion: one block alone makes a difference of 5."""
    return len(ours) == len(expected) and np.abs(ours.astype(int) - expected).mean((1, 2, 3)).max() < 2


def clip(source, seed=0):
    (sample,) = source.draw(0, keys(seed=seed))
    return sample["video"].permute(1, 2, 3, 0).numpy()


def assert_as_in_order(path):
    """Random clips, and the whole with its last frame once more: neither a frame too few nor one too many."""
    expected = in_order(path)
    count = len(expected)
    assert close(clip(VideoSource(path.parent, Clips(count + 1, 1))), expected[[*range(count), -1]])
    source = VideoSource(path.parent, Clips(4, 3))
    for seed in range(12):
        (wanted,) = steady(count).shown(Clips(4, 3).times(steady(count), keys(seed=seed)))
        assert close(clip(source, seed), expected[wanted]), wanted


def rewritten(packet, data):
    new = av.Packet(data)
    new.pts, new.dts, new.time_base, new.stream = packet.pts, packet.dts, packet.time_base, packet.stream
    return new


@pytest.mark.parametrize(("codec", "suffix"), WHOLE)
def test_random_clips_hold_the_frames_that_reading_in_order_gives(whole, codec, suffix):
    assert_as_in_order(whole(codec, suffix))


@pytest.mark.parametrize(("codec", "suffix", "cut"), CUTS)
def test_a_cut_without_encoding_anew_gives_what_is_left(tmp_path, whole, codec, suffix, cut):
    """The first frames of such a film are not shown, or refer to frames that are gone."""
    assert_as_in_order(copied(whole(codec), tmp_path / f"a.{suffix}", 1.35, from_keyframe=cut == "from a keyframe"))


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("h264", "mkv"), ("h264", "mov"), ("vp8", "webm")])
def test_ordinary_films_stay_with_decord_which_is_fast(tmp_path, whole, monkeypatch, codec, suffix):
    path = whole(codec, suffix) if codec == "h264" else numbered(tmp_path / "a.webm", "libvpx")
    source, opened = VideoSource(path.parent, Clips(4, 3)), decord_openings(monkeypatch)
    assert close(clip(source), in_order(path)[steady(40).shown(Clips(4, 3).times(steady(40), keys()))[0]])
    assert opened == [path.name]


def test_vp9_is_right(tmp_path):
    assert_as_in_order(numbered(tmp_path / "a.webm", "libvpx-vp9"))


def test_pictures_for_reference_alone_are_no_frames(tmp_path):
    """VP8 hides some: here, a bit in the header of the fifth and the tenth."""

    def hide(packet):
        data = bytes(packet)
        return packet if packet.pts not in (500, 1000) else rewritten(packet, bytes([data[0] & ~16]) + data[1:])

    path = copied(numbered(tmp_path / "whole.webm", "libvpx"), tmp_path / "hidden.webm", change=hide)
    assert len(in_order(path)) == 38
    assert close(Film(path).read(lambda starts: np.arange(len(starts)), 48, 100), in_order(path))


def test_keyframes_that_need_frames_before_them_are_no_place_to_begin(tmp_path, whole):
    """H.264 that is refreshed bit by bit, and a file whose every packet is marked as a keyframe."""
    assert_as_in_order(numbered(tmp_path / "a" / "a.mp4", "libx264", bf="0", **{"x264-params": "intra-refresh=1"}))

    def mark(packet):
        packet.is_keyframe = True
        return packet

    for codec in ("h264", "hevc", "mpeg4"):
        assert_as_in_order(copied(whole(codec), tmp_path / codec / "a.mp4", change=mark))


def test_times_that_start_anew_within_a_file_are_left_aside(tmp_path, whole):
    """Two recordings joined in one file, the second at the same times, or between them."""

    def later(packet):
        packet.pts, packet.dts = packet.pts + 4500, packet.dts + 4500
        return packet

    first = whole("mpeg2", "ts").read_bytes()
    between = copied(whole("mpeg2", "ts"), tmp_path / "later.ts", change=later).read_bytes()
    for name, second in (("same", first), ("between", between)):
        path = tmp_path / name / "a.ts"
        path.parent.mkdir()
        path.write_bytes(first + second)
        assert len(in_order(path)) == 80
        assert_as_in_order(path)


def test_frames_without_times_are_put_in_order_however_late_they_leave_it(tmp_path):
    path = numbered(tmp_path / "a.avi", "libx264", count=60, plain=42)
    with av.open(str(path)) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert (np.diff(times[:40]) > 0).all() and (np.diff(times) < 0).any()
    assert_as_in_order(path)


def test_a_damaged_frame_harms_its_group_alone(tmp_path, whole):
    def damage(packet):
        return packet if packet.pts != time else rewritten(packet, bytes(packet)[:20] + bytes(packet.size - 20))

    with av.open(str(whole("hevc-closed"))) as container:
        time = [frame.pts for frame in container.decode(video=0)][20]
    path = copied(whole("hevc-closed"), tmp_path / "a.mp4", change=damage)
    made, right = clip(VideoSource(tmp_path, Clips(40, 1))), in_order(whole("hevc-closed"))
    assert len(made) == 40 and path.exists()
    assert close(made[:16], right[:16]) and close(made[24:], right[24:])


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_unsteady_times_and_late_beginnings_stay_right(tmp_path, codec, suffix):
    """Ten frames a tenth apart, then ten half a second apart, from 7 seconds on."""
    path = numbered(tmp_path / f"a.{suffix}", codec, count=20, pts=[70 + k for k in (*range(10), *range(10, 60, 5))])
    source, expected = VideoSource(tmp_path, Pairs((1.0, 1.0))), in_order(path)
    starts = np.array([*range(10), *range(10, 60, 5)]) / 10
    for seed in range(6):
        (pair,) = source.draw(0, keys(seed=seed))
        past, future = (pair[name].permute(1, 2, 0).numpy() for name in ("image", "image.1"))
        before, after = (int(np.abs(expected - one.astype(int)).mean((1, 2, 3)).argmin()) for one in (past, future))
        assert starts[after] <= starts[before] + 1.03 < starts[min(after + 1, 19)] + 0.5 * (after == 19)


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_every_rotation_is_applied(tmp_path, codec, quarters):
    path = numbered(tmp_path / "a.mp4", codec, count=6, rotation=90 * quarters)
    made = clip(VideoSource(tmp_path, Clips(6, 1)))
    assert close(made, np.rot90(in_order(path), quarters, (1, 2)))
    small = clip(VideoSource(tmp_path, Clips(6, 1), short_side=24))
    assert small.shape == ((6, 24, 50, 3) if quarters == 2 else (6, 50, 24, 3))
    assert np.abs(small.astype(int).mean((1, 2, 3)) - made.mean((1, 2, 3))).max() < 2


def padding(monkeypatch, alignment):
    """A decord as on a processor for which FFmpeg pads rows to multiples of `alignment` pixels.

    It divides a row's bytes by the width, and where nothing is left over the quotient is the channels, to it.
    """

    class Padding(decord.VideoReader):
        def __init__(self, uri, width=-1, **options):
            super().__init__(uri, width=width, **options)
            self.row = 3 * alignment * math.ceil(width / alignment)
            self.misread = self.row % width == 0 and self.row > 3 * width

        def get_batch(self, indices):
            if self.misread:
                raise decord.DECORDError("Check failed: from_size == to_size (26880 vs. 20160)")
            return super().get_batch(indices)

    monkeypatch.setattr(decord, "VideoReader", Padding)


@pytest.fixture(scope="module")
def widths(tmp_path_factory):
    root = tmp_path_factory.mktemp("widths")
    sizes = (16, 24, 32, 36, 48, 72, 80, 96, 144, 192)
    for width in sizes:
        numbered(root / f"{width:03}.mp4", "libx264", count=8, size=(32, width))
    return root, sizes


@pytest.mark.parametrize("alignment", [1, 16, 32, 64, 128])
def test_films_are_read_at_every_width_on_every_processor(widths, monkeypatch, alignment):
    root, sizes = widths
    padding(monkeypatch, alignment)
    source = VideoSource(root, Clips(8, 1))
    for index, width in enumerate(sizes):
        made = source.read(index)["video"]
        assert made.shape == (3, 8, 32, width)
        assert close(made.permute(1, 2, 3, 0).numpy(), in_order(root / f"{width:03}.mp4"))
    source = VideoSource(root, Clips(8, 1), short_side=16)
    for index, width in enumerate(sizes):
        made, whole = source.read(index)["video"], in_order(root / f"{width:03}.mp4")
        assert made.shape == ((3, 8, 16, width // 2) if width > 24 else (3, 8, 32, width))
        means = whole.reshape(8, 16, 2, width // 2, 2, 3).mean((2, 4)) if width > 24 else whole
        assert np.abs(made.permute(1, 2, 3, 0).numpy() - means).mean() < 8


def test_a_frame_is_the_same_whoever_reads_it(tmp_path, whole, monkeypatch):
    """decord may refuse a file on one processor and not on another."""
    for size in ((48, 100), (24, 50)):
        numbered(tmp_path / "a.mp4", "libx264", size=(48, 100))
        source = VideoSource(tmp_path, Clips(8, 4), short_side=size[0])
        with monkeypatch.context() as patch:
            expected, opened = source.read(0)["video"], decord_openings(patch)
            source.read(0)
        assert opened == ["a.mp4"] and expected.shape[2:] == size
        with monkeypatch.context() as patch:
            patch.setattr(decord.VideoReader, "get_batch", lambda reader, indices: 1 / 0)
            assert torch.equal(source.read(0)["video"], expected)
        patched, opened = source.read(0)["video"], decord_openings(monkeypatch)
        assert torch.equal(patched, expected) and opened == []
        monkeypatch.undo()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("name", ["take:1.mp4", "http:.mp4", os.fsdecode(b"caf\xe9.mp4")])
def test_names_are_names_and_nothing_else(tmp_path, monkeypatch, name, codec):
    path = numbered(tmp_path / "film.mp4", codec, count=5)
    expected = in_order(path)
    path.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for root in (".", tmp_path):
        assert close(clip(VideoSource(root, Clips(5, 1))), expected)


def test_a_film_of_one_frame_is_read_in_every_container(tmp_path):
    for suffix, codec in (
        ("mkv", "libx264"),
        ("webm", "libvpx"),
        ("avi", "mpeg4"),
        ("mp4", "mpeg4"),
        ("ts", "mpeg2video"),
    ):
        path = numbered(tmp_path / suffix / f"a.{suffix}", codec, count=1)
        assert close(clip(VideoSource(path.parent, Clips(3, 1))), in_order(path)[[0, 0, 0]])


def test_many_clips_of_a_film_take_as_many_openings_as_one(whole, monkeypatch):
    source = VideoSource(whole("hevc").parent, Clips(4, 3))
    opened, open_one = [], av.open
    monkeypatch.setattr(av, "open", lambda *args, **options: opened.append(args) or open_one(*args, **options))
    list(source.draw(0, keys()))
    one = len(opened)
    assert one and len(list(source.draw(0, keys(count=8)))) == 8
    assert len(opened) == 2 * one


def test_damaged_films_print_nothing(tmp_path, whole, capfd):
    for name, made in (("a.mp4", whole("hevc")), ("b.avi", whole("mpeg4", "avi")), ("c.ts", whole("h264", "ts"))):
        data = bytearray(made.read_bytes())
        for place in range(len(data) // 3, len(data) // 2, 40):
            data[place] ^= 85
        (tmp_path / name).write_bytes(bytes(data))
    source = VideoSource(tmp_path, Clips(4, 9))
    assert [source.read(index)["video"].shape[1] for index in range(3)] == [4, 4, 4]
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_missing_pyav_says_what_to_install(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"PyAV .*pip install av decord2"):
        VideoSource(whole("h264").parent, Clips())
