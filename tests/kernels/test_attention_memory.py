"""Attention without the matrix of its logits."""

import pytest
import torch
from mmssl_kernels import Window
from mmssl_kernels.attention import op

from tests.kernels.support import DEVICE, TRITON, Largest, draw
from tests.kernels.test_attention import HEADS, offsets, operands

if TRITON:
    from mmssl_kernels.attention import attention_triton, backward_triton

PYTORCH = op.attention, op.attention_backward


@pytest.mark.parametrize("form", ["learned bias", "windows", "one window", "packed", "causal with padding"])
def test_all_logits_are_never_in_memory(form):
    """Of our own code, whose tensors are seen where it is called without its registration."""
    batch, tokens, dim = 6, 400, 16
    q, k, v = operands(tokens, batch=batch, dim=dim, dtype=torch.float16 if TRITON else torch.float32).values()
    bias = padding = offsets_of = None
    sizes, causal, numbers = (tokens, tokens), False, []
    limit = q.numel()
    if form == "learned bias":
        bias = draw(HEADS, tokens, tokens)
        limit = 2 * bias.numel()  # of one sample and a chunk of sums over several, not of all samples
    if form == "windows":
        sizes, numbers = (16, 16), Window((tokens // 4, 4), (4, 4), (2, 0)).numbers()
    if form == "one window":
        numbers = Window((tokens // 4, 4), (tokens // 4, 4), (2, 0)).numbers()
    if form == "packed":
        q, k, v = (each.flatten(0, 1) for each in (q, k, v))
        offsets_of, causal = offsets([tokens] * batch), True
    if form == "causal with padding":
        padding, causal = torch.zeros(batch, tokens, dtype=torch.bool, device=DEVICE), True
    tensors, settings = (q, k, v, padding, bias, offsets_of, offsets_of), (*sizes, causal, numbers, 0.25)
    forward, backward = (attention_triton.attention, backward_triton.attention_backward) if TRITON else PYTORCH
    with Largest() as largest:
        out, sums = forward(*tensors, *settings)
        backward(out, *tensors, out, sums, *settings, bias is not None)
    assert largest.elements <= limit < batch * HEADS * tokens**2 / 2
