"""`evaluate` and `embed` on sounds: several labels each, several clips each, an attentive probe, and what is wrong."""

import csv
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl import Encoder
from mmssl.commands.embed import embed
from mmssl.commands.evaluate import evaluate
from mmssl.commands.features import features_and_patches_of
from mmssl.commands.reading import Reading
from mmssl.data import ArraySource
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.modality import AUDIO, image

HERE = Reading(workers=0, device="cpu")
RATE = 16000
NOTES = {"low": 300, "middle": 1200, "high": 4000}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    audio = replace(AUDIO, patch=(8, 32))
    Encoder(vit_config("tiny", modality=audio, input_size=(16, 128))).save_pretrained(folder)
    return folder


def sing(path: Path, notes: tuple[str, ...], number: int = 0, seconds: float = 0.2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * RATE)) / RATE
    generator = np.random.default_rng(number)
    wave = 0.01 * generator.normal(size=len(time))
    for note in notes:
        wave += 0.2 * np.sin(2 * np.pi * NOTES[note] * time + 6 * generator.uniform())
    soundfile.write(path, wave, RATE, subtype="FLOAT")


CHORDS = [("low",), ("middle",), ("high",), ("low", "middle"), ("middle", "high"), ("low", "high")]


def chords(folder: Path, name: str, chords: list[tuple[str, ...]], each: int) -> Path:
    """A manifest of sounds and the notes in them."""
    rows = [("path", "labels")]
    for number, notes in enumerate(chords * each):
        sing(folder / name / f"{number}.wav", notes, number)
        rows.append((f"{name}/{number}.wav", ";".join(notes)))
    with open(folder / f"{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / f"{name}.csv"


def test_several_labels_are_measured_by_mean_average_precision(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_module("mmssl.evaluation.attentive_probe"), "_STEPS", 60)
    train, test = chords(tmp_path, "train", CHORDS, 5), chords(tmp_path, "eval", [("low",), ("middle",)], 3)
    evaluate(model, train, tmp_path / "out", HERE, attentive=True, test=test)
    told = capsys.readouterr().out
    assert "train: 30 samples with 1.5 labels on average, 3 classes; test: 6 samples with 1.0 labels on average" in told
    assert "chance: 50.0 %, samples in a random order\nnot in the test part, and left out of the mean: high\n" in told
    assert "| mean average precision, % | linear, all | attentive, all |" in told
    rows = json.loads((tmp_path / "out" / "accuracies.json").read_text())
    found = {(row["representation"], row["probe"]): row for row in rows}
    assert {probe for name, probe in found if name == "log-mel"} == {"linear"}
    assert found["log-mel", "linear"]["accuracy"] == found[model.name, "linear"]["accuracy"] == 1
    assert found[model.name, "attentive"]["accuracy"] > 0.9
    assert {row["metric"] for row in rows} == {"mean average precision"}


def test_without_a_test_part_a_fifth_of_a_manifest_is_held_out(model, tmp_path, capsys):
    evaluate(model, chords(tmp_path, "all", CHORDS, 5), None, HERE, baselines=False)
    told = capsys.readouterr().out
    assert "train: 24 samples with 1.5 labels on average, 3 classes; test: 6 samples" in told
    assert "(held out, stratified by class)" in told


def test_files_that_a_manifest_names_and_that_are_not_there_are_skipped_and_told(model, tmp_path, capsys):
    train = chords(tmp_path, "train", CHORDS, 3)
    (tmp_path / "train" / "7.wav").unlink()
    evaluate(model, train, None, replace(HERE, clips=2, batch_size=3), baselines=False)
    told = capsys.readouterr().out
    assert told.count("skipped train/7.wav: cannot be opened (No such file or directory)") == 1
    for file in (tmp_path / "train").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no readable sound: 18 of 18 files were tried, and the first, train/0\.wav"):
        evaluate(model, train, None, HERE)


def test_labels_that_do_not_fit_are_named(model, tmp_path):
    train, test = chords(tmp_path, "train", [("low",), ("middle",)], 3), chords(tmp_path, "eval", CHORDS, 1)
    with pytest.raises(UserError, match="the test part has the class 'high', which the training part has not"):
        evaluate(model, train, None, HERE, test=test)
    for notes in ("low", "middle", "high"):
        sing(tmp_path / "folders" / ("val" if notes == "high" else "train") / notes / "1.wav", (notes,))
        sing(tmp_path / "folders" / "train" / "middle" / f"{notes}.wav", (notes,))
        sing(tmp_path / "folders" / "val" / "low" / f"{notes}.wav", (notes,))
    with pytest.raises(UserError, match="the test part has the class 'high', which the training part has not"):
        evaluate(model, tmp_path / "folders", None, HERE)
    with pytest.raises(UserError, match="the training part has one label a sample, the test part several"):
        evaluate(model, tmp_path / "folders", None, HERE, test=test)
    text = test.read_text().replace("low;high", "")
    test.write_text(text)
    with pytest.raises(UserError, match=r"labels 5 of its 6 sounds, eval/5\.wav is the first without"):
        evaluate(model, train, None, HERE, test=test)
    test.write_text("path,labels\n" + "".join(f"eval/{n}.wav,;\n" for n in range(6)))
    with pytest.raises(UserError, match="the test part has no labels"):
        evaluate(model, train, None, HERE, test=test)
    with pytest.raises(UserError, match=r"No row of the manifest .* has a 'tags'"):
        evaluate(model, train, None, replace(HERE, label="tags"))


def test_the_clips_of_a_sound_are_evenly_spread_and_averaged(model, tmp_path):
    """A sound of two halves: two clips of it are one of each, and their mean is its feature."""
    clip = 16 * 160 + 240  # 16 frames
    for name, seconds in (("a", 0.5), ("b", 0.7)):
        sing(tmp_path / "whole" / f"{name}.wav", ("low",), seconds=seconds)
        wave, _ = soundfile.read(tmp_path / "whole" / f"{name}.wav", dtype="float32")
        places = len(wave) - clip + 1
        for number in range(2):
            start = int((number + 0.5) / 2 * places)
            (tmp_path / "parts").mkdir(exist_ok=True)
            soundfile.write(
                tmp_path / "parts" / f"{name}{number}.wav", wave[start : start + clip], RATE, subtype="FLOAT"
            )
    found = {}
    for name, clips in (("whole", 2), ("parts", 1)):
        embed(model, tmp_path / name, tmp_path / "features.npz", replace(HERE, clips=clips))
        found[name] = np.load(tmp_path / "features.npz")["features"]
    np.testing.assert_allclose(found["whole"], found["parts"].reshape(2, 2, -1).mean(1), atol=1e-5)


def test_a_sound_of_which_one_clip_is_broken_is_left_out_whole(model, tmp_path, capsys):
    for number in range(4):
        sing(tmp_path / "sounds" / f"{number}.wav", ("low",), number, seconds=1.0)
    wave, _ = soundfile.read(tmp_path / "sounds" / "1.wav", dtype="float32")
    wave[-RATE // 4] = np.nan  # in the last of three clips
    soundfile.write(tmp_path / "sounds" / "1.wav", wave, RATE, subtype="FLOAT")
    embed(model, tmp_path / "sounds", tmp_path / "features.npz", replace(HERE, clips=3, batch_size=4))
    assert np.load(tmp_path / "features.npz")["names"].tolist() == ["0.wav", "2.wav", "3.wav"]
    assert capsys.readouterr().out.count("skipped 1.wav: holds values that are not finite") == 1


def test_several_labels_are_written_with_the_features(model, tmp_path):
    from pyarrow import parquet

    listed = chords(tmp_path, "all", CHORDS, 1)
    for ending in ("npz", "parquet"):
        embed(model, listed, tmp_path / f"features.{ending}", HERE)
    wanted = [sorted(each) for each in CHORDS]
    assert [each.split(";") for each in np.load(tmp_path / "features.npz")["labels"].tolist()] == wanted
    assert parquet.read_table(tmp_path / "features.parquet").to_pydict()["label"] == wanted


def test_an_attentive_probe_finds_what_sounds_are_with_several_clips_each(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_module("mmssl.evaluation.attentive_probe"), "_STEPS", 60)
    for number in range(12):
        for note in NOTES:
            sing(tmp_path / note / f"{number}.wav", (note,), number, seconds=0.5)
    evaluate(model, tmp_path, tmp_path / "out", replace(HERE, clips=2), attentive=True)
    told = capsys.readouterr().out
    assert "| top-1 accuracy, % | kNN, all | linear, all | attentive, all |" in told
    assert "attentive probe's learning rate and weight decay" in told
    found = {row["representation"]: row for row in json.loads((tmp_path / "out" / "accuracies.json").read_text())}
    assert (found[model.name]["probe"], found[model.name]["accuracy"]) == ("attentive", 1)


def test_an_attentive_probe_of_single_frames_of_videos_is_refused():
    encoder = Encoder(vit_config("tiny", modality=image(3, (8, 8)), input_size=(16, 16)))
    frames = ArraySource(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="leave out --frames"):
        features_and_patches_of({"": encoder}, frames, replace(HERE, frames=2), torch.device("cpu"))
