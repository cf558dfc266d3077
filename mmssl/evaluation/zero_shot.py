"""Zero-shot classification: a picture's class is the one whose name, put into texts, lies nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.nn import functional as F

from mmssl.errors import UserError
from mmssl.evaluation.answers import Labels, several, worth
from mmssl.evaluation.protocol import MEAN_AP, TOP_1
from mmssl.evaluation.templates import PHOTO
from mmssl.evaluation.towers import ReadTexts, text_features
from mmssl.objectives import CLIP


@dataclass(frozen=True)
class ZeroShot:
    """Shares in 0-1: `accuracy` is top-1, or where samples have several labels each mean average precision, as `metric`
    says; `top5` where there is one label each and more than 5 classes.

    chance: what guessing is worth. largest: what always saying the largest class is, where there is one label each.
    """

    accuracy: float
    top5: float | None
    chance: float
    largest: float | None
    samples: int
    classes: int
    metric: str = TOP_1


def prompts(names: Sequence[str], templates: Sequence[str] = (PHOTO,)) -> list[str]:
    """Each name in each template, a name's together. Raises UserError for a template whose fields are not one `{}`."""
    for template in templates:
        try:
            fields = [parts[1:] for parts in Formatter().parse(template) if parts[1] is not None]
        except ValueError as error:
            raise UserError(f"the template {template!r} is none ({error}): {{}} is the place of a name") from error
        if fields != [("", "", None)]:
            raise UserError(f"the template {template!r} needs one field, {{}}, the place of a name, and no other")
    return [template.format(name) for name in names for template in templates]


def class_vectors(
    model: CLIP,
    names: Sequence[str],
    read: ReadTexts,
    templates: Sequence[str] = (PHOTO,),
    *,
    device: torch.device | str = "cpu",
) -> Float32[Tensor, "classes dim"]:
    """A vector of length one for each class: the mean of the features, of length one, of its name in all templates
    (Radford et al. 2021, arXiv 2103.00020, section 3.1.4; the authors' notebooks). Errors are those of `prompts`, and
    UserError without a name or a template."""
    if not names or not templates:
        raise UserError(f"there are {len(names)} classes and {len(templates)} templates: give one of each at least")
    found = text_features(model, prompts(names, templates), read, device=device)
    return F.normalize(found.unflatten(0, (len(names), len(templates))).mean(dim=1), dim=1)


def zero_shot(
    pictures: Float[Tensor, "samples dim"], vectors: Float[Tensor, "classes dim"], labels: Labels
) -> ZeroShot:
    """How often the nearest of `vectors` (see `class_vectors`) is that of a picture's class; features have length one.

    labels: a class number each, or which classes each picture has; of several labels each, the similarity to a class is
    its score. Equal similarities: the class that comes first.

    Raises UserError where no picture has a label.
    """
    if not len(labels) or (several(labels) and not labels.any()):
        raise UserError("no picture that can be read has a label: there is nothing to be found")
    scores, count = pictures @ vectors.T, len(vectors)
    if several(labels):
        shares = labels.double().mean(dim=0)
        chance = shares[shares > 0].mean().item()
        return ZeroShot(worth(scores, labels), None, chance, None, len(labels), count, MEAN_AP)
    top5 = None
    if count > 5:
        top5 = (scores.topk(5, dim=1).indices == labels[:, None]).any(dim=1).double().mean().item()
    largest = int(labels.bincount().max()) / len(labels)
    return ZeroShot(worth(scores, labels), top5, 1 / count, largest, len(labels), count)
