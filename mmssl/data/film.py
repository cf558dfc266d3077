"""A film's frames by number: through decord where that gives the right ones, and through PyAV everywhere else.

decord finds a frame by counting on from a keyframe, whose number it takes to be the number of its packet. That is true
of films whose groups of pictures are closed, and decord is fast. It is not where frames that are shown before a
keyframe follow it in the file (HEVC, MPEG-2 and MPEG-4 with B-frames), where a cut left frames that are not shown, or
where a container stores no times. PyAV reads these: from a keyframe on, each frame told by the packet that it came
from. What is right is what PyAV gives when it reads the file in order. FFmpeg decodes and converts alike in both, so
that a frame is the same whoever reads it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from os.path import abspath
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt8

from mmssl.data.decode import BrokenSample, first_bytes, opened
from mmssl.errors import UserError

T = TypeVar("T")
# Takes the seconds at which a film's frames begin, from the first one's start; gives ascending numbers of frames.
Choice = Callable[[Float64[np.ndarray, " frames"]], Int64[np.ndarray, " chosen"]]
_DECORD_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
_DECORD_CODECS = ("h264", "vp8", "vp9", "av1")
# So many frames come out as the times promise before a film's beginning is taken for whole, and so far may a packet lie
# from its frame's place: no codec reorders by more than 16.
_WINDOW = 32
_INTRA = (0, 1)  # FFmpeg's types of pictures: not said, and I
_TURNS: dict[int, list[tuple[str, str]]] = {
    0: [],
    1: [("transpose", "1")],
    2: [("transpose", "1"), ("transpose", "1")],
    3: [("transpose", "2")],
}


class Film:
    """What is known of a file with a film, learned once; nothing of the file stays open.

    height, width: the frames' size in pixels as they are shown, rotation metadata applied.

    Raises BrokenSample where nothing can be decoded, and UserError where PyAV is missing.
    """

    __slots__ = ("_decord", "_order", "_path", "height", "width")

    def __init__(self, path: str | Path) -> None:
        self._path = abspath(path)  # a relative "take:1.mp4" would be an address to FFmpeg
        with _stream(self._path) as stream:
            notes = _Notes(stream)
            _, frame = _Player(stream.codec_context, notes.taken).first()
            packets = notes.finished()
        size = frame.height, frame.width
        self.height, self.width = size[::-1] if _quarters(frame) % 2 else size
        self._decord = packets.counted_by_decord()
        # None: as the packets' times say
        self._order = None if self._decord else _order(self._path, packets)

    def read(self, choose: Choice, height: int, width: int) -> UInt8[np.ndarray, "chosen height width 3"]:
        """The frames chosen, resized by FFmpeg's bicubic filter (antialiased); raises BrokenSample.

        A frame that cannot be decoded is the one before it, which stays on the screen then.
        """
        if self._decord:
            try:
                return _through_decord(self._path, choose, height, width)
            except (BrokenSample, UserError, MemoryError):
                raise
            except Exception:  # of any type: rows that it misreads, and whatever else it refuses
                self._decord = False
        return _through_pyav(self._path, self._order, choose, height, width)


class Packets(NamedTuple):
    """A stream's packets, in the order in which they are decoded."""

    times: list[int | None]
    keys: Bool[np.ndarray, " packets"]
    shown: Bool[np.ndarray, " packets"]  # what an edit list leaves out is decoded only
    unit: float  # seconds of 1 in `times`
    rate: float  # frames a second, for where the times do not tell
    suits_decord: bool

    def in_order_of_times(self) -> Int64[np.ndarray, " frames"] | None:
        """The packets of the frames in the order shown; None where times cannot tell."""
        if None in self.times:
            return None
        times = np.array(self.times, np.int64)
        order = np.argsort(times, kind="stable")
        # times that start anew within the file
        again = (np.abs(np.argsort(order) - np.arange(len(order))) > _WINDOW).any()
        order = order[self.shown[order]]
        return None if again or (np.diff(times[order]) <= 0).any() else order

    def starts(self, order: Int64[np.ndarray, " frames"]) -> Float64[np.ndarray, " frames"]:
        """The seconds at which the frames begin, in single precision as decord's are."""
        times = [self.times[packet % len(self.keys)] for packet in order]
        known = np.array([time for time in times if time is not None], np.int64)
        if len(known) < len(times) or (np.diff(known) <= 0).any():
            return np.arange(len(order)) / self.rate
        return ((known - known[0]) * self.unit).astype(np.float32).astype(np.float64)

    def places(self, order: Int64[np.ndarray, " frames"]) -> Int64[np.ndarray, " twice_packets"]:
        """The number of each packet's frame, and of a frame that it gives again; -1 where it gives none."""
        places = np.full(2 * len(self.keys), -1)
        places[order] = np.arange(len(order))
        return places

    def entries(self, order: Int64[np.ndarray, " frames"]) -> list[int]:
        """The packets at which decoding may begin: the first, and keyframes shown after all that came before them."""
        places = self.places(order)[: len(self.keys)]
        before = np.concatenate([[-1], np.maximum.accumulate(places)[:-1]])
        return [0, *(np.flatnonzero(self.keys[1:] & (places > before)[1:]) + 1).tolist()]

    def counted_by_decord(self) -> bool:
        """Whether every keyframe's number is its packet's, nothing decoded before it being shown after it."""
        order = self.in_order_of_times() if self.suits_decord and self.shown.all() and self.keys[0] else None
        if order is None:
            return False
        places = self.places(order)[: len(order)]
        numbers = np.flatnonzero(self.keys)
        return bool((places[numbers] == numbers).all() and (np.maximum.accumulate(places)[numbers] == numbers).all())


