"""Texts: every kind of file gives the same documents, rows are packed as the papers say, and nothing moves them."""

import csv
import gzip
import itertools
import json
import pickle
import random
import shutil
from functools import partial

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoTokenizer

from mmssl.data import (
    Ledger,
    Loader,
    TextSource,
    TextView,
    Vocabulary,
    evaluation_batches,
    hold_out,
    notes,
    open_texts,
)
from mmssl.data.packing import _shortened
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.errors import UserError

CLS, SEP, UNKNOWN = 2, 3, 1
WORDS = ["".join(letters) for letters in itertools.product("bdfg", "aeiou", "lmn")]


def document(number, sentences=None, words=None):
    """Some sentences of some words, other ones for each number."""
    chance = random.Random(number)
    return " ".join(
        " ".join(chance.choices(WORDS, k=words or chance.randint(2, 9))) + "."
        for _ in range(sentences or chance.randint(1, 12))
    )


DOCUMENTS = [document(number) for number in range(60)]


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """One token for each of WORDS, so that each word beside them is many."""
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([" ".join(WORDS) + " . ,"] * 3, "wordpiece", 200), folder)
    return folder


def write(path, texts=DOCUMENTS):
    """A file of the kind that its name says, whose documents have one of three classes."""
    rows = [{"number": number, "text": text, "kind": f"k{number % 3}"} for number, text in enumerate(texts)]
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    if plain.suffix == ".txt":
        plain.write_text("".join(f"{text}\n" for text in texts))
    elif plain.suffix == ".jsonl":
        plain.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif plain.suffix == ".csv":
        with open(plain, "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def told(source):
    """The text of each row, as the tokenizer gives it back."""
    decode = partial(source.vocabulary.tokenizer().decode, skip_special_tokens=False)
    return [decode(source.read(index)["text"].tolist()) for index in range(len(source))]


def inside(row):
    """A row's tokens in runs, without special ones."""
    ids = row["text"].tolist()
    assert ids[0] == CLS and ids[-1] == SEP
    return [list(run) for framing, run in itertools.groupby(ids[1:], lambda each: each == SEP) if not framing]


def tokens_of(source):
    """All tokens of the documents, in order."""
    bounds = itertools.pairwise(source.corpus.sentences[source.corpus.documents])
    return [source.corpus.ids[a:b].tolist() for a, b in bounds]


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_documents_and_classes(tmp_path, tokenizer, kind, zipped):
    path = write(tmp_path / f"texts{kind}{zipped}")
    classes = {} if kind == ".txt" else {"label": "kind"}
    source = TextSource(path, tokenizer, packing="document", length=256, **classes)
    assert told(source) == [f"[CLS] {text} [SEP]" for text in DOCUMENTS]
    assert source.channels == Vocabulary.read(tokenizer).size and not source.notes
    first = 2 if kind == ".csv" else 1  # below its header
    assert [source.name(0), source.name(59)] == [f"texts{kind}{zipped}:{first}", f"texts{kind}{zipped}:{first + 59}"]
    if classes:
        assert source.classes == ["k0", "k1", "k2"] and source.labels == [number % 3 for number in range(60)]
        batch = next(evaluation_batches(source, TextView(256), batch_size=7))
        assert batch["label"].tolist() == source.labels[:7]


def test_blank_lines_divide_documents_where_that_is_said(tmp_path, tokenizer):
    path = tmp_path / "texts.txt"
    path.write_text("\ufeff\n\nbal ban\nbam.\r\n\r\n \ndal\n\n\n\nfal\nfam")
    paragraphs = TextSource(path, tokenizer, packing="document", length=32, document="paragraph")
    assert told(paragraphs) == ["[CLS] bal ban bam. [SEP]", "[CLS] dal [SEP]", "[CLS] fal fam [SEP]"]
    assert [paragraphs.name(index) for index in range(3)] == ["texts.txt:3", "texts.txt:7", "texts.txt:11"]
    assert np.diff(paragraphs.corpus.documents).tolist() == [2, 1, 2]  # lines are sentences
    lines = TextSource(path, tokenizer, packing="document", length=32)
    assert len(lines) == 5 and not lines.notes


def test_folders_are_read_in_order_with_their_parts_and_never_mixed(tmp_path, tokenizer):
    for part, name, texts in (("train/b", "x", ["bal"]), ("train", "c", ["dal", "fal"]), ("val", "x", ["gal"])):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        write(tmp_path / part / f"{name}.jsonl", texts)
    write(tmp_path / "train" / "a.jsonl.gz", ["ban"])
    (tmp_path / "train" / "README.md").touch()
    train, test = (open_texts(tmp_path, tokenizer, part, packing="document", length=8) for part in ("train", "test"))
    assert told(train) == [f"[CLS] {word} [SEP]" for word in ("ban", "bal", "dal", "fal")]
    assert [train.name(index) for index in (0, 1, 3)] == ["a.jsonl.gz:1", "b/x.jsonl:1", "c.jsonl:2"]
    assert told(test) == ["[CLS] gal [SEP]"]
    assert notes(train) == [
        f"{tmp_path}: the train part is train",
        f"{tmp_path / 'train'}: left out 1 file: 1 .md",
    ]
    write(tmp_path / "train" / "d.txt")
    with pytest.raises(UserError, match=r"mixes kinds of texts, 3 \.jsonl, 1 \.txt: give a folder of one kind"):
        open_texts(tmp_path, tokenizer, "train")


def test_full_sentences_lose_nothing_fill_their_rows_and_are_divided_by_separators(tmp_path, tokenizer):
    source = TextSource(write(tmp_path / "texts.txt"), tokenizer, packing="full", length=40)
    rows = [source.read(index) for index in range(len(source))]
    assert [each for row in rows for run in inside(row) for each in run] == list(itertools.chain(*tokens_of(source)))
    ends = set(np.cumsum([len(tokens) for tokens in tokens_of(source)]).tolist())
    sentences, seen = source.corpus.sentences.tolist(), 0
    for row in rows:
        assert len(row["text"]) <= 40
        for place, run in enumerate(inside(row)):
            assert place == 0 or seen in ends  # a separator only where a document ends
            assert not {seen + at for at in range(1, len(run))} & ends  # and always there
            seen += len(run)
        assert seen in sentences
        if row is not rows[-1]:  # the next sentence would not have fitted
            following = sentences[sentences.index(seen) + 1] - seen
            assert len(row["text"]) + following + (seen in ends) > 40


def test_a_sentence_longer_than_a_row_is_divided_and_whole(tmp_path, tokenizer):
    (tmp_path / "texts.txt").write_text(document(1, 1, 100) + "\n" + document(2, 2, 30))
    for packing in ("full", "segment"):
        source = TextSource(tmp_path / "texts.txt", tokenizer, packing=packing, length=24)
        assert max(len(source.read(index)["text"]) for index in range(len(source))) <= 24
    full = TextSource(tmp_path / "texts.txt", tokenizer, packing="full", length=24)
    found = [each for index in range(len(full)) for run in inside(full.read(index)) for each in run]
    assert found == list(itertools.chain(*tokens_of(full)))


def test_a_document_a_row_is_cut_at_its_end(tmp_path, tokenizer):
    source = TextSource(write(tmp_path / "texts.txt"), tokenizer, packing="document", length=12)
    for index, tokens in enumerate(tokens_of(source)):
        assert inside(source.read(index)) in ([tokens[:10]], [[each for each in tokens[:10] if each != SEP]])


def test_words_are_numbered_and_special_tokens_belong_to_none(tmp_path, tokenizer):
    (tmp_path / "texts.txt").write_text("bal ballal. dal\nfal")
    row = TextSource(tmp_path / "texts.txt", tokenizer, packing="full", length=32).read(0)
    reader = Vocabulary.read(tokenizer).tokenizer()
    pieces = [reader.id_to_token(number) for number in row["text"].tolist()]
    groups = {number: "" for number in row["text.words"].tolist() if number >= 0}
    for piece, number in zip(pieces, row["text.words"].tolist(), strict=True):
        assert (number == -1) == (piece in ("[CLS]", "[SEP]"))
        if number >= 0:
            groups[number] += piece.removeprefix("##")
    assert list(groups) == list(range(5)) and list(groups.values())[:4] == ["bal", "ballal", ".", "dal"]


@pytest.fixture
def long_documents(tmp_path):
    """Sentences of seven tokens, and rows with room for six of them: nothing needs to be cut."""
    return write(tmp_path / "long.jsonl", [document(number, 90, 6) for number in range(40)])


LENGTH = 45


def test_half_of_the_pairs_of_segments_follow_each_other(long_documents, tokenizer):
    source = TextSource(long_documents, tokenizer, packing="segment", length=LENGTH)
    rows = source.copies[0].rows
    # where rows are so short that they hold one sentence alone, none can follow
    of = rows.runs[::2, 0] // (90 * 7)
    other = rows.other[np.isin(of, of[rows.other == 0])]
    assert len(other) > 600 and abs(other.mean() - 0.5) < 4 * 0.5 / len(other) ** 0.5


def test_segments_are_of_one_document_or_two_and_nothing_is_lost(long_documents, tokenizer):
    source = TextSource(long_documents, tokenizer, packing="segment", length=LENGTH, seed=3)
    text, rows = np.concatenate(tokens_of(source)), source.copies[0].rows
    shown = np.zeros(len(text), np.int64)
    for index in range(len(source)):
        (a, middle), (second, end) = rows.runs[2 * index : 2 * index + 2].tolist()
        row = source.read(index)
        first, follower = [text[a:middle].tolist(), text[second:end].tolist()]
        assert row["text"].tolist() == [CLS, *first, SEP, *follower, SEP] and len(row["text"]) <= LENGTH
        assert row["text.segment"].tolist() == [0] * (len(first) + 2) + [1] * (len(follower) + 1)
        assert (first[-1] == follower[-1]) and len(first) % 7 == 0 and len(follower) % 7 == 0  # whole sentences
        shown[a:middle] += 1
        if row["text.next"] == 0:
            assert second == middle
            shown[second:end] += 1
        of = [int(at) // (90 * 7) for at in (a, middle - 1, second, end - 1)]
        assert of[0] == of[1] and of[2] == of[3] and (of[0] == of[2]) == (row["text.next"] == 0)
    assert (shown == 1).all()  # each sentence is once in a first segment, or follows one


def test_segments_are_full_but_in_one_of_ten_documents(long_documents, tokenizer):
    source = TextSource(long_documents, tokenizer, packing="segment", length=LENGTH, dupe_factor=5)
    full = [len(source.read(index)["text"]) == LENGTH for index in range(len(source))]
    assert 0.6 < sum(full) / len(full) < 0.95  # short documents make more rows


def test_a_pair_that_is_too_long_is_cut_as_bert_cuts_it():
    sizes = np.array([[30, 5], [5, 30], [20, 20], [21, 20], [9, 9], [40, 39], [1, 400]])
    starts = np.array([100, 1000])
    rows = np.stack([np.stack([starts, starts + pair], 1).ravel() for pair in sizes])
    cut = _shortened(np.repeat(rows, 200, 0), 20, seed=0, copy=0).reshape(len(sizes), 200, 4)
    for pair, found in zip(sizes.tolist(), cut, strict=True):
        left = list(pair)
        while sum(left) > 20:  # truncate_seq_pair of google-research/bert
            left[0 if left[0] > left[1] else 1] -= 1
        assert (found[:, [1, 3]] - found[:, [0, 2]] == left).all()
        for side, start in enumerate(starts):
            front, lost = found[:, 2 * side] - start, pair[side] - left[side]
            assert ((front >= 0) & (front <= lost)).all()
            assert abs(front.mean() - lost / 2) <= 4 * (lost / 4 / 200) ** 0.5  # from either end alike


def test_a_document_of_one_sentence_is_followed_by_another_one(tmp_path, tokenizer):
    source = TextSource(
        write(tmp_path / "texts.txt", [document(number, 1) for number in range(20)]),
        tokenizer,
        packing="segment",
        length=40,
    )
    assert len(source) == 20 and all(source.read(index)["text.next"] == 1 for index in range(20))


@pytest.mark.parametrize("packing", ["segment", "full", "document"])
def test_neither_workers_nor_ranks_nor_a_resume_change_a_batch(tmp_path, tokenizer, packing):
    path, view = write(tmp_path / "texts.txt"), TextView(48)
    source = TextSource(path, tokenizer, packing=packing, length=48, dupe_factor=2)
    stop = 2 * len(source) // 4 + 3  # in the third epoch
    whole = list(Loader(source, view, batch_size=4, seed=5).batches(0, stop))
    again = TextSource(path, tokenizer, packing=packing, length=48, dupe_factor=2)
    in_workers = list(Loader(again, view, batch_size=4, seed=5, workers=2).batches(2, stop))
    ranks = [Loader(again, view, batch_size=4, seed=5, rank=rank, world_size=2) for rank in (0, 1)]
    halves = list(zip(*(loader.batches(2, stop) for loader in ranks), strict=True))
    for batch, other, parts in zip(whole[2:], in_workers, halves, strict=True):
        assert batch.keys() == other.keys()
        for name, value in batch.items():
            assert torch.equal(value, other[name])
            assert not value.ndim or torch.equal(value, torch.cat([part[name] for part in parts]))


def test_each_epoch_sees_the_next_copy_and_then_the_first_again(long_documents, tokenizer):
    source = TextSource(long_documents, tokenizer, packing="segment", length=LENGTH, dupe_factor=3)
    assert len(source) == max(len(copy.rows) for copy in source.copies)
    batches = [
        next(Loader(source, TextView(LENGTH), batch_size=len(source), shuffle=False).batches(epoch, epoch + 1))["text"]
        for epoch in range(4)
    ]
    assert torch.equal(batches[0], batches[3])
    assert not torch.equal(batches[0], batches[1]) and not torch.equal(batches[1], batches[2])
    other = TextSource(long_documents, tokenizer, packing="segment", length=LENGTH, dupe_factor=3, seed=1)
    assert source.sampling != other.sampling and told(source)[:40] != told(other)[:40]


def test_documents_held_out_share_nothing_with_the_others(tmp_path, tokenizer):
    path = write(tmp_path / "texts.txt", [f"{first} {second}." for first in WORDS[:8] for second in WORDS[8:16]])
    rest, apart = hold_out(TextSource(path, tokenizer, packing="document"), 0.1)
    parts = [TextSource(path, tokenizer, length=16, documents=part.indices) for part in (rest, apart)]
    seen = [{tuple(run) for index in range(len(part)) for run in inside(part.read(index))} for part in parts]
    assert not seen[0] & seen[1] and len(seen[0] | seen[1]) == 64


def test_tokens_are_kept_until_a_byte_of_what_made_them_changes(tmp_path, tokenizer, cache, monkeypatch):
    path = write(tmp_path / "texts.jsonl.gz")
    made = TextSource(path, tokenizer, length=40)
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(path, tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "tokenizer", lambda self: pytest.fail("encoded again"))
        assert TextSource(path, tokenizer, length=20).corpus.folder == made.corpus.folder
        assert told_ids(TextSource(moved, tokenizer, length=40)) == told_ids(made)
    assert not [left for left in (cache / "text").iterdir() if not left.name.startswith(made.corpus.folder.name)]
    write(path, [*DOCUMENTS[:-1], "bal."])
    changed = TextSource(path, tokenizer, length=40)
    assert changed.corpus.folder != made.corpus.folder and told(changed)[-1].endswith("bal. [SEP]")
    other = tmp_path / "other"
    save_tokenizer(train_tokenizer(DOCUMENTS, "wordpiece", 60), other)
    assert TextSource(path, other, length=40).corpus.folder != changed.corpus.folder


def told_ids(source):
    return [source.read(index)["text"].tolist() for index in range(len(source))]


def test_a_source_reaches_a_worker_as_the_place_where_its_tokens_lie(long_documents, tokenizer):
    source = TextSource(long_documents, tokenizer, packing="segment", length=LENGTH)
    sent = pickle.dumps(source)
    assert len(sent) < 8000 and len(sent) < source.corpus.ids.nbytes
    assert told_ids(pickle.loads(sent)) == told_ids(source)


def test_a_view_pads_each_kind_of_values_behind_the_ends(tmp_path, tokenizer):
    source = TextSource(
        write(tmp_path / "texts.txt", ["bal ban. dal dan.", "fal."]), tokenizer, packing="segment", length=16
    )
    batch = next(evaluation_batches(source, TextView(20, pad=9), batch_size=8))
    assert batch["text"].shape == (len(source), 20)
    for row, length in enumerate(batch["text.length"].tolist()):
        assert batch["text"][row, length - 1] == SEP and (batch["text"][row, length:] == 9).all()
        assert (batch["text.words"][row, length:] == -1).all() and (batch["text.segment"][row, length:] == 0).all()
    with pytest.raises(UserError, match=r"A row of \d+ tokens does not fit into 6: pack shorter ones"):
        next(evaluation_batches(source, TextView(6), batch_size=8))


def test_a_tokenizer_of_bytes_reads_the_spaces_between_sentences(tmp_path):
    text = "bal ban.  Dal\n\nfan? Ünd 漢字。字 ban"
    save_tokenizer(train_tokenizer(DOCUMENTS, "bpe", 300), tmp_path / "bpe")
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}))
    source = TextSource(tmp_path / "texts.jsonl", tmp_path / "bpe", packing="document", length=64)
    assert told(source) == [f"<s>{text}</s>"]
    assert (
        source.read(0)["text"].tolist()[1:-1]
        == source.vocabulary.tokenizer().encode(text, add_special_tokens=False).ids
    )


