"""One command and one call: `mmssl train`, `mmssl.train`, `mmssl methods`, and how little `import mmssl` costs."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmssl
from mmssl.__main__ import main
from mmssl.methods import find
from tests.processes import environment

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = {"model": "tiny", "size": 16, "patch": 8, "epochs": 1, "batch_size": 8, "workers": 0, "precision": "fp32"}


@pytest.fixture
def pictures(tmp_path) -> Path:
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(generator.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"pictures/{i}.png")
    return tmp_path / "pictures"


TASKS = ("audio-finetune", "image-finetune", "image-probe", "text-finetune", "video-finetune")


def named(recipe: Path) -> str:
    """A method's name; what is done with a trained model has the media's before it."""
    task = recipe.stem.replace("_", "-")
    return task if task in TASKS else recipe.stem.rpartition("_")[2]


def call(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["mmssl", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code or 0


def test_importing_the_package_leaves_the_compiler_and_the_readers_alone():
    heavy = {"torch._dynamo", "torch._inductor", "tyro", "rich", "PIL", "torchvision", "transformers", "timm"}
    heavy |= {"sklearn", "pyarrow", "decord", "av", "soundfile", "torchaudio", "tensorboard", "triton", "sympy"}
    code = f"import sys, mmssl; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_one_call_trains_and_the_command_goes_on_with_the_same_run(pictures, tmp_path, monkeypatch, capsys):
    run = mmssl.train("mae", data=str(pictures), out=tmp_path / "run", **SMALL)
    assert run.result.steps == 2 and run.encoder.dim == 192 and isinstance(run.objective, mmssl.MAE)
    flags = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert call(monkeypatch, "train", "mae", "--data", pictures, "--out", tmp_path / "run", *flags) == 0
    again = mmssl.train("mae", data=pictures, out=tmp_path / "run", **SMALL)
    assert again.result.resumed_from == again.result.steps == 2


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("mea", {}, "unknown method 'mea': did you mean 'mae'?"),
        (
            "beit",
            {},
            "unknown method 'beit': choose one of audiomae, audio-finetune, image-finetune, mae, image-probe, clip, "
            "m3ae, multimae, text-finetune, mlm, video-finetune, siammae, videomae",
        ),
        ("mae", {"mask_ration": 0.5}, "mae has no setting 'mask_ration': did you mean 'mask_ratio'?"),
        ("videomae", {"model": "tny"}, "model='tny': did you mean 'tiny'?"),
        ("mae", {"epochs": "3"}, "epochs='3' is of another kind than float, which this setting is"),
        ("mae", {"size": True}, "size=True is of another kind than int, which this setting is"),
    ],
)
def test_what_it_does_not_know_gets_one_sentence(method, settings, sentence, tmp_path):
    with pytest.raises(mmssl.UserError) as refused:
        mmssl.train(method, data=tmp_path, **settings)
    assert str(refused.value) == sentence


def test_an_unknown_method_on_the_command_line_gets_one_sentence(monkeypatch, capsys):
    assert call(monkeypatch, "train", "mea", "--data", "x") == 2
    assert capsys.readouterr().err == "mmssl: unknown method 'mea': did you mean 'mae'?\n"


def test_every_recipe_is_listed_with_paper_and_defaults(monkeypatch, capsys):
    assert call(monkeypatch, "methods") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "media", "paper"]
    assert sorted(row.split()[0] for row in rows) == sorted(map(named, RECIPES.glob("*.py")))
    mae = next(row for row in rows if row.startswith("mae"))
    assert "arXiv 2111.06377" in mae and "base, 224 x 224 in 16 x 16, 75% hidden, 800 epochs" in mae
    assert "Hide most patches" in mae


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_every_recipe_file_is_a_method_with_its_flags(path, monkeypatch, capsys):
    name = named(path)
    assert find(name).module.__file__ == str(path)
    assert call(monkeypatch, "train", name, "--help") == 0
    own = {"clip": "--lock-image", "multimae": "--visible"} | dict.fromkeys(TASKS, "--layer-decay")
    assert own.get(name, "--mask-ratio") in capsys.readouterr().out


def test_the_version_is_told(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mmssl", "--version"])
    main()
    assert capsys.readouterr().out == f"mmssl {mmssl.__version__}\n"