def _order(path: str, packets: Packets) -> Int64[np.ndarray, " frames"] | None:
    """The packets of the frames in the order shown; None where it is what the times say.

    The film's beginning is decoded, because after a cut some frames cannot be; where times do not tell, all of it is.
    """
    said = packets.in_order_of_times()
    second = [] if said is None else packets.entries(said)[1:2]
    with _stream(path) as stream:
        player = _Player(stream.codec_context, _demuxed(stream), len(packets.keys))
        came: list[int] = []
        if said is not None:
            for number, _ in player:
                came.append(number)
                if number in second or (len(came) == _WINDOW and came == said[:_WINDOW].tolist()):
                    rest = said[packets.places(said)[number] + 1 :]
                    break
            else:
                rest = said[:0]
            numbers = packets.places(said)[came]
            if (np.diff(numbers, prepend=-1) > 0).all():
                order = np.concatenate([came, rest])
                return None if len(order) == len(said) else order
        return np.array(came + [number for number, _ in player])


def _through_decord(path: str, choose: Choice, height: int, width: int) -> UInt8[np.ndarray, "chosen height width 3"]:
    reader = import_decord().VideoReader(path, num_threads=1, height=height, width=width)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    frames: np.ndarray = reader.get_batch(choose(starts - starts[0])).asnumpy()
    # decord divides a row's bytes, which FFmpeg pads as suits the processor, by the width for the number of channels
    if frames.shape[1:] != (height, width, 3):
        raise RuntimeError(f"frames have become {frames.shape[1:]}")
    return frames


def _through_pyav(
    path: str, order: Int64[np.ndarray, " frames"] | None, choose: Choice, height: int, width: int
) -> UInt8[np.ndarray, "chosen height width 3"]:
    with _stream(path) as stream:
        packets = _Notes(stream).finished()
    if order is None:
        order = packets.in_order_of_times()
    if order is None or order.max() >= 2 * len(packets.keys):
        raise BrokenSample("cannot be decoded (it was changed meanwhile)")
    numbers = choose(packets.starts(order))
    places, entries = packets.places(order), packets.entries(order)
    while True:
        with _stream(path) as stream:
            player = _Player(stream.codec_context, _demuxed(stream), len(packets.keys))
            try:
                return _decoded(player, numbers, places, entries, _Converter(height, width))
            except _NoEntry as wrong:
                entries.remove(wrong.packet)


