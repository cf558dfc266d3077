"""Texts in the report: hidden words with guesses, words near each other, spelt by the model's tokenizer."""

import json

import pytest
import tokenizers
import torch
from torch.nn import functional as F

from mmssl import MLM
from mmssl.objectives.words import predicted_words
from mmssl.report import Report
from mmssl.report.run import draw
from mmssl.report.words import numbers, spelling

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "<b>cat", "dog", "runs", "##fast", "sleeps", "far"]


def model(**settings):
    torch.manual_seed(0)
    return MLM("tiny", vocab=len(WORDS), length=40, mask=3, special=(0, 1, 2), mask_ratio=0.3, **settings).eval()


def batch():
    text = torch.tensor([[1, 4, 6, 7, 5, 8, 2, 0], [1, 5, 8, 9, 2, 0, 0, 0]])
    return {"text": text, "text.length": torch.tensor([7, 5]), "sample_id": torch.arange(2)}


@pytest.fixture
def folder(tmp_path):
    """A run's folder with a tokenizer, and a checkpoint in it."""
    words = {word: number for number, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[PAD]"))
    tokenizer.decoder = tokenizers.decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "settings.json").write_text(json.dumps({}))
    return tmp_path


def test_words_are_spelt_by_the_tokenizer_of_the_run_and_are_numbers_without_one(folder, tmp_path_factory):
    assert spelling(folder / "step-00000001")([4, 6, 7], True) == "<b>cat runsfast"
    assert spelling(tmp_path_factory.mktemp("other")) is numbers


def test_the_report_shows_guesses_and_neighbours_and_escapes_them(folder):
    report = Report("words")
    draw(report, model(), batch(), spelling(folder))
    page = report.html()
    assert "&lt;b&gt;cat" in page and "<b>" not in page
    assert "<mark>[MASK]</mark>" in page and "[PAD]</td>" not in page
    assert page.count("<table") == 2 and "first guess" in page and "nearest" in page


def test_guesses_are_the_likeliest_words_at_each_hidden_place():
    mlm, given = model(), batch()
    out = mlm(given)
    wanted = mlm.wanted(given, out.mask.hide)
    table = predicted_words(given["text"], out.mask, wanted, out.prediction).table
    assert len(table.rows) == len(wanted) == 4
    shares = F.softmax(out.prediction, dim=1)
    for row, word, share in zip(table.rows, wanted.tolist(), shares, strict=True):
        around, (hidden,), *guesses = row
        assert hidden.id == word and [each.id for each in around if each.marked] == [word]
        order = share.argsort(descending=True)[:5].tolist()
        assert [guess[0].id for guess in guesses] == order
        assert [guess[1] for guess in guesses] == [f"{share[each]:.0%}" for each in order]
        assert all(guess[0].marked == (guess[0].id == word) for guess in guesses)


def test_a_long_text_is_cut_around_its_hidden_word_and_no_padding_is_shown():
    mlm = model()
    text = torch.full((1, 40), 5)
    target = torch.full((1, 40), -100)
    target[0, [15, 30]] = 6
    out = mlm(given := {"text": text, "text.length": torch.tensor([32]), "text.target": target})
    first, second = predicted_words(text, out.mask, mlm.wanted(given, out.mask.hide), out.prediction).table.rows
    assert (first[0][0], first[0][-1], len(first[0])) == ("…", "…", 23)
    assert second[0][0] == "…" and second[0][-1] != "…" and len(second[0]) == 13
