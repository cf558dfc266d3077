"""Ranks that hold a part of the batch each: averaged, their gradients are those of one process that holds all of it."""

import math
from datetime import timedelta
from itertools import accumulate, pairwise

import pytest
import torch
import torch.distributed as dist
from mmssl_kernels import info_nce, linear_cross_entropy, nt_xent, siglip_loss
from mmssl_kernels.contrastive import distributed, losses, similarity
from torch import nn
from torch.distributed import TCPStore
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from tests.kernels.support import Largest
from tests.processes import server

# Rows of each rank: equal, uneven, and one that has none.
SPLITS = {"alone": (6,), "two": (6, 6), "uneven": (9, 2), "three": (4, 7, 3), "one idle": (5, 0, 6)}
LOSSES = ("clip", "one direction", "weighted", "labels", "simclr", "siglip", "moco", "head")
WAYS = ("gathered", "ring")


class Towers(nn.Module):
    """Two projections, a scale and a bias; every loss of a batch `[rows, 2, 8]`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = (nn.Linear(8, 5, bias=False, dtype=torch.float64) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-1.0, dtype=torch.float64))
        self.importance = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
        self.register_buffer("queue", torch.randn(12, 5, dtype=torch.float64))

    def forward(self, batch, sample, loss, groups, group):
        """groups: sizes of the parts of this batch, each a rank's or all of them here; `sample` numbers its rows."""
        a = F.normalize(self.image(batch[:, 0]), dim=1)
        b = F.normalize(self.text(batch[:, 1]), dim=1)
        scale, weights = self.log_scale.exp(), self.importance[sample % 3]
        if loss == "clip":
            return info_nce(a, b, scale, group=group)
        if loss == "one direction":
            return info_nce(a, b, scale, symmetric=False, group=group)
        if loss == "weighted":
            return info_nce(a, b, scale, weights=weights, group=group)
        if loss == "labels":  # the part's own rows backwards
            bounds = pairwise(accumulate(groups, initial=0))
            labels = torch.cat([torch.arange(start, stop).flip(0) for start, stop in bounds])
            return info_nce(a, b, scale, labels=labels, group=group)
        if loss == "simclr":
            return nt_xent(a, b, scale, group=group)
        if loss == "siglip":
            return siglip_loss(a, b, scale, self.bias, group=group)
        if loss == "moco":
            return info_nce(a, b, scale, queue=self.queue, symmetric=False, weights=weights, group=group)
        labels = torch.where(sample % 4 == 0, -100, sample % 8)
        return linear_cross_entropy(a, self.text.weight.T, labels, bias=self.bias.expand(8), group=group)


def batch_of(count):
    return torch.randn(count, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def run_rank(rank, sizes, port, file):
    torch.set_num_threads(1)
    store = TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=len(sizes), timeout=timedelta(seconds=60))
    start = sum(sizes[:rank])
    mine = slice(start, start + sizes[rank])
    batch, sample = batch_of(sum(sizes)), torch.arange(sum(sizes))
    found = {}
    similarity.TILE, losses.WHOLE, similarity.BLOCK, similarity.FEWEST = 16, 0, 30, 3
    for way in WAYS:
        distributed.GATHERED = 2**26 if way == "gathered" else 0
        for loss in LOSSES:
            model = DistributedDataParallel(Towers(), find_unused_parameters=True)
            value = model(batch[mine], sample[mine], loss, [sizes[rank]], dist.group.WORLD)
            value.backward()
            found[f"{way} {loss}"] = value.detach(), gradients(model.module)
    shape = (40, 64)
    for way in WAYS:
        distributed.GATHERED = 2**26 if way == "gathered" else 0
        a, b = (torch.randn(shape).requires_grad_() for _ in range(2))
        with Largest() as largest:
            info_nce(a, b, 2.0, group=dist.group.WORLD).backward()
        found[f"{way} memory"] = largest.elements / math.prod(shape)
    try:
        info_nce(a, b, 2.0, labels=torch.full((40,), 40 if rank == 0 else -1), group=dist.group.WORLD)
    except ValueError as error:
        found["wrong labels"] = str(error)
    with torch.autocast("cpu", torch.bfloat16):
        found["autocast"] = info_nce(a, b, 2.0, group=dist.group.WORLD).detach()
    found["lowered"] = info_nce(a.bfloat16(), b.bfloat16(), 2.0, group=dist.group.WORLD).detach()
    if rank == len(sizes) - 1:
        torch.save(found, file)
    dist.destroy_process_group()


def run(sizes, file):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks = [server().Process(target=run_rank, args=(rank, sizes, store.port, file)) for rank in range(len(sizes))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * len(sizes)
    return torch.load(file)


@pytest.fixture(scope="module", params=SPLITS)
def together(request, tmp_path_factory):
    """(sizes, what the last rank found by each way and loss)."""
    sizes = SPLITS[request.param]
    return sizes, run(sizes, tmp_path_factory.mktemp("ranks") / "found.pt")


@pytest.mark.parametrize("loss", LOSSES)
def test_the_mean_of_the_ranks_gradients_is_that_of_one_process(together, loss):
    sizes, found = together
    alone = Towers()
    expected = alone(batch_of(sum(sizes)), torch.arange(sum(sizes)), loss, sizes, None)
    expected.backward()
    for way in WAYS:
        value, of_parameters = found[f"{way} {loss}"]
        torch.testing.assert_close(value, expected.detach(), rtol=1e-12, atol=1e-12)
        for name, gradient in gradients(alone).items():
            other = of_parameters[name]
            if gradient is None:  # DDP leaves zeros or nothing where a loss does not use a parameter
                assert other is None or not other.any()
            else:
                torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-12, msg=f"{way}: {name}")


def test_a_ring_holds_a_block_at_a_time(together):
    """The largest tensor of forward and backward, in blocks of one rank's rows."""
    sizes, found = together
    assert found["ring memory"] == 1 and found["gathered memory"] == len(sizes)


def test_labels_name_rows_of_their_own_rank(together):
    sizes, found = together
    wrong = 40 if len(sizes) == 1 else -1
    assert found["wrong labels"] == f"labels holds {wrong} to {wrong}, expected 0 to 39"


def test_autocast_lowers_the_features_of_all_ranks(together):
    assert torch.equal(together[1]["autocast"], together[1]["lowered"])
