"""The attentive probe: attention that learns where to look among frozen patches, then a linear classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mmssl.evaluation.answers import Labels, losses
from mmssl.evaluation.choice import Trial, best, folds, numbered, telling, tried
from mmssl.masking.noise import random_bits
from mmssl.schedules import cosine

# As many held-out answers as this are enough to tell settings apart by.
_ENOUGH = 1000
_BATCH, _STEPS, _EPOCHS = 64, 500, 10
_WARMUP = 0.1
# Patch features that are looked at in one piece once a probe is trained: 2**25 float32 values are 128 MiB.
_VALUES = 2**25


class Setting(NamedTuple):
    """What AdamW trains a probe with."""

    lr: float
    weight_decay: float


SETTINGS = tuple(Setting(*pair) for pair in product((1e-3, 3e-3, 1e-2), (0.1, 1.0)))


class Heads(nn.Module):
    """What is learned, `runs` times: some queries, a part of the values for each, and the classifier of all they see.

    All runs start from the same weights, drawn from `seed`: queries small, so that all patches count the same at first;
    the classifier is zero.
    """

    def __init__(self, dim: int, heads: int, classes: int, runs: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        queries = 0.02 * torch.randn(heads, dim, generator=generator)
        values = torch.randn(heads, dim, dim // heads, generator=generator) / dim**0.5
        self.queries, self.values = (nn.Parameter(torch.stack([each] * runs)) for each in (queries, values))
        self.weight = nn.Parameter(torch.zeros(runs, classes, dim))
        self.bias = nn.Parameter(torch.zeros(runs, classes))

    def forward(self, patches: Float[Tensor, "samples patches dim"]) -> Float[Tensor, "samples runs classes"]:
        """The scores of every run: softmax(q x) weighs the patches x for each query q."""
        attention = torch.einsum("spd,rhd->srhp", patches, self.queries).softmax(dim=-1)
        pooled = torch.einsum("srhp,spd->srhd", attention, patches)
        seen = torch.einsum("srhd,rhde->srhe", pooled, self.values).flatten(2)
        return torch.einsum("sre,rce->src", seen, self.weight) + self.bias


@dataclass(frozen=True)
class AttentiveProbe:
    """A fitted probe: patches -> (patches - mean) / deviation -> attention of each head -> linear -> the classes.

    setting: what it was trained with, the best of `trials`, which are in the order of the settings that were given.
    """

    mean: Float32[Tensor, " dim"]
    deviation: Float32[Tensor, " dim"]
    heads: Heads
    classes: Int64[Tensor, " classes"]
    setting: Setting
    trials: Sequence[Trial]

    def logits(self, patches: Float[Tensor, "samples patches dim"]) -> Float[Tensor, "samples classes"]:
        """Scores in the order of `classes`, on the device of `patches`."""
        return _scores(self.heads, patches, self.mean, self.deviation)[:, 0]

    def predict(self, patches: Float[Tensor, "samples patches dim"]) -> Int64[Tensor, " samples"]:
        """The class id of the highest score."""
        return self.classes.to(patches.device)[self.logits(patches).argmax(dim=1)]


@torch.enable_grad()
def attentive_probe(
    patches: Float[Tensor, "samples patches dim"],
    labels: Labels,
    *,
    heads: int,
    settings: Sequence[Setting] = SETTINGS,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AttentiveProbe:
    """Fit attention over frozen patches and a linear classifier behind it, on class numbers or, of several labels, rows
    of yes and no (see `mmssl.evaluation.answers`).

    It is the cross-attention of learned queries to the patches that MAE-like models are probed by, whose features are
    not made to be averaged: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", IJCV 2024,
    and Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", TMLR 2024, both
    under this name. In the light form of Psomas et al., "Attention, Please! Revisiting Attentive
    Probing Through the Lens of Efficiency", ICLR 2026: keys are the patches themselves (a query absorbs its key
    projection), values are projected behind the pooling (both are linear), there is no MLP behind.

    Patches are standardised by the training statistics of each channel. Each of `settings` is tried by training on a
    part of the samples and asking for the others: in five folds, fewer where 1 000 are held out by less (see `folds`).
    Taken is the one of least held-out loss among those whose held-out accuracy is within a standard error of the best;
    of several labels that of the highest mean average precision. All samples are then fitted with it. A single setting
    is taken untried, the middle one where fewer samples can be held out than there are classes.

    Training is AdamW, batches of 64, 10 epochs or 500 steps, whichever is longer, a cosine schedule after a tenth of
    warm-up. It repeats to the bit on a CPU: folds, batches and first weights follow from `seed`. Patches stay where
    they are, a batch of them goes to `device`.

    Raises ValueError for fewer than 5 samples, a single class, or `heads` that do not divide `dim`.
    """
    if heads < 1 or patches.shape[2] % heads:
        raise ValueError(f"{heads} heads do not divide patch features of {patches.shape[2]}")
    classes, targets = numbered(labels)
    mean, deviation = (each.to(device) for each in _statistics(patches))

    def trained(settings: Sequence[Setting], train: Bool[Tensor, "runs samples"]) -> list[Heads]:
        fresh = [Heads(patches.shape[2], heads, len(classes), len(train), seed).to(device) for _ in settings]
        _train(fresh, settings, patches, targets, train, mean, deviation, seed)
        return fresh

    trials: list[Trial] = []
    train = folds(targets, seed, _ENOUGH)
    if len(settings) > 1 and telling(train, targets, len(classes)):
        answers = torch.cat([targets[~shown] for shown in train])
        for candidate in trained(settings, train):
            scores = _scores(candidate, patches, mean, deviation)
            trials.append(tried(torch.cat([scores[~shown, run] for run, shown in enumerate(train)]), answers))
    setting = settings[best(trials) if trials else len(settings) // 2]
    (final,) = trained([setting], torch.ones_like(train[:1]))
    return AttentiveProbe(mean, deviation, final, classes, setting, trials)


def _train(
    candidates: Sequence[Heads],
    settings: Sequence[Setting],
    patches: Float[Tensor, "samples patches dim"],
    targets: Labels,
    train: Bool[Tensor, "runs samples"],
    mean: Float32[Tensor, " dim"],
    deviation: Float32[Tensor, " dim"],
    seed: int,
) -> None:
    """Train each of the candidates by its setting, its runs on the samples that `train` shows them.

    All read the same batches, so that each is read once.
    """
    groups = [
        {"params": heads.parameters(), "lr": setting.lr, "weight_decay": setting.weight_decay}
        for heads, setting in zip(candidates, settings, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    size = min(_BATCH, len(patches))
    steps = max(_STEPS, _EPOCHS * len(patches) // size)
    schedule = LambdaLR(optimizer, lambda step: cosine((step + 1) / (steps + 1), 1.0, 0.0, warmup=_WARMUP))
    epochs = torch.arange(-(-steps * size // len(patches)))
    bits = random_bits(len(patches), seed=seed, stream="evaluation/batches", sample_id=epochs)
    for rows in bits.argsort(dim=1, stable=True).flatten()[: steps * size].split(size):
        batch = (patches[rows].to(mean) - mean) / deviation
        answers, shown = targets[rows].to(mean.device), train[:, rows].T.to(mean.device)
        share = shown / shown.sum(dim=0).clamp(min=1)
        optimizer.zero_grad()
        torch.stack([(losses(heads(batch), answers) * share).sum() for heads in candidates]).sum().backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def _scores(
    heads: Heads,
    patches: Float[Tensor, "samples patches dim"],
    mean: Float32[Tensor, " dim"],
    deviation: Float32[Tensor, " dim"],
) -> Float[Tensor, "samples runs classes"]:
    pieces = patches.split(max(1, _VALUES // patches[0].numel()))
    return torch.cat([heads((piece.to(mean) - mean) / deviation).to(patches.device) for piece in pieces])


def _statistics(
    patches: Float[Tensor, "samples patches dim"],
) -> tuple[Float32[Tensor, " dim"], Float32[Tensor, " dim"]]:
    """Mean and deviation of each channel over all patches, a piece at a time: patches are large."""
    pieces = patches.split(max(1, _VALUES // patches[0].numel()))
    count = len(patches) * patches.shape[1]
    mean = torch.stack([piece.sum(dim=(0, 1), dtype=torch.float64) for piece in pieces]).sum(dim=0) / count
    square = torch.stack([(piece - mean).square().sum(dim=(0, 1)) for piece in pieces]).sum(dim=0)
    return mean.float(), (square / count + 1e-6).sqrt().float()
