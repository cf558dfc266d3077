"""SiamMAE: the public CropMAE layout, the paper's counts, and what each frame may and may not tell."""

import dataclasses

import pytest
import torch
from torch import nn

from mmssl import MAE, Encoder, SiamMAE
from mmssl.encoder import vit_config
from mmssl.errors import UserError
from mmssl.interop import siammae, to_theirs
from mmssl.modality import image
from mmssl.objectives import SiamMAEConfig
from mmssl.objectives.siammae import siammae_decoder_config
from tests.parity import assert_states_equal, cropmae_decoder_config, normalised, randomize, relative


def tiny(decoder=None, **settings) -> SiamMAE:
    encoder = vit_config("tiny", modality=image(3, (8, 8)), input_size=(32, 32))
    return SiamMAE(
        SiamMAEConfig(encoder, decoder or siammae_decoder_config(32, 2, 2), **{"mask_ratio": 0.75, **settings})
    )


def pairs(batch=2):
    return {
        "image": torch.rand(batch, 3, 32, 32),
        "image.1": torch.rand(batch, 3, 32, 32),
        "sample_id": torch.arange(batch),
    }


def cropmae_decode(state, past, future, mask, heads):
    """CropMAE's decoder in torch's own modules (alexandre-eymael/CropMAE): cross -> MLP -> self, norms behind."""
    dim = len(state["decoder_embed.weight"])

    def linear(name, x):
        return nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    past, future = linear("decoder_embed", past), linear("decoder_embed", future)
    full = state["mask_token"].expand(len(future), mask.count + 1, dim).clone()
    full[:, 0] = future[:, 0]
    full.scatter_(1, 1 + mask.keep.index[..., None].expand(-1, -1, dim), future[:, 1:])
    x = full + state["decoder_pos_embed"]
    for i in range(1 + max(int(key.split(".")[1]) for key in state if key.startswith("decoder_blocks."))):
        layer = nn.TransformerDecoderLayer(dim, heads, 2048, 0.0, nn.functional.gelu, 1e-6, batch_first=True)
        prefix = f"decoder_blocks.{i}."
        layer.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        x = layer.norm2(x + layer.multihead_attn(x, past, past, need_weights=False)[0])
        x = layer.norm3(x + layer.linear2(layer.activation(layer.linear1(x))))
        x = layer.norm1(x + layer.self_attn(x, x, x, need_weights=False)[0])
    x = nn.functional.layer_norm(x, (dim,), state["decoder_norm.weight"], state["decoder_norm.bias"], 1e-6)
    return linear("decoder_pred", x)[:, 1:]


def test_cropmae_files_give_the_same_predictions(tmp_path):
    method = randomize(tiny(cropmae_decoder_config(32, 2, 2)))
    state = to_theirs(method.state_dict(), siammae.CROPMAE, (8, 8))
    assert state["decoder_blocks.1.multihead_attn.in_proj_weight"].shape == (96, 32)
    assert state["decoder_blocks.0.linear1.weight"].shape == (2048, 32)
    torch.save({"model": state}, tmp_path / "cropmae.pth")
    ours = SiamMAE.from_official(tmp_path / "cropmae.pth", decoder_heads=2, mask_ratio=0.75)
    assert ours.config.decoder == method.config.decoder
    assert_states_equal(ours.state_dict(), method.state_dict())
    batch = pairs()
    out = ours(batch)
    encoder = ours.encoder.to_timm().eval()  # the file's encoder has timm's names; a whole frame goes through it
    past = encoder.forward_features(normalised(ours.encoder, batch["image"]))
    future = ours.encoder({"image": batch["image.1"]}, out.mask).x
    with torch.no_grad():
        expected = cropmae_decode(state, past, future, out.mask, 2)
    hidden = expected.gather(1, out.mask.hide.index[..., None].expand_as(out.prediction))
    assert relative(out.prediction, hidden) < 1e-5
    assert_states_equal(Encoder.from_official({"model": state}).state_dict(), method.encoder.state_dict())


