"""CLIP: parity with open_clip and transformers, both ways, packed and padded, and the paper's numbers."""

import copy
import dataclasses
import json
import math

import open_clip
import pytest
import timm
import torch
import transformers
from torch import nn

from mmssl import CLIP, MAE, MLM, Encoder, UserError
from mmssl.commands.export import export
from mmssl.interop import read_weights
from mmssl.objectives import clip, load
from mmssl.training.gradients import Gradients
from mmssl.training.stopping import StopRequest
from tests.pairs import HEADS, LENGTH, PATCH, SIZE, WORDS, pairs, theirs_open_clip, theirs_transformers
from tests.parity import (
    assert_gradients_equal,
    assert_states_equal,
    gradients_as_weights,
    normalised,
    randomize,
    relative,
)


def tiny(**settings):
    return CLIP.from_official(theirs_open_clip().state_dict(), **HEADS, **settings)


def assert_trains_alike(one, other, batch, others_batch=None):
    """The same loss, and the same gradients of every tensor."""
    losses = [one(batch).loss, other(others_batch or batch).loss]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for loss in losses:
        loss.backward()
    expected = copy.deepcopy(other)
    for ours, theirs in zip(expected.parameters(), other.parameters(), strict=True):
        ours.grad = theirs.grad
    gradients_as_weights(expected)
    assert_gradients_equal(one, expected)


# open_clip and OpenAI


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("packing", [True, False])
def test_features_loss_and_gradients_are_those_of_open_clip(quick_gelu, packing):
    theirs, (batch, _) = theirs_open_clip(quick_gelu), pairs()
    settings = {**HEADS, "quick_gelu": quick_gelu, "packing": packing}
    ours = CLIP.from_official(theirs.state_dict(), **settings)
    pictures, texts, scale = theirs(normalised(ours.encoder, batch["image"]), batch["text"])
    assert relative(ours.encode_image(batch), pictures) < 1e-5
    assert relative(ours.encode_text(batch), texts) < 1e-5
    expected, found = open_clip.ClipLoss()(pictures, texts, scale), ours(batch)
    torch.testing.assert_close(found.loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(found.parts["scale"], scale.detach())
    nearest = (pictures @ texts.T).argmax(dim=1) == torch.arange(len(texts))
    assert found.parts["accuracy"] == nearest.float().mean()
    expected.backward()
    found.loss.backward()
    gradients_as_weights(theirs)
    assert_gradients_equal(ours, CLIP.from_official(theirs.state_dict(), **settings))


def archived(state):
    """A module that holds these tensors under their names."""
    root = nn.Module()
    for name, value in state.items():
        module, *path = root, *name.split(".")
        for part in path[:-1]:
            module = module.get_submodule(part) if part in dict(module.named_children()) else grown(module, part)
        module.register_buffer(path[-1], value)
    return root


def grown(module, name):
    module.add_module(name, nn.Module())
    return module.get_submodule(name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_openais_archives_of_half_precision_are_read(tmp_path):
    state = {name: value.half() for name, value in theirs_open_clip().state_dict().items()}
    numbers = {"input_resolution": SIZE, "context_length": LENGTH, "vocab_size": WORDS}
    state |= {name: torch.tensor(value) for name, value in numbers.items()}
    torch.jit.script(archived(state)).save(tmp_path / "ViT.pt")
    ours = CLIP.from_official(tmp_path / "ViT.pt", **HEADS)
    assert_states_equal(ours.state_dict(), CLIP.from_official(state, **HEADS).state_dict())
    assert {value.dtype for value in ours.state_dict().values()} == {torch.float32}
    assert ours.config.encoder.transformer.activation == "quick_gelu"


def test_open_clips_checkpoints_in_other_wrappings_are_read():
    state, expected = theirs_open_clip().state_dict(), None
    vision = ("visual.", "logit_scale")
    custom = {key if key.startswith(vision) else f"text.{key}": value for key, value in state.items()}
    parallel = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in state.items()}}
    expected = CLIP.from_official(state, **HEADS).state_dict()
    for wrapped in (custom, parallel):
        assert_states_equal(CLIP.from_official(wrapped, **HEADS).state_dict(), expected)


