"""Scores of propagated labels: DAVIS' region similarity J and boundary measure F, and PCK of key points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from mmssl.errors import UserError

VOID = 255
_TOLERANCE = 0.008
_BOX_SHARE = 0.6


@dataclass(frozen=True)
class MaskRow:
    """One object of one sequence: J and F in 0-1, means over its `frames` scored frames."""

    sequence: str
    object: int
    region: float
    boundary: float
    frames: int

    @property
    def both(self) -> float:
        """J&F: the mean of the two."""
        return (self.region + self.boundary) / 2


@dataclass(frozen=True)
class MaskMeans:
    """J, F and J&F in 0-1, means over objects: what DAVIS-2017 reports."""

    region: float
    boundary: float
    both: float


@dataclass(frozen=True)
class PointRow:
    """The key points of one sequence: each one's error in every frame but the first, in units of the person's size.

    NaN where the truth has no such point, infinite where it was lost.
    """

    sequence: str
    errors: Float[Tensor, "frames points"]

    def pck(self, alpha: float) -> float:
        """The share of points within `alpha` of the truth; NaN where there is none."""
        return (self.errors[~self.errors.isnan()] <= alpha).float().mean().item()


def region_similarity(predicted: Bool[Tensor, "height width"], truth: Bool[Tensor, "height width"]) -> float:
    """J: intersection over union, 1 where both are empty."""
    union = int((predicted | truth).sum())
    return int((predicted & truth).sum()) / union if union else 1.0


def boundary_measure(predicted: Bool[Tensor, "height width"], truth: Bool[Tensor, "height width"]) -> float:
    """F: the harmonic mean of the boundaries' precision and recall, 1 where both masks have none.

    A boundary pixel differs from its right, lower or lower right neighbour. It counts as found where the other
    boundary has a pixel within ceil(0.008 * the picture's diagonal) pixels. Perazzi et al., "A Benchmark Dataset and
    Evaluation Methodology for Video Object Segmentation", CVPR 2016, section 4, with their code's boundaries and
    tolerance (dilation by a disk instead of bipartite matching). Needs scipy.
    """
    tolerance = math.ceil(_TOLERANCE * math.hypot(*truth.shape))
    mine, theirs = (_boundary(mask.cpu().numpy()) for mask in (predicted, truth))
    if not mine.any() or not theirs.any():
        return float(mine.any() == theirs.any())
    # Distances are only asked between boundary pixels, and all of these lie in one box.
    rows, columns = (np.flatnonzero((mine | theirs).any(axis=axis)) for axis in (1, 0))
    box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    precision, recall = _found(mine[box], theirs[box], tolerance), _found(theirs[box], mine[box], tolerance)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    # The last row and column compare with themselves, as in DAVIS' code.
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    return (mask != padded[1:, :-1]) | (mask != padded[:-1, 1:]) | (mask != padded[1:, 1:])


def _found(boundary: np.ndarray, other: np.ndarray, tolerance: int) -> float:
    from scipy.ndimage import distance_transform_edt

    return float((distance_transform_edt(~other)[boundary] <= tolerance).mean())


def mask_rows(
    sequence: str,
    predicted: UInt8[Tensor, "frames height width"],
    truth: UInt8[Tensor, "frames height width"],
) -> list[MaskRow]:
    """A row for each object of the truth's first frame, over all frames but the first (given) and the last.

    That is the semi-supervised protocol of DAVIS-2017 (Pont-Tuset et al. 2017), which leaves the last frame out too.
    Pixels that the truth calls void (255) count for neither mask.

    Raises UserError naming the sequence where the first frame has no object, or there are fewer than three frames.
    """
    objects = sorted(set(truth[0].unique().tolist()) - {0, VOID})
    if not objects or len(truth) < 3:
        raise UserError(
            f"Sequence {sequence} has {len(truth)} frames and {len(objects)} objects in the first: label at least "
            "one object there, and give at least three frames."
        )
    rows = []
    for number in objects:
        pairs = [
            ((mine == number) & (theirs != VOID), theirs == number)
            for mine, theirs in zip(predicted[1:-1], truth[1:-1], strict=True)
        ]
        region = sum(region_similarity(*pair) for pair in pairs) / len(pairs)
        boundary = sum(boundary_measure(*pair) for pair in pairs) / len(pairs)
        rows.append(MaskRow(sequence, number, region, boundary, len(pairs)))
    return rows


def mask_means(rows: Sequence[MaskRow]) -> MaskMeans:
    """The means over all objects, each counting once. Raises ValueError where there is no row."""
    if not rows:
        raise ValueError("There is no object to average over; evaluate at least one sequence.")
    region, boundary = (sum(getattr(row, score) for row in rows) / len(rows) for score in ("region", "boundary"))
    return MaskMeans(region, boundary, (region + boundary) / 2)


def mask_table(rows: Sequence[MaskRow]) -> str:
    """A markdown table in %: a line for each sequence (the mean of its objects), and the mean over all objects."""
    by_sequence: dict[str, list[MaskRow]] = {}
    for row in rows:
        by_sequence.setdefault(row.sequence, []).append(row)
    lines = ["| sequence | objects | J | F | J&F |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, group in [*by_sequence.items(), ("all", list(rows))]:
        means = mask_means(group)
        scores = " | ".join(f"{100 * score:.1f}" for score in (means.region, means.boundary, means.both))
        lines.append(f"| {name.replace('|', chr(92) + '|')} | {len(group)} | {scores} |")
    return "\n".join(lines)


def point_row(
    sequence: str, predicted: Float[Tensor, "frames points 2"], truth: Float[Tensor, "frames points 2"]
) -> PointRow:
    """Distances between predicted and true points, divided by the person's size in the frame; the first is left out.

    The size is 0.6 times the diagonal of the box round the true points of that frame: what the evaluation of CRW,
    SiamMAE and CropMAE computes on JHMDB. (Others divide by the longer side of that box.) A point that is NaN in the
    truth is not counted; one that is NaN in the prediction only is infinitely far. A frame whose points coincide has no
    size: a point is either exact there or infinitely far.
    """
    true, found = truth[1:].double(), predicted[1:].double()
    absent = true.isnan().any(dim=-1)
    low = true.where(~absent[..., None], torch.inf).amin(dim=1)
    high = true.where(~absent[..., None], -torch.inf).amax(dim=1)
    size = _BOX_SHARE * (high - low).norm(dim=-1, keepdim=True)
    distance = (found - true).norm(dim=-1)
    errors = (distance / size).where(distance > 0, 0.0)
    errors = errors.where(~found.isnan().any(dim=-1), torch.inf).where(~absent, torch.nan)
    return PointRow(sequence, errors.float())


def pck(rows: Sequence[PointRow], alpha: float) -> float:
    """PCK@alpha in 0-1: the share of points within `alpha` of the person's size, a mean over the kinds of points.

    Each kind (head, left knee, ...) counts the same, as in CRW's code; kinds that the truth never has do not count.
    Raises ValueError where there is no point at all.
    """
    errors = torch.cat([row.errors for row in rows]) if rows else torch.empty(0, 0)
    counted = ~errors.isnan()
    kinds = counted.any(dim=0)
    if not kinds.any():
        raise ValueError("There is no point to average over; evaluate a sequence with a point in its first frame.")
    right = ((errors <= alpha) & counted).sum(dim=0)[kinds]
    return (right / counted.sum(dim=0)[kinds]).double().mean().item()
