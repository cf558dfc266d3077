"""Masks over several modalities at once: one budget, shared out anew for every sample."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from mmssl.errors import UserError
from mmssl.masking.grid import lowest
from mmssl.masking.mask import Mask, Positions
from mmssl.masking.sequence import counted


def drawn_modalities(
    noise: Int64[Tensor, "batch 1"], among: Bool[Tensor, "batch modalities"]
) -> Bool[Tensor, "batch modalities"]:
    """One of the non-empty sets of each sample's modalities, all equally likely (EPFL-VILAB/MultiMAE,
    `sample_tasks_uniformly`); none where it has none. noise: from `noise.random_bits`."""
    sets = (1 << among.sum(dim=1, keepdim=True)) - 1
    chosen = 1 + noise % sets.clamp(min=1)
    return among & ((chosen >> (among.cumsum(dim=1) - 1).clamp(min=0)) & 1).bool()


def dirichlet_shares(
    noise: Int64[Tensor, "batch modalities"],
    alpha: float = 1.0,
    among: Bool[Tensor, "batch modalities"] | None = None,
) -> Float64[Tensor, "batch modalities"]:
    """Shares from Dirichlet(alpha, ..., alpha) of the modalities that `among` tells, 0 of the others, by
    `noise.random_bits`: normalised gamma variates. alpha 1 is uniform on the simplex; small ones favour one modality.

    On the CPU in float64, so that the counts made of them are the same on every machine. A sample without any modality
    gets zeros. Raises UserError where alpha is not above 0.
    """
    if not alpha > 0:
        raise UserError(f"alpha {alpha}: the concentration of a Dirichlet distribution is above 0")
    logs = _log_gamma_variates(noise.cpu().double() / 2**62, alpha)
    if among is not None:
        logs = logs.masked_fill(~among.cpu(), -torch.inf)
    return logs.softmax(dim=1).nan_to_num(0.0)


def _log_gamma_variates(
    uniform: Float64[Tensor, "batch modalities"], alpha: float
) -> Float64[Tensor, "batch modalities"]:
    """Logarithms of Gamma(alpha) variates: the inverse of its distribution function at numbers in [0, 1).

    P(alpha, x) is below x**alpha / gamma(alpha + 1), and next to it where x is small: that bounds x from below, or is
    it; elsewhere halving an interval finds it. Variates far too small for a float64 still have a logarithm.
    """
    if alpha == 1:
        return torch.log(-torch.log1p(-uniform))
    exponent = uniform.new_tensor(alpha)
    below = (uniform.log() + torch.lgamma(exponent + 1)) / alpha
    low, high = below.clamp(min=-40.0), torch.full_like(below, alpha + 60 + 12 * alpha**0.5).log()
    for _ in range(64):
        middle = (low + high) / 2
        under = torch.special.gammainc(exponent, middle.exp()) < uniform
        low, high = torch.where(under, middle, low), torch.where(under, high, middle)
    return torch.where(below < -36.0, below, low)


def check_budget(keep: int, sizes: Mapping[str, int]) -> None:
    """Raises UserError where `keep` visible positions hide nothing or everything of grids of these sizes."""
    if not 0 < keep < sum(sizes.values()):
        told = ", ".join(f"{count} of {name}" for name, count in sizes.items())
        raise UserError(
            f"a budget of {keep} visible tokens hides {'nothing' if keep > 0 else 'everything'}, as there are "
            f"{sum(sizes.values())} ({told}): choose one above 0 and below their sum"
        )


def one_modality_mask(modality: str, sizes: Mapping[str, int], valid: Bool[Tensor, "batch positions"]) -> Mask:
    """All of one modality is visible, all others are hidden. valid: the positions that exist."""
    own = torch.cat([torch.full((count,), name == modality, device=valid.device) for name, count in sizes.items()])
    return Mask(Positions.from_boolean(valid & own).rectangular(), (Positions.from_boolean(valid & ~own),), sizes)


def joint_mask(
    noise: Int64[Tensor, "batch positions"],
    shares: Float64[Tensor, "batch modalities"],
    keep: int,
    sizes: Mapping[str, int],
    valid: Bool[Tensor, "batch positions"] | None = None,
) -> Mask:
    """MultiMAE's mask: `keep` visible positions over all modalities, split by `shares` (arXiv 2204.01678, section 3.2).

    Each modality marks round(keep * share) positions at random; rounding and overfull grids are settled at random
    among all positions, so that the total is exact. noise: non-negative, below 2**62 (`noise.random_bits`). valid: the
    positions that exist (None: all); others are neither kept nor hidden, and a sample with fewer than `keep` keeps all.
    Raises UserError as `check_budget` does.
    """
    check_budget(keep, sizes)
    wanted = (shares * keep).round().long().to(noise.device)
    marked = []
    for column, part in enumerate(noise.split(list(sizes.values()), dim=1)):
        rank = part.argsort(dim=1, stable=True).argsort(dim=1)
        marked.append(rank < wanted[:, column, None])
    # Marked positions come first; within both groups the order is random.
    noise = noise | (~torch.cat(marked, dim=1)).long() << 62
    if valid is None:
        kept, hidden = lowest(noise, keep)
        return Mask(Positions(kept), (Positions(hidden),), sizes)
    chosen = counted(noise, valid, torch.full_like(noise[:, 0], keep))
    return Mask(Positions.from_boolean(chosen).rectangular(), (Positions.from_boolean(valid & ~chosen),), sizes)


def separate_mask(
    noise: Mapping[str, Int64[Tensor, "batch _"]],
    keep: Mapping[str, int],
    sizes: Mapping[str, int],
    valid: Bool[Tensor, "batch positions"] | None = None,
    always: Bool[Tensor, "batch positions"] | None = None,
) -> Mask:
    """M3AE's mask: of each modality the `keep` positions of lowest noise are visible, whatever the others show
    (young-geng/m3ae_public, `random_masking`).

    noise: of as many positions as the modality has, or of more: texts are drawn at full length, padding counted among
    the kept, so that each word is as likely to be kept in a long text as in a short one. valid: the positions that
    exist (None: all); others are neither kept nor hidden. always: those that are kept besides.
    """
    drawn = (Positions(lowest(noise[name], keep[name])[0]).boolean(noise[name].shape[1]) for name in sizes)
    kept = torch.cat([each[:, :count] for each, count in zip(drawn, sizes.values(), strict=True)], dim=1)
    kept = kept if always is None else kept | always
    parts = (part if valid is None else part & valid for part in (kept, ~kept))
    seen, hidden = (Positions.from_boolean(part).rectangular() for part in parts)
    return Mask(seen, (hidden,), sizes)
