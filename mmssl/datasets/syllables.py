"""Spoken Mandarin syllables of two speakers: a small set of real sounds with labels, parted so that a score counts."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmssl.datasets.debian import last_line, unpack_package
from mmssl.errors import UserError
from mmssl.masking.noise import permutation

PACKAGE = "gcin-voice"
DEBIAN_FOLDER = Path("/usr/share/gcin-voice/ogg")
INITIALS = "ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐㄑㄒㄓㄔㄕㄖㄗㄘㄙ"
# What the folders' names end in; the first tone has no digit.
_TONES = {"1": "neutral", "2": "second", "3": "third", "4": "fourth"}
_TEST_SHARE = 0.3


@dataclass(frozen=True)
class Syllable:
    """One sound. sound: without its tone, in bopomofo; initial: its consonant, "none" where it begins with a vowel."""

    path: str
    sound: str
    tone: str
    initial: str
    speaker: str


def write_syllables(destination: str | Path, given: str | Path | None = None) -> Path:
    """2 358 syllables of 0.3 to 0.6 s (8 MB, Ogg Vorbis, 44.1 kHz) in `destination`, with `train.csv` and `test.csv`.

    They are those of the Debian package gcin-voice: the folder `given`, that package on this machine, or fetched with
    apt-get and unpacked without root. Speaker 5 is under CC-BY 3, speaker 3 under GPL 3 or LGPL 3.

    The manifests hold `path`, `sound`, `tone`, `initial` and `speaker`; `test.csv` three tenths of the sounds, in all
    their tones and of both speakers, so that no test syllable was heard in training in another tone or voice.

    Raises UserError, naming everything tried, where they cannot be had, or `destination` cannot be written.
    """
    destination = Path(destination)
    places = {f"the folder {given}": Path(given)} if given else {f"the Debian package {PACKAGE}": DEBIAN_FOLDER}
    tried = [f"{place}: it has no {{syllable}}/{{speaker}}.ogg" for place in places]
    found = next((folder for folder in places.values() if syllables(folder)), None)
    with tempfile.TemporaryDirectory() as scratch:
        if found is None and given is None:
            try:
                found = unpack_package(PACKAGE, Path(scratch)) / DEBIAN_FOLDER.relative_to("/")
            except (OSError, subprocess.SubprocessError) as error:
                tried.append(f"apt-get download {PACKAGE}: {last_line(error)}")
        if found is None:
            raise UserError(f"The spoken syllables cannot be had here. Tried {'; '.join(tried)}.")
        try:
            shutil.copytree(found, destination / "ogg", dirs_exist_ok=True)
            for part, rows in zip(("train", "test"), parted(syllables(destination / "ogg"))):
                write_manifest(destination / f"{part}.csv", rows)
        except OSError as error:
            raise UserError(f"The syllables cannot be written to {destination} ({error.strerror}).") from error
    return destination


def syllables(folder: Path) -> list[Syllable]:
    """The sounds of a folder `{syllable}/{speaker}.ogg`, in the order of their paths."""
    found = []
    for path in sorted(folder.glob("*/*.ogg")):
        sound = path.parent.name.rstrip("".join(_TONES))
        tone = _TONES.get(path.parent.name[len(sound) :], "first")
        initial = sound[0] if sound[0] in INITIALS else "none"
        found.append(Syllable(f"ogg/{path.relative_to(folder).as_posix()}", sound, tone, initial, path.stem))
    return found


def parted(rows: Sequence[Syllable]) -> tuple[list[Syllable], list[Syllable]]:
    """Training and test part, by sounds drawn from the noise."""
    sounds = sorted({row.sound for row in rows})
    apart = permutation(len(sounds), seed=0, stream="syllables/test")[: round(_TEST_SHARE * len(sounds))]
    held = {sounds[index] for index in apart.tolist()}
    return [row for row in rows if row.sound not in held], [row for row in rows if row.sound in held]


def write_manifest(path: Path, rows: Sequence[Syllable]) -> None:
    """A table of the sounds; their paths are relative to it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(asdict(rows[0])))
        table.writeheader()
        table.writerows(map(asdict, rows))
    os.replace(aside, path)
