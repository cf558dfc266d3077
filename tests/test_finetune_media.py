"""Sounds, clips and texts are tuned by their recipes as pictures are."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from mmssl import MLM, AudioMAE, Encoder
from mmssl.audio import RATE
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.finetune import Classifier
from mmssl.methods import find
from mmssl.objectives import audiomae_config, load, mlm_config
from mmssl.training import read_metrics
from tests.conformance.table import videomae
from tests.films import film, noise_picture

PLAIN = {"workers": 0, "log_every": 1, "save_every": 0, "validate_every": 0, "device": "cpu", "precision": "fp32"}
PLAIN |= {"tracker": "none"}


def tune(task: str, data: Path, model: Path, out: Path, **settings) -> dict:
    find(task).config(data=data, model=str(model), out=out, **(PLAIN | settings)).run()
    assert isinstance(load(out / "final"), Classifier) and (out / "report.html").is_file()
    return json.loads((out / "classes.json").read_text())


def small(config):
    """The config with an encoder of one narrow block."""
    blocks = dataclasses.replace(config.encoder.transformer, dim=32, depth=1, heads=2)
    return dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, transformer=blocks))


@pytest.mark.parametrize("several", [False, True])
def test_sounds_are_mixed_hidden_and_told_apart(several, tmp_path):
    """Low and high tones; where sounds have several labels each, some have both and some none."""
    generator, time = np.random.default_rng(0), np.arange(RATE // 4) / RATE
    pitches = {"high": 3000, "low": 300}
    for part, count in (("train", 24), ("test", 8)):
        rows = []
        for number in range(count):
            names = (
                [*(["high"] if number % 2 else []), *(["low"] if number % 4 < 2 else [])]
                if several
                else [("high", "low")[number % 2]]
            )
            wave = sum(
                (np.sin(2 * np.pi * pitches[name] * time) for name in names), 0.01 * generator.normal(size=len(time))
            )
            soundfile.write(tmp_path / f"{part}-{number}.wav", 0.3 * wave, RATE)
            told = {"labels": names} if several else {"label": names[0]}
            rows.append({"path": f"{part}-{number}.wav", **told})
        (tmp_path / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = AudioMAE(
        small(audiomae_config("tiny", frames=16, patch=(8, 32), decoder="global", decoder_dim=32, decoder_depth=1))
    )
    model.save_pretrained(tmp_path / "model")
    settings = {"test": tmp_path / "test.jsonl", "epochs": 8.0, "batch_size": 12, "base_lr": 0.2, "head_std": 0.02}
    settings |= {"spec_augment": (4, 8), "drop_path": 0.0, "clips": 2}
    found = tune("audio-finetune", tmp_path / "train.jsonl", tmp_path / "model", tmp_path / "run", **settings)
    assert found["accuracy"] == 1.0 and found["samples"] == 8 and found["classes"] == ["high", "low"]
    assert found["metric"] == ("mean average precision" if several else "top-1 accuracy")
    assert load(tmp_path / "run" / "final").config.hidden == (0.2, 0.2)
    if several:
        assert "error" in read_metrics(tmp_path / "run")[-1]["parts"]


def test_clips_are_averaged(tmp_path):
    for number in range(8):
        film(
            tmp_path / "films" / ("a", "b")[number % 2] / f"{number}.mp4",
            count=10,
            picture=noise_picture(24, 24, number),
        )
    torch.manual_seed(0)
    videomae().save_pretrained(tmp_path / "model")
    changes = {"steps": 1, "batch_size": 4, "stride": 1, "clips": 2}
    found = tune("video-finetune", tmp_path / "films", tmp_path / "model", tmp_path / "run", **changes)
    assert found["samples"] == 2 and found["classes"] == ["a", "b"]
    encoder = Encoder.from_pretrained(tmp_path / "run" / "final")
    assert encoder.config.pool_norm and not encoder.config.transformer.final_norm


@pytest.mark.usefixtures("cache")
def test_texts_are_classified_through_the_pooler_that_pretraining_left(tmp_path):
    words = ["red", "rose", "blue", "sea"]
    rows = [
        {"text": " ".join([words[2 * (n % 2) + (n // 2) % 2]] * (1 + n % 3)), "kind": "wb"[n % 2]} for n in range(24)
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenizer = train_tokenizer([" ".join(words)] * 9, "wordpiece", 60)
    torch.manual_seed(0)
    model = MLM(small(mlm_config("tiny", length=16, vocab=60, mask=4, special=(0, 2, 3))))
    model.save_pretrained(tmp_path / "model")
    save_tokenizer(tokenizer, tmp_path / "model")
    settings = {"label": "kind", "epochs": 10.0, "batch_size": 8, "base_lr": 0.3}
    found = tune("text-finetune", tmp_path / "texts.jsonl", tmp_path / "model", tmp_path / "run", **settings)
    assert found["accuracy"] == 1.0 and found["classes"] == ["b", "w"]
    assert (tmp_path / "run" / "final" / "tokenizer.json").is_file()
    slow = settings | {"epochs": 1.0, "base_lr": 1e-12}
    tune("text-finetune", tmp_path / "texts.jsonl", tmp_path / "model", tmp_path / "still", **slow)
    encoder = Encoder.from_pretrained(tmp_path / "still" / "final")
    torch.testing.assert_close(encoder.pooler[0].weight, model.pooler.weight)
