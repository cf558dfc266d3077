"""SigLIP: parity with transformers' SiglipModel, its folders, padding that is read or is not, and its numbers."""

import dataclasses
import json
import math
from functools import partial

import open_clip
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mmssl import CLIP, Encoder, SigLIP, UserError
from mmssl.objectives import load
from tests.pairs import LENGTH, PATCH, SIZE, WORDS, pairs, theirs_open_clip, theirs_transformers
from tests.parity import (
    assert_gradients_equal,
    assert_states_equal,
    gradients_as_weights,
    normalised,
    randomize,
    relative,
)

PAD = 1


def theirs(**settings):
    """Both towers of one width."""
    return theirs_transformers("Siglip", text={"hidden_size": 32, "num_attention_heads": 4}, **settings)


def tiny(**settings):
    return SigLIP("tiny", size=SIZE, patch=PATCH, vocab=WORDS, length=LENGTH, **settings)


def test_features_loss_and_gradients_are_those_of_transformers(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path)
    ours, (batch, _) = SigLIP.from_pretrained(tmp_path), pairs(padding=PAD)
    found = ours(batch)
    expected = model(batch["text"], normalised(ours.encoder, batch["image"]), return_loss=True)
    assert relative(ours.encode_image(batch), expected.image_embeds) < 1e-5
    assert relative(ours.encode_text(batch), expected.text_embeds) < 1e-5
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=0)
    found.loss.backward()
    expected.loss.backward()
    gradients_as_weights(model)
    model.save_pretrained(tmp_path / "gradients")
    assert_gradients_equal(ours, SigLIP.from_pretrained(tmp_path / "gradients"))


def test_transformers_folders_are_written_exactly(tmp_path):
    model = theirs()
    model.save_pretrained(tmp_path / "theirs")
    ours = SigLIP.from_pretrained(tmp_path / "theirs")
    assert list(ours.forms) == ["siglip"]
    folder = ours.to_transformers(tmp_path / "written")
    again, told = transformers.SiglipModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_states_equal(again.state_dict(), model.state_dict())
    assert_states_equal(load(folder).state_dict(), ours.state_dict())
    assert load(folder).config == ours.config
    with pytest.raises(UserError, match=r"holds .*SiglipModel.*; CLIP reads"):
        CLIP.from_pretrained(folder)
    with pytest.raises(UserError, match="holds tensors of another model; SigLIP reads open_clip's files"):
        SigLIP.from_official(theirs_open_clip().state_dict())
    theirs_transformers().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match=r"SigLIP reads transformers' SiglipModel.*; CLIP\.from_pretrained reads it"):
        SigLIP.from_pretrained(tmp_path / "clip")
    masked = SigLIP(dataclasses.replace(ours.config, attend_padding=False))
    with pytest.raises(UserError, match="has nothing that SigLIP could be written as"):
        masked.to_transformers(tmp_path / "masked")


def test_the_image_encoder_of_transformers_folders_is_read_alone(tmp_path):
    theirs().save_pretrained(tmp_path / "both")
    alone = transformers.SiglipVisionModel.from_pretrained(tmp_path / "both").eval()
    alone.save_pretrained(tmp_path / "alone")
    (batch, _), ours = pairs(), Encoder.from_pretrained(tmp_path / "both")
    expected = alone(normalised(ours, batch["image"])).last_hidden_state
    assert relative(ours({"image": batch["image"]}).x, expected) < 1e-5
    assert_states_equal(Encoder.from_pretrained(tmp_path / "alone").state_dict(), ours.state_dict())
    assert not ours.forms