def test_bad_lines_are_skipped_counted_and_listed(tmp_path, tokenizer):
    good = [json.dumps({"text": text}).encode() for text in DOCUMENTS]
    bad = {
        b'{"text": "bal \xff\xfe"}': "is not UTF-8",
        b"{not json": "is no JSON",
        b'["bal"]': "is no JSON object",
        b'{"other": "bal"}': "has no 'text'",
        b'{"text": 7}': "has a 'text' that is no text but 7",
        b'{"text": "\\ud800"}': "holds half a character",
        b'{"text": "[CLS] [SEP] [MASK]"}': "holds nothing but special tokens",
        b'{"text": ' + b"[" * 10000: "is no JSON",
    }
    path = tmp_path / "texts.jsonl"
    path.write_bytes(b"\n".join([good[0], *bad, b"", *good[1:]]))
    source = TextSource(path, tokenizer, length=40)
    assert len(source.corpus) == 60
    found = dict(source.ledger.skipped)
    assert all(found[f"texts.jsonl:{line}"].startswith(reason) for line, reason in enumerate(bad.values(), 2))
    assert source.ledger == Ledger(60, source.ledger.skipped) and len(found) == len(bad)
    assert notes(source)[0].startswith("8 lines skipped, 60 documents read: texts.jsonl:2 is not UTF-8, ")
    loader = Loader(source, TextView(40), batch_size=4, ceiling=0.2)
    assert loader.ledger.skipped == source.ledger.skipped
    assert not Loader(source, TextView(40), batch_size=4, ceiling=0.2, rank=1, world_size=2).ledger.skipped
    with pytest.raises(UserError, match=r"8 of 68 lines cannot be read, .*-skipped 0.001 allows 1: texts.jsonl:2"):
        Loader(source, TextView(40), batch_size=4)


