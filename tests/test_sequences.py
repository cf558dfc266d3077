"""Folders of labelled videos in the layouts of DAVIS and JHMDB, and what is said about broken ones."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from mmssl.data.sequences import DavisFolder, JhmdbFolder
from mmssl.errors import UserError

MASK = np.zeros((6, 8), np.uint8)
MASK[2:4, 4:6], MASK[0] = 3, 255


def write_davis(root, names=("bear", "cow"), level="480p", palette=True, count=3, suffix=".jpg"):
    for name in names:
        pictures, annotations = (root / kind / level / name for kind in ("JPEGImages", "Annotations"))
        pictures.mkdir(parents=True)
        annotations.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 6), (40 * number, 0, 200)).save(pictures / f"{number:05d}{suffix}")
            mask = Image.fromarray(MASK)
            if palette:
                mask.putpalette([9, 9, 9, *([7] * 765)])  # colours say nothing, indices are the ids
            mask.save(annotations / f"{number:05d}.png")
    return root


@pytest.mark.parametrize("level", ["480p", ""])
@pytest.mark.parametrize("palette", [True, False])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_davis_sequences_are_read_with_their_ids(tmp_path, level, palette, suffix):
    folder = DavisFolder(write_davis(tmp_path, level=level, palette=palette, suffix=suffix), short_side=None)
    assert (folder.names, len(folder)) == (["bear", "cow"], 2)
    first, second = folder
    assert (first.name, second.name) == ("bear", "cow")
    assert (first.frames.shape, first.frames.dtype) == ((3, 3, 6, 8), torch.uint8)
    assert torch.equal(first.masks, torch.from_numpy(MASK).expand(3, -1, -1))
    assert abs(int(first.frames[2, 0, 3, 3]) - 80) < 8


@pytest.mark.parametrize("palette", [True, False])
def test_davis_takes_the_sequences_of_the_list_and_resizes_to_the_short_side(tmp_path, palette):
    write_davis(tmp_path, palette=palette)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("cow\n")
    (sequence,) = DavisFolder(tmp_path, short_side=12)
    assert sequence.name == "cow"
    assert (sequence.frames.shape, sequence.masks.shape) == ((3, 3, 12, 16), (3, 12, 16))
    assert torch.equal(sequence.masks[0], torch.from_numpy(MASK.repeat(2, 0).repeat(2, 1)))


def remove_annotations(root):
    (root / "Annotations" / "480p" / "bear" / "00001.png").unlink()


def damage_frame(root):
    (root / "JPEGImages" / "480p" / "bear" / "00001.jpg").write_bytes(b"no picture")


def damage_annotation(root):
    (root / "Annotations" / "480p" / "bear" / "00001.png").write_bytes(b"no picture")


def colour_annotation(root):
    Image.new("RGB", (8, 6)).save(root / "Annotations" / "480p" / "bear" / "00001.png")


def other_aspect(root):
    Image.new("L", (9, 4)).save(root / "Annotations" / "480p" / "bear" / "00001.png")


def other_size(root):
    Image.new("RGB", (18, 12)).save(root / "JPEGImages" / "480p" / "bear" / "00001.jpg")
    Image.new("L", (18, 12)).save(root / "Annotations" / "480p" / "bear" / "00001.png")


def no_frames(root):
    for path in (root / "JPEGImages" / "480p" / "bear").iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove_annotations, "00001.png does not exist; every frame"),
        (damage_frame, r"00001.jpg cannot be read as a picture \("),
        (damage_annotation, r"00001.png cannot be read as a picture \("),
        (colour_annotation, "00001.png has mode RGB; store object ids"),
        (other_aspect, "00001.png has another aspect than its frame"),
        (other_size, "bear have different sizes"),
        (no_frames, "bear holds no frame"),
    ],
)
def test_broken_davis_sequences_are_named(tmp_path, damage, message):
    damage(write_davis(tmp_path))
    folder = DavisFolder(tmp_path, short_side=None)
    with pytest.raises(UserError, match=message):
        folder.read("bear")
    folder.read("cow")


def test_roots_that_are_no_davis_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="JPEGImages does not exist"):
        DavisFolder(tmp_path)
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    with pytest.raises(UserError, match="Annotations holds no sequence"):
        DavisFolder(tmp_path)
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("dog\n")
    with pytest.raises(UserError, match=r"val.txt lists dog, but .*dog does not exist"):
        DavisFolder(tmp_path)


def write_jhmdb(labels, frames, count=3, joints=2):
    """Joint j of frame t is at x = 1 + j, y = 2 + t, counted from 1."""
    labels.mkdir(parents=True, exist_ok=True)
    frames.mkdir(parents=True, exist_ok=True)
    places = np.zeros((2, joints, count))
    places[0], places[1] = 1 + np.arange(joints)[:, None], 2 + np.arange(count)
    savemat(labels / "joint_positions.mat", {"pos_img": places})
    for number in range(count + 1):
        Image.new("RGB", (8, 6)).save(frames / f"{number + 1:05d}.png")


def test_jhmdb_points_are_counted_from_zero(tmp_path):
    write_jhmdb(tmp_path / "run", tmp_path / "run")
    (sequence,) = JhmdbFolder(tmp_path, short_side=None)
    assert (sequence.name, sequence.frames.shape) == ("run", (3, 3, 6, 8))
    assert sequence.points.tolist() == [[[0, 1 + t], [1, 1 + t]] for t in range(3)]


def test_jhmdb_has_parallel_folders_and_a_list_of_test_videos(tmp_path):
    for video in ("sit_1", "sit_2"):
        write_jhmdb(tmp_path / "joint_positions" / "sit" / video, tmp_path / "Rename_Images" / "sit" / video)
    split = tmp_path / "sit_test_split1.txt"
    split.write_text("sit_1.avi 1\nsit_2.avi 2\n")
    assert len(JhmdbFolder(tmp_path)) == 2
    (sequence,) = JhmdbFolder(tmp_path, [split], short_side=12)
    assert (sequence.name, sequence.frames.shape) == ("joint_positions/sit/sit_2", (3, 3, 12, 16))
    # A pixel's centre at 1 of 8 lies at 2.5 of 16: edges, not centres, keep their place.
    assert sequence.points[0].tolist() == [[0.5, 2.5], [2.5, 2.5]]


def test_broken_jhmdb_folders_are_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no joint_positions.mat"):
        JhmdbFolder(tmp_path)
    write_jhmdb(tmp_path / "run", tmp_path / "run")
    with pytest.raises(UserError, match=r"none.txt cannot be read as a JHMDB split"):
        JhmdbFolder(tmp_path, [tmp_path / "none.txt"])
    folder = JhmdbFolder(tmp_path)
    for path in sorted((tmp_path / "run").glob("*.png"))[2:]:
        path.unlink()
    with pytest.raises(UserError, match=r"run has 2 frames, but .*joint_positions.mat has 3"):
        folder.read("run")
    savemat(tmp_path / "run" / "joint_positions.mat", {"pos_img": np.zeros((3, 2))})
    with pytest.raises(UserError, match=r"pos_img of shape \(3, 2\)"):
        folder.read("run")
    (tmp_path / "run" / "joint_positions.mat").write_bytes(b"no mat")
    with pytest.raises(UserError, match=r"joint_positions.mat cannot be read as key points"):
        folder.read("run")
