"""What is hidden of a text and what is shown in its place: counts, shares, whole words, spans, fresh masks."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmssl import MLM, UserError
from mmssl.masking import counted, random_bits, shown, spans, whole_words, words_of

VOCAB, CLS, SEP, MASK = 50, 2, 3, 4
FEW = settings(max_examples=40, deadline=None)


def bits(batch, count, stream, seed=0):
    return random_bits(count, seed=seed, stream=stream, sample_id=torch.arange(batch))


@st.composite
def texts(draw):
    """Candidates and words of a few texts, special tokens and padding among them, and how many are to be hidden."""
    count = draw(st.integers(1, 30))
    rows = draw(st.integers(1, 4))
    flags = st.lists(st.booleans(), min_size=count, max_size=count)
    candidates = torch.tensor([draw(flags) for _ in range(rows)])
    words = torch.tensor([draw(flags) for _ in range(rows)]).long().cumsum(1)
    counts = torch.tensor([draw(st.integers(0, count)) for _ in range(rows)])
    return candidates, words_of(candidates, words), counts, draw(st.integers(0, 1000))


@FEW
@given(texts())
def test_words_are_runs_that_no_special_token_is_part_of(text):
    candidates, words, _, _ = text
    for flags, numbers in zip(candidates, words):
        assert numbers[0] == 0 and ((numbers.diff() == 0) | (numbers.diff() == 1)).all()
        assert all(len(flags[numbers == number].unique()) == 1 for number in numbers.unique())


@FEW
@given(texts())
def test_tokens_are_chosen_in_exact_numbers(text):
    candidates, _, counts, seed = text
    chosen = counted(bits(*candidates.shape, "mask", seed), candidates, counts)
    assert torch.equal(chosen.sum(1), torch.minimum(counts, candidates.sum(1)))
    assert not (chosen & ~candidates).any()


@FEW
@given(texts())
def test_whole_words_are_those_that_fit_one_after_the_other(text):
    candidates, words, counts, seed = text
    noise = bits(*candidates.shape, "mask", seed)
    chosen = whole_words(noise, words, candidates, counts)
    for row, found in enumerate(chosen.tolist()):
        left, expected = int(counts[row]), set()
        for word in noise[row].argsort(stable=True).tolist():  # google-research/bert, create_masked_lm_predictions
            members = [place for place in range(len(found)) if words[row, place] == word and candidates[row, place]]
            if len(members) <= left:
                expected |= set(members)
                left -= len(members)
        assert {place for place, flag in enumerate(found) if flag} == expected


def drawn_length(noise):
    """A span's length by the inverse of its distribution: 0.2 * 0.8 ** (length - 1) for 1 to 10, normalised."""
    chances = [0.8**length for length in range(10)]
    return 1 + sum(noise >= int(2**62 * (sum(chances[: length + 1]) / sum(chances))) for length in range(9))


@FEW
@given(texts())
def test_spans_are_whole_words_but_for_the_last(text):
    candidates, words, counts, seed = text
    noise, length_noise = (bits(*candidates.shape, stream, seed) for stream in ("mask", "length"))
    chosen = spans(noise, length_noise, words, candidates, counts)
    for row, found in enumerate(chosen.tolist()):
        expected: list[int] = []
        for anchor in noise[row].argsort(stable=True).tolist():  # SpanBERT's loop, place by place
            if len(expected) >= counts[row] or not candidates[row, anchor] or anchor in expected:
                continue
            first = int(words[row, anchor])
            place = int((words[row] == first).nonzero()[0])
            last = first + drawn_length(int(length_noise[row, anchor]))
            while place < len(found) and candidates[row, place] and words[row, place] < last:
                expected += [] if place in expected else [place]
                place += 1
        assert {place for place, flag in enumerate(found) if flag} == set(expected[: int(counts[row])])


def test_spans_are_as_long_as_spanberts():
    lengths = torch.tensor([drawn_length(noise) for noise in bits(1, 20000, "length")[0].tolist()]).double()
    assert lengths.mean().item() == pytest.approx(3.8, abs=0.1)  # the paper's, within five errors
    candidates = torch.ones(400, 64, dtype=torch.bool)
    words = words_of(candidates, None)
    chosen = spans(bits(400, 64, "a"), bits(400, 64, "b"), words, candidates, torch.full((400,), 10))
    runs = (chosen & ~torch.nn.functional.pad(chosen, (1, 0))[:, :-1]).sum().item()
    assert 2.5 < 4000 / runs < 4.5  # the last one is cut, neighbours merge
    alone = counted(bits(400, 64, "a"), candidates, torch.full((400,), 10))
    assert 4000 / (alone & ~torch.nn.functional.pad(alone, (1, 0))[:, :-1]).sum().item() < 1.5


