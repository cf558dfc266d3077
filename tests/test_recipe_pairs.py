"""The recipe of pairs as a user runs it: pictures with captions and a tokenizer in, CLIP and its like out."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from mmssl import MAE, MLM, Encoder
from mmssl.data import EvalView, FolderSource, PairFiles, TrainView, Vocabulary, WindowView
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig
from mmssl.methods import find
from mmssl.modality import image
from mmssl.objectives import (
    CLIP,
    FLIP,
    LiT,
    MAEConfig,
    MLMConfig,
    SigLIP,
    clip_config,
    load,
    siglip_config,
)
from mmssl.objectives.towers import text_config
from mmssl.report.run import write_report
from mmssl.tokenizer import TokenizerConfig
from mmssl.training import read_metrics
from mmssl.transformer import TransformerConfig
from tests.parity import assert_states_equal
from tests.test_data_pairs import WORDS, members
from tests.test_data_shards import write_tar
from tests.test_recipe_video import recipe

SMALL = (
    "--model tiny --size 16 --patch 8 --length 8 --epochs 2 --batch-size 8 --base-lr 1e-2 --at-once 4 --workers 0 "
    "--log-every 1 --save-every 2 --keep-checkpoints 0 --validate-every 4 --max-skipped 0.5 --device cpu "
    "--precision fp32 --tracker none"
)

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Sixteen pairs, one of which has no caption, and a tokenizer."""
    root = tmp_path_factory.mktemp("given")
    files = members(16, text=False)
    files["0003.json"] = b"{}"
    write_tar(root / "pairs" / "a.tar", files)
    save_tokenizer(train_tokenizer([" ".join(WORDS)] * 20, "wordpiece", 70), root / "words")
    return root


@pytest.fixture(scope="module")
def towers(given, tmp_path_factory):
    """An MAE and an MLM of one block each, as runs leave them."""
    root, vocabulary = tmp_path_factory.mktemp("towers"), Vocabulary.read(given / "words")
    torch.manual_seed(1)
    block = TransformerConfig(32, 1, 2)
    encoder = EncoderConfig((TokenizerConfig(image(3, (8, 8)), (16, 16)),), block)
    MAE(MAEConfig(encoder, mae_decoder_config(16, 1, 2))).save_pretrained(root / "mae")
    text = text_config((32, 1, 2), vocab=vocabulary.size, length=12)
    mlm = MLM(MLMConfig(text, mask=vocabulary.masked, special=vocabulary.framing))
    mlm.save_pretrained(root / "mlm")
    vocabulary.save(root / "mlm")
    return root


def line(given, *more):
    return f"--data {given}/pairs --caption-key name --tokenizer {given}/words {SMALL} {' '.join(more)}"


def trained(monkeypatch, capsys, given, out, *more):
    assert recipe(monkeypatch, "image_text_clip", f"{line(given, *more)} --out {out}") == 0, capsys.readouterr().err
    return load(out / "final")


