"""The audio recipe as a user runs it: sounds in, an encoder, a report and numbers out."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import timm

from mmssl import AudioMAE, Encoder
from mmssl.objectives import load
from tests.test_recipe_video import command, recipe

ROOT = Path(__file__).parent.parent
SMALL = (
    "--model tiny --frames 64 --patch 16 --decoder-depth 1 --epochs 1 --warmup-epochs 0 --batch-size 4 --workers 0 "
    "--log-every 1 --validate-every 2 --max-skipped 0.5 --device cpu --precision fp32"
)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    """Two classes of eight tones, of several rates and channels, and one file that is none."""
    root, generator = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(16):
        kind, rate = ("high", "low")[number % 2], (8000, 16000, 44100)[number % 3]
        time = np.arange(rate) / rate
        wave = 0.3 * np.sin(2 * np.pi * (3000 if kind == "high" else 300) * time) + 0.01 * generator.normal(size=rate)
        (root / kind).mkdir(exist_ok=True)
        ending = ("wav", "flac", "ogg")[number % 3]
        soundfile.write(root / kind / f"{number}.{ending}", np.stack([wave] * (1 + number % 2), axis=1), rate)
    (root / "low" / "broken.wav").write_text("not a sound")
    return root


def test_sounds_become_an_audiomae_a_report_accuracies_and_a_timm_model(sounds, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    line = f"--data {sounds} --out {out} {SMALL}"
    assert recipe(monkeypatch, "audio_audiomae", line) == 0, capsys.readouterr().err
    assert "not a sound" not in capsys.readouterr().err
    method = load(out / "final")
    assert isinstance(method, AudioMAE) and method.config.encoder.tokenizers[0].size == (64, 128)
    names = {"reconstructions", "features", "attention", "heads"}
    assert {path.stem for path in (out / "pictures").iterdir()} == names
    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["seen"] + rows[-1]["skipped"] == rows[-1]["step"] * 4
    assert recipe(monkeypatch, "audio_audiomae", f"{line} --std 3.0") == 2  # other statistics than in the past
    assert "method.encoder.tokenizers.0.modality.std" in capsys.readouterr().err
    reading = f"--model {out} --data {sounds} --workers 0 --device cpu"
    command(monkeypatch, f"evaluate {reading} --clips 2")
    told = capsys.readouterr().out
    assert "| top-1 accuracy, % | kNN, all | linear, all |" in told
    assert "| log-mel | " in told and "raw pixels" not in told
    command(monkeypatch, f"embed {reading} --out {tmp_path}/features.npz")
    assert np.load(tmp_path / "features.npz")["features"].shape == (16, 192)
    command(monkeypatch, f"neighbours {reading} --out {tmp_path}/near.png --queries 2 --shown 2")
    command(monkeypatch, f"export --model {out} --out {tmp_path}/timm --to timm")
    assert timm.create_model(f"local-dir:{tmp_path}/timm", pretrained=True).patch_embed.img_size == (64, 128)
    assert Encoder.from_pretrained(tmp_path / "timm").config.tokenizers[0].modality.name == "audio"


def test_the_defaults_are_the_papers(monkeypatch):
    import torch

    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from audio_audiomae import AudioAudioMAE

    config = AudioAudioMAE(data=Path("sounds"))
    method, settings = config.method(), config.training(1, torch.device("cpu"))
    assert (settings.batch_size, settings.base_lr, settings.betas) == (512, 2e-4, (0.9, 0.95))
    assert (settings.epochs, settings.warmup_epochs, settings.weight_decay) == (33, 3, 1e-4)
    assert (method.mask_ratio, method.norm_pix, method.axes_ratio) == (0.8, True, None)
    decoder, tokenizer = method.decoder.transformer, method.encoder.tokenizers[0]
    assert (decoder.dim, decoder.depth, decoder.heads, tokenizer.size) == (512, 16, 16, (1024, 128))
    assert (tokenizer.modality.mean, tokenizer.modality.std) == ((-4.2677393,), (9.1379948,))