def test_bad_rows_of_tables_and_files_of_lines_are_skipped_too(tmp_path, tokenizer):
    table = tmp_path / "texts.csv"
    table.write_bytes(b'text,kind\n"bal, ban",x\nNA,y\none,too,many\nb\xff,x\n,x\nfal\n')
    source = TextSource(table, tokenizer, packing="document", length=16, label="kind")
    assert told(source)[0] == "[CLS] bal, ban [SEP]" and told(source)[2] == "[CLS] fal [SEP]"
    assert source.labels == [0, 1, -1]
    assert dict(source.ledger.skipped) == {
        "texts.csv:4": "is no row of its table (expected 2 fields, saw 3)",
        "texts.csv:5": "is not UTF-8",
    }
    rows = pyarrow.table({"text": ["bal", None, "dal"]})
    pyarrow.parquet.write_table(rows, tmp_path / "texts.parquet")
    source = TextSource(tmp_path / "texts.parquet", tokenizer, packing="document", length=16)
    assert len(source) == 2 and source.ledger.skipped == [("texts.parquet:2", "has no 'text'")]
    (tmp_path / "texts.txt").write_bytes(b"bal\nd\xc3\nfal\n")
    source = TextSource(tmp_path / "texts.txt", tokenizer, packing="document", length=16, document="paragraph")
    assert told(source) == ["[CLS] bal fal [SEP]"] and source.ledger.skipped == [("texts.txt:2", "is not UTF-8")]