def test_pairs_become_a_clip_also_from_the_middle_on(given, towers, tmp_path, monkeypatch, capsys):
    flags = f"--label kind --init-image {towers}/mae --init-text {towers}/mlm"
    method = trained(monkeypatch, capsys, given, tmp_path / "whole", flags)
    assert type(method) is CLIP and method.config.end == 3
    told = capsys.readouterr().out
    assert "15 to train on, 1 held out" in told and "text_encoder" in told
    following = told.partition("next:")[2]
    assert f"--data {given}/pairs --label kind\n" in following
    assert f"--data {given}/pairs --task retrieval --caption-key name\n" in following
    row = read_metrics(tmp_path / "whole")[-1]
    assert row["seen"] + row["skipped"] == row["step"] * 8 and row["skipped"] >= 1
    assert "accuracy" in row["parts"] and "heldout_loss" in row
    assert "a.tar/0003.png" in (tmp_path / "whole" / "skipped.jsonl").read_text()
    page = (tmp_path / "whole" / "report.html").read_text()
    assert "What differs from the paper" in page and "What it matches" in page and ">Scale<" in page
    shares = {"metric": "top-1 accuracy", "accuracy": 0.5, "top5": None, "chance": 0.1, "largest": 0.2}
    measured = {**shares, "samples": 8, "classes": 10, "templates": 1}
    (tmp_path / "whole" / "zero_shot.json").write_text(json.dumps(measured))
    assert "zero-shot top-1 accuracy: 50.0% of 8 pictures" in write_report(tmp_path / "whole").read_text()
    assert (tmp_path / "whole" / "final" / "tokenizer.json").read_bytes() == (
        given / "words/tokenizer.json"
    ).read_bytes()
    shutil.copytree(tmp_path / "whole" / "step-00000002", tmp_path / "resumed" / "step-00000002")
    trained(monkeypatch, capsys, given, tmp_path / "resumed", flags)
    runs = [tmp_path / name / "final" / "model.safetensors" for name in ("whole", "resumed")]
    assert runs[0].read_bytes() == runs[1].read_bytes()


def test_a_locked_encoder_sees_each_picture_once(given, towers, tmp_path, monkeypatch, capsys):
    out, tower = tmp_path / "run", f"--lock-image {towers}/mae --init-text {towers}/mlm"
    method = trained(monkeypatch, capsys, given, out, tower, "--steps 3")
    told = capsys.readouterr().out
    assert told.count(f"from {towers}/mae: the encoder of pictures") == 1 and f"from {towers}/mlm" in told
    assert type(method) is LiT and (method.config.image_pool, method.config.text_pool) == ("mean", "class")
    encoder = Encoder.from_pretrained(towers / "mae")
    assert_states_equal(method.encoder.state_dict(), encoder.state_dict())
    (place,) = (path for path in (out / "features").iterdir() if path.is_dir())
    features, broken = np.load(place / "features.npy"), json.loads((place / "broken.json").read_text())
    assert set(broken.values()) == {"has no 'name' in its JSON"} and features.shape == (15, 32)
    source = PairFiles(given / "pairs", caption_key="name")
    picture = EvalView(16)([FolderSource.read(source, 0)], None)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(features[:1]), encoder.features(picture))
    changed = (place / "features.npy").stat().st_mtime_ns
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "step-00000003")
    trained(monkeypatch, capsys, given, out, tower, "--steps 3")  # resumed: made of what was kept
    assert [path.stat().st_mtime_ns for path in (out / "features").rglob("*.npy")] == [changed]
    write_tar(tmp_path / "other.tar", members(16, text=False, **{"0003.json": b"{}"}))
    own = line(given, tower, "--steps 1").replace(f"{given}/pairs", f"{tmp_path}/other.tar")
    assert recipe(monkeypatch, "image_text_clip", f"{own} --out {out}") == 2  # other data, and other features
    assert len([path for path in (out / "features").iterdir() if path.is_dir()]) == 2


def test_towers_start_from_an_mae_and_an_mlm_and_flip_and_siglip_train(given, towers, tmp_path, monkeypatch, capsys):
    tower = f"--init-image {towers}/mae --init-text {towers}/mlm --steps 1"
    flip = trained(monkeypatch, capsys, given, tmp_path / "flip", tower, "--keep 0.5", "--base-lr 1e-12")
    assert type(flip) is FLIP and flip.config.keep == 0.5
    parts = {"encoder": towers / "mae", "text_encoder": towers / "mlm"}
    for name, source in parts.items():
        taken, wanted = flip.get_submodule(name).state_dict(), Encoder.from_pretrained(source).state_dict()
        for key, value in wanted.items():
            torch.testing.assert_close(taken[key], value[: len(taken[key])] if "position" in key else value)
    siglip = trained(monkeypatch, capsys, given, tmp_path / "siglip", tower, "--loss siglip --packing on")
    assert type(siglip) is SigLIP and not siglip.config.attend_padding and siglip.config.pad == 0
    tuned = trained(
        monkeypatch, capsys, given, tmp_path / "tuned", tower, f"--keep 1 --init {tmp_path}/flip --base-lr 1e-12"
    )
    assert tuned.config.keep == 1
    for key, value in flip.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[key], value)


