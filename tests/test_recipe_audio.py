"""The audio recipe as a user runs it: sounds in, an encoder, a report and numbers out."""

import json
import shutil
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import timm

from mmssl import AudioMAE, Encoder
from mmssl.objectives import load
from mmssl.training import read_metrics
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
    assert (out / "report.html").read_text().count('src="data:audio/ogg;base64,') == 1  # one is held out
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


def test_log_mel_on_the_device_trains_to_the_same_bits_also_from_the_middle_on(sounds, tmp_path, monkeypatch, capsys):
    line = f"--data {sounds} {SMALL} --roll --at-once 2 --save-every 2 --keep 0 --tracker none"
    for place in ("workers", "device"):
        assert recipe(monkeypatch, "audio_audiomae", f"{line} --out {tmp_path}/{place} --log-mel {place}") == 0
    half = "step-00000002"
    shutil.copytree(tmp_path / "workers" / half, tmp_path / "resumed" / half)
    assert recipe(monkeypatch, "audio_audiomae", f"{line} --out {tmp_path}/resumed --log-mel device") == 0
    assert "resuming after step 2" in capsys.readouterr().out
    runs = [tmp_path / run for run in ("workers", "device", "resumed")]
    assert len({(run / "final" / "model.safetensors").read_bytes() for run in runs}) == 1
    told = [read_metrics(run)[-1] for run in runs]
    assert len({(row["loss"], row["heldout_loss"], row["grad_norm"]) for row in told}) == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--frames 100", "patches of 16 x 16 do not fill 100 times x 128 mel bands: choose another --frames"),
        ("--frames 48", "(4, 4) patches do not tile (3, 8) of them: take a multiple of 64 times (--frames)"),
        ("--data {}/none", "has files but no sound; sounds end in .wav"),
        ("--data {}/film", "film.wav, is no sound: its content is of no kind"),
        ("--data {}/clock", "clock.wav, has a header without a possible sample rate"),
        (
            "--data {}/list.csv",
            "list.csv holds no readable sound: 1 of 1 files were tried, and the first, missing.wav,",
        ),
        ("--label tone", "are its folders; 'tone' names those of manifests and shards"),
    ],
)
def test_bad_input_gets_one_sentence(sounds, tmp_path, monkeypatch, capsys, line, words):
    for name in ("none", "film", "clock"):
        (tmp_path / name).mkdir()
    (tmp_path / "none" / "clip.mp4").touch()
    (tmp_path / "film" / "film.wav").write_bytes(b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2" + bytes(200))
    wave = bytearray((sounds / "low" / "3.wav").read_bytes())
    wave[24:28] = bytes(4)  # the sample rate
    (tmp_path / "clock" / "clock.wav").write_bytes(wave)
    (tmp_path / "list.csv").write_text("path\nmissing.wav\n")
    line = f"--data {sounds} --out {tmp_path}/run --batch-size 4 {line.format(tmp_path)}"
    assert recipe(monkeypatch, "audio_audiomae", line) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def shards(sounds, tmp_path_factory) -> Path:
    """The sounds in two shards, a training and a test part, their class in the JSON beside them as `pitch`."""
    root = tmp_path_factory.mktemp("shards")
    whole = sorted(path for path in sounds.glob("*/*") if path.name != "broken.wav")
    for part, chosen in (("train", whole[:6] + whole[8:14]), ("val", whole[2:8] + whole[10:])):
        (root / part).mkdir()
        with tarfile.open(root / part / "0.tar", "w") as tar:
            for path in chosen:
                told = json.dumps({"pitch": path.parent.name, "number": int(path.stem)}).encode()
                for name, content in ((path.name, path.read_bytes()), (f"{path.stem}.json", told)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
    return root


def test_a_key_of_the_json_in_shards_is_the_label(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    line = f"--data {shards} --out {tmp_path}/run {SMALL} --steps 2 --tracker none"
    assert recipe(monkeypatch, "audio_audiomae", f"{line} --label tone") == 2
    assert "has 'tone' in its JSON: choose one of number, pitch" in capsys.readouterr().err
    assert recipe(monkeypatch, "audio_audiomae", f"{line} --label pitch") == 0
    assert {"knn_accuracy", "linear_accuracy"} <= read_metrics(tmp_path / "run")[-1].keys()
    reading = f"--model {tmp_path}/run --data {shards} --label pitch --workers 0 --device cpu"
    command(monkeypatch, f"evaluate {reading} --baselines off")
    assert "train: 12 samples, 2 classes; test: 12 samples, 2 classes" in capsys.readouterr().out
    command(monkeypatch, f"embed {reading} --out {tmp_path}/features.npz")
    assert set(np.load(tmp_path / "features.npz")["labels"]) == {"high", "low"}


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
