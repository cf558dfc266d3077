"""Other sizes: pictures that are not square, and tables of positions that follow inputs they were not trained on."""

import dataclasses
import json

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from timm.layers import resample_abs_pos_embed
from torch.nn.functional import cosine_similarity

from mmssl import MAE, Encoder, SiamMAE, VideoMAE, interop
from mmssl.commands.embed import embed
from mmssl.commands.reading import Reading
from mmssl.data import Clips, EvalView, TrainView, evaluation_batches, open_source, open_videos
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig, vit_config
from mmssl.errors import UserError
from mmssl.evaluation import FrameEncoder
from mmssl.interop import mae as mae_forms
from mmssl.interop import siammae, to_theirs, videomae
from mmssl.masking import tube_mask
from mmssl.modality import VIDEO, image
from mmssl.objectives import MAEConfig, SiamMAEConfig, VideoMAEConfig
from mmssl.objectives.videomae import POSITION, videomae_decoder_config
from mmssl.position import sincos_table
from mmssl.pretraining.pretrain import pretrain
from mmssl.report.run import write_report
from mmssl.tokenizer import TokenizerConfig
from mmssl.training import TrainSettings
from mmssl.transformer import TransformerConfig
from tests.films import film, noise_picture
from tests.parity import assert_states_equal, cropmae_decoder_config, normalised, randomize, relative

BLOCKS = TransformerConfig(32, 2, 2)
THEIRS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def encoder_config(size=(32, 32), patch=(8, 8)) -> EncoderConfig:
    return EncoderConfig((TokenizerConfig(image(3, patch), size),), BLOCKS)


def mae(size=(32, 32), patch=(8, 8)) -> MAE:
    return randomize(MAE(MAEConfig(encoder_config(size, patch), mae_decoder_config(16, 1, 2))))


def video_mae(size=(4, 32, 32), patch=(2, 8, 8)) -> VideoMAE:
    tokenizer = TokenizerConfig(dataclasses.replace(VIDEO, patch=patch), size, POSITION)
    transformer = dataclasses.replace(BLOCKS, qkv_bias="query_value")
    encoder = EncoderConfig((tokenizer,), transformer, prefix=0)
    return randomize(VideoMAE(VideoMAEConfig(encoder, videomae_decoder_config(16, 1, 2), mask_ratio=0.75)))


def table(encoder, grid, name="image"):
    return encoder.tokenizer(name).position(grid)


def interpolated(rows, before, after):
    """As MAE's fine-tuning code and transformers do it."""
    planes = rows.detach().unflatten(0, before).permute(2, 0, 1)[None]
    planes = torch.nn.functional.interpolate(planes, size=after, mode="bicubic", align_corners=False)
    return planes[0].flatten(1).T


# Tables follow the input


