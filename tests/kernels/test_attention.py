"""`attention`: every form, every gradient, on each path."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmssl_kernels import Window, attention, attention_qkvpacked, attention_weights, reference
from mmssl_kernels.attention import choice, op

from tests.kernels.support import (
    DEVICE,
    DTYPES,
    EXAMPLES,
    INTERPRETED,
    TRITON,
    bare,
    check_parity,
    draw,
    gradients,
    strided,
    with_dtypes,
)

BATCH, HEADS, DIM = 2, 2, 20
MOST = 40 if INTERPRETED else 70  # tokens; from 33 on more than a tile of float32


def operands(queries, keys=None, *, batch=BATCH, heads=HEADS, dim=DIM, dtype=torch.float32):
    keys = queries if keys is None else keys
    shapes = {"q": (batch, queries, heads, dim), "k": (batch, keys, heads, dim), "v": (batch, keys, heads, dim)}
    return {name: draw(*shape, dtype=dtype) for name, shape in shapes.items()}


def packed_operands(queries, keys=None, **more):
    """Flat sequences of these lengths, and what says where they are."""
    keys = queries if keys is None else keys
    leaves = {name: each[0] for name, each in operands(sum(queries), sum(keys), batch=1, **more).items()}
    return leaves, {
        "cu_seqlens_q": offsets(queries),
        "cu_seqlens_k": offsets(keys),
        "max_q": max(queries),
        "max_k": max(keys),
    }


def offsets(lengths, dtype=torch.int32):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=dtype, device=DEVICE)


def ours(**arguments):
    """The call, by our own code alone: where the table hands over to others the PyTorch path is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "SDPA", ())
        return attention(**arguments)


def check(leaves, fixed):
    """What the call finds, which is as good as the reference, as our own code's is."""
    if not TRITON:
        check_parity(ours, reference.attention, leaves, fixed)
    return check_parity(attention, reference.attention, leaves, fixed)


@pytest.mark.parametrize(("sizes", "dtype"), with_dtypes([(1, 1), (50, 50), (17, 97), (70, 5)]))
def test_results_and_gradients(sizes, dtype):
    check(operands(*sizes, dtype=dtype), {})


@pytest.mark.parametrize("dim", [32, 80, 88, 128, 136])
def test_heads_of_any_width(dim):
    check(operands(35, 18, dim=dim, dtype=torch.float16), {"scale": 0.3})


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    batch=st.integers(1, 3), heads=st.integers(1, 3), queries=st.integers(1, MOST), keys=st.integers(1, MOST),
    dim=st.integers(1, 40), causal=st.booleans(), padded=st.booleans(), biased=st.booleans(),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_size(batch, heads, queries, keys, dim, causal, padded, biased, dtype, seed):
    torch.manual_seed(seed)
    leaves, fixed = operands(queries, keys, batch=batch, heads=heads, dim=dim, dtype=dtype), {"causal": causal}
    if padded:
        fixed["key_padding"] = (torch.rand(batch, keys) < torch.rand(batch, 1)).to(DEVICE)
    if biased:
        leaves["bias"] = draw(heads, queries, keys, dtype=dtype)
    check(leaves, fixed)


@pytest.mark.parametrize(("causal", "tokens", "dtype"), with_dtypes([False, True], [9, 70]))
def test_a_query_that_sees_nothing_gives_zeros(causal, tokens, dtype):
    leaves = operands(tokens, dtype=dtype)
    padding = torch.zeros(BATCH, tokens, dtype=torch.bool, device=DEVICE)
    padding[0], padding[1, :3] = True, True
    fixed = {"key_padding": padding, "causal": causal}
    found = check(leaves, fixed)
    assert not any(found[name][0].any() for name in found)
    if causal:
        assert not found["result"][1, :3].any() and found["result"][1, 3:].all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_scale_that_is_not_positive(scale, dtype):
    check(operands(9, dtype=dtype), {"causal": True, "scale": scale})


