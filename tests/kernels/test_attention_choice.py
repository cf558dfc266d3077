"""Who computes attention: the table, its reasons, and others' code behind our layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmssl_kernels import Window, attention, explain_attention, reference
from mmssl_kernels.attention import attention_triton, backward_triton, choice, vendors
from mmssl_kernels.attention.problem import Problem
from mmssl_kernels.frame.launch import recorded

from tests.kernels.support import DEVICE, draw, gradients
from tests.kernels.test_attention import LENGTHS, packed_operands

SHORT, LONG = (256, 50, 12, 64), (32, 1568, 6, 64)
WINDOW = Window((64, 8), (4, 4), (2, 0))


@pytest.fixture(autouse=True)
def _any_machine(monkeypatch):
    monkeypatch.delenv("MMSSL_KERNELS", raising=False)
    monkeypatch.setattr(choice, "has_xformers", lambda: True)
    torch.use_deterministic_algorithms(False)


CALLS = {
    ("sm_90", SHORT): "triton",
    ("sm_90", LONG): "cudnn",
    ("sm_80", LONG): "flash",
    ("gfx942", LONG): "flash",
    ("sm_100", (32, 1568, 6, 128)): "cudnn",
    ("sm_90", (32, 1568, 6, 160)): "flash",
    ("sm_90", (32, 1568, 6, 200)): "efficient",
    ("sm_90", (32, 1568, 6, 81)): "triton",
    ("sm_90", (32, 1568, 6, 300)): "blocks",
    ("sm_90", (32, 1568, 6, 18), "float32"): "blocks",
    ("older", LONG): "efficient",
    ("other", LONG): "blocks",
    ("sm_90", SHORT, "float32"): "efficient",
    ("sm_90", LONG, "key_padding"): "efficient",
    ("sm_80", LONG, "key_padding"): "efficient",
    ("sm_90", LONG, "bias"): "triton",
    ("sm_90", LONG, "bias", "float32"): "blocks",
    ("sm_90", LONG, "causal", "key_padding"): "triton",
    ("sm_90", (64, 512, 16, 32), "window"): "triton",
    ("sm_90", (64, 512, 16, 32), "window", "float32"): "blocks",
    ("sm_90", SHORT, "packed"): "triton",
    ("sm_90", LONG, "packed"): "xformers",
    ("sm_80", LONG, "packed", "float32"): "xformers",
    ("sm_90", LONG, "packed", "causal"): "triton",
    ("cpu", SHORT): "flash",
    ("cpu", LONG, "float32"): "flash",
    ("cpu", LONG, "packed"): "blocks",
    ("cpu", SHORT, "bias"): "blocks",
}


@pytest.mark.parametrize("call", CALLS)
def test_the_table(call, monkeypatch):
    device, shape, *flags = call
    dtype = torch.float32 if "float32" in flags else torch.bfloat16
    options = {name: True for name in flags if name not in ("float32", "window")}
    window = WINDOW if "window" in flags else None
    if device in ("older", "other"):
        monkeypatch.setattr(choice, "place_of", lambda _: call[0])
        device = "cpu"
    found = explain_attention(shape, device=device, dtype=dtype, window=window, **options)
    assert found.implementation == CALLS[call]
    assert str(found).startswith(f"{found.implementation} ({call[0]}, {32 if dtype == torch.float32 else 16} bit")


def test_an_explanation_is_one_line_with_reasons():
    found = explain_attention(LONG, device="sm_90", packed=True, causal=True)
    none = "it takes no packed sequences"
    assert str(found) == (
        f"triton (sm_90, 16 bit, long sequences; not cudnn: {none}; not flash: {none}; not efficient: {none}; "
        "not xformers: taken for packed sequences alone, not causal); its backward is deterministic"
    )


def test_deterministic_algorithms_are_honoured():
    assert not explain_attention(LONG, device="sm_90").deterministic
    torch.use_deterministic_algorithms(True)
    found = explain_attention(LONG, device="sm_90")
    assert (found.implementation, found.deterministic) == ("flash", True)
    assert found.passed_over == (("cudnn", "its backward is not deterministic"),)
    assert explain_attention(LONG, device="sm_90", gradient=False).implementation == "cudnn"
    for packed in (False, True):
        assert explain_attention(LONG, device="sm_90", dtype=torch.float32, packed=packed).implementation == "blocks"


def test_without_xformers_long_packed_sequences_are_ours(monkeypatch):
    monkeypatch.setattr(choice, "has_xformers", lambda: False)
    found = explain_attention(LONG, device="sm_90", packed=True)
    assert found.implementation == "triton" and found.passed_over[-1][1] == "not installed, or not for this torch"


flags = st.booleans()


@given(
    place=st.sampled_from(sorted(choice.CHOICES)), queries=st.integers(0, 600), keys=st.integers(0, 600),
    head_dim=st.integers(1, 400), causal=flags, padding=flags, packed=flags, windowed=flags, bias=flags, gradient=flags,
    exact_bias=flags, positive=flags, deterministic=flags, triton=flags, forced=flags,
)  # fmt: skip
def test_there_is_always_somebody(place, gradient, bias, **problem):
    family, width = place
    dtype = torch.float32 if width == 32 else torch.float16
    asked = Problem(family, dtype, bias=bias, bias_gradient=bias and gradient, gradient=gradient, **problem)
    found = choice.explain(asked)
    assert not choice.obstacle(found.implementation, asked)
    assert all(reason for _, reason in found.passed_over)


@pytest.mark.parametrize("form", ["plain", "causal", "key_padding", "bias", "learned bias"])
def test_what_runs_is_what_is_explained_and_never_the_math_path(form):
    """On a CPU, wherever the tests run."""
    q = torch.randn(2, 12, 2, 8, requires_grad=True)
    options = {} if form == "plain" else {form.split()[-1]: True}
    if form == "key_padding":
        options[form] = torch.zeros(2, 12, dtype=torch.bool)
    if "bias" in form:
        options["bias"] = torch.randn(2, 12, 12, requires_grad=form == "learned bias")
    with torch.profiler.profile(acc_events=True) as profile:
        attention(q, q, q, **options).sum().backward()
    ran = {event.key for event in profile.key_averages()}
    asked = {name: True for name in options if form != "bias"}  # a bias is taken to learn where one asks
    explained = explain_attention((2, 12, 2, 8), device="cpu", dtype=torch.float32, **asked)
    assert explained.implementation == ("blocks" if form == "learned bias" else "flash")
    name = "mmssl::attention" if form == "learned bias" else "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert name in ran
    assert "aten::_scaled_dot_product_attention_math" not in ran


def materialized(q, k, v, attn_bias, scale):
    """xformers' function by its own reading of its own mask: it has no operator without a GPU."""
    mask = attn_bias.materialize((1, 1, q.shape[1], k.shape[1])).to(q.device)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale + mask
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v)


