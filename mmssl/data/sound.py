"""Sounds: which part of a file makes a sample, and reading just that, as mono at 16 kHz; and views of sounds.

`SoundSource(root, SoundClips(10.0))` gives `waveform` [samples], `SoundView(1024)` makes `audio` [B, 1, time, mel].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from mmssl.audio import BANDS, RATE, WINDOW, centred, filter_bank, hide, samples_of
from mmssl.data.augment import one_thread
from mmssl.data.decode import BrokenSample, first_bytes
from mmssl.data.folders import part_of
from mmssl.data.source import FileSource, Source, Subset, read_slots, shares, told_of_part
from mmssl.data.views import Keys
from mmssl.errors import UserError
from mmssl.masking.noise import random_bits, uniform

if TYPE_CHECKING:
    from soundfile import SoundFile
    from torchaudio.transforms import Resample

ENDINGS = (
    *(".wav", ".flac", ".ogg", ".opus", ".mp3", ".oga", ".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
    *(".w64", ".rf64"),
)
# Sample rates in Hz that can be a sound's.
_RATES = (1000, 768000)
# The resampler's table grows with both terms of the ratio of two rates: 44101 Hz would take gigabytes, and is taken for
# 44100 Hz, which no listener hears. All usual rates are exact.
_LARGEST_TERM = 640
_VALUES_AT_ONCE = 2**20
_LONGEST = 2**31
_STREAMED = 2**32 - 2**16  # sizes from here on mean that a header was written before its sound was known
_PAGE = 65536  # the largest of Ogg
_PARTNERS = 64
# A seek into the last page of Vorbis is 64 samples off; Opus and MP3 need what came before.
_DECODED_IN_ORDER = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")


@dataclass(frozen=True)
class SoundClips:
    """`seconds` of a sound, or all of it where it is shorter.

    With `spread` 0 the start is random, from the noise's stream "clip"; with `spread` n, draw d gives clip d of n
    evenly spread ones (n = 1: the centre), for evaluation with `repeats=n`.
    """

    seconds: float = 10.0
    spread: int = 0

    def __post_init__(self) -> None:
        if self.seconds * RATE < WINDOW or self.spread < 0:
            raise UserError(
                f"Clips of sounds need at least 0.025 seconds and a spread of at least 0, not {self.seconds} and "
                f"{self.spread}."
            )

    def starts(self, length: int, keys: Keys) -> list[int]:
        """Each slot's first sample at 16 kHz, in a sound of `length` of them."""
        places = length - round(self.seconds * RATE) + 1
        if places <= 1:  # a draw costs more than decoding a short sound
            return [0] * len(keys.draw)
        return np.floor(shares("clip", 1, self.spread, keys)[:, 0] * places).astype(np.int64).tolist()


class SoundSource(FileSource):
    """The sounds of a folder, a manifest or tar shards as mono at 16 kHz (`pip install soundfile torchaudio`).

    root: a folder, whose files that end as `extensions` lists, at any depth, are taken in the order of their paths
        (classes as in FolderSource); or a manifest, `.csv` with a header or `.jsonl`, with the key `path`, relative
        to the manifest, and optionally `label` (or what `label` says), the class's name, or `labels`, several of them
        (see `read_manifest`); or tar shards (see `Shards`).

    A sample is {"waveform": float32 [samples]} in -1..1, of what libsndfile reads: WAV, FLAC, Ogg Vorbis, Opus, MP3,
    AIFF, AU, CAF, W64 and RF64, of 1 to 768 kHz, any number of channels, 8 to 32 bits or floating point. Channels are
    averaged; torchaudio's windowed sinc resamples. Only what a clip needs is read; Vorbis, Opus and MP3 are decoded
    from the file's beginning up to there, because what follows a seek in them is not what playing the file gives.

    BrokenSample are: what libsndfile cannot read; headers that promise more than the file holds, and Ogg without its
    last page; sounds of less than 25 ms, one frame; values that are not finite; and files silent from beginning to end
    (all samples equal), which hold nothing to learn. A silent part of another sound is a sample.

    Raises UserError when soundfile, torchaudio or the root is missing, the manifest is wrong, or no sound can be read.
    """

    kind = "sound"
    extensions = ENDINGS

    def __init__(self, root: str | Path, clips: SoundClips, *, label: str | None = None) -> None:
        _import_readers()
        super().__init__(*self.located(Path(root), label), channels=1)
        self.clips, self._audible = clips, set[int]()
        self.find_one_readable()

    @property
    def sampling(self) -> str:
        return f"{self.clips}"

    def read(self, index: int) -> dict[str, Tensor]:
        """What evaluation takes as draw 0."""
        zero = torch.zeros(1, dtype=torch.int64)
        return next(self.draw(index, Keys(0, torch.tensor([index]), zero, zero)))

    def draw(self, index: int, keys: Keys) -> Iterator[dict[str, Tensor]]:
        """One clip for each of the slots of `keys`; raises BrokenSample."""
        with self.opened(index) as file, _decoding(file) as sound:
            ratio = _ratio(sound.samplerate)
            length = math.ceil(sound.frames / ratio)
            if length < WINDOW:
                raise BrokenSample(f"lasts {1000 * length / RATE:.1f} ms, less than one frame of 25 ms")
            count = min(length, round(self.clips.seconds * RATE))
            clips = _clips(sound, ratio, self.clips.starts(length, keys), count)
            if not all(clip.isfinite().all() for clip in clips):
                raise BrokenSample("holds values that are not finite")
            if index not in self._audible:
                if any(_silent(clip) for clip in clips) and _silent_throughout(sound):
                    raise BrokenSample("is silent from beginning to end")
                self._audible.add(index)
        return ({"waveform": clip} for clip in clips)


