"""Sources: what a path holds, in which order, with which labels, and one clear sentence when it holds nothing."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.data import (
    ArraySource,
    BrokenSample,
    EvalView,
    FolderSource,
    JoinedSource,
    Loader,
    PairView,
    hold_out,
    open_source,
    subset,
)
from mmssl.errors import UserError


def paint(path, value=0, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def write_idx(folder, prefix, images, labels):
    folder.mkdir(exist_ok=True)
    for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
        header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        (folder / name).write_bytes(gzip.compress(header + array.tobytes()))


def test_a_tree_of_any_depth_in_the_order_of_paths(tmp_path):
    for name in ("b.JPG", "a.png", "deep/er/still/c.webp", "deep/d.Tiff", ".hidden.png", ".git/e.png", "deep/.f.jpg"):
        paint(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    np.save(tmp_path / "z.npy", np.zeros((3, 4, 5), np.uint8))
    source = FolderSource(tmp_path)
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a.png", "b.JPG", "deep/d.Tiff", "deep/er/still/c.webp", "z.npy"]
    assert (source.labels, source.classes) == (None, [])
    assert source.read(4)["image"].shape == (3, 4, 5)


def test_two_or_more_first_level_folders_are_classes(tmp_path):
    for name in ("dog/1.png", "cat/kittens/2.png", "cat/3.png"):
        paint(tmp_path / name)
    source = FolderSource(tmp_path)
    assert [source.name(i) for i in range(3)] == ["cat/3.png", "cat/kittens/2.png", "dog/1.png"]
    assert (source.labels, source.classes) == ([0, 0, 1], ["cat", "dog"])


def test_one_folder_of_pictures_is_no_class(tmp_path):
    paint(tmp_path / "all" / "1.png")
    assert FolderSource(tmp_path).labels is None


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    paint(tmp_path / "far" / "1.png")
    (tmp_path / "data" / "near").mkdir(parents=True)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "near" / "loop").symlink_to(tmp_path / "data")
    assert FolderSource(tmp_path / "data").paths == ["link/1.png"]


def test_a_file_that_vanishes_is_a_broken_sample(tmp_path):
    paint(tmp_path / "1.png")
    source = FolderSource(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(BrokenSample, match="No such file"):
        source.read(0)


def test_splits_are_found(tmp_path):
    for name in ("train/x/1.png", "train/y/2.png", "val/x/3.png", "val/y/4.png"):
        paint(tmp_path / name)
    for split, first in ((None, "x/1.png"), ("train", "x/1.png"), ("test", "x/3.png")):
        source = open_source(tmp_path, split)
        assert (len(source), source.name(0), source.labels) == (2, first, [0, 1])
    (tmp_path / "val").rename(tmp_path / "test")
    assert open_source(tmp_path, "test").name(0) == "x/3.png"
    assert len(open_source(tmp_path / "train")) == 2
    with pytest.raises(ValueError, match="split must be"):
        open_source(tmp_path, "validation")


def test_a_plain_folder_has_no_test_part(tmp_path):
    paint(tmp_path / "1.png")
    assert open_source(tmp_path).channels == 3
    assert open_source(tmp_path, "train", channels=1).read(0)["image"].shape == (1, 6, 8)
    with pytest.raises(UserError, match="has no test part"):
        open_source(tmp_path, "test")


def test_idx_files(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([0, 1, 2, 1, 0], np.uint8)
    write_idx(tmp_path, "train", images, labels)
    write_idx(tmp_path, "t10k", images[:2], labels[:2])
    source = open_source(tmp_path)
    assert (len(source), source.channels, source.labels, source.classes) == (5, 1, [0, 1, 2, 1, 0], ["0", "1", "2"])
    assert torch.equal(source.read(3)["image"], torch.from_numpy(images[3:4]))
    test = open_source(tmp_path, "test", channels=3)
    assert (len(test), test.channels, test.name(1)) == (2, 3, f"{tmp_path.name}/test[1]")
    assert torch.equal(test.read(1)["image"], torch.from_numpy(images[[1, 1, 1]]))
    (tmp_path / "classes.txt").write_text("shirt\ntrouser\nankle boot\n")
    assert open_source(tmp_path).classes == ["shirt", "trouser", "ankle boot"]


@pytest.mark.parametrize(
    "damage", [b"", b"no gzip", gzip.compress(b"\0\0"), gzip.compress(b"\0\0\x08\x03" + bytes(99))]
)
def test_damaged_idx_files_are_named(tmp_path, damage):
    write_idx(tmp_path, "train", np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz cannot be read"):
        open_source(tmp_path)


def test_idx_pictures_without_labels_are_refused(tmp_path):
    write_idx(tmp_path, "train", np.zeros((2, 28, 28), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(UserError, match="t10k-images"):
        open_source(tmp_path, "test")
    write_idx(tmp_path, "train", np.zeros((3, 28, 28), np.uint8), np.zeros(2, np.uint8))
    with pytest.raises(UserError, match="3 train pictures but 2 labels"):
        open_source(tmp_path)


def test_missing_empty_and_unreadable_folders_each_say_so(tmp_path):
    for make, words in (
        (lambda: None, "does not exist"),
        (lambda: (tmp_path / "data").mkdir(), "is empty"),
        (lambda: (tmp_path / "data" / "notes.txt").write_text("words"), "has files but no picture"),
        (
            lambda: (tmp_path / "data" / "words.jpg").write_text("words"),
            "no readable picture.*words.jpg, is no picture",
        ),
    ):
        make()
        with pytest.raises(UserError, match=words):
            open_source(tmp_path / "data")
    with pytest.raises(UserError, match="is a file, not a folder"):
        open_source(tmp_path / "data" / "notes.txt")
    paint(tmp_path / "data" / "zz.png")
    assert len(open_source(tmp_path / "data")) == 2


def test_arrays_subsets_and_a_held_out_part():
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1).expand(100, 1, 4, 4)
    source = ArraySource(images, list(range(100)), [str(n) for n in range(100)], name="numbers")
    part = subset(source, [7, 3])
    assert (len(part), part.labels, part.name(0), int(part.read(1)["image"][0, 0, 0])) == (2, [7, 3], "numbers[7]", 3)
    rest, held = hold_out(source, 0.1, seed=4)
    assert (len(rest), len(held)) == (90, 10)
    assert sorted(rest.labels + held.labels) == list(range(100))
    assert held.labels == hold_out(source, 0.1, seed=4)[1].labels != hold_out(source, 0.1, seed=5)[1].labels
    for fraction in (0.0, 1.0, 0.999):
        with pytest.raises(UserError, match="leaves one part empty"):
            hold_out(source, fraction)
    with pytest.raises(ValueError, match="uint8"):
        ArraySource(images.float())
    with pytest.raises(ValueError, match="99 labels for 100 images"):
        ArraySource(images, range(99))


class Texts:
    """Three texts of 1 to 3 words."""

    labels, classes, channels = None, (), 9

    def __len__(self):
        return 3

    def name(self, index):
        return f"text {index}"

    def read(self, index):
        return {"text": torch.arange(1, index + 2), "text.words": torch.arange(index + 1)}


def test_joined_sources_follow_each_other_and_tell_what_a_sample_lacks():
    pictures = ArraySource(torch.full((4, 3, 8, 8), 7, dtype=torch.uint8), [0, 1, 0, 1], ["a", "b"])
    joined = JoinedSource([subset(pictures, [3, 0]), Texts()])
    names = [joined.name(index) for index in range(len(joined))]
    assert names == ["array[3]", "array[0]", "text 0", "text 1", "text 2"]
    assert joined.labels == [1, 0, -1, -1, -1] and joined.classes == ["a", "b"]
    view = PairView(EvalView(8), 4, pad=9, unpaired=True)
    (batch,) = Loader(joined, view, batch_size=5, shuffle=False).batches(0, 1)
    assert batch["image.present"].tolist() == [True, True, False, False, False]
    assert torch.equal(batch["text.present"], ~batch["image.present"])
    assert batch["text.length"].tolist() == [0, 0, 1, 2, 3] and batch["text"][4].tolist() == [1, 2, 3, 9]
    assert batch["image"].flatten(1).float().mean(dim=1).tolist() == [7, 7, 0, 0, 0]
    with pytest.raises(UserError, match="nothing to read"):
        JoinedSource([])
