"""Which parameters decay, and the learning rate of every step: the rules of the MAE family."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn

from mmssl.training.settings import TrainSettings

ParameterGroup = dict[str, Any]


def parameter_groups(module: nn.Module, weight_decay: float, undecayed: Collection[str] = ()) -> list[ParameterGroup]:
    """Two groups for an optimizer, one that decays and one that does not; frozen parameters are left out.

    Parameters of at most one axis and those whose name ends in `.bias` do not decay, except that names ending in
    `_token` or `_tokens` do: the authors of MAE keep class and mask tokens as 1 x 1 x D, so theirs decay in
    pretraining (facebookresearch/mae with add_weight_decay of timm 0.3.2). Those named in `undecayed` do not.
    """
    decaying: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_token = name.endswith(("_token", "_tokens"))
            decays = is_token or (parameter.ndim > 1 and not name.endswith(".bias"))
            (decaying if decays and name not in undecayed else free).append(parameter)
    groups = ({"params": decaying, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def adamw(groups: list[ParameterGroup], betas: tuple[float, float], device: torch.device) -> torch.optim.AdamW:
    """AdamW with the fused kernel where there is one: on a CPU it takes a quarter of the plain loop's time.

    The learning rate starts at 0; `set_learning_rate` sets that of each step.
    """
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=device.type in ("cpu", "cuda"))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def learning_rate(base_lr: float, batch_size: int) -> float:
    """The linear scaling rule: `base_lr` is stated for 256 samples a step (Goyal et al., arXiv 1706.02677)."""
    return base_lr * batch_size / 256


def schedule(settings: TrainSettings, steps_per_epoch: float) -> Callable[[int], float]:
    """The learning rate of each step of a run."""
    return partial(
        cosine_schedule,
        total=settings.total_steps(steps_per_epoch),
        warmup=settings.warmup(steps_per_epoch),
        peak=learning_rate(settings.base_lr, settings.batch_size),
        floor=settings.min_lr,
    )


def cosine_schedule(step: int, *, total: int, warmup: float, peak: float, floor: float) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine down to `floor` at `total` (MAE's, a step).

    A step takes the rate of its middle: the authors' formula at `step + 0.5`. They take that of its beginning, which is
    0 for the first step, so that a run of one step trains nothing; at a step's end the last one would be nothing. The
    middle wastes neither, and the rates of a run add up to the area under the authors' curve.
    """
    middle = step + 0.5
    if middle < warmup:
        return peak * middle / warmup
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (middle - warmup) / (total - warmup)))
