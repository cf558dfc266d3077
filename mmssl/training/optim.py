"""Which parameters decay, which optimizer trains them, and the learning rate of every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from mmssl.errors import UserError
from mmssl.objectives.objective import Objective
from mmssl.schedules import cosine, linear
from mmssl.training.optimizers import LARS, UncorrectedAdam
from mmssl.training.settings import TrainSettings

ParameterGroup = dict[str, Any]

MOMENTS = {"adamw": 2, "adam_uncorrected": 2, "lars": 1, "sgd": 1}
"""Tensors that each optimizer keeps beside a parameter."""


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    undecayed: Collection[str] = (),
    lr_scales: Mapping[str, float] | None = None,
) -> list[ParameterGroup]:
    """Groups for an optimizer, those that decay before those that do not; frozen parameters are left out.

    Parameters of at most one axis and those whose name ends in `.bias` do not decay, except that names ending in
    `_token` or `_tokens` do: the authors of MAE keep class and mask tokens as 1 x 1 x D, so theirs decay in
    pretraining (facebookresearch/mae with add_weight_decay of timm 0.3.2). Those named in `undecayed` do not.

    lr_scales: multiples of the learning rate by the beginning of parameters' names, whole parts of it, such as
    `encoder.tokenizers`; the longest that fits counts. Groups have them as "lr_scale", and "decays". Raises ValueError
    for one that fits no parameter.
    """
    scales = {"": 1.0, **(lr_scales or {})}
    fitting: set[str] = {""}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        prefix = max((each for each in scales if not each or f"{name}.".startswith(f"{each}.")), key=len)
        fitting.add(prefix)
        if parameter.requires_grad:
            is_token = name.endswith(("_token", "_tokens"))
            decays = is_token or (parameter.ndim > 1 and not name.endswith(".bias"))
            groups.setdefault((decays and name not in undecayed, scales[prefix]), []).append(parameter)
    if unfitting := sorted(scales.keys() - fitting):
        raise ValueError(
            f"lr_scales: no parameter's name begins with {unfitting[0]!r}, or longer prefixes take them all."
        )
    return [
        {"params": group, "weight_decay": weight_decay if decays else 0.0, "decays": decays, "lr_scale": scale}
        for (decays, scale), group in sorted(groups.items(), key=lambda each: not each[0][0])
    ]


def adamw(
    groups: list[ParameterGroup], betas: tuple[float, float], device: torch.device, eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW with the fused kernel where there is one: on a CPU it takes a quarter of the plain loop's time.

    The learning rate starts at 0; `set_learning_rate` sets that of each step.
    """
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=device.type in ("cpu", "cuda"))


def optimizer_name(settings: TrainSettings, objective: Objective) -> str:
    """The asked one, or that of the method's paper. Raises UserError for one that is not known."""
    name = objective.optimizer if settings.optimizer == "auto" else settings.optimizer
    if name not in MOMENTS:
        raise UserError(f"optimizer {name!r} is none of auto, {', '.join(MOMENTS)}.")
    return name


def optimizer_for(objective: Objective, settings: TrainSettings, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of a run, over the groups of what `objective` trains. SGD's and LARS's momentum is `betas[0]`."""
    groups = parameter_groups(objective, settings.weight_decay, objective.undecayed, objective.lr_scales)
    name, momentum = optimizer_name(settings, objective), settings.betas[0]
    if name == "lars":
        return LARS(groups, lr=0.0, momentum=momentum)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)
    own = {} if settings.eps is None else {"eps": settings.eps}
    if name == "adam_uncorrected":
        return UncorrectedAdam(groups, lr=0.0, betas=settings.betas, **own)
    return adamw(groups, settings.betas, device, **own)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the learning rate `rate`, times its own multiple."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def set_weight_decay(optimizer: torch.optim.Optimizer, settings: TrainSettings, progress: float) -> None:
    """Give every group that decays the weight decay of this share of the run."""
    start, end = settings.weight_decay, settings.weight_decay_end
    for group in optimizer.param_groups:
        if group["decays"]:
            group["weight_decay"] = start if end is None else cosine(progress, start, end)


def learning_rate(base_lr: float, batch_size: int) -> float:
    """The linear scaling rule: `base_lr` is stated for 256 samples a step (Goyal et al., arXiv 1706.02677)."""
    return base_lr * batch_size / 256


def schedule(settings: TrainSettings, steps_per_epoch: float) -> Callable[[int], float]:
    """The learning rate of each step of a run."""
    return partial(
        cosine_schedule if settings.decay == "cosine" else linear_schedule,
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
    return cosine(step + 0.5, peak, floor, warmup=warmup, whole=float(total))


def linear_schedule(step: int, *, total: int, warmup: float, peak: float, floor: float) -> float:
    """Linear from 0 to `peak` over `warmup` steps, then linear down to `floor` at `total`, at a step's middle as above.

    That is RoBERTa's (facebookresearch/fairseq, `PolynomialDecayLRSchedule`). BERT's second line begins at step 0 and
    is entered where the warm-up ends: rates there are 1 - warmup / total of these (google-research/bert,
    optimization.py).
    """
    middle = step + 0.5
    if middle < warmup:
        return linear(middle, 0.0, peak, until=warmup)
    return linear(middle - warmup, peak, floor, until=total - warmup)
