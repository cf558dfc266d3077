"""The one transformer against transformers' models: ViT is in test_mae.py, here are the others."""

import pytest
import torch
import transformers
from mmssl_kernels import attention

from mmssl.transformer import Transformer, TransformerConfig

D, HEADS, DEPTH, HIDDEN = 32, 4, 2, 48


def load(ours: Transformer, block_keys, theirs, layers):
    """Copy weights by a table of (our key, their keys joined row by row), layer by layer."""
    state = dict(ours.state_dict())
    for i in range(DEPTH):
        for key, sources in block_keys.items():
            values = torch.cat([theirs[f"{layers}.{i}.{source}"] for source in sources.split()])
            assert state[f"blocks.{i}.{key}"].shape == values.shape
            state[f"blocks.{i}.{key}"] = values
    ours.load_state_dict(state)


def layer(ours, *theirs):
    return {f"{ours}.{part}": " ".join(f"{name}.{part}" for name in theirs) for part in ("weight", "bias")}


def randomize(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)


def test_bert_is_a_setting():
    config = transformers.BertConfig(
        hidden_size=D, num_attention_heads=HEADS, num_hidden_layers=DEPTH, intermediate_size=HIDDEN, vocab_size=9
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False).eval()
    randomize(theirs)
    ours = Transformer(
        TransformerConfig(D, DEPTH, HEADS, HIDDEN, norm_order="post", norm_eps=1e-12, final_norm=False)
    ).eval()
    a = "attention.self."
    keys = {
        **layer("attn.layer.qkv", f"{a}query", f"{a}key", f"{a}value"),
        **layer("attn.layer.proj", "attention.output.dense"),
        **layer("attn.norm", "attention.output.LayerNorm"),
        **layer("mlp.layer.fc1", "intermediate.dense"),
        **layer("mlp.layer.fc2", "output.dense"),
        **layer("mlp.norm", "output.LayerNorm"),
    }
    load(ours, keys, theirs.state_dict(), "encoder.layer")
    x, lengths = torch.randn(3, 7, D), torch.tensor([7, 4, 1])
    valid = torch.arange(7) < lengths[:, None]
    bias = torch.zeros(3, 1, 1, 7).masked_fill(~valid[:, None, None], torch.finfo(torch.float32).min)
    expected = x
    for block in theirs.encoder.layer:
        out = block(expected, bias)
        expected = out[0] if isinstance(out, tuple) else out
    assert torch.allclose(ours(x, lengths)[valid], expected[valid], atol=1e-5)


def test_clip_text_is_a_setting():
    config = transformers.CLIPTextConfig(
        hidden_size=D, num_attention_heads=HEADS, num_hidden_layers=DEPTH, intermediate_size=HIDDEN, vocab_size=99
    )
    theirs = transformers.CLIPTextModel(config).eval()
    randomize(theirs)
    ours = Transformer(
        TransformerConfig(D, DEPTH, HEADS, HIDDEN, norm_eps=1e-5, activation="quick_gelu", causal=True)
    ).eval()
    a = "self_attn."
    keys = {
        **layer("attn.layer.qkv", f"{a}q_proj", f"{a}k_proj", f"{a}v_proj"),
        **layer("attn.layer.proj", f"{a}out_proj"),
        **layer("attn.norm", "layer_norm1"),
        **layer("mlp.layer.fc1", "mlp.fc1"),
        **layer("mlp.layer.fc2", "mlp.fc2"),
        **layer("mlp.norm", "layer_norm2"),
    }
    load(ours, keys, theirs.state_dict(), "encoder.layers")
    ours.final_norm.load_state_dict(theirs.final_layer_norm.state_dict())
    ids = torch.randint(0, 90, (2, 11))
    with torch.no_grad():
        assert torch.allclose(ours(theirs.embeddings(ids)), theirs(ids).last_hidden_state, atol=1e-5)


def test_videomae_is_a_setting():
    config = transformers.VideoMAEConfig(
        hidden_size=D,
        num_attention_heads=HEADS,
        num_hidden_layers=DEPTH,
        intermediate_size=HIDDEN,
        image_size=16,
        patch_size=8,
        num_frames=4,
        use_mean_pooling=False,
    )
    theirs = transformers.VideoMAEModel(config).eval()
    randomize(theirs)
    state = theirs.state_dict()
    ours = Transformer(TransformerConfig(D, DEPTH, HEADS, HIDDEN, norm_eps=1e-12, qkv_bias="query_value")).eval()
    a = "attention.attention."
    keys = {
        "attn.layer.qkv.weight": f"{a}query.weight {a}key.weight {a}value.weight",
        "attn.layer.query_value_bias": f"{a}query.bias {a}value.bias",
        **layer("attn.layer.proj", "attention.output.dense"),
        **layer("attn.norm", "layernorm_before"),
        **layer("mlp.layer.fc1", "intermediate.dense"),
        **layer("mlp.layer.fc2", "output.dense"),
        **layer("mlp.norm", "layernorm_after"),
    }
    load(ours, keys, state, "encoder.layer")
    ours.final_norm.load_state_dict(theirs.layernorm.state_dict())
    clip = torch.randn(2, 4, 3, 16, 16)
    with torch.no_grad():
        x = theirs.embeddings(clip, None)
        assert torch.allclose(ours(x), theirs(clip).last_hidden_state, atol=1e-5)


