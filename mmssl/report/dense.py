"""What linear probes of every pixel were measured to find, written out and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from mmssl.modality import ZERO_TO_ONE, Modality
from mmssl.objectives.figures import Palette
from mmssl.report.pictures import coloured, side_by_side

DENSE, DENSE_PICTURE = "dense.json", "dense.png"


def dense_told(found: Mapping[str, Any]) -> list[str]:
    """What `mmssl.commands.dense.evaluate_dense` measured: a line for the question, one for each representation."""
    where = found["where"]
    place = "" if where is None else f", where {where['name']} is {' or '.join(map(str, where['classes']))}"
    asked = f"{found['target']} at each of {found['pixels']} pixels of {found['test']} samples{place}"
    lines = [f"linear probe of {asked}, from {', '.join(found['inputs'])}:"]
    return lines + [f"  {row['representation']}: {', '.join(_scores(row))}" for row in found["rows"]]


def _scores(row: Mapping[str, Any]) -> list[str]:
    if "miou" in row:
        each = ", ".join("none" if share is None else f"{share:.1%}" for share in row["iou"])
        return [f"mean IoU {row['miou']:.1%}", f"accuracy {row['accuracy']:.1%}", f"IoU of each class {each}"]
    told = [f"R² {row['r2']:.3f}", f"mean absolute error {row['absolute']:.4g}"]
    if "delta1" in row:
        told += [f"mean relative error {row['relative']:.3f}", f"delta1 {row['delta1']:.1%}"]
    return told


def dense_picture(
    inputs: Sequence[Float[Tensor, "pictures _ rows columns"]],
    said: Float[Tensor, "pictures channels height width"],
    true: Float[Tensor, "pictures channels height width"],
    target: Modality,
) -> bytes:
    """The inputs, in 0-1, beside what a probe says and what is true, NaN where nothing is asked: a PNG.

    Labels are shown as a colour each, numbers as heat between the least and the largest true one.
    """
    size = max((each.shape[2:] for each in (*inputs, true)), key=lambda sides: sides.numel())
    palette: Palette = "classes" if target.kind == "categorical" else "heat"
    if target.name in ZERO_TO_ONE:
        palette = "colours"
    elif palette == "heat" and (known := true[true.isfinite()]).numel():
        low, high = known.min(), known.max()
        said, true = ((each - low) / (high - low).clamp(min=1e-12) for each in (said, true))
    columns = [*inputs, *(coloured(each, palette) for each in (said, true))]
    return side_by_side([interpolate(each.float(), size=tuple(size), mode="nearest-exact") for each in columns])