class MixedSource(Subset):
    """Sounds of which a share comes with a partner, another of them, to be mixed with (see `SoundView`).

    probability: of having a partner; the authors' fine-tuning takes 0.5. Partner, clip of it and whether there is one
    are drawn from the stream "mix"; a partner that cannot be read is passed over for the next that the noise names, and
    counted where its own turn comes. A sample is the source's with `partner`, the number of its partner, itself where
    it has none, and `waveform.partner` float32 [samples], empty then.
    """

    def __init__(self, source: Source, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"The share of sounds that are mixed is a probability, not {probability}.")
        super().__init__(source, range(len(source)))
        self.probability = probability

    @property
    def sampling(self) -> str:
        return f"{super().sampling}, mixed={self.probability}"

    def draw(self, index: int, keys: Keys) -> Iterable[dict[str, Tensor]]:
        chances = uniform(1, stream="mix", **keys._asdict())[:, 0]
        samples = list(read_slots(self.source, index, keys))
        return [
            sample | (self._partner(keys, row) if chances[row] < self.probability else _unmixed(index))
            for row, sample in enumerate(samples)
        ]

    def _partner(self, keys: Keys, row: int) -> dict[str, Tensor]:
        own = Keys(keys.seed, *(each[row : row + 1] for each in keys[1:]))
        draw, *others = random_bits(_PARTNERS + 1, stream="mix/partner", **own._asdict())[0].tolist()
        for other in others:
            number = other % len(self)
            theirs = Keys(keys.seed, torch.tensor([number]), own.epoch, torch.tensor([draw % 2**31]))
            try:
                waveform = next(iter(read_slots(self.source, number, theirs)))["waveform"]
            except BrokenSample:
                continue
            return {"partner": torch.tensor(number), "waveform.partner": waveform}
        raise BrokenSample(f"found no partner: {_PARTNERS} other sounds in a row could not be read")


def _unmixed(index: int) -> dict[str, Tensor]:
    return {"partner": torch.tensor(index), "waveform.partner": torch.zeros(0)}


