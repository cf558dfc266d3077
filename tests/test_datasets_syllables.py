"""The spoken syllables: labels from the files' names, and a test part of other sounds."""

import csv

import pytest

from mmssl.datasets import write_syllables
from mmssl.errors import UserError

NAMES = ["ㄅㄚ", "ㄅㄚ1", "ㄅㄚ4", "ㄢ2", "ㄓ3", *(f"ㄇㄚ{vowel}" for vowel in "ㄛㄜㄝㄞㄟㄠㄡ")]


@pytest.fixture
def given(tmp_path):
    for name in NAMES:
        for speaker in "35":
            path = tmp_path / "given" / name / f"{speaker}.ogg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(speaker.encode())
    return tmp_path / "given"


def rows(folder, part):
    with open(folder / f"{part}.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_names_become_labels(given, tmp_path):
    folder = write_syllables(tmp_path / "set", given)
    found = {row["path"]: row for part in ("train", "test") for row in rows(folder, part)}
    assert found["ogg/ㄅㄚ/3.ogg"] == {
        "path": "ogg/ㄅㄚ/3.ogg", "sound": "ㄅㄚ", "tone": "first", "initial": "ㄅ", "speaker": "3"
    }  # fmt: skip
    assert found["ogg/ㄅㄚ1/5.ogg"]["tone"] == "neutral" and found["ogg/ㄢ2/5.ogg"]["initial"] == "none"
    assert len(found) == 2 * len(NAMES) and all((folder / path).is_file() for path in found)


def test_no_test_sound_is_heard_in_training(given, tmp_path):
    folder = write_syllables(tmp_path / "set", given)
    train, test = ({row["sound"] for row in rows(folder, part)} for part in ("train", "test"))
    assert len(test) == 3 and not train & test
    again = write_syllables(tmp_path / "again", given)
    assert rows(again, "test") == rows(folder, "test")


def test_a_folder_without_syllables_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot be had here. Tried the folder .*: it has no {syllable}/{speaker}.ogg"):
        write_syllables(tmp_path / "set", tmp_path)
