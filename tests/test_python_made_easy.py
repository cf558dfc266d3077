"""Methods by the name of a model, media as people hold them, and what a prompt prints."""

import numpy as np
import pytest
import torch

from mmssl import MAE, MAEConfig, SiamMAE, SiamMAEConfig, UserError, VideoMAE, VideoMAEConfig

SMALL = {
    MAE: {"size": 16, "patch": 8},
    SiamMAE: {"size": 32, "patch": 8, "mask_ratio": 0.5},
    VideoMAE: {"size": 16, "patch": 8, "frames": 4, "mask_ratio": 0.5},
}


@pytest.fixture(scope="module")
def encoder():
    return MAE("tiny", size=16, patch=8).encoder


@pytest.mark.parametrize("method", SMALL, ids=lambda method: method.__name__)
def test_a_model_of_the_family_is_named_and_learns(method):
    model = method("tiny", **SMALL[method])
    (tokenizer,) = model.config.encoder.tokenizers
    assert model.encoder.dim == 192 and tokenizer.modality.patch[-2:] == (8, 8)
    media = torch.randint(0, 256, (2, 3, *tokenizer.size), dtype=torch.uint8)
    model({tokenizer.modality.name: media, f"{tokenizer.modality.name}.1": media}).loss.backward()
    assert all(p.grad is not None for p in model.encoder.transformer.parameters())


def test_the_papers_configs_are_what_names_stand_for():
    for method, config in ((MAE, MAEConfig()), (SiamMAE, SiamMAEConfig()), (VideoMAE, VideoMAEConfig())):
        assert method.named() == config
    assert MAE.named("huge").encoder.tokenizers[0].modality.patch == (14, 14)
    assert SiamMAE().config == SiamMAE(SiamMAEConfig()).config == SiamMAEConfig()


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["tny"], {}, "unknown model size 'tny': choose one of tiny, small, base, large, huge"),
        (["tiny"], {"mask_ration": 0.5}, "MAE has no setting 'mask_ration': did you mean 'mask_ratio'?"),
        ([MAEConfig()], {"size": 64}, "MAE takes a whole config, or a model's name and size: not both"),
        (["tiny"], {"size": 50}, "patch 16 does not divide pictures of 50 pixels"),
    ],
)
def test_what_cannot_be_built_gets_one_sentence(arguments, settings, sentence):
    with pytest.raises(UserError) as refused:
        MAE(*arguments, **settings)
    assert str(refused.value).startswith(sentence)


def test_features_take_batches_tensors_and_arrays(encoder):
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)
    expected = encoder.features({"image": torch.from_numpy(array)})
    for media in (array, torch.from_numpy(array), {"image": array}, np.flip(np.flip(array, 3).copy(), 3)):
        assert torch.equal(encoder.features(media), expected)
    torch.testing.assert_close(encoder.features(array / 255), expected, atol=1e-5, rtol=1e-5)  # float64


@pytest.mark.parametrize(
    ("media", "sentence"),
    [
        (np.zeros((3, 16, 16), np.uint8), r"image: got shape \(3, 16, 16\), expected \(B, 3, 8\*n, 8\*n\)"),
        (np.zeros((2, 16, 16, 3), np.uint8), r"image: got shape \(2, 16, 16, 3\), expected"),
        (np.zeros((2, 3, 16, 16), np.int64), "image: got torch.int64, but media are uint8 0-255 or floating point 0-1"),
        (np.zeros(2, object), "image: got a numpy array of object, expected a tensor"),
        ("cat.png", "image: got a str, expected a tensor or numpy array"),
        ({"video": torch.zeros(2, 3, 16, 16)}, r"the batch holds \['video'\], but this encoder reads \['image'\]"),
    ],
)
def test_media_of_another_kind_get_one_sentence(encoder, media, sentence):
    with pytest.raises(UserError, match=sentence):
        encoder.features(media)


def test_a_prompt_prints_a_few_lines():
    told = repr(MAE("tiny", size=16, patch=8, norm_pix=True)).splitlines()
    assert told[0] == "MAE(mask_ratio=0.75, norm_pix=True, seed=0)"
    assert told[1].startswith("  encoder: Encoder(image 16 x 16 in patches of 8 x 8; 192 wide, 12 blocks, 3 heads, 5.")
    assert told[2].startswith("  decoder: Decoder(128 wide, 4 blocks, 4 heads, 0.") and len(told) == 3
    assert max(map(len, told)) < 120
