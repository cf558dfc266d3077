"""`mmssl tokenizer`: what it writes is what transformers' AutoTokenizer and this library read."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from mmssl.commands.tokenizer import learn_tokenizer
from mmssl.data import Vocabulary
from mmssl.errors import UserError

SENTENCES = ["The small cat sees the dog.", "A dog hears the Cat, and barks!", "Café cats are not small dogs."] * 20


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in SENTENCES))
    return path


@pytest.mark.parametrize(
    ("kind", "size", "mask", "framed"),
    [
        ("wordpiece", 60, "[MASK]", ["[CLS]", "[SEP]"]),
        ("unigram", 60, "[MASK]", ["[CLS]", "[SEP]"]),
        ("bpe", 280, "<mask>", ["<s>", "</s>"]),
    ],
)
def test_transformers_reads_each_kind_with_its_special_tokens(tmp_path, texts, capsys, kind, size, mask, framed):
    out = tmp_path / "tokenizer"
    learn_tokenizer(texts, kind, size, out, "sentence")
    read, own, vocabulary = AutoTokenizer.from_pretrained(out), Tokenizer.from_file(f"{out}/tokenizer.json"), None
    vocabulary = Vocabulary.read(out)
    text = f"The café, and a {mask}."
    ids = read(text)["input_ids"]
    assert ids == own.encode(text).ids
    assert [ids[0], ids[-1]] == [vocabulary.cls, vocabulary.sep] == read.convert_tokens_to_ids(framed)
    assert (read.mask_token, read.mask_token_id, read.pad_token_id) == (mask, vocabulary.masked, vocabulary.pad)
    assert ids.count(read.mask_token_id) == 1 and read.unk_token is not None
    assert len(read) == vocabulary.size <= size
    assert f"{vocabulary.size} tokens, learnt from 60 documents (0 skipped)" in capsys.readouterr().out


def test_two_texts_are_segments_to_bert_and_not_to_roberta(tmp_path, texts):
    for kind, size in (("wordpiece", 60), ("bpe", 280)):
        learn_tokenizer(texts, kind, size, tmp_path / kind, "sentence")
    pair = AutoTokenizer.from_pretrained(tmp_path / "wordpiece")("the cat", "a dog")
    tokens = [1 if number == 3 else 0 for number in pair["input_ids"]]
    assert pair["token_type_ids"] == [1 if sum(tokens[:at]) else 0 for at in range(len(tokens))]
    pair = AutoTokenizer.from_pretrained(tmp_path / "bpe")("the cat", "a dog")
    assert "token_type_ids" not in pair and pair["input_ids"].count(2) == 3


def test_capitals_and_accents_are_kept_where_that_is_asked_for(tmp_path, texts):
    learn_tokenizer(texts, "wordpiece", 80, tmp_path / "small", "sentence")
    learn_tokenizer(texts, "wordpiece", 80, tmp_path / "cased", "sentence", lowercase=False)
    ids = [AutoTokenizer.from_pretrained(tmp_path / name)(["Café", "cafe"])["input_ids"] for name in ("small", "cased")]
    assert ids[0][0] == ids[0][1] and ids[1][0] != ids[1][1]


def test_byte_pairs_give_every_character_back(tmp_path, texts):
    learn_tokenizer(texts, "bpe", 280, tmp_path, "sentence")
    read = AutoTokenizer.from_pretrained(tmp_path)
    text = "Ünknown  wörds\n— and 漢字 🙂"
    assert read.decode(read(text)["input_ids"], skip_special_tokens=True) == text


def test_bad_lines_are_listed_and_what_cannot_be_learnt_is_refused_in_a_sentence(tmp_path, texts, capsys):
    texts.write_bytes(texts.read_bytes() + b"{no json}\n" + b'{"sentence": "\xff"}\n')
    learn_tokenizer(texts, "wordpiece", 60, tmp_path / "out", "sentence")
    told = capsys.readouterr().out
    assert "skipped texts.jsonl:61: is no JSON" in told and "skipped texts.jsonl:62: is not UTF-8" in told
    with pytest.raises(UserError, match="has no field 'text', only 'sentence'"):
        learn_tokenizer(texts, "wordpiece", 60, tmp_path / "out")
    with pytest.raises(UserError, match=r"has at least \d+ tokens, more than --vocab 100"):
        learn_tokenizer(texts, "bpe", 100, tmp_path / "out", "sentence")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="holds no text to learn a tokenizer from; 1 lines were skipped"):
        learn_tokenizer(tmp_path / "empty.txt", "wordpiece", 60, tmp_path / "out")
