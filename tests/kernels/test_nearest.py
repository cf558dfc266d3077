"""Retrieval: neighbours and ranks equal those of the whole matrix, ties included, which is never held."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmssl_kernels import reference, similarity_rank, similarity_topk

from tests.kernels.support import DEVICE, DTYPES, EXAMPLES, Largest, bare, draw, strided


def whole(rows, dim=5, most=2, dtype=torch.float32):
    """Whole numbers, whose products are exact in any order and any dtype: most rows have ties."""
    return torch.randint(-most, most + 1, (rows, dim)).to(DEVICE, dtype)


def columns_of(rows, columns, exclude=None):
    """A column of each row, none of them the excluded one."""
    first = torch.arange(rows) if exclude is None else torch.arange(rows) + exclude
    return ((first + torch.randint(1, columns, (rows,))) % columns).to(DEVICE)


def check(a, b, k, exclude=None):
    found, expected = (each(a, b, k, exclude=exclude) for each in (similarity_topk, reference.similarity_topk))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    column = columns_of(len(a), len(b), exclude)
    found, expected = (each(a, b, column, exclude=exclude) for each in (similarity_rank, reference.similarity_rank))
    assert found.dtype == torch.int64 and torch.equal(found, expected)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    rows=st.integers(0, 80),
    columns=st.integers(3, 200),
    dim=st.integers(1, 70),
    k=st.integers(1, 40),
    exclude=st.none() | st.integers(-90, 90),
    seed=st.integers(0, 2**16),
)
def test_any_sizes(rows, columns, dim, k, exclude, seed):
    torch.manual_seed(seed)
    check(whole(rows, dim), whole(columns, dim), min(k, columns - 1), exclude)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_every_dtype(dtype):
    a, b = whole(11, dtype=dtype), whole(40, dtype=dtype)
    check(a, b, 7)
    both = strided({"a": a, "b": b})
    check(both["a"], both["b"], 7, exclude=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_features_of_any_length(dtype):
    """Similarities are float32, however the features are rounded."""
    a, b = draw(9, 20, dtype=dtype), draw(150, 20, dtype=dtype)
    values, indices = similarity_topk(a, b, 12)
    exact = a.double() @ b.double().T
    torch.testing.assert_close(values.double(), exact.sort(dim=1, descending=True).values[:, :12], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(exact.gather(1, indices), values.double(), rtol=1e-5, atol=1e-5)
    assert torch.equal(similarity_rank(a, b, indices[:, 5]), torch.full((9,), 5, device=DEVICE))


@pytest.mark.parametrize("k", [1, 3, 40])
def test_of_equal_similarities_the_first_come_first(k):
    same = torch.ones(150, 4, device=DEVICE)
    _, indices = similarity_topk(same[:5], same, k)
    assert torch.equal(indices, torch.arange(k, device=DEVICE).expand(5, -1))
    assert (similarity_rank(same[:5], same, torch.full((5,), 149, device=DEVICE)) == 149).all()


def test_a_part_of_a_set_does_not_find_itself():
    a = whole(100)
    everything = similarity_topk(a, a, 4, exclude=0)
    assert not (everything[1] == torch.arange(100, device=DEVICE)[:, None]).any()
    for part in (slice(0, 37), slice(37, 100)):
        found = similarity_topk(a[part], a, 4, exclude=part.start)
        assert all(torch.equal(one, other[part]) for one, other in zip(found, everything, strict=True))
    assert similarity_topk(a, a, 99, exclude=0)[0].isfinite().all()


def test_what_is_no_number_is_never_good():
    a, b = whole(6), whole(40)
    column = columns_of(6, 40)
    a[2] = torch.nan
    ranks, (values, _) = similarity_rank(a, b, column), similarity_topk(a, b, 3)
    assert ranks[2] == 39 and torch.equal(ranks, reference.similarity_rank(a, b, column))
    assert not values[2].isfinite().any()
    a, b[7] = whole(6), torch.nan
    assert (similarity_topk(a, b, 3)[1][:, 0] == 7).all()
    assert torch.equal(similarity_rank(a, b, column), reference.similarity_rank(a, b, column))


def test_results_carry_no_gradient():
    a, b = draw(6, 5).requires_grad_(), draw(9, 5).requires_grad_()
    values, _ = similarity_topk(a, b, 3)
    assert not values.requires_grad
    with pytest.raises(RuntimeError, match="does not require grad"):
        values.sum().backward()


def test_autocast_lowers_the_features_as_for_the_losses():
    a, b, column = draw(6, 5), draw(40, 5), columns_of(6, 40)
    with torch.autocast(DEVICE.type, torch.float16):
        values, indices = similarity_topk(a, b, 3)
        ranks = similarity_rank(a, b, column)
    expected = similarity_topk(a.half(), b.half(), 3)
    assert torch.equal(values, expected[0]) and torch.equal(indices, expected[1])
    assert torch.equal(ranks, similarity_rank(a.half(), b.half(), column))


@pytest.mark.parametrize("k", [3, 40])
def test_no_tensor_has_the_size_of_the_matrix(k):
    a, b = whole(150), whole(150)
    with Largest() as largest:
        similarity_topk(a, b, k)
        similarity_rank(a, b, columns_of(150, 150))
    assert largest.elements <= 2 * 150 * max(k, 5) < 150 * 150


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, r"k is 0, expected 1 to 9: b has shape \(9, 20\), exclude is None"),
        ({"k": 10}, ValueError, r"k is 10, expected 1 to 9: b has shape \(9, 20\), exclude is None"),
        ({"k": 9, "exclude": 0}, ValueError, "k is 9, expected 1 to 8"),
        ({"b": draw(9, 19)}, ValueError, r"b has shape \(9, 19\), expected \(rows, 20\): a has shape \(5, 20\)"),
        ({"a": draw(20)}, ValueError, r"a has shape \(20,\), expected \(rows, dim\)"),
        ({"b": draw(9, 20).half()}, TypeError, "b is float16, expected float32"),
    ],
)
def test_neighbours_of_what_does_not_fit_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        bare(similarity_topk)(**({"a": draw(5, 20), "b": draw(9, 20), "k": 3} | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"column": torch.zeros(4, dtype=torch.int64)}, ValueError, r"column has shape \(4,\), expected \(5,\)"),
        ({"column": torch.zeros(5, dtype=torch.int32)}, TypeError, "column is int32, expected int64"),
        ({"column": torch.full((5,), 9)}, ValueError, "column holds 9 to 9, expected 0 to 8"),
        ({"exclude": 2}, ValueError, "column names what its own row does not see: exclude is 2"),
        ({"b": draw(0, 20)}, ValueError, r"b has shape \(0, 20\), but a of shape \(5, 20\) has rows"),
    ],
)
def test_ranks_of_what_does_not_fit_are_refused(change, error, message, monkeypatch):
    monkeypatch.setenv("MMSSL_DEBUG", "1")
    change = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in change.items()}
    with pytest.raises(error, match=message):
        column = torch.full((5,), 4, device=DEVICE)
        bare(similarity_rank)(**({"a": draw(5, 20), "b": draw(9, 20), "column": column} | change))
