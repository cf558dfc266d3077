"""M3AE: the authors' rule in plain PyTorch, their counts, what is not there, and what is shown."""

import math

import pytest
import torch
from torch.nn import functional as F

from mmssl import M3AE
from mmssl.errors import UserError
from mmssl.modality import CC12M_MEAN, CC12M_STD
from mmssl.objectives import m3ae_config
from mmssl.position import sincos_table
from tests.contracts import keys
from tests.parity import randomize, relative

SIZE, PATCH, VOCAB, LENGTH = 32, 8, 40, 8
PATCHES = (SIZE // PATCH) ** 2


def tiny(**settings):
    return randomize(M3AE("tiny", size=SIZE, patch=PATCH, vocab=VOCAB, length=LENGTH, decoder_depth=1, **settings))


def pairs(count=5):
    lengths = torch.tensor([8, 5, 3, 1, 7])[:count]
    text = torch.randint(1, VOCAB, (count, LENGTH)).masked_fill(torch.arange(LENGTH) >= lengths[:, None], 0)
    return {"image": torch.rand(count, 3, SIZE, SIZE), "text": text, "text.length": lengths, **keys(count)}


def unpaired():
    """A pair, a picture, a text, a text, a pair."""
    pictured, told = ([True, True, False, False, True], [True, False, True, True, True])
    return pairs() | {"image.present": torch.tensor(pictured), "text.present": torch.tensor(told)}


class Authors:
    """Their forward pass (young-geng/m3ae_public, `model.py` and `m3ae_main.py`) for one sample, all of it embedded and
    then picked, on the names of our weights."""

    def __init__(self, model):
        self.state, self.heads = dict(model.named_parameters()), (3, 4)

    def linear(self, name, x):
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, name, x):
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-6)

    def transformer(self, name, x, heads):
        for block in range(sum(key.startswith(f"{name}.blocks.") and key.endswith("fc1.bias") for key in self.state)):
            own = f"{name}.blocks.{block}"
            found = self.linear(f"{own}.attn.layer.qkv", self.norm(f"{own}.attn.norm", x))
            q, k, v = found.unflatten(-1, (3, heads, -1)).permute(1, 2, 0, 3)
            weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(dim=-1)
            x = x + self.linear(f"{own}.attn.layer.proj", (weights @ v).transpose(0, 1).flatten(1))
            hidden = F.gelu(self.linear(f"{own}.mlp.layer.fc1", self.norm(f"{own}.mlp.norm", x)), approximate="tanh")
            x = x + self.linear(f"{own}.mlp.layer.fc2", hidden)
        return self.norm(f"{name}.final_norm", x)

    def loss(self, image, text, kept):
        """Both terms, for the patches or the words that there are; kept: bool, of both together."""
        tokens, tables, kinds = [], [], []
        width = self.state["decoder.embed.weight"].shape[0]
        if image is not None:
            mean, std = (torch.tensor(each).view(3, 1, 1) for each in (CC12M_MEAN, CC12M_STD))
            patches = (image - mean) / std
            patches = (
                patches.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 3, 4, 0).reshape(PATCHES, -1)
            )
            grid = (SIZE // PATCH,) * 2
            tokens.append(self.linear("encoder.tokenizers.image", patches) + sincos_table(grid, 192))
            tables.append(sincos_table(grid, width))
            kinds += [0] * PATCHES
        if text is not None:
            words = self.state["encoder.tokenizers.text.words.weight"][text]
            tokens.append(words + sincos_table((LENGTH,), 192)[: len(text)])
            tables.append(sincos_table((LENGTH,), width)[: len(text)])
            kinds += [1] * len(text)
        tokens = torch.cat(tokens) + self.state["encoder.modalities"][kinds]
        x = torch.cat([self.state["encoder.prefix_tokens"], tokens[kept]])
        x = self.linear("decoder.embed", self.transformer("encoder.transformer", x, self.heads[0]))
        full = self.state["decoder.mask_tokens"][kinds].index_put((kept.nonzero()[:, 0],), x[1:])
        full = full + torch.cat(tables) + self.state["decoder.modalities"][kinds]
        decoded = self.transformer("decoder.transformer", torch.cat([x[:1], full]), self.heads[1])[1:]
        hidden, terms = ~kept, {}
        if image is not None:
            where = hidden[:PATCHES]
            predicted = self.linear("pixels", decoded[:PATCHES][where])
            terms["image"] = predicted, (predicted - patches[where]).square().mean()
        if text is not None and (where := hidden[len(hidden) - len(text) :]).any():
            predicted = self.linear("words", decoded[-len(text) :][where])
            terms["text"] = predicted, F.cross_entropy(predicted, text[where])
        return terms


def by_sample(batch, mask):
    """Each sample's picture, text and what is visible of both, without padding."""
    kept = mask.keep.boolean(mask.count)
    for row, length in enumerate(batch["text.length"].tolist()):
        pictured, told = (bool(batch.get(f"{name}.present", [True] * 9)[row]) for name in ("image", "text"))
        parts = [kept[row, :PATCHES]] * pictured + [kept[row, PATCHES : PATCHES + length]] * told
        yield (
            batch["image"][row] if pictured else None,
            batch["text"][row, :length] if told else None,
            torch.cat(parts),
        )


@pytest.mark.parametrize("made", [pairs, unpaired])
def test_the_authors_rule_gives_the_same_predictions_losses_and_gradients(made):
    model, batch = tiny(), made()
    with torch.no_grad():
        told = model.eval()(batch)
    out, theirs = model.train()(batch, told.mask), Authors(model)
    terms = [theirs.loss(*each) for each in by_sample(batch, out.mask)]
    found = {name: [each[name] for each in terms if name in each] for name in ("image", "text")}
    means = {name: torch.stack([loss for _, loss in each]).mean() for name, each in found.items()}
    for name, each in found.items():
        assert relative(told.predictions[name], torch.cat([predicted for predicted, _ in each])) < 1e-5
        assert out.parts[name].item() == pytest.approx(means[name].item(), rel=1e-5)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    ours = torch.autograd.grad(out.loss, list(learns.values()))
    wanted = torch.autograd.grad(means["image"] + 0.5 * means["text"], list(learns.values()))
    scale = torch.stack([each.norm() for each in wanted]).norm()
    for name, one, other in zip(learns, ours, wanted, strict=True):
        assert (one - other).norm() < 1e-5 * scale, name


def test_sizes_and_counts_are_the_papers():
    config = m3ae_config("large")
    assert (config.mask_ratio, config.text_mask_ratio, config.image_weight, config.text_weight) == (0.75, 0.75, 1, 0.5)
    with torch.device("meta"):
        method = M3AE("large")
    blocks = {name: 12 * dim**2 + 13 * dim for name, dim in (("encoder", 1024), ("decoder", 512))}
    expected = (
        (768 + 1 + 30522 + 2 + 1) * 1024  # patches with their bias, words, modalities, class token
        + 24 * blocks["encoder"] + 2 * 1024
        + 1025 * 512 + 4 * 512  # the narrower width, mask tokens and modalities
        + 8 * blocks["decoder"] + 2 * 512
        + 513 * (768 + 30522)
    )  # fmt: skip
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == expected
    batch = {"image": torch.zeros(3, 3, 256, 256), "text": torch.ones(3, 64).long(), **keys(3)}
    mask = M3AE("tiny", vocab=9).hide(batch)
    assert mask.keep.index.shape == (3, 64 + 16) and mask.hide.index.shape == (3, 192 + 48)
    assert mask.keep.within(*mask.span("text"))[0].lengths.tolist() == [16] * 3


def test_a_text_keeps_a_quarter_of_its_words_however_it_is_padded():
    model = tiny()
    many = {"text": torch.ones(4000, LENGTH).long(), "text.length": torch.arange(4000) % 5 + 1, **keys(4000)}
    kept = model.hide(many).keep
    assert kept.lengths.sum().item() / many["text.length"].sum().item() == pytest.approx(0.25, abs=0.02)
    shorter = model.hide({**many, "text": many["text"][:, :5]}).keep
    assert torch.equal(shorter.index, kept.index) and torch.equal(shorter.lengths, kept.lengths)


def test_special_words_are_always_read_and_never_predicted():
    model, batch = tiny(special=(1, 2)), pairs()
    batch["text"][:, 0] = 1
    mask = model.hide(batch)
    assert mask.keep.boolean(mask.count)[:, PATCHES].all()
    assert not torch.isin(
        batch["text"][mask.hidden("text")[0].rows, mask.hidden("text")[0].index], batch["text"][0, 0]
    ).any()


def test_pictures_alone_and_texts_alone_train_and_padding_is_neither_read_nor_scored():
    model, batch = tiny(), pairs()
    both = {"image.present": torch.zeros(5).bool(), "text.present": torch.zeros(5).bool()}
    for name, other in (("image", "text"), ("text", "image")):
        alone = {key: value for key, value in batch.items() if not key.startswith(other)}
        out, lacking = model(alone), model({**batch, f"{other}.present": both[f"{other}.present"]})
        assert list(out.parts) == [name]
        torch.testing.assert_close(lacking.loss, out.loss)
        assert lacking.parts[other] == 0
        model.zero_grad()
        lacking.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    hidden = model(
        {**batch, "text": batch["text"].masked_fill(torch.arange(LENGTH) >= batch["text.length"][:, None], 9)}
    )
    assert hidden.loss == model(batch).loss  # padding is neither read nor scored


def test_predicting_nothing_costs_what_it_must():
    model, batch = tiny(), pairs()
    for head in (model.pixels, model.words):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    out = model(batch)
    assert out.parts["text"].item() == pytest.approx(math.log(VOCAB), rel=1e-5)
    assert out.loss.item() == pytest.approx(out.parts["image"].item() + 0.5 * math.log(VOCAB), rel=1e-5)


def test_features_are_of_pictures_of_words_or_of_both():
    encoder, batch = tiny().eval().encoder, pairs()
    both = encoder.features(batch)
    picture = encoder.features({"image": batch["image"]})
    words = encoder.features({"text": batch["text"], "text.length": batch["text.length"]})
    assert both.shape == picture.shape == words.shape == (5, 192)
    torch.testing.assert_close(encoder.only("image").features(batch["image"]), picture)
    alone = encoder.features({"text": batch["text"][2:3, :3]})
    torch.testing.assert_close(alone, words[2:3])


def test_it_shows_pictures_and_words_as_seen_as_predicted_and_as_they_are():
    model, batch = tiny().eval(), unpaired()
    (figure,) = model.figures(batch)
    seen, predicted, original = figure.columns
    assert seen[0].isnan().float().mean() == 0.75 and not predicted[0].isnan().any()
    torch.testing.assert_close(original[0], batch["image"][0])
    assert all(each[2].isnan().all() for each in figure.columns)
    assert [len(cell) for row in figure.table.rows for cell in row] == [8] * 3 + [0] * 3 + [3] * 3 + [1] * 3 + [7] * 3
    read, guessed, words = figure.table.rows[0]
    assert [word.id for word in words] == batch["text"][0].tolist()
    for one, guess, word in zip(read, guessed, words, strict=True):
        assert guess.marked == (one == "_" and guess.id == word.id) and (one == "_" or one == word == guess)
    assert model.figures({name: batch[name][2:4] for name in ("text", "text.length")})[0].columns == ()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text.length": torch.tensor([8, 0, 1, 1, 1])}, "row 1 holds no token"),
        ({"image.present": torch.arange(5) > 0, "text.present": torch.arange(5) > 0}, "sample 0 has neither a picture"),
        ({"text": torch.ones(5, 9).long()}, r"ids of shape \(5, 9\), expected \(B, at most 8\)"),
        ({"text": torch.full((5, 8), VOCAB)}, "ids from 40 to 40, but the model has 40"),
    ],
)
def test_what_cannot_be_learned_from_is_named(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        tiny()(pairs() | changes)


def test_settings_that_cannot_be_are_named():
    for name in ("mask_ratio", "text_mask_ratio"):
        with pytest.raises(UserError, match=f"{name} is the share that is hidden, above 0 and below 1, not 1.0"):
            m3ae_config(**{name: 1.0})
    with pytest.raises(UserError, match=r"reads image and text, in this order, not \['image'\]"):
        config = m3ae_config("tiny")
        M3AE(type(config)(M3AE("tiny", vocab=9).encoder.only("image").config, config.decoder))
