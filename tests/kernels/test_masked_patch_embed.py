"""`masked_patch_embed`: every layout, every gradient, nothing hidden is read."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmssl_kernels import masked_patch_embed, patchify, reference, unpatchify

from tests.kernels.support import (
    DEVICE,
    DTYPES,
    EXAMPLES,
    bare,
    check_parity,
    doubled,
    draw,
    gradients,
    pixels_of,
    positions,
    ragged,
    strided,
)

CASES = {
    "picture": ((3, 3, 16, 24), (8, 8)),
    "one channel": ((2, 1, 32, 16), (16, 16)),
    "many channels": ((2, 7, 8, 8), (4, 4)),
    "odd patch": ((2, 3, 14, 21), (7, 7)),
    "clip": ((2, 3, 4, 16, 16), (2, 8, 8)),
    "signal": ((3, 2, 40), (8,)),
}


def arguments(shape, patch, *, kept=5, dim=20, dtype=torch.float32, pixels=None):
    """Leaves and fixed arguments of one call."""
    count = math.prod(n // p for n, p in zip(shape[2:], patch, strict=True))
    values, channels = math.prod(patch) * shape[1], shape[1]
    leaves = {
        "weight": draw(dim, values, dtype=dtype),
        "bias": draw(dim, dtype=dtype),
        "position": draw(count, dim, dtype=dtype),
    }
    fixed = {
        "pixels": pixels_of(*shape) if pixels is None else pixels,
        "index": positions(shape[0], count, min(kept, count)),
        "patch": patch,
        "mean": torch.rand(channels, device=DEVICE),
        "std": torch.rand(channels, device=DEVICE) + 0.5,
    }
    return leaves, fixed


def check(leaves, fixed):
    check_parity(masked_patch_embed, reference.masked_patch_embed, leaves, fixed)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_tokens_and_gradients(case, dtype):
    check(*arguments(*CASES[case], dtype=dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_float_pixels_have_gradients(dtype):
    shape, patch = CASES["clip"]
    leaves, fixed = arguments(shape, patch, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    leaves["pixels"] = pixels_of(*shape, dtype=dtype)
    del fixed["pixels"]
    check(leaves, fixed)


def test_ragged_positions():
    shape, patch = CASES["picture"]
    leaves, fixed = arguments(shape, patch)
    fixed["index"], fixed["rows"] = ragged([4, 0, 3], 6)
    check(leaves, fixed)
    order = torch.randperm(7).to(DEVICE)
    fixed["index"], fixed["rows"] = fixed["index"][order], fixed["rows"][order]
    check(leaves, fixed)


@pytest.mark.parametrize("layout", ["channels last", "cropped", "flipped axes", "broadcast"])
def test_any_strides(layout):
    shape, patch = CASES["picture"]
    pixels = pixels_of(*shape)
    pixels = {
        "channels last": lambda: pixels.to(memory_format=torch.channels_last),
        "cropped": lambda: pixels_of(3, 3, 40, 40)[:, :, 3:19, 9:33],
        "flipped axes": lambda: pixels_of(3, 3, 24, 16).transpose(2, 3),
        "broadcast": lambda: pixels[:, :1].expand(*shape),
    }[layout]()
    check(*arguments(shape, patch, pixels=pixels))


@pytest.mark.parametrize("flat", [False, True])
def test_every_argument_strided(flat):
    leaves, fixed = arguments(*CASES["picture"])
    if flat:
        fixed["index"], fixed["rows"] = ragged([4, 0, 3], 6)
    check(strided(leaves), strided(fixed))


def test_strided_weights_and_no_bias():
    leaves, fixed = arguments(*CASES["picture"])
    fixed["bias"] = None
    del leaves["bias"]
    check(leaves, fixed)
    leaves["weight"], leaves["position"] = leaves["weight"].T.contiguous().T, leaves["position"].T.contiguous().T
    check(leaves, fixed)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([1, 2, 3, 8])), min_size=1, max_size=3),
    channels=st.integers(1, 4),
    batch=st.integers(1, 3),
    dim=st.integers(16, 70),
    seed=st.integers(0, 2**16),
)
def test_any_grid(axes, channels, batch, dim, seed):
    torch.manual_seed(seed)
    shape, patch = (batch, channels, *(n * p for n, p in axes)), tuple(p for _, p in axes)
    check(*arguments(shape, patch, kept=1 + seed % 6, dim=dim))


def test_more_rows_than_a_tile():
    check(*arguments((2, 3, 80, 80), (8, 8), kept=83, dim=130))


def test_hidden_patches_are_never_read():
    shape, patch = CASES["picture"]
    leaves, fixed = arguments(shape, patch, kept=2)
    leaves["pixels"] = pixels_of(*shape, dtype=torch.float32)
    del fixed["pixels"]
    expected = gradients(masked_patch_embed, leaves, fixed, None)
    patches = patchify(leaves["pixels"], patch)
    hidden = torch.ones(patches.shape[:2], dtype=torch.bool, device=DEVICE).scatter_(1, fixed["index"], False)
    patches[hidden] = torch.nan
    leaves["pixels"] = unpatchify(patches, patch, (2, 3))
    found = gradients(masked_patch_embed, leaves, fixed, None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not patchify(found["pixels"], patch)[hidden].any()


def test_uint8_and_unit_floats_are_the_same_picture():
    leaves, fixed = arguments(*CASES["picture"])
    from_bytes = masked_patch_embed(**leaves, **fixed)
    from_floats = masked_patch_embed(**leaves, **{**fixed, "pixels": fixed["pixels"] / 255})
    torch.testing.assert_close(from_bytes, from_floats, rtol=1e-5, atol=1e-5)


def test_the_same_bits_every_time():
    leaves, fixed = arguments(*CASES["clip"])
    first, second = (gradients(masked_patch_embed, leaves, fixed, None) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("empty", ["batch", "kept", "flat"])
def test_nothing_to_embed(empty):
    shape, patch = CASES["picture"]
    leaves, fixed = arguments((0, *shape[1:]) if empty == "batch" else shape, patch, kept=0)
    if empty == "flat":
        fixed["index"] = fixed["rows"] = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    found = gradients(masked_patch_embed, leaves, fixed, None)
    assert found["result"].shape == (*fixed["index"].shape, 20)
    assert not any(found[name].any() for name in leaves)


@pytest.mark.parametrize("low", [dtype for dtype in DTYPES if dtype != torch.float32])
def test_autocast_lowers_the_product_alone(low):
    leaves, fixed = arguments(*CASES["picture"])
    with torch.autocast(DEVICE.type, low):
        found = gradients(masked_patch_embed, leaves, fixed, None)
    assert found["result"].dtype == found["weight"].dtype == torch.float32
    expected = masked_patch_embed(**{**leaves, "weight": leaves["weight"].to(low)}, **fixed)
    assert torch.equal(found["result"], expected)
    eager = gradients(reference.masked_patch_embed, leaves, fixed, None)
    torch.testing.assert_close(found["weight"], eager["weight"], rtol=0.02, atol=0.05)


def test_half_precision_models_keep_exact_statistics():
    leaves, fixed = arguments(*CASES["picture"], dtype=torch.float16)
    fixed["mean"], fixed["std"] = fixed["mean"].half(), fixed["std"].half()
    exact = {**fixed, "mean": fixed["mean"].float(), "std": fixed["std"].float()}
    assert torch.equal(masked_patch_embed(**leaves, **fixed), masked_patch_embed(**leaves, **exact))


def test_offsets_past_two_to_the_31():
    pixels = torch.zeros(3, 1, 2**15, 2**15, dtype=torch.uint8, device=DEVICE)  # untouched, so mostly not there
    pixels[2, 0, -8:, -8:] = 255
    count = 2**24
    leaves = {
        "weight": torch.ones(2, 64, device=DEVICE),
        "bias": None,
        "position": torch.zeros(count, 2, device=DEVICE),
    }
    statistics = {"mean": torch.zeros(1, device=DEVICE), "std": torch.ones(1, device=DEVICE)}
    index, rows = (torch.tensor(each, device=DEVICE) for each in ([0, count - 1], [2, 2]))
    tokens = masked_patch_embed(pixels, **leaves, index=index, rows=rows, patch=(8, 8), **statistics)
    assert tokens.tolist() == [[0, 0], [64, 64]]


def test_samples_past_two_to_the_31():
    far = torch.zeros(2**31 + 64, dtype=torch.uint8, device=DEVICE).as_strided((1, 2, 8, 8), (0, 2**31, 8, 1))
    far[:, 1] = 255
    leaves, fixed = arguments(far.shape, (8, 8), pixels=far)
    near = {**fixed, "pixels": far.contiguous()}
    assert torch.equal(masked_patch_embed(**leaves, **fixed), masked_patch_embed(**leaves, **near))


@pytest.mark.parametrize("low", [dtype for dtype in DTYPES if dtype != torch.float32])
@pytest.mark.parametrize("names", [["weight"], ["bias"], ["position"], ["weight", "bias"], ["weight", "position"]])
def test_any_mix_of_precisions(names, low):
    leaves, fixed = arguments(*CASES["picture"])
    for name in names:
        leaves[name] = leaves[name].to(low)
    found = gradients(masked_patch_embed, leaves, fixed, None)
    exact = gradients(reference.masked_patch_embed, leaves, doubled(fixed), torch.float64)
    for name, value in found.items():
        assert value.dtype == (leaves["position"] if name == "result" else leaves[name]).dtype
        assert (value - exact[name]).norm() <= 0.02 * exact[name].norm()


WRONG = {
    "no samples": (
        dict(pixels=pixels_of(0, 3, 16, 24), index=ragged([1], 6)[0], rows=ragged([1], 6)[1]),
        ValueError,
        r"index has shape \(1,\), but there are 0 samples of 6 positions",
    ),
    "whole sides": (dict(patch=(0, 8)), ValueError, r"\(3, 3, 16, 24\) and patch \(0, 8\): expected .* whole sides"),
    "grid": (dict(patch=(5, 8)), ValueError, r"\(5, 8\).*\(3, 3, 16, 24\)"),
    "axes": (dict(patch=(2, 8, 8)), ValueError, r"\(3, 3, 16, 24\).*\(2, 8, 8\)"),
    "weight": (dict(weight=draw(20, 64)), ValueError, r"\(20, 64\), expected \(dim, 192\).*\(3, 3, 16, 24\)"),
    "bias": (dict(bias=draw(4)), ValueError, r"bias has shape \(4,\), expected \(20,\)"),
    "position": (dict(position=draw(5, 20)), ValueError, r"position has shape \(5, 20\), expected \(6, 20\)"),
    "statistics": (dict(mean=draw(1)), ValueError, r"mean has shape \(1,\), expected \(3,\)"),
    "batch": (dict(index=positions(2, 6, 5)), ValueError, r"index has shape \(2, 5\), expected \(3, K\)"),
    "rows": (
        dict(index=ragged([3], 6)[0], rows=ragged([2], 6)[1]),
        ValueError,
        r"index has shape \(3,\) and its rows \(2,\)",
    ),
    "pixels": (dict(pixels=pixels_of(3, 3, 16, 24).int()), TypeError, "pixels is int32, expected uint8"),
    "index": (dict(index=positions(3, 6, 5).int()), TypeError, "index is int32, expected int64"),
    "index's device": (
        dict(index=torch.zeros(3, 5, dtype=torch.int64, device="meta")),
        ValueError,
        "one device is needed.*index on meta",
    ),
    "device": (dict(bias=torch.zeros(20, device="meta")), ValueError, "one device is needed.*bias on meta"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named(wrong):
    leaves, fixed = arguments(*CASES["picture"])
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        bare(masked_patch_embed)(**{**leaves, **fixed, **change})


@pytest.mark.parametrize(
    ("index", "message"),
    [([[0, 6], [0, 1]], "index holds 0 to 6, expected 0 to 5"), ([[0, 0], [0, 1]], "more than once")],
)
def test_values_of_positions_are_checked(index, message, monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")  # on a CPU they are in any case
    leaves, fixed = arguments((2, 3, 16, 24), (8, 8))
    with pytest.raises(ValueError, match=message):
        masked_patch_embed(**{**leaves, **fixed, "index": torch.tensor(index, device=DEVICE)})
