"""What `mmssl evaluate` makes of a model of pairs: zero-shot, retrieval, and its pictures alone."""

import json
import sys

import pytest
import torch

from mmssl import Encoder
from mmssl.cli import main
from mmssl.data import EvalView, FolderSource, PairFiles, Vocabulary, text_batch
from mmssl.data.vocabulary import save_tokenizer, train_tokenizer
from mmssl.evaluation.templates import PHOTO
from mmssl.objectives import CLIP, CLIPConfig
from mmssl.objectives.towers import text_config
from tests.conformance.table import clip_towers, mae
from tests.test_data_pairs import WORDS, members, unpacked
from tests.test_data_shards import write_tar

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Sixteen pairs of two kinds in a tar, one without a caption, and a model with its tokenizer."""
    folder = tmp_path_factory.mktemp("pairs")
    files = members(16, text=False)
    files["0003.json"] = json.dumps({"kind": "b"}).encode()
    write_tar(folder / "pairs.tar", files)
    save_tokenizer(train_tokenizer([" ".join(WORDS) + PHOTO] * 20, "wordpiece", 90), folder / "clip")
    words = Vocabulary.read(folder / "clip")
    text = text_config((24, 1, 4), vocab=words.size, length=12, causal=True)
    torch.manual_seed(0)
    CLIP(CLIPConfig(clip_towers()[0], text, 16, end=words.sep)).save_pretrained(folder / "clip")
    return folder


def told(monkeypatch, capsys, code, *arguments):
    """What a call prints, of mistakes the sentence."""
    line = ["mmssl", "evaluate", *map(str, arguments), "--workers", "0", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code in ((0, None) if code == 0 else (code,)), err
    return err if code else out


def pictures_of(model, source, which):
    view = EvalView(16, resize=16)
    with torch.no_grad():
        return model.encode_image(view([FolderSource.read(source, index) for index in which], None))


def texts_of(model, folder, texts):
    with torch.no_grad():
        return model.encode_text(text_batch(texts, Vocabulary.read(folder), 12))


def test_zero_shot_takes_the_classes_of_a_label(root, tmp_path, monkeypatch, capsys):
    given = ("--model", root / "clip", "--data", root / "pairs.tar", "--label", "kind", "--task", "zero-shot")
    out = told(monkeypatch, capsys, 0, *given, "--out", tmp_path)
    found = json.loads((tmp_path / "zero_shot.json").read_text())
    model, source = CLIP.from_pretrained(root / "clip").eval(), PairFiles(root / "pairs.tar", caption_key="name")
    vectors = texts_of(model, root / "clip", ["a photo of a a.", "a photo of a b."])
    nearest = (pictures_of(model, source, range(16)) @ vectors.T).argmax(dim=1)
    assert found["accuracy"] == (nearest == torch.arange(16) % 2).float().mean().item()
    assert (found["samples"], found["classes"], found["templates"], found["chance"]) == (16, 2, 1, 0.5)
    assert "of 16 pictures, 2 classes by name in 1 template" in out and "the largest class alone 50.0%" in out
    assert "in 81 templates" in told(monkeypatch, capsys, 0, *given, "--template", "imagenet", "{}")


def test_retrieval_takes_every_caption_and_leaves_out_what_has_none(root, tmp_path, monkeypatch, capsys):
    given = ("--model", root / "clip", "--task", "retrieval", "--out", tmp_path, "--data")
    out = told(monkeypatch, capsys, 0, *given, root / "pairs.tar", "--caption-key", "many")
    assert "pairs.tar has no test part: all of it is asked, and where the model was trained on it that is no" in out
    given_apart = (*given, root / "pairs.tar", "--test", root / "pairs.tar", "--caption-key", "many")
    assert "no test part" not in told(monkeypatch, capsys, 0, *given_apart)
    assert "skipped pairs.tar/0003.png: has no 'many' in its JSON" in out
    assert "text to picture: R@1" in out and "45 asked for among 15" in out and "15 asked for among 45" in out
    found = json.loads((tmp_path / "retrieval.json").read_text())
    assert found["picture to text"]["chance"]["10"] == pytest.approx(1 - 35 * 34 * 33 / (45 * 44 * 43))
    # Rows of one picture are captions of one picture.
    unpacked(tmp_path / "rows", {name: data for name, data in members(6).items() if name.endswith("png")})
    rows = [f"{number:04}.png\t{WORDS[(number + more) % 10]}" for more in (0, 3) for number in range(6)]
    (tmp_path / "rows" / "pairs.tsv").write_text("filepath\ttitle\n" + "\n".join(rows))
    told(monkeypatch, capsys, 0, *given, tmp_path / "rows" / "pairs.tsv")
    found = json.loads((tmp_path / "retrieval.json").read_text())
    model, source = CLIP.from_pretrained(root / "clip").eval(), PairFiles(tmp_path / "rows" / "pairs.tsv")
    texts = texts_of(model, root / "clip", [WORDS[(number + more) % 10] for number in range(6) for more in (0, 3)])
    nearest = (pictures_of(model, source, range(6)) @ texts.T).argmax(dim=1)
    assert found["picture to text"]["recalls"]["1"] == (nearest // 2 == torch.arange(6)).double().mean().item()


def test_zero_shot_reads_manifests_of_pairs(root, tmp_path, monkeypatch, capsys):
    unpacked(tmp_path, {name: data for name, data in members(4).items() if name.endswith("png")})
    rows = [f"{number:04}.png\t{WORDS[number]}\t{'ab'[number % 2]}" for number in range(4)]
    (tmp_path / "pairs.tsv").write_text("filepath\ttitle\tkind\n" + "\n".join(rows))
    given = ("--model", root / "clip", "--data", tmp_path / "pairs.tsv", "--label", "kind", "--task", "zero-shot")
    assert "of 4 pictures, 2 classes by name" in told(monkeypatch, capsys, 0, *given)


def test_the_encoder_of_pictures_is_probed_as_any_other(root, monkeypatch, capsys):
    given = ("--model", root / "clip", "--data", root / "pairs.tar", "--label", "kind", "--baselines", "off")
    assert "| clip |" in told(monkeypatch, capsys, 0, *given)


def test_what_cannot_be_measured_is_said_in_a_sentence(root, tmp_path, monkeypatch, capsys):
    Encoder(clip_towers()[0]).save_pretrained(tmp_path / "encoder")
    mae().save_pretrained(tmp_path / "mae")
    CLIP.from_pretrained(root / "clip").save_pretrained(tmp_path / "alone")
    write_tar(tmp_path / "bare.tar", {name: data for name, data in members(4).items() if name.endswith("png")})
    clip, tar = root / "clip", root / "pairs.tar"
    for model, data, more, sentence in (
        (tmp_path / "encoder", tar, (), "holds an encoder alone, and none of texts"),
        (tmp_path / "mae", tar, (), "holds MAE, which compares no texts with pictures"),
        (tmp_path / "alone", tar, (), "needs its tokenizer: give --tokenizer"),
        (clip, tmp_path / "bare.tar", (), "has pictures but no caption"),
        (clip, tmp_path / "bare.tar", ("--task", "zero-shot"), "needs class folders, or a class by --label"),
        (clip, tar, ("--task", "zero-shot", "--label", "kind", "--template", "a {name}"), "needs one field, {}"),
    ):
        task = () if "--task" in more else ("--task", "retrieval")
        assert sentence in told(monkeypatch, capsys, 2, "--model", model, "--data", data, *task, *more)
