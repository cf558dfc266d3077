"""What methods that read several rasters predict of them, and what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from mmssl_kernels import TargetNorm
from torch import Tensor
from torch.nn import functional as F

from mmssl.encoder import Encoder
from mmssl.masking import Mask, one_modality_mask
from mmssl.modality import ZERO_TO_ONE, Modality
from mmssl.objectives.figures import Figure, Palette
from mmssl.target import Distance, usual_distance
from mmssl.tokenizer import Batch, PatchTokenizer


@dataclass(frozen=True)
class Task:
    """One thing to predict. name: of its part of the loss. modality: whose hidden patches. distance, norm: how they are
    compared (see `SampleTarget`)."""

    name: str
    modality: str
    distance: Distance = "mse"
    norm: TargetNorm = "none"


def raster_tasks(modalities: Sequence[Modality], norm_rgb: bool = True) -> tuple[Task, ...]:
    """A task a modality, by its usual distance. norm_rgb: pictures, whose task is named "rgb", are predicted
    standardised by patch as well."""
    tasks = [Task("rgb" if m.name == "image" else m.name, m.name, usual_distance(m)) for m in modalities]
    pictures = norm_rgb and any(each.name == "image" for each in modalities)
    return (*tasks, Task("norm_rgb", "image", norm="patch")) if pictures else tuple(tasks)


Columns = tuple[Float[Tensor, "batch _ height width"], ...]
"""What `SampleTarget.pictures` gives of a modality."""
_SHARE = 0.01  # of an original's values beyond either end of the range that is shown


def raster_figures(
    shown: Callable[[Batch, Mask], Mapping[str, Columns]],
    tasks: Mapping[str, Task],
    encoder: Encoder,
    batch: Batch,
    mask: Mask,
) -> list[Figure]:
    """What each task makes of a mask, then of all of one modality without the others.

    shown: by task what is seen with a mask, what is predicted and what was there.
    """
    modalities = {name: cast(PatchTokenizer, encoder.tokenizer(name)).modality for name in mask.sizes}
    found = shown(batch, mask)
    figures = [reconstruction(tasks[name], modalities[tasks[name].modality], found[name]) for name in found]
    plain = {tasks[name].modality: name for name in found if tasks[name].norm == "none"}
    for whole in plain if len(plain) > 1 else ():
        has = batch.get(f"{whole}.present", torch.ones(len(batch[whole]), dtype=torch.bool))
        if not has.any():
            continue
        some = {name: values[has] if values.ndim else values for name, values in batch.items()}
        valid = encoder.everything(some).boolean(mask.count)
        found = shown(some, one_modality_mask(whole, mask.sizes, valid))
        figures.append(crossing(whole, modalities, {modality: found[name] for modality, name in plain.items()}))
    return figures


def reconstruction(task: Task, modality: Modality, columns: Columns) -> Figure:
    """What was seen, what is predicted of the rest, and what was there."""
    values, palette, told = _coloured(modality, columns)
    caption = (
        f"{modality.name}, as {task.name} predicts it: what is seen (grey: hidden), with the prediction of the rest, "
        f"and the original{told}."
    )
    return Figure(f"reconstructions-{task.name}", "What it predicts", caption, values, (palette,) * len(values))


def crossing(whole: str, modalities: Mapping[str, Modality], columns: Mapping[str, Columns]) -> Figure:
    """All of one modality, and beside it each of the others as predicted from it alone and as it was (MultiMAE, arXiv
    2204.01678, figure 4). columns: by modality."""
    parts = {name: _coloured(modalities[name], each) for name, each in columns.items()}
    order = [(whole, 2), *((name, place) for name in parts if name != whole for place in (1, 2))]
    sides = [max(values[0].shape[axis] for values, _, _ in parts.values()) for axis in (2, 3)]
    others = "; ".join(f"{name}, predicted and original{told}" for name, (_, _, told) in parts.items() if name != whole)
    return Figure(
        f"from-{whole}",
        "What it predicts from one whole modality",
        f"All of {whole}{parts[whole][2]}, and what is predicted from it alone: {others}.",
        tuple(F.interpolate(parts[name][0][place], size=sides, mode="nearest-exact") for name, place in order),
        tuple(parts[name][1] for name, _ in order),
    )


def _coloured(modality: Modality, columns: Columns) -> tuple[Columns, Palette, str]:
    """Columns, the original last, as a figure has them, in the range of the original; their palette, and what is to be
    told of it."""
    if modality.kind == "categorical":
        return columns, "classes", " (a colour a class)"
    if modality.name in ZERO_TO_ONE:
        return columns, "colours", ""
    channels = 1 if modality.channels < 3 else 3
    columns = tuple(each[:, :channels] for each in columns)
    values = columns[-1].transpose(0, 1).flatten(1)
    low, high = (values.nanquantile(share, dim=1).view(-1, 1, 1) for share in (_SHARE, 1 - _SHARE))
    scaled = tuple((each - low) / (high - low).clamp(min=1e-6) for each in columns)
    if channels == 3:
        return scaled, "colours", f" (the first 3 of {modality.channels} channels as red, green and blue)"
    unit = " standard deviations of each sample" if modality.per_sample else ""
    return scaled, "heat", f" (dark {low.item():.4g} to pale {high.item():.4g}{unit})"
