"""Pictures with captions: each place they lie in gives the same pairs, and what is no pair is named and counted."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Picture

from mmssl.data import (
    EvalView,
    Ledger,
    Loader,
    NoTestPart,
    PairFiles,
    PairSource,
    PairView,
    WindowView,
    evaluation_batches,
    hold_out,
    notes,
    open_pairs,
)
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.errors import UserError
from mmssl.masking.noise import Keys
from tests.test_data_shards import png, write_tar

pytestmark = pytest.mark.usefixtures("cache")
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(train_tokenizer([" ".join(WORDS)] * 20, "wordpiece", 70), folder)
    return folder


def members(count=10, first=0, text=True, **more):
    """WebDataset's: pictures of one grey each, which their captions name."""
    made = {}
    for k in range(first, first + count):
        made[f"{k:04}.png"] = png(k)
        if text:
            made[f"{k:04}.txt"] = f"{WORDS[k % 10]}\n".encode()
        made[f"{k:04}.json"] = json.dumps({"name": WORDS[k % 10], "kind": "ab"[k % 2], "many": WORDS[:3]}).encode()
    return made | more


def unpacked(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def pairs(source):
    """(grey, caption) of each sample."""
    read = source.vocabulary.tokenizer()
    samples = [source.read(index) for index in range(len(source))]
    return [(sample["image"][0, 0, 0].item(), read.decode(sample["text"].tolist())) for sample in samples]


EXPECTED = list(enumerate(WORDS))


def skipped(source):
    """What evaluation skips, by name, with the reason."""
    ledger = Ledger()
    list(evaluation_batches(source, PairView(EvalView(8), 8), batch_size=4, ledger=ledger))
    assert ledger.seen + len(ledger.skipped) == len(source)
    return dict(ledger.skipped)


def test_shards_a_folder_and_every_manifest_give_the_same_pairs(tmp_path, tokenizer):
    write_tar(tmp_path / "shards" / "0.tar", members(4))
    write_tar(tmp_path / "shards" / "1.tar", members(6, 4))
    unpacked(tmp_path / "text", {n: d for n, d in members().items() if not n.endswith("json")})
    described = unpacked(tmp_path / "described", members(text=False))
    rows = [{"filepath": f"{k:04}.png", "title": word, "kind": "ab"[k % 2]} for k, word in EXPECTED]
    for name, mark in (("tabs.csv", "\t"), ("commas.csv", ","), ("tabs.tsv", "\t")):
        lines = [mark.join(row) for row in ([*rows[0]], *(row.values() for row in rows))]
        (described / name).write_text("\n".join(lines))
    (described / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Dataset.from_list(rows).to_parquet(described / "paths.parquet")
    held = [{"image": {"bytes": png(k), "path": None}, "text": word, "kind": "ab"[k % 2]} for k, word in EXPECTED]
    features = Features({"image": Image(), "text": Value("string"), "kind": Value("string")})
    Dataset.from_list(held, features=features).to_parquet(tmp_path / "held.parquet")
    given = [(tmp_path / "shards", {}), (tmp_path / "shards", {"caption_key": "name", "label": "kind"})]
    given += [(tmp_path / "text", {}), (described, {"caption_key": "name", "label": "kind"})]
    names = ("tabs.csv", "commas.csv", "tabs.tsv", "rows.jsonl", "paths.parquet", "../held.parquet")
    given += [(described / name, {"label": "kind"}) for name in names]
    for path, settings in given:
        source = open_pairs(path, tokenizer, "train", **settings)
        assert pairs(source) == EXPECTED, path
        if settings:
            assert (source.classes, source.labels) == (["a", "b"], [0, 1] * 5), path
    assert open_pairs(tmp_path / "shards", tokenizer).name(4) == "1.tar/0004.png"
    assert open_pairs(tmp_path / "held.parquet", tokenizer).name(3) == "held.parquet:4"
    columns = PairFiles(described / "tabs.csv", image_key="filepath", caption_key="kind")
    assert columns.captions(3) == ["b"]
    rest, held_out = hold_out(open_pairs(tmp_path / "shards", tokenizer), 0.2)
    assert len(rest) + len(held_out) == 10


def test_batches_are_the_same_for_any_number_of_workers_and_from_the_middle_on(tmp_path, tokenizer):
    write_tar(tmp_path / "a.tar", members(text=False))
    source, view = open_pairs(tmp_path, tokenizer, caption_key="many", length=8), PairView(WindowView(8), 8)
    loaders = [Loader(source, view, batch_size=4, seed=3, workers=workers) for workers in (0, 0, 1)]
    whole = list(loaders[0].batches(0, 20))
    for batches in (loaders[1].batches(7, 20), loaders[2].batches(7, 20)):  # in the middle of the second epoch
        for one, other in zip(whole[7:], batches, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    assert whole[0]["image"].shape == (4, 3, 8, 8) and whole[0]["text"].shape == (4, 8)
    rows = {tuple(row.tolist()) for batch in whole for row in batch["text"]}
    assert len(rows) == 3 and set(whole[0]["text.length"].tolist()) == {3}  # each of three captions was drawn
    grey = torch.cat([batch["image"][:, 0, 0, 0] for batch in whole])
    assert torch.equal(grey, torch.cat([batch["sample_id"] for batch in whole]).to(torch.uint8))


def test_a_batch_keeps_each_caption_beside_its_picture_whatever_the_sizes(tmp_path, tokenizer):
    files = {name: png(k, 8 + 70 * (k % 3)) for k in range(10) for name in [f"{k}.png"]}
    unpacked(tmp_path, files | {f"{k}.txt": word.encode() for k, word in EXPECTED})
    source = open_pairs(tmp_path, tokenizer)
    for view in (WindowView(8), EvalView(8)):
        (batch,) = Loader(source, PairView(view, 8), batch_size=10, seed=1).batches(0, 1)
        read = source.vocabulary.tokenizer()
        texts = [read.decode(row[:length].tolist()) for row, length in zip(batch["text"], batch["text.length"])]
        assert texts == [WORDS[grey] for grey in batch["image"][:, 0, 0, 0]] and texts != WORDS


def test_one_of_several_captions_is_drawn_or_each_has_its_turn(tmp_path, tokenizer):
    unpacked(tmp_path, {"0.png": png(0), "0.txt": b"one\n\n two \nthree\n", "1.jpg": png(1), "1.txt": b"four"})
    drawn = PairSource(tmp_path, tokenizer)
    assert drawn.captions(0) == ["one", "two", "three"] and drawn.captions(1) == ["four"]
    turn = PairSource(tmp_path, tokenizer, drawn=False)
    (batch,) = evaluation_batches(turn, PairView(EvalView(8), 8), batch_size=6, repeats=3)
    read = turn.vocabulary.tokenizer()
    texts = [read.decode(row[:length].tolist()) for row, length in zip(batch["text"], batch["text.length"])]
    assert texts == ["one", "two", "three", "four", "four", "four"]
    epochs = torch.arange(300)
    keys = Keys(5, torch.zeros_like(epochs), epochs, torch.zeros_like(epochs))
    chosen = [tuple(text.tolist()) for text in drawn.texts_of(0, keys)]
    assert all(70 < chosen.count(each) < 130 for each in set(chosen)) and len(set(chosen)) == 3
    assert drawn.sampling != turn.sampling


def test_a_long_caption_is_cut_and_keeps_its_end(tmp_path, tokenizer):
    unpacked(tmp_path, {"0.png": png(0), "0.txt": b"one two three four five six"})
    source = PairSource(tmp_path, tokenizer, length=5)
    assert source.read(0)["text"].tolist() == [2, *source.vocabulary.tokenizer().encode("one two three").ids[1:-1], 3]


def test_broken_pairs_of_shards_are_named_with_the_shard(tmp_path, tokenizer):
    files = members(6)
    files["0001.txt"], files["0002.txt"], files["0003.png"] = b" \n", b"\xff\xfe", b"no picture"
    del files["0004.txt"], files["0004.json"], files["0005.png"]
    tar = write_tar(tmp_path / "a.tar", files | {"0006.png": png(6, 100), "0006.txt": b"six", "0007.png": png(7)})
    data = tar.read_bytes()
    tar.write_bytes(data[: data.rindex(b"0007.png") + 600])  # within the last one's bytes
    source = open_pairs(tar, tokenizer)
    reasons = skipped(source)
    assert set(reasons) == {f"a.tar/000{k}" for k in ("1.png", "2.png", "3.png", "4.png", "5.txt", "7.png")}
    assert reasons["a.tar/0001.png"] == "has an empty caption"
    assert reasons["a.tar/0002.png"] == "has a caption that is not UTF-8"
    assert "is no picture" in reasons["a.tar/0003.png"]
    assert reasons["a.tar/0004.png"] == reasons["a.tar/0007.png"] == "has no caption"
    assert reasons["a.tar/0005.txt"] == "has no picture"
    told = "\n".join(notes(source))
    assert "2 without a caption: a.tar/0004.png, a.tar/0007.png" in told
    assert "1 captions without a picture: a.tar/0005.txt" in told
    assert "cut short, what came last may be missing: a.tar" in told
    loader = Loader(source, PairView(EvalView(8), 8), batch_size=4, ceiling=0.5)
    with pytest.raises(UserError, match=r"6 of 8 files cannot be read, .* a\.tar/000"):
        list(loader.batches(0, 40))


def test_broken_rows_of_manifests_are_named_with_their_line(tmp_path, tokenizer):
    unpacked(tmp_path, members(3))
    rows = ["filepath,title", "0000.png,zero", "none.png,one", ",two", "0001.png,", "0002.png", "0001.png,a, b"]
    (tmp_path / "a.csv").write_bytes("\n".join(rows).encode() + b"\n0002.png,\xff")
    reasons = skipped(open_pairs(tmp_path / "a.csv", tokenizer))
    assert reasons == {
        "none.png": "cannot be opened (No such file or directory)",
        "a.csv:4": "has no picture",
        "0001.png": "has an empty caption",
        "a.csv:7": "has more fields than the header",
        "0002.png": "has a caption that is not UTF-8",
    }
    lines = ['{"path": "0000.png", "caption": ["zero", ""]}', "{", "[1]", '{"path": "0001.png", "caption": 7}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"path": "0002.png"}']))
    reasons = skipped(open_pairs(tmp_path / "a.jsonl", tokenizer))
    assert "is no JSON (" in reasons.pop("a.jsonl:2")
    assert reasons == {
        "a.jsonl:3": "is no JSON object",
        "0001.png": "has a caption that is no text but 7",
        "0002.png": "has no caption",
    }
    rows = [{"image": {"bytes": png(k), "path": None} if k else None, "text": WORDS[k]} for k in range(2)]
    features = Features({"image": Image(), "text": Value("string")})
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
    assert skipped(open_pairs(tmp_path / "a.parquet", tokenizer)) == {"a.parquet:1": "has no picture"}


def test_json_beside_pictures_that_is_wrong_is_told_apart(tmp_path, tokenizer):
    files = {f"{k}.png": png(k) for k in range(4)}
    texts = [b'{"name": "one"}', b"{", b'{"nam": "two"}', b'{"name": null}']
    unpacked(tmp_path, files | {f"{k}.json": text for k, text in enumerate(texts)} | {"LICENSE.txt": b"free"})
    source = open_pairs(tmp_path, tokenizer, caption_key="name")
    reasons = skipped(source)
    assert "has JSON beside it that cannot be read" in reasons.pop("1.png")
    assert reasons == {"2.png": "has no 'name' in its JSON", "3.png": "has no caption"}
    assert "1 captions without a picture: LICENSE.txt" in "\n".join(notes(source))


def test_what_holds_no_pairs_is_refused_in_a_sentence(tmp_path, tokenizer):
    unpacked(tmp_path / "bare", {"0.png": png(0)})
    unpacked(tmp_path / "json", {"0.png": png(0), "0.json": b'{"name": "zero", "kind": "a"}'})
    unpacked(tmp_path / "text", {"0.png": png(0), "0.txt": b"zero"})
    unpacked(tmp_path / "alone", {"0.txt": b"zero"})
    unpacked(tmp_path / "empty", {"0.png": png(0), "0.txt": b""})
    files = {
        "a.csv": b"filepath\ttitle\tkind\n0.png\tzero\ta",
        "b.csv": b"url,words\nx,y",
        "c.csv": b"filepath,title\n",
    }
    files |= {"d.jsonl": b"{", "e.parquet": b"PAR1", "f.csv": b'filepath,title\n0.png,"' + b"x" * 200_000 + b'"'}
    unpacked(tmp_path / "text", files)
    for name, sentence, settings in (
        ("bare", "has pictures but no caption: put a .txt or .json of its name beside each", {}),
        ("json", "has no 'nam' but name, kind: did you mean 'name'?", {"caption_key": "nam"}),
        ("json", "has none of title, caption, captions, text, txt, which are the usual names of captions", {}),
        ("json", "has 'kint' in its JSON: did you mean 'kind'?", {"caption_key": "name", "label": "kint"}),
        ("text", "has no JSON beside its pictures, where 'name' could be", {"caption_key": "name"}),
        ("text", "is no manifest: --image-key names", {"image_key": "path"}),
        ("alone", "has files but no pair", {}),
        ("empty", "holds no readable pair: 1 of 1 files were tried, and the first, 0.png, has an empty caption", {}),
        ("text/a.csv", "has no 'titel' but filepath, title, kind: did you mean 'title'?", {"caption_key": "titel"}),
        ("text/a.csv", "has no 'kin' but filepath, title, kind: did you mean 'kind'?", {"label": "kin"}),
        ("text/b.csv", "name the one that is meant by --image-key, of url, words", {}),
        ("text/b.csv", "name the one that is meant by --caption-key, of url, words", {"image_key": "url"}),
        ("text/c.csv", "lists no pair", {}),
        ("text/d.jsonl", "lists no pair, and the first line is no JSON", {}),
        ("text/e.parquet", "cannot be read", {}),
        ("text/f.csv", "cannot be read (field larger than field limit", {}),
        ("none", "does not exist; give a folder of pairs", {}),
    ):
        with pytest.raises(UserError) as error:
            open_pairs(tmp_path / name, tokenizer, **settings)
        assert sentence in str(error.value), error.value


def test_parts_of_pairs_are_folders(tmp_path, tokenizer):
    unpacked(tmp_path / "train", members(4))
    write_tar(tmp_path / "val" / "a.tar", members(2, 4))
    assert pairs(open_pairs(tmp_path, tokenizer, "train")) == EXPECTED[:4]
    assert pairs(open_pairs(tmp_path, tokenizer, "test")) == EXPECTED[4:6]


def test_a_folder_of_parquet_has_parts_by_its_files_names(tmp_path, tokenizer):
    features = Features({"image": Image(), "text": Value("string")})

    def write(name, first, count):
        rows = [{"image": {"bytes": png(k), "path": None}, "text": WORDS[k]} for k in range(first, first + count)]
        (tmp_path / "data").mkdir(exist_ok=True)
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / "data" / name)

    write("train-00000-of-00002.parquet", 0, 3)
    write("train-00001-of-00002.parquet", 3, 2)
    (tmp_path / "README.md").write_text("a card")
    with pytest.raises(NoTestPart, match=r"has no test part: name its files test-\*\.parquet"):
        open_pairs(tmp_path, tokenizer, "test")
    write("validation-00000-of-00001.parquet", 5, 1)
    assert pairs(open_pairs(tmp_path, tokenizer, "test")) == EXPECTED[5:6]
    for split in ("train", None):
        source = open_pairs(tmp_path, tokenizer, split)
        assert pairs(source) == EXPECTED[:5]
    assert source.name(4) == "data/train-00001-of-00002.parquet:2"
    unpacked(tmp_path, members(1, 9))  # pictures count before tables
    assert pairs(open_pairs(tmp_path, tokenizer)) == EXPECTED[9:]


