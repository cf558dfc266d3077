"""VideoMAE equals VideoMAE: transformers both ways, the authors' names and counts, tubes, what is never read."""

import argparse
import dataclasses

import pytest
import torch
import transformers

from mmssl import Encoder, VideoMAE
from mmssl.errors import UserError
from mmssl.interop import to_theirs, videomae
from mmssl.masking import tube_mask
from mmssl.modality import VIDEO
from mmssl.objectives import VideoMAEConfig, videomae_config
from mmssl.objectives.videomae import videomae_decoder_config
from mmssl.position import sincos_table
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
    "num_frames": 4,
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
    "use_mean_pooling": False,
}


def tiny(**settings) -> VideoMAE:
    config = videomae_config("small")
    tokenizer = dataclasses.replace(
        config.encoder.tokenizers[0], modality=dataclasses.replace(VIDEO, patch=(2, 8, 8)), size=(4, 32, 32)
    )
    transformer = dataclasses.replace(config.encoder.transformer, dim=64, depth=2, heads=1)
    encoder = dataclasses.replace(config.encoder, tokenizers=(tokenizer,), transformer=transformer)
    return VideoMAE(VideoMAEConfig(encoder, videomae_decoder_config(192, 1, 3), **settings))


@pytest.fixture
def saved(tmp_path):
    """A VideoMAE of transformers and its folder."""

    def save(kind=transformers.VideoMAEForPreTraining, **settings):
        theirs = randomize(kind(transformers.VideoMAEConfig(**{**TINY, **settings}))).eval()
        theirs.save_pretrained(tmp_path / "theirs")
        return theirs, tmp_path / "theirs"

    return save


def clips(batch=2, frames=4, side=32):
    return torch.rand(batch, 3, frames, side, side)


def theirs_on(theirs, ours, pixels, mask):
    hidden = mask.hide.boolean(mask.count)
    return theirs(normalised(ours.encoder, pixels).transpose(1, 2), bool_masked_pos=hidden)