@pytest.mark.parametrize("kind", ["ViT", "ViTMAE"])
def test_other_sizes_equal_transformers(tmp_path, kind):
    config = getattr(transformers, f"{kind}Config")(**THEIRS, image_size=32, patch_size=8)
    theirs = randomize(getattr(transformers, f"{kind}Model")(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours, pixels = Encoder.from_pretrained(tmp_path), torch.rand(2, 3, 48, 64)
    seen = {"noise": torch.arange(48.0).expand(2, 48)} if kind == "ViTMAE" else {}
    if seen:
        theirs.config.mask_ratio = theirs.embeddings.config.mask_ratio = 0.0
    expected = theirs(normalised(ours, pixels), interpolate_pos_encoding=True, **seen).last_hidden_state
    assert relative(ours({"image": pixels}).x, expected) < 1e-5


def test_learned_tables_of_timms_files_are_interpolated_as_timm_does():
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, dynamic_img_size=True).eval()
    with torch.no_grad():  # smooth and far from sin-cos, as trained tables are
        smooth = interpolated(torch.randn(4, 192), (2, 2), (4, 4))
        theirs.pos_embed[0, 1:] = smooth
    ours, pixels = Encoder.from_official(theirs.state_dict()), torch.rand(2, 3, 48, 64)
    assert ours.config.tokenizers[0].position == "learned"
    assert ours.tokenizer("image").position.table.requires_grad
    exact = resample_abs_pos_embed(theirs.pos_embed, [6, 8], antialias=False)[0, 1:]
    assert relative(table(ours, (6, 8)), exact) < 1e-6
    # timm's own call antialiases, whose filter is a little softer
    expected = theirs.forward_features(normalised(ours, pixels))
    assert cosine_similarity(ours({"image": pixels}).x, expected, dim=-1).min() > 0.98


def test_tables_are_interpolated_once_they_were_trained_against(tmp_path):
    method, pixels = mae(), torch.rand(1, 3, 64, 64)
    assert torch.equal(table(method.encoder, (8, 8)), sincos_table((8, 8), 32))
    folder = method.save_pretrained(tmp_path)
    for position in (method.encoder.tokenizer("image").position, method.decoder.position):
        assert torch.allclose(position((8, 8)), interpolated(position.table, (4, 4), (8, 8)), atol=1e-6)
    expected = method.encoder({"image": pixels}).x
    again = MAE.from_pretrained(folder)
    for encoder in (
        Encoder.from_pretrained(folder),
        again.encoder,
        Encoder.from_official(authors_file(method), heads=2),
    ):
        assert torch.equal(encoder({"image": pixels}).x, expected)
    assert relative(again.decoder.position((8, 8)), method.decoder.position((8, 8))) < 1e-6
    untrained = Encoder(method.config.encoder)
    assert torch.equal(table(untrained, (8, 8)), sincos_table((8, 8), 32))


def test_a_fresh_decoders_table_is_no_trained_one():
    state = {k: v for k, v in authors_file(mae()).items() if "decoder" not in k and k != "mask_token"}
    with pytest.warns(UserWarning, match="holds no decoder"):
        ours = MAE.from_official(state)
    assert not torch.equal(table(ours.encoder, (8, 8)), sincos_table((8, 8), 32))
    assert torch.equal(ours.decoder.position((8, 8)), sincos_table((8, 8), 512))


def test_folders_written_before_are_read(tmp_path):
    method = mae()
    config = json.loads((method.save_pretrained(tmp_path) / "config.json").read_text())
    del config["config"]["encoder"]["tokenizers"][0]["recompute"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(table(MAE.from_pretrained(tmp_path).encoder, (8, 8)), table(method.encoder, (8, 8)))


def test_clips_of_other_sizes_follow_the_size_that_is_known(tmp_path):
    method, pixels = video_mae(), torch.rand(1, 3, 4, 48, 64)
    state = to_theirs(method.state_dict(), videomae.AUTHORS, (2, 8, 8))
    with pytest.warns(UserWarning, match="eps 1e-05"):
        theirs = method.to_transformers(tmp_path / "theirs")
    own = method.save_pretrained(tmp_path / "own")
    known = interpolated(sincos_table((2, 4, 4), 32, POSITION).unflatten(0, (2, 16))[1], (4, 4), (6, 8))
    sized = VideoMAE.from_official(state, size=(4, 32, 32), heads=2, mask_ratio=0.75)
    encoders = [Encoder.from_official(state, size=(4, 32, 32), heads=2), sized.encoder]
    for encoder in (*encoders, method.encoder, Encoder.from_pretrained(own), Encoder.from_pretrained(theirs)):
        assert relative(table(encoder, (2, 6, 8), "video")[48:], known) < 1e-6
        assert relative(encoder({"video": pixels}).x, method.encoder({"video": pixels}).x) < 1e-5
    assert relative(sized.decoder.position((2, 6, 8)), method.decoder.position((2, 6, 8))) < 1e-6
    # nobody knows what it was trained on: right at that size, whatever it is, also once it was saved
    unsized = VideoMAE.from_official(state, mask_ratio=0.75)
    again = VideoMAE.from_pretrained(unsized.save_pretrained(tmp_path / "unsized"))
    for each in (unsized, again):
        for position in (each.tokenizer.position, each.decoder.position):
            assert torch.equal(position((2, 4, 4)), sincos_table((2, 4, 4), position.dim, POSITION))


# Pictures that are not square


def authors_file(method):
    return to_theirs(method.state_dict(), mae_forms.AUTHORS, method.modality.patch)


def test_official_files_of_wide_pictures_are_read_with_their_size():
    for size in ((32, 64), (16, 64)):
        method = mae(size)
        state = authors_file(method)
        ours = MAE.from_official(state, size=size, heads=2, decoder_heads=2)
        assert ours.config.encoder.tokenizers == method.config.encoder.tokenizers
        assert_states_equal(ours.state_dict(), method.state_dict())
        pixels = torch.rand(1, 3, *size)
        encoder = Encoder.from_official(state, size=size, heads=2)
        assert torch.equal(encoder({"image": pixels}).x, method.encoder({"image": pixels}).x)
    crop = randomize(SiamMAE(SiamMAEConfig(encoder_config((32, 64)), cropmae_decoder_config(32, 1, 2), 0.75)))
    state = to_theirs(crop.state_dict(), siammae.CROPMAE, (8, 8))
    ours = SiamMAE.from_official(state, size=(32, 64), heads=2, decoder_heads=2, mask_ratio=0.75)
    assert_states_equal(ours.state_dict(), crop.state_dict())
    square = authors_file(mae((32, 32)))
    assert Encoder.from_official(square, size=32).config == Encoder.from_official(square).config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"32 positions, which is no square: give size=\(height, width\)"),
        ({"size": 32}, r"size=\(32, 32\) makes 16 patches of 8 x 8, but its table has 32"),
        ({"size": (32, 32)}, "makes 16 patches"),
        ({"size": (30, 64)}, r"size=\(30, 64\) is not \(height, width\) in multiples of its patch \(8, 8\)"),
        ({"size": (0, 64)}, "in multiples of its patch"),
        ({"size": (4, 32, 64)}, r"is not \(height, width\)"),
    ],
)
def test_sizes_that_cannot_be_get_one_sentence(settings, message):
    state = authors_file(mae((32, 64)))
    for cls in (MAE, Encoder):
        with pytest.raises(UserError, match=f"the state dict: .*{message}"):
            cls.from_official(state, **settings)