@pytest.mark.parametrize("lengths", [([5, 1, 13], None), ([3, 2], [1, 9])])
def test_xformers_gets_the_sequences_it_is_meant_to(lengths, monkeypatch):
    monkeypatch.setattr("xformers.ops.memory_efficient_attention", materialized)
    leaves, fixed = packed_operands(*lengths)

    def adapter(q, k, v):
        return vendors.xformers(q, k, v, fixed["cu_seqlens_q"], fixed["cu_seqlens_k"], 0.3)

    found = gradients(adapter, leaves, {}, None)
    expected = gradients(reference.attention, leaves, {**fixed, "scale": 0.3}, None)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_single_query_or_key_is_not_for_cudnn():
    for q, k in ((300, 1), (1, 300)):
        found = explain_attention((2, q, 4, 64), (2, k, 4, 64), device="sm_100")
        assert found.passed_over[0] == ("cudnn", "two queries and keys at least")


def test_explanations_refuse_what_the_call_refuses():
    with pytest.raises(ValueError, match="windows go with neither causal"):
        explain_attention(SHORT, window=WINDOW, causal=True)
    with pytest.raises(ValueError, match=r"queries \(50,\) and keys \(50,\): expected \(B, N, heads, head_dim\)"):
        explain_attention((50,))
    with pytest.raises(TypeError, match=r"torch.int32 is not a floating-point one"):
        explain_attention(SHORT, dtype=torch.int32)


def test_xformers_is_spared_what_it_forbids_and_reads_lengths_once():
    leaves, fixed = packed_operands([3, 4, 2])
    with_a_tail = fixed["cu_seqlens_q"][:-1]
    assert vendors.xformers(*leaves.values(), with_a_tail, with_a_tail, 1.0) is None
    leaves, fixed = packed_operands(*LENGTHS["cross"])
    offsets = fixed["cu_seqlens_q"], fixed["cu_seqlens_k"]
    assert vendors.xformers(*leaves.values(), *offsets, 1.0) is None
    assert vendors.lengths(offsets[0]) is vendors.lengths(offsets[0])
    offsets[0][1:] += 1
    assert vendors.lengths(offsets[0])[0] == LENGTHS["cross"][0][0] + 1
    with torch.inference_mode():
        assert vendors.lengths(offsets[0].clone()) == vendors.lengths(offsets[0])


def test_sequences_and_heads_are_on_the_first_axis_of_the_grid():
    """The others end at 65535."""
    with recorded("sm_90") as launches, torch.device("meta"):
        for tokens in (50, 197):
            qkv = torch.zeros(20000, tokens, 3, 16, 64, dtype=torch.bfloat16)
            tensors = qkv, None, None, None, torch.zeros(16, tokens, tokens), None, None
            settings = tokens, tokens, False, [], 0.125
            out, sums = attention_triton.attention(*tensors, *settings)
            backward_triton.attention_backward(out, *tensors, out, sums, *settings, False)
    assert len(launches) == 4
    assert all(launch.grid[0] == 20000 * 16 and all(size < 10 for size in launch.grid[1:]) for launch in launches)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU: one program a sequence and head")
def test_more_sequences_than_a_grid_axis_holds():
    leaves = {name: draw(70000, 3, 1, 16, dtype=torch.float16) for name in "qkv"}
    found = gradients(attention, leaves, {}, None)
    few = {name: leaf[-3:] for name, leaf in leaves.items()}
    torch.testing.assert_close(found["result"][-3:], reference.attention(**few), rtol=1e-2, atol=1e-2)
    assert all(each[-3:].any() for each in found.values())


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs 14 GB of GPU memory")
@pytest.mark.parametrize("tokens", [50, 100])
def test_offsets_past_two_to_the_31(tokens):
    batch = 2**31 // (tokens * 3 * 2 * 64) + 2
    qkv = torch.zeros(batch, tokens, 3, 2, 64, dtype=torch.float16, device=DEVICE)
    qkv[-1] = draw(tokens, 3, 2, 64, dtype=torch.float16)
    last, whole = qkv[-1:].clone().requires_grad_(), qkv.requires_grad_()
    results = [attention(*each.unbind(2))[-1] for each in (last, whole)]
    for result in results:
        result.float().square().sum().backward()
    assert whole.numel() > 2**31
    assert torch.equal(*results) and torch.equal(whole.grad[-1:], last.grad)
