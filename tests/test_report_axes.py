"""Spectrograms in the report: their scales are true, what is hidden is grey, and the originals can be heard."""

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmssl.audio import RATE, log_mel
from mmssl.modality import AUDIO, Axis
from mmssl.report.axes import with_axes
from mmssl.report.sounds import LONGEST, ogg


def opened(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)))


def tone(hertz: float, seconds: float = 1.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


def test_a_tone_lies_where_the_scale_has_its_frequency_and_a_click_where_it_has_its_time():
    right, up = AUDIO.scales((96, 128))
    tones = log_mel(torch.stack([tone(hertz) for hertz in up.marks[:-1]]), 96)
    for hertz, spectrogram in zip(up.marks[:-1], AUDIO.upright(tones)[:, 0]):
        band = 127 - int(spectrogram[:, 48].argmax())  # from below
        assert up.edges[max(0, band - 1)] < hertz < up.edges[band + 2]
    assert up.edges[0] > 20 and 7900 < up.edges[-1] < 8000
    click = torch.zeros(1, RATE)
    click[0, RATE // 2] = 1.0
    loudest = AUDIO.upright(log_mel(click, 96))[0, 0].sum(0).argmax()
    assert right.edges[loudest] == pytest.approx(0.5, abs=0.025)
    assert AUDIO.scales((96, 64)) is None  # bands of an unknown front end


def test_marks_stand_at_their_values_from_the_left_and_from_below():
    axes = Axis("s", (0.0, 1.0, 2.0, 4.0), (2.0,)), Axis("Hz", (0.0, 100.0, 300.0), (100.0, 300.0))
    picture = torch.tensor([[0.0, 0.0, 1.0], [torch.nan, torch.nan, torch.nan]])[None, None]
    shown = opened(with_axes([picture, picture], axes))
    side = 128  # pixels of one value
    left, top = 40, 20
    marks = np.flatnonzero(shown[:, left - 2, 3])
    assert [mark - top for mark in marks if mark <= top + 2 * side] == [0, side]
    across = np.flatnonzero(shown[top + 2 * side + 1, :, 3])
    assert across.tolist() == [left + 2 * side, left + 2 * side + 3 * side + 8]
    values = shown[[top + 9, top + 9, top + 2 * side - 9], [left + 9, left + 3 * side - 9, left + 9], :3].tolist()
    assert values[2] == [128] * 3 and sum(values[0]) < sum(values[2]) < sum(values[1])


def test_wide_pictures_stand_below_each_other():
    axes = AUDIO.scales((1024, 128))
    shown = opened(with_axes([torch.rand(2, 1, 128, 1024)] * 3, axes))
    assert shown.shape[1] - 1024 < 60 and 2 * 3 * 128 < shown.shape[0] < 2 * 3 * 128 + 150
    assert opened(with_axes([torch.rand(2, 1, 128, 48)] * 3, AUDIO.scales((48, 128)))).shape[1] < 750


def test_a_sound_is_heard_again_from_a_small_file():
    wave = tone(440.0, LONGEST + 2) * torch.linspace(0, 1, (LONGEST + 2) * RATE)
    file = ogg(wave)
    heard, rate = soundfile.read(io.BytesIO(file), dtype="float32")
    assert (len(heard), rate) == (LONGEST * RATE, RATE) and len(file) < 80_000
    assert np.corrcoef(heard, wave[: len(heard)])[0, 1] > 0.99
    assert len(ogg(0.1 * torch.randn(LONGEST * RATE))) < 80_000
