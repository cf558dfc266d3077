"""A small encoder gets a small decoder, whatever the method; base and above keep the papers'."""

import sys
from pathlib import Path

import pytest

from mmssl import MAE, SiamMAE, VideoMAE
from mmssl.decoder import MAE_DECODERS, decoder_size
from mmssl.encoder import SIZES
from mmssl.errors import UserError
from mmssl.objectives.videomae import DECODERS

RECIPES = [("image_mae", "ImageMAE"), ("video_siammae", "VideoSiamMAE"), ("video_videomae", "VideoVideoMAE")]


@pytest.mark.parametrize(("module", "name"), RECIPES)
def test_every_recipe_scales_its_decoder_and_can_be_told_another(monkeypatch, module, name):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "recipes"))
    recipe = getattr(__import__(module), name)
    for model in ("tiny", "small"):
        config = recipe(data=Path("media"), model=model).method()
        encoder, decoder = config.encoder.transformer, config.decoder.transformer
        assert decoder.dim**2 * decoder.depth < encoder.dim**2 * encoder.depth / 4
    told = recipe(data=Path("media"), model="tiny", decoder_dim=64, decoder_depth=2).method().decoder.transformer
    assert (told.dim, told.depth, told.heads) == (64, 2, 2)
    base = recipe(data=Path("media"), model="base").method().decoder.transformer
    assert (base.dim, base.depth, base.heads) == ((384, 4, 6) if "videomae" in module else (512, 8, 16))
    sys.modules.pop(module)


@pytest.mark.parametrize("method", [MAE, SiamMAE, VideoMAE])
def test_python_and_the_recipes_agree(method):
    sizes = [method("tiny").config.decoder.transformer, method("tiny", decoder_dim=64).config.decoder.transformer]
    assert [size.dim for size in sizes] == [96 if method is VideoMAE else 128, 64]


def test_the_sizes_are_those_of_the_family():
    assert set(MAE_DECODERS) == set(DECODERS) == set(SIZES)
    assert decoder_size("small") == (256, 4, 8)
    assert decoder_size("base", family=DECODERS) == (384, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("giant",), "choose one of tiny, small"),
        (("tiny", 100), "a multiple of 32"),
        (("base", 0), "a multiple of 32"),
        (("tiny", None, 0), "decoder-depth 1 or more"),
    ],
)
def test_sizes_that_cannot_be_get_one_sentence(arguments, words):
    with pytest.raises(UserError, match=words):
        decoder_size(*arguments)
