"""Waveforms to log-mel spectrograms as Audio-MAE's front end makes them, in batches, on any device.

It is Kaldi's filter bank with the settings of Gong et al., "AST: Audio Spectrogram Transformer" (Interspeech 2021),
which Huang et al., "Masked Autoencoders that Listen" (NeurIPS 2022) kept: torchaudio's `compliance.kaldi.fbank` with
htk_compat, window_type="hanning", num_mel_bins=128, dither=0 and its defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn.functional import embedding_bag

from mmssl.errors import UserError

# Audio-MAE, section 4.1: 128 bands of a 25 ms Hanning window moved by 10 ms, at 16 kHz.
RATE = 16000
BANDS = 128
WINDOW = RATE * 25 // 1000
HOP = RATE * 10 // 1000
# Kaldi's defaults (feat/feature-window.h, feat/mel-computations.h), which the authors leave as they are.
_POINTS = 512  # the next power of two
_PREEMPHASIS = 0.97
_LOWEST, _HIGHEST = 20.0, RATE / 2  # Hz
_FLOOR = torch.finfo(torch.float32).eps
_AT_ONCE = 512  # frames: fewer leave a CPU waiting for calls, more for memory
_TOGETHER = 64  # sounds on a GPU, which at ten seconds each take 0.6 GB: a rank's whole batch may be hundreds


class _Constants(NamedTuple):
    """The window, and the filters' nonzero weights: those of filter f begin at entry first[f]."""

    window: Float32[Tensor, " 400"]
    points: Int64[Tensor, " entries"]
    weights: Float32[Tensor, " entries"]
    first: Int64[Tensor, " 128"]


def samples_of(frames: int) -> int:
    """The samples at 16 kHz that `frames` frames are made of."""
    return WINDOW + HOP * (frames - 1)


@torch.no_grad()
def log_mel(
    waveforms: Float[Tensor, "batch samples"], frames: int = 1024, lengths: Int64[Tensor, " batch"] | None = None
) -> Float32[Tensor, "batch 1 {frames} 128"]:
    """The log-mel spectrograms of mono sounds in -1..1 at 16 kHz, before normalisation: what a batch holds as `audio`.

    A row's mean is subtracted first. Frame t is the 25 ms that begin at t * 10 ms, band m the natural logarithm of the
    power in the m-th of 128 triangles that are evenly spaced from 20 Hz to 8 kHz in HTK's mel (1127 ln(1 + f / 700)),
    at least ln(2**-23) = -15.94.

    frames: frames of the result. Longer sounds are cut to their first ones; shorter ones are padded with 0 at the end,
        after the logarithm and before any normalisation, as the authors do. Ten seconds give 998.
    lengths: samples of each row that count, all by default; what follows them is not looked at. A row of less than 400
        (25 ms) has no frame.

    A row's result is that of `fbank(row - row.mean())` in torchaudio, on the same device and number of threads, to
    1e-4, and on a CPU has the same bits in any batch. There is no gradient.

    Raises UserError when the waveforms are no batch of floating point rows, or `frames` is less than 1.
    """
    if not waveforms.is_floating_point() or waveforms.ndim != 2 or frames < 1:
        raise UserError(
            f"Waveforms are floating point in -1..1 [batch, samples] and frames at least 1, not {waveforms.dtype} "
            f"{list(waveforms.shape)} and {frames}."
        )
    counts = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
    return filter_bank([row[:count].float() for row, count in zip(waveforms, counts)], frames, centre=True)


def centred(waveform: Float32[Tensor, " samples"]) -> Float32[Tensor, " samples"]:
    """The waveform without its mean."""
    return waveform - waveform.mean() if len(waveform) else waveform


