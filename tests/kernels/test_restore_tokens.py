"""`restore_tokens`: every form of keeping and asking, every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmssl_kernels import reference, restore_tokens
from mmssl_kernels.frame import checks

from tests.kernels.support import (
    DEVICE,
    DTYPES,
    EXAMPLES,
    bare,
    check_parity,
    draw,
    gradients,
    positions,
    ragged,
    strided,
)

BATCH, PATCHES, KEPT, DIM = 3, 11, 4, 20


def arguments(*, prefix=1, dtype=torch.float32, batch=BATCH, kept=KEPT, dim=DIM, position=torch.float32):
    """Leaves and fixed arguments of one call."""
    leaves = {
        "tokens": draw(batch, prefix + kept, dim, dtype=dtype),
        "mask_token": draw(dim, dtype=position),
        "position": draw(prefix + PATCHES, dim, dtype=position),
    }
    return leaves, {"keep": positions(batch, PATCHES, kept), "prefix": prefix}


def check(leaves, fixed):
    check_parity(restore_tokens, reference.restore_tokens, leaves, fixed)


@pytest.mark.parametrize("prefix", [0, 1, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sequences_and_gradients(prefix, dtype):
    check(*arguments(prefix=prefix, dtype=dtype, position=dtype))
    check(*arguments(prefix=prefix, dtype=dtype))  # tokens in half precision, positions exact: as under autocast
    check(*arguments(prefix=prefix, position=dtype))


def several(leaves, fixed):
    leaves["mask_token"] = draw(3, DIM)
    fixed["kind"] = (torch.arange(PATCHES) % 3).to(DEVICE)


def subset(leaves, fixed):
    fixed["restore"] = positions(BATCH, PATCHES, 6)


def ragged_subset(leaves, fixed):
    fixed["restore"], fixed["restore_rows"] = ragged([5, 0, 7], PATCHES)
    order = torch.randperm(12).to(DEVICE)
    fixed["restore"], fixed["restore_rows"] = fixed["restore"][order], fixed["restore_rows"][order]


def ragged_keep(leaves, fixed):
    fixed["keep"], fixed["rows"] = ragged([2, 4, 0], PATCHES)


@pytest.mark.parametrize("keep", [None, ragged_keep])
@pytest.mark.parametrize("ask", [None, subset, ragged_subset])
@pytest.mark.parametrize("kinds", [None, several])
def test_every_form(keep, ask, kinds):
    for prefix in (0, 2):
        if ask is not ragged_subset or prefix == 0:
            leaves, fixed = arguments(prefix=prefix)
            for change in (keep, ask, kinds):
                if change is not None:
                    change(leaves, fixed)
            check(leaves, fixed)
            check(strided(leaves), strided(fixed))


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    batch=st.integers(1, 40),
    kept=st.integers(0, PATCHES),
    prefix=st.integers(0, 3),
    dim=st.integers(1, 70),
    seed=st.integers(0, 2**16),
)
def test_any_size(batch, kept, prefix, dim, seed):
    torch.manual_seed(seed)
    check(*arguments(batch=batch, kept=kept, prefix=prefix, dim=dim))


def test_a_decoder_of_hidden_positions_alone_needs_no_tokens():
    leaves, fixed = arguments(prefix=0, kept=0)
    subset(leaves, fixed)
    expected = leaves["mask_token"] + leaves["position"][fixed["restore"]]
    assert torch.equal(restore_tokens(**leaves, **fixed), expected)


def test_padding_is_never_read():
    leaves, fixed = arguments(prefix=1)
    ragged_keep(leaves, fixed)
    expected = gradients(restore_tokens, leaves, fixed, None)
    leaves["tokens"][0, 3:], leaves["tokens"][2, 1:] = torch.nan, torch.nan
    found = gradients(restore_tokens, leaves, fixed, None)
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert not found["tokens"][0, 3:].any() and not found["tokens"][2, 1:].any()


def test_strided_inputs():
    leaves, fixed = arguments()
    leaves["tokens"] = draw(BATCH, DIM, 1 + KEPT).transpose(1, 2)
    leaves["position"] = draw(DIM, 1 + PATCHES).T
    check(leaves, fixed)


def test_an_expanded_gradient():
    leaves, fixed = arguments()
    tokens = leaves["tokens"].requires_grad_()
    restore_tokens(**leaves, **fixed).sum().backward()
    assert torch.equal(tokens.grad, torch.ones_like(tokens))


def test_the_same_bits_every_time():
    leaves, fixed = arguments()
    first, second = (gradients(restore_tokens, leaves, fixed, None) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_autocast_leaves_sums_alone():
    leaves, fixed = arguments()
    expected = gradients(restore_tokens, leaves, fixed, None)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        found = gradients(restore_tokens, leaves, fixed, None)
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("ask", [None, subset])
def test_an_empty_batch(ask):
    leaves, fixed = arguments(batch=0)
    if ask:
        fixed["restore"] = positions(0, PATCHES, 6)
    found = gradients(restore_tokens, leaves, fixed, None)
    assert found["result"].shape == (0, 1 + (6 if ask else PATCHES), DIM)
    assert not found["mask_token"].any() and not found["position"].any()


WRONG = {
    "no mask tokens": (
        dict(mask_token=draw(0, DIM), kind=torch.zeros(11, dtype=torch.int64, device=DEVICE)),
        ValueError,
        r"mask_token has shape \(0, 20\), expected \(kinds, 20\)",
    ),
    "no tokens": (
        dict(tokens=draw(3, 1, DIM), **dict(zip(("keep", "rows"), ragged([2, 1, 0], 11)))),
        ValueError,
        r"keep has shape \(3,\), but tokens have shape \(3, 1, 20\), all of the prefix",
    ),
    "no positions": (
        dict(position=draw(1, DIM), keep=positions(3, 11, 4)),
        ValueError,
        r"keep has shape \(3, 4\), but there are 3 samples of 0 positions",
    ),
    "tokens": (dict(tokens=draw(3, DIM)), ValueError, r"tokens of shape \(3, 20\).*expected \(B, 1 \+ K, dim\)"),
    "keep": (dict(keep=positions(3, 11, 5)), ValueError, r"keep has shape \(3, 5\), expected \(3, 4\).*\(3, 5, 20\)"),
    "batch": (dict(keep=positions(2, 11, 4)), ValueError, r"keep has shape \(2, 4\), expected \(3, K\)"),
    "position": (dict(position=draw(12, 8)), ValueError, r"position has shape \(12, 8\), expected \(12, 20\)"),
    "prefix": (dict(prefix=13), ValueError, r"expected \(B, 13 \+ K, dim\)"),
    "mask_token": (dict(mask_token=draw(3, DIM)), ValueError, r"\(3, 20\), expected \(20,\).*need `kind`"),
    "kind": (
        dict(mask_token=draw(3, DIM), kind=torch.zeros(4, dtype=torch.int64, device=DEVICE)),
        ValueError,
        r"kind has shape \(4,\), expected \(11,\)",
    ),
    "restore": (dict(restore=positions(2, 11, 4)), ValueError, r"restore has shape \(2, 4\), expected \(3, K\)"),
    "flat": (
        dict(zip(("restore", "restore_rows"), ragged([3], 11))),
        ValueError,
        r"flat restore of shape \(3,\) has no place for 1 prefix",
    ),
    "rows": (dict(restore_rows=ragged([3], 11)[1]), ValueError, "restore_rows without restore"),
    "dtype": (dict(tokens=draw(3, 5, DIM).int()), TypeError, "tokens is int32, expected float16"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_named(wrong):
    leaves, fixed = arguments()
    change, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        bare(restore_tokens)(**{**leaves, **fixed, **change})


VALUES = {
    "outside": (dict(keep=[[0, 1, 2, 11]] * 3), "keep holds 0 to 11, expected 0 to 10"),
    "twice": (dict(keep=[[0, 1, 2, 2]] * 3), "keep of shape .* names a position of a sample more than once"),
    "restored twice": (dict(restore=[[0, 0]] * 3), "restore of shape .* more than once"),
    "kind": (dict(kind=[3] * PATCHES), "kind holds 3 to 3, expected 0 to 2"),
    "order": (dict(keep=[0, 1], rows=[1, 0]), "one sample after the other"),
    "too many": (dict(keep=[0, 1, 2, 3, 4], rows=[0] * 5), "keep has 5 positions of one sample"),
}


@pytest.mark.parametrize("wrong", VALUES)
def test_values_of_positions_are_checked(wrong, monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")  # on a CPU they are in any case
    leaves, fixed = arguments()
    change, message = VALUES[wrong]
    if "kind" in change:
        several(leaves, fixed)
    fixed |= {name: torch.tensor(values, device=DEVICE) for name, values in change.items()}
    with pytest.raises(ValueError, match=message):
        restore_tokens(**leaves, **fixed)


def last_of_each(tokens, keep, mask_token, position, *, prefix, rows=None):
    """What positions that nobody checked restore: where several tokens claim a position, the last of them."""
    samples = []
    for number, sample in enumerate(tokens):
        where = keep[number] if rows is None else keep[rows == number]
        own = dict(zip(where.tolist(), sample[prefix:], strict=False))
        filled = [own.get(place, mask_token) for place in range(PATCHES)]
        samples.append(torch.stack([*sample[:prefix], *filled]) + position)
    return torch.stack(samples)


UNCHECKED = {
    "twice": dict(keep=[[0, 7, 0, 7], [5, 5, 5, 5], [0, 1, 2, 3]]),
    "outside": dict(keep=[[0, 10**6, 1, PATCHES], [-1, 3, 2, -(10**6)], [0, 1, 2, 3]]),
    "too many": dict(keep=[0, 1, 2, 3, 4, 5, 7], rows=[0] * 6 + [2]),
}


@pytest.mark.parametrize("wrong", UNCHECKED)
def test_tokens_that_belong_nowhere_are_not_read_and_get_zeros(wrong, monkeypatch):
    monkeypatch.setattr(checks, "values_are_checked", lambda _: False)  # as on a GPU
    leaves, fixed = arguments()
    fixed |= {name: torch.tensor(values, device=DEVICE) for name, values in UNCHECKED[wrong].items()}
    check_parity(restore_tokens, last_of_each, leaves, fixed)
