"""MAE equals MAE: transformers' ViTMAE, the authors' key names and counts, timm."""

import argparse
import dataclasses

import pytest
import timm
import torch
import transformers

from mmssl import MAE, Encoder
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.interop import mae as mae_forms
from mmssl.interop import to_theirs
from mmssl.masking import random_mask
from mmssl.modality import AUDIO, VIDEO, image
from mmssl.objectives import MAEConfig
from tests.parity import (
    assert_gradients_equal,
    assert_states_equal,
    gradients_as_weights,
    normalised,
    randomize,
    relative,
)

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


def tiny_mae(**settings) -> MAE:
    encoder = vit_config("tiny", modality=image(3, (8, 8)), input_size=(32, 32))
    return MAE(MAEConfig(encoder, mae_decoder_config(32, 1, 2), **settings))


@pytest.fixture
def saved(tmp_path):
    """A tiny ViTMAE of transformers and its folder."""

    def save(**settings):
        theirs = randomize(transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**{**TINY, **settings}))).eval()
        theirs.save_pretrained(tmp_path / "theirs")
        return theirs, tmp_path / "theirs"

    return save


def assert_parity(theirs, ours, batch=2):
    """Loss, predictions and every gradient within 1e-5 (design.md, "Parity")."""
    size, count = theirs.config.image_size, (theirs.config.image_size // theirs.config.patch_size) ** 2
    pixels, noise = torch.rand(batch, 3, size, size), torch.rand(batch, count)
    mask = random_mask(noise, int(count * 0.25), {"image": count})
    expected, out = theirs(normalised(ours.encoder, pixels), noise=noise), ours({"image": pixels}, mask)
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    hidden = expected.logits.gather(1, mask.hide.index[..., None].expand_as(out.prediction))
    assert relative(out.prediction, hidden) < 1e-5
    expected.loss.backward()
    out.loss.backward()
    gradients_as_weights(theirs)


# two of each: a third is as the second
BLOCKS = {"num_hidden_layers": 2, "decoder_num_hidden_layers": 2}
BASE = {key: value for key, value in transformers.ViTMAEConfig().to_dict().items() if key in TINY} | BLOCKS


@pytest.mark.parametrize(
    ("sizes", "norm_pix"), [({}, False), ({}, True), (BASE, True)], ids=["tiny", "standardised", "base"]
)
def test_loss_predictions_and_gradients_equal_transformers(saved, tmp_path, sizes, norm_pix):
    theirs, folder = saved(norm_pix_loss=norm_pix, **sizes)
    ours = MAE.from_pretrained(folder)
    assert_parity(theirs, ours)
    theirs.save_pretrained(tmp_path / "gradients")
    assert_gradients_equal(ours, MAE.from_pretrained(tmp_path / "gradients"))


def test_transformers_folders_survive_the_round_trip(saved, tmp_path):
    theirs, folder = saved(norm_pix_loss=True)
    ours = MAE.from_pretrained(folder)
    assert ours.config.norm_pix
    assert ours.config.encoder.transformer.norm_eps == 1e-12
    again = transformers.ViTMAEForPreTraining.from_pretrained(ours.to_transformers(tmp_path / "ours"))
    assert_states_equal(theirs.state_dict(), again.state_dict())
    assert_states_equal(ours.state_dict(), MAE.from_pretrained(tmp_path / "ours").state_dict())


def test_hub_files_of_transformers_4_are_read(saved, tmp_path):
    _, folder = saved()
    ours = MAE.from_pretrained(folder)
    hub = ours.to_transformers(tmp_path / "hub")
    from safetensors.torch import load_file

    keys = load_file(hub / "model.safetensors").keys()
    assert "decoder.decoder_layers.0.attention.attention.query.weight" in keys
    assert "vit.encoder.layer.0.layernorm_before.weight" in keys
    assert_states_equal(ours.state_dict(), MAE.from_pretrained(hub).state_dict())


def test_the_encoder_goes_to_vitmodel_and_timm(tmp_path):
    mae = randomize(tiny_mae()).eval()
    pixels = torch.rand(2, 3, 32, 32)
    tokens = mae.encoder({"image": pixels}).x
    folder = mae.encoder.to_transformers(tmp_path / "vit")
    vit = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False).eval()
    assert relative(vit(normalised(mae.encoder, pixels)).last_hidden_state, tokens) < 1e-5
    assert relative(mae.encoder.to_timm().eval().forward_features(normalised(mae.encoder, pixels)), tokens) < 1e-5
    again = Encoder.from_pretrained(folder)
    assert relative(again({"image": pixels}).x, tokens) < 1e-6


