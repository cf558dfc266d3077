"""Aligned rasters: declared in words or TOML, read from folders, manifests and shards, cut alike; tiles of Earth."""

import csv
import json
import math
import tarfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.data import (
    AlignedView,
    AskedView,
    BrokenSample,
    Crop,
    EvalView,
    Keys,
    Loader,
    evaluation_batches,
    hold_out,
    notes,
    open_aligned,
)
from mmssl.data.rasters import rasters_of
from mmssl.datasets import write_earth_tiles
from mmssl.datasets.earth import TILE, corners
from mmssl.errors import UserError

PAIRS = ("image=rgb", "depth=depth", "semseg=labels")
SIZE = 32
RAMP = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE) / SIZE**2
IDS = (np.arange(SIZE) // 8 + 4 * (np.arange(SIZE)[:, None] // 8)).astype(np.uint8)


def palette(ids):
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    return picture


def written(folder, stem, lacks=(), depth=RAMP, ids=IDS):
    """A sample in a folder: colours that show the ramp, its values as depth, and sixteen squares of labels."""
    colours = np.repeat((RAMP * 255).astype(np.uint8)[..., None], 3, 2)
    makes = {
        "rgb": lambda path: Image.fromarray(colours).save(path.with_suffix(".png")),
        "depth": lambda path: np.save(path.with_suffix(".npy"), depth),
        "labels": lambda path: palette(ids).save(path.with_suffix(".png")),
    }
    for name, make in makes.items():
        (folder / name / stem).parent.mkdir(parents=True, exist_ok=True)
        if name not in lacks:
            make(folder / name / stem)


def batch_of(source, view, epoch=0):
    samples = [source.read(index) for index in range(len(source))]
    ids = torch.arange(len(source))
    return view(samples, Keys(0, ids, torch.full_like(ids, epoch), torch.zeros_like(ids)))


@pytest.fixture
def folder(tmp_path):
    for stem, lacks in (("a/1", ()), ("a/2", ("depth",)), ("b/1", ("labels",))):
        written(tmp_path / "data", stem, lacks)
    return tmp_path / "data"


def as_manifest(folder, kind):
    stems = ("a/1", "a/2", "b/1")
    found = [{path.parent.parent.name: path.relative_to(folder).as_posix() for path in folder.rglob(f"{stem}.*")}
             for stem in stems]  # fmt: skip
    rows = [{**paths, "label": stem[0]} for paths, stem in zip(found, stems, strict=True)]
    path = folder / f"list.{kind}"
    with open(path, "w", newline="") as file:
        if kind == "csv":
            table = csv.DictWriter(file, ["rgb", "depth", "labels", "label"])
            table.writeheader()
            table.writerows(rows)
        else:
            file.write("\n".join(map(json.dumps, rows)))
    return path


def as_shard(folder):
    path = folder.parent / "shard.tar"
    with tarfile.open(path, "w") as tar:
        for stem in ("a/1", "a/2", "b/1"):
            for file in sorted(folder.rglob(f"{stem}.*")):
                tar.add(file, f"{stem}.{file.parent.parent.name}{file.suffix}")
            described = tarfile.TarInfo(f"{stem}.cls")
            described.size = 1
            tar.addfile(described, BytesIO(stem[:1].encode()))
    return path


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl", "shard"])
def test_the_same_samples_come_from_folders_manifests_and_shards(folder, kind):
    path = folder if kind == "folder" else as_shard(folder) if kind == "shard" else as_manifest(folder, kind)
    source = open_aligned(path, modalities=PAIRS)
    assert [list(source.read(index)) for index in range(3)] == [
        ["image", "depth", "semseg"], ["image", "semseg"], ["image", "depth"],
    ]  # fmt: skip
    assert source.labels == [0, 0, 1]
    assert source.partial == ("depth", "semseg")
    sample = source.read(0)
    assert torch.equal(sample["depth"], torch.from_numpy(RAMP)[None])
    assert torch.equal(sample["semseg"], torch.from_numpy(IDS)[None])
    assert any("1 of 3 samples lack depth" in note for note in notes(hold_out(source, 0.5)[0]))


def test_one_cut_and_flip_for_all_of_a_sample(folder):
    source = open_aligned(folder, modalities=PAIRS)
    batch = batch_of(source, source.view(Crop(16)))
    assert batch["image"].shape == (3, 3, 16, 16)
    assert batch["semseg"].shape == (3, 4, 4)
    assert batch["semseg"].dtype == torch.int64
    shown = batch["image"][:, :1].float() / 255
    assert (shown - batch["depth"])[[0, 2]].abs().max() < 0.02
    # a square of labels is known by the rows of the ramp that it covers
    ramp, squares = torch.from_numpy(RAMP), torch.from_numpy(IDS)
    middles = batch["depth"][0, 0, 2::4, 2::4]
    for value, label in zip(middles.flatten().tolist(), batch["semseg"][0].flatten().tolist(), strict=True):
        near = ramp[squares == label]
        assert near.min() - 2 / SIZE < value < near.max() + 2 / SIZE


def test_labels_are_those_that_pillow_takes_at_a_quarter_of_the_resolution(folder):
    # of 40 pixels to 14 no middle is on an edge, where Pillow's sums of floats decide
    noise = np.random.default_rng(0).integers(0, 133, (40, 40)).astype(np.uint8)
    for stem in ("a/1", "a/2"):
        written(folder, stem, ids=noise)
    source = open_aligned(folder, modalities=PAIRS[2:])
    expected = torch.from_numpy(np.array(Image.fromarray(noise).resize((14, 14), Image.Resampling.NEAREST))).long()
    whole = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}
    for view in (EvalView(56, 56), Crop(56, **whole, flip=0.0)):
        assert torch.equal(batch_of(source, source.view(view))["semseg"], expected.expand(2, -1, -1))
    mirrored = batch_of(source, source.view(Crop(56, **whole, flip=1.0)))
    assert torch.equal(mirrored["semseg"], expected.flip(-1).expand(2, -1, -1))