# two of each: a third is as the second
BLOCKS = {"num_hidden_layers": 2, "decoder_num_hidden_layers": 2}
BASE = {key: value for key, value in transformers.VideoMAEConfig().to_dict().items() if key in TINY} | BLOCKS


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"norm_pix_loss": False},
        {"use_mean_pooling": True},
        {"qkv_bias": False},
        {**BASE, "use_mean_pooling": False},
    ],
    ids=["tiny", "pixels", "no encoder norm", "no biases", "base"],
)
def test_loss_predictions_and_gradients_equal_transformers(saved, tmp_path, settings):
    theirs, folder = saved(**settings)
    ours = VideoMAE.from_pretrained(folder)
    frames, side = theirs.config.num_frames, theirs.config.image_size
    pixels, grid = clips(2 if side < 64 else 1, frames, side), ours.tokenizer.size_grid
    places = grid[1] * grid[2]
    mask = tube_mask(torch.rand(len(pixels), places), places // 10 + 1, grid, {"video": grid[0] * places})
    expected, out = theirs_on(theirs, ours, pixels, mask), ours({"video": pixels}, mask)
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
    assert relative(out.prediction, expected.logits) < 1e-5
    expected.loss.backward()
    out.loss.backward()
    gradients_as_weights(theirs)
    theirs.save_pretrained(tmp_path / "gradients")
    assert_gradients_equal(ours, VideoMAE.from_pretrained(tmp_path / "gradients"))


def test_transformers_folders_survive_the_round_trip(saved, tmp_path):
    theirs, folder = saved()
    ours = VideoMAE.from_pretrained(folder)
    assert ours.config.encoder.transformer.norm_eps == 1e-12
    assert ours.config.decoder.transformer.final_norm_eps == 1e-5
    again = transformers.VideoMAEForPreTraining.from_pretrained(ours.to_transformers(tmp_path / "ours"))
    assert_states_equal(theirs.state_dict(), again.state_dict())
    assert_states_equal(ours.state_dict(), VideoMAE.from_pretrained(tmp_path / "ours").state_dict())


def test_our_weights_give_transformers_the_same_loss(tmp_path):
    ours = randomize(tiny())
    with pytest.warns(UserWarning, match="eps 1e-05 in the norm of its decoder"):
        folder = ours.to_transformers(tmp_path)
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(folder).eval()
    pixels = clips()
    out = ours({"video": pixels, "sample_id": torch.arange(2)})
    assert out.loss.item() == pytest.approx(theirs_on(theirs, ours, pixels, out.mask).loss.item(), rel=1e-4)


def test_hub_names_of_biases_are_written_and_read(saved, tmp_path):
    from safetensors.torch import load_file

    ours = VideoMAE.from_pretrained(saved()[1])
    keys = load_file(ours.to_transformers(tmp_path / "hub") / "model.safetensors").keys()
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in keys
    assert "decoder.decoder_layers.0.attention.attention.v_bias" in keys
    assert not any("position" in key or "key.bias" in key for key in keys)


@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"])
def test_encoders_of_every_transformers_folder_give_the_same_tokens(saved, kind):
    theirs, folder = saved(getattr(transformers, kind), use_mean_pooling=kind.endswith("Classification"), num_labels=5)
    ours, pixels = Encoder.from_pretrained(folder), clips()
    inputs = normalised(ours, pixels).transpose(1, 2)
    backbone = theirs if kind == "VideoMAEModel" else theirs.videomae
    assert relative(ours({"video": pixels}).x, backbone(inputs).last_hidden_state) < 1e-5
    if kind.endswith("Classification"):
        assert relative(ours.classify({"video": pixels}), theirs(inputs).logits) < 1e-5


def test_encoders_go_back_to_transformers(saved, tmp_path):
    theirs, folder = saved(transformers.VideoMAEForVideoClassification, use_mean_pooling=True, num_labels=5)
    ours = Encoder.from_pretrained(folder)
    again = transformers.VideoMAEForVideoClassification.from_pretrained(ours.to_transformers(tmp_path / "again"))
    assert_states_equal(theirs.state_dict(), again.state_dict())
    pixels, encoder = clips(), tiny().encoder
    model = transformers.VideoMAEModel.from_pretrained(encoder.to_transformers(tmp_path / "model")).eval()
    inputs = normalised(encoder, pixels).transpose(1, 2)
    assert relative(model(inputs).last_hidden_state, encoder({"video": pixels}).x) < 1e-5


def authors_file(method: VideoMAE) -> dict:
    return to_theirs(method.state_dict(), videomae.AUTHORS, method.modality.patch)


def test_the_authors_files_are_read(tmp_path):
    method = randomize(tiny(mask_ratio=0.75))
    state = authors_file(method)
    assert state["encoder.patch_embed.proj.weight"].shape == (64, 3, 2, 8, 8)
    assert state["encoder.blocks.1.attn.q_bias"].shape == (64,)
    assert state["mask_token"].shape == (1, 1, 192)
    assert not any("pos_embed" in key or "qkv.bias" in key for key in state)
    torch.save({"model": state, "args": argparse.Namespace(lr=1.0)}, tmp_path / "checkpoint.pth")
    ours = VideoMAE.from_official(tmp_path / "checkpoint.pth", size=(4, 32, 32), mask_ratio=0.75)
    assert_states_equal(ours.state_dict(), method.state_dict())
    assert ours.config.decoder.transformer.heads == 3
    assert_states_equal(Encoder.from_official({"module": state}).state_dict(), method.encoder.state_dict())


def test_the_authors_fine_tuned_files_classify():
    config = tiny().config.encoder
    transformer = dataclasses.replace(config.transformer, final_norm=False)
    encoder = randomize(Encoder(dataclasses.replace(config, transformer=transformer, pool_norm=True, classes=7)))
    state = to_theirs(encoder.state_dict(), videomae.authors_encoder(), (2, 8, 8))
    assert {"fc_norm.weight", "head.bias", "blocks.0.attn.v_bias", "patch_embed.proj.bias"} <= state.keys()
    ours, pixels = Encoder.from_official({"model": state}), clips()
    assert torch.equal(ours.classify({"video": pixels}), encoder.classify({"video": pixels}))
    with pytest.warns(UserWarning, match="holds no decoder"):
        method = VideoMAE.from_official({"model": state}, size=(4, 32, 32))
    assert_states_equal(method.encoder.state_dict(), encoder.state_dict())


def counts(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "total", "encoder", "decoder"),
    [
        ("small", 24_029_376, 21_879_936, 2_075_520),
        ("base", 94_210_944, 86_227_200, 7_688_448),
        ("large", 342_996_992, 303_860_736, 38_611_456),
    ],
)
def test_parameter_counts_are_the_authors(size, total, encoder, decoder):
    with torch.device("meta"):
        method = VideoMAE(videomae_config(size))
    assert (counts(method), counts(method.encoder)) == (total, encoder)
    apart = counts(method.decoder.embed) + method.decoder.mask_token.numel()
    assert counts(method.decoder) - apart == decoder


def test_the_classifier_counts_are_the_authors():
    config = videomae_config("base").encoder
    transformer = dataclasses.replace(config.transformer, final_norm=False)
    with torch.device("meta"):
        assert counts(Encoder(dataclasses.replace(config, transformer=transformer, pool_norm=True, classes=400))) == (
            86_534_800
        )


def test_the_position_table_is_the_authors_and_follows_the_grid():
    table = sincos_table((8, 14, 14), 768, "sincos_interleaved").double()
    assert table.sum().item() == pytest.approx(245744.990, abs=0.01)
    assert table.square().sum().item() == pytest.approx(602112, abs=1)
    assert table[1, :3].tolist() == pytest.approx([0.841471, 0.540302, 0.828431], abs=1e-6)
    method = tiny()
    assert not any("position.table" in key for key in method.state_dict())
    larger = method({"video": clips(1, 6, 48)})
    assert larger.prediction.shape == (1, 3 * int(0.9 * 36), 2 * 8 * 8 * 3)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.9, 176), (0.75, 147), (0.95, 186)])