def _decoded(
    player: _Player,
    numbers: Int64[np.ndarray, " chosen"],
    places: Int64[np.ndarray, " twice_packets"],
    entries: list[int],
    convert: _Converter,
) -> UInt8[np.ndarray, "chosen height width 3"]:
    """The frames of these numbers, in one pass that goes on to the keyframe before each where that is ahead."""
    from_there = [max(0, places[entry]) for entry in entries]
    made = np.empty((len(numbers), convert.height, convert.width, 3), np.uint8)
    shown = coming = None
    for row, number in enumerate(numbers.tolist()):
        entry = entries[bisect_right(from_there, number) - 1]
        if entry and entry >= player.position:
            shown, coming = player.go_on_to(entry, places), None
        while shown is None or places[shown[0]] < number:
            coming = coming or next((one for one in player if places[one[0]] >= 0), None)
            if coming is None or (shown is not None and places[coming[0]] > number):
                break
            shown, coming = coming, None
        if shown is None:
            raise BrokenSample("cannot be decoded (no frame comes out)")
        made[row] = convert(shown[1])
    return made


class _NoEntry(Exception):
    """A packet that is marked as a keyframe and is none."""

    def __init__(self, packet: int) -> None:
        super().__init__(packet)
        self.packet = packet


class _Player(Iterator[tuple[int, Any]]):
    """Decodes `count` packets: frames in the order shown, each with the number of its packet, or with `count` more
    where it comes out again, which happens to decoders at a loss after a cut.
    """

    def __init__(self, context: Any, packets: Iterator[Any], count: int = 0) -> None:
        self.position = 0  # the next packet's number
        self._context, self._packets = context, packets
        self._ready: deque[tuple[int, Any]] = deque()
        self._count, self._seen = count, set[int]()
        self._ended, self._problem = False, "no frame comes out"

    def first(self) -> tuple[int, Any]:
        """The first frame; raises BrokenSample."""
        first = next(self, None)
        if first is None:
            raise BrokenSample(f"cannot be decoded ({self._problem})")
        return first

    def __next__(self) -> tuple[int, Any]:
        while not self._ready:
            if self._ended:
                raise StopIteration
            packet = next(self._packets, None)
            if packet is None:
                self._ended = True
            else:
                packet.pts, packet.dts = self.position, None
                self.position += 1
            try:
                for frame in self._context.decode(packet):
                    if frame.pts is not None and frame.pts + self._count not in self._seen:
                        number = frame.pts + self._count * (frame.pts in self._seen)
                        self._seen.add(number)
                        self._ready.append((number, frame))
            except import_av().FFmpegError as error:  # one damaged packet: what follows may be whole
                self._problem = error.strerror or self._problem
        return self._ready.popleft()

    def go_on_to(self, packet: int, places: Int64[np.ndarray, " twice_packets"]) -> tuple[int, Any]:
        """The frame of this keyframe, with nothing decoded before it; those that are shown before it are passed over.

        Raises _NoEntry where it is no keyframe, or does not come out.
        """
        self._context.flush_buffers()
        self._ready.clear()
        while self.position < packet:
            next(self._packets, None)
            self.position += 1
        for number, frame in self:
            if number == packet and frame.key_frame and frame.pict_type in _INTRA:
                return number, frame
            if places[number] >= places[packet]:
                break
        raise _NoEntry(packet)


class _Converter:
    """Turns, resizes and makes RGB of frames by the filters that decord uses: uint8 [height, width, 3]."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self._of: tuple[Any, ...] | None = None
        self._graph: Any = None

    def __call__(self, frame: Any) -> UInt8[np.ndarray, "height width 3"]:
        of = frame.width, frame.height, frame.format.name, _quarters(frame)
        if of != self._of:
            self._of, self._graph = of, self._filters(frame)
        self._graph.push(frame)
        made: np.ndarray = self._graph.pull().to_ndarray()
        return made

    def _filters(self, frame: Any) -> Any:
        graph = import_av().filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
        chain = [
            *_TURNS[_quarters(frame)],
            ("scale", f"{self.width}:{self.height}"),
            ("format", "rgb24"),
            ("buffersink", None),
        ]
        graph.link_nodes(source, *(graph.add(name, settings) for name, settings in chain)).configure()
        return graph


def _quarters(frame: Any) -> int:
    """By how many quarters a frame is to be turned clockwise."""
    return round(-frame.rotation / 90) % 4


@contextlib.contextmanager
def _stream(path: str) -> Iterator[Any]:
    """A file's film, open in PyAV; raises BrokenSample."""
    av = import_av()
    with opened(Path(path)) as file:  # not by its name, which need not be UTF-8
        first_bytes(file, 1)
        try:
            container = av.open(file, metadata_errors="ignore")
        except av.FFmpegError:
            raise BrokenSample(
                "is no video: FFmpeg knows no such container, or it is cut short before its index"
            ) from None
        with container:
            stream = container.streams.best("video")
            if stream is None:
                raise BrokenSample("holds no video stream")
            stream.codec_context.thread_count = 1
            try:
                yield stream
            except (BrokenSample, UserError, MemoryError):
                raise
            except Exception as error:  # of any type, FFmpeg's and PyAV's own
                problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise BrokenSample(f"cannot be decoded ({problem})") from None