@pytest.mark.parametrize(
    ("flags", "kind", "batch", "peak", "decay", "betas", "length", "view"),
    [
        ({}, CLIP, 32768, 5e-4, 0.2, (0.9, 0.98), 77, WindowView(224)),
        ({"model": "large"}, CLIP, 32768, 4e-4, 0.2, (0.9, 0.98), 77, WindowView(224)),
        ({"loss": "siglip"}, SigLIP, 32768, 1e-3, 1e-4, (0.9, 0.95), 64, WindowView(224)),
        ({"keep": 0.5}, FLIP, 65536, 1.024e-3, 0.2, (0.9, 0.95), 32, TrainView(224, scale=(0.5, 1.0), flip=0.5)),
        ({"lock_image": "none"}, LiT, 16384, 1e-3, 1e-4, (0.9, 0.98), 77, None),
    ],
)
def test_what_is_not_given_is_the_papers(flags, kind, batch, peak, decay, betas, length, view):
    chosen = find("clip").config(data=Path(), **flags)
    settings = chosen.training(1, torch.device("cpu"))
    assert chosen.kind is kind
    assert (settings.batch_size, settings.betas, settings.weight_decay) == (batch, betas, decay)
    assert settings.base_lr * batch / 256 == pytest.approx(peak) and settings.epochs == 32
    assert settings.warmup_epochs == pytest.approx(32 * 2000 / 390_625) and settings.keep == 2
    assert chosen.settled().length == length and chosen.views()[0] == view
    if not flags:
        assert chosen.method() == clip_config("base")
    if kind is SigLIP:
        assert chosen.method() == siglip_config("base")


def test_what_cannot_be_is_refused_in_a_sentence(given, towers, tmp_path, monkeypatch, capsys):
    for flags, sentence in (
        ("--loss siglip --keep 0.5", "--loss siglip and --keep each mean a method of its own"),
        (f"--lock-image {towers}/mae --init-image {towers}/mae", "both say where the encoder of pictures starts"),
        (f"--init-image {towers}/mlm", "its encoder reads text, and one of image is needed"),
        (f"--init-text {towers}/mae", "its encoder reads image, and one of text is needed"),
        (f"--init-image {towers}/mae --size 18 --patch 9", "its patches of 8 x 8 do not divide --size 18"),
        ("--size 20", "patch 8 does not divide pictures of 20 pixels"),
        (f"--init-text {towers}/mlm --length 13", "reads texts of at most 12 tokens: give --length 12"),
        ("--caption-key nam", "has no 'nam' but name, kind, many: did you mean 'name'?"),
        ("--image-key path", "is no manifest: --image-key names"),
        ("--max-skipped 0", "a.tar/0003.png has no 'name' in its JSON"),
    ):
        assert recipe(monkeypatch, "image_text_clip", f"{line(given, flags)} --out {tmp_path}/run") == 2, flags
        assert sentence in capsys.readouterr().err
    bare = line(given).replace(f"--tokenizer {given}/words", "")
    assert recipe(monkeypatch, "image_text_clip", f"{bare} --out {tmp_path}/run") == 2
    assert "--tokenizer is missing" in capsys.readouterr().err
    save_tokenizer(train_tokenizer([" ".join([*WORDS, "eleven", "twelve"])] * 20, "wordpiece", 99), tmp_path / "more")
    other = line(given, f"--init-text {towers}/mlm").replace(f"{given}/words", f"{tmp_path}/more")
    assert recipe(monkeypatch, "image_text_clip", f"{other} --out {tmp_path}/run") == 2
    assert "and --tokenizer has" in capsys.readouterr().err
