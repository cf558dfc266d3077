"""Audio-MAE: facts of the paper and of the authors' files; its local decoder against Swin's blocks written plainly."""

import dataclasses
import math

import pytest
import timm
import torch
from torch.nn import functional as F

from benchmarks.audio_peer import PlainAudioMAE
from mmssl import AudioMAE, Encoder, UserError
from mmssl.interop import audiomae as forms
from mmssl.interop import to_theirs, vit
from mmssl.position import Position, sincos_table
from mmssl.transformer import WindowConfig
from tests.parity import (
    assert_gradients_equal,
    assert_states_equal,
    gradients_as_weights,
    normalised,
    randomize,
    relative,
)

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974


def tiny(decoder="local", position="sincos_swapped", **settings) -> AudioMAE:
    """128 times x 64 bands in patches of 8 x 16: a grid of 16 x 4."""
    method = AudioMAE("tiny", frames=128, mel=64, patch=16, decoder=decoder, position=position, decoder_depth=2)
    config = dataclasses.replace(method.config, **settings)
    return randomize(AudioMAE(config))


def spectrograms(count=2, frames=128, mel=64):
    return {
        "audio": AUDIOSET_MEAN + AUDIOSET_STD * torch.randn(count, 1, frames, mel),
        "sample_id": torch.arange(count),
    }


def test_parameters_are_the_papers():
    with torch.device("meta"):
        method = AudioMAE("base")
    count = lambda part: sum(value.numel() for value in part.parameters())  # noqa: E731
    assert (count(method.encoder), count(method.decoder), count(method)) == (85_648_128, 51_344_640, 136_992_768)
    assert sum(value.numel() for value in method.parameters() if value.requires_grad) == 136_336_128
    assert count(method.decoder.transformer.blocks[0]) == 3_159_712
    config = dataclasses.replace(method.encoder.config, classes=527, pool_norm=True)
    config = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, final_norm=False))
    with torch.device("meta"):
        fine_tuned = Encoder(config)
    assert sum(value.numel() for value in fine_tuned.parameters() if value.requires_grad) == 85_659_407


def test_masks_keep_the_authors_counts():
    batch = {"audio": torch.zeros(3, 1, 1024, 128), "sample_id": torch.arange(3)}
    with torch.device("meta"):
        method = AudioMAE("tiny")
    assert method.hide(batch).keep.index.shape == (3, 102)
    for shares, times, bands in (((0.7, 0.3), 19, 5), ((0.2, 0.2), 51, 6)):
        method.config = dataclasses.replace(method.config, axes_ratio=shares)
        mask = method.hide(batch)
        assert mask.keep.index.shape == (3, times * bands) and mask.hide.index.shape == (3, 512 - times * bands)
        kept = mask.keep.boolean(512).view(3, 64, 8)
        assert torch.equal(kept, kept.any(2, keepdim=True) & kept.any(1, keepdim=True))
        assert kept.any(2).sum(1).tolist() == [times] * 3
        assert not torch.equal(kept[0], kept[1])


def test_predicting_nothing_costs_255_of_256():
    method = tiny(decoder="global")
    torch.nn.init.zeros_(method.decoder.pred.weight), torch.nn.init.zeros_(method.decoder.pred.bias)
    assert method(spectrograms()).loss.item() == pytest.approx(255 / 256, rel=1e-5)


def test_the_authors_table_is_unique_but_not_in_place():
    table = sincos_table((64, 8), 768, "sincos_swapped")
    assert table[8, 0].item() == pytest.approx(math.sin(8), abs=1e-6) and table[8, 384] == 0
    assert torch.cat([torch.zeros(1, 768), table]).double().sum().item() == pytest.approx(171206.742, abs=0.01)
    right = sincos_table((64, 8), 768)
    assert (right[8, 0], right[8, 384].item()) == (0, pytest.approx(0.841471, abs=1e-6))
    assert len(table.unique(dim=0)) == 512


def test_another_length_resizes_the_table_on_the_grid_it_was_made_for():
    position = Position((64, 8), 32, "sincos_swapped")
    position.trained = True
    planes = sincos_table((8, 64), 32).T.unflatten(1, (8, 64))
    resized = F.interpolate(planes[None], (8, 32), mode="bicubic", align_corners=False)[0]
    assert torch.equal(position((32, 8)), resized.flatten(1).T)


@pytest.mark.parametrize("position", ["sincos", "sincos_swapped"])
def test_a_files_table_follows_shorter_spectrograms_each_code_from_where_it_belongs(position):
    """The authors' table is resized on the grid of 8 x 64 that its codes were made for, and scrambled again."""
    state = to_theirs(AudioMAE("tiny", position=position).state_dict(), forms.LOCAL, (16, 16))
    encoder = Encoder.from_official(state, size=(1024, 128)).eval()
    table = state["pos_embed"][0, 1:].T
    grid, shorter = ((64, 8), (31, 8)) if position == "sincos" else ((8, 64), (8, 31))
    planes = F.interpolate(table.unflatten(1, grid)[None], shorter, mode="bicubic", align_corners=False)
    resized = planes[0].flatten(1).T
    (tokenizer,) = encoder.config.tokenizers
    short = dataclasses.replace(tokenizer, size=(496, 128))
    expected = Encoder(dataclasses.replace(encoder.config, tokenizers=(short,)))
    expected.load_state_dict(encoder.state_dict() | {"tokenizers.audio.position.table": resized})
    batch = spectrograms(frames=496, mel=128)
    with torch.no_grad():
        assert relative(encoder(batch).x, expected.eval()(batch).x) < 1e-6