def test_clips_sizes_that_cannot_be_get_one_sentence():
    state = to_theirs(video_mae().state_dict(), videomae.AUTHORS, (2, 8, 8))
    for cls in (VideoMAE, Encoder):
        for size in ((32, 32), (3, 32, 32), 32):
            with pytest.raises(UserError, match=r"is not \(frames, height, width\) in multiples of its patch"):
                cls.from_official(state, size=size)


def test_tables_and_weights_of_another_shape_are_named():
    state = authors_file(mae())
    state["decoder_pos_embed"] = torch.zeros(1, 26, 16)
    with pytest.raises(UserError, match=r"decoder\.position\.table has shape \(25, 16\), the model expects \(16, 16\)"):
        MAE.from_official(state, heads=2, decoder_heads=2)
    state = authors_file(mae()) | {"decoder_pred.bias": torch.zeros(7)}
    with pytest.raises(UserError, match=r"decoder\.pred\.bias has shape \(7,\)"):
        MAE.from_official(state, heads=2, decoder_heads=2)


@pytest.mark.parametrize("patch", [8, [8, 16]])
def test_transformers_vits_of_wide_pictures_go_both_ways(tmp_path, patch):
    config = transformers.ViTConfig(**THEIRS, image_size=[32, 64], patch_size=patch)
    theirs = randomize(transformers.ViTModel(config, add_pooling_layer=False)).eval()
    theirs.save_pretrained(tmp_path)
    ours, pixels = Encoder.from_pretrained(tmp_path), torch.rand(2, 3, 32, 64)
    expected = theirs(normalised(ours, pixels)).last_hidden_state
    assert ours.config.tokenizers[0].size == (32, 64)
    assert relative(ours({"image": pixels}).x, expected) < 1e-5
    folder = ours.to_transformers(tmp_path / "again")
    again = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False)
    assert (list(again.config.image_size), again.config.patch_size) == ([32, 64], patch)
    assert_states_equal(again.state_dict(), theirs.state_dict())
    assert relative(ours.to_timm().eval().forward_features(normalised(ours, pixels)), expected) < 1e-5


