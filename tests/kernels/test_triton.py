"""What only the Triton code must hold: wrong positions that nobody checked stay inside the tensors."""

import pytest
import torch
from mmssl_kernels.attention import attention_triton
from mmssl_kernels.contrastive import nearest_triton, similarity_triton
from mmssl_kernels.masked_patch import embed_triton, mse_triton, restore_triton, slots_triton

from tests.kernels.support import DEVICE, draw, pixels_of

SHAPE, PATCH, COUNT = (2, 3, 16, 24), [8, 8], 6
FAR = 10**6


@pytest.mark.parametrize("flat", [False, True])
def test_wrong_positions_are_clamped(flat):
    pixels, statistics = pixels_of(*SHAPE), torch.ones(3, device=DEVICE)
    weight, position = draw(20, 192), draw(COUNT, 20)
    wrong, right = torch.tensor([[[0, FAR], [-FAR, 3]], [[0, COUNT - 1], [0, 3]]], device=DEVICE)
    rows = wrong_rows = None
    if flat:
        wrong, right = wrong.flatten(), right.flatten()
        wrong_rows, rows = torch.tensor([[-FAR, 0, FAR, 1], [0, 0, 1, 1]], device=DEVICE)
    found, expected = (
        embed_triton.embed(pixels, weight, None, position, index, row, statistics, statistics, PATCH)
        for index, row in ((wrong, wrong_rows), (right, rows))
    )
    assert torch.equal(found, expected)
    prediction = draw(*wrong.shape, 192)
    found, expected = (
        mse_triton.mse(prediction, pixels, index, row, statistics, statistics, None, PATCH, "patch")
        for index, row in ((wrong, wrong_rows), (right, rows))
    )
    assert torch.equal(found, expected)


def test_wrong_positions_restore_nothing():
    keep = torch.tensor([[0, FAR], [-FAR, 3]], device=DEVICE)
    slots = slots_triton.slot_map(keep, None, 2, COUNT, prefix=1, width=3)
    assert slots.tolist() == [[1, -1, -1, -1, -1, -1], [-1, -1, -1, 5, -1, -1]]
    full = restore_triton.restore(draw(2, 3, 20), keep, None, draw(20), draw(1 + COUNT, 20), None, None, None, 1)
    assert full.isfinite().all()


def test_ragged_rows_out_of_order_stay_inside_the_tokens():
    keep, rows = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 1, 1, 1]], device=DEVICE)
    slots = restore_triton.keep_slots(keep, rows, 2, 3, COUNT, 1)
    assert slots.max() < 6 and slots.min() == -1


def test_wrong_columns_are_clamped():
    x, y, far = draw(3, 5), draw(40, 5), torch.tensor([FAR, -FAR, 7], device=DEVICE)
    found, expected = (nearest_triton.rank(x, y, each, None) for each in (far, far.clamp(0, 39)))
    assert torch.equal(found, expected)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs 9 GB of GPU memory")
def test_results_past_two_to_the_31():
    tokens = torch.ones(2, 2**10 + 1, 2**11, dtype=torch.float16, device=DEVICE)
    keep = torch.arange(2**10, device=DEVICE).expand(2, -1)
    position = torch.zeros(2**20, 2**11, dtype=torch.float16, device=DEVICE)
    full = restore_triton.restore(tokens[:, 1:], keep, None, position[0], position, None, None, None, 0)
    assert full.numel() > 2**31
    assert full[:, : 2**10].sum(dtype=torch.float64) == 2 * 2**10 * 2**11
    assert not full[1, -5:].any()


def test_gradients_of_logits_past_two_to_the_31(monkeypatch):
    """On a GPU one chunk of them has so many; elsewhere it only runs."""
    monkeypatch.setattr(similarity_triton, "CHUNK_ROWS", 2048)
    rows, columns = (2048, 2**20 + 64) if DEVICE.type == "cuda" else (70, 200)
    x, y, scale = draw(rows, 16, dtype=torch.float16), draw(columns, 16, dtype=torch.float16), draw().fill_(0.5)
    sums, found, _ = similarity_triton.similarity_sums(x, y, scale, None, None, "softmax", None, False, None)
    upstream, needs = torch.full((rows,), 1 / rows, device=DEVICE), [False, True, False, False]
    _, of_y, _, _ = similarity_triton.similarity_backward(
        upstream, None, None, x, y, scale, None, None, sums, found, "softmax", None, needs
    )
    logits = scale * x.float() @ y[-64:].float().T
    shares = (logits - sums[:, :1] - sums[:, 1:]).exp() / rows
    expected = scale * shares.T @ x.float()
    assert (of_y[-64:] - expected).norm() < 2e-3 * expected.norm()  # float16's roundings


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # on a GPU attention's kernels take 16 bits alone
def test_wrong_offsets_of_packed_sequences_are_clamped(dtype):
    """They read and write nothing outside, and right sequences beside them stay right."""
    qkv = draw(8, 3, 2, 16, dtype=dtype)
    wrong = torch.tensor([0, 5, FAR, -FAR, 8], dtype=torch.int32, device=DEVICE)
    settings = 5, 5, False, [], 0.25
    (found, _), (expected, _) = (
        attention_triton.attention(qkv, None, None, None, None, offsets, offsets, *settings)
        for offsets in (wrong, torch.tensor([0, 5, 8], dtype=torch.int32, device=DEVICE))
    )
    assert torch.equal(found, expected)
