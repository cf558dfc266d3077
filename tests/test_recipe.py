"""The recipe as a user runs it: a folder in, an encoder and a report out; bad input gets one sentence."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.run
from PIL import Image
from safetensors.torch import load_file

import mmssl.cli
from mmssl import MAE, Encoder, train
from mmssl.errors import UserError, run
from tests.processes import ROOT, Script, printed

RECIPE = ROOT / "recipes" / "image_mae.py"
SMALL = ["--model", "tiny", "--size", "16", "--patch", "8", "--batch-size", "8", "--precision", "fp32"]
SMALL += ["--workers", "0", "--log-every", "1"]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """Two classes of small pictures, in several formats, one folder deeper here and there."""
    root, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        for i in range(16):
            values = generator.integers(0, 80, (4, 5, 3), dtype=np.uint8)
            values[..., channel] += 150
            folder = root / label / ("deep" if i % 3 == 0 else ".")
            folder.mkdir(parents=True, exist_ok=True)
            size = tuple(generator.integers(18, 40, 2).tolist())
            Image.fromarray(values).resize(size).save(folder / f"{i}.{('jpg', 'png', 'webp', 'tiff')[i % 4]}")
    return root


def recipe(*arguments: object) -> subprocess.CompletedProcess[str]:
    return Script(RECIPE, *arguments).finish()


@pytest.fixture
def one_thread():
    """As the recipes' processes have: sums over threads round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(monkeypatch, capsys, one_thread):
    """The recipe or, by its first word, a command of `mmssl`, in this process, which has all its imports."""
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setenv("COLUMNS", "120")
    import image_mae

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        words = list(map(str, arguments))
        monkeypatch.setattr(sys, "argv", ["mmssl", *words])
        capsys.readouterr()
        try:
            code = run(image_mae.main if words[0].startswith("-") else mmssl.cli.main)
        except SystemExit as stopped:
            code = stopped.code
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return call


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def finished(pictures, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    done = recipe("--data", pictures, "--out", run, "--epochs", 2, "--validate-every", 2, "--norm-pix", *SMALL)
    assert done.returncode == 0, done.stderr
    return run


def test_a_folder_becomes_an_encoder_and_a_report(finished):
    encoder = Encoder.from_pretrained(finished / "final")
    assert encoder.features({"image": torch.zeros(1, 3, 16, 16, dtype=torch.uint8)}).shape == (1, 192)
    page = (finished / "report.html").read_text()
    assert "- media: " in (finished / "final" / "README.md").read_text()
    assert "data:image/png;base64" in page and "http" not in page.replace("http://www.w3.org", "")
    names = {"reconstructions", "features", "attention", "heads"}
    assert {path.stem for path in (finished / "pictures").iterdir()} == names
    assert re.search(r"MAE on \d+ samples of .*pictures\d*\. It trained for 8 steps \(2.* epochs", page)
    assert "Not measured yet" in page and "mmssl evaluate --model" in page
    order = ["What its features are worth", "What it predicts", "What its features say", "How it learned", "Settings"]
    assert [page.index(f"<h2>{heading}") for heading in order] == sorted(page.index(f"<h2>{each}") for each in order)
    before_the_fold = page[page.index("<h2>Settings") : page.index("All settings")]
    assert "batch_size" in before_the_fold and "clip_norm" not in before_the_fold
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "heldout_loss", "lr", "grad_norm", "samples_per_second", "effective_rank"} <= rows[-1].keys()
    assert any((finished / "tensorboard").iterdir())