def test_what_is_shown_has_berts_shares():
    text = torch.full((100, 200), 9)
    hidden = bits(100, 200, "hidden") % 7 == 0
    noises = bits(100, 200, "show"), bits(100, 200, "word")
    seen = shown(text, hidden, *noises, MASK, 1000)
    assert torch.equal(seen[~hidden], text[~hidden])
    found, count = seen[hidden], int(hidden.sum())
    share = lambda flags: flags.double().mean().item()  # noqa: E731
    for part, expected in ((found == MASK, 0.8), (found == 9, 0.1), ((found != MASK) & (found != 9), 0.1)):
        assert share(part) == pytest.approx(expected, abs=5 * (expected * (1 - expected) / count) ** 0.5 + 1e-3)
    others = found[(found != MASK) & (found != 9)]
    assert share(others < 500) == pytest.approx(0.5, abs=5 * 0.5 / len(others) ** 0.5)
    runs = shown(text, hidden, *noises, MASK, 1000, by_runs=True)
    neighbours = hidden[:, 1:] & hidden[:, :-1]
    same = (runs == MASK)[:, 1:] == (runs == MASK)[:, :-1]
    assert neighbours.any() and same[neighbours].double().mean() > 0.99  # a random word may be the mask's
    assert not ((seen == MASK)[:, 1:] == (seen == MASK)[:, :-1])[neighbours].all()


@FEW
@given(text=st.integers(0, VOCAB - 2), seed=st.integers(0, 1000))
def test_nothing_of_a_hidden_word_is_left_in_what_is_shown(text, seed):
    """Where none is shown as it is, the input is the same whatever the word was."""
    hidden = bits(2, 20, "hidden", seed) % 2 == 0
    noises = bits(2, 20, "show", seed), bits(2, 20, "word", seed)
    one, other = (
        shown(torch.full((2, 20), word), hidden, *noises, MASK, VOCAB, (0.8, 0.2)) for word in (text, text + 1)
    )
    assert torch.equal(one[hidden], other[hidden])


def batch(rows=6, count=40, epoch=0):
    """Texts that begin and end with special tokens, padded."""
    length = torch.arange(rows) * 5 % 30 + 8
    places = torch.arange(count)
    text = (torch.arange(rows)[:, None] * 7 + places * 3) % (VOCAB - 5) + 5
    text[:, 0] = CLS
    text = torch.where(places == length[:, None] - 1, SEP, text) * (places < length[:, None])
    ids = torch.arange(rows)
    return {
        "text": text,
        "text.length": length,
        "text.words": places.expand(rows, count) // 3,
        "sample_id": ids,
        "epoch": ids * 0 + epoch,
        "draw": ids * 0,
    }


def method(**settings):
    return MLM("tiny", vocab=VOCAB, length=40, mask=MASK, special=(0, CLS, SEP), **settings)


@pytest.mark.parametrize("masking", ["tokens", "words", "spans"])
def test_the_method_hides_berts_numbers_and_no_special_token(masking):
    made = batch()
    mask = method(masking=masking).hide(made)
    expected = torch.tensor([max(1, round(0.15 * n)) for n in made["text.length"].tolist()])
    assert (mask.hide.lengths <= expected).all() if masking == "words" else torch.equal(mask.hide.lengths, expected)
    hidden = mask.hide.boolean(40)
    assert not torch.isin(made["text"][hidden], torch.tensor([0, CLS, SEP])).any()
    assert torch.equal(mask.keep.lengths, made["text.length"])
    told = made["text"] % 2 == 0
    others = method(masking=masking).hide({**made, "text.special": told})
    assert not (others.hide.boolean(40) & told).any()


@pytest.mark.parametrize("masking", ["tokens", "words", "spans"])
def test_masks_are_fresh_in_each_epoch_or_come_again(masking):
    fresh, static = (method(masking=masking, dupe_factor=dupes, mask_ratio=0.3) for dupes in (0, 3))

    def inputs(model, epoch):
        made = batch(epoch=epoch)
        mask = model.hide(made)
        return mask.hide.boolean(40), model.drawn(made, mask)["text"]

    for model, again in ((fresh, [False] * 3), (static, [False, False, True])):
        first = inputs(model, 0)
        for epoch, same in enumerate(again, start=1):
            assert [torch.equal(*pair) for pair in zip(first, inputs(model, epoch))] == [same, same]


def test_epochs_choose_independently():
    made = {**batch(rows=1), "text": torch.full((1, 40), 9), "text.length": torch.tensor([40])}
    made["text.words"] = made["text.words"][:1]
    many = {name: value.expand(400, *value.shape[1:]) for name, value in made.items()}
    model = method(dupe_factor=0)
    one, other = (
        model.hide({**many, "sample_id": torch.arange(400), "epoch": torch.full((400,), epoch)}).hide.boolean(40)
        for epoch in (0, 1)
    )
    assert (one & other).double().mean().item() == pytest.approx(0.15**2, abs=5 * (0.0225 / 16000) ** 0.5)


def test_what_is_missing_is_named():
    made = batch()
    del made["text.words"]
    with pytest.raises(UserError, match=r"no 'text.words'"):
        method(masking="words").hide(made)
    model = method()
    model.config = dataclasses.replace(model.config, mask=None)
    with pytest.raises(UserError, match="no mask token"):
        model(made)
    with pytest.raises(UserError, match=r"mask 103 .* are not all ids of 50 words"):
        MLM("tiny", vocab=50)
    with pytest.raises(UserError, match=r"mask_ratio 1.5, shares"):
        method(mask_ratio=1.5)
    with pytest.raises(UserError, match=r"ids from 2 to 50, but the model has 50: the tokenizer is another"):
        model.encoder({**made, "text": made["text"].masked_fill(made["text"] == 5, 50)})
