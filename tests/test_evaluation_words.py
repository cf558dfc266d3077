"""What is measured of a masked language model, against the same by hand, and features of texts."""

import dataclasses
import math

import pytest
import torch

from mmssl import MLM, UserError
from mmssl.evaluation import masked_accuracy, pseudo_perplexity, word_counts
from mmssl.evaluation.baselines import RawMedia
from tests.parity import randomize

PAD, CLS, SEP, MASK, WORDS = 0, 1, 2, 3, 12


def model(**changes):
    torch.manual_seed(0)
    mlm = MLM("tiny", vocab=WORDS, length=8, mask=MASK, special=(PAD, CLS, SEP), mask_ratio=0.3)
    return randomize(MLM(dataclasses.replace(mlm.config, **changes)))


def batch():
    text = torch.tensor([[1, 5, 6, 7, 2, 0, 0, 0], [1, 8, 2, 0, 0, 0, 0, 0], [1, 5, 5, 9, 10, 11, 4, 2]])
    ids = torch.arange(3)
    return {
        "text": text,
        "text.length": torch.tensor([5, 3, 8]),
        "text.next": torch.tensor([0, 1, 1]),
        "label": torch.tensor([1, 0, 1]),
        "sample_id": ids,
        "epoch": ids * 0,
        "draw": ids * 0,
    }


def test_pseudo_perplexity_masks_each_word_by_itself():
    mlm, given, logs = model(), batch(), []
    mlm.eval()
    for text, length in zip(given["text"], given["text.length"].tolist(), strict=True):
        for place in range(1, length - 1):
            masked = text[:length].clone()
            masked[place] = MASK
            with torch.no_grad():
                tokens = mlm.encoder({"text": masked[None]}).x[0, place]
                scores = mlm.head(tokens) @ mlm.words.T + mlm.bias
            logs.append(scores.log_softmax(0)[text[place]].item())
    mlm.train()
    expected = math.exp(-sum(logs) / len(logs))
    assert pseudo_perplexity(mlm, [given], at_once=4) == pytest.approx(expected, rel=1e-5)
    first = math.exp(-sum(logs[:4]) / 4)  # three words of the first text, one of the second
    halves = [{name: value[:1] for name, value in given.items()}, {name: value[1:] for name, value in given.items()}]
    assert pseudo_perplexity(mlm, halves, texts=2) == pytest.approx(first, rel=1e-5)
    assert mlm.training and mlm.head.training


def test_pseudo_perplexity_needs_a_mask_token_and_words():
    with pytest.raises(UserError, match="no mask token"):
        pseudo_perplexity(model(mask=None), [batch()])
    with pytest.raises(UserError, match="no word to be masked"):
        pseudo_perplexity(model(), [{"text": torch.tensor([[1, 2]])}])


def test_a_model_that_always_says_one_word_is_as_good_as_the_guess():
    mlm, given = model(), batch()
    with torch.no_grad():
        mlm.bias[5] = 1e4
    guess = int(word_counts(mlm, [given, given]).argmax())
    assert guess == 5
    found = masked_accuracy(mlm, [given, given], guess=guess, classes="label")
    hidden = int(mlm.hide(given).hide.lengths.sum())
    assert (found.hidden, found.found) == (2 * hidden, found.guessed)
    assert 0 < found.accuracy == found.unigram < 1
    assert list(found.by_class) == [0, 1] and sum(each.hidden for each in found.by_class.values()) == 2 * hidden
    assert found.by_class[0].found == 0 and found.by_class[1].found == found.found


def test_accuracy_is_counted_by_the_class_of_each_word():
    mlm, given = model(), batch()
    kinds = (given["text"] % 2).masked_fill(given["text"] == 5, -1)
    found = masked_accuracy(mlm, [{**given, "kind": kinds}], guess=6, classes="kind")
    hide = mlm.hide(given).hide
    words = given["text"][hide.rows, hide.index]
    assert {kind: each.hidden for kind, each in found.by_class.items()} == {
        kind: int(((words % 2 == kind) & (words != 5)).sum()) for kind in (words[words != 5] % 2).unique().tolist()
    }
    assert found.guessed == int((words == 6).sum())
    prediction = mlm.eval()(given).prediction.argmax(1)
    assert found.found == int((prediction == words).sum())
    with pytest.raises(UserError, match="no classes 'mood'"):
        masked_accuracy(mlm, [given], guess=5, classes="mood")


def test_special_tokens_and_padding_are_no_words():
    counts = word_counts(model(), [batch(), batch()])
    assert counts.tolist() == [0, 0, 0, 0, 2, 6, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_features_of_texts_are_those_of_each_alone_whatever_pads_them(pool):
    encoder, given = model().encoder.eval(), batch()
    with torch.no_grad():
        found = encoder.features(given, pool=pool)
        for row, length in enumerate(given["text.length"].tolist()):
            tokens = encoder({"text": given["text"][row : row + 1, :length]}).x[0]
            expected = tokens.mean(0) if pool == "mean" else tokens[0]
            torch.testing.assert_close(found[row], expected)
        padding = torch.arange(8) >= given["text.length"][:, None]
        other = encoder.features({**given, "text": given["text"].masked_fill(padding, 7)}, pool=pool)
    assert torch.equal(other, found)


def test_the_baseline_of_texts_counts_their_words():
    found = RawMedia().features(batch())
    assert found.shape == (3, 2048)
    assert found[2].expm1().round()[:WORDS].tolist() == [0, 1, 1, 0, 1, 2, 0, 0, 0, 1, 1, 1]
    assert not found[0, PAD]
