"""Label propagation: the labels of the first frame follow feature affinities through a video; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from mmssl.data.sequences import MaskSequence, PointSequence
from mmssl.encoder import Encoder, single_modality
from mmssl.errors import UserError
from mmssl.evaluation.features import evaluation_mode
from mmssl.evaluation.tracking_scores import VOID, MaskRow, PointRow, mask_rows, point_row
from mmssl.modality import Modality

# Similarities held at once: 2**25 float32 values are 128 MiB, whatever the picture's size and the queue's length.
_SIMILARITIES = 2**25
_PEAK_CELLS = 5


@dataclass(frozen=True)
class Propagation:
    """How labels are propagated; distances are counted in cells of the feature grid (patches).

    queue: how many of the last frames are the context, beside the first frame. topk: neighbours that vote, over the
    whole context. radius: how far from the target cell a neighbour may lie. temperature: of the softmax over the
    neighbours' cosine similarities.

    rule: "crw" is the code of Jabri et al., "Space-Time Correspondence as a Contrastive Random Walk" (NeurIPS 2020),
    which SiamMAE, CropMAE and their like run: neighbours lie within a disk (nearer than `radius`), but anywhere in the
    first frame; the queue starts full of copies of the first frame (within the disk). "dino" is the code of Caron et
    al. 2021: the queue starts empty, and neighbours lie within a square (at most `radius` along each axis) in every
    frame, the first one too.

    The defaults are those of CropMAE's code (Eymaël et al., ECCV 2024: 20, 7, 20, 0.7), for DAVIS and JHMDB alike.
    `DINO` holds DINO's (7, 5, 12, 0.1). Raises UserError for a setting below its least value.
    """

    queue: int = 20
    topk: int = 7
    radius: float = 20.0
    temperature: float = 0.7
    rule: Literal["crw", "dino"] = "crw"

    def __post_init__(self) -> None:
        if self.queue < 1 or self.topk < 1 or self.radius <= 0 or self.temperature <= 0:
            raise UserError(f"queue and topk must be at least 1, radius and temperature positive; got {self}.")


CROPMAE = Propagation()
DINO = Propagation(queue=7, topk=5, radius=12.0, temperature=0.1, rule="dino")


@torch.no_grad()
def patch_features(
    encoder: Encoder,
    frames: UInt8[Tensor, "frames channels height width"],
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "frames rows columns dim"]:
    """The encoder's patch tokens of every frame on its own, float32 on `device`; nothing hidden, evaluation mode.

    An encoder of clips gets each frame as a still clip of one tube (`patch[0]` copies). Sides that are not a multiple
    of the patch are resized (bicubic, antialiased) to the nearest multiple and never cropped, so that the grid covers
    the whole picture; this changes the aspect by less than half a patch.

    Raises ValueError where the encoder reads several modalities or none with height and width.
    """
    modality = single_modality(encoder)
    if modality.axes[-2:] != ("height", "width") or modality.axes[:-2] not in ((), ("time",)):
        raise ValueError(f"label propagation reads pictures or clips, but this encoder reads {modality.axes}")
    if frames.shape[1] != modality.channels:
        raise UserError(f"the frames have {frames.shape[1]} channels, but this encoder reads {modality.channels}")
    rows, columns = (
        max(1, round(side / patch)) for side, patch in zip(frames.shape[2:], modality.patch[-2:], strict=True)
    )
    encoder.to(torch.device(device))
    tokens = []
    with evaluation_mode(encoder):
        for part in frames.split(batch_size):
            batch = {modality.name: _fit(part.to(device), rows, columns, modality)}
            tokens.append(encoder(batch).x[:, encoder.config.prefix :].float())
    return torch.cat(tokens).unflatten(1, (rows, columns))


def _fit(frames: UInt8[Tensor, "frames channels height width"], rows: int, columns: int, modality: Modality) -> Tensor:
    """What the encoder takes: [B, C, H, W], or [B, C, tube, H, W], of exactly `rows` x `columns` patches."""
    size = (rows * modality.patch[-2], columns * modality.patch[-1])
    if tuple(frames.shape[2:]) != size:
        resized = F.interpolate(frames.float(), size, mode="bicubic", antialias=True)
        frames = resized.round().clamp(0, 255).to(torch.uint8)
    if "time" in modality.axes:
        frames = frames[:, :, None].expand(-1, -1, modality.patch[0], -1, -1).contiguous()
    return frames


@torch.no_grad()
def propagate(
    features: Float[Tensor, "frames rows columns dim"],
    first: Float[Tensor, "labels first_rows first_columns"],
    settings: Propagation = CROPMAE,
) -> Float[Tensor, "frames labels rows columns"]:
    """Soft labels of every frame: those of frame 0 are `first`, each later cell's are a mean over its neighbours.

    A cell's neighbours are the `topk` cells of its context (see `Propagation`) whose features are most similar by
    cosine; they count softmax(similarity / temperature). Memory is bounded: cells are taken in chunks.

    Raises ValueError where the grids of features and labels differ.
    """
    frames, rows, columns, _ = features.shape
    if first.shape[1:] != (rows, columns):
        raise ValueError(f"The labels are {tuple(first.shape)}, the features {tuple(features.shape)}: use one grid.")
    keys = F.normalize(features.float(), dim=-1).flatten(1, 2)
    cells = rows * columns
    labels = keys.new_zeros(frames, len(first), cells)
    labels[0] = first.flatten(1)
    far = _far(rows, columns, settings).to(keys.device)
    free = 1 if settings.rule == "crw" else 0
    for frame in range(1, frames):
        context = _context(frame, settings)
        known, votes = keys[context].flatten(0, 1), labels[context].transpose(0, 1).flatten(1)
        for chunk in torch.arange(cells, device=keys.device).split(max(1, _SIMILARITIES // len(known))):
            similarity = (keys[frame, chunk] @ known.T).unflatten(1, (len(context), cells))
            similarity[:, free:].masked_fill_(far[chunk][:, None], -torch.inf)
            nearest, index = similarity.flatten(1).topk(min(settings.topk, len(known)), dim=1)
            weights = (nearest / settings.temperature).softmax(dim=1)
            labels[frame, :, chunk] = (votes[:, index] * weights).sum(dim=-1)
    return labels.unflatten(2, (rows, columns))


def _context(frame: int, settings: Propagation) -> list[int]:
    """The frames that a frame looks at, the first one first."""
    last = range(frame - settings.queue, frame)
    return [0, *(max(0, t) for t in last)] if settings.rule == "crw" else [0, *(t for t in last if t > 0)]


def _far(rows: int, columns: int, settings: Propagation) -> Bool[Tensor, "cells cells"]:
    """Which cells lie too far from each other to be neighbours."""
    cell = torch.arange(rows * columns)
    row, column = cell // columns, cell % columns
    down, across = (row[:, None] - row).abs(), (column[:, None] - column).abs()
    if settings.rule == "dino":
        return torch.maximum(down, across) > settings.radius
    return down.square() + across.square() >= settings.radius**2


def propagate_masks(
    encoder: Encoder,
    frames: UInt8[Tensor, "frames channels height width"],
    first: UInt8[Tensor, "height width"],
    settings: Propagation = CROPMAE,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> UInt8[Tensor, "frames height width"]:
    """The object of each pixel in every frame, from the object ids of the first (0 background, 255 void: no label).

    A cell's label is the share of its pixels that each id has. Predictions are upsampled bilinearly to the picture's
    size, and the largest wins. On the CPU; frame 0 is `first` itself. (CropMAE's code
    resizes the masks bilinearly, DINO's takes one pixel a cell and also stretches each predicted map to 0-1.)
    """
    ids = torch.tensor(sorted({0, *first.unique().tolist()} - {VOID}), dtype=torch.uint8)
    features = patch_features(encoder, frames, batch_size=batch_size, device=device)
    shares = (first == ids[:, None, None]).float().to(features.device)
    cells = F.interpolate(shares[None], features.shape[1:3], mode="area")[0]
    maps = propagate(features, cells, settings)
    masks = [first]
    for soft in maps[1:]:
        upsampled = F.interpolate(soft[None], first.shape, mode="bilinear")[0]
        masks.append(ids[upsampled.argmax(dim=0).cpu()])
    return torch.stack(masks)


def propagate_points(
    encoder: Encoder,
    frames: UInt8[Tensor, "frames channels height width"],
    first: Float[Tensor, "points 2"],
    settings: Propagation = CROPMAE,
    *,
    sigma: float = 0.5,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "frames points 2"]:
    """The place (x, y) of each point in every frame, in pixels (0 is the centre of the first one), on the CPU.

    A point's label map is a Gaussian of `sigma` cells round its place, cut off at three sigma (CRW's code: 0.5). Its
    predicted place is the mean of the five cells with the most of its label, weighted by it. A point that is NaN or
    outside the first picture is absent: NaN in every frame; so is one whose map has become zero.
    """
    features = patch_features(encoder, frames, batch_size=batch_size, device=device)
    grid, size = tuple(features.shape[1:3]), tuple(frames.shape[2:])
    maps = propagate(features, _point_maps(first, grid, size, sigma).to(features.device), settings)
    points = _read_points(maps.cpu(), size)
    points[0] = first.where(inside(first, size)[:, None], torch.nan)
    return points


def inside(points: Float[Tensor, "*n 2"], size: Sequence[int]) -> Bool[Tensor, "*n"]:
    """Which points (x, y) lie in a picture of (height, width) pixels; NaN does not."""
    x, y = points.unbind(-1)
    return (x >= -0.5) & (x < size[1] - 0.5) & (y >= -0.5) & (y < size[0] - 0.5)


def _point_maps(
    points: Float[Tensor, "points 2"], grid: Sequence[int], size: Sequence[int], sigma: float
) -> Float[Tensor, "points rows columns"]:
    down, across = (
        (points[:, axis, None] + 0.5) * cells / side - 0.5 - torch.arange(cells)
        for axis, cells, side in ((1, grid[0], size[0]), (0, grid[1], size[1]))
    )
    squares = (down.square()[:, :, None] + across.square()[:, None]) / sigma**2
    # A narrow Gaussian may miss every centre: the cell that holds the point always counts.
    reached = (squares <= 9) | ((down.abs() <= 0.5)[:, :, None] & (across.abs() <= 0.5)[:, None])
    return (-squares / 2).exp().where(reached & inside(points, size)[:, None, None], 0.0)


def _read_points(
    maps: Float[Tensor, "frames points rows columns"], size: Sequence[int]
) -> Float[Tensor, "frames points 2"]:
    rows, columns = maps.shape[2:]
    weights, cell = maps.flatten(2).topk(min(_PEAK_CELLS, rows * columns), dim=2)
    total = weights.sum(dim=2)
    places = torch.stack([_centre(cell % columns, columns, size[1]), _centre(cell // columns, rows, size[0])], dim=-1)
    mean = (places * weights[..., None]).sum(dim=2) / total[..., None]
    return mean.where((total > 0)[..., None], torch.nan)


def _centre(cell: Int64[Tensor, "*n"], cells: int, side: int) -> Float[Tensor, "*n"]:
    return (cell + 0.5) * (side / cells) - 0.5


def evaluate_masks(
    encoder: Encoder,
    sequences: Iterable[MaskSequence],
    settings: Propagation = CROPMAE,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> list[MaskRow]:
    """J and F of every object of every sequence (see `mask_rows`), given the masks of the first frames.

    `progress` is called with each sequence's name when it is done. Raises UserError naming a sequence without an
    object in its first frame, or with fewer than three frames.
    """
    rows = []
    for sequence in sequences:
        predicted = propagate_masks(
            encoder, sequence.frames, sequence.masks[0], settings, batch_size=batch_size, device=device
        )
        rows += mask_rows(sequence.name, predicted, sequence.masks)
        if progress is not None:
            progress(sequence.name)
    return rows


def evaluate_points(
    encoder: Encoder,
    sequences: Iterable[PointSequence],
    settings: Propagation = CROPMAE,
    *,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> list[PointRow]:
    """The errors of every point of every sequence (see `point_row`), given the points of the first frames.

    Points outside the first picture cannot be followed, and are not counted. `progress` as in `evaluate_masks`.
    """
    rows = []
    for sequence in sequences:
        first = sequence.points[0]
        predicted = propagate_points(encoder, sequence.frames, first, settings, batch_size=batch_size, device=device)
        given = inside(first, sequence.frames.shape[2:])[None, :, None]
        rows.append(point_row(sequence.name, predicted, sequence.points.where(given, torch.nan)))
        if progress is not None:
            progress(sequence.name)
    return rows
