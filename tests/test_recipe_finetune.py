"""Fine-tuning as a user runs it: labelled pictures and a model in, a classifier and a report out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import MAE, Encoder
from mmssl.data import EvalView, FolderSource, evaluation_batches
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig
from mmssl.errors import UserError
from mmssl.finetune import Classifier
from mmssl.methods import find
from mmssl.modality import image
from mmssl.objectives import MAEConfig, load
from mmssl.report.run import write_report
from mmssl.tokenizer import TokenizerConfig
from mmssl.training import read_metrics
from mmssl.transformer import TransformerConfig
from tests.parity import assert_states_equal

SMALL = {"size": 16, "epochs": 6.0, "batch_size": 16, "base_lr": 2e-2, "head_std": 0.02, "smoothing": 0.0, "mixup": 0.0}
SMALL |= {"at_once": 8, "workers": 0, "log_every": 1, "save_every": 4, "validate_every": 6, "keep": 0, "device": "cpu"}
SMALL |= {"precision": "fp32", "tracker": "none"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Reddish and blueish squares, a train and a val part of each."""
    root, generator = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 6)):
        for label, channel in (("blue", 2), ("red", 0)):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                values = generator.integers(0, 80, (20, 20, 3), dtype=np.uint8)
                values[..., channel] += 150
                Image.fromarray(values).save(root / part / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    torch.manual_seed(7)  # other weights than a run's first ones
    encoder = EncoderConfig((TokenizerConfig(image(3, (8, 8)), (16, 16)),), TransformerConfig(32, 2, 2))
    return MAE(MAEConfig(encoder, mae_decoder_config(16, 1, 2))).save_pretrained(tmp_path_factory.mktemp("model"))


def tune(data: Path, model: Path, out: Path, **changes):
    return find("image-finetune").config(data=data, model=str(model), out=out, **(SMALL | changes)).run()


@pytest.fixture(scope="module")
def run(pictures, pretrained, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    tune(pictures, pretrained, out)
    return out


def test_what_is_tuned_tells_classes_apart_and_says_how_well(run, pictures, capsys):
    rows = read_metrics(run)
    assert len(rows) == 12 and rows[-1]["heldout_accuracy"] == 1.0 and rows[-1]["heldout_loss"] < 0.5
    found = json.loads((run / "classes.json").read_text())
    assert found["classes"] == ["blue", "red"] and found["confusion"] == [[6, 0], [0, 6]] and found["samples"] == 12
    page = write_report(run).read_text()
    assert "top-1 accuracy 100.00% of 12 samples" in page and 'class="confusion"' in page
    assert "Accuracy of the classifier" in page
    encoder = Encoder.from_pretrained(run / "final").eval()
    assert encoder.config.labels == ("blue", "red")
    for batch in evaluation_batches(FolderSource(pictures / "val"), EvalView(16), batch_size=12):
        assert torch.equal(encoder.classify(batch).argmax(1), batch["label"])
    assert isinstance(load(run / "final"), Classifier)


def test_a_run_that_was_stopped_ends_with_the_same_weights(run, pictures, pretrained, tmp_path):
    shutil.copytree(run / "step-00000004", tmp_path / "step-00000004")
    result = tune(pictures, pretrained, tmp_path)
    assert (result.resumed_from, result.steps) == (4, 12)
    assert_states_equal(load(tmp_path / "final").state_dict(), load(run / "final").state_dict())


def test_what_was_tuned_is_tuned_on_with_its_head(run, pictures, pretrained, tmp_path, capsys):
    tune(pictures, run, tmp_path, steps=1, base_lr=1e-9, validate_every=0)
    assert "its encoder and its head for 32 samples, 2 classes" in capsys.readouterr().out
    assert json.loads((tmp_path / "classes.json").read_text())["accuracy"] == 1.0


def test_another_model_or_none_is_another_run(run, pictures, pretrained, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    with pytest.raises(UserError, match=r"other settings \(tuned: .* -> \"random weights\"\)"):
        tune(pictures, pretrained, tmp_path / "run", scratch=True)


def test_from_random_weights_it_has_the_models_sizes(pictures, pretrained, tmp_path, capsys):
    tune(pictures, pretrained, tmp_path, scratch=True, steps=1, size=32, tuned_blocks=0, pool="class", per_class=5)
    assert "random weights, its sizes alone and a fresh head for 10 samples, 2 classes" in capsys.readouterr().out
    encoder = Encoder.from_pretrained(tmp_path / "final")
    assert encoder.config.tokenizers[0].size == (32, 32) and encoder.config.pool == "class"
    given = Encoder.from_pretrained(pretrained)
    assert not torch.equal(encoder.tokenizer("image").weight, given.tokenizer("image").weight)


def test_bad_input_gets_one_sentence(pictures, pretrained, tmp_path):
    with pytest.raises(UserError, match="no labels"):
        tune(pictures / "train" / "red", pretrained, tmp_path)
    strange = tmp_path / "strange"
    shutil.copytree(pictures, strange)
    (strange / "val" / "red").rename(strange / "val" / "green")
    with pytest.raises(UserError, match="the test part has the class 'green', which the training part has not"):
        tune(strange, pretrained, tmp_path / "out")
    broken = tmp_path / "broken"
    shutil.copytree(pictures, broken)
    for name in "0123":
        (broken / "val" / "red" / f"{name}.png").write_text("no picture")
    with pytest.raises(UserError, match="4 of 12 files cannot be read"):
        tune(broken, pretrained, tmp_path / "some", steps=1)
    with pytest.raises(UserError, match="tuned_blocks=99: the encoder has 2 blocks"):
        tune(pictures, pretrained, tmp_path / "out", tuned_blocks=99)
    with pytest.raises(UserError, match="patches of 8 x 8 do not divide an input of 20 x 20"):
        tune(pictures, pretrained, tmp_path / "out", size=20)
