"""What `mmssl evaluate` and `embed` make of a model of several modalities and of aligned rasters."""

import json
import re
import sys
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import Encoder, MultiMAE
from mmssl.cli import main
from mmssl.data import AlignedView, EvalView, evaluation_batches, open_aligned
from mmssl.data.rasters import rasters_of
from mmssl.objectives.multimae import MultiMAEConfig, multimae_decoder_config, multimae_encoder_config
from mmssl.objectives.rasters import raster_tasks
from mmssl.report.dense import DENSE_PICTURE, dense_told

DECLARED = """
[[modality]]
name = "image"
folder = "rgb"
patch = 4
[[modality]]
name = "elevation"
kind = "continuous"
patch = 4
std = 1000
[[modality]]
name = "land"
kind = "labels"
channels = 3
patch = 2
stride = 2
embedding = 4
"""
SIDE = 16


def samples(folder, count, seed):
    """Colours, metres that follow from them, and land where these are above 0; reddish ones in a class of their own."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        kind = ("blue", "red")[number % 2]
        colours = generator.integers(0, 200, (SIDE, SIDE, 3), np.uint8)
        colours[..., 0] += np.uint8(55 * (number % 2))
        metres = 10.0 * (colours[..., 0].astype(np.float32) - colours[..., 2])
        for name in ("rgb", "elevation", "land"):
            (folder / name / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(folder / "rgb" / kind / f"{number}.png")
        np.save(folder / "elevation" / kind / f"{number}.npy", metres)
        Image.fromarray((metres > 0).astype(np.uint8)).save(folder / "land" / kind / f"{number}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Aligned data in two parts, of which one sample lacks its elevation, and a model of all three modalities."""
    folder = tmp_path_factory.mktemp("aligned")
    (folder / "data").mkdir()
    (folder / "data" / "modalities.toml").write_text(DECLARED)
    for part, count in (("train", 80), ("val", 20)):
        samples(folder / "data" / part, count, count)
    (folder / "data" / "train" / "elevation" / "red" / "3.npy").unlink()
    modalities = tuple(raster.modality for raster in rasters_of([folder / "data" / "modalities.toml"]))
    torch.manual_seed(0)
    encoder = multimae_encoder_config("tiny", modalities, (4, 4))
    encoder = replace(encoder, transformer=replace(encoder.transformer, dim=16, depth=1, heads=2))
    config = MultiMAEConfig(encoder, raster_tasks(modalities), multimae_decoder_config(16, 1, 2), visible=8)
    MultiMAE(config).save_pretrained(folder / "multimae")
    return folder


