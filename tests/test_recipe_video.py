"""The video recipes as a user runs them: files in, an encoder, a report and numbers out."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import Encoder, SiamMAE, VideoMAE
from mmssl.cli import run
from mmssl.errors import UserError
from mmssl.objectives import load
from mmssl.report.run import write_report
from tests.films import film, noise_picture

ROOT = Path(__file__).parent.parent
SMALL = (
    "--model tiny --size 32 --patch 16 --epochs 1 --warmup-epochs 0 --batch-size 4 --workers 0 --log-every 1 "
    "--validate-every 2 --max-skipped 0.5 --device cpu --precision fp32"
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Two classes of four films of 12 frames, one file that is none, and a DAVIS folder of one sequence."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(8):
        picture = noise_picture(40, 48, seed=number)
        film(root / "films" / ("high", "low")[number % 2] / f"{number}.mp4", count=12, picture=picture)
    (root / "films" / "low" / "broken.mp4").write_text("not a film")
    for kind, mode in (("JPEGImages", "RGB"), ("Annotations", "L")):
        (root / "davis" / kind / "square").mkdir(parents=True)
        for frame in range(4):
            values = np.zeros((32, 48), np.uint8)
            values[8:24, 8 + 2 * frame : 24 + 2 * frame] = 1 if mode == "L" else 200
            Image.fromarray(values).convert(mode).save(root / "davis" / kind / "square" / f"{frame:05}.png")
    return root


def recipe(monkeypatch, name: str, line: str) -> int:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *line.split()])
    monkeypatch.setenv("COLUMNS", "120")
    return run(__import__(name).main)


def command(monkeypatch, line: str) -> None:
    from mmssl.cli import main

    monkeypatch.setattr(sys, "argv", ["mmssl", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0


def test_videos_become_a_videomae_a_report_and_accuracies(videos, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    line = f"--data {videos}/films --out {out} --frames 4 --stride 2 --repeats 2 {SMALL}"
    assert recipe(monkeypatch, "video_videomae", line) == 0, capsys.readouterr().err
    method = load(out / "final")
    assert isinstance(method, VideoMAE)
    assert method.config.encoder.tokenizers[0].size == (4, 32, 32)
    assert {path.stem for path in (out / "pictures").iterdir()} == {"reconstructions", "features"}
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["seen"] + rows[-1]["skipped"] == rows[-1]["step"] * 4
    assert recipe(monkeypatch, "video_videomae", f"{line} --stride 1") == 2  # other frames than in the past
    assert "sampling: " in capsys.readouterr().err
    assert recipe(monkeypatch, "video_videomae", f"--config {out}/settings.json --out {tmp_path}/again") == 0
    again = [json.loads(line)["loss"] for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert again == [row["loss"] for row in rows]
    reading = f"--model {out}/final --data {videos}/films --workers 0 --device cpu"
    command(monkeypatch, f"evaluate {reading} --clips 2 --stride 2")
    assert "| top-1 accuracy, % | kNN, all | linear, all |" in capsys.readouterr().out
    command(monkeypatch, f"export --model {out}/final --out {tmp_path}/theirs --to vit")
    assert "VideoMAEModel" in (tmp_path / "theirs" / "config.json").read_text()


def test_videos_become_a_siammae_that_follows_objects(videos, tmp_path, monkeypatch, capsys):
    out, davis = tmp_path / "run", videos / "davis"
    line = f"--data {videos}/films --out {out} --tracks {davis} --mask-ratio 0.5 {SMALL}"
    assert recipe(monkeypatch, "video_siammae", line) == 0, capsys.readouterr().err
    assert "J&F" in capsys.readouterr().out
    assert isinstance(load(out / "final"), SiamMAE)
    assert {path.stem for path in (out / "pictures").iterdir()} == {
        "reconstructions",
        "features",
        "attention",
        "heads",
        "track0",
    }
    assert write_report(out).read_text().count("data:image/png;base64") == 5
    command(monkeypatch, f"evaluate --model {out}/final --data {davis} --task masks --device cpu")
    assert "square" in capsys.readouterr().out
    line = f"--task masks --rule dino --side 64 --out {tmp_path}/scores --device cpu"
    command(monkeypatch, f"evaluate --model {out}/final --data {davis} {line}")
    assert json.loads((tmp_path / "scores" / "masks.json").read_text())[0]["sequence"] == "square"
    # an encoder of pictures on videos: features of a clip's frames, joined
    line = f"--frames 3 --stride 2 --out {tmp_path}/features.npz --workers 0 --device cpu"
    command(monkeypatch, f"embed --model {out}/final --data {videos}/films {line}")
    features = np.load(tmp_path / "features.npz")
    assert features["features"].shape == (8, 3 * 192)
    assert set(features["labels"]) == {"high", "low"}
    encoder = Encoder.from_pretrained(out / "final")
    assert encoder.features({"image": torch.zeros(1, 3, 32, 32, dtype=torch.uint8)}).shape == (1, 192)


def test_the_defaults_are_the_papers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from video_siammae import VideoSiamMAE
    from video_videomae import VideoVideoMAE

    config = VideoVideoMAE(data=Path("videos"))
    method, settings = config.method(), config.training(1, torch.device("cpu"))
    assert (settings.epochs, settings.batch_size, settings.base_lr, settings.warmup_epochs) == (800, 2048, 1.5e-4, 40)
    assert settings.min_lr == pytest.approx(8e-5)
    assert (config.frames, config.stride, config.size, method.mask_ratio, method.norm_pix) == (16, 4, 224, 0.9, True)
    decoder, encoder = method.decoder.transformer, method.encoder.transformer
    assert (encoder.dim, encoder.qkv_bias, decoder.dim, decoder.depth, decoder.heads) == (768, "query_value", 384, 4, 6)
    siamese = VideoSiamMAE(data=Path("videos"))
    method, settings = siamese.method(), siamese.training(1, torch.device("cpu"))
    # two pairs of each video that is opened: half as many visits
    assert (settings.epochs, settings.batch_size, settings.base_lr, settings.warmup_epochs) == (1000, 2048, 1.5e-4, 20)
    longer = VideoVideoMAE(data=Path("videos"), epochs=2400.0).training(1, torch.device("cpu"))
    assert (longer.epochs, longer.warmup_epochs) == (2400, 40)
    assert (siamese.repeats, siamese.crop_scale, method.mask_ratio, method.encoder.transformer.dim) == (
        2,
        (0.5, 1.0),
        0.95,
        384,
    )
    assert siamese.gap == pytest.approx((4 / 30, 48 / 30))


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("video_videomae", "--frames 5", "choose an even --frames"),
        ("video_videomae", "--size 100", "--size a multiple of --patch"),
        ("video_siammae", "--size 100", "patch 16 does not divide"),
        ("video_siammae", "--gap 2 1", "two ascending gaps"),
        ("video_videomae", "--data nowhere", "nowhere does not exist"),
        ("video_siammae", "--tracks nowhere", "nowhere"),
    ],
)
def test_bad_input_gets_one_sentence(videos, tmp_path, monkeypatch, capsys, name, line, words):
    assert recipe(monkeypatch, name, f"--data {videos}/films --out {tmp_path}/run --batch-size 4 {line}") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_method_is_named(tmp_path):
    Encoder(SiamMAE.config_class().encoder).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"holds Encoder; methods are .*MAE, .*SiamMAE, .*VideoMAE"):
        load(tmp_path)
