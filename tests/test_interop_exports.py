"""Exported folders are whole: other libraries load them by the lines that are printed, and so does mmssl."""

import stat

import pytest
import timm
import torch
import transformers

from mmssl import MAE, Encoder, UserError
from mmssl.commands.export import export
from mmssl.encoder import vit_config
from mmssl.modality import DEPTH, image


@pytest.fixture(params=[3, 1])
def encoder(request) -> Encoder:
    torch.manual_seed(0)
    return Encoder(vit_config("tiny", modality=image(request.param, (8, 8)), input_size=(16, 24))).eval()


def test_timm_loads_its_folder_and_so_does_mmssl(encoder, tmp_path, capsys):
    encoder.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "timm", "timm")
    told: dict = {}
    exec(capsys.readouterr().out, told)
    model = told["model"].eval()
    batch = torch.randint(0, 256, (2, encoder.config.tokenizers[0].modality.channels, 16, 24), dtype=torch.uint8)
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))
    ours = encoder({"image": batch}).x
    torch.testing.assert_close(model.forward_features((batch / 255 - mean) / std), ours, rtol=1e-5, atol=1e-5)
    assert data["input_size"] == tuple(batch.shape[1:]) and model.num_classes == 0
    again = Encoder.from_pretrained(tmp_path / "timm").eval()
    assert torch.equal(again({"image": batch}).x, ours)
    assert stat.S_IMODE((tmp_path / "timm" / "model.safetensors").stat().st_mode) & 0o044


def test_transformers_processor_gives_the_pixels_that_the_tokenizer_makes(encoder, tmp_path):
    folder = encoder.to_transformers(tmp_path)
    tokenizer = encoder.tokenizer("image")
    batch = torch.randint(0, 256, (1, tokenizer.modality.channels, 16, 24), dtype=torch.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(batch[0], return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    expected = (batch / 255 - tokenizer.mean[:, None, None]) / tokenizer.std[:, None, None]
    torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(Encoder.from_pretrained(folder).features({"image": batch}), encoder.features({"image": batch}))


def test_transformers_loads_every_weight_from_the_folder(encoder, tmp_path):
    folder = encoder.to_transformers(tmp_path)
    _, told = transformers.ViTModel.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]


def test_what_a_model_can_become_is_listed_and_anything_else_refused(tmp_path, capsys):
    MAE("tiny", size=16, patch=8).save_pretrained(tmp_path / "mae")
    Encoder(vit_config("tiny", modality=DEPTH, input_size=(32, 32))).save_pretrained(tmp_path / "depth")
    export(tmp_path / "mae", None, "list")
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["vit", "timm", "vit_mae", "onnx", "torch-export"]
    assert "ViTMAEForPreTraining" in listed[2]
    for model, to, sentence in (
        ("mae", "videomae", "cannot become 'videomae', only vit, timm, vit_mae, onnx, torch-export"),
        ("mae", "vit", "give --out DIR"),
        ("depth", "timm", "nor anything else that mmssl writes"),
    ):
        with pytest.raises(UserError, match=sentence):
            export(tmp_path / model, None, to)


def test_what_no_library_has_is_named(tmp_path):
    depth = Encoder(vit_config("tiny", modality=DEPTH, input_size=(16, 128)))
    with pytest.raises(UserError, match=r"^timm has nothing that an encoder of depth could be written as$"):
        depth.save_timm(tmp_path)