def test_what_is_not_there_stays_marked(folder):
    depth, ids = 5 + RAMP, IDS.copy()
    depth[:, :8], ids[:16] = np.nan, 255
    written(folder, "a/1", depth=depth, ids=ids)
    source = open_aligned(folder, modalities=PAIRS)
    batch = batch_of(source, source.view(EvalView(16, 16)))
    assert torch.equal(batch["depth"][0, 0].isnan(), (torch.arange(16) < 4).expand(16, 16))
    # nothing of the gap gets into its neighbours, nor out of their range
    known = batch["depth"][0][~batch["depth"][0].isnan()]
    assert known.min() > 5 - 0.05
    assert known.max() < 6.05
    assert (batch["semseg"][0, :2] == 255).all()
    assert (batch["semseg"][0, 2:] < 16).all()


def test_samples_that_lack_a_modality_are_zeros_and_told(folder):
    source = open_aligned(folder, modalities=PAIRS)
    batches = evaluation_batches(source, source.view(EvalView(16, 16)), batch_size=2)
    first, second = batches
    assert first["depth.present"].tolist() == [True, False]
    assert first["semseg.present"].tolist() == [True, True]
    assert second["semseg.present"].tolist() == [False]
    assert "image.present" not in first
    assert not first["depth"][1].any()
    assert not second["semseg"].any()


