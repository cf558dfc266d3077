"""Losses over similarities: each equals its materialised form on every path, and never holds the matrix."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmssl_kernels import info_nce, linear_cross_entropy, nt_xent, reference, siglip_loss
from mmssl_kernels.contrastive import losses, similarity
from torch.nn import functional as F

from tests.kernels.support import (
    DEVICE,
    DTYPES,
    EXAMPLES,
    INTERPRETED,
    TRITON,
    Largest,
    bare,
    check_parity,
    draw,
    gradients,
    strided,
)

FORMS = ["tiles"] if TRITON else ["tiles", "whole"]


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """The PyTorch path keeps a small matrix whole; elsewhere there are only tiles."""
    if request.param == "whole":
        monkeypatch.setattr(losses, "WHOLE", 2**22)


def unit(rows, dim=20, dtype=torch.float32):
    return F.normalize(draw(rows, dim), dim=1).to(dtype)


def pair(rows=11, columns=None, dtype=torch.float32, scale=14.0):
    a, b = unit(rows, dtype=dtype), unit(columns or rows, dtype=dtype)
    return {"a": a, "b": b, "scale": torch.tensor(scale, device=DEVICE)}


def labels_of(rows, columns):
    return torch.randint(columns, (rows,)).to(DEVICE)


def scaled_down(factor, **leaves):
    return factor * info_nce(**leaves)


def nt_xent_reference(a, b, scale):
    views = torch.cat([a, b])
    partners = torch.arange(len(views), device=a.device).roll(len(a))
    return reference.info_nce(views, views, scale, labels=partners, symmetric=False, exclude_self=True)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_clip(dtype):
    check_parity(info_nce, reference.info_nce, pair(dtype=dtype), {})
    check_parity(info_nce, reference.info_nce, strided(pair(dtype=dtype)), {"symmetric": False})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(11, 11), (5, 17), (17, 5), (1, 30), (30, 1)])
def test_any_labels_of_a_rectangle(rows, columns, symmetric):
    fixed = {"labels": labels_of(rows, columns), "symmetric": symmetric}
    check_parity(info_nce, reference.info_nce, pair(rows, columns), fixed)
    leaves = {**pair(rows, columns), "weights": torch.rand(rows).to(DEVICE) + 0.1}
    check_parity(info_nce, reference.info_nce, leaves, fixed)


@pytest.mark.usefixtures("form")
def test_columns_beyond_the_pairs_are_negatives():
    leaves = pair(5, 9)
    check_parity(info_nce, reference.info_nce, leaves, {"labels": torch.arange(5, device=DEVICE)})
    found = info_nce(**leaves)
    assert torch.equal(found, info_nce(**leaves, labels=torch.arange(5, device=DEVICE)))


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_simclr(dtype):
    check_parity(nt_xent, nt_xent_reference, pair(7, dtype=dtype), {})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_batch_compared_with_itself(symmetric):
    fixed = {"labels": torch.arange(11, device=DEVICE).roll(3), "exclude_self": True, "symmetric": symmetric}
    check_parity(info_nce, reference.info_nce, pair(), fixed)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_moco(dtype):
    leaves = {**pair(6, dtype=dtype), "queue": unit(23, dtype=dtype)}
    check_parity(info_nce, reference.info_nce, leaves, {"symmetric": False})
    fixed = {"symmetric": False, "b": leaves.pop("b"), "queue": leaves.pop("queue")}
    check_parity(info_nce, reference.info_nce, leaves, fixed)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_siglip(dtype):
    leaves = {**pair(dtype=dtype, scale=10.0), "bias": torch.tensor(-10.0, device=DEVICE)}
    check_parity(siglip_loss, reference.siglip_loss, leaves, {})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("ignore_index", [-100, 3])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_heads_with_large_vocabularies(weighted, biased, ignore_index):
    leaves = {"x": draw(3, 4, 20), "weight": draw(31, 20)} | ({"bias": draw(31)} if biased else {})
    labels = labels_of(12, 31).view(3, 4)
    labels[0, 1:] = ignore_index
    fixed = {"labels": labels, "ignore_index": ignore_index}
    fixed |= {"weights": torch.rand(3, 4, device=DEVICE)} if weighted else {}
    check_parity(linear_cross_entropy, reference.linear_cross_entropy, leaves, fixed)
    found = gradients(linear_cross_entropy, leaves, fixed, None)
    assert not found["x"][0, 1:].any() and found["x"][0, 0].any()


@pytest.mark.usefixtures("form")
def test_a_weight_tied_to_the_embedding_gets_both_gradients():
    weight, ids = draw(31, 20).requires_grad_(), labels_of(12, 31)
    for loss in (linear_cross_entropy, reference.linear_cross_entropy):
        loss(F.embedding(ids, weight), weight, ids).backward()
    both, weight.grad = weight.grad, None
    reference.linear_cross_entropy(F.embedding(ids, weight), weight, ids).backward()
    torch.testing.assert_close(both, 2 * weight.grad)


@settings(max_examples=EXAMPLES, deadline=None)
@given(rows=st.integers(1, 40), more=st.integers(0, 40), dim=st.integers(1, 70), seed=st.integers(0, 2**16))
def test_any_sizes(rows, more, dim, seed):
    torch.manual_seed(seed)
    leaves = {"a": unit(rows, dim), "b": unit(rows + more, dim), "scale": torch.tensor(9.0, device=DEVICE)}
    # a row's gradient is the difference of two vectors of length scale / rows, which may be equal
    terms = 9.0 / math.sqrt(rows)
    check_parity(info_nce, reference.info_nce, leaves, {"labels": labels_of(rows, rows + more)}, terms)


# Numbers that break lesser losses


@pytest.mark.usefixtures("form")
def test_one_pair_is_always_right():
    found = gradients(info_nce, pair(1), {}, None)
    assert all(not value.any() for value in found.values())


@pytest.mark.usefixtures("form")
def test_equal_logits_cost_the_logarithm_of_their_number():
    same = unit(1).expand(50, -1)
    assert info_nce(same, same, 7.0).item() == pytest.approx(math.log(50), abs=1e-6)
    assert nt_xent(same, same, 7.0).item() == pytest.approx(math.log(99), abs=1e-6)


@pytest.mark.usefixtures("form")
def test_rows_whose_best_match_is_poor_at_the_largest_scale():
    """Logits of a row reach from -100 to 100; where another row's best stands at 100, exp(l - 100) has vanished."""
    leaves = pair(12, scale=100.0)
    leaves["a"][0] = -leaves["b"].mean(0)
    leaves["b"][3], leaves["a"][5] = -leaves["a"].mean(0), leaves["b"][5]
    leaves = {name: F.normalize(leaf, dim=-1) if leaf.ndim else leaf for name, leaf in leaves.items()}
    check_parity(info_nce, reference.info_nce, leaves, {})
    leaves["a"] = F.normalize(unit(1) + 0.1 * unit(12), dim=1)
    leaves["b"] = F.normalize(torch.cat([leaves["a"][:6], -leaves["a"][6:]]) + 0.1 * unit(12), dim=1)
    check_parity(info_nce, reference.info_nce, leaves, {})


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("scale", "bias"), [(60.0, -15.0), (60.0, -10.0), (30.0, -17.0), (5.0, 20.0)])
def test_small_pairwise_losses_keep_their_digits(scale, bias):
    leaves = {"a": torch.eye(4, 16).to(DEVICE), "b": torch.eye(4, 16).to(DEVICE)}
    leaves |= {"scale": torch.tensor(scale, device=DEVICE), "bias": torch.tensor(bias, device=DEVICE)}
    check_parity(siglip_loss, reference.siglip_loss, leaves, {})


