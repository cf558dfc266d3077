"""Broken videos say why, are counted and replaced, and nothing ever hangs."""

import gc
import importlib
import re
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import av
import numpy as np
import pytest

from mmssl.data import (
    BrokenSample,
    Clips,
    Loader,
    TrainView,
    VideoSource,
)
from mmssl.data import film as films
from mmssl.errors import UserError
from tests.films import film, film_tree, keys, numbers, truncated


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return film_tree(tmp_path_factory.mktemp("tree"))


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "zero bytes"),
        (lambda path: path.write_text("words " * 500), "is no video"),
        (lambda path: truncated(film(path), 0.5), "is no video|holds no video stream"),  # its index was at the end
        (sound, "holds no video stream"),
        (lambda path: path.mkdir(), "cannot be opened"),
    ],
)
def test_what_is_broken_says_why_at_once(tmp_path, make, words):
    make(tmp_path / "b.mp4")
    film(tmp_path / "a.mkv", count=2)
    (tmp_path / "list.csv").write_text("path\na.mkv\nb.mp4\n")
    source = VideoSource(tmp_path / "list.csv", Clips(4, 4))
    begin = time.perf_counter()
    with pytest.raises(BrokenSample, match=words) as raised:
        source.read(1)
    assert time.perf_counter() - begin < 5
    assert "\n" not in raised.value.reason


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("b.mp4", "mpeg4"), ("c.avi", None), ("d.mkv", None)]
)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_gives_its_frames_or_is_broken_but_never_hangs(tmp_path, name, codec, share):
    """Asked for the very last frames that the index promises."""
    film(tmp_path / "z.mkv", count=2)
    options = {"movflags": "faststart"} if name.endswith("mp4") else {}
    truncated(film(tmp_path / name, count=48, size=(64, 96), codec=codec, options=options), share)
    source = VideoSource(tmp_path, Clips(8, 1, spread=1), time_limit=10.0)
    begin = time.perf_counter()
    for clips in (Clips(48, 1), Clips(8, 6), Clips(1, 1, spread=100)):
        source.clips, reason, made = clips, None, []
        try:
            made = [sample["video"].shape[1] for sample in source.draw(0, keys(count=2, draws=[0, 99]))]
        except BrokenSample as error:
            reason = error.reason
        assert made == [clips.frames] * 2 or re.match("cannot be decoded|is no video|holds no video", reason)
    assert time.perf_counter() - begin < 5


def test_broken_files_are_counted_and_replaced(tree):
    source = VideoSource(tree, Clips(4, 2))
    for workers in (0, 2):
        loader = Loader(source, TrainView(16), batch_size=6, repeats=2, workers=workers, ceiling=0.5)
        made = list(loader.batches(0, 4))
        assert (loader.ledger.seen, len(loader.ledger.skipped)) == (20, 4)
        assert {name for name, _ in loader.ledger.skipped} == {"dog/words.mp4"}
        assert all(5 not in batch["sample_id"] for batch in made)
    substitutes = [(batch, row) for batch in made for row in (batch["draw"] >= 2).nonzero().flatten().tolist()]
    assert len(substitutes) == 4
    for batch, row in substitutes:
        index, draw = int(batch["sample_id"][row]), int(batch["draw"][row])
        (own,) = source.draw(index, keys(index, epoch=int(batch["epoch"][row]), draws=[draw]))
        assert numbers(batch["video"][row]) == numbers(own["video"])


def test_a_decoder_that_hangs_is_given_up(tmp_path, monkeypatch):
    import decord

    film(tmp_path / "a.mp4")
    source = VideoSource(tmp_path, Clips(2, 1), time_limit=0.3)
    over = threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(decord.VideoReader, "get_batch", lambda reader, indices: over.wait())
        with pytest.raises(BrokenSample, match=r"^took longer than 0\.3 s to decode$"):
            source.read(0)
    over.set()
    assert source.read(0)["video"].shape == (3, 2, 32, 64)


def test_a_broken_files_reader_is_gone_when_the_read_returns(tmp_path, monkeypatch):
    """Were it collected later, in a forked worker, that would die: there, its decoding thread does not exist."""
    import decord

    readers = []

    class Watched(decord.VideoReader):
        def __init__(self, *args, **options):
            readers.append(weakref.ref(self))
            super().__init__(*args, **options)

        def get_batch(self, indices):
            if len(self) == 4:
                (tmp_path / "c.mp4").write_text("words")
            if len(self) > 2:
                raise RuntimeError("refused")
            return super().get_batch(indices)

    for name, count in (("a.mp4", 2), ("b.mp4", 3), ("c.mp4", 4)):
        film(tmp_path / name, count=count)
    source = VideoSource(tmp_path, Clips(4, 1))
    monkeypatch.setattr(decord, "VideoReader", Watched)
    gc.disable()
    try:
        kept = []
        for index in (0, 1, 2):
            try:
                kept.append(source.read(index))
            except BrokenSample as error:
                kept.append(error)
        assert [type(one) for one in kept] == [dict, dict, BrokenSample]
        assert len(readers) == 3
        assert all(reader() is None for reader in readers)
    finally:
        gc.enable()


def test_a_program_whose_decoder_hangs_goes_on_and_ends(tmp_path):
    """One file of two hangs every time: in this process, and in workers forked after decord was used here."""
    for name, count in (("a.mp4", 4), ("b.mp4", 5)):
        film(tmp_path / name, count=count)
    script = f"""
    import time
    import decord
    from mmssl.data import Clips, Loader, TrainView, VideoSource

    source = VideoSource({str(tmp_path)!r}, Clips(2, 1), time_limit=0.5)
    decode = decord.VideoReader.get_batch
    def hang(reader, indices):
        if len(reader) == 4:
            time.sleep(1000)
        return decode(reader, indices)
    decord.VideoReader.get_batch = hang
    for workers in (0, 2):
        loader = Loader(source, TrainView(8), batch_size=2, workers=workers, ceiling=1.0)
        ids = [batch["sample_id"].tolist() for batch in loader.batches(0, 2)]
        print(ids, loader.ledger.seen, loader.ledger.skipped)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    hung = "('a.mp4', 'took longer than 0.5 s to decode')"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"[[1, 1], [1, 1]] 2 [{hung}, {hung}]\n" * 2


def test_missing_decord_says_what_to_install(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(UserError, match="pip install decord2"):
        VideoSource(tree, Clips())


def test_decord_is_made_quiet_only_when_nobody_had_imported_it(tmp_path, monkeypatch):
    import decord

    monkeypatch.setattr(decord.logging, "set_level", lambda level: pytest.fail("the user's level was changed"))
    assert films.import_decord() is decord
    (tmp_path / "decord.py").write_text("class logging:\n    QUIET, levels = -8, []\n    set_level = levels.append\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "decord")
    assert films.import_decord().logging.levels == [-8]


def test_importing_the_data_package_needs_no_decord(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    assert importlib.import_module("mmssl.data").Clips is Clips
