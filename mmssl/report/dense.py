"""What linear probes of every pixel were measured to find, written out and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from mmssl.modality import ZERO_TO_ONE, Modality
from mmssl.report.pictures import heat, side_by_side

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

    Class numbers are shown as shares of the largest, numbers between the least and the largest true one.
    """
    size = max((each.shape[2:] for each in (*inputs, true)), key=lambda sides: sides.numel())
    low, high = 0.0, 1.0
    if target.kind == "categorical":
        high = max(1.0, target.channels - 1.0)
    elif target.name not in ZERO_TO_ONE and (known := true[true.isfinite()]).numel():
        low, high = known.min().item(), known.max().item()
    maps = [((each - low) / max(high - low, 1e-12)).clamp(0, 1) for each in (said, true)]
    columns = [*inputs, *(heat(each) if each.shape[1] == 1 else each for each in maps)]
    return side_by_side([interpolate(each.float(), size=tuple(size), mode="nearest-exact") for each in columns])