@dataclass(frozen=True)
class SoundView:
    """Waveforms as log-mel spectrograms: {"audio": float32 [B, 1, frames, 128]}, before normalisation (see `log_mel`).

    gain: a factor 0.5 + Beta(10, 10). roll: the clip is rolled round by a random number of its samples. The authors'
        pretraining says both; their roll draws its shift from the number of channels, which is one, so that theirs
        never moves a sample. Here it does.
    spec_augment: the most frames and the most bands that are set to 0 (fine-tuning: 192 and 48), torchaudio's masks.
    on_device: the batch holds the waveforms, and `mmssl.audio.spectrograms` makes `audio` of it where it lies; on a CPU
        with the same bits.

    Where samples have partners (see MixedSource), each is augmented alone, the partner is padded with 0 or cut to the
    sample's length, and the sum is weighted by `share` float32 [B], from Beta(10, 10), and 1 - `share`; `partner` int64
    [B] names the samples whose labels belong to it. Means are subtracted where the authors do. Everything is drawn from
    the stream "sound".
    """

    frames: int = 1024
    gain: bool = False
    roll: bool = False
    spec_augment: tuple[int, int] = (0, 0)
    on_device: bool = field(default=False, repr=False)  # decides on no value: a resumed run may change it

    def __post_init__(self) -> None:
        most = self.frames, BANDS
        if self.frames < 1 or not all(0 <= a <= b for a, b in zip(self.spec_augment, most)):
            raise UserError(
                f"A view of sounds needs at least one frame and hides at most all {most[0]} frames and {BANDS} bands, "
                f"not {self.frames} and {self.spec_augment}."
            )

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        with one_thread():
            return self._batch(samples, keys)

    def _batch(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        rows, extra = [], []
        numbers = uniform(3 * _BETA + 6, stream="sound", **keys._asdict()).double().numpy()
        for row, sample in enumerate(samples):
            share, own, other, rest = np.split(numbers[row], [_BETA, 2 * _BETA + 1, 3 * _BETA + 2])
            waveform, weight = self._augmented(sample["waveform"], own), 1.0
            if len(partner := sample.get("waveform.partner", torch.zeros(0))):
                weight = _beta(share)
                waveform = mixed(waveform, self._augmented(partner, other), weight)
            rows.append(waveform[: samples_of(self.frames)])
            extra.append((sample.get("partner"), weight, rest))
        batch: dict[str, Tensor] = {}
        hidden = torch.from_numpy(np.stack([self._hidden(rest) for *_, rest in extra]))
        if self.on_device:
            batch["waveform"] = torch.zeros(len(rows), samples_of(self.frames))
            for place, waveform in zip(batch["waveform"], rows):
                place[: len(waveform)] = waveform
            batch["waveform.length"] = torch.tensor([len(row) for row in rows])
            batch |= {"waveform.hidden": hidden} if any(self.spec_augment) else {}
        else:
            audio = filter_bank(rows, self.frames)
            batch["audio"] = hide(audio, hidden) if any(self.spec_augment) else audio
        partners = [partner for partner, *_ in extra if partner is not None]
        if partners:
            batch |= {"partner": torch.stack(partners), "share": torch.tensor([weight for _, weight, _ in extra])}
        return batch

    def _augmented(
        self, waveform: Float32[Tensor, " samples"], numbers: Float64[np.ndarray, " drawn"]
    ) -> Float32[Tensor, " samples"]:
        waveform = centred(waveform)
        if self.roll:
            waveform = waveform.roll(int(numbers[-1] * len(waveform)))
        return waveform * (0.5 + _beta(numbers[:_BETA])) if self.gain else waveform

    def _hidden(self, numbers: Float64[np.ndarray, " drawn"]) -> Int64[np.ndarray, " 4"]:
        """The first frame and the one after the last that are hidden, and the same of bands."""
        sizes = np.array([self.frames, BANDS])
        widths = numbers[[0, 2]] * self.spec_augment
        first = np.floor(numbers[[1, 3]] * (sizes - widths)).astype(np.int64)
        return np.stack([first, first + np.floor(widths).astype(np.int64)], 1).flatten()


# The tenth of 19 uniform numbers, in their order, is distributed as Beta(10, 10).
_BETA = 19


def _beta(numbers: Float64[np.ndarray, " 19"]) -> float:
    return float(np.sort(numbers)[_BETA // 2])


def mixed(
    waveform: Float32[Tensor, " samples"], partner: Float32[Tensor, " others"], share: float
) -> Float32[Tensor, " samples"]:
    """share * waveform + (1 - share) * partner, the partner padded with 0 or cut, the mean subtracted."""
    both = share * waveform
    both[: len(partner)] += (1 - share) * partner[: len(waveform)]
    return centred(both)


def open_sounds(path: str | Path, split: str | None, clips: SoundClips, *, label: str | None = None) -> SoundSource:
    """The `split` of a folder of sounds ("train", "test" or None, see `open_source`), or of a manifest, which has no
    parts; the rest as in SoundSource.
    """
    return told_of_part(SoundSource(part_of(Path(path), split), clips, label=label), Path(path), split)


def _import_readers() -> None:
    try:
        import soundfile  # noqa: F401
        import torchaudio  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Sounds are read by soundfile and torchaudio ({error}): pip install soundfile torchaudio"
        ) from error


@contextmanager
def _decoding(file: BufferedReader | BytesIO) -> Iterator[SoundFile]:
    """The sound of a file; whatever libsndfile refuses then raises BrokenSample."""
    from soundfile import LibsndfileError, SoundFile

    kind = first_bytes(file, 4)
    whole = kind != b"OggS" or _ends(file)
    try:
        with SoundFile(file) as sound:
            if not whole or _promises_more(sound):
                raise BrokenSample("is cut short: it ends before its header or its last page says")
            if not _RATES[0] <= sound.samplerate <= _RATES[1]:
                raise BrokenSample(f"has a sample rate of {sound.samplerate} Hz, which no sound has")
            yield sound
    except (BrokenSample, MemoryError):
        raise
    except LibsndfileError as error:
        text = error.error_string
        if "not recognised" in text:
            raise BrokenSample("is no sound: its content is of no kind that libsndfile reads") from error
        if "SF_INFO" in text:
            raise BrokenSample("has a header without a possible sample rate or number of channels") from error
        if "psf_fseek" in text or "lost sync" in text:
            raise BrokenSample("is damaged or cut short") from error
        raise BrokenSample(f"cannot be decoded ({text.rstrip('.')})") from error


def _ends(file: BufferedReader | BytesIO) -> bool:
    """Whether an Ogg file has its last page, which says so."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _PAGE))
    tail = file.read()
    file.seek(0)
    last = tail.rfind(b"OggS")
    return last >= 0 and len(tail) > last + 5 and bool(tail[last + 5] & 4)


def _promises_more(sound: SoundFile) -> bool:
    """Whether a WAV or AIFF file's header declares more sound than there is; libsndfile notes what there should be."""
    for line in sound.extra_info.splitlines():
        if line.lstrip().startswith(("data", "SSND")) and "(should be " in line:
            declared, actual = (int(word) for word in line.replace(")", "").split() if word.isdigit())
            return actual < declared < _STREAMED
    return False


def _ratio(rate: int) -> Fraction:
    """Samples of the file to one at 16 kHz."""
    return Fraction(rate, RATE).limit_denominator(_LARGEST_TERM)


def _clips(sound: SoundFile, ratio: Fraction, starts: list[int], count: int) -> list[Float32[Tensor, " samples"]]:
    """The `count` samples at 16 kHz from each of `starts`, as if the whole sound were resampled and then cut."""
    orig, new = ratio.numerator, ratio.denominator
    resampler = _resampler(orig, new)
    reach = resampler.width if ratio != 1 else 0
    # the resampler's phase begins anew every `orig` samples of the file
    begins = [max(0, start // new - -(-reach // orig)) for start in starts]
    stops = [min(sound.frames, -(-(start + count) // new) * orig + reach + orig) for start in starts]
    if sound.subtype in _DECODED_IN_ORDER:
        first = min(begins) * orig
        whole = _mono(sound, first, max(stops))
        pieces = [whole[begin * orig - first : stop - first] for begin, stop in zip(begins, stops)]
    else:
        pieces = [_mono(sound, begin * orig, stop) for begin, stop in zip(begins, stops)]
    made = [torch.from_numpy(piece) if ratio == 1 else resampler(torch.from_numpy(piece)) for piece in pieces]
    places = [start - begin * new for start, begin in zip(starts, begins)]
    return [each[place : place + count].clone() for each, place in zip(made, places)]


@lru_cache(maxsize=64)
def _resampler(orig: int, new: int) -> Resample:
    """It keeps its table, which costs more than resampling a short clip."""
    from torchaudio.transforms import Resample

    return Resample(orig, new)


def _mono(sound: SoundFile, first: int, stop: int) -> Float32[np.ndarray, " samples"]:
    """The samples [first, stop) of a file, its channels averaged; raises BrokenSample when there are fewer."""
    if stop - first > _LONGEST:
        raise BrokenSample(f"declares {sound.frames} samples, more than a sound has")
    if sound.subtype in _DECODED_IN_ORDER:
        for _ in _blocks(sound, first):
            pass
    else:
        sound.seek(first)
    values = np.empty(stop - first, np.float32)
    at = 0
    for block in _blocks(sound, len(values)):
        values[at : at + len(block)] = block[:, 0] if block.shape[1] == 1 else block.mean(1)
        at += len(block)
    if at < len(values):
        raise BrokenSample(f"is cut short: it holds {first + at} of {sound.frames} samples")
    return values


def _blocks(sound: SoundFile, count: int) -> Iterator[Float32[np.ndarray, "some channels"]]:
    """The next `count` samples of all channels, in blocks that bound the memory; fewer where the file ends."""
    most = max(1, _VALUES_AT_ONCE // sound.channels)
    while count > 0:
        block = sound.read(min(most, count), dtype="float32", always_2d=True)
        if not len(block):
            return
        yield block
        count -= len(block)


def _silent(values: Float32[Tensor, " samples"]) -> bool:
    return bool((values == values[0]).all())


def _silent_throughout(sound: SoundFile) -> bool:
    sound.seek(0)
    first = None
    for block in _blocks(sound, sound.frames):
        first = block[:1] if first is None else first
        if (block != first).any():
            return False
    return True
