"""WebDataset's shards: the samples of a folder, read where they lie in the tars, whatever the kind."""

import json
import tarfile
from io import BytesIO

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from mmssl.data import (
    BrokenSample,
    EvalView,
    FolderSource,
    Ledger,
    Loader,
    SoundClips,
    SoundView,
    TrainView,
    evaluation_batches,
    hold_out,
    notes,
    open_sounds,
    open_source,
)
from mmssl.errors import UserError

pytestmark = pytest.mark.usefixtures("cache")


def png(value, size=8):
    file = BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


def wav(value):
    file = BytesIO()
    soundfile.write(file, 0.1 + value / 1000 * np.random.default_rng(value).standard_normal(4000), 16000, format="WAV")
    return file.getvalue()


def write_tar(path, members, kind=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


def pictures(first, count=3, **more):
    members = {}
    for k in range(first, first + count):
        members[f"{k:04}.png"] = png(k)
        members[f"{k:04}.json"] = json.dumps(
            {"kind": f"k{k % 2}", "many": [f"m{k}", "all"], "where": {"x": k}}
        ).encode()
    return members | more


def values(source):
    return [source.read(index)["image"][0, 0, 0].item() for index in range(len(source))]


def test_shards_give_what_the_unpacked_folder_gives(tmp_path):
    for k in range(3):
        tar = write_tar(tmp_path / "shards" / f"{k}.tar", pictures(10 * k))
        with tarfile.open(tar) as opened:
            opened.extractall(tmp_path / "plain" / f"{k}.tar", filter="data")
    shards, plain = FolderSource(tmp_path / "shards"), FolderSource(tmp_path / "plain")
    assert values(shards) == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert [shards.name(index) for index in (0, 8)] == ["0.tar/0000.png", "2.tar/0022.png"]
    assert shards.paths == plain.paths and shards.labels is None
    loaders = [Loader(source, TrainView(8), batch_size=4, seed=3) for source in (shards, plain)]
    for one, other in zip(loaders[0].batches(0, 6), loaders[1].batches(0, 6), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    late = next(Loader(shards, TrainView(8), batch_size=4, seed=3, workers=1).batches(5, 6))
    assert all(torch.equal(late[name], one[name]) for name in one)


def test_labels_are_a_key_of_the_json_or_the_class_beside(tmp_path):
    tar = write_tar(tmp_path / "a.tar", pictures(0, **{"9.png": png(9), "8.png": png(8), "8.json": b"{broken"}))
    source = open_source(tar, "train", label="kind")
    assert (source.classes, source.labels) == (["k0", "k1"], [0, 1, 0, -1, -1])
    classed = write_tar(tmp_path / "b.tar", {"1.cls": b"7\n", "1.png": png(1), "2.png": png(2), "2.cls": b"cat"})
    assert open_source(classed).classes == ["7", "cat"]
    with pytest.raises(UserError, match=r"has 'kint' in its JSON: did you mean 'kind'\?"):
        open_source(tar, label="kint")
    several = open_source(tar, label="many")
    assert several.classes == ["all", "m0", "m1", "m2"] and several.labels is None
    assert several.label_sets == [(1, 0), (2, 0), (3, 0), (), ()]
    with pytest.raises(UserError, match=r"'where' is \{'x': 0\} in a\.tar: name a key that has a class or a list"):
        open_source(tar, label="where")
    with pytest.raises(UserError, match="there is none to be read"):
        open_source(classed, label="kind")
    rest, held = hold_out(source, 0.2)
    assert len(rest) + len(held) == 5


def test_sounds_and_pictures_of_one_shard_are_two_sources(tmp_path):
    members = {}
    for k in range(4):
        members |= {f"./at/{k}.wav": wav(k + 1), f"./at/{k}.png": png(k), f"./at/{k}.json": b'{"tone": %d}' % (k % 2)}
    root = write_tar(tmp_path / "s" / "a.tar", members | {"readme.txt": b"hello", "at/._0.wav": b"junk"}).parent
    sounds = open_sounds(root, None, SoundClips(0.1), label="tone")
    (batch,) = evaluation_batches(sounds, SoundView(16), batch_size=8)
    assert batch["audio"].shape == (4, 1, 16, 128) and batch["label"].tolist() == [0, 1, 0, 1]
    (batch,) = evaluation_batches(open_source(root), EvalView(8), batch_size=8)
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    (told,) = notes(sounds)
    assert "left out 5 members: 4 .png, 1 .txt" in told


def test_parts_are_folders_of_shards(tmp_path):
    write_tar(tmp_path / "train" / "a.tar", pictures(0))
    write_tar(tmp_path / "val" / "a.tar", pictures(50, 1))
    assert values(open_source(tmp_path, "train")) == [0, 1, 2]
    assert values(open_source(tmp_path, "test")) == [50]


def test_a_broken_member_is_named_with_its_shard_and_counted(tmp_path):
    tar = write_tar(tmp_path / "a.tar", {"0.png": png(0), "1.png": b"no picture", "2.png": b"", "3.png": png(3, 200)})
    data = tar.read_bytes()
    tar.write_bytes(data[: data.rindex(b"3.png") + 600])  # within the last one's bytes
    source, ledger = FolderSource(tmp_path), Ledger()
    list(evaluation_batches(source, EvalView(8), batch_size=4, ledger=ledger))
    assert ledger.seen == 1
    reasons = dict(ledger.skipped)
    assert set(reasons) == {"a.tar/1.png", "a.tar/2.png", "a.tar/3.png"}
    assert "is no picture" in reasons["a.tar/1.png"] and "empty" in reasons["a.tar/2.png"]
    assert "is cut short: its shard ends after 88 of" in reasons["a.tar/3.png"]
    tar.unlink()
    with pytest.raises(BrokenSample, match="cannot be opened"):
        source.read(0)


def test_what_is_no_plain_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a plain tar .*; unpack or repack it"):
        open_source(tmp_path)
    write_tar(tmp_path / "a.tar", {"0.txt": b"hello"})
    with pytest.raises(UserError, match=r"No shard in .* holds a sound, of 1; sounds end in \.wav.*they have 1 \.txt"):
        open_sounds(tmp_path, None, SoundClips())
    with pytest.raises(UserError, match="does not exist"):
        open_source(tmp_path / "b.tar")


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_and_any_name_is_read(tmp_path, kind):
    name = "a/" + "b" * 90 + ("/" + "c" * 120 if kind != tarfile.USTAR_FORMAT else "") + "/é x.0.png"
    write_tar(tmp_path / "a.tar", {name: png(1), "z.png": png(2)}, kind)
    for _ in range(2):  # the second time from the cache
        source = FolderSource(tmp_path)
        assert values(source) == [1, 2] and source.name(0) == f"a.tar/{name}"


def test_the_index_is_kept_and_made_anew_when_the_shard_changes(tmp_path, cache, monkeypatch):
    tar = write_tar(tmp_path / "a.tar", pictures(0))
    assert values(FolderSource(tmp_path)) == [0, 1, 2]
    (kept,) = (cache / "shards").iterdir()
    scans, original = [], tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *args, **kwargs: scans.append(args) or original(*args, **kwargs))
    assert values(FolderSource(tmp_path)) == [0, 1, 2] and not scans
    kept.write_bytes(b"damaged")
    assert values(FolderSource(tmp_path)) == [0, 1, 2] and len(scans) == 1
    write_tar(tar, pictures(5, 4))
    scans.clear()
    assert values(FolderSource(tmp_path)) == [5, 6, 7, 8] and len(scans) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tar))  # where nothing can be written
    assert values(FolderSource(tmp_path)) == [5, 6, 7, 8]
