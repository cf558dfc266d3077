"""Several labels a sample: from manifests as people write them to the rows that evaluation reads."""

import csv
import json
from pathlib import Path

import pytest
import torch

from mmssl.data import ArraySource, Subset, evaluation_batches, hold_out, label_sets
from mmssl.data.folders import read_manifest
from mmssl.errors import UserError


def manifest(folder: Path, kind: str, labels: list, key: str = "labels") -> Path:
    path = folder / f"list.{kind}"
    with open(path, "w", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps({"path": f"{n}.wav", key: label}) + "\n" for n, label in enumerate(labels))
        else:
            csv.writer(file).writerows([("path", key), *((f"{n}.wav", label) for n, label in enumerate(labels))])
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_several_labels_are_parted_at_semicolons_or_where_there_are_none_at_commas(tmp_path, kind):
    for given, wanted in (
        (["/m/068hy,/m/07q6cd_", "/m/068hy"], [("/m/068hy", "/m/07q6cd_"), ("/m/068hy",)]),
        (["Male speech, man speaking; Music", "Music"], [("Male speech, man speaking", "Music"), ("Music",)]),
        (["Dog, Bark", "Bark,"], [("Dog", "Bark"), ("Bark",)]),
    ):
        assert read_manifest(manifest(tmp_path, kind, given), "sound") == (["0.wav", "1.wav"], wanted)


def test_lists_of_json_are_several_labels_under_any_key_and_an_empty_one_says_none(tmp_path):
    path = manifest(tmp_path, "jsonl", [["Bark, of a dog", 7], [], ["Music"]], key="tags")
    assert read_manifest(path, "sound", "tags")[1] == [("Bark, of a dog", "7"), (), ("Music",)]
    assert read_manifest(path, "sound")[1] is None


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_single_labels_keeps_its_commas_and_its_zeros(tmp_path, kind):
    for label in ("label", "kind"):
        path = manifest(tmp_path, kind, ["jump, high", 0], key=label)
        assert read_manifest(path, "sound", None if label == "label" else label)[1] == ["jump, high", "0"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_row_without_labels_is_named(tmp_path, kind):
    with pytest.raises(UserError, match=r"labels 2 of its 3 sounds, 1\.wav is the first without; label all or none"):
        read_manifest(manifest(tmp_path, kind, ["a,b", "", "b"]), "sound")


def labelled(sets: list[tuple[int, ...]]) -> Subset:
    source = Subset(ArraySource(torch.zeros(len(sets), 3, 4, 4, dtype=torch.uint8)), range(len(sets)))
    source.label_sets, source.classes = sets, [f"class {k}" for k in range(4)]
    return source


def test_the_held_out_part_has_rare_classes_and_none_that_the_rest_has_not():
    sets = [(0,)] * 60 + [(0, 1)] * 30 + [(0, 1, 2)] * 10
    rest, held = hold_out(labelled(sets), 0.2)
    assert len(held) == 20 and len(rest) == 80
    assert [sum(k in each for each in label_sets(held)) for k in range(3)] == [20, 8, 2]
    # The third class lies in samples alone that are the rarest of two others: all of them could be held out.
    for seed in range(20):
        rest, held = hold_out(labelled([(0,), (0, 2), (1,), (1, 2)]), 0.4, seed=seed)
        assert {k for each in label_sets(held) for k in each} <= {k for each in label_sets(rest) for k in each}
        assert sorted(label_sets(rest) + label_sets(held)) == [(0,), (0, 2), (1,), (1, 2)]


def test_batches_hold_a_row_of_yes_and_no_for_each_sample():
    class Still:
        def __call__(self, samples, keys):
            return {"image": torch.stack([sample["image"] for sample in samples])}

    batches = list(evaluation_batches(labelled([(0, 3), (), (1, 1)]), Still(), batch_size=2))
    found = torch.cat([batch["label"] for batch in batches])
    assert found.tolist() == [[True, False, False, True], [False] * 4, [False, True, False, False]]
