"""Log-mel and the sound pipeline against torchaudio's kaldi.fbank and soundfile used plainly, on one core.

    python -m benchmarks.audio_pipeline [--data DIR] [--rounds 5] [--seconds 10]

(a) `mmssl.audio.log_mel` of a batch of 64 clips of ten seconds in memory, against `kaldi.fbank` with Audio-MAE's
settings clip by clip, padded to 1024 frames and stacked to the same batch. (b) Sounds a second from files to batches of
log-mel: the loader, and, plainly, soundfile.read of the file, its mean channel, torchaudio's resample, a random cut of
`seconds`, kaldi.fbank. Two kinds of files are made when none are given: ten seconds at 16 kHz in WAV, and thirty at
44.1 kHz, stereo, in FLAC. One thread each; all alternate, so that what else the machine does hits all alike; medians
over the rounds and their ratios are printed as tables and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch.nn.functional import pad
from torchaudio.compliance.kaldi import fbank
from torchaudio.functional import resample

from benchmarks.machine import markdown, write
from mmssl.audio import RATE, log_mel
from mmssl.data import Loader, SoundClips, SoundSource, SoundView

FRAMES, BATCH = 1024, 64
OURS, PLAIN = "mmssl", "plainly"


def main() -> None:
    parser = argparse.ArgumentParser(description="Times log-mel and the sound pipeline against their plain uses.")
    parser.add_argument("--data", type=Path, help="a folder of sounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    waveforms = 0.1 * torch.randn(BATCH, 10 * RATE)
    rows = [compared("log-mel of 64 clips", {OURS: lambda: ours(waveforms), PLAIN: lambda: plain(waveforms)}, settings)]
    with tempfile.TemporaryDirectory() as scratch:
        folders = [settings.data] if settings.data else write_sounds(Path(scratch))
        for folder in folders:
            source = SoundSource(folder, SoundClips(settings.seconds))
            files = [source.root / path for path in source.paths][:BATCH]
            ways = {
                OURS: partial(our_sounds, source, len(files)),
                PLAIN: partial(plain_sounds, files, settings.seconds),
            }
            rows.append(compared(folder.name, ways, settings))
    chosen = {"rounds": settings.rounds, "seconds": settings.seconds, "own data": bool(settings.data)}
    path = write("audio-pipeline", torch.device("cpu"), {"settings": chosen, "rows": rows})
    print(f"{markdown(rows)}\n\n{path}")


def compared(what: str, ways: Mapping[str, Callable[[], int]], settings: argparse.Namespace) -> dict[str, str]:
    """Sounds a second of either way, and the median of the rounds' ratios."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for sounds in ways.values():
        sounds()
    for _ in range(settings.rounds):
        for name, sounds in ways.items():
            start = time.perf_counter()
            rates[name].append(sounds() / (time.perf_counter() - start))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(rates[OURS], rates[PLAIN], strict=True))
    told = {f"{name}, sounds/s": f"{statistics.median(values):.0f}" for name, values in rates.items()}
    return {"what": what, **told, "mmssl is faster by": f"{ratio:.2f}x"}


def ours(waveforms: torch.Tensor) -> int:
    return len(log_mel(waveforms, FRAMES))


def plain(waveforms: torch.Tensor) -> int:
    return len(torch.stack([plain_log_mel(waveform) for waveform in waveforms]))


def plain_log_mel(waveform: torch.Tensor, frames: int = FRAMES) -> torch.Tensor:
    """Audio-MAE's front end for one clip [samples], as its authors write it: [1, frames, 128]."""
    made = fbank(
        (waveform - waveform.mean())[None],
        htk_compat=True,
        sample_frequency=RATE,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_shift=10,
    )
    return pad(made, (0, 0, 0, max(0, frames - len(made))))[None, :frames]


def our_sounds(source: SoundSource, count: int) -> int:
    loader = Loader(source, SoundView(FRAMES), batch_size=count)
    return sum(len(batch["audio"]) for batch in loader.batches(0, 1))


def plain_sounds(files: list[Path], seconds: float) -> int:
    generator, made = np.random.default_rng(0), []
    for path in files:
        values, rate = soundfile.read(path, dtype="float32", always_2d=True)
        waveform = resample(torch.from_numpy(values.mean(1)), rate, RATE)
        start = generator.integers(max(1, len(waveform) - round(seconds * RATE) + 1))
        made.append(plain_log_mel(waveform[start : start + round(seconds * RATE)]))
    return len(torch.stack(made))


def write_sounds(root: Path, count: int = 32) -> list[Path]:
    """Noise that fades in and out, `count` files of each kind."""
    generator = np.random.default_rng(0)
    kinds = {"10 s, 16 kHz, WAV": (10, RATE, 1, ".wav"), "30 s, 44.1 kHz stereo, FLAC": (30, 44100, 2, ".flac")}
    for name, (seconds, rate, channels, ending) in kinds.items():
        (root / name).mkdir()
        level = 0.2 * np.sin(np.linspace(0, 9, seconds * rate))[:, None]
        for number in range(count):
            values = level * generator.standard_normal((seconds * rate, channels))
            soundfile.write(root / name / f"{number}{ending}", values.clip(-1, 1), rate)
    return [root / name for name in kinds]


if __name__ == "__main__":
    main()