def test_batches_are_raw_and_the_same_for_any_number_of_workers(folder):
    source = open_aligned(folder, modalities=PAIRS)
    alone, apart = (list(Loader(source, source.view(Crop(16)), batch_size=2, workers=n).batches(0, 3)) for n in (0, 1))
    for one, other in zip(alone, apart, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert alone[0]["image"].dtype == torch.uint8


@pytest.mark.parametrize(
    ("values", "ending", "expected"),
    [
        ((RAMP * 65535).astype(np.uint16), "png", (RAMP * 65535).astype(np.uint16) / 65535),
        ((RAMP * 65535).astype(np.uint16), "tif", (RAMP * 65535).astype(np.uint16) / 65535),
        (RAMP * 900 - 100, "tiff", RAMP * 900 - 100),
        ((RAMP * 900 - 100).astype(np.int16), "npy", np.trunc(RAMP * 900 - 100)),
        ((RAMP * 900 - 100).astype(np.int32), "tiff", np.trunc(RAMP * 900 - 100)),
    ],
)
def test_depth_of_any_format_is_raw(folder, values, ending, expected):
    (folder / "depth/a/1.npy").unlink()
    path = folder / f"depth/a/1.{ending}"
    np.save(path, values) if ending == "npy" else Image.fromarray(values).save(path)
    depth = open_aligned(folder, modalities=PAIRS).read(0)["depth"]
    assert torch.allclose(depth[0], torch.from_numpy(expected.astype(np.float32)))


@pytest.mark.parametrize(("dtype", "ending"), [(np.uint8, "png"), (np.uint16, "png"), (np.uint8, "tif"), (int, "npy")])
def test_labels_of_any_format_are_their_numbers(folder, dtype, ending):
    (folder / "labels/a/1.png").unlink()
    path = folder / f"labels/a/1.{ending}"
    np.save(path, IDS.astype(dtype)) if ending == "npy" else Image.fromarray(IDS.astype(dtype)).save(path)
    assert torch.equal(open_aligned(folder, modalities=PAIRS).read(0)["semseg"][0], torch.from_numpy(IDS))


SET = """
[[modality]]
name = "infrared"
[[modality]]
name = "bands"
channels = 7
patch = 8
mean = 100
std = [1, 2, 3, 4, 5, 6, 7]
[[modality]]
name = "cover"
kind = "labels"
folder = "maps"
channels = 5
stride = 2
embedding = 8
"""


def test_a_toml_file_beside_the_data_declares_any_set(tmp_path):
    (tmp_path / "modalities.toml").write_text(SET)
    for name in ("infrared", "bands", "maps"):
        (tmp_path / "train" / name).mkdir(parents=True)
    Image.fromarray(IDS).save(tmp_path / "train/infrared/1.png")
    np.save(tmp_path / "train/bands/1.npy", np.stack([RAMP] * 7))
    np.save(tmp_path / "train/maps/1.npy", IDS % 5)
    source = open_aligned(tmp_path, "train")
    batch = batch_of(source, source.view(Crop(16)))
    assert {name: tuple(values.shape) for name, values in batch.items()} == {
        "infrared": (1, 1, 16, 16), "bands": (1, 7, 16, 16), "cover": (1, 8, 8),
    }  # fmt: skip
    infrared, bands, cover = (raster.modality for raster in source.rasters)
    assert (infrared.mean, infrared.std, infrared.patch) == ((0.0,), (1.0,), (16, 16))
    assert (infrared.gaps, infrared.per_sample) == (True, False)  # what is declared says how it is standardised
    assert (bands.mean, bands.std) == ((100.0,) * 7, (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0))
    assert not infrared.per_sample and not bands.per_sample
    assert (cover.kind, cover.channels, cover.patch, cover.embedding) == ("categorical", 5, (8, 8), 8)


def test_depth_is_standardised_by_sample_unless_its_statistics_are_declared(tmp_path):
    for more, by_sample in (("", True), ("std = 9", False), ("mean = 3", False)):
        (tmp_path / "set.toml").write_text(f"[[modality]]\nname = 'depth'\n{more}")
        assert rasters_of([tmp_path / "set.toml"])[0].modality.per_sample is by_sample


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("stride = 2", "strid = 2", "'cover' has an unknown field 'strid': did you mean 'stride'"),
        ('kind = "labels"', 'kind = "label"', "the kind 'label': did you mean 'labels'"),
        ("channels = 7", "channels = 0", "channels = 0, which must be at least 1"),
        ("patch = 8", 'patch = "8"', "patch = '8', which must be a whole number"),
        ("channels = 5", "channels = 300", "300 classes; at most 255"),
        ("channels = 5\n", "", "'cover' has labels and no channels"),
        ("stride = 2", "mean = 2", "'cover' is labels and has 'mean', which means nothing"),
        ("[1, 2, 3, 4, 5, 6, 7]", "[1, 2]", "has 7 channels, but 7 means and 2 standard deviations"),
        ('name = "bands"', 'name = "infrared"', "declares the modality 'infrared' twice"),
        ('name = "bands"', "", "a modality without a name"),
        ('name = "bands"', 'name = "bands.1"', "'bands.1' cannot be called so in a batch"),
        ("[[modality]]", "[modality]", "cannot be read as TOML"),
        (SET, "[[modalities]]\nname = 'depth'", "unknown table 'modalities'"),
    ],
)
def test_a_wrong_declaration_is_named(tmp_path, before, after, says):
    (tmp_path / "set.toml").write_text(SET.replace(before, after, 1))
    with pytest.raises(UserError) as error:
        rasters_of([tmp_path / "set.toml"])
    assert says in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "set.toml"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["depth"], "write name=folder"),
        (["thermal=ir"], "neither kind nor channels are known"),
        (["depth=a", "depth=b"], "declares the modality 'depth' twice"),
    ],
)
def test_wrong_words_are_named(given, says):
    with pytest.raises(UserError, match=says):
        rasters_of(given)


