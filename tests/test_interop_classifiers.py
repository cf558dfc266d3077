"""Fine-tuned models go to other libraries with their heads, and come back: logits, the classes' names, statistics."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import Tensor

from mmssl import Encoder, UserError
from mmssl.commands.export import export
from mmssl.encoder import EncoderConfig
from mmssl.interop import to_theirs, videomae, vit
from mmssl.modality import AUDIO, VIDEO, Modality, image
from mmssl.tokenizer import TokenizerConfig
from mmssl.transformer import TransformerConfig
from tests.parity import normalised, randomize, relative

LABELS = ("ankle boot", "bag", "coat", "dress", "shirt")
# Statistics of no known data set, so that none is found by chance.
COLOURS = dataclasses.replace(image(3, (8, 8)), mean=(0.2, 0.3, 0.4), std=(0.3, 0.2, 0.1))
# What the head sees, whether all tokens are normalised, and whether their mean is.
CLASS, CLASS_POOLED, MEAN_POOLED, MEAN = (
    {"pool": pool, "final_norm": final, "pool_norm": pooled}
    for pool, final, pooled in (
        ("class", True, False),
        ("class", False, True),
        ("mean", False, True),
        ("mean", True, False),
    )
)


def classifier(
    head: dict,
    modality: Modality = COLOURS,
    size: tuple[int, ...] = (16, 16),
    labels: tuple[str, ...] = LABELS,
    pool_norm_eps: float | None = None,
    **blocks,
) -> Encoder:
    clips = modality.name == "video"
    tokenizer = TokenizerConfig(modality, size, "sincos_interleaved" if clips else "sincos")
    transformer = TransformerConfig(32, 2, 2, final_norm=head["final_norm"], **blocks)
    rest = {"pool": head["pool"], "pool_norm": head["pool_norm"], "classes": 5, "labels": labels}
    config = EncoderConfig((tokenizer,), transformer, 0 if clips else 1, pool_norm_eps=pool_norm_eps, **rest)
    return randomize(Encoder(config)).eval()


def assert_same(again: Encoder, ours: Encoder, media: Tensor) -> None:
    assert relative(again.classify(media), ours.classify(media)) < 1e-5
    assert again.config.labels == ours.config.labels
    assert (again.config.pool or "mean") == ours.config.pool
    modalities = [each.config.tokenizers[0].modality for each in (again, ours)]
    assert modalities[0] == modalities[1]


@pytest.mark.parametrize(
    ("head", "size", "kind"),
    [
        (CLASS, (16, 24), "ViTForImageClassification"),
        (CLASS_POOLED, (16, 16), "ViTForImageClassification"),
        (MEAN_POOLED, (16, 16), "BeitForImageClassification"),
    ],
)
def test_transformers_classifies_pictures_as_we_do(head, size, kind, tmp_path):
    ours, pixels = classifier(head, size=size), torch.rand(2, 3, *size)
    folder = ours.to_transformers(tmp_path)
    theirs, told = transformers.AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert type(theirs).__name__ == kind and not told["missing_keys"] and not told["unexpected_keys"]
    assert relative(theirs.eval()(normalised(ours, pixels)).logits, ours.classify(pixels)) < 1e-5
    assert tuple(theirs.config.id2label.values()) == LABELS and theirs.config.label2id["coat"] == 2
    assert_same(Encoder.from_pretrained(folder), ours, pixels)
    theirs.save_pretrained(tmp_path / "theirs")  # under the names of this version of transformers
    again = Encoder.from_pretrained(tmp_path / "theirs")
    assert relative(again.classify(pixels), theirs(normalised(again, pixels)).logits) < 1e-5


def test_the_pipeline_of_transformers_names_what_it_sees(tmp_path):
    ours = classifier(MEAN_POOLED)
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "beit", "beit")
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    found = transformers.pipeline("image-classification", str(tmp_path / "beit"))(picture)
    pixels = transformers.AutoImageProcessor.from_pretrained(tmp_path / "beit")(picture, return_tensors="pt")
    told = {each["label"]: each["score"] for each in found}
    raw = torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]
    assert relative(pixels["pixel_values"], normalised(ours, raw / 255)) < 1e-5
    scores = ours.classify(raw).softmax(-1)[0].tolist()
    assert told == pytest.approx(dict(zip(LABELS, scores, strict=True)), abs=1e-5)


def test_several_classes_a_sample_are_a_yes_or_no_each(tmp_path):
    ours = Encoder(dataclasses.replace(classifier(CLASS).config, several=True)).eval()
    pipeline = transformers.pipeline("image-classification", str(ours.to_transformers(tmp_path)))
    picture = Image.effect_noise((16, 16), 80).convert("RGB")
    told = {each["label"]: each["score"] for each in pipeline(picture)}
    scores = ours.classify(torch.from_numpy(np.array(picture)).movedim(-1, 0)[None]).sigmoid()[0].tolist()
    assert told == pytest.approx(dict(zip(LABELS, scores, strict=True)), abs=1e-5)
    assert Encoder.from_pretrained(tmp_path).config.several


@pytest.mark.parametrize("head", [CLASS, CLASS_POOLED, MEAN_POOLED, MEAN])
@pytest.mark.parametrize(
    ("modality", "size"), [(COLOURS, (16, 24)), (dataclasses.replace(AUDIO, patch=(8, 64)), (32, 128))]
)
def test_timm_classifies_pictures_and_sounds_as_we_do(head, modality, size, tmp_path):
    ours, media = classifier(head, modality, size), torch.rand(2, modality.channels, *size)
    folder = ours.save_timm(tmp_path)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert relative(theirs(normalised(ours, media)), ours.classify(media)) < 1e-5
    assert tuple(theirs.pretrained_cfg["label_names"]) == LABELS
    assert relative(ours.to_timm().eval()(normalised(ours, media)), ours.classify(media)) < 1e-5
    assert_same(Encoder.from_pretrained(folder), ours, media)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_folders_that_timm_writes_are_read_with_their_heads(pool, tmp_path):
    sizes = {"img_size": 32, "patch_size": 8, "depth": 2, "num_classes": 5, "global_pool": pool}
    theirs = randomize(timm.create_model("vit_tiny_patch16_224", **sizes)).eval()
    names = {"label_names": list(LABELS)}
    timm.models.save_for_hf(theirs, tmp_path, model_config=names, safe_serialization=True)
    ours, pixels = Encoder.from_pretrained(tmp_path).eval(), torch.rand(2, 3, 32, 32)
    assert relative(ours.classify(pixels), theirs(normalised(ours, pixels))) < 1e-5
    assert ours.config.labels == LABELS


@pytest.mark.parametrize("head", [CLASS, MEAN_POOLED])
def test_transformers_classifies_clips_as_we_do(head, tmp_path):
    clips = dataclasses.replace(VIDEO, patch=(2, 8, 8), mean=(0.2, 0.3, 0.4))
    ours = classifier(head, clips, (4, 16, 16), pool_norm_eps=1e-5, qkv_bias="query_value")
    media = torch.rand(2, 3, 4, 16, 16)
    folder = ours.to_transformers(tmp_path)
    theirs, told = transformers.AutoModelForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    inputs = normalised(ours, media).transpose(1, 2)
    assert relative(theirs.eval()(inputs).logits, ours.classify(media)) < 1e-5
    assert tuple(theirs.config.id2label.values()) == LABELS
    assert_same(Encoder.from_pretrained(folder), ours, media)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    frames = list((media[0].transpose(0, 1) * 255).byte())
    pixels = processor(frames, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    assert relative(pixels, normalised(ours, torch.stack(frames, 1)[None] / 255).transpose(1, 2)) < 1e-5


@pytest.mark.parametrize("head", [CLASS, MEAN_POOLED])
def test_the_authors_fine_tuned_files_say_what_their_heads_see(head):
    plain = dataclasses.replace(COLOURS, mean=image().mean, std=image().std)
    ours, pixels = classifier(head, plain, labels=()), torch.rand(2, 3, 16, 16)
    state = to_theirs(ours.state_dict(), vit.timm_vit(), (8, 8))
    assert relative(Encoder.from_official({"model": state}, heads=2).classify(pixels), ours.classify(pixels)) < 1e-5
    clips = dataclasses.replace(VIDEO, patch=(2, 8, 8))
    ours = classifier(head, clips, (4, 16, 16), labels=(), qkv_bias="query_value")
    media, state = torch.rand(2, 3, 4, 16, 16), to_theirs(ours.state_dict(), videomae.authors_encoder(), (2, 8, 8))
    again = Encoder.from_official({"module": state}, heads=2, size=(4, 16, 16))
    assert relative(again.classify(media), ours.classify(media)) < 1e-5


def listed(folder: Path, capsys) -> list[str]:
    export(folder, None, "list")
    return capsys.readouterr().out.splitlines()


def test_what_a_classifier_can_become_is_listed_by_the_class_that_reads_it(tmp_path, capsys):
    for name, head, size in (
        ("class", CLASS, (16, 24)),
        ("mean", MEAN_POOLED, (16, 16)),
        ("wide", MEAN_POOLED, (16, 24)),
    ):
        classifier(head, size=size).save_pretrained(tmp_path / name)
    assert [line.split()[-1] for line in listed(tmp_path / "class", capsys)][:2] == [
        "ViTForImageClassification", "VisionTransformer"
    ]  # fmt: skip
    assert listed(tmp_path / "mean", capsys)[0].split() == ["beit", "transformers'", "BeitForImageClassification"]
    assert listed(tmp_path / "wide", capsys)[0].split()[0] == "timm"


def test_a_head_that_transformers_has_not_is_refused_by_what_it_has(tmp_path):
    for head, size in ((MEAN, (16, 16)), (MEAN_POOLED, (16, 24))):
        with pytest.raises(
            UserError, match=r"read the class token \(ViT\), or the normalised mean of square pictures'"
        ):
            classifier(head, size=size).to_transformers(tmp_path)


def test_other_beits_and_pools_are_refused(tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.BeitConfig(**sizes, image_size=16, patch_size=8, use_relative_position_bias=True)
    transformers.BeitForImageClassification(config).save_pretrained(tmp_path / "beit")
    with pytest.raises(UserError, match="that are a plain ViT, and its use_absolute_position_embeddings is False"):
        Encoder.from_pretrained(tmp_path / "beit")
    classifier(MEAN).save_timm(tmp_path / "timm")
    config = (tmp_path / "timm" / "config.json").read_text().replace('"avg"', '"max"')
    (tmp_path / "timm" / "config.json").write_text(config)
    with pytest.raises(UserError, match="its head reads tokens pooled by 'max', which only timm has"):
        Encoder.from_pretrained(tmp_path / "timm")
