"""The recipe of M3AE as a user runs it: pairs, pictures and texts in, one encoder of both out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl import M3AE, Encoder
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.methods import find
from mmssl.objectives import load, m3ae_config
from mmssl.training import read_metrics
from tests.test_data_pairs import WORDS, members, unpacked
from tests.test_data_shards import write_tar
from tests.test_recipe_video import command, recipe

SMALL = (
    "--model tiny --size 16 --patch 8 --length 8 --batch-size 8 --base-lr 1e-2 --at-once 4 --workers 0 --log-every 1 "
    "--save-every 2 --keep 0 --validate-every 2 --device cpu --precision fp32 --tracker none --decoder-depth 1"
)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Twelve pairs, eight pictures, ten texts, of which two are longer than the context, and a tokenizer."""
    root = tmp_path_factory.mktemp("given")
    write_tar(root / "pairs" / "a.tar", members(12))
    unpacked(root / "pictures", {name: data for name, data in members(8).items() if name.endswith(".png")})
    texts = "\n".join([*WORDS[:8], *[" ".join(WORDS)] * 2])
    unpacked(root / "texts", {"all.txt": texts.encode()})
    save_tokenizer(train_tokenizer([" ".join(WORDS)] * 20, "wordpiece", 70), root / "words")
    return root


def trained(monkeypatch, capsys, given, out, flags):
    line = f"{flags.replace('@', f'{given}/')} --tokenizer {given}/words {SMALL} --out {out}"
    assert recipe(monkeypatch, "multimodal_m3ae", line) == 0, capsys.readouterr().err
    return load(out / "final")


ALL = "--data @pairs --label kind --pictures @pictures --texts @texts"


def test_pairs_pictures_and_texts_train_together_also_from_the_middle_on(given, tmp_path, monkeypatch, capsys):
    method = trained(monkeypatch, capsys, given, tmp_path / "whole", f"{ALL} --steps 4")
    assert type(method) is M3AE and method.config.special == (0, 2, 3)
    told = capsys.readouterr().out
    assert "samples   26 to train on, 4 held out" in told and f"{given}/pairs" in told.partition("next:")[2]
    row = read_metrics(tmp_path / "whole")[-1]
    assert set(row["parts"]) == {"image", "text"} and {"heldout_loss", "effective_rank"} <= row.keys()
    page = (tmp_path / "whole" / "report.html").read_text()
    told = ("What it predicts", ">what it sees<", ">what it predicts<", ">the text<", "What its features say")
    assert all(each in page for each in told)
    assert any(f"[CLS] {word} [SEP]" in page for word in WORDS)
    assert (tmp_path / "whole/final/tokenizer.json").read_bytes() == (given / "words/tokenizer.json").read_bytes()
    assert list(Encoder.from_pretrained(tmp_path / "whole" / "final").tokenizers) == ["image", "text"]
    asked = f"--model {tmp_path}/whole --data {given}/pairs --workers 0 --device cpu --inputs image text"
    command(monkeypatch, f"embed {asked} --out {tmp_path}/both.npz")
    assert np.load(tmp_path / "both.npz")["features"].shape == (12, method.encoder.dim)
    command(monkeypatch, f"evaluate {asked} --label kind")
    assert "bag of words" in capsys.readouterr().out
    shutil.copytree(tmp_path / "whole" / "step-00000002", tmp_path / "resumed" / "step-00000002")
    trained(monkeypatch, capsys, given, tmp_path / "resumed", f"{ALL} --steps 4")
    runs = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "resumed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.mark.parametrize(("flags", "part"), [("--pictures @pictures", "image"), ("--texts @texts", "text")])
def test_pictures_alone_and_texts_alone_train_too(flags, part, given, tmp_path, monkeypatch, capsys):
    trained(monkeypatch, capsys, given, tmp_path / "run", f"{flags} --steps 1")
    parts = read_metrics(tmp_path / "run")[-1]["parts"]
    assert parts[part] > 0 and sum(parts.values()) == parts[part]


def test_what_is_not_given_is_the_papers():
    chosen = find("m3ae").config(data=Path())
    settings = chosen.training(1, torch.device("cpu"))
    assert (settings.batch_size, settings.base_lr, settings.weight_decay) == (4096, 1.5e-4, 0.05)
    assert (settings.epochs, settings.warmup_epochs, settings.betas) == (100, 5, (0.9, 0.95))
    assert chosen.method() == m3ae_config("base")


def test_what_cannot_be_is_refused_in_a_sentence(given, tmp_path, monkeypatch, capsys):
    words = f"--tokenizer {given}/words"
    for flags, sentence in (
        (words, "there is nothing to learn from: give --data of pairs, --pictures or --texts."),
        ("--texts @texts", f"mmssl tokenizer --data {given}/texts --out tokenizer` learns one"),
        (
            f"--data @pairs {words} --mask-ratio 1",
            "mask_ratio is the share that is hidden, above 0 and below 1, not 1.0",
        ),
        (f"--data @pairs {words} --size 20", "patch 8 does not divide pictures of 20 pixels"),
        (f"--texts @texts {words} --length 2", "Rows of texts have at least 5 tokens"),
    ):
        line = f"{SMALL} {flags.replace('@', f'{given}/')} --out {tmp_path}/run"
        assert recipe(monkeypatch, "multimodal_m3ae", line) == 2, flags
        assert sentence in capsys.readouterr().err
    write_tar(tmp_path / "empty.tar", members(4, text=False, **{f"{k:04}.txt": b" \n" for k in range(4)}))
    line = f"{SMALL} --data {tmp_path}/empty.tar {words} --out {tmp_path}/run"
    assert recipe(monkeypatch, "multimodal_m3ae", line) == 2
    assert "has an empty caption" in capsys.readouterr().err
