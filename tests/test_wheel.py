"""The wheel, installed where only the base dependencies are: the methods run, and commands name what is missing."""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
BASE = ["torch", "triton", "numpy", "safetensors", "jaxtyping"]
PYTHON_ALONE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
STEP = """
import torch
from mmssl import MAE, MAEConfig
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import vit_config
from mmssl.modality import image

encoder = vit_config("tiny", modality=image(3, (8, 8)), input_size=(16, 16))
mae = MAE(MAEConfig(encoder, mae_decoder_config(32, 1, 2)))
mae({"image": torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)}).loss.backward()
print(sum(float(p.grad.abs().sum()) for p in mae.parameters() if p.requires_grad) > 0)
"""
CALL = "import mmssl\ntry: mmssl.train('mae', data='x')\nexcept mmssl.UserError as error: print(error)"


def closure(names: list[str]) -> set[str]:
    """These distributions and all that they require here."""
    found: set[str] = set()
    while names:
        name = names.pop()
        if name in found:
            continue
        found.add(name)
        needs = map(Requirement, distribution(name).requires or [])
        names += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of programs of an environment with the wheel and the base dependencies, linked from this one."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("mmssl", "kernels", "recipes"):
        shutil.copytree(ROOT / part, folder / "source" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quiet = {"check": True, "env": PYTHON_ALONE, "cwd": folder}
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "./source"], **quiet)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], **quiet)
    program = folder / "env" / "bin"
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([*pip, "--python", program / "python", "install", "-q", "--no-deps", wheel], **quiet)
    (there,) = (folder / "env" / "lib").glob("python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    files = [file for name in closure(list(BASE)) for file in distribution(name).files or []]
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        if not top.endswith(".pth"):
            (there / top).symlink_to(here / top)
    return program


def outcome(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    call = [program, *arguments]
    return subprocess.run(call, capture_output=True, text=True, env=PYTHON_ALONE, cwd=program.parents[2], timeout=120)


def test_a_step_of_mae_needs_the_base_dependencies_alone(installed):
    done = outcome(installed / "python", "-c", STEP)
    assert done.stdout == "True\n", done.stderr


def test_what_is_missing_is_named_with_its_extra(installed):
    sentence = "tyro is not installed: pip install 'mmssl[cli,media]'\n"
    done = outcome(installed / "mmssl", "train", "mae", "--data", "x")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mmssl: {sentence}")
    assert outcome(installed / "python", "-c", CALL).stdout == sentence
    assert outcome(installed / "mmssl", "--version").stdout.startswith("mmssl 0.")


def test_the_wheel_holds_recipes_and_the_licence(installed):
    (package,) = installed.parent.glob("lib/python*/site-packages")
    recipes = {path.name for path in (package / "mmssl" / "recipes").glob("*.py")}
    assert recipes == {path.name for path in (ROOT / "recipes").glob("*.py")}
    assert list(package.glob("mmssl-*.dist-info/licenses/LICENSE")) and (package / "mmssl" / "py.typed").is_file()