def told(monkeypatch, capsys, code, *arguments):
    """What a call prints, of mistakes the sentence."""
    monkeypatch.setattr(sys, "argv", ["mmssl", *map(str, arguments), "--workers", "0", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code in ((0, None) if code == 0 else (code,)), err
    return err if code else out


def dense(root, *more):
    return ("evaluate", "--model", root / "multimae", "--data", root / "data", "--task", "dense", *more)


def test_a_probe_of_every_pixel_is_measured_told_and_drawn(root, tmp_path, monkeypatch, capsys):
    given = ("--inputs", "rgb", "--target", "elevation", "--where", "land", "--out", tmp_path)
    out = told(monkeypatch, capsys, 0, *dense(root, *given))
    assert "1 of 80 samples lack elevation" in out and "train: 79 samples; test: 20 samples\n" in out
    found = json.loads((tmp_path / "dense.json").read_text())
    assert (found["inputs"], found["target"], found["where"]) == (
        ["image"], "elevation", {"name": "land", "classes": [1, 2]},
    )  # fmt: skip
    assert out.endswith("\n".join(dense_told(found)) + "\n")
    model, initial, raw, floor = found["rows"]
    assert [row["representation"] for row in found["rows"]] == [
        "multimae", "random initialisation", "raw values of the patch", "mean",
    ]  # fmt: skip
    assert raw["r2"] > 0.99 > max(model["r2"], initial["r2"]) and abs(floor["r2"]) < 0.2
    assert raw["absolute"] < 20 < floor["absolute"] and {"relative", "delta1"} <= set(raw)
    land = sum(int((np.load(path) > 0).sum()) for path in (root / "data" / "val" / "elevation").rglob("*.npy"))
    assert found["pixels"] == land
    with Image.open(BytesIO((tmp_path / DENSE_PICTURE).read_bytes())) as picture:
        shown = np.array(picture.convert("RGB"))
    assert (shown == 128).all(-1).any()  # what is no land is grey


def test_labels_are_asked_of_all_other_modalities_at_their_own_stride(root, tmp_path, monkeypatch, capsys):
    out = told(monkeypatch, capsys, 0, *dense(root, "--target", "land", "--out", tmp_path))
    found = json.loads((tmp_path / "dense.json").read_text())
    assert found["inputs"] == ["image", "elevation"] and found["where"] is None
    assert found["pixels"] == 20 * (SIDE // 2) ** 2
    raw, floor = found["rows"][2:]
    assert floor["representation"] == "largest class" and raw["miou"] > 0.9 > floor["miou"]
    assert raw["iou"][2] is None and "IoU of each class" in out


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ((), "name it by --target"),
        (("--target", "elevatio"), "the data hold no modality 'elevatio': did you mean 'elevation'"),
        (("--target", "land", "--inputs", "imge"), "the data hold no modality 'imge': did you mean 'image'"),
        (("--target", "land", "--where", "elevation"), "elevation has numbers, and only classes say where"),
        (("--target", "elevation", "--where", "land=3"), "land has the classes 0 to 2; write land=1,2"),
        (("--target", "elevation", "--where", "land=2"), "the training part has no pixel of elevation that is asked"),
        (("--target", "image", "--modalities", "image=rgb"), "there is nothing to read beside image"),
        (("--target", "depth", "--modalities", "image=rgb", "depth=depth"), "No sample of .* has depth"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_sentence(root, monkeypatch, capsys, given, sentence):
    assert re.search(sentence, told(monkeypatch, capsys, 2, *dense(root, *given)))


def test_a_plain_folder_and_labels_of_no_class_are_named(root, tmp_path, monkeypatch, capsys):
    samples(tmp_path / "plain", 4, 0)
    given = ("evaluate", "--model", root / "multimae", "--task", "dense", "--target", "land", "--data")
    assert "is not declared: give name=folder" in told(monkeypatch, capsys, 2, *given, tmp_path / "plain")
    (tmp_path / "modalities.toml").write_text(DECLARED.replace("stride = 2", "stride = 4"))
    error = told(monkeypatch, capsys, 2, *given, tmp_path / "plain", "--inputs", "image", "land")
    assert "image of 16 x 16 pixels and land of 32 x 32: declare the stride" in error
    (tmp_path / "modalities.toml").write_text(DECLARED)
    for path in (tmp_path / "plain" / "land").rglob("*.png"):
        Image.fromarray(np.full((SIDE, SIDE), 9, np.uint8)).save(path)
    error = told(monkeypatch, capsys, 2, *given, tmp_path / "plain")
    assert "land/blue/0.png has the label 9, and land has 3 classes, 0 to 2" in error


def features(path):
    found = np.load(path)
    return torch.from_numpy(found["features"]), found["names"].tolist(), found["labels"].tolist()


def test_any_of_its_modalities_are_embedded(root, tmp_path, monkeypatch, capsys):
    given = ("embed", "--model", root / "multimae", "--data", root / "data", "--out", tmp_path / "f.npz")
    encoder = Encoder.from_pretrained(root / "multimae").eval()
    source = open_aligned(root / "data", "train")
    view = AlignedView(EvalView(SIDE), source.rasters)
    (batch,) = evaluation_batches(source.whole(), view, batch_size=80)
    for asked, read, count in (
        ((), ("image", "elevation", "land"), 79),
        (("--inputs", "rgb"), ("image",), 80),
        (("--inputs", "land", "elevation"), ("elevation", "land"), 79),
    ):
        told(monkeypatch, capsys, 0, *given, *asked)
        vectors, names, labels = features(tmp_path / "f.npz")
        assert len(names) == count and labels == [name.split("/")[0] for name in names]
        with torch.no_grad():
            expected = encoder.features({name: batch[name] for name in read})
        rows = [index for index, name in enumerate(names) if name != "red/3"]
        torch.testing.assert_close(vectors[rows], expected, rtol=1e-4, atol=1e-5)
    told(monkeypatch, capsys, 0, *given, "--patches")
    assert features(tmp_path / "f.npz")[0].shape == (79, 3 * 16, 16)
    told(monkeypatch, capsys, 0, *given, "--patches", "--inputs", "elevation")
    assert features(tmp_path / "f.npz")[0].shape == (79, 4, 4, 16)


def test_pictures_that_declare_nothing_are_read_alone(root, tmp_path, monkeypatch, capsys):
    given = ("embed", "--model", root / "multimae", "--out", tmp_path / "f.npz", "--data")
    told(monkeypatch, capsys, 0, *given, root / "data" / "train", "--inputs", "rgb")
    declared, *_ = features(tmp_path / "f.npz")
    told(monkeypatch, capsys, 0, *given, root / "data" / "train" / "rgb")
    torch.testing.assert_close(features(tmp_path / "f.npz")[0], declared, rtol=1e-4, atol=1e-5)
    neighbours = ("neighbours", "--model", root / "multimae", "--out", tmp_path / "n.png", "--queries", "2", "--data")
    for data in (root / "data", root / "data" / "train" / "rgb"):
        told(monkeypatch, capsys, 0, *neighbours, data)
        assert (tmp_path / "n.png").stat().st_size


def test_classes_are_probed_of_any_modalities(root, tmp_path, monkeypatch, capsys):
    given = ("evaluate", "--model", root / "multimae", "--data", root / "data" / "val", "--out", tmp_path)
    out = told(monkeypatch, capsys, 0, *given)
    assert "train: 16 samples, 2 classes; test: 4 samples, 2 classes (held out" in out
    rows = json.loads((tmp_path / "accuracies.json").read_text())
    found = {(row["representation"], row["probe"]): row["accuracy"] for row in rows if row["budget"] == "all"}
    assert list(found) == [
        (name, probe) for name in ("multimae", "random initialisation", "raw values") for probe in ("kNN", "linear")
    ]
    assert found["raw values", "linear"] == 1
    assert "| multimae |" in told(monkeypatch, capsys, 0, *given, "--inputs", "elevation", "--baselines", "off")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--data", "{}/data", "--inputs", "lnd"), "the data hold no modality 'lnd': did you mean 'land'"),
        (("--data", "{}/data", "--frames", "2"), "which are no videos: leave out --frames"),
        (
            ("--data", "{}/data/val/rgb", "--inputs", "elevation"),
            "does not declare .* the model reads image, elevation",
        ),
        (("--data", "{}/data/val/rgb", "--inputs", "image", "land"), "choose one of them by --inputs"),
        (("--data", "{}/data/val/rgb", "--inputs", "audio"), "reads .*: choose one of image, elevation, land"),
        (("--data", "{}/data", "--modalities", "depth=depth"), "the data hold depth: there is nothing to read"),
    ],
)
def test_what_cannot_be_read_is_said_in_a_sentence(root, tmp_path, monkeypatch, capsys, given, sentence):
    asked = [text.format(root) for text in given]
    for call in (("embed", "--out", tmp_path / "f.npz"), ("evaluate",)):
        assert re.search(sentence, told(monkeypatch, capsys, 2, *call, "--model", root / "multimae", *asked))
