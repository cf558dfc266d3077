"""What a classifier makes of media that are held out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from mmssl.evaluation.answers import Labels, average_precisions, several, worth
from mmssl.evaluation.features import evaluation_mode
from mmssl.finetune.classifier import Classifier
from mmssl.tokenizer import Batch

Answers = tuple[Float[Tensor, "samples classes"], Labels]
"""Logits, float32, and labels of samples, on the CPU."""


@torch.no_grad()
def answers(
    classifier: Classifier, batches: Iterable[Batch], clips: int = 1, low_precision: torch.dtype | None = None
) -> Answers:
    """What it says of the samples of the batches, which are where it is. clips: rows in a row that are of one sample;
    theirs is the logarithm of the mean probability. low_precision: what passes are autocast to, if to anything."""
    device = next(classifier.parameters()).device
    logits, labels = [], []
    with evaluation_mode(classifier), torch.autocast(device.type, low_precision, enabled=low_precision is not None):
        for batch in batches:
            scores, label = classifier.encoder.classify(batch).float().cpu(), batch["label"].cpu()
            if clips > 1:
                chances = scores.sigmoid() if several(label) else scores.softmax(dim=1)
                mean = chances.unflatten(0, (-1, clips)).mean(dim=1).clamp(min=1e-9)
                scores, label = mean.logit(1e-7) if several(label) else mean.log(), label[::clips]
            logits.append(scores)
            labels.append(label)
    return torch.cat(logits), torch.cat(labels)


def measures(logits: Float[Tensor, "samples classes"], labels: Labels) -> dict[str, float]:
    """For the curves: the loss without smoothing, and accuracy in 0-1, of several labels mean average precision."""
    if several(labels):
        loss = binary_cross_entropy_with_logits(logits, labels.float())
    else:
        loss = cross_entropy(logits, labels)
    return {"heldout_loss": loss.item(), "heldout_accuracy": worth(logits, labels)}


def told(logits: Float[Tensor, "samples classes"], labels: Labels, classes: list[str]) -> dict[str, Any]:
    """What is found in the end, for a file: `accuracy` in 0-1, and by class `each`, NaN of one that has no sample left
    out; of one label a sample the `confusion`, a row a true class, `top5`; of several average precisions."""
    found: dict[str, Any] = {"classes": classes, "samples": len(labels), "accuracy": worth(logits, labels)}
    if several(labels):
        each = average_precisions(logits, labels)
        return {**found, "metric": "mean average precision", "each": _finite(each)}
    predicted, count = logits.argmax(dim=1), len(classes)
    confusion = (labels * count + predicted).bincount(minlength=count**2).view(count, count)
    each = confusion.diag() / confusion.sum(dim=1)
    top5 = (logits.topk(min(5, count)).indices == labels[:, None]).any(dim=1).double().mean().item()
    more = {"each": _finite(each), "top5": top5, "confusion": confusion.tolist()}
    return {**found, "metric": "top-1 accuracy", **more}


def _finite(values: Tensor) -> list[float | None]:
    return [value if value == value else None for value in values.tolist()]
