"""CLIP's words: the same ids as open_clip's for any text, in files that this library and transformers read."""

import gzip
import json
from pathlib import Path

import open_clip
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mmssl.commands.tokenizer import write_clip_tokenizer
from mmssl.data import Vocabulary, text_batch
from mmssl.data.clip_tokenizer import MERGES, clip_tokenizer
from mmssl.errors import UserError
from tests.test_data_pairs import members
from tests.test_data_shards import write_tar
from tests.test_recipe_video import command

# What captions are made of: words, marks, entities, other scripts, spaces of all kinds, and mojibake.
PIECES = [
    *("A", "photo", "of", "the DOG's", "it'll", "’S", "'ſ", "x²", "½", "3.5km", "#hash_tag", "!!?", "e\u0301"),
    *("e&#769;", "&amp;lt;", "&amp;amp;nbsp;", "&eacute", "< &lt;", "\u00a0", "\u2028", "\x1c", "\x85", "\t\r\n"),
    *("\x00", "\ufeff", "schön", "schÃ¶n", "â€œquotedâ€\x9d", "İstanbul", "ΣΟΦΟΣ", "ﬁne", "ＦＵＬＬ", "漢字"),
    *("हिन्दी", "한국", "👩\u200d👩\u200d👧", "🏳️\u200d🌈", "\ufffd"),
]
# Of the characters that Python does not know either, different libraries know different ones.
ASSIGNED = st.characters(exclude_categories=["Cs", "Cn"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("clip")
    write_clip_tokenizer(out)
    return out


@pytest.fixture(scope="module")
def vocabulary(folder) -> Vocabulary:
    return Vocabulary.read(folder)


@pytest.fixture(scope="module")
def encode(vocabulary):
    return vocabulary.encoder(77)


def theirs(text: str) -> list[int]:
    row = open_clip.tokenize(text)[0].tolist()
    return row[: row.index(49407) + 1]


@settings(max_examples=500, deadline=None)
@example("a photo of a cat")
@example("A Photo of  a DOG!")
@example("word " * 200)
@example("1\u0345 !\u0345a")
@given(st.one_of(st.text(ASSIGNED, max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join)))
def test_any_text_has_open_clips_ids(encode, text):
    assert encode(text) == theirs(text)


def test_the_ids_are_openais_and_a_long_text_keeps_its_end(encode, vocabulary):
    assert encode("a photo of a cat") == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (vocabulary.size, vocabulary.cls, vocabulary.sep, vocabulary.mask) == (49408, 49406, 49407, None)
    long = encode("cat " * 100)
    assert len(long) == 77 and long[-2:] == [2368, 49407]
    batch = text_batch(["a cat", "a photo of a cat"], vocabulary, 16)
    assert batch["text.length"].tolist() == [4, 7] and batch["text"].shape == (2, 16)


def test_transformers_reads_the_folder(folder, encode):
    read = AutoTokenizer.from_pretrained(folder)
    assert read("A  photo of a CAT")["input_ids"] == encode("A  photo of a CAT")
    assert len(read("cat " * 100, truncation=True)["input_ids"]) == 77
    assert (read.bos_token_id, read.eos_token_id, len(read)) == (49406, 49407, 49408)
    assert read.decode(encode("a photo of a cat!"), skip_special_tokens=True) == "a photo of a cat !"


def test_a_model_keeps_its_tokenizer_and_how_texts_are_cleaned(vocabulary, tmp_path, folder):
    vocabulary.save(tmp_path / "kept")
    kept = Vocabulary.read(tmp_path / "kept")
    assert (kept.digest, kept.cleaning) == (vocabulary.digest, "clip")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["cleaning"]
    (tmp_path / "kept" / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "CLIPTokenizer"}))
    assert Vocabulary.read(tmp_path / "kept").cleaning == "clip"  # transformers' own folders of CLIP
    (tmp_path / "kept" / "tokenizer_config.json").write_text(json.dumps(config))
    assert Vocabulary.read(tmp_path / "kept").encoder(77)("&lt;") != vocabulary.encoder(77)("&lt;") == theirs("<")


def test_the_merges_are_a_file_that_is_given_or_open_clips(tmp_path, folder, monkeypatch, capsys):
    installed = Path(open_clip.__file__).with_name(MERGES)
    plain = tmp_path / "merges.txt"
    plain.write_bytes(gzip.decompress(installed.read_bytes()))
    command(monkeypatch, f"tokenizer --kind clip --merges {plain} --out {tmp_path}/out")
    assert "CLIP's 49408 tokens" in capsys.readouterr().out
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    plain.write_text("\n".join(plain.read_text().split("\n")[:100]))
    with pytest.raises(UserError, match=r"merges\.txt holds 99 merges of CLIP's 48894; give OpenAI's"):
        clip_tokenizer(plain)
    with pytest.raises(UserError, match="cannot be read as CLIP's merges"):
        clip_tokenizer(tmp_path / "none")
    monkeypatch.setattr("mmssl.data.clip_tokenizer.find_spec", lambda name: None)
    with pytest.raises(UserError, match="give that file by --merges, or `pip install open_clip_torch`"):
        clip_tokenizer()


def test_a_tokenizer_without_a_beginning_encodes_captions_and_no_rows_of_documents(tmp_path, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["post_processor"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    vocabulary = Vocabulary.read(tmp_path)
    assert vocabulary.encoder(8)("a cat") == [320, 2368, 49407]  # its end, which it does not put there itself
    with pytest.raises(UserError, match=r"has no token that begins a text: name its cls_token"):
        _ = vocabulary.framing
    with pytest.raises(UserError, match="a length of 3, not 2"):
        vocabulary.encoder(2)


def test_a_tokenizer_is_learnt_from_the_captions_in_shards(tmp_path, cache, monkeypatch, capsys):
    files = members(20, text=False)
    files["0004.json"] = b"{}"
    write_tar(tmp_path / "train" / "a.tar", files)
    write_tar(tmp_path / "val" / "a.tar", members(1, 20))
    command(monkeypatch, f"tokenizer --data {tmp_path} --field name --vocab 60 --out {tmp_path}/out")
    told = capsys.readouterr().out
    assert "skipped a.tar/0004.png: has no 'name' in its JSON" in told and "from 19 documents (1 skipped)" in told
    assert len(Vocabulary.read(tmp_path / "out").encoder(9)("three five")) == 4
