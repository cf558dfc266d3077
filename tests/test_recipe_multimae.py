"""MultiMAE's recipe as a user runs it: folders of aligned rasters in, an encoder and a report out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mmssl.methods import find
from mmssl.modality import DEPTH, IMAGE, SEMSEG
from mmssl.objectives import MultiMAE, MultiMAEConfig, load
from mmssl.training import read_metrics
from tests.test_data_aligned import PAIRS, RAMP, SIZE, palette, written
from tests.test_recipe_video import command, recipe

SMALL = (
    f"--model tiny --size {SIZE} --decoder-dim 32 --decoder-depth 1 --steps 2 --warmup-steps 0 --batch-size 4 "
    "--base-lr 1e-2 --workers 0 --log-every 1 --save-every 1 --validate-every 2 --keep 0 --max-skipped 0.5 --device "
    "cpu --precision fp32 --tracker none"
)
THREE = f"--modalities {' '.join(PAIRS)}"
OTHERS = """
[[modality]]
name = "infrared"
folder = "thermal"
patch = 8
mean = 280.0
std = 15.0
[[modality]]
name = "cover"
kind = "labels"
channels = 9
patch = 4
stride = 2
embedding = 8
[[modality]]
name = "bands"
channels = 7
patch = 8
mean = [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
std = 0.2
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    """Ten samples of colours, depth and labels, of which two lack one and one is of two sizes."""
    root = tmp_path_factory.mktemp("three")
    for number in range(10):
        written(root, f"{number}", {2: ("depth",), 3: ("labels",)}.get(number, ()), depth=5 + number * RAMP)
    np.save(root / "depth" / "7.npy", RAMP[:16])
    return root


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Path:
    """Six samples of infrared values with gaps, classes and seven bands, declared in a file beside them."""
    root, noise = tmp_path_factory.mktemp("others"), np.random.default_rng(0)
    for name in ("thermal", "cover", "bands"):
        (root / name).mkdir()
    for number in range(6):
        infrared = 280 + 15 * noise.normal(size=(SIZE, SIZE)).astype(np.float32)
        infrared[: 4 * number] = np.nan
        np.save(root / "thermal" / f"{number}.npy", infrared)
        np.save(root / "bands" / f"{number}.npy", noise.random((7, SIZE, SIZE), np.float32))
        palette(noise.integers(0, 9, (SIZE, SIZE), np.uint8)).save(root / "cover" / f"{number}.png")
    (root / "modalities.toml").write_text(OTHERS)
    return root


def trained(monkeypatch, capsys, line, out) -> MultiMAE:
    assert recipe(monkeypatch, "multimodal_multimae", f"{line} --out {out} {SMALL}") == 0, capsys.readouterr().err
    method = load(out / "final")
    assert isinstance(method, MultiMAE)
    return method


def test_pictures_depth_and_labels_become_a_multimae_also_from_the_middle_on(three, tmp_path, monkeypatch, capsys):
    line, whole = f"--data {three} {THREE}", tmp_path / "whole"
    method = trained(monkeypatch, capsys, line, whole)
    assert list(method.encoder.tokenizers) == ["image", "depth", "semseg"]
    told = capsys.readouterr().out
    assert "samples lack depth" in told and "times a sample that cannot be read" in told
    (asked,) = [each for each in told.splitlines() if "--task dense" in each]
    command(monkeypatch, f"{asked.strip().removeprefix('mmssl ')} --workers 0 --device cpu")
    assert "linear probe of semseg" in capsys.readouterr().out
    row = read_metrics(whole)[-1]
    assert set(row["parts"]) == {"rgb", "depth", "semseg", "norm_rgb"}
    assert row["seen"] + row["skipped"] == row["step"] * 4
    assert "different sizes, image of 32 x 32, depth of 16 x 32" in (whole / "skipped.jsonl").read_text()
    page = (whole / "report.html").read_text()
    assert ">Norm rgb<" in page and ">Depth<" in page and ">Semseg<" in page
    command(monkeypatch, f"export --model {whole} --to timm --out {tmp_path / 'timm'}")
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "timm" / "model.safetensors")
    shutil.copytree(whole / "step-00000001", tmp_path / "resumed" / "step-00000001")
    trained(monkeypatch, capsys, line, tmp_path / "resumed")
    runs = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "resumed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_any_other_rasters_train_by_a_file_beside_them(others, tmp_path, monkeypatch, capsys):
    flags = "--alpha 0.5 --subsets --visible 9"
    method = trained(monkeypatch, capsys, f"--data {others} {flags}", tmp_path / "run")
    assert list(method.tasks) == ["infrared", "cover", "bands"]
    assert (method.config.visible, method.config.alpha, method.config.subsets) == (9, 0.5, True)
    assert [each.modality.patch for each in method.config.encoder.tokenizers] == [(8, 8), (4, 4), (8, 8)]
    assert all(np.isfinite(list(row["parts"].values())).all() for row in read_metrics(tmp_path / "run"))


def test_what_is_not_given_is_the_papers():
    chosen = find("multimae").config(data=Path(), modalities=("image=rgb", "depth=depth", "semseg=semseg"))
    settings = chosen.training(1, torch.device("cpu"))
    assert chosen.method() == MultiMAEConfig() and chosen.method().visible == 98
    assert [each.modality for each in chosen.rasters()] == [IMAGE, DEPTH, SEMSEG]
    assert (settings.batch_size, settings.epochs, settings.warmup_epochs) == (2048, 1600, 40)
    assert (settings.base_lr, settings.weight_decay, settings.betas) == (1e-4, 0.05, (0.9, 0.95))


BROKEN = {
    "sizes": lambda root: written(root, "1", depth=RAMP[:16]),
    "missing": lambda root: shutil.rmtree(root / "depth"),
    "class": lambda root: written(root, "1", ids=np.full((SIZE, SIZE), 200, np.uint8)),
    "gaps": lambda root: written(root, "1", depth=np.full_like(RAMP, np.nan)),
    "field": lambda root: (root / "modalities.toml").write_text(OTHERS.replace("patch", "pach")),
    "whole": lambda root: written(root, "2"),
}


@pytest.mark.parametrize(
    ("what", "flags", "sentence"),
    [
        ("sizes", THREE, "has rasters of different sizes, image of 32 x 32, depth of 16 x 32, semseg of 32"),
        ("missing", THREE, "has depth (depth): {root}/depth holds none; add its files, or leave it out"),
        ("class", THREE, "labels/1.png has the label 200, and semseg has 133 classes, 0 to 132 (255 is none); mend it"),
        ("gaps", THREE, "depth/1.npy has no pixel that is there, all are NaN; remove the file, and the sample goes"),
        (
            "field",
            "",
            "{root}/modalities.toml: the modality 'infrared' has an unknown field 'pach': did you mean 'patch'",
        ),
        (
            "whole",
            f"{THREE} --visible 12",
            "a budget of 12 visible tokens hides nothing, as there are 12 (4 of image, 4",
        ),
        ("whole", f"{THREE} --visible 0", "a budget of 0 visible tokens hides everything, as there are 12 (4 of image"),
        ("whole", "--modalities image=rgb dept=depth", "'dept'"),
        ("whole", "", "give name=folder for each, or write a modalities.toml"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(what, flags, sentence, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data"
    written(root, "1")
    BROKEN[what](root)
    line = f"--data {root} --out {tmp_path}/run {flags} {SMALL}"
    assert recipe(monkeypatch, "multimodal_multimae", line) == 2
    told = capsys.readouterr().err
    assert sentence.format(root=root) in told
    assert told.strip().count("\n") == 0