@pytest.mark.usefixtures("form")
def test_a_key_that_is_nearly_certain_keeps_its_gradient():
    eye = torch.eye(8, 16).to(DEVICE)
    leaves = {"a": eye[:4], "b": eye[:4].clone(), "scale": torch.tensor(20.0, device=DEVICE)}
    found = gradients(info_nce, leaves, {"queue": eye[4:], "symmetric": False}, None)
    exact = gradients(reference.info_nce, leaves, {"queue": eye[4:].double(), "symmetric": False}, torch.float64)
    torch.testing.assert_close(found["b"].double(), exact["b"], rtol=1e-5, atol=0)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("other", [{}, {"queue": 23}])
def test_weights_have_gradients_where_they_are_zero_too(other):
    leaves = {**pair(6), "weights": torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 1.0], device=DEVICE)}
    fixed = {"symmetric": False, **{name: unit(size) for name, size in other.items()}}
    check_parity(info_nce, reference.info_nce, leaves, fixed)


@pytest.mark.usefixtures("form")
def test_what_is_no_number_shows_except_in_ignored_rows():
    x, weight, labels = draw(4, 20), draw(9, 20), torch.tensor([0, 1, -100, 2], device=DEVICE)
    expected = linear_cross_entropy(x, weight, labels)
    x[2] = torch.nan
    for needed in (False, True):
        assert linear_cross_entropy(x.requires_grad_(needed), weight, labels) == expected
    weight[4] = torch.nan
    assert linear_cross_entropy(x, weight, labels).isnan()


