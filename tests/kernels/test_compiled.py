"""The ops inside `torch.compile`. In a process of its own: the tests' shape checks are not traceable."""

import json

import pytest

from tests.processes import printed

# One after the other, and why each failed that did.
ALL = """
import json, sys, torch, traceback
failed = {}
for name, program in json.loads(sys.argv[1]).items():
    torch._dynamo.reset()
    try:
        exec(program, {"__name__": name})
    except Exception:
        failed[name] = traceback.format_exc()
print(json.dumps(failed))
"""

MASKED_PATCH = """
import torch
from mmssl_kernels import masked_patch_embed, masked_patch_mse, restore_tokens
from tests.kernels.support import DEVICE, draw, pixels_of, positions, ragged

count, patch = 6, (8, 8)
statistics = {"mean": torch.rand(3, device=DEVICE), "std": torch.rand(3, device=DEVICE) + 0.5}
weight, bias, position, mask_token = draw(20, 192), draw(20), draw(count, 20), draw(20)
leaves = [leaf.requires_grad_() for leaf in (weight, bias, position, mask_token)]

def path(pixels, keep, hide, rows):
    tokens = masked_patch_embed(pixels, weight, bias, position, keep, patch=patch, **statistics)
    full = restore_tokens(tokens, keep, mask_token, position)
    queries = restore_tokens(tokens, keep, mask_token, position, restore=hide, restore_rows=rows)
    prediction = queries @ weight + full.mean()
    return masked_patch_mse(prediction, pixels, hide, rows=rows, patch=patch, target_norm="patch", **statistics)

def check(dynamic, low):
    torch._dynamo.reset()
    compiled = torch.compile(path, backend="aot_eager_default_partitioner", fullgraph=True, dynamic=dynamic)
    for batch in (3,) if dynamic is False else (3, 4, 7):
        pixels, keep = pixels_of(batch, 3, 16, 24), positions(batch, count, 2)
        hide, rows = ragged([1 + i % 3 for i in range(batch)], count)
        results = []
        for function in (path, compiled):
            for leaf in leaves:
                leaf.grad = None
            with torch.autocast(DEVICE.type, low, enabled=low is not None):
                loss = function(pixels, keep, hide, rows)
            loss.backward()
            results.append([loss, *(leaf.grad for leaf in leaves)])
        for plain, found in zip(*results, strict=True):
            torch.testing.assert_close(found, plain, rtol=1e-2 if low else 1e-4, atol=1e-2 if low else 1e-5)

check(False, None)
check(True, None)
check(None, torch.float16)
"""

OF_PIXELS = """
from tests.kernels.test_frame import embed_arguments, opcheck
opcheck("masked_patch_embed", embed_arguments(float_pixels=True))
"""


CONTRASTIVE = """
import torch
from mmssl_kernels import info_nce, linear_cross_entropy, nt_xent, siglip_loss
from mmssl_kernels.contrastive import losses
from tests.kernels.support import DEVICE, draw

log_scale, bias, weight = (leaf.requires_grad_() for leaf in (draw(), draw(), draw(13, 6)))

def clip(a, b):
    return info_nce(a, b, log_scale.exp())

def others(a, b):
    labels, queue = torch.arange(len(a), device=DEVICE).flip(0), b[:3].detach()
    moco = info_nce(a, b, 5.0, symmetric=False, queue=queue)
    matched = info_nce(a, b, log_scale.exp(), labels=labels, weights=a[:, 0].abs())
    head = linear_cross_entropy(a, weight, labels, bias=weight[:, 0], ignore_index=2)
    return nt_xent(a, b, 5.0) + siglip_loss(a, b, log_scale.exp(), bias) + moco + matched + head

def check(function, dynamic, low):
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager_default_partitioner", fullgraph=True, dynamic=dynamic)
    for rows in (5,) if dynamic is False else (5, 8, 12):
        a, b = (draw(rows, 6).requires_grad_() for _ in range(2))
        results = []
        for each in (function, compiled):
            with torch.autocast(DEVICE.type, low, enabled=low is not None):
                loss = each(a, b)
            leaves = [leaf for leaf in (a, b, log_scale, bias, weight)]
            results.append([loss, *torch.autograd.grad(loss, leaves, allow_unused=True)])
        for plain, found in zip(*results, strict=True):
            if plain is not None:
                torch.testing.assert_close(found, plain, rtol=1e-2 if low else 1e-4, atol=1e-2 if low else 1e-5)

for losses.WHOLE, function, dynamic, low in (
    (0, clip, False, None),
    (0, others, True, None),
    (2**22, clip, True, None),
    (2**22, others, False, None),
    (0, clip, None, torch.float16),
):
    check(function, dynamic, low)
"""