def test_files_of_other_methods_are_named():
    mae = MAE("tiny")
    with pytest.raises(UserError, match="not a file of CropMAE"):
        SiamMAE.from_official({"model": mae.state_dict()})


def counts(module):
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts():
    with torch.device("meta"):
        ours = SiamMAE(SiamMAEConfig(decoder=siammae_decoder_config(256, 4, 8)))
        theirs = SiamMAE(SiamMAEConfig(decoder=cropmae_decoder_config()))
    assert counts(ours.encoder) == 21_665_664
    assert counts(ours) == 26_226_560
    assert counts(theirs) == 28_327_808


def test_the_mask_is_the_papers():
    with torch.device("meta"):
        methods = [SiamMAE(SiamMAEConfig(vit_config("small", modality=image(3, (p, p))))) for p in (16, 8)]
    frames = torch.empty(2, 3, 224, 224, dtype=torch.uint8)
    batch = {"image": frames, "image.1": frames, "sample_id": torch.arange(2)}
    assert [m.hide(batch).keep.index.shape[1] for m in methods] == [9, 39]
    assert [m.hide(batch).hide.index.shape[1] for m in methods] == [187, 745]


def test_predicting_zero_costs_what_the_paper_says():
    method = tiny()
    for parameter in (method.decoder.pred.weight, method.decoder.pred.bias):
        nn.init.zeros_(parameter)
    assert method(pairs()).loss.item() == pytest.approx(191 / 192, rel=1e-3)


def test_the_past_is_read_and_the_hidden_future_is_not():
    method, batch = tiny(), pairs()
    out = method(batch)
    hidden = out.mask.hide.boolean(16).unflatten(1, (1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    poisoned = {**batch, "image.1": torch.where(hidden, torch.nan, batch["image.1"])}
    assert torch.equal(method(poisoned, out.mask).prediction, out.prediction)
    other = {**batch, "image": torch.rand_like(batch["image"])}
    assert not torch.allclose(method(other, out.mask).prediction, out.prediction, atol=1e-4)
    # the past is no target: the loss compares with the future alone
    future = {**batch, "image.1": torch.rand_like(batch["image.1"])}
    assert method(future, out.mask).loss != out.loss


def test_both_frames_pass_through_one_encoder():
    method, batch = tiny(), pairs()
    batch["image"].requires_grad_()
    batch["image.1"].requires_grad_()
    out = method(batch)
    out.prediction.square().sum().backward()
    assert (batch["image"].grad != 0).any(dim=1).all()
    kept = (batch["image.1"].grad != 0).any(dim=1, keepdim=True).unfold(2, 8, 8).unfold(3, 8, 8).flatten(-2).any(-1)
    assert torch.equal(kept.flatten(1), out.mask.keep.boolean(16))
    assert all(p.grad is not None for p in method.encoder.transformer.parameters())


def test_positions_on_the_past_frame_are_a_setting():
    torch.manual_seed(0)
    method = tiny()
    without = SiamMAE(
        dataclasses.replace(method.config, decoder=dataclasses.replace(method.config.decoder, context_position=False))
    )
    without.load_state_dict(method.state_dict())
    batch = pairs()
    mask = method.hide(batch)
    assert not torch.allclose(method(batch, mask).prediction, without(batch, mask).prediction, atol=1e-4)


def test_reconstruction_shows_the_future():
    method, batch = tiny(), pairs()
    out = method(batch)
    picture = method.reconstruct(batch, out)
    kept = ~out.mask.hide.boolean(16).unflatten(1, (1, 4, 4)).repeat_interleave(8, 2).repeat_interleave(8, 3)
    kept = kept.expand_as(picture)
    assert torch.allclose(picture[kept], batch["image.1"][kept], atol=1e-5)


def test_a_batch_without_pairs_is_refused():
    with pytest.raises(UserError, match="reads frame pairs"):
        tiny()({"image": torch.rand(1, 3, 32, 32)})