def test_a_line_of_megabytes_is_a_document_as_any_other_and_is_named(tmp_path, tokenizer):
    path, line = tmp_path / "texts.txt", "bal ban " * 140_000
    path.write_text(f"dal\n{line}\n{'x' * 1_200_000}\nfal\n")
    source = TextSource(path, tokenizer, length=512)
    assert sum(len(run) for index in range(len(source)) for run in inside(source.read(index))) == 280_002
    assert dict(source.ledger.skipped) == {"texts.txt:3": "holds nothing but special tokens"}
    assert "longer than a million characters: texts.txt:2" in notes(source)


def test_what_holds_no_text_is_refused_in_a_sentence(tmp_path, tokenizer):
    empty, special, fields = tmp_path / "empty.txt", tmp_path / "special.txt", tmp_path / "fields.jsonl"
    empty.touch()
    (tmp_path / "empty.csv.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "header.csv").write_text("text,kind\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    special.write_text("[CLS] [SEP]\n[PAD]")
    fields.write_text('{"title": "bal", "body": "dal"}\n')
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"text": "bal"}' * 100)[:-20])
    pictures = tmp_path / "picture.png"
    pictures.touch()
    (tmp_path / "table.csv").write_text("title,body\na,b\n")
    (tmp_path / "table.parquet").write_bytes(b"no parquet")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\n" * 3)
    write(tmp_path / "one.txt", DOCUMENTS[:1])
    for path, sentence, settings in (
        (empty, "empty.txt holds no text to read: 1 lines were tried and the first, empty.txt, is empty.", {}),
        (tmp_path / "empty.csv.gz", "the first, empty.csv.gz, is empty.", {}),
        (tmp_path / "header.csv", "header.csv holds no text to read: 0 lines were tried.", {}),
        (tmp_path / "none.parquet", "none.parquet holds no text to read: 0 lines were tried.", {}),
        (special, "2 lines were tried and the first, special.txt:1, holds nothing but special tokens.", {}),
        (tmp_path / "bytes.txt", "3 lines were tried and the first, bytes.txt:1, is not UTF-8.", {}),
        (fields, "has no field 'text', only 'body', 'title': name the one that is meant.", {}),
        (tmp_path / "table.csv", "has no field 'text', only 'body', 'title'", {}),
        (fields, "has no field 'class', only", {"field": "body", "label": "class", "packing": "document"}),
        (broken, "broken.jsonl.gz cannot be unzipped", {}),
        (tmp_path / "table.parquet", "cannot be read as .parquet", {}),
        (pictures, "picture.png is no text: those end in .txt, .jsonl, .csv, .parquet, plain or with .gz behind.", {}),
        (tmp_path / "none", "none does not exist; give a folder of texts.", {}),
        (tmp_path / "one.txt", "there is one alone: pack full sentences.", {"packing": "segment"}),
        (tmp_path / "one.txt", "has no 'class': those in .txt", {"label": "class", "packing": "document"}),
        (tmp_path / "one.txt", "take packing 'document'", {"label": "class"}),
        (tmp_path / "one.txt", "at least 5 tokens and one copy, not length=4", {"length": 4}),
    ):
        with pytest.raises(UserError) as error:
            TextSource(path, tokenizer, **settings)
        assert sentence in str(error.value)