def test_transformers_vit_folders_are_read(tmp_path):
    config = transformers.ViTConfig(**{key: value for key, value in TINY.items() if not key.startswith("decoder")})
    theirs = randomize(transformers.ViTForImageClassification(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = Encoder.from_pretrained(tmp_path)
    pixels = torch.rand(2, 3, 32, 32)
    assert relative(ours({"image": pixels}).x, theirs.vit(normalised(ours, pixels)).last_hidden_state) < 1e-5
    assert ours.tokenizer("image").position.table.requires_grad


def authors_file(mae: MAE) -> dict:
    return to_theirs(mae.state_dict(), mae_forms.AUTHORS, mae.modality.patch)


def test_the_authors_full_files_are_read(tmp_path):
    mae = randomize(tiny_mae(norm_pix=True))
    state = authors_file(mae)
    assert state["blocks.0.attn.qkv.weight"].shape == (576, 192)
    assert state["patch_embed.proj.weight"].shape == (192, 3, 8, 8)
    assert state["decoder_pos_embed"].shape == (1, 17, 32)
    torch.save({"model": state, "epoch": 800, "args": argparse.Namespace(lr=1.0)}, tmp_path / "full.pth")
    ours = MAE.from_official(tmp_path / "full.pth", decoder_heads=2)
    assert ours.config.norm_pix
    assert_states_equal(ours.state_dict(), mae.state_dict())
    assert not MAE.from_official(state, norm_pix=False).config.norm_pix


def test_the_authors_encoder_files_start_a_fresh_decoder():
    mae = randomize(tiny_mae())
    state = {k: v for k, v in authors_file(mae).items() if "decoder" not in k and k != "mask_token"}
    with pytest.warns(UserWarning, match="holds no decoder"):
        ours = MAE.from_official({"model": state})
    assert_states_equal(ours.encoder.state_dict(), mae.encoder.state_dict())
    assert_states_equal(Encoder.from_official(authors_file(mae)).state_dict(), mae.encoder.state_dict())


def test_the_authors_fine_tuned_files_classify_as_timm_does():
    theirs = randomize(
        timm.create_model(
            "vit_tiny_patch16_224",
            img_size=32,
            patch_size=8,
            num_classes=5,
            global_pool="avg",
            embed_dim=192,
            depth=2,
            norm_layer=lambda dim, **kwargs: torch.nn.LayerNorm(dim, eps=1e-6, **kwargs),
        )
    ).eval()
    assert "fc_norm.weight" in theirs.state_dict()
    ours = Encoder.from_official({"model": theirs.state_dict()}).eval()
    pixels = torch.rand(2, 3, 32, 32)
    assert relative(ours.classify({"image": pixels}), theirs(normalised(ours, pixels))) < 1e-5
    assert_states_equal(ours.to_timm().state_dict(), theirs.state_dict())


@pytest.mark.parametrize(
    ("size", "patch", "encoder", "total"),
    [
        ("base", 16, 85_798_656, 111_907_840),
        ("large", 16, 303_301_632, 329_541_888),
        ("huge", 14, 630_764_800, 657_074_508),
    ],
)
def test_parameter_counts_are_the_authors(size, patch, encoder, total):
    with torch.device("meta"):
        mae = MAE(MAEConfig(vit_config(size, modality=image(3, (patch, patch)))))
    assert sum(p.numel() for p in mae.encoder.parameters()) == encoder
    assert sum(p.numel() for p in mae.parameters()) == total
    if size == "base":
        assert sum(p.numel() for p in mae.parameters() if p.requires_grad) == 111_655_680


def test_initialisation_is_the_authors():
    mae = MAE(MAEConfig(vit_config("small")))
    qkv = mae.encoder.transformer.blocks[0].attn.layer.qkv
    bound = (6 / (384 + 3 * 384)) ** 0.5
    assert bound * 0.99 < qkv.weight.abs().max() <= bound
    assert not qkv.bias.any()
    assert 0.99 * 768**-0.5 < mae.tokenizer.bias.abs().max() <= 768**-0.5
    assert mae.encoder.prefix_tokens.std().item() == pytest.approx(0.02, rel=0.15)
    assert mae.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.15)


def test_only_kept_pixels_get_gradients():
    mae = tiny_mae()
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True)
    batch = {"image": pixels, "sample_id": torch.arange(1)}
    mask = mae.hide(batch)
    mae.encoder(batch, mask).x.square().sum().backward()
    touched = (pixels.grad != 0).any(dim=1, keepdim=True).unfold(2, 8, 8).unfold(3, 8, 8).flatten(-2).any(-1)
    assert torch.equal(touched.flatten(1), mask.keep.boolean(16))


