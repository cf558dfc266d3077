"""The card beside a model says what its files say, and nothing else."""

import json
from pathlib import Path

import pytest

from mmssl import MAE, Encoder, UserError
from mmssl.commands.export import export
from mmssl.encoder import vit_config
from mmssl.modality import DEPTH
from mmssl.objectives import load
from mmssl.program import exported
from mmssl.report.card import leave_card, own_card

ROW = {"step": 40, "epoch": 2.5, "loss": 0.512345, "parts": {"mse": 0.5}, "lr": 1e-3, "grad_norm": 1.0, "seen": 600}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, with what a card is made of."""
    folder = tmp_path / "my run"
    MAE("tiny", size=16, patch=8).save_pretrained(folder / "final")
    settings = {"media": "120 samples, 0a1b", "batch_size": 8, "ema": None, "recipe.data": "secret/place"}
    settings |= {"method.mask_ratio": 0.75, "method.encoder.prefix": 1}
    (folder / "settings.json").write_text(json.dumps(settings))
    rows = [ROW | {"heldout_loss": 0.61, "knn_accuracy": 0.25}, ROW | {"step": 60}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_it_tells_model_data_settings_and_what_was_measured(run):
    told = own_card(load(run / "final"), run / "final")
    assert told.startswith("---\nlibrary_name: mmssl\npipeline_tag: image-feature-extraction\n---\n\n# my run\n")
    count = sum(each.numel() for each in MAE("tiny", size=16, patch=8).parameters())
    for line in (
        "- trained as: MAE: Hide most patches, encode the visible ones, decode the rest, compare pixels.",
        f"- parameters: {count:,}\n- encoder: transformer of 12 blocks, 192 wide, 3 heads, 5,",
        "height x width = 16 x 16 in patches of 8 x 8, values in 0-1 normalised by mean 0.485, 0.456, 0.406",
        "- media: `120 samples, 0a1b`\n- batch_size: 8\n- method.mask_ratio: 0.75\n\n",
        "After step 40, epoch 2.5:\n\n- loss: 0.5123\n- heldout_loss: 0.61\n- knn_accuracy: 0.25\n",
    ):
        assert line in told, line
    assert "secret" not in told and "ema" not in told and "evaluate" not in told and "license" not in told
    code = told.partition("```python\n")[2].partition("```")[0]
    found: dict = {}
    exec(code, found)
    assert isinstance(found["encoder"], Encoder)


def test_it_tells_what_was_evaluated_and_classified(run):
    row = {"representation": "mae", "probe": "linear", "budget": "all", "accuracy": 0.774, "deviation": None}
    (run / "accuracies.json").write_text(json.dumps([row | {"draws": 1, "n_train": 100}]))
    found = {"classes": ["a", "b"], "samples": 8, "accuracy": 0.75, "each": [1.0, 0.5], "metric": "top-1 accuracy"}
    (run / "classes.json").write_text(json.dumps(found))
    told = own_card(load(run / "final"), run / "final")
    assert "- mae, linear, all: 77.4 % (" in told
    assert "- top-1 accuracy 75.00% of 8 samples that are held out" in told


def test_an_export_has_one_and_a_card_by_another_hand_stays(run, tmp_path):
    export(run, tmp_path / "timm", "timm")
    told = (tmp_path / "timm" / "README.md").read_text()
    assert "library_name: timm" in told and "- media: `120 samples, 0a1b`" in told
    assert "timm.create_model(" in told and "3 heads, 5," in told and "- parameters: " not in told
    (tmp_path / "timm" / "README.md").write_text("mine")
    export(run, tmp_path / "timm", "timm")
    assert (tmp_path / "timm" / "README.md").read_text() == "mine"
    leave_card(tmp_path, told)
    leave_card(tmp_path, told + "more")
    assert (tmp_path / "README.md").read_text() == told + "more"


def test_what_has_gaps_is_no_program(tmp_path):
    depth = Encoder(vit_config("tiny", modality=DEPTH, input_size=(16, 16)))
    with pytest.raises(UserError, match="a grid of one size, and this encoder reads depth"):
        exported(depth)
