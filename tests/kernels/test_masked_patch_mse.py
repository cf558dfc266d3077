"""`masked_patch_mse`: every normalisation, layout and weighting; nothing visible is read."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmssl_kernels import masked_patch_mse, patchify, reference, unpatchify

from tests.kernels.support import (
    DEVICE,
    DTYPES,
    EXAMPLES,
    bare,
    check_parity,
    draw,
    gradients,
    pixels_of,
    positions,
    ragged,
    strided,
)

NORMS = ["none", "patch", "channel"]
CASES = {
    "picture": ((3, 3, 16, 24), (8, 8)),
    "one channel": ((2, 1, 32, 16), (16, 16)),
    "many channels": ((2, 19, 8, 8), (4, 4)),
    "odd patch": ((2, 3, 14, 21), (7, 7)),
    "clip": ((2, 3, 4, 16, 16), (2, 8, 8)),
    "signal": ((3, 2, 40), (8,)),
}


def arguments(shape, patch, norm, *, hidden=4, dtype=torch.float32, pixels=None):
    """Leaves and fixed arguments of one call."""
    count, channels = math.prod(n // p for n, p in zip(shape[2:], patch, strict=True)), shape[1]
    index = positions(shape[0], count, min(hidden, count))
    fixed = {
        "pixels": pixels_of(*shape) if pixels is None else pixels,
        "index": index,
        "patch": patch,
        "mean": torch.rand(channels, device=DEVICE),
        "std": torch.rand(channels, device=DEVICE) + 0.5,
        "target_norm": norm,
    }
    return {"prediction": draw(*index.shape, math.prod(patch) * channels, dtype=dtype)}, fixed


def check(leaves, fixed):
    check_parity(masked_patch_mse, reference.masked_patch_mse, leaves, fixed)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(case, norm):
    check(*arguments(*CASES[case], norm))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_dtypes(dtype, norm):
    shape, patch = CASES["picture"]
    check(*arguments(shape, patch, norm, dtype=dtype))
    leaves, fixed = arguments(shape, patch, norm, pixels=pixels_of(*shape, dtype=dtype))
    check(leaves, fixed)


@pytest.mark.parametrize("norm", NORMS)
def test_ragged_positions_and_weights(norm):
    shape, patch = CASES["picture"]
    leaves, fixed = arguments(shape, patch, norm)
    fixed["weights"] = torch.tensor([0.5, 0.0, 2.0], device=DEVICE)
    check(leaves, fixed)
    leaves["prediction"] = draw(7, 192)
    fixed["index"], fixed["rows"] = ragged([4, 1, 2], 6)
    check(leaves, fixed)
    check(strided(leaves), strided(fixed))
    del fixed["weights"]
    check(leaves, fixed)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    axes=st.lists(st.tuples(st.integers(1, 4), st.sampled_from([2, 3, 8])), min_size=1, max_size=3),
    channels=st.integers(1, 5),
    batch=st.integers(1, 3),
    norm=st.sampled_from(NORMS),
    seed=st.integers(0, 2**16),
)
def test_any_grid(axes, channels, batch, norm, seed):
    torch.manual_seed(seed)
    shape, patch = (batch, channels, *(n * p for n, p in axes)), tuple(p for _, p in axes)
    check(*arguments(shape, patch, norm, hidden=1 + seed % 3))


@pytest.mark.parametrize("layout", ["channels last", "cropped"])
def test_strided_inputs(layout):
    shape, patch = CASES["picture"]
    pixels = pixels_of(*shape).to(memory_format=torch.channels_last)
    if layout == "cropped":
        pixels = pixels_of(3, 3, 40, 40)[:, :, 3:19, 9:33]
    leaves, fixed = arguments(shape, patch, "patch", pixels=pixels)
    leaves["prediction"] = draw(3, 192, 4).transpose(1, 2)
    check(leaves, fixed)


def test_visible_patches_are_never_read():
    shape, patch = CASES["picture"]
    leaves, fixed = arguments(shape, patch, "patch", pixels=pixels_of(*shape, dtype=torch.float32))
    expected = gradients(masked_patch_mse, leaves, fixed, None)
    patches = patchify(fixed["pixels"], patch)
    visible = torch.ones(patches.shape[:2], dtype=torch.bool, device=DEVICE).scatter_(1, fixed["index"], False)
    patches[visible] = torch.nan
    fixed["pixels"] = unpatchify(patches, patch, (2, 3))
    found = gradients(masked_patch_mse, leaves, fixed, None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("norm", ["patch", "channel"])
def test_flat_patches_are_zero_targets(norm):
    """A patch of one colour has no deviation; the eps keeps the target finite."""
    shape, patch = CASES["picture"]
    pixels = torch.full(shape, 255, dtype=torch.uint8, device=DEVICE)
    leaves, fixed = arguments(shape, patch, norm, pixels=pixels)
    fixed["mean"], fixed["std"] = torch.zeros(3, device=DEVICE), torch.ones(3, device=DEVICE)
    loss = masked_patch_mse(**leaves, **fixed)
    torch.testing.assert_close(loss, leaves["prediction"].square().mean(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_large_patches_of_little_contrast(norm):
    """Sums over many values, and deviations far below the mean, keep float32's accuracy."""
    shape, patch = (2, 3, 128, 128), (128, 128)
    check(*arguments(shape, patch, norm, pixels=0.9 + 0.01 * pixels_of(*shape, dtype=torch.float32)))


