"""Fetching Fashion-MNIST: the first whole copy wins, a wrong one is reported, and what is missing is said once."""

import gzip
import hashlib
import logging
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mmssl.data import open_source
from mmssl.datasets import digits_source, fashion_mnist, fetch_fashion_mnist
from mmssl.errors import UserError

IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


CONTENT = {name: idx(IMAGES if "images" in name else np.arange(3, dtype=np.uint8)) for name in fashion_mnist.SHA256}


def write(folder: Path, level: int = 9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(gzip.compress(content, level))
    return folder


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A machine with the small stand-in's checksums, on which every place fails until a test provides it."""

    def unreachable(scratch):
        raise RuntimeError("no network\nthe last line")

    monkeypatch.setattr(fashion_mnist, "SHA256", {n: hashlib.sha256(c).hexdigest() for n, c in CONTENT.items()})
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.setattr(fashion_mnist, "_torchvision_download", unreachable)
    monkeypatch.setattr(fashion_mnist, "_apt_download", unreachable)
    return tmp_path


def places(monkeypatch, root):
    """Ways to provide each place, in the order in which they are tried."""
    return {
        "given": lambda: write(root / "given"),
        "debian": lambda: write(root / "debian"),
        "torchvision": lambda: monkeypatch.setattr(fashion_mnist, "_torchvision_download", write),
        "apt": lambda: monkeypatch.setattr(fashion_mnist, "_apt_download", write),
    }


@pytest.mark.parametrize("place", ["given", "debian", "torchvision", "apt"])
def test_every_place_serves(nowhere, monkeypatch, place):
    places(monkeypatch, nowhere)[place]()
    folder = fetch_fashion_mnist(nowhere / "new" / "data", nowhere / "given")
    assert folder == nowhere / "new" / "data"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*CONTENT, "classes.txt"])
    source = open_source(folder, "test")
    assert np.array_equal(source.images[:, 0], IMAGES)
    assert (source.classes[9], len(source.classes)) == ("Ankle boot", 10)


def test_a_complete_destination_is_used_at_once_and_an_incomplete_one_completed(nowhere, monkeypatch):
    folder = write(nowhere / "data")
    assert fetch_fashion_mnist(folder) == folder
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"half a file")
    with pytest.raises(UserError, match="cannot be had"):
        fetch_fashion_mnist(folder)
    write(nowhere / "debian")
    assert fetch_fashion_mnist(folder) == folder
    assert len(open_source(folder, "test")) == 3


def test_other_compression_of_the_same_bytes_is_the_same_data(nowhere):
    assert len(open_source(fetch_fashion_mnist(nowhere / "data", write(nowhere / "given", level=1)))) == 3


@pytest.mark.parametrize("damage", [gzip.compress(b"other"), b"no gzip", gzip.compress(b"cut" * 99)[:-9]])
def test_a_wrong_copy_is_reported_and_the_next_place_serves(nowhere, caplog, damage):
    (write(nowhere / "given") / "train-images-idx3-ubyte.gz").write_bytes(damage)
    write(nowhere / "debian")
    with caplog.at_level(logging.WARNING):
        fetch_fashion_mnist(nowhere / "data", nowhere / "given")
    assert "train-images-idx3-ubyte.gz has a wrong checksum" in caplog.text
    assert len(open_source(nowhere / "data")) == 3


def test_where_nothing_is_reachable_everything_tried_is_listed(nowhere):
    with pytest.raises(UserError) as raised:
        fetch_fashion_mnist(nowhere / "data", nowhere / "given")
    text = str(raised.value)
    for part in ("given: there is no such folder", "torchvision's download: the last line", "apt-get download"):
        assert part in text
    assert "\n" not in text
    assert not (nowhere / "data").exists()


def test_a_destination_that_cannot_be_written_is_named(nowhere):
    (nowhere / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot be written to .*file/data"):
        fetch_fashion_mnist(nowhere / "file" / "data", write(nowhere / "given"))


def test_torchvisions_download_is_quiet_and_bounded(monkeypatch, tmp_path, capfd):
    import socket

    from torchvision.datasets import FashionMNIST

    timeouts = []

    def download(self):
        timeouts.append(socket.getdefaulttimeout())
        print("Downloading ...")
        raise RuntimeError("no route")

    monkeypatch.setattr(FashionMNIST, "download", download)
    with pytest.raises(RuntimeError, match="no route"):
        fashion_mnist._torchvision_download(tmp_path)
    assert timeouts == [fashion_mnist.CONNECT_SECONDS]
    assert socket.getdefaulttimeout() is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("lists", [True, False])
def test_apt_needs_neither_root_nor_package_lists(monkeypatch, tmp_path, lists):
    """Without lists of packages a private copy of them is fetched first."""
    commands = []

    def run(command, *, cwd, **_):
        commands.append(command)
        private = any("Dir::State::Lists" in word for word in command)
        if command[0] == "dpkg-deb":
            write(Path(cwd, command[3]) / fashion_mnist.DEBIAN_FOLDER.relative_to("/"))
        elif "download" in command and not (lists or private):
            raise subprocess.CalledProcessError(100, command, stderr="E: Unable to locate package")
        elif "download" in command:
            Path(cwd, "dataset.deb").touch()

    monkeypatch.setattr(subprocess, "run", run)
    folder = fashion_mnist._apt_download(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(CONTENT)
    assert [("update" in command) for command in commands] == ([False] * 2 if lists else [False, True, False, False])


def test_the_digits_are_the_fallback():
    train, test = digits_source("train"), digits_source("test")
    assert (len(train), len(test)) == (1438, 359)
    assert (train.images.shape, int(train.images.max())) == ((1438, 1, 8, 8), 255)
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert train.classes == [str(digit) for digit in range(10)]
