"""What `embed`, `neighbours` and `evaluate` do with folders as strangers have them, and what they say of it."""

import io
import os
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from mmssl import Encoder
from mmssl.cli import run
from mmssl.commands.embed import embed, neighbours
from mmssl.commands.evaluate import evaluate
from mmssl.commands.reading import Reading
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.modality import image

HERE = Reading(workers=0, device="cpu")
ODD = os.fsdecode(b"caf\xe9")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Encoder(vit_config("tiny", modality=image(3, (8, 8)), input_size=(16, 16))).save_pretrained(folder)
    return folder


def paint(path: Path, colour: tuple[int, ...]) -> None:
    """A disc of that colour; with a fourth number, on a ground as transparent as that, of the other colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.full((20, 20, len(colour)), colour, np.uint8)
    if len(colour) == 4:
        values[..., 3] = 255
        values[:10] = (*(255 - np.array(colour[:3])), colour[3])
    Image.fromarray(values).save(path)


def classes(root: Path, each: int = 5) -> Path:
    for number in range(each):
        for name, colour in (("red", (200, 5 * number, 0)), ("blue", (0, 5 * number, 200))):
            paint(root / name / f"{number}.png", colour)
    return root


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_names_of_any_bytes_are_embedded_and_told(model, tmp_path, capsys, kind):
    paint(tmp_path / "data" / ODD / f"{ODD}.png", (9, 9, 9))
    paint(tmp_path / "data" / "dog" / "1.png", (90, 9, 9, 0))
    paint(tmp_path / "data" / f"{ODD}.png", (90, 9, 9, 128))
    (tmp_path / "data" / "dog" / f"{ODD}.png").write_bytes(b"")
    out = tmp_path / ODD / f"features.{kind}"
    embed(model, tmp_path / "data", out, HERE)
    told = capsys.readouterr().out
    assert "skipped dog/caf\\udce9.png: is empty" in told
    assert "1 picture in no class folder, without a label: caf\\udce9.png" in told
    assert "2 pictures have transparent parts" in told
    names, labels = ["caf\\udce9.png", "caf\\udce9/caf\\udce9.png", "dog/1.png"], ["caf\\udce9", "dog"]
    if kind == "npz":
        found = np.load(out)
        assert (found["names"].tolist(), found["labels"].tolist()) == (names, ["", *labels])
    else:
        with open(out, "rb") as file:
            found = parquet.read_table(file).to_pydict()
        assert (found["name"], found["label"]) == (names, [None, *labels])


def test_what_lies_under_transparency_never_counts(model, tmp_path):
    for number in (1, 2):
        paint(tmp_path / "data" / f"{number}.png", (90, 9, 9, 0))
    values = np.array(Image.open(tmp_path / "data" / "2.png"))
    values[:10, :, :3] = 77
    Image.fromarray(values).save(tmp_path / "data" / "2.png")
    found = {}
    for background in ("white", "black"):
        embed(model, tmp_path / "data", tmp_path / "f.npz", Reading(workers=0, device="cpu", background=background))
        found[background] = np.load(tmp_path / "f.npz")["features"]
        assert np.allclose(*found[background], atol=1e-5)
    assert np.abs(found["white"] - found["black"]).max() > 1e-3
    embed(model, tmp_path / "data", tmp_path / "f.npz", HERE)
    assert np.array_equal(np.load(tmp_path / "f.npz")["features"], found["white"])


def test_evaluation_says_which_parts_it_took_and_how_large_they_are(model, tmp_path, capsys):
    classes(tmp_path / "Train")
    classes(tmp_path / "Validation", each=3)
    classes(tmp_path / "test", each=2)
    evaluate(model, tmp_path, None, HERE)
    told = capsys.readouterr().out
    assert "the train part is Train, not read: test\n" in told
    assert "the test part is Validation, not read: test\n" in told
    assert "train: 10 samples, 2 classes; test: 6 samples, 2 classes\n" in told
    assert "100.0" in told


def test_an_attentive_probe_stands_beside_the_others(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_module("mmssl.evaluation.attentive_probe"), "_STEPS", 30)
    classes(tmp_path)
    evaluate(model, tmp_path, None, HERE, baselines=False, attentive=True)
    told = capsys.readouterr().out
    assert "| top-1 accuracy, % | kNN, all | linear, all | attentive, all |" in told
    assert f"| {model.name} | 100.0 | 100.0 | 100.0 |" in told


def test_a_test_part_may_lie_elsewhere(model, tmp_path, capsys):
    classes(tmp_path / "here")
    classes(tmp_path / "there" / "train")
    classes(tmp_path / "there" / "val", each=3)
    evaluate(model, tmp_path / "here", None, HERE, baselines=False, test=tmp_path / "there")
    assert "train: 10 samples, 2 classes; test: 6 samples, 2 classes\n" in capsys.readouterr().out


def test_a_held_out_fifth_has_every_class_and_no_strays(model, tmp_path, capsys):
    classes(tmp_path)
    paint(tmp_path / "stray.png", (0, 200, 0))
    evaluate(model, tmp_path, None, HERE)
    told = capsys.readouterr().out
    assert "train: 8 samples, 2 classes; test: 2 samples, 2 classes (held out, stratified by class)\n" in told
    assert "1 picture in no class folder, without a label: stray.png" in told
    assert "100.0" in told


def test_a_class_that_is_tested_must_be_trained_on(model, tmp_path):
    for number in range(6):
        paint(tmp_path / str(number) / "1.png", (number, 0, 0))
    with pytest.raises(UserError, match=r"the test part has the class '\d', which the training part has not"):
        evaluate(model, tmp_path, None, HERE)


def test_a_command_prints_names_of_any_bytes(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "utf-8"))
    assert run(lambda: print(Path(ODD), flush=True)) == 0
    assert written.getvalue() == b"caf\\udce9\n"


def test_patch_features_are_the_tokens_in_the_order_of_the_grid(model, tmp_path):
    classes(tmp_path / "data")
    embed(model, tmp_path / "data", tmp_path / "patches.npz", HERE, patches=True)
    embed(model, tmp_path / "data", tmp_path / "pooled.npz", HERE)
    patches, pooled = (np.load(tmp_path / f"{name}.npz")["features"] for name in ("patches", "pooled"))
    assert patches.shape == (10, 2, 2, 192)
    np.testing.assert_allclose(patches.mean((1, 2)), pooled, atol=1e-5)
    embed(model, tmp_path / "data", tmp_path / "patches.parquet", HERE, patches=True)
    table = parquet.read_table(tmp_path / "patches.parquet").to_pydict()
    np.testing.assert_array_equal(np.array(table["feature"], np.float32), patches)


def test_neighbours_are_drawn_beside_their_queries_and_named(model, tmp_path, capsys):
    classes(tmp_path / "data")
    (tmp_path / "data" / "red" / "broken.png").write_bytes(b"")
    neighbours(model, tmp_path / "data", tmp_path / "drawn.png", HERE, 8, 3, ["red/2.png", "blue/0.png"])
    told = capsys.readouterr().out.splitlines()
    lines = dict(line.split(": ") for line in told if line.startswith(("red/2", "blue/0")))
    assert list(lines) == ["red/2.png", "blue/0.png"]
    for query, found in lines.items():
        assert len(found.split(", ")) == 3 and query not in found
        assert all(name.startswith(query.split("/")[0]) for name in found.split(", "))
    drawn = np.array(Image.open(tmp_path / "drawn.png").convert("RGB"))
    side = (drawn.shape[1] - 3 * 6) // 4
    assert drawn.shape[:2] == (2 * side + 6, 4 * side + 18)
    assert drawn[side // 2, side // 2].argmax() == 0 and drawn[-side // 2, side // 2].argmax() == 2
    with pytest.raises(UserError, match="no readable sample 'red/broken"):
        neighbours(model, tmp_path / "data", tmp_path / "drawn.png", HERE, 8, 3, ["red/broken.png"])
    neighbours(model, tmp_path / "data", tmp_path / "all.png", HERE, 100, 100, [])
    with Image.open(tmp_path / "all.png") as everything:
        assert everything.width == 10 * side + 9 * 6