def test_dinov2_is_a_setting():
    config = transformers.Dinov2Config(
        hidden_size=D,
        num_attention_heads=HEADS,
        num_hidden_layers=DEPTH,
        image_size=28,
        patch_size=14,
        use_swiglu_ffn=True,
        layerscale_value=0.5,
    )
    theirs = transformers.Dinov2Model(config).eval()
    randomize(theirs)
    state = theirs.state_dict()
    hidden = state["encoder.layer.0.mlp.down_proj.weight"].shape[1]
    ours = Transformer(
        TransformerConfig(D, DEPTH, HEADS, hidden, activation="swiglu", layer_scale=1.0, norm_eps=config.layer_norm_eps)
    ).eval()
    a = "attention."
    keys = {
        **layer("attn.layer.qkv", f"{a}q_proj", f"{a}k_proj", f"{a}v_proj"),
        **layer("attn.layer.proj", f"{a}o_proj"),
        **layer("attn.norm", "norm1"),
        "attn.scale": "layer_scale1.lambda1",
        **layer("mlp.layer.fc1", "mlp.gate_proj", "mlp.up_proj"),
        **layer("mlp.layer.fc2", "mlp.down_proj"),
        **layer("mlp.norm", "norm2"),
        "mlp.scale": "layer_scale2.lambda1",
    }
    load(ours, keys, state, "encoder.layer")
    ours.final_norm.load_state_dict(theirs.layernorm.state_dict())
    pictures = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert torch.allclose(ours(theirs.embeddings(pictures)), theirs(pictures).last_hidden_state, atol=1e-5)


def test_padding_is_never_read():
    transformer = Transformer(TransformerConfig(D, DEPTH, HEADS))
    x, lengths = torch.randn(2, 6, D), torch.tensor([6, 3])
    changed = x.clone()
    changed[1, 3:] = 1e3
    valid = torch.arange(6) < lengths[:, None]
    assert torch.equal(transformer(x, lengths)[valid], transformer(changed, lengths)[valid])


def test_causal_tokens_never_read_the_future():
    transformer = Transformer(TransformerConfig(D, DEPTH, HEADS, causal=True))
    x = torch.randn(2, 6, D)
    changed = x.clone()
    changed[:, 4:] += 1
    for lengths in (None, torch.tensor([6, 5])):
        assert torch.equal(transformer(x, lengths)[:, :4], transformer(changed, lengths)[:, :4])


@pytest.mark.parametrize("lengths", [(4, 4, 4), (4, 1, 3)], ids=["of one length", "of several"])
def test_packed_sequences_are_what_they_are_alone(lengths):
    transformer = Transformer(TransformerConfig(D, DEPTH, HEADS, causal=True))
    apart = [torch.randn(length, D) for length in lengths]
    alone = torch.cat([transformer(x[None])[0] for x in apart])
    packed = transformer(torch.cat(apart), torch.tensor(lengths))
    assert packed.shape == alone.shape
    assert torch.allclose(packed, alone, atol=1e-5)


def test_no_samples_give_no_tokens():
    assert Transformer(TransformerConfig(D, DEPTH, HEADS))(torch.zeros(0, 5, D)).shape == (0, 5, D)


def test_a_query_without_keys_gets_zeros():
    q, k = torch.randn(2, 3, HEADS, 8), torch.randn(2, 5, HEADS, 8)
    out = attention(q, k, k, key_padding=torch.arange(k.shape[1]) >= torch.tensor([[5], [0]]))
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert out[0].abs().min() > 0


def test_drop_path_keeps_the_mean_and_drops_whole_samples():
    transformer = Transformer(TransformerConfig(D, 2, HEADS, drop_path=0.5, final_norm=False))
    x = torch.randn(1, 4, D)
    last = transformer.blocks[1].mlp
    out = last(x.expand(4000, 4, D)) - x
    dropped = (out == 0).flatten(1).all(dim=1)
    assert abs(dropped.double().mean().item() - 0.5) < 5 * (0.25 / 4000) ** 0.5
    transformer.eval()
    assert torch.allclose(out[~dropped][0], 2 * (last(x) - x)[0], atol=1e-5)


def test_widths_that_do_not_divide_into_heads_are_refused():
    with pytest.raises(ValueError, match="width 30 does not divide into 4 heads"):
        TransformerConfig(30, 1, 4)