@pytest.mark.parametrize("tanh", [True, False])
def test_open_clips_files_are_read(tanh, tmp_path):
    act = partial(nn.GELU, approximate="tanh" if tanh else "none")
    norm = partial(nn.LayerNorm, eps=1e-6)
    sizes = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "num_heads": 4, "act_layer": act}
    vision = {"class_token": False, "global_pool": "map", "num_classes": 0}
    text = {"context_length": LENGTH, "vocab_size": WORDS, "width": 32, "heads": 2, "layers": 2, "output_dim": 32}
    blocks = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "act_layer": act, "norm_layer": norm}
    image_tower = randomize(timm.models.VisionTransformer(**sizes, **vision)).eval()
    text_tower = randomize(open_clip.transformer.TextTransformer(**text, **blocks)).eval()
    state = {f"visual.trunk.{name}": value for name, value in image_tower.state_dict().items()}
    state |= {f"text.{name}": value for name, value in text_tower.state_dict().items()}
    state |= {"logit_scale": torch.tensor(2.0), "logit_bias": torch.tensor(-9.0)}
    ours, (batch, _) = SigLIP.from_official(state, heads=4, text_heads=2, gelu_tanh=tanh).eval(), pairs(padding=PAD)
    seen = image_tower(normalised(ours.encoder, batch["image"]))
    assert relative(ours.image_vector({"image": batch["image"]}), seen) < 1e-5
    assert relative(ours.encode_text(batch), F.normalize(text_tower(batch["text"]), dim=1)) < 1e-5
    assert (ours.logit_scale.item(), ours.logit_bias.item()) == (2, -9)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    told = {"model_cfg": {"vision_cfg": {"timm_pool": "map"}, "text_cfg": {}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    assert isinstance(load(tmp_path), SigLIP)
    with pytest.raises(UserError, match=r"SigLIP\.from_pretrained reads it"):
        CLIP.from_pretrained(tmp_path)


def test_texts_are_filled_to_the_whole_length_and_read_whole():
    method, (batch, lengths) = tiny(), pairs(padding=PAD)
    expected = method.encode_text(batch)
    noise = batch["text"].masked_fill(torch.arange(LENGTH) >= lengths[:, None], 7)
    told = {"text": noise, "text.length": lengths}
    assert torch.equal(method.encode_text(told), expected)
    shorter = {"text": noise[:3, :8], "text.length": lengths[:3].clamp(max=8)}
    filled = method.texts(shorter)["text"]
    assert filled.shape == (3, LENGTH) and (filled[:, 8:] == PAD).all()
    assert not torch.allclose(method.encode_text({"text": filled.masked_fill(filled == PAD, 2)}), expected[:3])
    with pytest.raises(UserError, match=r"ids of shape \(5, 20\), expected \(B, at most 10\)"):
        method.encode_text({"text": batch["text"].repeat(1, 2)})


def test_padding_that_is_not_attended_to_is_left_out_packed_as_padded():
    packed, (batch, lengths) = tiny(attend_padding=False), pairs()
    padded = SigLIP(dataclasses.replace(packed.config, packing=False))
    padded.load_state_dict(packed.state_dict())
    rows = []
    packed.text_encoder.transformer.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[:-1]))
    batch |= {"text.length": lengths}
    noise = torch.where(torch.arange(LENGTH) < lengths[:, None], batch["text"], 7)
    expected = padded.encode_text(batch)
    for text in (batch["text"], noise):
        torch.testing.assert_close(packed.encode_text({**batch, "text": text}), expected)
    assert rows[0] == (int(lengths.sum()),)


def test_parameters_are_those_of_transformers_default():
    with torch.device("meta"):
        assert sum(value.numel() for value in SigLIP("base").parameters()) == 203_155_970


def test_it_starts_as_the_paper_does():
    """Its loss, of features that are all at right angles: 10.0000454 for a pair and 4.54e-5 for each other caption."""
    method, count = tiny(), 16
    assert method.logit_scale.item() == pytest.approx(math.log(10))
    assert method.logit_bias.item() == -10
    apart = {"image": torch.eye(2 * count)[:count], "text": torch.eye(2 * count)[count:]}
    assert method.compare(apart).loss.item() == pytest.approx(10.0000454 + (count - 1) * 4.54e-5, rel=1e-6)
    scale = method.logit_scale.clone()
    method.after_step(0.5)
    assert torch.equal(method.logit_scale, scale)


def test_the_query_finds_the_vector_of_a_picture():
    """The head by its own words: attention of one query to all patches, and an MLP beside it."""
    method, (batch, _) = tiny(), pairs(2)
    tokens, pool = method.encoder(batch).x, method.pool
    heads = method.config.encoder.transformer.heads
    query = pool.attn.q(pool.query).view(1, heads, 1, -1)
    key, value = pool.attn.kv(tokens).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    found = F.scaled_dot_product_attention(query.expand(2, -1, -1, -1), key, value)
    found = pool.attn.proj(found.transpose(1, 2).flatten(1))
    expected = found + pool.mlp.layer(pool.mlp.norm(found))
    torch.testing.assert_close(method.image_vector(batch), expected)
