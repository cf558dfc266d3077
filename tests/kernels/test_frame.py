"""What every op owes to torch: registration, tracing, autocast; and the frame: dispatch, tables, checks."""

from types import SimpleNamespace

import pytest
import torch
from mmssl_kernels import Window, masked_patch_embed, restore_tokens
from mmssl_kernels.contrastive import similarity
from mmssl_kernels.frame import dispatch
from mmssl_kernels.frame.launch import launch, recorded
from mmssl_kernels.tables import FAMILIES, TABLES, Config

from tests.kernels import test_masked_patch_embed as embed
from tests.kernels import test_masked_patch_mse as mse
from tests.kernels import test_restore_tokens as restore
from tests.kernels.support import DEVICE, INTERPRETED, TRITON, draw, pixels_of, ragged, upstream_of
from tests.processes import printed


def embed_arguments(flat=False, float_pixels=False, weight=torch.float32):
    leaves, fixed = embed.arguments(*embed.CASES["picture"])
    leaves["weight"] = leaves["weight"].to(weight)
    index, rows = ragged([4, 0, 3], 6) if flat else (fixed["index"], None)
    pixels = pixels_of(3, 3, 16, 24, dtype=torch.float32).requires_grad_() if float_pixels else fixed["pixels"]
    weight, bias, position = (leaf.requires_grad_() for leaf in leaves.values())
    return pixels, weight, bias, position, index, rows, fixed["mean"], fixed["std"], [8, 8]


def restore_arguments(*changes, dtype=torch.float32):
    leaves, fixed = restore.arguments(prefix=0, dtype=dtype)
    for change in changes:
        change(leaves, fixed)
    tokens, mask_token, position = (leaf.requires_grad_() for leaf in leaves.values())
    asked = [fixed.get(name) for name in ("kind", "restore", "restore_rows")]
    return tokens, fixed["keep"], fixed.get("rows"), mask_token, position, *asked, 0


def mse_arguments(norm, weighted=False):
    leaves, fixed = mse.arguments(*mse.CASES["picture"], norm)
    weights = torch.rand(3, device=DEVICE) if weighted else None
    prediction = leaves["prediction"].requires_grad_()
    return prediction, fixed["pixels"], fixed["index"], None, fixed["mean"], fixed["std"], weights, [8, 8], norm


def similarity_arguments(kind="softmax", exclude=None, columns=True, ignored=None, bias=False, dtype=torch.float32):
    x, y = (draw(rows, 5, dtype=dtype).requires_grad_() for rows in (7, 9))
    labels = torch.tensor([1, 2, 3, 4, 5, 6, 8], device=DEVICE)
    shift = draw(9).requires_grad_() if bias else None
    return x, y, torch.tensor(3.0, device=DEVICE).requires_grad_(), shift, labels, kind, exclude, columns, ignored


def one_pass_arguments(kind="softmax", exclude=None, bias=False, outside=False, dtype=torch.float32):
    x, y, scale, shift, labels, *_ = similarity_arguments(bias=bias, dtype=dtype)
    labels, key = (None, draw(7).requires_grad_()) if outside else (labels.flip(0), None)
    weights = torch.tensor([1.0, 0, 2, 0, 0, 1, 1], device=DEVICE).requires_grad_()
    return x, y, scale, shift, labels, key, weights, kind, exclude, None, [True, True, True, bias, True]


def similarity_gradient_arguments():
    x, y, scale, _, labels, kind, exclude, *_ = similarity_arguments(exclude=0)
    with torch.no_grad():
        rows, columns, positives = similarity.similarity(x, y, scale, labels=labels, exclude=0, columns=True)
        upstream = (torch.rand_like(each) for each in (rows[:, 0], columns[:, 0], positives))
        fixed = (each.detach() for each in (x, y, scale))
        return *upstream, *fixed, None, labels, rows, columns, kind, exclude, [True, True, True, False]


def attention_arguments(kind, dtype=torch.float32):
    """Beside a plain call: one tensor with windows and a learned bias, packed sequences of two tensors, everything."""
    q, k, v = (draw(2, tokens, 2, 8, dtype=dtype).requires_grad_() for tokens in (12, 40, 40))
    bias = padding = queries = keys = None
    sizes, numbers = (12, 40), []
    if kind == "windows":
        q, k, v, bias = draw(2, 16, 3, 2, 8, dtype=dtype).requires_grad_(), None, None, draw(2, 8, 8).requires_grad_()
        sizes, numbers = (8, 8), Window((4, 4), (4, 2), (1, 0)).numbers()
    if kind == "packed":
        q, k, v = (each.detach()[0].requires_grad_() for each in (q, k, v))
        queries, keys = (
            torch.tensor(each, dtype=torch.int32, device=DEVICE) for each in ([0, 0, 7, 11], [0, 3, 3, 38])
        )
    if kind == "everything":
        bias, padding = draw(2, 12, 40).requires_grad_(), (torch.rand(2, 40) < 0.5).to(DEVICE)
    return q, k, v, padding, bias, queries, keys, *sizes, kind == "everything", numbers, 0.3