@pytest.mark.parametrize("decoder", ["local", "global"])
def test_loss_predictions_and_gradients_are_those_of_timms_and_swins_blocks(decoder):
    ours, batch = tiny(decoder), spectrograms()
    theirs = PlainAudioMAE(ours)
    out = ours(batch)
    loss, prediction = theirs(normalised(ours.encoder, batch["audio"]), out.mask.keep.index, out.mask.hide.index)
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert relative(out.prediction, prediction) < 1e-5
    out.loss.backward()
    loss.backward()
    gradients_as_weights(theirs)
    expected = AudioMAE.from_official(theirs.state_dict(), decoder_heads=4, size=(128, 64))
    assert_gradients_equal(ours, expected)


@pytest.mark.parametrize("decoder", ["local", "global"])
def test_the_authors_files_are_read_with_either_decoder(decoder, tmp_path):
    ours = tiny(decoder)
    rules = forms.LOCAL if decoder == "local" else forms.GLOBAL
    state = to_theirs(ours.state_dict(), rules, (16, 16))
    names = {key.split(".", 2)[-1] for key in state if key.startswith("decoder_blocks.0.")}
    assert ("attn.tau" in names) == ("attn.meta_mlp.fc1.weight" in names) == (decoder == "local")
    assert state["patch_embed.proj.weight"].shape == (192, 1, 16, 16) and state["pos_embed"].shape == (1, 33, 192)
    torch.save({"model": state}, tmp_path / "pretrained.pth")
    read = AudioMAE.from_official(tmp_path / "pretrained.pth", decoder_heads=4, size=(128, 64))
    assert read.config.encoder.tokenizers[0].position == read.config.decoder.position == "sincos_swapped"
    assert_states_equal(read.state_dict(), ours.state_dict())
    batch = spectrograms()
    assert torch.equal(read(batch).loss, ours(batch).loss)
    encoder = Encoder.from_official(tmp_path / "pretrained.pth", size=(128, 64))
    assert torch.equal(encoder(batch).x, ours.encoder(batch).x)


def test_fine_tuned_files_are_read_without_a_decoder(tmp_path):
    config = dataclasses.replace(tiny().encoder.config, classes=5, pool_norm=True)
    transformer = dataclasses.replace(config.transformer, final_norm=False)
    encoder = randomize(Encoder(dataclasses.replace(config, transformer=transformer)))
    state = to_theirs(encoder.state_dict(), vit.timm_vit("", "audio"), (16, 16))
    read = Encoder.from_official(state, size=(128, 64))
    batch = spectrograms()
    assert torch.equal(read.classify(batch), encoder.classify(batch))
    with pytest.warns(UserWarning, match="holds no decoder"):
        AudioMAE.from_official(state, size=(128, 64))


def test_ten_seconds_of_128_bands_is_what_a_table_of_512_means():
    with torch.device("cpu"):
        state = to_theirs(AudioMAE("tiny", position="sincos_swapped").state_dict(), forms.LOCAL, (16, 16))
    assert AudioMAE.from_official(state, decoder_heads=4).config.encoder.tokenizers[0].size == (1024, 128)


def test_the_encoder_goes_to_timm_and_back(tmp_path):
    encoder, batch = tiny().encoder.eval(), spectrograms()
    folder = encoder.save_timm(tmp_path / "timm")
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert relative(theirs.forward_features(normalised(encoder, batch["audio"])), encoder(batch).x) < 1e-5
    again = Encoder.from_pretrained(folder).eval()
    assert again.config.tokenizers[0].modality == encoder.config.tokenizers[0].modality
    assert torch.equal(again(batch).x, encoder(batch).x)
    with pytest.raises(UserError, match="ASTModel has another geometry"):
        encoder.to_transformers(tmp_path / "ast")


def test_the_bias_dropout_is_the_authors_only_in_training():
    method = tiny()
    decoder = dataclasses.replace(
        method.config.decoder,
        transformer=dataclasses.replace(method.config.decoder.transformer, window=WindowConfig(dropout=0.1)),
    )
    dropped = AudioMAE(dataclasses.replace(method.config, decoder=decoder))
    dropped.load_state_dict(method.state_dict())
    batch = spectrograms()
    assert torch.equal(dropped.eval()(batch).loss, method.eval()(batch).loss)
    assert not torch.equal(dropped.train()(batch).loss, dropped(batch).loss)


def test_bad_input_gets_one_sentence():
    for settings, sentence in (
        ({"frames": 1000}, "patches of 16 x 16 do not fill 1000 times x 128 mel bands"),
        ({"frames": 64, "patch": (4, 48)}, "patches of 4 x 48 do not fill 64 times x 128 mel bands"),
        (
            {"frames": 32, "mel": 128},
            r"windows of \(4, 4\) patches do not tile \(2, 8\) of them: take a multiple",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            AudioMAE("tiny", **settings)
    with pytest.raises(UserError, match="audio: got shape"):
        tiny()({"audio": torch.zeros(1, 1, 500, 64)})
    with pytest.raises(UserError, match=r"do not tile \(31, 4\) of them: take a multiple of 64 times"):
        tiny()({"audio": torch.zeros(1, 1, 496, 64)})
    with pytest.raises(UserError, match="not a checkpoint of Audio-MAE"):
        AudioMAE.from_official({"patch_embed.proj.weight": torch.zeros(8, 3, 16, 16)})