def test_parquet_that_changes_is_read_anew_and_its_classes_have_names(tmp_path, tokenizer):
    features = Features({"image": Image(), "text": Value("string"), "label": ClassLabel(names=["low", "high"])})
    for first in (0, 4):
        pictures = [{"bytes": png(k), "path": None} for k in range(first, first + 3)]
        rows = [{"image": p, "text": WORDS[first + k], "label": k % 2} for k, p in enumerate(pictures)]
        Dataset.from_list(rows, features=features).to_parquet(tmp_path / "a.parquet")
        source = open_pairs(tmp_path / "a.parquet", tokenizer)
        assert pairs(source) == EXPECTED[first : first + 3]
        assert (source.classes, source.labels) == (["high", "low"], [1, 0, 1])
    Dataset.from_dict({"image": [], "text": [], "label": []}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet lists no pair"):
        open_pairs(tmp_path / "a.parquet", tokenizer)
    (tmp_path / "two").mkdir()
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "two" / "a.parquet")
    Dataset.from_list([{"image": 1.5, "text": "one", "label": 0}]).to_parquet(tmp_path / "two" / "b.parquet")
    with pytest.raises(UserError, match=r"two cannot be read as \.parquet"):
        open_pairs(tmp_path / "two", tokenizer)


def test_the_window_is_a_random_square_of_the_resized_picture():
    values = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (32, 1, 3))
    file = BytesIO()
    Picture.fromarray(values).save(file, "png")
    picture = torch.from_numpy(values).permute(2, 0, 1)
    ids = torch.arange(200)
    keys = Keys(1, ids, torch.zeros_like(ids), torch.zeros_like(ids))
    batch = WindowView(16)(({"image": picture} for _ in ids), keys)["image"]
    assert batch.shape == (200, 3, 16, 16)
    assert (batch == batch[:, :, :1]).all()  # upright, all rows alike
    whole = EvalView((16, 32), (16, 32))([{"image": picture}], None)["image"][0]
    places = [next(x for x in range(17) if torch.equal(cut, whole[:, :, x : x + 16])) for cut in batch]
    assert set(places) == set(range(17)) and max(map(places.count, set(places))) < 30


def test_captions_alone_are_read_without_a_tokenizer(tmp_path):
    unpacked(tmp_path, members(3))
    files = PairFiles(tmp_path)
    assert [files.captions(index) for index in range(3)] == [["zero"], ["one"], ["two"]]
