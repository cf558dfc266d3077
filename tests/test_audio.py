"""Log-mel is Kaldi's filter bank with Audio-MAE's settings, in batches, to the last step of the authors' front end."""

import math

import pytest
import torch

from benchmarks.audio_pipeline import plain_log_mel
from mmssl.audio import log_mel
from mmssl.errors import UserError

SECOND = 16000


def official(waveform, frames):
    """The authors' `_wav2fbank`, before their normalisation."""
    return plain_log_mel(waveform, frames)[0]


def tone(hertz, seconds=1.0):
    phase = 2 * math.pi * hertz * torch.arange(round(seconds * SECOND)).double() / SECOND
    return 0.5 * phase.sin().float()


@pytest.mark.parametrize(
    "waveform",
    [
        0.1 * torch.randn(10 * SECOND),
        tone(1000, 10),
        torch.randn(SECOND) * torch.logspace(-6, 0, SECOND),
        0.01 * torch.randn(3 * SECOND) + 0.5,
        torch.randn(11 * SECOND),
        0.3 * torch.randn(400),
        torch.zeros(SECOND),
    ],
    ids=["noise", "tone", "from quiet to loud", "offset", "longer than the frames", "one frame", "silence"],
)
def test_log_mel_is_the_authors_front_end(waveform):
    made = log_mel(waveform[None])
    assert (made.shape, made.dtype) == ((1, 1, 1024, 128), torch.float32)
    torch.testing.assert_close(made[0, 0], official(waveform, 1024), rtol=0, atol=1e-4)


def test_a_tone_of_ten_seconds_has_the_known_values():
    """Those of transformers' filter bank, which computes in float64."""
    made = log_mel(tone(1000, 10)[None])[0, 0]
    assert made[0].argmax() == 43
    assert made.max().item() == pytest.approx(5.6266, abs=5e-4)
    assert made[:998].mean().item() == pytest.approx(-13.3172, abs=1e-3)
    assert made[500, [0, 32, 64, 127]].tolist() == pytest.approx([-15.9424, -9.5139, -15.1944, -15.9424], abs=1e-2)
    assert (made[998:] == 0).all() and (made[:998] != 0).all()
    normalised = (made + 4.2677393) / (2 * 4.5689974)
    assert normalised.mean().item() == pytest.approx(-0.95330, abs=1e-4)
    assert normalised[-1, 0].item() == pytest.approx(0.467032, abs=1e-5)


def test_rows_of_several_lengths_are_those_of_each_alone_bit_for_bit():
    """Whatever follows a row's end is not looked at."""
    lengths = torch.tensor([16000, 399, 400, 5000, 0, 12345, 1])
    waveforms = torch.randn(len(lengths), 16000) + 0.1
    together = log_mel(waveforms, 128, lengths)
    for row, length, made in zip(waveforms, lengths.tolist(), together, strict=True):
        assert torch.equal(made, log_mel(row[None, :length], 128)[0])
        if length >= 400:
            torch.testing.assert_close(made[0], official(row[:length], 128), rtol=0, atol=1e-4)
        else:
            assert (made == 0).all()
    assert torch.equal(log_mel(waveforms, 50), torch.cat([log_mel(row[None], 50) for row in waveforms]))


def test_reduced_precision_changes_nothing():
    waveforms = torch.randn(3, 8000)
    expected = log_mel(waveforms, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(log_mel(waveforms, 64), expected)
    assert torch.equal(log_mel(waveforms.double(), 64), expected)


def test_what_is_no_batch_of_waveforms_is_refused():
    for wrong in (torch.zeros(1, 800, dtype=torch.int16), torch.zeros(800), torch.zeros(1, 1, 800)):
        with pytest.raises((UserError, TypeError), match=r"floating point in -1\.\.1|parameter"):
            log_mel(wrong)
    with pytest.raises(UserError, match="frames at least 1"):
        log_mel(torch.zeros(1, 800), 0)