CALLS = {
    "attention": [
        lambda: attention_arguments("plain"),
        lambda: attention_arguments("windows", torch.float16),
        lambda: attention_arguments("packed"),
        lambda: attention_arguments("everything"),
    ],
    "masked_patch_embed": [
        lambda: embed_arguments(),
        lambda: embed_arguments(flat=True),
        lambda: embed_arguments(weight=torch.float16),
    ],
    "masked_patch_embed_backward": [
        lambda: (
            draw(3, 5, 20),
            *(each if each is None or not hasattr(each, "detach") else each.detach() for each in embed_arguments()[:2]),
            *embed_arguments()[4:],
            6,
            [True, False, True],
        )
    ],
    "restore_tokens": [
        lambda: restore_arguments(),
        lambda: restore_arguments(dtype=torch.float16),
        lambda: restore_arguments(restore.several, restore.ragged_keep),
        lambda: restore_arguments(restore.subset),
        lambda: restore_arguments(restore.ragged_subset),
    ],
    "masked_patch_mse": [lambda: mse_arguments("patch"), lambda: mse_arguments("channel", weighted=True)],
    "similarity_sums": [
        lambda: similarity_arguments(),
        lambda: similarity_arguments(exclude=0, columns=False, ignored=3, dtype=torch.float16),
        lambda: similarity_arguments("sigmoid", columns=False, bias=True),
    ],
    "similarity_topk": [
        lambda: (draw(7, 5), draw(9, 5), 3, None),
        lambda: (draw(7, 5).half(), draw(9, 5).half(), 2, 1),
    ],
    "similarity_rank": [lambda: (draw(7, 5), draw(9, 5), torch.arange(7, device=DEVICE), 2)],
    "similarity_backward": [similarity_gradient_arguments],
    "similarity_loss": [
        lambda: one_pass_arguments(),
        lambda: one_pass_arguments(outside=True, dtype=torch.float16),
        lambda: one_pass_arguments("sigmoid", bias=True, exclude=4),
    ],
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # opcheck's own
@pytest.mark.parametrize(("name", "number"), [(name, i) for name, calls in CALLS.items() for i in range(len(calls))])
def test_registration_holds_what_it_says(name, number):
    """Schema, autograd registration, fake results, and tracing with static and dynamic shapes."""
    opcheck(name, CALLS[name][number]())


def opcheck(name, arguments):
    """Tracing, by far the longest of these, is the same for both paths: the interpreter has nothing to say of it."""
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks += [] if INTERPRETED else ["test_aot_dispatch_dynamic"]
    result = torch.library.opcheck(getattr(torch.ops.mmssl, name).default, arguments, test_utils=checks)
    assert result.keys() == set(checks) and set(result.values()) == {"SUCCESS"}


def test_ops_have_names_in_profiles_and_graphs():
    leaves, fixed = restore.arguments()
    with torch.profiler.profile(acc_events=True) as profile:
        restore_tokens(**leaves, **fixed)
    assert "mmssl::restore_tokens" in {event.key for event in profile.key_averages()}


def test_autocast_of_the_op_itself():
    arguments = embed_arguments()
    with torch.autocast(DEVICE.type, torch.float16):
        tokens = torch.ops.mmssl.masked_patch_embed(*arguments)
    assert tokens.dtype == torch.float32
    lowered = list(arguments)
    lowered[1] = lowered[1].half()
    assert torch.equal(tokens, torch.ops.mmssl.masked_patch_embed(*lowered))
    tokens.backward(upstream_of(tokens))
    assert arguments[1].grad.dtype == torch.float32


def test_autocast_lowers_features_and_nothing_else():
    x, y, *rest = similarity_arguments(bias=True)
    with torch.autocast(DEVICE.type, torch.float16):
        found = torch.ops.mmssl.similarity_sums(x, y, *rest)
    expected = torch.ops.mmssl.similarity_sums(x.half(), y.half(), *rest)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)


def test_the_switch_forces_either_path(monkeypatch):
    tensors = [torch.zeros(1, device=DEVICE)]
    monkeypatch.setenv("MMSSL_KERNELS", "torch")
    assert dispatch.backend(tensors) == "torch"
    monkeypatch.setenv("MMSSL_KERNELS", "fast")
    with pytest.raises(ValueError, match="MMSSL_KERNELS='fast': expected auto, triton or torch"):
        dispatch.backend(tensors)
    monkeypatch.setenv("MMSSL_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs tensors on a GPU, or TRITON_INTERPRET=1; these are on cpu"):
        dispatch.backend([torch.zeros(1)])