def test_the_defaults_are_the_papers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from image_mae import ImageMAE

    config = ImageMAE(data=Path("pictures"))
    method, settings = config.method(), config.training(1, torch.device("cpu"))
    assert (settings.batch_size, settings.base_lr, settings.betas) == (4096, 1.5e-4, (0.9, 0.95))
    assert (settings.epochs, settings.warmup_epochs, settings.weight_decay) == (800, 40, 0.05)
    assert (settings.min_lr, settings.clip_norm) == (0.0, None)
    assert (method.mask_ratio, method.norm_pix, config.crop_scale) == (0.75, False, (0.2, 1.0))
    decoder, encoder = method.decoder.transformer, method.encoder.transformer
    assert (decoder.dim, decoder.depth, decoder.heads, encoder.dim) == (512, 8, 16, 768)
    assert ImageMAE(data=Path("pictures"), model="huge").method().encoder.tokenizers[0].modality.patch == (14, 14)


def test_every_setting_of_the_loop_is_a_flag_with_a_help_text(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    from dataclasses import fields

    import image_mae

    from mmssl.training import TrainSettings

    flags = {field.name for field in fields(image_mae.ImageMAE)}
    # how many chunks a batch is split into follows from --at-once
    assert {field.name for field in fields(TrainSettings)} - flags == {"accumulate"}
    told = image_mae.ImageMAE(
        data=Path("pictures"),
        steps=200,
        betas=(0.8, 0.99),
        min_lr=1e-6,
        clip_norm=1.0,
        ema=0.99,
        optimizer="lars",
        weight_decay_end=0.4,
        keep=5,
        tracker="none",
    ).training(1, torch.device("cpu"))
    assert (told.epochs, told.steps, told.warmup_steps, told.betas) == (None, 200, 10, (0.8, 0.99))
    assert (told.min_lr, told.clip_norm, told.ema, told.keep, told.tracker) == (1e-6, 1.0, 0.99, 5, "none")
    assert (told.optimizer, told.weight_decay, told.weight_decay_end) == ("lars", 0.05, 0.4)


@pytest.mark.parametrize("name", ["image_mae", "video_siammae", "video_videomae"])
def test_every_flag_has_a_help_text(monkeypatch, capsys, name):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        __import__(name).main()
    told = " ".join(line.strip("│ ") for line in capsys.readouterr().out.splitlines())
    assert len(set(re.findall("--[a-z-]+", told))) > 30
    assert not re.findall(r"(--[a-z-]+) +(?:[A-Z{][^ ]* +){0,2}\((?:default|required)", told)


def test_the_commands_use_what_the_recipe_made(finished, pictures, tmp_path, here):
    model = ["--model", finished / "final", "--data", pictures, "--workers", 0]
    for name in ("features.parquet", "features.npz"):
        done = here("embed", *model, "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    arrays = np.load(tmp_path / "features.npz")
    assert arrays["features"].shape == (32, 192)
    assert set(arrays["labels"]) == {"red", "blue"}
    from pyarrow import parquet

    table = parquet.read_table(tmp_path / "features.parquet").to_pydict()
    assert np.allclose(np.array(table["feature"]), arrays["features"])
    assert table["name"] == arrays["names"].tolist()
    done = here("evaluate", *model, "--out", tmp_path / "evaluation")
    assert done.returncode == 0, done.stderr
    assert "| top-1 accuracy, % |" in done.stdout
    assert "chance: 50.0 %, the largest class alone 50.0 %; kNN: k = 20" in done.stdout
    rows = json.loads((tmp_path / "evaluation" / "accuracies.json").read_text())
    assert list(dict.fromkeys(row["representation"] for row in rows)) == [
        "final",
        "random initialisation",
        "raw pixels",
    ]
    before = (finished / "report.html").read_bytes()
    assert here("report", finished).returncode == 0
    assert (finished / "report.html").read_bytes() == before


def test_a_run_folder_stands_for_its_model_also_while_it_trains(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import image_mae

    from mmssl.commands.embed import embed
    from mmssl.commands.export import export
    from mmssl.commands.reading import Reading
    from mmssl.data import Loader
    from mmssl.report.run import write_report
    from mmssl.training.run_folder import model_in

    out, met = tmp_path / "run", []

    def watched(self, *steps):
        for step, batch in enumerate(batches(self, *steps)):
            if step in (1, 4):
                try:
                    met.append((model_in(out).name, write_report(out).name))
                except UserError as error:
                    met.append(str(error))
            if step == 4:
                embed(out, pictures, tmp_path / "early.npz", Reading(workers=0))
                export(out, tmp_path / "early", "vit")
                early.update(load_file(out / "step-00000004" / "ema.safetensors"))
            yield batch

    early, batches = {}, Loader.batches
    monkeypatch.setattr(Loader, "batches", watched)
    flags = ["--data", pictures, "--out", out, "--epochs", 2, "--save-every", 2, "--ema", 0.5, *SMALL]
    monkeypatch.setattr(sys, "argv", ["image_mae.py", *map(str, flags)])
    assert run(image_mae.main) == 0, capsys.readouterr().err
    assert "its first checkpoint is not written yet" in met[0]
    assert met[1] == ("step-00000004", "report.html")
    # the averaged weights, as `final` holds them
    shown = Encoder.from_pretrained(tmp_path / "early").state_dict()
    for name, value in shown.items():
        assert torch.equal(value, early.get(f"encoder.{name}", value))
    assert np.load(tmp_path / "early.npz")["features"].shape == (32, 192)
    assert model_in(out) == out / "final"
    final = load_file(out / "final" / "model.safetensors")
    last = sorted(out.glob("step-*"))[-1]
    assert all(torch.equal(final[name], value) for name, value in load_file(last / "ema.safetensors").items())


@pytest.mark.usefixtures("one_thread")
def test_settings_json_repeats_a_run(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import image_mae
    import video_videomae

    def repeat(module, *flags: object) -> int:
        monkeypatch.setattr(sys, "argv", ["recipe.py", "--config", *map(str, flags)])
        return run(module.main)

    assert repeat(image_mae, finished / "settings.json", "--out", tmp_path / "again") == 0, capsys.readouterr().err
    assert losses(tmp_path / "again") == losses(finished)
    assert repeat(image_mae, tmp_path / "again" / "settings.json", "--out", tmp_path / "more", "--epochs", 1) == 0
    assert len(losses(tmp_path / "more")) < len(losses(finished))
    settings = json.loads((tmp_path / "more" / "settings.json").read_text())
    assert (settings["method.norm_pix"], settings["epochs"], settings["recipe.size"]) == (True, 1.0, 16)
    assert "recipe." not in (finished / "report.html").read_text()
    data = settings["recipe.data"]
    given_up = {"recipe.a_flag_of_before": None}  # never given, so that the run is repeated without it
    (tmp_path / "before.json").write_text(json.dumps(json.loads((finished / "settings.json").read_text()) | given_up))
    called = train("mae", data=data, config=tmp_path / "before.json", out=tmp_path / "called", epochs=1)
    assert losses(called.folder) == losses(tmp_path / "more")
    assert repeat(video_videomae, finished / "settings.json") == 2
    assert "VideoVideoMAE has no setting 'background': it is the run of another recipe" in capsys.readouterr().err
    (tmp_path / "old.json").write_text('{"epochs": 2.0}')
    assert repeat(image_mae, tmp_path / "old.json") == 2
    assert "does not say by which flags" in capsys.readouterr().err
    assert repeat(image_mae, tmp_path / "none.json") == 2
    assert "none.json: cannot be read as a run's settings.json" in capsys.readouterr().err


def test_exports_are_read_by_the_other_libraries(finished, tmp_path, here):
    import transformers

    for kind, cls in (("vit_mae", transformers.ViTMAEForPreTraining), ("vit", transformers.ViTModel)):
        done = here("export", "--model", finished / "final", "--out", tmp_path / kind, "--to", kind)
        assert done.returncode == 0, done.stderr
        assert cls.from_pretrained(tmp_path / kind).config.hidden_size == 192
    assert here("export", "--model", finished / "final", "--out", tmp_path / "timm", "--to", "timm").returncode == 0
    assert "blocks.0.attn.qkv.weight" in load_file(tmp_path / "timm" / "model.safetensors")


def test_two_processes_give_the_losses_of_one(pictures, tmp_path):
    """Global batches and masks are identical; sums over ranks differ in float32's last digits."""
    arguments = ["--data", str(pictures), "--epochs", "2", "--device", "cpu", *SMALL]
    alone = recipe(*arguments, "--out", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    launcher = Path(torch.distributed.run.__file__)
    printed(launcher, "--standalone", "--nproc-per-node", 2, RECIPE, *arguments, "--out", tmp_path / "two")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def test_killed_and_resumed_is_the_uninterrupted_run(pictures, tmp_path):
    arguments = ["--data", str(pictures), "--epochs", "3", "--save-every", "2", "--drop-path", "0.2", *SMALL]
    assert recipe(*arguments, "--out", tmp_path / "whole").returncode == 0
    for saved in (2, 6):
        killed = Script(RECIPE, *arguments, "--out", tmp_path / "killed")
        while killed.process.is_alive() and not (tmp_path / "killed" / f"step-{saved:08d}").is_dir():
            time.sleep(0.01)
        killed.process.kill()
        assert killed.finish().returncode == -signal.SIGKILL
    # another number of workers changes nothing
    last = recipe(*arguments[:-4], "--workers", 1, "--log-every", 1, "--out", tmp_path / "killed")
    assert last.returncode == 0, last.stderr
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    states = [load_file(tmp_path / run / "final" / "model.safetensors") for run in ("whole", "killed")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_sigterm_saves_and_exits_with_75(pictures, tmp_path):
    arguments = ["--data", str(pictures), "--epochs", "200", "--save-every", "1000", *SMALL, "--out", str(tmp_path)]
    script = Script(RECIPE, *arguments)
    while script.process.is_alive() and not (tmp_path / "metrics.jsonl").is_file():
        time.sleep(0.01)
    script.process.terminate()
    done = script.finish()
    assert done.returncode == 75, done.stderr
    assert list(tmp_path.glob("step-*"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--mask-ratio", "1.0"], "keeping 0 of 4 patches hides everything"),
        (["--mask-ratio", "0"], "keeping 4 of 4 patches hides nothing"),
        (["--patch", "7"], "patch 7 does not divide pictures of 16 pixels"),
        (["--batch-size", "0"], "choose a positive multiple"),
        (["--epochs", "-1"], "epochs=-1.0 must be a number above 0"),
        (["--base-lr", "1e30"], "is not finite"),
        (["--device", "cuda:99"], "no GPU"),
        (["--device", "foo"], "none that torch knows"),
        (["--mask-ratio", "nan"], "hides everything"),
        (["--warmup-epochs", "nan"], "warmup_epochs=nan must be 0 or more"),
        (["--drop-path", "2"], "drop_path 2.0 is a probability"),
        (["--crop-scale", "0.9", "0.2"], "two ascending shares"),
        (["--workers", "-1"], "workers -1"),
        (["--max-skipped", "nan"], "a share in [0, 1]"),
        (["--patch", "0"], "all of them above 0"),
    ],
)
def test_settings_that_cannot_work_get_one_sentence(pictures, tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import image_mae

    fixed = ["--data", pictures, "--out", tmp_path / "run", "--epochs", 2, *SMALL]
    monkeypatch.setattr(sys, "argv", ["image_mae.py", *map(str, fixed), *arguments])
    assert run(image_mae.main) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.count("\n") == 1


def test_changed_settings_are_named_on_resume(finished, pictures, here):
    again = ["--data", pictures, "--out", finished, "--epochs", 2, "--validate-every", 2, *SMALL]
    done = here(*again, "--norm-pix", "--base-lr", 1)
    assert done.returncode == 2
    assert "base_lr: 0.00015 -> 1.0" in done.stderr
    done = here(*again)
    assert done.returncode == 2
    assert "method.norm_pix: true -> false" in done.stderr


def test_another_background_is_noticed_on_resume(finished, pictures, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import image_mae

    again = ["--data", pictures, "--out", finished, "--epochs", 2, "--validate-every", 2, "--norm-pix", *SMALL]
    monkeypatch.setattr(sys, "argv", ["image_mae.py", *map(str, again), "--background", "black"])
    assert run(image_mae.main) == 2
    assert 'sampling: "background=(255, 255, 255)" -> "background=(0, 0, 0)"' in capsys.readouterr().err


def test_a_refused_resume_changes_nothing(finished, pictures, here):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert here("--data", pictures, "--out", finished, *SMALL, "--epochs", 2, "--size", 32).returncode == 2
    assert before == {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}


def test_changed_data_is_noticed_on_resume(pictures, tmp_path, here):
    shutil.copytree(pictures, tmp_path / "data")
    arguments = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--epochs", 1, *SMALL]
    assert here(*arguments).returncode == 0
    next((tmp_path / "data").rglob("*.jpg")).unlink()
    done = here(*arguments)
    assert done.returncode == 2
    assert "media: " in done.stderr


def test_evaluation_matches_classes_by_name(finished, tmp_path, here):
    for part, labels in (("train", "abc"), ("val", "bc")):
        for label in labels:
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for i in range(6):
                shade = np.full((20, 20, 3), 10 * i, dtype=np.uint8)
                shade[..., "abc".index(label)] = 200
                Image.fromarray(shade).save(folder / f"{i}.png")
    done = here("evaluate", "--model", finished / "final", "--data", tmp_path, "--workers", 0, "--baselines", "off")
    assert done.returncode == 0, done.stderr
    accuracies = [float(value) for value in re.findall(r"\| (\d+\.\d) ", done.stdout)]
    assert min(accuracies) > 90


def test_unknown_flags_get_the_nearest_spelling(pictures, here):
    done = here("--data", pictures, "--mask-ration", "0.5")
    assert done.returncode == 2
    assert "--mask-ratio" in done.stdout + done.stderr


def test_missing_empty_and_unreadable_folders_are_named(tmp_path, here):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.jpg").write_text("not a picture")
    for name in ("missing", "empty", "text"):
        done = here("--data", tmp_path / name, "--out", tmp_path / "run", *SMALL)
        assert done.returncode == 2, name
        assert str(tmp_path / name) in done.stderr
        assert "Traceback" not in done.stderr


def test_broken_files_are_skipped_counted_and_listed(pictures, tmp_path, here):
    mixed = tmp_path / "mixed"
    for i, path in enumerate(sorted(path for path in pictures.rglob("*") if path.is_file())):
        (mixed / path.parent.name).mkdir(parents=True, exist_ok=True)
        (mixed / path.parent.name / f"{i}{path.suffix}").write_bytes(path.read_bytes())
    (mixed / "broken").mkdir()
    for i in range(2):
        (mixed / "broken" / f"{i}.png").write_bytes(b"")
    arguments = ["--data", mixed, "--epochs", 1, *SMALL]
    refused = here(*arguments, "--out", tmp_path / "strict")
    assert refused.returncode == 2
    assert "files cannot be read, and --max-skipped 0.001 allows 1: broken/" in refused.stderr
    done = here(*arguments, "--max-skipped", 0.5, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["skipped"] > 0
    assert rows[-1]["seen"] + rows[-1]["skipped"] == 8 * rows[-1]["step"]
    assert "broken/" in (tmp_path / "run" / "skipped.jsonl").read_text()


def test_pictures_of_many_channels_train(tmp_path, here):
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.random.default_rng(i).random((20, 20, 5), dtype=np.float32))
    done = here("--data", tmp_path, "--channels", 5, "--epochs", 1, "--out", tmp_path / "run", *SMALL)
    assert done.returncode == 0, done.stderr
    assert MAE.from_pretrained(tmp_path / "run" / "final").modality.channels == 5