def test_files_that_are_no_vits_are_named():
    state = theirs_open_clip().state_dict()
    resnet = {key: value for key, value in state.items() if not key.startswith("visual.conv1")}
    with pytest.raises(UserError, match=r"with a ViT: it lacks visual\.conv1\.weight"):
        CLIP.from_official(resnet)
    with pytest.raises(UserError, match=r"holds keys that are not of this model: \['logit_bias'\]"):
        CLIP.from_official(state | {"logit_bias": torch.zeros(())}, **HEADS)
    narrow = state | {"text_projection": state["text_projection"][:, :8]}
    with pytest.raises(UserError, match=r"image_projection\.weight has shape \(24, 32\), the model expects \(8, 32\)"):
        CLIP.from_official(narrow, **HEADS)


@pytest.mark.parametrize("settings", [{}, {"quick_gelu": False, "end": 7}])
def test_open_clip_loads_the_folder_and_so_does_mmssl(settings, tmp_path, capsys):
    ours, (batch, _) = randomize(tiny(**settings)), pairs()
    batch["text"][:, 3] = 7
    ours.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs", "open_clip")
    told: dict = {}
    exec(capsys.readouterr().out, told)
    theirs = told["model"].eval()
    pictures, texts, _ = theirs(normalised(ours.encoder, batch["image"]), batch["text"])
    assert relative(ours.encode_image(batch), pictures) < 1e-5
    assert relative(ours.encode_text(batch), texts) < 1e-5
    assert_states_equal(theirs.state_dict(), read_weights(tmp_path / "theirs"))
    assert tuple(theirs.visual.image_mean) == ours.config.encoder.tokenizers[0].modality.mean
    for again in (CLIP.from_pretrained(tmp_path / "theirs"), load(tmp_path / "theirs")):
        assert_states_equal(again.state_dict(), ours.state_dict())
        assert again.config == ours.config


# transformers


@pytest.mark.parametrize("end", [2, 30])
@pytest.mark.parametrize("activations", [("quick_gelu", "quick_gelu"), ("gelu", "gelu_pytorch_tanh")])
def test_features_loss_and_gradients_are_those_of_transformers(activations, end, tmp_path):
    vision, text = ({"hidden_act": each} for each in activations)
    theirs = theirs_transformers(vision=vision, text={**text, "eos_token_id": end}, projection_dim=24)
    theirs.save_pretrained(tmp_path)
    ours, (batch, _) = CLIP.from_pretrained(tmp_path), pairs(padding=WORDS - 1)
    batch["text"][:, 5] = 30
    found = ours(batch)
    expected = theirs(batch["text"], normalised(ours.encoder, batch["image"]), return_loss=True)
    assert relative(ours.encode_image(batch), expected.image_embeds) < 1e-5
    assert relative(ours.encode_text(batch), expected.text_embeds) < 1e-5
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    found.loss.backward()
    expected.loss.backward()
    gradients_as_weights(theirs)
    theirs.save_pretrained(tmp_path / "gradients")
    assert_gradients_equal(ours, CLIP.from_pretrained(tmp_path / "gradients"))