@pytest.mark.parametrize(("learns", "tokens", "dtype"), with_dtypes([False, True], [70, 40]))
def test_a_bias_that_hides(learns, tokens, dtype):
    leaves, bias = operands(tokens, dtype=dtype), draw(HEADS, tokens, tokens, dtype=dtype)
    bias[:, 0], bias[1, 3, 5:] = -torch.inf, -torch.inf
    found = check({**leaves, "bias": bias}, {}) if learns else check(leaves, {"bias": bias})
    assert not found["result"][:, 0].any()


def test_a_bias_is_as_exact_as_the_logits():
    leaves = {name: each.half() for name, each in operands(20).items()}
    bias = 1000 + draw(HEADS, 20, 20, dtype=torch.float64)
    expected = attention(**leaves, bias=(bias - 1000).float())
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(attention(**leaves, bias=bias.to(dtype)), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("tokens", [(11, 11), (40, 70)])
def test_a_bias_learns_through_all_samples(tokens):
    leaves = operands(*tokens, batch=3)
    leaves["bias"] = draw(HEADS, *tokens)
    check(leaves, {})
    leaves = {name: each if name == "bias" else each.half() for name, each in leaves.items()}
    check(leaves, {})  # logits and bias stay exact beside 16-bit queries
    assert gradients(attention, leaves, {}, None)["bias"].dtype == torch.float32


WINDOWS = {
    "Audio-MAE": Window((8, 8), (4, 4), (2, 0)),
    "odd": Window((6, 10), (3, 5), (1, 2)),
    "one": Window((4, 4), (4, 4), (1, 1)),
    "rows": Window((1, 20), (1, 4), (0, 3)),
    "several tiles": Window((18, 8), (9, 8), (3, 0)),
}


@pytest.mark.parametrize(("biased", "name", "dtype"), with_dtypes([False, True], WINDOWS))
def test_windows(biased, name, dtype):
    window = WINDOWS[name]
    batch = 1 if window.tokens > 64 else BATCH
    leaves, fixed = operands(window.tokens * window.count, batch=batch, dtype=dtype), {"window": window}
    if biased:
        leaves["bias"] = draw(HEADS, window.tokens, window.tokens, dtype=dtype)
    check(leaves, fixed)


def test_windows_are_those_of_the_roll_and_the_partition():
    """Against Swin's own steps, as Audio-MAE takes them: roll, partition, attend with a mask of -100, and back."""
    window, grid = WINDOWS["Audio-MAE"], (8, 8)
    leaves, bias = operands(64), draw(HEADS, 16, 16)
    rolled = [each.unflatten(1, grid).roll((-2, 0), (1, 2)) for each in leaves.values()]
    parts = [each.reshape(BATCH, 2, 4, 2, 4, HEADS, DIM).transpose(2, 3).reshape(-1, 16, HEADS, DIM) for each in rolled]
    region = torch.zeros(grid)
    region[-4:-2], region[-2:] = 1, 2
    region = region.reshape(2, 4, 2, 4).transpose(1, 2).reshape(4, 16)
    mask = torch.where(region[:, :, None] == region[:, None], 0.0, -100.0).to(DEVICE)
    q, k, v = (each.transpose(1, 2) for each in parts)
    logits = q @ k.transpose(2, 3) * DIM**-0.5 + bias + mask[:, None].repeat(BATCH, 1, 1, 1)
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(BATCH, 2, 2, 4, 4, HEADS, DIM).transpose(2, 3)
    expected = out.reshape(BATCH, *grid, HEADS, DIM).roll((2, 0), (1, 2)).flatten(1, 2)
    torch.testing.assert_close(attention(**leaves, window=window, bias=bias), expected, rtol=1e-5, atol=1e-6)


LENGTHS = {
    "self": ([5, 0, 1, 13, 40], None),
    "long": ([70, 3], None),
    "cross": ([3, 0, 40, 1, 0], [0, 2, 7, 70, 0]),
    "one": ([6], None),
    "nothing": ([0, 0], None),
}


@pytest.mark.parametrize(("causal", "name", "dtype"), with_dtypes([False, True], LENGTHS))
def test_packed_sequences(causal, name, dtype):
    leaves, fixed = packed_operands(*LENGTHS[name], dtype=dtype)
    check(leaves, {**fixed, "causal": causal})


def test_packed_sequences_are_those_of_padding():
    lengths = [5, 33, 1]
    leaves, fixed = packed_operands(lengths)
    found = attention(**leaves, **{**fixed, "cu_seqlens_q": fixed["cu_seqlens_q"].long(), "max_q": 64})
    inside = torch.arange(33, device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]
    padded = {name: each.new_zeros(3, 33, *each.shape[1:]) for name, each in leaves.items()}
    for name, each in padded.items():
        each[inside] = leaves[name]
    torch.testing.assert_close(found, attention(**padded, key_padding=~inside)[inside])


@pytest.mark.parametrize(("longest", "dtype"), with_dtypes([9, 70]))
def test_tokens_after_the_last_sequence_are_not_read_and_get_zeros(longest, dtype):
    """A buffer of one size for batches of any, alike in queries and keys or not."""
    leaves, fixed = packed_operands([5, 0, longest, 7], [3, 2, longest, 4], dtype=dtype)
    fixed = {"cu_seqlens_q": fixed["cu_seqlens_q"][:-1], "cu_seqlens_k": fixed["cu_seqlens_k"][:-1]}
    fixed |= {"max_q": longest, "max_k": longest}
    check(leaves, fixed)
    for name, each in leaves.items():
        each[-7 if name == "q" else -4 :] = torch.nan
    found = gradients(attention, leaves, fixed, None)
    assert all(each.isfinite().all() for each in found.values())
    assert not found["result"][-7:].any() and not found["q"][-7:].any() and not found["k"][-4:].any()
    qkv = torch.stack([leaves["q"]] * 3, 1)
    whole = {"cu_seqlens": fixed["cu_seqlens_q"], "max_seqlen": longest}
    found = gradients(attention_qkvpacked, {"qkv": qkv}, whole, None)
    assert found["qkv"].isfinite().all() and not found["qkv"][-7:].any() and found["qkv"][:5].any()


@pytest.mark.parametrize(
    ("wrong", "longest", "right"),
    [
        ([0, 3, 50, 60], 40, [(0, 3), (3, 43), (50, 60)]),  # longer than stated
        ([0, 3, 50, 60], 8, [(0, 3), (3, 11), (50, 58)]),
        ([-(10**6), 5, 10**6, -(10**6), 5, 60], 55, [(0, 5), (5, 60)]),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_offsets_that_nobody_checked_leave_nothing_unwritten(wrong, longest, right, dtype, monkeypatch):
    monkeypatch.setattr(op, "values_are_checked", lambda _: False)  # as on a GPU
    leaves, _ = packed_operands([60], dtype=dtype)

    def expected(q, k, v, **_):
        parts = torch.zeros_like(q).split([1] * len(q))
        for a, b in right:
            parts = *parts[:a], *reference.attention(*(each[None, a:b] for each in (q, k, v)))[0].split(1), *parts[b:]
        return torch.cat(parts)

    check_parity(attention, expected, leaves, {"cu_seqlens_q": torch.tensor(wrong).to(DEVICE), "max_q": longest})


def three(qkv, **fixed):
    """What `attention_qkvpacked` stands for."""
    q, k, v = qkv.unbind(-3)
    return reference.attention(q, k, v, **fixed)


@pytest.mark.parametrize(("form", "dtype"), with_dtypes(["dense", "windows", "packed"]))
def test_one_tensor_in_and_one_gradient_out(form, dtype):
    leaves, fixed = {"qkv": draw(BATCH, 40, 3, HEADS, DIM, dtype=dtype)}, {}
    if form == "windows":
        fixed = {"window": Window((8, 5), (2, 5), (1, 0))}
    if form == "packed":
        leaves, fixed = {"qkv": leaves["qkv"].flatten(0, 1)}, {"cu_seqlens_q": offsets([30, 0, 50])}

    def op(qkv, **fixed):
        longest = {"cu_seqlens": fixed.pop("cu_seqlens_q"), "max_seqlen": 50} if form == "packed" else {}
        return attention_qkvpacked(qkv, **fixed, **longest)

    check_parity(op, three, leaves, fixed)


@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_any_strides(dtype):
    leaves = operands(40, 37, dtype=dtype)
    check(strided(leaves), {})
    check({name: each.permute(1, 3, 0, 2).contiguous().permute(2, 0, 3, 1) for name, each in leaves.items()}, {})
    check({**leaves, "v": strided(leaves)["v"]}, {})
    leaves = {name: each[:1].expand(BATCH, -1, -1, -1) for name, each in leaves.items()}
    torch.testing.assert_close(attention(**leaves)[1], attention(**leaves)[0])


def test_the_same_bits_every_time():
    window = WINDOWS["Audio-MAE"]
    leaves = {**operands(64, dtype=torch.float16), "bias": draw(HEADS, 16, 16)}
    first, second = (gradients(attention, leaves, {"window": window}, None) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_autocast_lowers_queries_keys_and_values_but_not_the_bias():
    leaves = {**operands(20), "bias": draw(HEADS, 20, 20)}
    with torch.autocast(DEVICE.type, torch.float16):
        found = gradients(attention, leaves, {}, None)
    low = {name: each if name == "bias" else each.half() for name, each in leaves.items()}
    expected = gradients(attention, low, {}, None)
    assert found["result"].dtype == torch.float16 and found["q"].dtype == torch.float32
    assert all(torch.equal(found[name].to(each.dtype), each) for name, each in expected.items())


def test_packed_sequences_and_windows_under_inference_mode():
    leaves, fixed = packed_operands([3, 40])
    with torch.inference_mode():
        found = attention(**leaves, **fixed)
    torch.testing.assert_close(found, reference.attention(**leaves, **fixed))


@pytest.mark.parametrize("shape", [(0, 4, 4), (2, 0, 4), (2, 4, 0)])
def test_nothing_to_do(shape):
    batch, queries, keys = shape
    found = gradients(attention, operands(queries, keys, batch=batch), {}, None)
    assert found["result"].shape == (batch, queries, HEADS, DIM)
    assert not any(each.any() for each in found.values())


def test_a_learned_bias_of_no_samples_gets_zeros():
    leaves = {**operands(4, batch=0), "bias": draw(HEADS, 4, 4)}
    assert not gradients(attention, leaves, {}, None)["bias"].any()


def test_the_weights_themselves():
    leaves = operands(3, 7)
    weights = attention_weights(leaves["q"], leaves["k"])
    assert weights.shape == (BATCH, HEADS, 3, 7)
    expected = attention(**leaves)
    torch.testing.assert_close(torch.einsum("bhqk,bkhd->bqhd", weights, leaves["v"]), expected)


LONG = dict(cu_seqlens_q=offsets([4, 4]), max_q=4)
FLAT = {name: each[0] for name, each in operands(8, batch=1).items()}
WRONG = {
    "heads": (dict(k=draw(2, 8, 3, DIM)), ValueError, r"queries \(2, 8, 2, 20\), keys \(2, 8, 3, 20\)"),
    "batch": (dict(q=draw(3, 8, 2, DIM)), ValueError, r"queries \(3, 8, 2, 20\), keys \(2, 8, 2, 20\)"),
    "values": (dict(v=draw(2, 9, 2, DIM)), ValueError, r"values \(2, 9, 2, 20\) do not fit"),
    "axes": (dict(q=draw(8, 2, DIM)), ValueError, r"expected \(B, N, heads, head_dim\)"),
    "dtype": (dict(q=draw(2, 8, 2, DIM).int()), TypeError, "q is int32, expected float16"),
    "mixed": (dict(q=draw(2, 8, 2, DIM).half()), TypeError, "k is float32, expected float16"),
    "padding": (
        dict(key_padding=torch.zeros(2, 9, dtype=torch.bool, device=DEVICE)),
        ValueError,
        r"key_padding has shape \(2, 9\), expected \(2, 8\): keys have shape \(2, 8, 2, 20\)",
    ),
    "padding's dtype": (dict(key_padding=draw(2, 8)), TypeError, "key_padding is float32, expected bool"),
    "bias": (dict(bias=draw(2, 8, 7)), ValueError, r"bias has shape \(2, 8, 7\), expected \(2, 8, 8\)"),
    "grid": (dict(window=Window((4, 4), (2, 2))), ValueError, r"a grid of \(4, 4\) has 16 tokens each"),
    "causal windows": (dict(window=Window((4, 2), (2, 2)), causal=True), ValueError, "windows go with neither"),
    "lengths": (dict(max_k=3), ValueError, "belong to packed sequences: cu_seqlens_q is missing"),
    "lengths of keys": (dict(cu_seqlens_k=LONG["cu_seqlens_q"]), ValueError, "cu_seqlens_q is missing"),
    "no heads": (operands(8, heads=0), ValueError, r"queries of shape \(2, 8, 0, 20\) have no heads"),
    "windows' bias": (
        dict(window=Window((4, 2), (2, 2)), bias=draw(2, 8, 8)),
        ValueError,
        r"bias has shape \(2, 8, 8\), expected \(2, 4, 4\): 2 heads, windows of 4 tokens",
    ),
    "no longest": (
        {**FLAT, "cu_seqlens_q": LONG["cu_seqlens_q"]},
        ValueError,
        "packed sequences need max_q and max_k",
    ),
    "packed and dense": (LONG, ValueError, r"expected \(total, heads, head_dim\)"),
    "packed and biased": ({**FLAT, **LONG, "bias": draw(2, 4, 4)}, ValueError, "go with neither key_padding nor"),
    "offsets": (
        {**FLAT, **LONG, "cu_seqlens_k": offsets([8])},
        ValueError,
        r"cu_seqlens_q has shape \(3,\) and cu_seqlens_k \(2,\)",
    ),
    "offsets' dtype": ({**FLAT, **LONG, "cu_seqlens_q": draw(3)}, TypeError, "cu_seqlens_q is float32, expected int32"),
    "keys' offsets": (
        {**FLAT, **LONG, "k": draw(9, 2, DIM), "v": draw(9, 2, DIM)},
        ValueError,
        "differ in number: cu_seqlens_k is needed",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named(wrong):
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        bare(attention)(**{**operands(8), **change})


def test_what_does_not_fit_in_one_tensor():
    with pytest.raises(ValueError, match=r"qkv has shape \(2, 8, 2, 20\), expected \(B, N, 3, heads, head_dim\)"):
        bare(attention_qkvpacked)(draw(2, 8, 2, DIM))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([4, 5], "cu_seqlens_q must rise from 0 and stay within 8 tokens"),
        ([8, -1], "cu_seqlens_q must rise from 0 and stay within 8 tokens"),
        ([3, 5], "cu_seqlens_q has a sequence of 5 tokens, more than the 4 stated"),
    ],
)
def test_offsets_are_checked(lengths, message, monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")  # on a CPU they are in any case
    with pytest.raises(ValueError, match=message):
        attention(**FLAT, cu_seqlens_q=offsets(lengths), max_q=4)


@pytest.mark.parametrize("wrong", [((8, 6), (4, 4), (0, 0)), ((8, 8), (4, 4), (4, 0)), ((8, 8), (0, 4), (0, 0))])
def test_windows_that_do_not_tile_the_grid(wrong):
    with pytest.raises(ValueError, match="a size divides the grid and a shift is smaller than it"):
        Window(*wrong)
