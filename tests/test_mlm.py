"""MLM: parity with transformers' BERT and RoBERTa, padded and packed, their folders, and the papers' numbers."""

import dataclasses
import json
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from mmssl import MLM, Encoder, UserError
from mmssl.encoder import EncoderConfig
from mmssl.masking import counted
from mmssl.objectives import load, mlm
from mmssl.training.gradients import Gradients
from mmssl.training.stopping import StopRequest
from mmssl.transformer import Transformer, TransformerConfig
from tests.parity import assert_gradients_equal, assert_states_equal, gradients_as_weights, randomize, relative

WORDS, LENGTH = 60, 12
SIZE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": WORDS,
}
KINDS = {
    "BertForPreTraining": {},
    "BertForMaskedLM": {"hidden_act": "gelu_new"},
    "RobertaForMaskedLM": {"type_vocab_size": 1, "max_position_embeddings": LENGTH + 2, "layer_norm_eps": 1e-5},
}


def theirs(name, **settings):
    """transformers' model of this name, tiny, with random weights and biases."""
    family = "Roberta" if "Roberta" in name else "Bert"
    values = {"max_position_embeddings": LENGTH, **SIZE, **KINDS.get(name, {}), **settings}
    return randomize(getattr(transformers, name)(getattr(transformers, f"{family}Config")(**values))).eval()


def masked_texts(kind="Bert", segments=2):
    """Texts that are masked already, padded with what each family takes for padding."""
    length = torch.tensor([12, 7, 1, 9])
    valid = torch.arange(LENGTH) < length[:, None]
    text = torch.randint(5, WORDS, (4, LENGTH)).masked_fill(~valid, 1 if kind.startswith("Roberta") else 0)
    wanted = valid & (torch.rand(4, LENGTH) < 0.3)
    wanted[0, 3] = True
    return {
        "text": text,
        "text.length": length,
        "text.segment": torch.randint(0, segments, (4, LENGTH)),
        "text.target": torch.randint(0, WORDS, (4, LENGTH)).masked_fill(~wanted, -100),
        "text.next": torch.tensor([0, 1, 1, 0]),
    }


def their_inputs(batch):
    valid = torch.arange(LENGTH) < batch["text.length"][:, None]
    return {
        "input_ids": batch["text"],
        "token_type_ids": batch["text.segment"],
        "attention_mask": valid.long(),
    }


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_loss_predictions_and_gradients_are_those_of_transformers(name, packing, tmp_path):
    expected = theirs(name)
    batch = masked_texts(name, segments=expected.config.type_vocab_size)
    ours = MLM.from_pretrained(expected.save_pretrained(tmp_path) or tmp_path)
    ours = MLM(dataclasses.replace(ours.config, packing=packing)).eval()
    ours.load_state_dict(MLM.from_pretrained(tmp_path).state_dict())
    labels = {"labels": batch["text.target"]}
    if name == "BertForPreTraining":
        labels["next_sentence_label"] = batch["text.next"]
    found, wanted = ours(batch), expected(**their_inputs(batch), **labels)
    assert found.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-5)
    assert found.parts.keys() == ({"mlm", "nsp"} if name == "BertForPreTraining" else {"mlm"})
    logits = wanted.prediction_logits if name == "BertForPreTraining" else wanted.logits
    assert relative(found.prediction, logits[batch["text.target"] != -100]) < 1e-5
    found.loss.backward()
    wanted.loss.backward()
    gradients_as_weights(expected)
    expected.save_pretrained(tmp_path / "gradients")
    assert_gradients_equal(ours, MLM.from_pretrained(tmp_path / "gradients"))