def test_values_are_read_where_that_is_free_or_asked_for(monkeypatch):
    monkeypatch.delenv("MMSSL_DEBUG", raising=False)
    elsewhere = torch.zeros(1, device="meta")
    assert dispatch.values_are_checked(torch.zeros(1)) and not dispatch.values_are_checked(elsewhere)
    monkeypatch.setenv("MMSSL_DEBUG", "1")
    assert dispatch.values_are_checked(elsewhere)


def test_what_triton_does_not_take_runs_in_pytorch():
    assert dispatch.backend([torch.zeros(1, device=DEVICE)]) == ("triton" if TRITON else "torch")
    assert dispatch.backend([torch.zeros(1, device=DEVICE, dtype=torch.float64)]) == "torch"
    pixels = pixels_of(1, 1, 2, 2, 2, 2)
    assert dispatch.backend([pixels]) == "torch"
    leaves = {"weight": draw(3, 2), "bias": None, "position": draw(8, 3), "patch": (1, 2, 1, 1)}
    statistics = {"mean": torch.zeros(1, device=DEVICE), "std": torch.ones(1, device=DEVICE)}
    index = torch.arange(8, device=DEVICE)[None]
    assert masked_patch_embed(pixels, index=index, **leaves, **statistics).shape == (1, 8, 3)


@pytest.mark.parametrize("name", TABLES)
def test_every_device_and_size_finds_its_row(name):
    assert set(TABLES[name]) == {*FAMILIES, "interpreter"}
    for rows in TABLES[name].values():
        limits = [limit for limit, _ in rows]
        assert limits[-1] is None and limits[:-1] == sorted(limit for limit in limits if limit is not None)


def test_devices_without_a_row_share_the_oldest(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, family in (((7, 5), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((10, 3), "sm_100")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert dispatch.family(torch.device("cuda")) == family
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert dispatch.family(torch.device("cuda")) == "sm_80"  # its shared memory is that of an A100's successor at home
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert dispatch.family(torch.device("cuda")) == "gfx942"


PRECISIONS = """
import torch
from mmssl_kernels.examples import attend, embed, similarity
from mmssl_kernels.frame.launch import recorded

matmul, torch.version.hip = torch.backends.cuda.matmul, None  # on AMD it is always "ieee"

def check(expected):
    for dtype in (torch.float32, torch.bfloat16):
        with recorded("sm_90") as launches, torch.device("meta"):
            embed(torch.zeros(2, 3, 32, 32), [16, 16], dtype=dtype, kept=2)
            attend(2, 3, 70, 64, dtype=dtype)
            similarity(rows=8, size=8, dim=16, dtype=dtype)
        found = [each.arguments["PRECISION"] for each in launches if "PRECISION" in each.arguments]
        assert found == [expected if dtype == torch.float32 else "ieee"] * 5, (dtype, found)

check("ieee")
torch.set_float32_matmul_precision("high")
check("tf32")
torch.set_float32_matmul_precision("highest")
check("ieee")
torch.set_float32_matmul_precision("medium")
check("tf32")
matmul.allow_tf32 = False
check("ieee")
matmul.allow_tf32 = True
check("tf32")
matmul.fp32_precision = "ieee"  # from here on torch's older functions may raise
check("ieee")
matmul.fp32_precision = "tf32"
check("tf32")
matmul.fp32_precision = "none"
torch.backends.fp32_precision = "tf32"
check("tf32")
torch.backends.fp32_precision = "ieee"
check("ieee")
torch.backends.mkldnn.matmul.fp32_precision = "bf16"
check("ieee")
"""


def test_float32_is_multiplied_as_torch_is_told_to():
    """By each of its interfaces, one after the other. In a process of its own, whose end undoes it."""
    printed(PRECISIONS)


def test_a_launch_names_the_kernels_arguments_and_no_others():
    kernel = SimpleNamespace(__name__="kernel", arg_names=["x", "N", "BLOCK"])
    with recorded("sm_90") as launches:
        launch(kernel, (1,), Config({"BLOCK": 4}), x=None, N=3)
        with pytest.raises(TypeError, match="kernel and its launch differ in BLOCK_C, N"):
            launch(kernel, (1,), Config({"BLOCK": 4, "BLOCK_C": 1}), x=None)
    assert [each.arguments for each in launches] == [{"x": None, "N": 3, "BLOCK": 4}]
