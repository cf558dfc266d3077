"""Fashion-MNIST from wherever this machine can get it, checked; and scikit-learn's digits where it cannot."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from mmssl.data.source import CLASSES_FILE, ArraySource, hold_out
from mmssl.datasets.debian import CONNECT_SECONDS, last_line, unpack_package
from mmssl.errors import UserError

logger = logging.getLogger(__name__)

# Of the unpacked files: Debian compresses the same bytes anew, so the archives differ from those torchvision fetches.
SHA256 = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLASSES = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def fetch_fashion_mnist(destination: str | Path, given: str | Path | None = None) -> Path:
    """Puts the four IDX files (31 MB) into `destination` and returns it; at once when they are there already.

    They come from the first that has them whole: the folder `given`, a Debian `dataset-fashion-mnist` on this machine,
    torchvision's download, that Debian package fetched with apt-get and unpacked without root. Contents are verified by
    SHA-256; a place that is present but wrong is logged as a warning, and the next is tried. Raises UserError naming
    everything tried when none is left, or when `destination` cannot be written.
    """
    destination = Path(destination)
    if _problem(destination) is None:
        return destination
    places: dict[str, Callable[[Path], Path]] = {
        f"the Debian package {PACKAGE} in {DEBIAN_FOLDER}": lambda scratch: DEBIAN_FOLDER,
        "torchvision's download": _torchvision_download,
        f"apt-get download {PACKAGE}": _apt_download,
    }
    if given is not None:
        places = {f"the given folder {given}": lambda scratch: Path(given)} | places
    tried = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (place, find) in enumerate(places.items()):
            room = Path(scratch, str(number))
            room.mkdir()
            try:
                folder = find(room)
                problem = _problem(folder)
            except (OSError, RuntimeError, ImportError, subprocess.SubprocessError) as error:
                problem = last_line(error)
            if problem is None:
                _install(folder, destination)
                return destination
            tried.append(f"{place}: {problem}")
            if problem.endswith("checksum") or place.startswith("the given"):
                logger.warning("Fashion-MNIST from %s was not used: %s.", place, problem)
    raise UserError(
        f"Fashion-MNIST cannot be had here. Tried {'; '.join(tried)}. "
        f"Put the files {', '.join(SHA256)} into a folder and give its path."
    )


def digits_source(split: str = "train") -> ArraySource:
    """scikit-learn's 1 797 handwritten digits, uint8 [N, 1, 8, 8]; a fixed fifth is "test", the rest "train"."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    train, test = hold_out(ArraySource(images, digits.target.tolist()), 0.2, stratify=False)
    part = {"train": train, "test": test}[split]
    return ArraySource(images[part.indices], part.labels, [str(digit) for digit in range(10)], name=f"digits/{split}")


def _problem(folder: Path) -> str | None:
    """Why this folder is not Fashion-MNIST, or None."""
    if not folder.is_dir():
        return "there is no such folder"
    for name, expected in SHA256.items():
        try:
            content = gzip.decompress((folder / name).read_bytes())
        except FileNotFoundError:
            return f"it lacks {name}"
        except (OSError, EOFError, zlib.error):
            content = b""
        if hashlib.sha256(content).hexdigest() != expected:
            return f"{name} has a wrong checksum"
    return None


def _install(folder: Path, destination: Path) -> None:
    try:
        destination.mkdir(parents=True, exist_ok=True)
        for name in SHA256:
            aside = destination / f".{name}.{os.getpid()}"
            shutil.copyfile(folder / name, aside)
            os.replace(aside, destination / name)
        (destination / CLASSES_FILE).write_text("\n".join(CLASSES) + "\n")
    except OSError as error:
        raise UserError(f"Fashion-MNIST cannot be written to {destination} ({error.strerror}).") from error


def _torchvision_download(scratch: Path) -> Path:
    from torchvision.datasets import FashionMNIST

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            FashionMNIST(str(scratch), download=True)
    finally:
        socket.setdefaulttimeout(before)
    return scratch / "FashionMNIST" / "raw"


def _apt_download(scratch: Path) -> Path:
    return unpack_package(PACKAGE, scratch) / DEBIAN_FOLDER.relative_to("/")
