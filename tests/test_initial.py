"""Continued pretraining: `--init` takes weights wherever they lie, or says in a sentence why they do not fit."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mmssl import MAE, Encoder, SiamMAE, VideoMAE
from mmssl.cli import run
from mmssl.decoder import mae_decoder_config
from mmssl.encoder import EncoderConfig, vit_config
from mmssl.errors import UserError
from mmssl.interop import mae as mae_forms
from mmssl.interop import to_theirs
from mmssl.modality import image
from mmssl.objectives import MAEConfig, Objective, SiamMAEConfig, VideoMAEConfig
from mmssl.objectives.siammae import siammae_decoder_config
from mmssl.objectives.videomae import videomae_config, videomae_decoder_config
from mmssl.pretraining.initial import start_from
from mmssl.training import checkpoints
from tests.parity import assert_states_equal


def encoder(size: int = 32, patch: int = 8, model: str = "tiny"):
    return vit_config(model, modality=image(3, (patch, patch)), input_size=(size, size))


def mae(size: int = 32, decoder: tuple[int, int, int] = (32, 2, 2), seed: int = 1, **changes) -> MAE:
    torch.manual_seed(seed)
    return MAE(MAEConfig(encoder(size, **changes), mae_decoder_config(*decoder)))


def siammae() -> SiamMAE:
    return SiamMAE(SiamMAEConfig(encoder(), siammae_decoder_config(32, 1, 2), mask_ratio=0.5))


def pictures(size: int = 32) -> dict[str, torch.Tensor]:
    values = torch.arange(2 * 3 * size * size, dtype=torch.float32).sin() / 2 + 0.5
    return {"image": values.view(2, 3, size, size), "sample_id": torch.arange(2)} | {
        name: torch.zeros(2, dtype=torch.long) for name in ("epoch", "draw")
    }


def test_a_folder_of_the_same_method_brings_encoder_and_decoder(tmp_path):
    given = mae(decoder=(64, 1, 2))
    given.save_pretrained(tmp_path / "run" / "final")
    for source in (tmp_path / "run", tmp_path / "run" / "final"):
        started, told = start_from(mae(seed=2), str(source))
        assert told.endswith("encoder and decoder")
        assert_states_equal(started.state_dict(), given.state_dict())
        assert started(pictures()).loss == given(pictures()).loss


def test_masks_and_targets_stay_those_of_the_run(tmp_path):
    mae().save_pretrained(tmp_path)
    asked = MAE(dataclasses.replace(mae(seed=2).config, mask_ratio=0.5, norm_pix=True, seed=7))
    config = start_from(asked, str(tmp_path))[0].config
    assert (config.mask_ratio, config.norm_pix, config.seed) == (0.5, True, 7)


def test_another_method_or_an_encoder_alone_brings_the_encoder(tmp_path):
    given = mae()
    given.save_pretrained(tmp_path / "mae")
    given.encoder.save_pretrained(tmp_path / "encoder")
    for source in ("mae", "encoder"):
        started, told = start_from(siammae(), str(tmp_path / source))
        assert told.endswith("the encoder; the decoder starts from random weights")
        assert isinstance(started, SiamMAE)
        assert_states_equal(started.encoder.state_dict(), given.encoder.state_dict())


@pytest.mark.parametrize("whole", [True, False])
def test_the_authors_file(tmp_path, whole):
    given = mae(decoder=(32, 2, 16))
    state = to_theirs(given.state_dict(), mae_forms.AUTHORS, (8, 8))
    if not whole:
        state = {name: value for name, value in state.items() if not name.startswith(("decoder", "mask_token"))}
    torch.save({"model": state}, tmp_path / "authors.pth")
    started, told = start_from(mae(seed=2), str(tmp_path / "authors.pth"))
    assert ("encoder and decoder" in told) == whole
    assert_states_equal(started.encoder.state_dict(), given.encoder.state_dict())
    if whole:
        assert started(pictures()).loss == given(pictures()).loss


def test_a_transformers_folder_brings_its_norms_eps_along(tmp_path):
    torch.manual_seed(0)
    plain = encoder()
    given = MAE(
        MAEConfig(
            dataclasses.replace(plain, transformer=dataclasses.replace(plain.transformer, norm_eps=1e-12)),
            mae_decoder_config(32, 1, 2, norm_eps=1e-12),
        )
    )
    started, told = start_from(mae(), str(given.to_transformers(tmp_path / "theirs")))
    assert told.endswith("encoder and decoder")
    assert started(pictures()).loss == given(pictures()).loss
    given.encoder.to_transformers(tmp_path / "vit")
    started, told = start_from(mae(), str(tmp_path / "vit"))
    assert told.endswith("random weights")
    assert started.config.encoder.transformer.norm_eps == 1e-12


def test_clips(tmp_path):
    def clips(seed: int) -> VideoMAE:
        torch.manual_seed(seed)
        config = videomae_config("tiny").encoder
        tokenizer = dataclasses.replace(config.tokenizers[0], size=(4, 32, 32))
        return VideoMAE(
            VideoMAEConfig(dataclasses.replace(config, tokenizers=(tokenizer,)), videomae_decoder_config(32, 1, 2), 0.5)
        )

    given = clips(1)
    with pytest.warns(UserWarning, match="eps"):  # of transformers' last norm, which theirs fixes
        theirs = given.to_transformers(tmp_path / "theirs")
    for folder in (given.save_pretrained(tmp_path / "ours"), theirs):
        started, told = start_from(clips(2), str(folder))
        assert told.endswith("encoder and decoder")
        assert_states_equal(started.state_dict(), given.state_dict())


def test_another_size_of_input_gets_interpolated_positions(tmp_path):
    given = mae(size=32)
    given.save_pretrained(tmp_path)
    started, _ = start_from(mae(size=48, seed=2), str(tmp_path))
    assert started.config.encoder.tokenizers[0].size == (48, 48)
    here, there = started.encoder, Encoder.from_pretrained(tmp_path)
    assert torch.equal(here.features(pictures(48)), there.features(pictures(48)))
    assert torch.equal(
        started.decoder.position((6, 6)), MAE.from_pretrained(tmp_path).decoder.position((6, 6))
    )  # as the weights would have met it


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (lambda: mae(model="small"), "12 blocks of 192 with 3 heads, this run's 12 blocks of 384.*: give --model tiny"),
        (lambda: mae(patch=16), "its patch is 8 x 8, this run's 16 x 16"),
        (lambda: VideoMAE(videomae_config("tiny")), "its modality is image, this run's video"),
    ],
)
def test_sizes_that_differ_are_refused_in_a_sentence(tmp_path, asked, words):
    mae().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=words):
        start_from(asked(), str(tmp_path))


def test_an_asked_decoder_of_another_size_is_refused(tmp_path):
    mae(decoder=(64, 1, 2)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="1 blocks of 64, and 2 of 32 are asked for: leave --decoder-dim"):
        start_from(mae(), str(tmp_path), own_decoder=True)
    with pytest.raises(UserError, match="nowhere"):
        start_from(mae(), "./nowhere")


def test_a_recipe_continues_on_ones_own_data_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "recipes"))
    import image_mae

    (tmp_path / "data").mkdir()
    for number in range(12):
        values = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "data" / f"{number}.png")
    given: Objective = mae(size=16)
    given.save_pretrained(tmp_path / "given")

    def recipe(*flags: object) -> int:
        line = f"--data {tmp_path}/data --out {tmp_path}/run --model tiny --size 16 --patch 8 --batch-size 4"
        line += " --workers 0 --epochs 1 --base-lr 1e-12 --weight-decay 0 --precision fp32"
        line += " --tracker none --save-every 1 --keep 9"
        monkeypatch.setattr(sys, "argv", ["image_mae.py", *line.split(), *map(str, flags)])
        return run(image_mae.main)

    assert recipe("--init", tmp_path / "given") == 0
    said = capsys.readouterr().out
    assert f"starts    from {tmp_path}/given: encoder and decoder" in said
    assert said.splitlines()[-1].startswith("         mmssl export")
    first = checkpoints.load(tmp_path / "run" / "step-00000001").state["model"]
    for name, value in given.state_dict().items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-9)
    assert recipe("--init", tmp_path / "given") == 0
    assert "resuming after step 3" in capsys.readouterr().out
    assert recipe() == 2
    assert "init: " in capsys.readouterr().err


@dataclass(frozen=True)
class PooledConfig:
    encoder: EncoderConfig = vit_config("tiny", modality=image(3, (8, 8)), input_size=(16, 16))


class Pooled(Objective):
    """A method without a decoder."""

    config_class = PooledConfig

    def __init__(self, config: PooledConfig):
        super().__init__()
        self.config, self.encoder = config, Encoder(config.encoder)
        self.head = nn.Linear(192, 4)


def test_a_method_without_a_decoder_starts_from_its_like_and_from_encoders(tmp_path):
    given = Pooled(PooledConfig())
    given.save_pretrained(tmp_path / "whole")
    given.encoder.save_pretrained(tmp_path / "encoder")
    for folder, told in (("whole", "all of it"), ("encoder", "the encoder; all else starts from random weights")):
        started, what = start_from(Pooled(PooledConfig()), str(tmp_path / folder))
        assert what.endswith(told)
        assert torch.equal(started.encoder.prefix_tokens, given.encoder.prefix_tokens)
        assert torch.equal(started.head.weight, given.head.weight) == (folder == "whole")
