"""The text recipe as a user runs it: texts and a tokenizer in, an encoder and numbers out."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from mmssl import MLM
from mmssl.cli import main
from mmssl.data import Vocabulary
from mmssl.methods import find
from mmssl.objectives import load, mlm_config
from mmssl.training import read_metrics
from tests.test_data_text import document
from tests.test_recipe_video import command, recipe

SMALL = (
    "--model tiny --length 32 --epochs 2 --warmup-epochs 0 --batch-size 8 --workers 0 --log-every 1 --save-every 2 "
    "--keep 0 --validate-every 4 --max-skipped 0.5 --device cpu --precision fp32 --tracker none"
)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": document(number, 4), "kind": "ab"[number % 2]}) for number in range(20)]
    path.write_text("\n".join([*rows, "{no json"]))
    return path


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_texts_become_a_model_also_from_the_middle_on(texts, tmp_path, monkeypatch, capsys, kind):
    words = "--kind wordpiece --vocab 120" if kind == "bert" else "--kind bpe --vocab 300"
    command(monkeypatch, f"tokenizer --data {texts} --out {tmp_path}/words {words}")
    line = f"--kind {kind} --data {texts} --tokenizer {tmp_path}/words {SMALL}"
    assert recipe(monkeypatch, "text_mlm", f"{line} --out {tmp_path}/whole") == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "1 line skipped, 20 documents read: texts.jsonl:21 is no JSON" in told
    method = load(tmp_path / "whole" / "final")
    assert isinstance(method, MLM) and (method.pooler is not None) == (kind == "bert")
    assert AutoTokenizer.from_pretrained(tmp_path / "whole" / "final").mask_token_id == method.config.mask
    row = read_metrics(tmp_path / "whole")[-1]
    assert (row["seen"], row["skipped"]) == (row["step"] * 8, 1)
    assert "heldout_loss" in row and ("nsp" in row["parts"]) == (kind == "bert")
    skipped = (tmp_path / "whole" / "skipped.jsonl").read_text()
    assert "texts.jsonl:21" in skipped and (tmp_path / "whole" / "report.html").is_file()
    page = (tmp_path / "whole" / "report.html").read_text()
    assert ("<mark>[MASK]</mark>" if kind == "bert" else "<mark>&lt;mask&gt;</mark>") in page
    assert "first guess" in page and "up to 32 tokens" in page
    words = [(tmp_path / place / "tokenizer.json").read_bytes() for place in ("words", "whole", "whole/final")]
    assert words[0] == words[1] == words[2]
    shutil.copytree(tmp_path / "whole" / "step-00000002", tmp_path / "resumed" / "step-00000002")
    assert recipe(monkeypatch, "text_mlm", f"{line} --out {tmp_path}/resumed") == 0
    runs = [tmp_path / run / "final" / "model.safetensors" for run in ("whole", "resumed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_short_rows_come_first_and_a_run_killed_about_the_change_ends_with_the_same_bits(
    texts, tmp_path, monkeypatch, capsys
):
    command(monkeypatch, f"tokenizer --data {texts} --out {tmp_path}/words --vocab 120")
    line = f"--data {texts} --tokenizer {tmp_path}/words {SMALL} --steps 6 --save-every 1 --short-length 16"
    line += " --short-share 0.5 --workers 1"
    capsys.readouterr()
    assert recipe(monkeypatch, "text_mlm", f"{line} --out {tmp_path}/whole") == 0
    assert "first     3 steps read" in capsys.readouterr().out
    row = read_metrics(tmp_path / "whole")[-1]
    assert (row["step"], row["seen"], row["skipped"]) == (6, 48, 1)
    last = tmp_path / "whole" / "step-00000006" / "manifest.json"
    for step in (2, 3, 4):
        name = f"step-{step:08d}"
        shutil.copytree(tmp_path / "whole" / name, tmp_path / f"from-{step}" / name)
        assert recipe(monkeypatch, "text_mlm", f"{line} --out {tmp_path}/from-{step}") == 0
        assert (tmp_path / f"from-{step}" / "step-00000006" / "manifest.json").read_bytes() == last.read_bytes()
    capsys.readouterr()
    other = line.replace("--short-share 0.5", "--short-share 0.7")
    assert recipe(monkeypatch, "text_mlm", f"{other} --out {tmp_path}/whole") == 2
    assert "first.share: 0.5 -> 0.7" in capsys.readouterr().err
    assert recipe(monkeypatch, "text_mlm", f"{line} --short-length 32 --out {tmp_path}/none") == 2
    assert "--short-length 32 is not below --length 32" in capsys.readouterr().err


def refused(monkeypatch, capsys, line):
    """What is said of a command that cannot be done."""
    monkeypatch.setattr(sys, "argv", ["mmssl", *line.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_features_of_texts_are_written_and_measured(texts, tmp_path, monkeypatch, capsys):
    command(monkeypatch, f"tokenizer --data {texts} --out {tmp_path}/words --vocab 120")
    vocabulary = Vocabulary.read(tmp_path / "words")
    model = MLM("tiny", vocab=vocabulary.size, length=32, mask=vocabulary.mask, special=vocabulary.framing)
    reading = f"--model {model.save_pretrained(tmp_path / 'model')} --data {texts} --workers 0 --device cpu"
    assert "needs its tokenizer: give --tokenizer" in refused(monkeypatch, capsys, f"embed {reading}")
    given = f"--tokenizer {tmp_path}/words --label kind"
    command(monkeypatch, f"embed {reading} {given} --out {tmp_path}/features.npz --pool class")
    found = np.load(tmp_path / "features.npz")
    assert found["features"].shape == (20, 128) and found["labels"][:4].tolist() == ["a", "b", "a", "b"]
    vocabulary.save(tmp_path / "model")
    command(monkeypatch, f"evaluate {reading} --label kind --out {tmp_path}/scores")
    assert "bag of words" in capsys.readouterr().out
    command(monkeypatch, f"export --model {tmp_path}/model --to bert_encoder --out {tmp_path}/theirs")
    text = document(0, 4)
    ids = AutoTokenizer.from_pretrained(tmp_path / "theirs")(text)["input_ids"][:32]
    assert ids == vocabulary.tokenizer().encode(text).ids[:32]
    rows = json.loads((tmp_path / "scores" / "accuracies.json").read_text())
    assert {row["representation"] for row in rows} == {"model", "random initialisation", "bag of words"}
    assert "texts have no patches" in refused(monkeypatch, capsys, f"embed {reading} --patches")
    assert "drawn as pictures" in refused(monkeypatch, capsys, f"neighbours {reading}")


def test_words_of_texts_are_asked_with_and_without_labels(texts, tmp_path, monkeypatch, capsys):
    command(monkeypatch, f"tokenizer --data {texts} --out {tmp_path}/words --vocab 120")
    vocabulary = Vocabulary.read(tmp_path / "words")
    model = MLM("tiny", vocab=vocabulary.size, length=32, mask=vocabulary.mask, special=vocabulary.framing)
    model.save_pretrained(tmp_path / "model")
    model.to_transformers(tmp_path / "theirs")
    model.encoder.save_pretrained(tmp_path / "encoder")
    reading = f"--data {texts} --tokenizer {tmp_path}/words --workers 0 --device cpu --texts 1"
    found = {}
    for name, labels in (("model", ""), ("theirs", ""), ("model", "--label kind")):
        out = tmp_path / f"{name}{len(labels)}"
        capsys.readouterr()
        command(monkeypatch, f"evaluate --model {tmp_path}/{name} {reading} {labels} --out {out}")
        said = capsys.readouterr().out
        assert (
            "18 texts to count them in, 2 asked (those that training" in said and "pseudo-perplexity of 1 texts" in said
        )
        assert (out / "accuracies.json").exists() == bool(labels)
        found[out.name] = json.loads((out / "words.json").read_text())
    ours, theirs, labelled = found.values()
    assert ours["all"] == theirs["all"] == labelled["all"]
    assert theirs["pseudo_perplexity"] == pytest.approx(ours["pseudo_perplexity"], rel=1e-4)
    assert ours["by_class"] == {} and labelled["by_class"].keys() <= {"a", "b"}
    assert sum(each["hidden"] for each in labelled["by_class"].values()) == ours["all"]["hidden"] > 0
    said = refused(monkeypatch, capsys, f"evaluate --model {tmp_path}/encoder {reading}")
    assert "holds an encoder alone, which predicts no words" in said and "--label" in said
    command(monkeypatch, f"evaluate --model {tmp_path}/encoder {reading} --label kind")
    assert "words: not measured: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "batch", "peak", "betas", "clip", "optimizer", "warmup"),
    [
        ("bert", 256, 1e-4, (0.9, 0.999), 1.0, "auto", 10_000 / 1_000_000),
        ("roberta", 8192, 6e-4, (0.9, 0.98), None, "adamw", 24_000 / 500_000),
    ],
)
def test_what_is_not_given_is_the_papers(kind, batch, peak, betas, clip, optimizer, warmup):
    recipe = find("mlm").config(data=Path(), kind=kind)
    settings = recipe.training(1, torch.device("cpu"))
    assert (settings.batch_size, settings.betas, settings.clip_norm) == (batch, betas, clip)
    assert settings.base_lr * batch / 256 == pytest.approx(peak) and settings.weight_decay == 0.01
    bert = kind == "bert"
    assert (settings.decay, settings.eps) == ("linear", None if bert else 1e-6)
    assert recipe.settled().short_length == (128 if bert else 0)
    assert settings.optimizer == optimizer and settings.warmup_epochs == pytest.approx(warmup * settings.epochs)
    assert recipe.method() == mlm_config("base", kind=kind)


def test_padded_rows_train_to_the_same_loss(texts, tmp_path, monkeypatch, capsys):
    command(monkeypatch, f"tokenizer --data {texts} --out {tmp_path}/words --vocab 120")
    line = f"--data {texts} --tokenizer {tmp_path}/words {SMALL} --positions 48"
    for packing in ("on", "off"):
        assert recipe(monkeypatch, "text_mlm", f"{line} --out {tmp_path}/{packing} --packing {packing}") == 0
    losses = [read_metrics(tmp_path / packing)[-1]["heldout_loss"] for packing in ("on", "off")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    settings = json.loads((tmp_path / "on" / "settings.json").read_text())
    chosen = {name: settings[f"method.{name}"] for name in ("next_sentence", "dupe_factor", "mask", "special")}
    assert settings["method.encoder.tokenizers.0.size"] == [48]  # more than rows have
    assert chosen == {"next_sentence": True, "dupe_factor": 10, "mask": 4, "special": [0, 2, 3]}


def test_a_run_without_a_tokenizer_is_refused_in_a_sentence(texts, tmp_path, monkeypatch, capsys):
    assert recipe(monkeypatch, "text_mlm", f"--data {texts} --out {tmp_path}/run {SMALL}") == 2
    assert "--tokenizer is missing" in capsys.readouterr().err