def broken(folder, says):
    """What the ledger says of the one sample that cannot be read."""
    source = open_aligned(folder, modalities=PAIRS)
    with pytest.raises(UserError) as error:
        list(Loader(source, source.view(Crop(16)), batch_size=3, ceiling=0.0).batches(0, 1))
    assert says in str(error.value), str(error.value)


def test_rasters_of_different_sizes_are_named(folder):
    written(folder, "a/1", depth=RAMP[:16])
    broken(folder, "a/1 has rasters of different sizes, image of 32 x 32, depth of 16 x 32, semseg of 32 x 32 pixels")


def test_a_label_outside_the_classes_is_named_with_its_file(folder):
    written(folder, "a/1", ids=np.full_like(IDS, 200))
    broken(folder, "labels/a/1.png has the label 200, and semseg has 133 classes, 0 to 132 (255 is none)")


def test_depth_without_a_pixel_is_named(folder):
    written(folder, "a/1", depth=np.full_like(RAMP, math.nan))
    broken(folder, "depth/a/1.npy has no pixel that is there, all are NaN")


def test_colours_where_labels_are_meant_are_named(folder):
    Image.new("RGB", (SIZE, SIZE)).save(folder / "labels/a/1.png")
    broken(folder, "labels/a/1.png has colours or fractions (mode RGB) where class numbers are meant")


def test_a_modality_that_is_missing_everywhere_is_named(folder):
    for given in ((*PAIRS[:2], "semseg=masks"), ("image=rgb", "depth=dept")):
        with pytest.raises(UserError, match=r"No sample of .* has (semseg \(masks\)|depth \(dept\)).* holds none"):
            open_aligned(folder, modalities=given)
    manifest = as_manifest(folder, "csv")
    with pytest.raises(UserError, match="no column 'dept' but rgb, depth, labels, label: did you mean 'depth'"):
        open_aligned(manifest, modalities=("image=rgb", "depth=dept"))


def test_folders_whose_names_do_not_meet_are_named(folder):
    for path in (folder / "depth").rglob("*.npy"):
        path.rename(path.with_name(f"{path.stem}_depth.npy"))
    with pytest.raises(UserError, match=r"No sample of .* has two of its modalities: .* unlike rgb/a/1.png and depth"):
        open_aligned(folder, modalities=PAIRS[:2])


def test_a_size_that_labels_do_not_divide_is_named(folder):
    with pytest.raises(UserError, match="semseg has a label every 4 pixels, which do not divide 18"):
        open_aligned(folder, modalities=PAIRS).view(Crop(18))


def test_data_that_declares_nothing_is_named(folder):
    with pytest.raises(UserError, match=r"give name=folder for each, or write a modalities.toml"):
        open_aligned(folder)