@pytest.mark.parametrize("patch", [8, [8, 16]])
def test_transformers_videomaes_of_wide_clips_go_both_ways(tmp_path, patch):
    config = transformers.VideoMAEConfig(
        **THEIRS, image_size=[32, 64], patch_size=patch, num_frames=4, use_mean_pooling=False
    )
    theirs = randomize(transformers.VideoMAEModel(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours, clips = Encoder.from_pretrained(tmp_path), torch.rand(2, 3, 4, 32, 64)
    assert ours.config.tokenizers[0].size == (4, 32, 64)
    expected = theirs(normalised(ours, clips).transpose(1, 2)).last_hidden_state
    assert relative(ours({"video": clips}).x, expected) < 1e-5
    again = transformers.VideoMAEModel.from_pretrained(ours.to_transformers(tmp_path / "again"))
    assert (list(again.config.image_size), again.config.patch_size) == ([32, 64], patch)
    assert_states_equal(again.state_dict(), theirs.state_dict())


def test_transformers_gives_the_same_loss_on_wide_clips(tmp_path):
    ours, clips = video_mae((4, 32, 64)), torch.rand(2, 3, 4, 32, 64)
    with pytest.warns(UserWarning, match="eps 1e-05"):
        folder = ours.to_transformers(tmp_path)
    theirs = transformers.VideoMAEForPreTraining.from_pretrained(folder).eval()
    mask = tube_mask(torch.rand(2, 32), 8, (2, 4, 8), {"video": 64})
    inputs = normalised(ours.encoder, clips).transpose(1, 2)
    expected = theirs(inputs, bool_masked_pos=mask.hide.boolean(64)).loss
    assert ours({"video": clips}, mask).loss.item() == pytest.approx(expected.item(), rel=1e-4)
    assert VideoMAE.from_pretrained(folder).config.encoder.tokenizers == ours.config.encoder.tokenizers
    with pytest.raises(UserError, match=r"predicts square patches; these are \[8, 16\]"):
        video_mae((4, 32, 64), (2, 8, 16)).to_transformers(tmp_path / "x")


def test_vitmae_folders_of_wide_pictures_are_read_but_cannot_be_written(tmp_path):
    method = mae((32, 64), (8, 16))
    square = mae((32, 32)).to_transformers(tmp_path / "square")
    config = json.loads((square / "config.json").read_text()) | {"image_size": [32, 64], "patch_size": [8, 16]}
    interop.save_folder(tmp_path, config, to_theirs(method.state_dict(), mae_forms.TRANSFORMERS, (8, 16)))
    ours, batch = MAE.from_pretrained(tmp_path), {"image": torch.rand(1, 3, 32, 64), "sample_id": torch.arange(1)}
    assert_states_equal(ours.state_dict(), method.state_dict())
    assert ours.tokenizer.size_grid == (4, 4)
    mask = method.hide(batch)
    assert relative(ours(batch, mask).prediction, method(batch, mask).prediction) < 1e-5
    with pytest.raises(UserError, match=r"square pictures and patches; these are \[32, 64\] and 8: write the encoder"):
        mae((32, 64)).to_transformers(tmp_path / "x")


# Crops


@pytest.fixture
def pictures(tmp_path):
    for i, (height, width) in enumerate([(40, 90), (80, 60), (32, 64), (70, 70)]):
        colours = np.random.default_rng(i).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        (tmp_path / "pictures" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(colours).resize((width, height), Image.Resampling.BICUBIC)
        picture.save(tmp_path / "pictures" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "pictures"


def test_an_encoder_of_wide_pictures_is_fed_wide_crops(tmp_path, pictures):
    encoder = randomize(Encoder(encoder_config((32, 64))))
    reading = Reading(workers=0, device="cpu")
    embed(encoder.save_pretrained(tmp_path / "encoder"), pictures, tmp_path / "out.npz", reading)
    found, source = np.load(tmp_path / "out.npz"), open_source(pictures)
    crops = EvalView((32, 64))([source.read(i) for i in range(len(source))])
    assert crops["image"].shape == (4, 3, 32, 64)
    with torch.no_grad():
        expected = encoder.features({"image": crops["image"]})
    assert found["names"].tolist() == [source.name(i) for i in range(len(source))]
    assert relative(torch.from_numpy(found["features"]), expected) < 1e-5


@pytest.mark.parametrize("frames", [0, 4])
def test_encoders_read_wide_crops_of_videos(tmp_path, frames):
    """A clip of its own, or (frames) each frame as a picture; films of noise, larger than the crops."""
    for seed in range(2):
        film(tmp_path / "films" / f"{seed}.mkv", count=8, picture=noise_picture(200, 320, seed))
    encoder = randomize(Encoder(encoder_config((32, 64))) if frames else video_mae((4, 32, 64)).encoder)
    reading = Reading(workers=0, device="cpu", stride=1, frames=frames)
    embed(encoder.save_pretrained(tmp_path / "encoder"), tmp_path / "films", tmp_path / "out.npz", reading)
    found = torch.from_numpy(np.load(tmp_path / "out.npz")["features"])
    source = open_videos(tmp_path / "films", None, Clips(4, 1, spread=1), short_side=int(64 / 0.875))
    ((clips, *_),) = (batch.values() for batch in evaluation_batches(source, EvalView((32, 64)), batch_size=2))
    assert clips.shape == (2, 3, 4, 32, 64)
    with torch.no_grad():
        expected = (FrameEncoder(encoder) if frames else encoder).features({"video": clips})
    assert relative(found, expected) < 1e-5


def test_wide_pictures_train_and_are_reported(tmp_path, pictures):
    method, source = MAE(MAEConfig(encoder_config((32, 64)), mae_decoder_config(16, 1, 2))), open_source(pictures)
    settings = TrainSettings(steps=2, batch_size=4, warmup_epochs=0.0, validate_every=2, precision="fp32")
    view, held_out, cpu = TrainView((32, 64), ratio=(1.5, 8 / 3)), EvalView((32, 64)), torch.device("cpu")
    pretrain(method, source, source, settings, tmp_path / "run", view=view, held_out_view=held_out, device=cpu, watch=4)
    assert write_report(tmp_path / "run").is_file()
    trained = MAE.from_pretrained(tmp_path / "run" / "final")
    assert trained.tokenizer.size_grid == (4, 8)
    assert torch.equal(table(method.encoder, (8, 8)), table(trained.encoder, (8, 8)))


def test_vit_configs_take_height_and_width():
    encoder = Encoder(vit_config("tiny", input_size=(32, 64)))
    assert encoder({"image": torch.rand(1, 3, 32, 64)}).x.shape == (1, 9, 192)