def _demuxed(stream: Any) -> Iterator[Any]:
    """The packets of a stream; those that come before the damage where the file is damaged."""
    with contextlib.suppress(import_av().FFmpegError):
        yield from (packet for packet in stream.container.demux(stream) if packet.size)


class _Notes:
    """Of a stream's packets, which `taken` hands on, what Packets holds."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._container = stream, stream.container.format.name
        self._codec = stream.codec_context.codec.canonical_name
        header = stream.codec_context.extradata or b""
        # bytes of the lengths before an H.264 packet's units, 0 where it is laid out otherwise
        self._prefix = (header[4] & 3) + 1 if self._codec == "h264" and header[:1] == b"\1" and len(header) > 4 else 0
        self._suits = self._container in _DECORD_FORMATS and self._codec in _DECORD_CODECS
        self._times: list[int | None] = []
        self._keys: list[bool] = []
        self._shown: list[bool] = []
        self.taken = self._taken()

    def _taken(self) -> Iterator[Any]:
        for packet in _demuxed(self._stream):
            self._times.append(packet.pts)
            self._keys.append(packet.is_keyframe)
            # VP8 has pictures that are for reference alone
            self._shown.append(not packet.is_discard and (self._codec != "vp8" or bool(memoryview(packet)[0] & 16)))
            if self._suits and packet.is_keyframe and self._codec == "h264":
                self._suits = _is_idr(memoryview(packet), self._prefix)
            yield packet

    def finished(self) -> Packets:
        """Once the rest is taken; raises BrokenSample where nothing is shown."""
        deque(self.taken, maxlen=0)
        if not any(self._shown):
            raise BrokenSample("cannot be decoded (no frame comes out)")
        # AVI stores no times: these are made up in the order of decoding
        made_up = self._container == "avi" and (
            self._stream.codec_context.has_b_frames or self._codec in ("h264", "hevc")
        )
        return Packets(
            times=[None] * len(self._times) if made_up else self._times,
            keys=np.array(self._keys),
            shown=np.array(self._shown),
            unit=float(self._stream.time_base),
            rate=float(self._stream.average_rate or self._stream.guessed_rate or 25),
            suits_decord=self._suits,
        )


def _is_idr(packet: memoryview, prefix: int) -> bool:
    """Whether an H.264 packet can be decoded without any before it; one at which a refresh begins cannot."""
    at = 0
    while prefix and at + prefix < len(packet):
        kind = packet[at + prefix] & 31
        if kind in (1, 2, 5):  # slices; others are parameters and remarks
            return kind == 5
        at += prefix + int.from_bytes(packet[at : at + prefix], "big")
    return False


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` returns or raises; BrokenSample, its thread abandoned, once it has taken longer than `seconds`.

    No reader outlives the thread, not even in the traceback of an exception: decord keeps pools of buffers by thread,
    and a reader that is collected in a forked process ends that process, its own decoding thread being missing there.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:
            error.__cause__ = error.__context__ = None
            errors.append(error.with_traceback(None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise BrokenSample(f"took longer than {seconds:g} s to decode")
    if errors:
        raise errors[0]
    return results[0]


def import_decord() -> ModuleType:
    """decord, which with FFmpeg is told to be quiet when nobody has imported it before; UserError if it is missing."""
    known = "decord" in sys.modules
    try:
        import decord
    except ImportError as error:
        raise UserError(f"Videos are read through decord and PyAV ({error}); pip install decord2 av.") from error
    if not known:
        decord.logging.set_level(decord.logging.QUIET)
    return decord


def import_av() -> ModuleType:
    """PyAV; UserError if it is missing."""
    try:
        import av
    except ImportError as error:
        raise UserError(f"Videos are read and written through PyAV ({error}); pip install av decord2.") from error
    return av
