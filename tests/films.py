"""Films that tests make, whose frames can be told by their grey level."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.video.frame import PictureType

from mmssl.data import Keys
from mmssl.data.video import Timeline

STEP = 5  # grey levels from one frame to the next, so that a frame's number can be read from its pixels
ENCODERS = {
    "libx264": {"preset": "veryfast", "bf": "3", "b_strategy": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=3:b-adapt=0"},
    "mpeg4": {"bf": "2"},
    "mpeg2video": {"bf": "2", "strict": "unofficial"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "ffv1": {},
}
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


def numbered(path, codec, count=40, size=(48, 100), pts=None, rotation=0, plain=0, **options):
    """A film of 10 frames a second whose k-th frame carries k in six blocks, in groups of 8 or a little less; none of
    the first `plain` frames is a B-frame.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=ENCODERS[codec] | options)
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", 8, 400_000
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(count):
            picture = np.full((*size, 3), 60, np.uint8)
            for bit in range(6):
                left = size[1] * (1 + bit) // 8
                picture[size[0] // 4 : -size[0] // 4, left : left + size[1] // 10] = 220 if number >> bit & 1 else 20
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number if pts is None else pts[number], Fraction(1, 10)
            if number < plain:
                frame.pict_type = PictureType.P
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def copied(source, path, start=None, from_keyframe=True, change=None):
    """The packets of a film in another file, `change`d, with nothing encoded anew.

    With `start`, they begin with the keyframe at or before that second, or with the very frame there, and that second
    is time 0: what `ffmpeg -ss START -c copy` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0], opaque=True)
        packets = [packet for packet in old.demux(old.streams.video[0]) if packet.size]
        begin = 0 if start is None else round(start / packets[0].time_base)
        first = 0
        for number, packet in enumerate(packets):
            if packet.pts <= begin and (packet.is_keyframe or not from_keyframe):
                first = number
        for packet in packets[first:]:
            packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, stream
            new.mux(change(packet) if change else packet)
    return path


def in_order(path):
    """All frames as PyAV reads them from beginning to end, uint8 [T, H, W, 3]: what is right."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


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