def test_features_of_several_dtypes_meet_under_autocast():
    """A head's weight is float32 beside activations that autocast made: both are lowered."""
    a, b, weight, queue = unit(5, dtype=torch.float16), unit(5), draw(9, 20), unit(7)
    labels = labels_of(5, 9)
    with torch.autocast(DEVICE.type, torch.float16):
        head, clip = linear_cross_entropy(a, weight, labels), info_nce(a, b, 9.0)
        moco = info_nce(a, b, 100.0, queue=b, symmetric=False)
        siglip, simclr = siglip_loss(a, b, 9.0, -1.0), nt_xent(a, b, 9.0)
    low = b.half()
    assert torch.equal(head, linear_cross_entropy(a, weight.half(), labels))
    assert torch.equal(clip, info_nce(a, low, 9.0)) and torch.equal(simclr, nt_xent(a, low, 9.0))
    assert torch.equal(siglip, siglip_loss(a, low, 9.0, -1.0))
    assert torch.equal(moco, info_nce(a, low, 100.0, queue=low, symmetric=False))
    with pytest.raises(TypeError, match="b is float32, expected float16"):
        info_nce(a, queue[:5], 9.0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_second_derivatives_are_refused(symmetric):
    a, b = (unit(30).requires_grad_() for _ in range(2))
    (first,) = torch.autograd.grad(info_nce(a, b, 9.0, symmetric=symmetric), a, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|no autograd formula|does not require grad"):
        first.square().sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_large_batches_do_not_vanish(dtype):
    """1 / n is in every gradient: 16-bit ones would end at 6e-8 if it were in the logits' gradient already."""
    leaves, tiny = pair(16, dtype=dtype), 2.0**-20
    plain, small = (gradients(partial(scaled_down, factor), leaves, {}, None) for factor in (1, tiny))
    torch.testing.assert_close(small["scale"] / tiny, plain["scale"], rtol=1e-3, atol=1e-7)
    if dtype != torch.float16:  # whose own gradients cannot be so small
        torch.testing.assert_close(small["a"].float() / tiny, plain["a"].float(), rtol=1e-2, atol=1e-6)


def test_a_million_columns_by_a_handful_of_rows(monkeypatch):
    monkeypatch.setattr(similarity, "TILE", 2**18)
    count = 3000 if INTERPRETED else 10**6  # the interpreter takes seconds for these
    leaves = {"a": unit(3, 8), "b": unit(count, 8), "scale": torch.tensor(50.0, device=DEVICE)}
    fixed = {"labels": torch.tensor([0, count - 1, 77], device=DEVICE)}
    check_parity(info_nce, reference.info_nce, leaves, fixed)
    check_parity(info_nce, reference.info_nce, leaves, {**fixed, "symmetric": False})


def test_nothing_to_compare():
    for loss in (info_nce, nt_xent):
        found = gradients(loss, {"a": unit(0), "b": unit(0), "scale": torch.tensor(5.0, device=DEVICE)}, {}, None)
        assert found["result"] == 0 and found["scale"] == 0
    x, weight = draw(4, 20), draw(9, 20)
    found = gradients(linear_cross_entropy, {"x": x, "weight": weight}, {"labels": torch.full((4,), -100)}, None)
    assert all(not value.any() for value in found.values())
    assert not info_nce(unit(3), unit(3), 5.0, symmetric=False, queue=unit(0)).any()


@pytest.mark.usefixtures("form")
def test_results_are_the_same_every_time():
    leaves = pair(30, dtype=torch.float16)
    first, second = (gradients(info_nce, leaves, {}, None) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("loss", [info_nce, nt_xent, lambda a, b, scale: siglip_loss(a, b, scale, -1.0)])
def test_no_tensor_has_the_size_of_the_matrix(loss):
    a, b = (unit(150, 8).requires_grad_() for _ in range(2))
    with Largest() as largest:
        loss(a, b, 10.0).backward()
    # inputs and their gradients; on the Triton path a chunk of one block of rows
    rows = 64 if DEVICE.type == "cpu" else 128
    assert largest.elements <= (rows * 300 if TRITON else 300 * 8) < 150 * 150


def test_tiles_round_as_one_matrix_does_not(monkeypatch):
    """The sizes above are what they say: with them the engine takes many tiles."""
    shapes = [(row, column) for row, across in similarity.blocks(30, 20) for column in across]
    assert len(shapes) == 5 * 3
    monkeypatch.setattr(similarity, "TILE", 2**18)
    for rows, columns in ((3, 10**6), (10**6, 3), (4000, 4000), (100, 200)):
        shapes = [(row, column) for row, across in similarity.blocks(rows, columns) for column in across]
        assert sum((r.stop - r.start) * (c.stop - c.start) for r, c in shapes) == rows * columns
        assert max((r.stop - r.start) * (c.stop - c.start) for r, c in shapes) <= 2**18
        assert len(shapes) <= 1.3 * rows * columns / 2**18 + 1


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"b": unit(11, 19)}, ValueError, r"b has shape \(11, 19\), expected \(rows, 20\): a has shape \(11, 20\)"),
        ({"b": unit(4)}, ValueError, r"without labels: \(11, 20\) and \(4, 20\)"),
        ({"a": unit(11)[0]}, ValueError, r"a has shape \(20,\), expected \(rows, dim\)"),
        ({"b": unit(11).half()}, TypeError, "b is float16, expected float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, r"labels has shape \(3,\), expected \(11,\)"),
        ({"labels": torch.zeros(11, dtype=torch.int32)}, TypeError, "labels is int32, expected int64"),
        ({"labels": torch.full((11,), 11)}, ValueError, "labels holds 11 to 11, expected 0 to 10"),
        ({"labels": torch.full((11,), -1)}, ValueError, "labels holds -1 to -1, expected 0 to 10"),
        ({"weights": torch.ones(4)}, ValueError, r"weights has shape \(4,\), expected \(11,\)"),
        ({"scale": torch.ones(2)}, ValueError, r"scale has shape \(2,\), expected \(\): scale is one number"),
        ({"scale": torch.ones((), dtype=torch.complex64)}, TypeError, "scale is complex64, expected"),
        ({"queue": unit(5)}, ValueError, "pass symmetric=False"),
        ({"queue": unit(5, 7), "symmetric": False}, ValueError, r"queue has shape \(5, 7\), expected \(rows, 20\)"),
        ({"exclude_self": True}, ValueError, "exclude_self leaves out column i of row i"),
        (
            {"exclude_self": True, "labels": torch.arange(11)},
            ValueError,
            "name a row's own column as its positive, which exclude_self leaves out",
        ),
        (
            {"exclude_self": True, "b": unit(12), "labels": torch.ones(11, dtype=torch.int64)},
            ValueError,
            r"compares a batch with itself: \(11, 20\) and \(12, 20\) differ",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message, monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")  # values of labels are read on a CPU, and on a GPU where this asks for it
    change = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(error, match=message):
        bare(info_nce)(**(pair() | change))


def test_labels_of_a_head_are_checked(monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")
    x, weight = draw(4, 20), draw(9, 20)
    for wrong in (-1, 9):
        with pytest.raises(ValueError, match=f"labels holds {wrong} to {wrong}, expected 0 to 8"):
            linear_cross_entropy(x, weight, torch.full((4,), wrong, device=DEVICE))
    with pytest.raises(ValueError, match=r"weight has shape \(9, 19\), expected \(rows, 20\): x has shape \(4, 20\)"):
        bare(linear_cross_entropy)(x, draw(9, 19), torch.zeros(4, dtype=torch.int64, device=DEVICE))
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), expected \(4,\)"):
        bare(linear_cross_entropy)(x, weight, torch.zeros(3, dtype=torch.int64, device=DEVICE))