@pytest.mark.parametrize("name", KINDS)
def test_their_folders_are_read_and_written_exactly(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    ours = MLM.from_pretrained(tmp_path / "theirs")
    folder = ours.to_transformers(tmp_path / "written")
    again, told = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    assert_states_equal(again.state_dict(), model.state_dict())
    differing = {key for key, value in model.config.to_dict().items() if again.config.to_dict().get(key) != value}
    assert differing <= {
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "_name_or_path",
        "architectures",
        "dtype",
    }
    assert again.config.architectures == [name]
    assert_states_equal(load(folder).state_dict(), ours.state_dict())
    assert load(folder).config == ours.config


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_classifiers_go_both_ways_with_their_labels(family, tmp_path):
    name, longer = (
        f"{family}ForSequenceClassification",
        {"max_position_embeddings": LENGTH + 2} if family == "Roberta" else {},
    )
    model = theirs(name, id2label={0: "dull", 1: "good", 2: "odd"}, label2id={"dull": 0, "good": 1, "odd": 2}, **longer)
    model.save_pretrained(tmp_path / "theirs")
    ours, batch = Encoder.from_pretrained(tmp_path / "theirs").eval(), masked_texts(name)
    assert ours.config.labels == ("dull", "good", "odd")
    assert relative(ours.classify(batch), model(**their_inputs(batch)).logits) < 1e-5
    assert list(ours.forms) == [f"{family.lower()}_classifier"]
    again, told = getattr(transformers, name).from_pretrained(
        ours.to_transformers(tmp_path / "x"), output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    assert_states_equal(again.state_dict(), model.state_dict())
    assert again.config.id2label == model.config.id2label
    plain = Encoder(dataclasses.replace(ours.config, pooler=False))
    with pytest.raises(UserError, match=r"could be written as: its classifiers read .* a layer of tanh"):
        plain.to_transformers(tmp_path / "y")


@pytest.mark.parametrize("name", ["BertModel", "RobertaModel"])
def test_encoders_alone_give_their_hidden_states(name, tmp_path):
    model = theirs(name, **({"max_position_embeddings": LENGTH + 2} if name == "RobertaModel" else {}))
    model.save_pretrained(tmp_path / "theirs")
    encoder, batch = Encoder.from_pretrained(tmp_path / "theirs").eval(), masked_texts(name)
    tokens, valid = encoder(batch), their_inputs(batch)["attention_mask"].bool()
    expected = model(**their_inputs(batch)).last_hidden_state[valid]
    assert relative(tokens.x[valid], expected) < 1e-5
    packed = encoder(batch, packed=True)
    assert relative(packed.x, expected) < 1e-5
    for pool in ("mean", "class"):
        torch.testing.assert_close(packed.pooled(pool), tokens.pooled(pool))
    folder = encoder.to_transformers(tmp_path / "written")
    again, told = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    out = again.eval()(**their_inputs(batch))
    assert torch.equal(out.last_hidden_state[valid], expected)
    torch.testing.assert_close(out.pooler_output, out.last_hidden_state[:, 0].tanh())
    with pytest.raises(UserError, match=r"BertForPreTraining or BertForMaskedLM, .*RobertaForMaskedLM; Encoder"):
        MLM.from_pretrained(folder)


def test_the_encoder_of_a_masked_model_is_read_without_its_heads(tmp_path):
    theirs("BertForPreTraining").save_pretrained(tmp_path)
    encoder = Encoder.from_pretrained(tmp_path)
    assert_states_equal(encoder.state_dict(), MLM.from_pretrained(tmp_path).encoder.state_dict())


def test_files_of_old_are_read(tmp_path):
    """Norms' gamma and beta, position_ids, the tied weights once more, and a tokenizer beside them."""
    model = theirs("BertForMaskedLM")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in state.items()
    }
    assert any(key.endswith("gamma") for key in old)
    old["bert.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    words, bias = old["bert.embeddings.word_embeddings.weight"], old.pop("cls.predictions.bias")
    old |= {"cls.predictions.decoder.weight": words.clone(), "cls.predictions.decoder.bias": bias}
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").write_text((tmp_path / "config.json").read_text())
    save_file(old, tmp_path / "old" / "model.safetensors")
    tokens = [
        {"id": number, "content": f"[{name}]"} for number, name in enumerate(("PAD", "UNK", "CLS", "SEP", "MASK"))
    ]
    (tmp_path / "old" / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    read = MLM.from_pretrained(tmp_path / "old")
    assert_states_equal(read.state_dict(), MLM.from_pretrained(tmp_path).state_dict())
    assert (read.config.mask, read.config.special) == (4, (0, 2, 3))
    assert MLM.from_pretrained(tmp_path).config.mask is None
    save_file(old | {"cls.predictions.decoder.weight": words + 1}, tmp_path / "old" / "model.safetensors")
    with pytest.raises(UserError, match="its head predicts with other words than it reads"):
        MLM.from_pretrained(tmp_path / "old")


def test_models_that_are_none_are_refused(tmp_path):
    for settings in ({"hidden_act": "relu"}, {"is_decoder": True}):
        theirs("BertForMaskedLM", **settings).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="only encoders with gelu"):
            MLM.from_pretrained(tmp_path)
    method = tiny("roberta", next_sentence=True)
    with pytest.raises(UserError, match="has no next-sentence head"):
        method.to_transformers(tmp_path)


def test_parameters_are_the_papers():
    counted = lambda part: sum(value.numel() for value in part.parameters())  # noqa: E731
    with torch.device("meta"):
        assert counted(MLM("base")) == 110_106_428
        assert counted(MLM("base", next_sentence=False)) == 109_514_298
        assert counted(MLM("base", kind="roberta")) == 124_697_433
        assert counted(MLM("large")) == 336_226_108
        encoder, pooler = MLM("large").encoder, MLM("large").pooler
    assert counted(encoder) + counted(pooler) == 335_141_888


def tiny(kind="bert", **settings):
    return MLM("tiny", kind=kind, vocab=WORDS, length=LENGTH, mask=4, special=(0, 2, 3), **settings)


def texts(rows=4):
    length = torch.arange(rows) * 5 % LENGTH + 1
    text = torch.randint(5, WORDS, (rows, LENGTH)) * (torch.arange(LENGTH) < length[:, None])
    ids = torch.arange(rows)
    return {"text": text, "text.length": length, "text.next": ids % 2, "sample_id": ids, "epoch": ids, "draw": ids}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_it_starts_at_chance(kind):
    parts = tiny(kind)(texts(64)).parts
    assert parts["mlm"].item() == pytest.approx(math.log(WORDS), abs=0.2)
    assert (parts["nsp"].item() if kind == "bert" else math.log(2)) == pytest.approx(math.log(2), abs=0.02)
    assert parts.keys() == ({"mlm", "nsp"} if kind == "bert" else {"mlm"})


def test_packed_and_padded_train_alike():
    packed, padded = (randomize(tiny()), tiny(packing=False))
    padded.load_state_dict(packed.state_dict())
    batch = texts()
    losses = [method(batch).loss for method in (packed, padded)]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for loss in losses:
        loss.backward()
    gradients_as_weights(padded)
    assert_gradients_equal(packed, padded)


def test_no_padding_is_multiplied():
    """Nor any word that is not hidden by the head."""
    rows, method, batch = [], tiny(), texts()
    method.head.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[:-1]))
    for block in method.encoder.transformer.blocks:
        block.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[:-1]))
    out = method(batch)
    assert rows == [(int(batch["text.length"].sum()),)] * 2 + [(int(out.mask.hide.lengths.sum()),)]
    assert out.prediction is None