def test_transformers_folders_are_written_exactly(tmp_path):
    theirs = theirs_transformers(text={"eos_token_id": 30}, projection_dim=24)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = CLIP.from_pretrained(tmp_path / "theirs")
    folder = ours.to_transformers(tmp_path / "written")
    again, told = transformers.CLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_states_equal(again.state_dict(), theirs.state_dict())
    assert again.config.text_config.eos_token_id == 30
    assert_states_equal(load(folder).state_dict(), ours.state_dict())
    assert load(folder).config == ours.config
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    picture = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    pixels = processor(picture, return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    torch.testing.assert_close(pixels, normalised(ours.encoder, picture[None] / 255), rtol=1e-5, atol=1e-5)


def test_folders_of_old_leave_settings_out_and_hold_tables_of_numbers(tmp_path):
    """As those of the hub: what is as in CLIPModel's defaults is not written."""
    theirs = theirs_transformers()
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("vision_config", "text_config"):
        for key in ("layer_norm_eps", "hidden_act", "num_channels"):
            config[name].pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected, state = CLIP.from_pretrained(tmp_path), read_weights(tmp_path)
    state |= {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None]}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_states_equal(CLIP.from_pretrained(tmp_path).state_dict(), expected.state_dict())
    assert expected.config.encoder.transformer.activation == "quick_gelu"


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_the_image_encoder_alone_goes_to_transformers_and_timm(quick_gelu, tmp_path):
    encoder, (batch, _) = randomize(tiny(quick_gelu=quick_gelu)).encoder.eval(), pairs()
    tokens, pixels = encoder(batch).x, normalised(encoder, batch["image"])
    folder = encoder.to_transformers(tmp_path / "vision")
    theirs, told = transformers.CLIPVisionModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert relative(theirs.eval()(pixels).pooler_output, tokens[:, 0]) < 1e-5
    theirs.save_pretrained(tmp_path / "again")
    assert relative(encoder.to_timm().eval().forward_features(pixels), tokens) < 1e-5
    encoder.save_timm(tmp_path / "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    assert relative(loaded.forward_features(pixels), tokens) < 1e-5
    for name in ("vision", "again", "timm"):
        again = Encoder.from_pretrained(tmp_path / name).eval()
        assert again.config == encoder.config
        assert_states_equal(again.state_dict(), encoder.state_dict())


def test_the_image_encoder_of_a_whole_model_is_read(tmp_path):
    whole = tiny().to_transformers(tmp_path)
    assert_states_equal(Encoder.from_pretrained(whole).state_dict(), CLIP.from_pretrained(whole).encoder.state_dict())


def test_what_others_cannot_express_is_named(tmp_path):
    plain = CLIP(dataclasses.replace(tiny().config, image_pool="mean"))
    wide = CLIP("tiny", size=32, patch=16, vocab=WORDS, length=LENGTH).config
    tokenizer = dataclasses.replace(wide.encoder.tokenizers[0], size=(16, 32))
    wide = CLIP(dataclasses.replace(wide, encoder=dataclasses.replace(wide.encoder, tokenizers=(tokenizer,))))
    assert not plain.forms and list(wide.forms) == ["clip", "open_clip"]
    for model, sentence in (
        (plain, r"transformers has nothing that CLIP could be written as; its encoder alone may, `encoder\.forms`"),
        (wide, "read square pictures in square patches"),
    ):
        with pytest.raises(UserError, match=sentence):
            model.to_transformers(tmp_path)
    with pytest.raises(UserError, match="hidden_act 'relu' is not one of quick_gelu, gelu"):
        CLIP.from_pretrained(theirs_transformers(text={"hidden_act": "relu"}).save_pretrained(tmp_path) or tmp_path)


# Texts


def test_packed_and_padded_train_alike():
    packed = randomize(tiny())
    padded = CLIP(dataclasses.replace(packed.config, packing=False))
    padded.load_state_dict(packed.state_dict())
    assert_trains_alike(packed, padded, pairs()[0])


@pytest.mark.parametrize("packing", [True, False])
def test_told_lengths_are_those_of_the_end_tokens_whatever_pads(packing):
    method = randomize(tiny(packing=packing))
    batch, lengths = pairs()
    expected = method.encode_text(batch)
    noise = torch.where(batch["text"] == 0, torch.randint(1, WORDS - 1, batch["text"].shape), batch["text"])
    for text in (batch["text"], noise):
        torch.testing.assert_close(method.encode_text({"text": text, "text.length": lengths}), expected)
    filled = batch["text"].masked_fill(batch["text"] == 0, WORDS - 1)  # as transformers pads
    torch.testing.assert_close(method.encode_text({"text": filled}), expected)
    shorter = {"text": batch["text"][:, : int(lengths.max())]}
    torch.testing.assert_close(method.encode_text(shorter), expected)


def test_no_padding_is_multiplied():
    method, rows = tiny(), []
    for block in method.text_encoder.transformer.blocks:
        block.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[:-1]))
    batch, lengths = pairs()
    method(batch)
    assert rows == [(int(lengths.sum()),)] * 2


def test_input_that_cannot_be_gets_one_sentence():
    method, (batch, lengths) = tiny(), pairs()
    with pytest.raises(UserError, match=r"holds \['image'\], but this encoder reads \['text'\]"):
        method({"image": batch["image"]})
    with pytest.raises(UserError, match=r"holds \['text'\], but this encoder reads \['image'\]"):
        method({"text": batch["text"]})
    with pytest.raises(UserError, match="row 2 holds no token; an empty caption has its end token at least"):
        method({**batch, "text.length": lengths * (torch.arange(5) != 2)})
    with pytest.raises(UserError, match=r"ids of shape \(5, 20\), expected \(B, at most 10\)"):
        method({**batch, "text": batch["text"].repeat(1, 2)})
    with pytest.raises(UserError, match="has no class token: set image_pool"):
        CLIP(
            dataclasses.replace(
                method.config, encoder=dataclasses.replace(method.config.encoder, prefix=0), image_pool="class"
            )
        )