@torch.no_grad()
def filter_bank(
    waveforms: Sequence[Float32[Tensor, " _"]], frames: int, centre: bool = False
) -> Float32[Tensor, "batch 1 {frames} 128"]:
    """`log_mel` of waveforms of any lengths; centre: their means are subtracted first."""
    made = torch.empty(len(waveforms), 1, frames, BANDS, device=waveforms[0].device)
    cuts, places = [], []
    for waveform, spectrogram in zip(waveforms, made[:, 0]):
        whole = max(0, min(frames, (len(waveform) - WINDOW) // HOP + 1))
        spectrogram[whole:] = 0.0
        if not whole:
            continue
        cut = (centred(waveform) if centre else waveform).unfold(0, WINDOW, HOP)[:whole]
        if made.device.type == "cpu":  # at once, while it is in the cache
            for some, place in zip(cut.split(_AT_ONCE), spectrogram[:whole].split(_AT_ONCE)):
                place.copy_(_levels(some))
        else:
            cuts.append(cut)
            places.append(spectrogram[:whole])
    for start in range(0, len(cuts), _TOGETHER):
        some = cuts[start : start + _TOGETHER]
        levels = _levels(torch.cat(some)).split([len(cut) for cut in some])
        for place, level in zip(places[start : start + _TOGETHER], levels):
            place.copy_(level)
    return made


def _levels(pieces: Float32[Tensor, "frames 400"]) -> Float32[Tensor, "frames 128"]:
    """Kaldi's steps in float32 and in its order: what lies far below a frame's peak is all rounding."""
    window, points, weights, first = _constants(pieces.device)
    emphasised = pieces.new_zeros(len(pieces), _POINTS)
    filled = emphasised[:, :WINDOW]
    pieces = pieces - pieces.mean(1, keepdim=True)
    torch.mul(pieces[:, :-1], _PREEMPHASIS, out=filled[:, 1:])
    torch.mul(pieces[:, :1], _PREEMPHASIS, out=filled[:, :1])
    torch.sub(pieces, filled, out=filled).mul_(window)
    squares = torch.view_as_real(torch.fft.rfft(emphasised)).square_()
    power = torch.add(squares[..., 0].T, squares[..., 1].T, out=pieces.new_empty(squares.shape[1], len(pieces)))
    # a sparse product: a tenth of a dense one's time, and in float32 whatever dense products are told to be
    bands = embedding_bag(points, power, first, mode="sum", per_sample_weights=weights)
    return bands.clamp_(min=_FLOOR).log_().T


def band_edges() -> tuple[float, ...]:
    """The 129 frequencies, in Hz, that part the bands of `log_mel`: half way, in mel, from one's peak to the next's."""
    low, step = _scale()
    return tuple(700.0 * math.expm1((low + (number + 0.5) * step) / 1127.0) for number in range(BANDS + 1))


def spectrograms(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of `SoundView(..., on_device=True)` with the `audio` that it would hold otherwise.

    Takes `waveform` [B, samples], `waveform.length` [B] and, of SpecAugment, `waveform.hidden` [B, 4] out of the batch;
    `audio` float32 [B, 1, frames, 128] is made on their device. So is `audio.partner` of what a loader gives as
    `waveform.partner` and so on. A batch without waveforms stays as it is.
    """
    made = {f"audio{of}": _audio(batch, of) for of in ("", ".partner") if f"waveform{of}" in batch}
    return made | {name: value for name, value in batch.items() if name.partition(".")[0] != "waveform"}


def _audio(batch: Mapping[str, Tensor], of: str) -> Float32[Tensor, "batch 1 frames bands"]:
    waveforms, lengths = batch[f"waveform{of}"], batch[f"waveform.length{of}"].tolist()
    frames = 1 + (waveforms.shape[1] - WINDOW) // HOP
    audio = filter_bank([row[:length] for row, length in zip(waveforms, lengths, strict=True)], frames)
    hidden = batch.get(f"waveform.hidden{of}")
    return audio if hidden is None else hide(audio, hidden)


def hide(
    audio: Float32[Tensor, "batch 1 frames bands"], hidden: Int64[Tensor, "batch 4"]
) -> Float32[Tensor, "batch 1 frames bands"]:
    """SpecAugment: 0 in each spectrogram's [first, stop) frames and [first, stop) bands.

    Before normalisation 0 is what pads short sounds. Source: Park et al., "SpecAugment" (Interspeech 2019), where
    Audio-MAE's authors apply it.
    """
    frame, band = (torch.arange(size, device=audio.device) for size in audio.shape[-2:])
    first, stop, lowest, above = hidden[:, :, None].unbind(1)
    covered = ((frame >= first) & (frame < stop))[:, :, None] | ((band >= lowest) & (band < above))[:, None, :]
    return audio.masked_fill(covered[:, None], 0.0)


@lru_cache(maxsize=16)
def _constants(device: torch.device) -> _Constants:
    filters = _triangles()
    numbers, points = filters.nonzero(as_tuple=True)
    first = torch.searchsorted(numbers, torch.arange(BANDS))
    window = torch.hann_window(WINDOW, periodic=False)
    return _Constants(*(each.to(device) for each in (window, points, filters[numbers, points], first)))


def _scale() -> tuple[float, float]:
    """Where the lowest triangle begins and how far the next one does from there, in HTK's mel."""
    low, high = (1127.0 * math.log(1.0 + hertz / 700.0) for hertz in (_LOWEST, _HIGHEST))
    return low, (high - low) / (BANDS + 1)


def _triangles() -> Float32[Tensor, "128 points"]:
    """Kaldi's MelBanks, in float32 as there: the weight of a point near a triangle's foot is all rounding."""
    low, step = _scale()
    number = torch.arange(BANDS)[:, None]
    left, centre, right = low + number * step, low + (number + 1.0) * step, low + (number + 2.0) * step
    # the point of 8 kHz is in no triangle
    mel = 1127.0 * (1.0 + RATE / _POINTS * torch.arange(_POINTS // 2) / 700.0).log()
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0.0)
