"""Optimizers that torch does not have, for groups that `parameter_groups` made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


def _with_gradients(group: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    weights = [parameter for parameter in group["params"] if parameter.grad is not None]
    return weights, [weight.grad for weight in weights]


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al. 2017, arXiv 1708.03888), as BYOL and MoCo v3 use them.

        g = gradient + weight_decay * w;  m = momentum * m + trust * |w| / |g| * g;  w = w - lr * m

    The ratio is 1 where |w| or |g| is 0. Biases and norms, whose groups do not decay, do not adapt either: theirs is
    SGD with momentum (deepmind-research/byol, `exclude_bias_and_norm`; facebookresearch/moco-v3, moco/optimizer.py).
    SimCLR's own code has the rate inside the momentum, which differs only while the rate changes.
    """

    def __init__(
        self, groups: Any, lr: float, momentum: float = 0.9, weight_decay: float = 0.0, trust: float = 0.001
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights, gradients = _with_gradients(group)
            if not weights:
                continue
            moves = [gradient.clone() for gradient in gradients]
            if group["decays"]:
                torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
                lengths, of_moves = torch._foreach_norm(weights), torch._foreach_norm(moves)
                ratios = [
                    torch.where((length > 0) & (of_move > 0), group["trust"] * length / of_move, 1.0)
                    for length, of_move in zip(lengths, of_moves, strict=True)
                ]
                torch._foreach_mul_(moves, ratios)
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            moments = [self.state[weight]["momentum"] for weight in weights]
            torch._foreach_mul_(moments, group["momentum"])
            torch._foreach_add_(moments, moves)
            torch._foreach_add_(weights, moments, alpha=-group["lr"])


class UncorrectedAdam(Optimizer):
    """BERT's Adam: decoupled weight decay, and moments that start at 0 without correction (google-research/bert,
    optimization.py, `AdamWeightDecayOptimizer`; Devlin et al. 2018, arXiv 1810.04805).

        m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  w = w - lr (m / (sqrt(v) + eps) + weight_decay w)

    The first steps are larger than Adam's by (1 - b1^t) / sqrt(1 - b2^t) at step t: 3.2 times the first, for (0.9,
    0.999).
    """

    def __init__(
        self,
        groups: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights, gradients = _with_gradients(group)
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight].update(exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
            first, second = ([self.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq"))
            torch._foreach_lerp_(first, gradients, 1 - group["betas"][0])
            torch._foreach_mul_(second, group["betas"][1])
            torch._foreach_addcmul_(second, gradients, gradients, value=1 - group["betas"][1])
            lengths = torch._foreach_sqrt(second)
            torch._foreach_add_(lengths, group["eps"])
            moves = torch._foreach_div(first, lengths)
            torch._foreach_add_(moves, weights, alpha=group["weight_decay"])
            torch._foreach_add_(weights, moves, alpha=-group["lr"])