def test_a_weight_that_is_no_number_is_not_hidden():
    leaves, fixed = arguments(*CASES["picture"], "patch")
    fixed["weights"] = torch.tensor([1.0, torch.nan, 1.0], device=DEVICE)
    assert masked_patch_mse(**leaves, **fixed).isnan()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 2.0**16])
def test_loss_scaling_reaches_half_precision_gradients_whole(scale):
    """d prediction is scaled before it is rounded, so that GradScaler's factor saves what float16 would lose."""
    leaves, fixed = arguments(*CASES["picture"], "patch", dtype=torch.float16)
    exact = gradients(masked_patch_mse, leaves, fixed, torch.float32)["prediction"]
    prediction = leaves["prediction"].requires_grad_()
    (scale * masked_patch_mse(prediction, **fixed)).backward()
    generator = torch.Generator().manual_seed(5)
    upstream = torch.randn((), generator=generator).item()
    expected = (exact.double() * (scale / upstream)).half()
    torch.testing.assert_close(prediction.grad, expected, rtol=2e-3, atol=torch.finfo(torch.float16).tiny)


def test_the_same_bits_every_time():
    leaves, fixed = arguments(*CASES["clip"], "channel")
    first, second = (gradients(masked_patch_mse, leaves, fixed, None) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("empty", ["batch", "hidden", "weights"])
def test_nothing_to_compare_costs_nothing(empty):
    shape, patch = CASES["picture"]
    hidden = 4 if empty == "weights" else 0
    leaves, fixed = arguments((0, *shape[1:]) if empty == "batch" else shape, patch, "patch", hidden=hidden)
    if empty == "weights":
        fixed["weights"] = torch.zeros(3, device=DEVICE)
    found = gradients(masked_patch_mse, leaves, fixed, None)
    assert found["result"] == 0 and not found["prediction"].any()


WRONG = {
    "prediction": (
        dict(prediction=draw(3, 4, 64)),
        ValueError,
        r"prediction has shape \(3, 4, 64\), expected \(3, 4, 192\).*\(3, 3, 16, 24\)",
    ),
    "index": (
        dict(index=positions(3, 6, 5)),
        ValueError,
        r"prediction has shape \(3, 4, 192\), expected \(3, 5, 192\)",
    ),
    "grid": (dict(patch=(5, 8)), ValueError, r"\(5, 8\).*\(3, 3, 16, 24\)"),
    "statistics": (dict(std=draw(1)), ValueError, r"std has shape \(1,\), expected \(3,\)"),
    "weights": (dict(weights=draw(4)), ValueError, r"weights has shape \(4,\), expected \(3,\)"),
    "norm": (dict(target_norm="pixel"), ValueError, "target_norm='pixel': expected none, patch, channel"),
    "dtype": (dict(prediction=draw(3, 4, 192).int()), TypeError, "prediction is int32"),
    "device": (dict(weights=torch.zeros(3, device="meta")), ValueError, "one device is needed.*weights on meta"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named(wrong):
    leaves, fixed = arguments(*CASES["picture"], "patch")
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        bare(masked_patch_mse)(**{**leaves, **fixed, **change})


def test_one_value_has_no_deviation():
    leaves, fixed = arguments((2, 3, 4), (1,), "channel")
    with pytest.raises(ValueError, match=r"needs two values or more, patch \(1,\) has one"):
        masked_patch_mse(**leaves, **fixed)


def test_values_of_positions_are_checked(monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")  # on a CPU they are in any case
    leaves, fixed = arguments(*CASES["picture"], "none")
    fixed["index"] = fixed["index"] + 3
    with pytest.raises(ValueError, match=r"index holds \d to \d, expected 0 to 5"):
        masked_patch_mse(**leaves, **fixed)