def test_any_tokenizer_is_taken_that_says_where_a_text_begins_and_ends(tmp_path, tokenizer):
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    renamed = json.dumps(content).replace("[MASK]", "[GAP]")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(renamed)
    vocabulary = Vocabulary.read(folder / "tokenizer.json")
    assert (vocabulary.cls, vocabulary.sep, vocabulary.pad, vocabulary.mask) == (CLS, SEP, 0, None)
    assert vocabulary.framing == (0, CLS, SEP)
    with pytest.raises(UserError, match="has no mask token: name its mask_token"):
        _ = vocabulary.masked
    gap = {"__type": "AddedToken", "content": "[GAP]", "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": gap}))
    assert Vocabulary.read(folder).masked == 4
    Vocabulary.read(folder).save(tmp_path / "kept")
    (folder / "tokenizer_config.json").unlink()
    Vocabulary.read(folder).save(tmp_path / "plain")
    kept, plain = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("kept", "plain"))
    assert (kept.mask_token_id, kept.cls_token_id, plain.sep_token_id, plain.mask_token) == (4, CLS, SEP, None)
    (folder / "tokenizer.json").write_text(renamed.replace("[SEP]", "[END]"))
    with pytest.raises(UserError, match=r"has no token that ends a text: name its sep_token .* or add \[SEP\]"):
        Vocabulary.read(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is no tokenizer of Hugging Face's tokenizers"):
        Vocabulary.read(folder)
    with pytest.raises(UserError, match="or make one by `mmssl tokenizer`"):
        Vocabulary.read(tmp_path / "missing")