def test_tubes_hide_the_same_places_in_all_frames_and_round_as_the_authors(ratio, hidden):
    with torch.device("meta"):
        method = VideoMAE(videomae_config("small", mask_ratio=ratio))
    batch = {"video": torch.empty(3, 3, 16, 224, 224, dtype=torch.uint8), "sample_id": torch.arange(3)}
    mask = method.hide(batch)
    assert mask.hide.index.shape == (3, 8 * hidden)
    places = mask.hide.index.unflatten(1, (8, hidden)) - 196 * torch.arange(8)[:, None]
    assert (places == places[:, :1]).all()
    assert not torch.equal(places[0], places[1])


def test_predicting_zero_costs_what_the_authors_loss_does():
    method = VideoMAE(dataclasses.replace(tiny().config, mask_ratio=0.5))
    for parameter in (method.decoder.pred.weight, method.decoder.pred.bias):
        torch.nn.init.zeros_(parameter)
    assert method({"video": clips()}).loss.item() == pytest.approx(127 / 128, rel=1e-3)


def test_initialisation_is_the_authors():
    torch.manual_seed(0)
    method = VideoMAE(videomae_config("small"))
    assert 0.99 * 1536**-0.5 < method.tokenizer.weight.abs().max() <= 1536**-0.5
    assert 0.99 * 384**-0.5 < method.decoder.embed.weight.abs().max() <= 384**-0.5
    assert method.decoder.mask_token.abs().max() <= 0.02
    attention = method.encoder.transformer.blocks[0].attn.layer
    assert attention.qkv.bias is None
    assert not attention.query_value_bias.any()
    assert 0.99 * (6 / (4 * 384)) ** 0.5 < attention.qkv.weight.abs().max() <= (6 / (4 * 384)) ** 0.5


@pytest.mark.parametrize("norm_pix", [True, False])
def test_reconstruction_keeps_the_visible_and_inverts_the_target(norm_pix):
    method = tiny(norm_pix=norm_pix)
    batch = {"video": clips(), "sample_id": torch.arange(2)}
    out = method(batch)
    patches = batch["video"].unfold(2, 2, 2).unfold(3, 8, 8).unfold(4, 8, 8).permute(0, 2, 3, 4, 5, 6, 7, 1).flatten(4)
    target = patches.flatten(1, 3).unflatten(-1, (128, 3)) if patches.ndim == 5 else patches.flatten(1, 3)
    hidden = target.flatten(2).gather(1, out.mask.hide.index[..., None].expand_as(out.prediction))
    if norm_pix:
        values = hidden.unflatten(-1, (-1, 3))
        hidden = ((values - values.mean(-2, keepdim=True)) / (values.std(-2, keepdim=True) + 1e-6)).flatten(-2)
    exact = method.reconstruct(batch, dataclasses.replace(out, prediction=hidden))
    assert torch.allclose(exact, batch["video"], atol=1e-5)
    assert not torch.allclose(method.reconstruct(batch, out), batch["video"], atol=1e-2)


def test_a_decoder_may_be_asked_for_some_of_the_hidden_tubes():
    """The sequence holds the visible tokens and those asked for: what is not asked for cannot change them."""
    method, batch = tiny(), {"video": clips(), "sample_id": torch.arange(2)}
    mask = method.hide(batch)
    some = dataclasses.replace(mask, targets=(dataclasses.replace(mask.hide, index=mask.hide.index[:, ::2]),))
    assert method(batch, some).prediction.shape[1] == mask.hide.index[:, ::2].shape[1]


def test_bad_input_gets_one_sentence(saved, tmp_path):
    for ratio in (0.0, 1.0):
        with pytest.raises(UserError, match=r"mask ratio of .* hides some, not all"):
            tiny(mask_ratio=ratio)
    with pytest.raises(UserError, match="choose one of tiny, small, base"):
        videomae_config("giant")
    _, folder = saved(transformers.VideoMAEModel)
    with pytest.raises(UserError, match=r"Encoder\.from_pretrained reads it"):
        VideoMAE.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"video: got shape \(1, 3, 5, 32, 32\)"):
        tiny()({"video": clips(1, 5)})
    with pytest.raises(UserError, match="lacks"):
        VideoMAE.from_official({"conv1.weight": torch.zeros(1)})
    ragged = tiny().encoder.config
    with pytest.raises(UserError, match="transformers' VideoMAE is a plain encoder"):
        Encoder(dataclasses.replace(ragged, prefix=1)).to_transformers(tmp_path / "x")


def test_classifiers_that_transformers_would_compute_otherwise_are_refused(tmp_path):
    config = dataclasses.replace(tiny().encoder.config, classes=5)
    with pytest.raises(UserError, match="classifies a normalised mean of tokens"):
        Encoder(config).to_transformers(tmp_path / "ours")
