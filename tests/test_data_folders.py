"""Folders as strangers have them: what means a part, what is a class, and that nothing vanishes without a word."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from mmssl.data import Clips, FolderSource, NoTestPart, hold_out, notes, open_source, open_videos, subset
from mmssl.data.decode import ENDINGS, FORMATS
from mmssl.data.source import ArraySource
from mmssl.errors import UserError
from tests.films import film


def paint(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), "red").save(path, None if path.suffix != ".jfif" else "JPEG")


def tree(root: Path, *names: str) -> Path:
    paint(*(root / name for name in names))
    return root


def labelled(root: Path, *parts: str) -> Path:
    return tree(root, *(f"{part}/{label}/{part}.png" for part in parts for label in ("cat", "dog")))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        *(("train", name) for name in ("val", "valid", "validation", "dev", "eval", "test", "testing", "VALID")),
        *(("Train", "Test"), ("TRAINING", "Testing"), ("training_set", "test_set"), ("train2017", "val2017")),
        *(("trainval", "test"), ("Train-Images", "Test Images")),
    ],
)
def test_folders_that_mean_parts_are_parts_and_never_classes(tmp_path, train, test):
    labelled(tmp_path, train, test)
    for split, part in ((None, train), ("train", train), ("test", test)):
        source = open_source(tmp_path, split)
        assert (source.paths, source.classes) == ([f"cat/{part}.png", f"dog/{part}.png"], ["cat", "dog"])
    assert notes(open_source(tmp_path, "train"), open_source(tmp_path, "test")) == [
        f"{tmp_path}: the train part is {train}",
        f"{tmp_path}: the test part is {test}",
    ]
    assert FolderSource(tmp_path).labels is None


@pytest.mark.parametrize(
    ("folders", "part"), [(("train", "Train", "val"), "train"), (("train", "valid", "validation"), "test")]
)
def test_two_folders_for_one_part_are_one_sentence(tmp_path, folders, part):
    labelled(tmp_path, *folders)
    with pytest.raises(UserError, match=rf"{tmp_path} has the folders \w+ and \w+, which both mean its {part} part"):
        open_source(tmp_path)


def test_val_counts_before_test_and_what_is_not_read_is_said(tmp_path):
    labelled(tmp_path, "train", "val", "test", "Test", "extra")
    assert open_source(tmp_path, "test").paths[0] == "cat/val.png"
    assert notes(open_source(tmp_path, "test")) == [f"{tmp_path}: the test part is val, not read: Test, extra, test"]
    assert notes(open_source(tmp_path)) == [f"{tmp_path}: the train part is train, not read: Test, extra, test, val"]


def test_names_that_only_resemble_a_part_are_classes(tmp_path):
    names = ["device", "test tubes", "training shoes", "trains", "valley"]
    assert open_source(tree(tmp_path, *(f"{name}/1.png" for name in names))).classes == names


def test_a_test_part_beside_class_folders_is_not_trained_on(tmp_path):
    tree(tmp_path, "cat/1.png", "dog/2.png", "Test/cat/3.png", "Test/dog/4.png")
    train, test = open_source(tmp_path, "train"), open_source(tmp_path, "test")
    assert (train.paths, train.classes) == (["cat/1.png", "dog/2.png"], ["cat", "dog"])
    assert (test.paths, test.classes) == (["cat/3.png", "dog/4.png"], ["cat", "dog"])
    assert "the name means a part and no class: Test" in notes(train)[0]


def test_a_test_part_alone_is_nothing_to_train_on(tmp_path):
    with pytest.raises(UserError, match=r"no picture beside its test part; give .*/Test if that is meant"):
        open_source(labelled(tmp_path, "Test"))


def test_a_training_part_alone_has_its_classes_and_no_test_part(tmp_path):
    labelled(tmp_path, "train", "other")
    assert open_source(tmp_path).classes == ["cat", "dog"]
    with pytest.raises(NoTestPart):
        open_source(tmp_path, "test")


def test_a_flat_train_beside_other_folders_may_be_a_vehicle(tmp_path):
    tree(tmp_path, "bus/1.png", "car/2.png", "train/3.png")
    with pytest.raises(UserError, match=r"the folder train beside bus, car: give .*/train if it is the training part"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "train")) == 1


def test_films_have_the_same_parts(tmp_path):
    for number, name in enumerate(("Train/x", "Train/y", "validation/x")):
        film(tmp_path / name / f"{number}.mp4", count=2, size=(64, 64))
    train, test = (open_videos(tmp_path, split, Clips(2, 1)) for split in ("train", "test"))
    assert (train.classes, test.paths) == (["x", "y"], ["x/2.mp4"])
    assert notes(test) == [f"{tmp_path}: the test part is validation"]


def test_pictures_outside_the_class_folders_have_no_label_and_take_nobody_elses(tmp_path):
    tree(tmp_path, "cat/1.png", "dog/2.png", "stray.png", "unlabeled/3.png")
    source = open_source(tmp_path)
    assert (source.paths, source.labels) == (["cat/1.png", "dog/2.png", "stray.png", "unlabeled/3.png"], [0, 1, -1, -1])
    assert notes(source) == [f"{tmp_path}: 2 pictures in no class folder, without a label: stray.png, unlabeled/3.png"]


def test_every_kind_that_pillow_decodes_is_found_and_what_is_left_out_is_said(tmp_path):
    kinds = (".bmp", ".gif", ".jfif", ".jp2", ".ppm", ".tga", ".ico", ".pcx", ".dib", ".PNG", ".jpe", ".qoi", ".sgi")
    tree(tmp_path, *(f"{kind[1:]}/1{kind}" for kind in kinds))
    for name in ("bird/1.heic", "bird/2.HEIC", "bmp/notes.txt", "Makefile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    source = open_source(tmp_path)
    assert source.classes == sorted(kind[1:] for kind in kinds)
    assert {source.read(index)["image"].shape[0] for index in range(len(source))} == {3}
    assert notes(source) == [
        f"{tmp_path}: left out 4 files: 2 .heic, 1 .txt, 1 without an ending",
        f"{tmp_path}: no picture in bird",
    ]
    with pytest.raises(UserError, match=r"has files but no picture; pictures end in .jpg, .* \(it has 2 \.heic\)"):
        open_source(tmp_path / "bird")


def test_the_endings_are_pillows():
    Image.init()
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}
    assert known <= set(ENDINGS)


def test_two_links_to_one_folder_both_count_and_circles_end(tmp_path):
    tree(tmp_path / "far", "1.png", "deep/2.png")
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "itself").symlink_to("itself")
    source = FolderSource(tmp_path / "data")
    assert source.paths == ["a/1.png", "a/deep/2.png", "b/1.png", "b/deep/2.png"]
    assert source.classes == ["a", "b"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    tree(tmp_path, "cat/1.png", "dog/2.png", "lost+found/3.png")
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(tmp_path)
    assert len(source) == 2
    assert notes(source) == [f"{tmp_path}: cannot be opened, and left out: lost+found"]


def test_a_name_that_is_not_utf8_is_read_and_told_as_text(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    tree(tmp_path, f"{odd}/{odd}.png", "dog/1.png", f"{odd}.png")
    source = open_source(tmp_path)
    assert source.read(1)["image"].shape == (3, 4, 6)
    for text in (source.name(1), *source.classes, *notes(source)):
        text.encode()
    assert (source.name(1), source.classes) == ("caf\\udce9/caf\\udce9.png", ["caf\\udce9", "dog"])


def pictures(labels):
    return ArraySource(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, list("abcdefghij"))


def test_a_held_out_part_has_its_share_of_every_class():
    few = pictures([label for label in range(5) for _ in range(2)])
    rest, held = hold_out(few, 0.2)
    assert rest.labels == held.labels == [0, 1, 2, 3, 4]
    uneven = pictures([0] * 90 + [1] * 7 + [2] * 2 + [3])
    rest, held = hold_out(uneven, 0.2, seed=1)
    assert [held.labels.count(label) for label in range(4)] == [18, 1, 1, 0]
    assert sorted(rest.indices + held.indices) == list(range(100))
    assert hold_out(uneven, 0.2, seed=1)[1].indices == held.indices != hold_out(uneven, 0.2, seed=2)[1].indices
    tens = hold_out(pictures([n % 10 for n in range(133)]), 0.2)[1]
    assert len(tens) == 27
    assert {tens.labels.count(label) for label in range(10)} == {2, 3}


def test_a_part_for_watching_ignores_the_classes():
    labels = [label for label in range(10) for _ in range(2)]
    rest, held = hold_out(pictures(labels), 0.05, stratify=False)
    assert (len(rest), len(held)) == (19, 1)
    unlabelled = subset(pictures(labels), range(20))
    unlabelled.labels = None
    assert hold_out(unlabelled, 0.05)[1].indices == held.indices
