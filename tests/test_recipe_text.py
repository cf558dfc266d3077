"""The text recipe as a user runs it: texts and a tokenizer in, an encoder and numbers out."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from mmssl import MLM
from mmssl.methods import find
from mmssl.objectives import load, mlm_config
from mmssl.training import read_metrics
from tests.test_data_text import document
from tests.test_recipe_video import command, recipe

SMALL = (
    "--model tiny --length 32 --epochs 2 --warmup-epochs 0 --batch-size 8 --workers 0 --log-every 1 --save-every 2 "
    "--keep 0 --validate-every 4 --max-skipped 0.5 --device cpu --precision fp32 --tracker none"
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [json.dumps({"text": document(number, 4)}) for number in range(20)]
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
    shutil.copytree(tmp_path / "whole" / "step-00000002", tmp_path / "resumed" / "step-00000002")
    assert recipe(monkeypatch, "text_mlm", f"{line} --out {tmp_path}/resumed") == 0
    runs = [tmp_path / run / "final" / "model.safetensors" for run in ("whole", "resumed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


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