RETRIEVAL = """
import torch
from mmssl_kernels import similarity_rank, similarity_topk
from tests.kernels.support import DEVICE, draw

def retrieve(a, b):
    own = torch.arange(len(a), device=DEVICE)
    return *similarity_topk(a, b, 3, exclude=1), similarity_rank(a, b, own, exclude=len(b))

compiled = torch.compile(retrieve, backend="aot_eager_default_partitioner", fullgraph=True, dynamic=True)
for rows in (5, 8, 12):
    a, b = draw(rows, 6).requires_grad_(), draw(rows + 2, 6)
    for plain, found in zip(retrieve(a, b), compiled(a, b), strict=True):
        torch.testing.assert_close(found, plain)
"""


ATTENTION = """
import torch
from mmssl_kernels import Window, attention, attention_qkvpacked
from tests.kernels.support import DEVICE, draw

bias, wide = draw(2, 8, 8).requires_grad_(), draw(2, 12, 12).requires_grad_()
window, fixed = Window((4, 6), (4, 2), (1, 0)), torch.tensor([0, 5, 5, 24], dtype=torch.int32, device=DEVICE)

def plain(qkv):
    q, k, v = qkv.unbind(2)
    padding = (torch.arange(24, device=DEVICE) > 20).expand(len(q), -1)
    cross = attention(q[:, :12], k, v) + attention(q[:, :12], k[:, :12], v[:, :12], bias=wide)
    return cross, attention_qkvpacked(qkv, causal=True), attention(q, k, v, key_padding=padding)

def ours(qkv):
    q, k, v = qkv[0].unbind(1)
    packed = attention(q, k, v, cu_seqlens_q=fixed, max_q=19)
    whole = attention_qkvpacked(qkv[0], cu_seqlens=fixed, max_seqlen=19)
    return attention_qkvpacked(qkv, window=window, bias=bias), packed, whole

def check(function, dynamic, low):
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager_default_partitioner", fullgraph=True, dynamic=dynamic)
    for batch in (2, 3):
        qkv = draw(batch, 24, 3, 2, 8).requires_grad_()
        results = []
        for each in (function, compiled):
            with torch.autocast(DEVICE.type, low, enabled=low is not None):
                out = each(qkv)
            loss = sum((part.float() * (i + 1)).square().sum() for i, part in enumerate(out))
            results.append([*out, *torch.autograd.grad(loss, [qkv, bias, wide], allow_unused=True)])
        for expected, found in zip(*results, strict=True):
            if expected is not None:
                torch.testing.assert_close(found, expected, rtol=1e-2 if low else 1e-4, atol=1e-2 if low else 1e-5)

for function, dynamic, low in ((plain, True, None), (ours, None, torch.float16)):
    check(function, dynamic, low)
"""

PROGRAMS = {
    "the masked-patch path": MASKED_PATCH,
    "the gradient of pixels": OF_PIXELS,
    "contrastive losses": CONTRASTIVE,
    "retrieval": RETRIEVAL,
    "attention": ATTENTION,
}


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    """The tracebacks of those that failed."""
    return json.loads(printed(ALL, json.dumps(PROGRAMS)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_compiles_to_one_graph(name: str, failed: dict[str, str]) -> None:
    assert name not in failed, failed.get(name)
