"""Mixup and CutMix: a sample, some of its partner, and how much of each the label says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from mmssl.errors import UserError
from mmssl.masking import batch_bits
from mmssl.modality import zero_to_one
from mmssl.tokenizer import Batch

_CELLS = 4096


@dataclass(frozen=True)
class Mixing:
    """How samples are mixed with their partners; with the defaults, not at all.

    mixup: alpha of the Beta(alpha, alpha) that a sample's share is drawn from (Zhang et al. 2018, arXiv 1710.09412).
    cutmix: the same of the area that stays its own, around a box of the partner's (Yun et al. 2019, arXiv 1905.04899).
    switch: the probability of CutMix where there are both. probability: that a sample is mixed at all.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    switch: float = 0.5
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise UserError(f"{name}={getattr(self, name)} must be 0, for none, or more")
        for name in ("switch", "probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)} must be a probability")

    @property
    def mixes(self) -> bool:
        """Whether any sample is."""
        return self.probability > 0 and max(self.mixup, self.cutmix) > 0


class Mixer(nn.Module):
    """Mixes each sample with the partner that the loader gives it (`image.partner`; see `mmssl.data.Loader`).

    What is drawn is a function of (seed, epoch, sample, draw) alone. timm mixes a batch with itself in reverse, by one
    share for all, so that a sample depends on its neighbours; here each has a share and a kind of its own.
    """

    mixup: Tensor
    cutmix: Tensor

    def __init__(self, mixing: Mixing, seed: int = 0) -> None:
        super().__init__()
        self.mixing, self.seed = mixing, seed
        for name, alpha in (("mixup", mixing.mixup), ("cutmix", mixing.cutmix)):
            self.register_buffer(name, beta_quantiles(alpha or 1.0), persistent=False)

    def forward(self, batch: Batch, name: str) -> tuple[Shaped[Tensor, "batch ..."], Float[Tensor, "batch 1"]]:
        """The medium `name` [B, C, *, H, W] of all samples, uint8 as 0-1, and the share of each that is its own."""
        own, partner = zero_to_one(batch[name]), zero_to_one(batch[f"{name}.partner"])
        bits = batch_bits(batch, 5, seed=self.seed, stream="mix")
        mixed, cut, drawn, down, across = ((bits >> 38).to(torch.float32) * 2.0**-24).unbind(1)
        cuts = cut < (self.mixing.switch if self.mixing.mixup else 1.0) * bool(self.mixing.cutmix)
        share = torch.where(cuts, _looked_up(self.cutmix, drawn), _looked_up(self.mixup, drawn))
        height, width = own.shape[-2:]
        side = (1 - share).sqrt()
        outside = ~(_between(down, side, height)[:, :, None] & _between(across, side, width)[:, None, :])
        weight = torch.where(cuts[:, None, None], outside.float(), share[:, None, None])
        weight = torch.where((mixed < self.mixing.probability)[:, None, None], weight, 1.0)
        over = weight.view(len(own), *(1,) * (own.ndim - 3), height, width)
        return own * over + partner * (1 - over), weight.mean(dim=(1, 2))[:, None]


def beta_quantiles(alpha: float) -> Float[Tensor, " quantiles"]:
    """Beta(alpha, alpha)'s quantiles of 0, 1/4096 ... 1.

    Its density, x and 1 - x to the power alpha - 1 each, is integrated up to a half in t = x ** alpha, where alpha is
    below 1, so that it is finite; the other half is the mirror image.
    """
    power = min(alpha, 1.0)
    t = torch.linspace(0, 0.5**power, _CELLS + 1, dtype=torch.float64)
    x = t ** (1 / power)
    density = x ** (alpha - power) * (1 - x) ** (alpha - 1)
    reached = torch.cat([t.new_zeros(1), ((density[1:] + density[:-1]) / 2).cumsum(0)])
    wanted = torch.linspace(0, 1, _CELLS // 2 + 1, dtype=torch.float64) * reached[-1]
    above = torch.searchsorted(reached, wanted).clamp(1, _CELLS)
    inside = (wanted - reached[above - 1]) / (reached[above] - reached[above - 1])
    x = (t[above - 1] + inside * (t[above] - t[above - 1])) ** (1 / power)
    return torch.cat([x, 1 - x[:-1].flip(0)]).float()


def _looked_up(quantiles: Float[Tensor, " quantiles"], share: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The quantiles of shares in [0, 1)."""
    place = share * _CELLS
    first = place.long()
    return torch.lerp(quantiles[first], quantiles[first + 1], place - first)


def _between(
    centre: Float[Tensor, " batch"], side: Float[Tensor, " batch"], length: int
) -> Shaped[Tensor, "batch {length}"]:
    """Which of `length` pixels lie within half a side of the centre, both shares of the length, in whole pixels as in
    the authors' code."""
    pixels, middle = torch.arange(length, device=centre.device), (centre * length).long()[:, None]
    half = (side * length).long()[:, None] // 2
    return (pixels >= middle - half) & (pixels < middle + half)