# Training


def test_a_batch_in_chunks_has_the_loss_and_the_gradients_of_the_whole():
    whole, (batch, _) = randomize(tiny()), pairs(8)
    chunked, losses = copy.deepcopy(whole), []
    for method, chunks in ((whole, 1), (chunked, 4)):
        ids = {"sample_id": torch.arange(8)}
        losses.append(Gradients(method, chunks, torch.device("cpu"))({**batch, **ids}, StopRequest())[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    gradients_as_weights(whole)
    assert_gradients_equal(chunked, whole)


def test_the_accuracy_is_that_of_all_similarities():
    method, (image, text) = tiny(), torch.randn(2, 40, 24)
    expected = ((image @ text.T).argmax(1) == torch.arange(40)).float().mean()
    assert method.accuracy(image, text) == expected
    assert method.accuracy(image, image) == 1


def test_the_scale_is_learned_between_1_and_100():
    method = tiny()
    for asked, kept in ((9.0, math.log(100)), (-1.0, 0.0), (2.0, 2.0)):
        with torch.no_grad():
            method.logit_scale.fill_(asked)
        method.after_step(0.5)
        assert method.logit_scale.item() == pytest.approx(kept)


def test_an_mae_and_an_mlm_of_ours_start_the_encoders(tmp_path):
    mae, mlm = MAE("tiny", size=SIZE, patch=PATCH), MLM("tiny", vocab=WORDS, length=LENGTH, mask=4, special=(0, 2))
    towers = {"encoder": mae.config.encoder, "text_encoder": mlm.config.encoder}
    method = CLIP(clip.CLIPConfig(**towers, dim=24, image_pool="mean", text_pool="class"))
    method.encoder.load_state_dict(mae.encoder.state_dict())
    method.text_encoder.load_state_dict(mlm.encoder.state_dict())
    batch, lengths = pairs()
    batch |= {"text.length": lengths}
    torch.testing.assert_close(method.image_vector(batch), mae.encoder.features({"image": batch["image"]}))
    method(batch).loss.backward()
    again = CLIP.from_pretrained(method.save_pretrained(tmp_path))
    torch.testing.assert_close(again(batch).loss, method(batch).loss)


# The papers' numbers


def test_parameters_are_the_papers():
    counted = lambda part: sum(value.numel() for value in part.parameters())  # noqa: E731
    sizes = {
        ("base", 32, 224): (151_277_313, 87_456_000, 63_165_952),
        ("base", None, 224): (149_620_737, 85_799_424, 63_165_952),
        ("large", None, 224): (427_616_513, 303_179_776, 123_060_480),
        ("large", None, 336): (427_944_193, 303_507_456, 123_060_480),
    }
    for (model, patch, size), expected in sizes.items():
        with torch.device("meta"):
            method = CLIP(model, patch=patch, size=size)
        assert tuple(map(counted, (method, method.encoder, method.text_encoder))) == expected


def test_weights_start_as_open_clips_do():
    """In the size of each tensor's values."""
    settings = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1, "head_width": 16}
    words = {"context_length": 40, "vocab_size": 300, "width": 48, "layers": 2, "heads": 4}
    theirs = CLIP.from_official(open_clip.CLIP(56, settings, words).state_dict(), heads=4, text_heads=4)
    ours = CLIP(theirs.config).state_dict()
    for name, value in theirs.named_parameters():
        if value.requires_grad:
            assert ours[name].square().mean() == pytest.approx(value.square().mean().item(), rel=0.5), name
    assert ours["logit_scale"].item() == pytest.approx(2.659260, abs=1e-6)


def test_it_starts_at_chance():
    batch, _ = pairs(64)
    method = CLIP("tiny", size=SIZE, patch=PATCH, vocab=WORDS, length=LENGTH)
    assert method(batch).loss.item() == pytest.approx(math.log(64), rel=0.2)
