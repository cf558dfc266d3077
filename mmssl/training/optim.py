"""Which parameters decay, and the learning rate of every step: the rules of the MAE family."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

ParameterGroup = dict[str, Any]


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    layer_decay: float | None = None,
    layer_of: Callable[[str], int] | None = None,
) -> list[ParameterGroup]:
    """Groups for an optimizer: `params`, `weight_decay` and `lr_scale`, a factor on the learning rate (1 by default).

    Parameters of at most one axis and those whose name ends in `.bias` do not decay, except that names ending in
    `_token` or `_tokens` do: the authors of MAE keep class and mask tokens as 1 x 1 x D, so theirs decay in
    pretraining (facebookresearch/mae with add_weight_decay of timm 0.3.2). Frozen parameters are left out.

    With `layer_decay`, `layer_of(name)` counts layers from the input (0) upward; a layer's `lr_scale` is
    `layer_decay ** (top - layer)`, `top` being the highest layer met, so a head on top learns at the full rate
    (fine-tuning in MAE, after BEiT).
    """
    if (layer_decay is None) != (layer_of is None):
        raise ValueError("layer_decay and layer_of belong together: give both or neither.")
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    layers = {name: layer_of(name) if layer_of else 0 for name, _ in trained}
    top = max(layers.values(), default=0)
    groups: dict[tuple[int, float], ParameterGroup] = {}
    for name, parameter in trained:
        is_token = name.endswith(("_token", "_tokens"))
        decays = is_token or (parameter.ndim > 1 and not name.endswith(".bias"))
        key = (layers[name], weight_decay if decays else 0.0)
        scale = 1.0 if layer_decay is None else layer_decay ** (top - layers[name])
        group = groups.setdefault(key, {"params": [], "weight_decay": key[1], "lr_scale": scale})
        group["params"].append(parameter)
    return list(groups.values())


def adamw(groups: list[ParameterGroup], betas: tuple[float, float], device: torch.device) -> torch.optim.AdamW:
    """AdamW with the fused kernel where there is one: on a CPU it takes a quarter of the plain loop's time.

    The learning rate starts at 0; `set_learning_rate` sets that of each step.
    """
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=device.type in ("cpu", "cuda"))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(base_lr: float, batch_size: int) -> float:
    """The linear scaling rule: `base_lr` is stated for 256 samples a step (Goyal et al., arXiv 1706.02677)."""
    return base_lr * batch_size / 256


def cosine_schedule(step: int, *, total: int, warmup: float, peak: float, floor: float) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then half a cosine down to `floor` at `total` (MAE's, a step)."""
    if step < warmup:
        return peak * step / warmup
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))
