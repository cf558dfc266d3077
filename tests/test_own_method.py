"""A method of a user's own module: trained, drawn, read again and exported by the same commands as mmssl's."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl import MAE, UserError, train
from mmssl.cli import import_modules
from mmssl.commands.export import export
from mmssl.encoder import Encoder
from mmssl.methods import find
from mmssl.objectives import METHODS, MAEConfig, load
from mmssl.report import Report
from mmssl.report.run import draw_figures
from tests.luma import LumaMAE
from tests.processes import printed

METHOD = "tests.luma:LumaMAE"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    (folder / "pictures").mkdir()
    generator = np.random.default_rng(0)
    for number in range(24):
        picture = generator.integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / "pictures" / f"{number}.png")
    small = {"model": "tiny", "size": 16, "patch": 8, "batch_size": 8, "workers": 0, "precision": "fp32", "steps": 2}
    return train(METHOD, data=folder / "pictures", out=folder / "run", **small).folder


def test_it_is_known_by_its_name_and_takes_the_recipe_of_what_it_derives_from():
    assert METHODS["LumaMAE"] is LumaMAE
    method = find(METHOD)
    assert method.media == "image" and method.config(data=Path()).out == Path("runs/LumaMAE")
    assert isinstance(method.config(data=Path(), model="tiny").build(), LumaMAE)


def test_it_predicts_other_channels_than_it_reads_and_shows_them():
    method = LumaMAE("tiny", size=16, patch=8, norm_pix=True)
    batch = {"image": torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8), "sample_id": torch.arange(3)}
    out = method(batch)
    assert out.prediction.shape == (3, 3, 64)
    (figure,) = method.figures(batch)
    assert [column.shape for column in figure.columns] == [(3, 1, 16, 16)] * 3
    expected = 0.299 * batch["image"][:, 0] + 0.587 * batch["image"][:, 1] + 0.114 * batch["image"][:, 2]
    torch.testing.assert_close(figure.columns[2][:, 0], expected / 255)
    report = Report("own")
    draw_figures(report, [figure])
    assert "What it predicts" in report.html() and report.html().count("data:image/png") == 1


def test_a_process_that_does_not_know_it_finds_it_by_the_module_in_config_json(trained):
    assert json.loads((trained / "final" / "config.json").read_text())["module"] == "tests.luma"
    (trained / "report.html").unlink()
    printed("from mmssl.cli import main; main()", "report", trained)
    assert "LumaMAE" in (trained / "report.html").read_text()


def test_its_encoder_is_read_and_exported_and_what_others_cannot_hold_is_refused(trained, tmp_path):
    encoder, method = Encoder.from_pretrained(trained / "final"), load(trained / "final")
    assert isinstance(method, LumaMAE)
    assert list(encoder.forms) == ["vit", "timm"] and not method.forms
    encoder.save_timm(tmp_path / "timm")
    with pytest.raises(UserError, match="transformers has nothing that LumaMAE could be written as"):
        method.to_transformers(tmp_path / "vit_mae")


def test_modules_and_names_that_are_not_there_get_one_sentence(trained, tmp_path):
    for name, sentence in (
        ("nowhere:Luma", "the module nowhere cannot be imported"),
        ("tests.luma:Lumo", "no class 'Lumo': choose one of MAE, LumaMAE"),
        ("mmssl.encoder:Encoder", "neither a recipe nor an objective that derives from one of AudioMAE"),
        ("../luma:X", "is no module's name"),
        ("lumo", "unknown method 'lumo'"),
    ):
        with pytest.raises(UserError, match=sentence):
            find(name)
    config = json.loads((trained / "final" / "config.json").read_text())
    for module, sentence in ((None, "--import MODULE adds others"), ("nowhere", "holds LumoMAE: the module nowhere")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"mmssl": "LumoMAE", "module": module}))
        with pytest.raises(UserError, match=sentence):
            load(tmp_path)


def test_an_export_says_when_its_class_is_not_found_and_writes_the_encoder_all_the_same(trained, tmp_path):
    lost = shutil.copytree(trained / "final", tmp_path / "lost")
    config = json.loads((lost / "config.json").read_text())
    (lost / "config.json").write_text(json.dumps(config | {"mmssl": "LostMAE", "module": "nowhere"}))
    with pytest.raises(UserError, match=r"only vit, timm, onnx, torch-export .*the module nowhere cannot be"):
        export(lost, tmp_path / "out", "vit_mae")
    export(lost, tmp_path / "out", "timm")
    assert Encoder.from_pretrained(tmp_path / "out").dim == 192


def test_two_modules_may_have_methods_of_one_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("mine", "yours"):
        (tmp_path / f"{module}.py").write_text("from mmssl import MAE\n\n\nclass Twin(MAE):\n    pass\n")
    mine, yours = (find(f"{module}:Twin").config.objective for module in ("mine", "yours"))
    for kind in (mine, yours):
        folder = kind("tiny", size=16, patch=8).save_pretrained(tmp_path / kind.__module__)
        assert type(load(folder)) is kind


@dataclass(frozen=True)
class WeightedConfig(MAEConfig):
    weight: float = 2.0


class WeightedMAE(MAE):
    config_class = WeightedConfig


def test_settings_of_its_own_are_taken_beside_the_usual_ones():
    assert WeightedMAE("tiny", size=16, patch=8).config.weight == 2.0
    method = WeightedMAE("tiny", size=16, patch=8, weight=3.0)
    assert isinstance(method.config, WeightedConfig) and method.config.weight == 3.0
    assert method.tokenizer.size_grid == (2, 2)
    with pytest.raises(UserError, match="has no setting 'wait': did you mean 'weight'"):
        WeightedMAE("tiny", wait=3.0)


def test_modules_are_imported_for_any_command():
    assert import_modules(["--import", "tests.luma", "report", "runs/mine"]) == ["report", "runs/mine"]
    assert import_modules(["evaluate", "--import=tests.luma", "--model", "m"]) == ["evaluate", "--model", "m"]
    with pytest.raises(UserError, match="the module nowhere cannot be imported"):
        import_modules(["--import", "nowhere", "report"])


def test_a_name_of_mmssl_is_not_taken():
    with pytest.raises(UserError, match="a method of the name MAE is in mmssl"):
        type("MAE", (LumaMAE,), {"__module__": "mine"})


def test_models_of_a_later_format_name_the_version_that_reads_them(trained, tmp_path):
    config = json.loads((trained / "final" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 99, "version": "7.1"}))
    for kind in (Encoder, LumaMAE):
        with pytest.raises(UserError, match=r"written by mmssl 7\.1 in format 99, .*: read it with mmssl 7\.1"):
            kind.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": "two"}))
    with pytest.raises(UserError, match="its format is 'two', which is no number"):
        Encoder.from_pretrained(tmp_path)