def test_padding_and_what_stands_in_it_is_unread():
    method, batch = randomize(tiny()), texts()
    padding = torch.arange(LENGTH) >= batch["text.length"][:, None]
    noisy = {**batch, "text": batch["text"].masked_fill(padding, 7), "text.special": batch["text"] == 3}
    assert torch.equal(method({**batch, "text.special": batch["text"] == 3}).loss, method(noisy).loss)


def test_full_rows_need_no_lengths():
    method, batch = randomize(tiny()), texts()
    full = {**batch, "text": torch.randint(5, WORDS, (4, LENGTH)), "text.length": torch.full((4,), LENGTH)}
    without = {name: value for name, value in full.items() if name != "text.length"}
    torch.testing.assert_close(method(full).loss, method(without).loss)
    for told in (full, without):
        assert method.encoder(told, packed=True).x.shape == (4, LENGTH, 128)


def test_the_loss_is_a_mean_over_all_hidden_words_and_texts_of_special_tokens_hide_none():
    method, batch = randomize(tiny()).eval(), texts()
    out = method(batch)
    wanted = batch["text"][out.mask.hide.boolean(LENGTH)]
    torch.testing.assert_close(out.parts["mlm"], F.cross_entropy(out.prediction, wanted))
    with torch.no_grad():
        assert torch.equal(method.train()(batch).prediction, out.prediction)
    out = method({**batch, "text": torch.full((4, LENGTH), 2)})
    assert out.parts["mlm"] == 0 and not out.mask.hide.lengths.any()
    out.loss.backward()


def test_chunks_hide_what_the_batch_hides_and_it_is_drawn_once(monkeypatch):
    method, batch, drawn = randomize(tiny()), texts(8), []
    monkeypatch.setattr(mlm, "counted", lambda noise, *rest: drawn.append(len(noise)) or counted(noise, *rest))
    found = []
    for chunks in (1, 4):
        method.zero_grad()
        loss, _ = Gradients(method, chunks, torch.device("cpu"))(batch, StopRequest())
        found.append((loss, {name: value.grad for name, value in method.named_parameters()}))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    assert drawn == [8, 8]
    out, masked = method.eval()(batch), method.drawn(batch)
    assert torch.equal(masked["text.target"] != -100, out.mask.hide.boolean(LENGTH))
    assert torch.equal(method(masked).loss, out.loss) and method.drawn(masked) is masked


def test_a_given_mask_is_that_mask():
    method, batch = tiny(), texts()
    mask = method.hide({**batch, "epoch": batch["epoch"] + 1})
    assert not torch.equal(mask.hide.boolean(LENGTH), method(batch).mask.hide.boolean(LENGTH))
    assert method(batch, mask).mask is mask


def test_dropout_is_behind_each_branch_and_the_embeddings():
    """As BERT's hidden dropout: of what is left, the mean stays; nothing is dropped in eval mode."""
    config = TransformerConfig(32, 1, 4, norm_order="post", input_norm=True, final_norm=False, dropout=0.1)
    model, x = Transformer(config), torch.randn(2, 5, 32)
    dropped = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(
                lambda module, inputs, out, name=name: dropped.update({name: (out == 0).sum()})
            )
    model(x)
    assert dropped.keys() == {"dropout", "blocks.0.attn.dropout", "blocks.0.mlp.dropout"}
    assert all(0 < count < 80 for count in dropped.values())
    plain = Transformer(dataclasses.replace(config, dropout=0.0))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain(x))


def test_packed_tokens_need_an_encoder_that_tells_no_samples_apart():
    transformer = Transformer(TransformerConfig(8, 1, 2, drop_path=0.1))
    with pytest.raises(ValueError, match=r"tokens of shape \(5, 8\) are packed"):
        transformer(torch.randn(5, 8), torch.tensor([3, 2]))
    tokenizer = tiny().config.encoder.tokenizers[0]
    encoder = Encoder(EncoderConfig((tokenizer,), TransformerConfig(8, 1, 2), prefix=1))
    with pytest.raises(ValueError, match="an encoder with 1 prefix tokens"):
        encoder(texts(), packed=True)
