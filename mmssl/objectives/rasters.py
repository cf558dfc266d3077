"""What methods that read several rasters predict of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmssl_kernels import TargetNorm

from mmssl.modality import Modality
from mmssl.target import Distance, usual_distance


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