@pytest.fixture(scope="module")
def globe(tmp_path_factory):
    """Rasters of 64 x 1536 pixels: one row of two tiles a block."""
    folder = tmp_path_factory.mktemp("globe")
    height, width = TILE, 12 * 2 * TILE
    elevation = np.arange(width, dtype=np.int32)[None].repeat(height, 0) * 4 - 3000
    Image.fromarray(np.stack([elevation % 256] * 3, 2).astype(np.uint8)).save(folder / "rgb.jpg", quality=95)
    Image.fromarray((elevation + 12000).astype(np.uint16)).save(folder / "elevation_plus_12000m.png")
    Image.fromarray((elevation > 0).astype(np.uint8)).save(folder / "landmask.png")
    return folder


def test_tiles_of_the_earth_are_aligned_and_in_metres(globe, tmp_path):
    assert write_earth_tiles(tmp_path, globe) == {"val": 4, "train": 16, "test": 4}
    training = open_aligned(tmp_path, "train")
    elevation = next(raster for raster in training.rasters if raster.name == "elevation").modality
    metres = torch.cat([training.read(index)["elevation"] for index in range(len(training))])
    assert abs(elevation.mean[0] - metres.mean().item()) < 0.1
    assert abs(elevation.std[0] - metres.std().item()) < 0.1
    for part in ("train", "val", "test"):
        source = open_aligned(tmp_path / part)
        for index in range(len(source)):
            sample = source.read(index)
            assert torch.equal(sample["land"] > 0, sample["elevation"] > 0)
            assert (sample["elevation"] + 3000 == 4 * (sample["elevation"] + 3000).div(4).round()).all()


def test_no_tile_of_the_earth_overlaps_another_and_no_block_is_in_two_parts():
    seen, parts = np.zeros((2160, 4320), int), {}
    for part, top, left in corners(2160, 4320):
        seen[top : top + TILE, left : left + TILE] += 1
        parts.setdefault(left // 360, set()).add(part)
        assert (left + TILE - 1) // 360 == left // 360
    assert seen.max() == 1
    assert [len(each) for each in parts.values()] == [1] * 12


def test_rasters_of_the_earth_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match=r"rgb.jpg cannot be read .* is meant"):
        write_earth_tiles(tmp_path / "out", tmp_path)


def test_what_is_asked_stands_beside_what_is_read_cut_alike_and_under_names_of_its_own(folder):
    source = open_aligned(folder, modalities=PAIRS)
    image, depth, labels = source.rasters
    samples, keys = [source.read(0)], Keys(0, *torch.zeros(3, 1, dtype=torch.int64))
    asked = AskedView(EvalView(16, 16), (image, depth), depth, labels)(samples, keys)
    plain = AlignedView(EvalView(16, 16), (image, depth, replace(labels, stride=1)))(samples, keys)
    assert {name: tuple(values.shape) for name, values in asked.items()} == {
        "image": (1, 3, 16, 16), "depth": (1, 1, 16, 16), "depth.target": (1, 1, 16, 16), "semseg.where": (1, 16, 16),
    }  # fmt: skip
    for name, other in (("image", "image"), ("depth", "depth"), ("depth.target", "depth"), ("semseg.where", "semseg")):
        assert torch.equal(asked[name], plain[other])
    narrow = AskedView(EvalView(16, 16), (depth,), labels, labels)(samples, keys)
    assert {name: tuple(narrow[name].shape[1:]) for name in narrow} == {
        "depth": (1, 16, 16), "semseg.target": (4, 4), "semseg.where": (4, 4),
    }  # fmt: skip


def test_pictures_have_no_gaps_and_other_rasters_may():
    values, (image, depth) = np.zeros((3, 4, 4), np.float32), rasters_of(["image=rgb", "depth=depth"])
    values[:, 0, 0] = np.nan
    with pytest.raises(BrokenSample, match="not a number, which image cannot have"):
        image.read(npy(values))
    assert depth.read(npy(values[:1])).isnan().sum() == 1


def npy(values):
    file = BytesIO()
    np.save(file, values)
    file.seek(0)
    return file
