"""Heads of methods that match views or pairs, and the batch norm over all ranks that some of them need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from mmssl import ranks
from mmssl.errors import UserError
from mmssl.transformer import MLP, Branch, CrossAttention, TransformerConfig, xavier_init


@dataclass(frozen=True)
class HeadConfig:
    """The settings of an `mlp_head`.

    widths: outputs of each linear layer. norm: a batch norm behind each but the last. last_norm: one behind the last,
    with a learned scale, or "fixed" with nothing learned. bias: which linear layers have one.

        SimCLR   (2048, 128), last_norm "scale"                    google-research/simclr, `ProjectionHead`
        MoCo v3  (4096, 4096, 256), last_norm "fixed"              facebookresearch/moco-v3, `_build_mlp`
                 (4096, 256), the same: its predictor              last_norm None on a ResNet
        BYOL     (4096, 256), bias "hidden": both of its heads     deepmind-research/byol, `MLP`
        SLIP     (4096, 4096, 256), bias "all"                     facebookresearch/SLIP, `_build_mlp`
        DINO     (2048, 2048, 256), bias "all", norm False,        facebookresearch/dino, `DINOHead`, before its
                 activation "gelu"                                 last layer
    """

    widths: tuple[int, ...]
    norm: bool = True
    last_norm: Literal["scale", "fixed"] | None = None
    bias: Literal["all", "hidden", "none"] = "none"
    activation: Literal["relu", "gelu"] = "relu"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"widths {self.widths} of a head: one positive number a layer")


def mlp_head(dim: int, config: HeadConfig) -> nn.Sequential:
    """Linear layers with what is between them, from `[B, dim]` to `[B, widths[-1]]`; numbered as MoCo v3's are."""
    layers: list[nn.Module] = []
    *hidden, out = config.widths
    for width in hidden:
        layers.append(nn.Linear(dim, width, bias=config.bias != "none"))
        layers += [GlobalBatchNorm(width)] if config.norm else []
        layers.append(nn.ReLU() if config.activation == "relu" else nn.GELU())
        dim = width
    layers.append(nn.Linear(dim, out, bias=config.bias == "all"))
    layers += [GlobalBatchNorm(out, shift=False, scale=config.last_norm == "scale")] if config.last_norm else []
    return nn.Sequential(*layers)


class GlobalBatchNorm(nn.BatchNorm1d):
    """Batch norm over the batch of all ranks, on any device, however many samples each has: none, too.

    In one process, and in eval mode, it is `nn.BatchNorm1d`; its names in checkpoints are that one's. The statistics
    are float32 for bf16 features. The mean over ranks of the gradients is that of one process that holds all samples
    (see `mmssl.ranks`).

    A batch that is split into chunks (`accumulate`) is normalised chunk by chunk: by the statistics of one chunk of
    every rank, which are noisier than those of the whole batch, and the running ones move once a chunk. Methods that
    need those of a large batch need it at once, on as many ranks as that takes.
    """

    def __init__(self, dim: int, *, scale: bool = True, shift: bool = True, eps: float = 1e-5) -> None:
        super().__init__(dim, eps=eps, affine=scale)
        if not shift:
            self.register_parameter("bias", None)

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        group = ranks.training_ranks() if self.training else None
        with torch.autocast(x.device.type, enabled=False):
            exact = x if x.dtype == torch.float64 else x.float()
            normed = super().forward(exact) if group is None else self._over_ranks(exact, group)
        return normed.to(x.dtype)

    def _over_ranks(self, x: Tensor, group: ProcessGroup) -> Tensor:
        rows, own = x.new_full((1,), len(x)), x.sum(0)
        squares = (x - own / max(1, len(x))).square().sum(0)  # around the rank's own mean: nothing cancels
        counts, sums, spreads = ranks.stacked(torch.cat([rows, own, squares]), group).split([1, *2 * [x.shape[1]]], 1)
        count, mean = counts.sum(), sums.sum(0) / counts.sum()
        variance = (spreads + counts * (sums / counts.clamp(min=1) - mean).square()).sum(0) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        normed = (x - mean) * (variance + self.eps).rsqrt()
        normed = normed if self.weight is None else normed * self.weight
        return normed if self.bias is None else normed + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.num_batches_tracked is not None and self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


class AttentionPool(nn.Module):
    """One vector of a sequence: a learned query attends to all tokens, an MLP adds to what it found (the MAP head of
    Zhai et al. 2021, arXiv 2106.04560, section 3.4, as SigLIP has it). config: of the encoder's blocks."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.query = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, config.dim)))
        self.attn, self.mlp = CrossAttention(config), Branch(MLP(config), config, drop_path=0.0)
        xavier_init(self)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        return self.mlp(self.attn(self.query.expand(len(x), 1, -1), x))[:, 0]