@pytest.mark.parametrize(("modality", "size"), [(VIDEO, (4, 32, 32)), (AUDIO, (64, 32))])
def test_the_same_file_takes_clips_and_spectrograms(modality, size):
    mae = MAE(MAEConfig(vit_config("tiny", modality=modality, input_size=size), mae_decoder_config(32, 1, 2)))
    out = mae({modality.name: torch.rand(2, modality.channels, *size)})
    out.loss.backward()
    assert out.prediction.shape == (2, *out.mask.hide.index.shape[1:], mae.target.values)


def test_reconstruction_keeps_the_visible_and_inverts_the_target():
    mae = tiny_mae(norm_pix=True)
    batch = {"image": torch.rand(2, 3, 32, 32), "sample_id": torch.arange(2)}
    out = mae(batch)
    picture = mae.reconstruct(batch, out)
    hidden = out.mask.hide.boolean(16).unflatten(1, (1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.allclose(picture[~hidden.expand_as(picture)], batch["image"][~hidden.expand_as(picture)], atol=1e-5)
    assert not torch.allclose(picture, batch["image"], atol=1e-2)


def test_another_input_size_follows_the_grid():
    mae = tiny_mae()
    assert mae({"image": torch.rand(1, 3, 48, 64)}).prediction.shape == (1, 36, 192)


@pytest.mark.parametrize("ratio", [0.0, 0.99, 1.0])
def test_ratios_that_hide_nothing_or_everything_are_refused(ratio):
    with pytest.raises(ValueError, match="hides"):
        tiny_mae(mask_ratio=ratio)({"image": torch.rand(1, 3, 32, 32)})


def test_checkpoints_of_other_kinds_are_named(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        MAE.from_pretrained(tmp_path / "none")
    tiny_mae().encoder.save_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="holds Encoder, not MAE"):
        MAE.from_pretrained(tmp_path / "encoder")
    with pytest.raises(UserError, match="lacks"):
        MAE.from_official({"conv1.weight": torch.zeros(1)})
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"broken\.pth: cannot be read as a checkpoint"):
        MAE.from_official(tmp_path / "broken.pth")


@pytest.mark.parametrize(
    "config",
    ["[]", "{", '{"mmssl": "MAE"}', '{"mmssl": "Encoder", "config": {"depth": 3}}', '{"model_type": "vit"}', "\xff"],
)
def test_damaged_configs_get_one_sentence(tmp_path, config):
    tiny_mae().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(config.encode("latin-1"))
    for cls in (MAE, Encoder):
        with pytest.raises(UserError, match=r"config\.json|not a|no transformers|vit_mae|no setting|holds"):
            cls.from_pretrained(tmp_path)


def test_what_other_libraries_cannot_express_is_refused(tmp_path):
    config = vit_config("tiny", modality=image(3, (8, 8)), input_size=(32, 32))
    encoder = Encoder(dataclasses.replace(config, prefix=3))
    with pytest.raises(UserError, match="timm's ViT"):
        encoder.to_timm()
    with pytest.raises(UserError, match="transformers has nothing"):
        encoder.to_transformers(tmp_path)


class Evil:
    """What a checkpoint must not be able to bring to life."""


def test_nothing_is_unpickled(tmp_path):
    torch.save({"model": {"cls_token": torch.zeros(1)}, "evil": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="cannot be read"):
        MAE.from_official(tmp_path / "evil.pth")
