"""LiT: the image encoder stays as it is, and its vectors can be kept in place of the pictures."""

import dataclasses

import pytest
import torch
from torch import nn

from mmssl import FLIP, MAE, LiT, SigLIP, UserError
from mmssl.pretraining.towers import image_tower, text_tower
from mmssl.training import TrainSettings
from mmssl.training.optim import optimizer_for, set_learning_rate
from tests.pairs import LENGTH, PATCH, SIZE, WORDS, pairs
from tests.parity import assert_states_equal


def tiny(**settings):
    return LiT("tiny", size=SIZE, patch=PATCH, vocab=WORDS, length=LENGTH, **settings)


def test_a_step_moves_all_but_the_image_encoder():
    method, (batch, _) = tiny(), pairs()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    optimizer = optimizer_for(method, TrainSettings(steps=1), torch.device("cpu"))
    set_learning_rate(optimizer, 1e-2)
    method(batch).loss.backward()
    optimizer.step()
    moved = {name for name, value in method.state_dict().items() if value.numel() and not value.equal(before[name])}
    assert moved == {name for name in before if not name.startswith("encoder.") and before[name].numel()}


def test_kept_vectors_train_as_the_pictures_do():
    method, (batch, _) = tiny(), pairs()
    kept = {"text": batch["text"], "image.features": method.image_vector(batch)}
    assert torch.equal(method(kept).loss, method(batch).loss)
    with pytest.raises(UserError, match=r"image\.features: got shape \(5, 7\), expected \(B, 192\)"):
        method({**kept, "image.features": torch.rand(5, 7)})


def test_vectors_are_compared_as_they_are_or_projected():
    plain, (batch, _) = tiny(), pairs()
    assert isinstance(plain.image_projection, nn.Identity)
    torch.testing.assert_close(plain.encode_image(batch), nn.functional.normalize(plain.image_vector(batch)))
    projecting = LiT(dataclasses.replace(plain.config, dim=24))
    assert projecting.encode_image(batch).shape == projecting.encode_text(batch).shape == (5, 24)
    projecting(batch).loss.backward()
    assert projecting.image_projection.weight.grad.abs().sum() > 0


def test_a_locked_encoder_is_not_in_training_mode():
    for method in (tiny(), tiny().eval().train()):
        assert method.training and method.text_encoder.training and not method.encoder.training


def test_an_mae_of_ours_is_locked(tmp_path):
    mae, config = MAE("tiny", size=SIZE, patch=PATCH), tiny().config
    method = LiT(dataclasses.replace(config, encoder=mae.config.encoder, image_pool="mean"))
    method.encoder.load_state_dict(mae.encoder.state_dict())
    batch, _ = pairs()
    again = LiT.from_pretrained(method.save_pretrained(tmp_path))
    torch.testing.assert_close(again.image_vector(batch), mae.encoder.features({"image": batch["image"]}))
    assert not any(value.requires_grad for value in again.encoder.parameters())


@pytest.mark.parametrize("kind", [SigLIP, FLIP, LiT])
def test_encoders_are_taken_from_runs_of_every_method_of_pairs(kind, tmp_path):
    method = kind("tiny", size=SIZE, patch=PATCH, vocab=WORDS, length=LENGTH)
    method.save_pretrained(tmp_path)
    (image, image_pool), (text, text_pool) = image_tower(str(tmp_path)), text_tower(str(tmp_path))
    assert (image_pool, text_pool) == (method.config.image_pool, method.config.text_pool)
    assert_states_equal(image.state_dict(), method.encoder.state_dict())
    assert_states_equal(text.state_dict(), method.text_encoder.state_dict())
