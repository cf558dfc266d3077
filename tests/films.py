"""Films that tests make, whose frames can be told by their grey level."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

from mmssl.data import Keys
from mmssl.data.video import Timeline

STEP = 5  # grey levels from one frame to the next, so that a frame's number can be read from its pixels
CODECS = {".mp4": "libx264", ".avi": "mpeg4", ".mkv": "ffv1", ".webm": "libvpx"}


def film(path, count=40, fps=30, size=(32, 64), pts=None, codec=None, picture=None, options=None):
    """A video of flat frames, the k-th of grey level 5 k, or of one `picture` all the time; pts in frames."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = codec or CODECS[path.suffix]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = size if picture is None else picture.shape[:2]
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.gop_size, stream.bit_rate = 12, 4_000_000
        if codec == "libvpx":
            stream.options = {"cpu-used": "8", "deadline": "realtime"}
        for number in range(count):
            array = np.full((*size, 3), number * STEP % 256, np.uint8) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(array, "rgb24")
            frame.pts, frame.time_base = number if pts is None else pts[number], Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(video):
    """The frames' numbers [T] of a clip [C, T, H, W], or the number of a picture [C, H, W]."""
    levels = video.float().mean((0, -2, -1)) / STEP
    assert (levels - levels.round()).abs().max() < 0.3
    return levels.round().long().tolist()


def keys(index=0, count=1, seed=0, epoch=0, draws=None):
    rows = torch.full((count,), index)
    draw = torch.arange(count) if draws is None else torch.tensor(draws)
    return Keys(seed, rows, torch.full_like(rows, epoch), draw)


def steady(count, fps=30.0):
    return Timeline(np.arange(count) / fps, 1 / fps)


def noise_picture(height=70, width=96, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def decord_openings(monkeypatch):
    """The names of the files that decord opens from now on, in order."""
    import decord

    opened = []

    class Counting(decord.VideoReader):
        def __init__(self, uri, **options):
            opened.append(Path(uri).name)
            super().__init__(uri, **options)

    monkeypatch.setattr(decord, "VideoReader", Counting)
    return opened


def truncated(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def assert_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


def film_tree(root):
    """Two classes, every container, and one broken file among six."""
    for number, suffix in enumerate(CODECS):
        film(root / ("cat" if number % 2 else "dog") / f"{number}{suffix}")
    film(root / "cat" / "short.mkv", count=5)
    (root / "dog" / "words.mp4").write_text("these are words, whatever the name")
    return root
