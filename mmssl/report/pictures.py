"""Pictures of what a model does, as PNG bytes: reconstructions, principal components of patch features, attention.

Every function takes plain tensors and lays out one tile a picture; gaps are transparent, so that the result sits well
on a light page and on a dark one. Small pictures are enlarged by whole factors without smoothing.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from mmssl.evaluation.tracking_scores import VOID
from mmssl.objectives.figures import Palette

if TYPE_CHECKING:
    from PIL.Image import Image

Picture = UInt8[Tensor, "tile_height tile_width 3"]

_TILE = 112
_GAP = 6
_NOTHING = 0.5  # the grey of what is not a number: of what is hidden
# Dark violet to pale yellow, ever lighter, so that the heat reads in grey and for colour-blind eyes too.
_HEAT = ((0.05, 0.03, 0.20), (0.40, 0.07, 0.43), (0.75, 0.20, 0.34), (0.97, 0.52, 0.15), (0.99, 0.99, 0.70))

_LIGHTNESS = (0.4, 0.62, 0.75)  # of classes

# Objects' tints, those of a colour-blind safe palette (Okabe and Ito).
_OBJECTS = (
    (0.9, 0.6, 0.0),
    (0.34, 0.71, 0.91),
    (0.0, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.8, 0.47, 0.7),
)


def side_by_side(columns: Sequence[Float[Tensor, "pictures _ height width"]], *, across: int = 2) -> bytes:
    """The pictures of one sample beside each other, one from each column, `across` samples in a line. Values are 0-1.

    Pictures with neither one nor at least three channels show their first channel; more than three, the first three.
    """
    return _png(_grid(list(zip(*(_tiles(_rgb(column)) for column in columns), strict=True)), across))


def strips(columns: Sequence[Float[Tensor, "clips _ frames height width"]]) -> bytes:
    """The clips of one sample below each other, one from each column, as strips of up to eight frames."""
    frames = columns[0].shape[2]
    chosen = torch.linspace(0, frames - 1, min(8, frames)).round().long()
    lines = [_tiles(_rgb(clip[:, chosen].transpose(0, 1))) for sample in zip(*columns, strict=True) for clip in sample]
    return _png(_grid(lines, 1))


def tracks(
    frames: UInt8[Tensor, "frames channels height width"], masks: Sequence[UInt8[Tensor, "frames height width"]]
) -> bytes:
    """A strip of at most eight frames for each of `masks` (predicted, true ...), its objects tinted by their ids."""
    chosen = torch.linspace(0, len(frames) - 1, min(8, len(frames))).round().long()
    shown, colours = _rgb(frames[chosen].float() / 255), torch.tensor(_OBJECTS)
    lines = []
    for ids in masks:
        mask = ids[chosen].long().cpu()
        is_object = (mask > 0) & (mask != VOID)
        tint = colours[(mask - 1) % len(colours)].permute(0, 3, 1, 2)
        lines.append(_tiles(torch.where(is_object[:, None], 0.4 * shown + 0.6 * tint, shown)))
    return _png(_grid(lines, 1))


def patch_components(
    original: Float[Tensor, "pictures channels height width"],
    patches: Float[Tensor, "pictures rows columns dim"],
    *,
    across: int = 4,
) -> bytes:
    """Each picture beside its patch features' first three principal components as red, green and blue.

    The components are those of all patches of all pictures given, so equal colours mean similar features across
    pictures. Each is scaled to 0-1 between its 1st and 99th percentile, and signed so that its largest weight is
    positive: the colours do not flip from run to run.
    """
    flat = patches.detach().flatten(0, 2).double().cpu()
    centred = flat - flat.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False).Vh[:3]
    axes = axes * axes.gather(1, axes.abs().argmax(dim=1, keepdim=True)).sign()
    scores = centred @ axes.T
    low, high = scores.quantile(0.01, dim=0), scores.quantile(0.99, dim=0)
    # Where a component has no spread there is nothing to show: the middle of the scale, not amplified rounding.
    flatness = high - low <= 1e-6 * flat.abs().max()
    scores = torch.where(flatness, 0.5, (scores - low) / torch.where(flatness, 1, high - low)).clamp(0, 1)
    colours = torch.full((len(flat), 3), 0.5)
    colours[:, : scores.shape[1]] = scores.float()
    components = _enlarged(colours.unflatten(0, patches.shape[:3]).permute(0, 3, 1, 2), original)
    return _png(_beside(list(zip(_tiles(_rgb(original)), _tiles(components), strict=True)), across))


def neighbours(pictures: Float[Tensor, "queries shown channels height width"]) -> bytes:
    """A line a query: the query itself, then its neighbours, the nearest first. Values are 0-1."""
    return _png(_grid([_tiles(_rgb(line)) for line in pictures], 1))


def attention_maps(
    original: Float[Tensor, "pictures channels height width"],
    attention: Float[Tensor, "pictures heads rows columns"],
    *,
    across: int = 1,
) -> bytes:
    """The picture, then the attention of each head as heat over it, `across` of these in a line.

    `attention` holds non-negative weights of the patches, e.g. those of the class token; each map is scaled by its own
    largest weight.
    """
    shown = _rgb(original)
    weights = attention.detach().float().cpu()
    weights = weights / weights.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    overlays = [
        _tiles(0.35 * shown.mean(dim=1, keepdim=True) + 0.65 * heat(_enlarged(weights[:, head, None], original)))
        for head in range(weights.shape[1])
    ]
    return _png(_beside(list(zip(_tiles(shown), *overlays, strict=True)), across))


def _rgb(pictures: Float[Tensor, "pictures channels height width"]) -> Float32[Tensor, "pictures 3 height width"]:
    shown = pictures[:, :3] if pictures.shape[1] >= 3 else pictures[:, :1].expand(-1, 3, -1, -1)
    return shown.detach().float().cpu().nan_to_num(_NOTHING).clamp(0, 1)


def _enlarged(
    maps: Float[Tensor, "pictures channels rows columns"], original: Float[Tensor, "pictures _ height width"]
) -> Float[Tensor, "pictures channels height width"]:
    return interpolate(maps, size=original.shape[2:], mode="nearest-exact")


def heat(values: Float[Tensor, "pictures 1 height width"]) -> Float[Tensor, "pictures 3 height width"]:
    """Values in 0-1 as colours; NaN is grey."""
    values = values.detach().float().cpu()
    stops = torch.tensor(_HEAT)
    place = values[:, 0].clamp(0, 1) * (len(stops) - 1)
    lower = place.nan_to_num().long().clamp(max=len(stops) - 2)
    share = (place - lower)[..., None]
    return (stops[lower] * (1 - share) + stops[lower + 1] * share).nan_to_num(_NOTHING).permute(0, 3, 1, 2)


def coloured(
    values: Float[Tensor, "pictures channels height width"], palette: Palette
) -> Float[Tensor, "pictures _ height width"]:
    """Pictures of a figure in colours, NaN grey. "classes": the first is blue, the next are green and purple; hues go
    round by the golden ratio, three degrees of lightness take turns."""
    if palette == "colours":
        return values
    if palette == "heat":
        return heat(values[:, :1])
    ids = values[:, 0].detach().float().cpu()
    numbers = range(1 + int(ids.nan_to_num().max()))
    colours = [colorsys.hls_to_rgb((0.61 + 0.618 * k) % 1, _LIGHTNESS[k % len(_LIGHTNESS)], 0.65) for k in numbers]
    shown = torch.tensor(colours)[ids.nan_to_num().long()]
    return torch.where(ids.isnan()[..., None], _NOTHING, shown).permute(0, 3, 1, 2)


def _tiles(pictures: Float[Tensor, "pictures 3 height width"]) -> list[Picture]:
    factor = max(1, round(_TILE / max(pictures.shape[2:])))
    large = pictures.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
    return list((large * 255).round().to(torch.uint8).permute(0, 2, 3, 1))


def _beside(groups: Sequence[Sequence[Picture]], across: int) -> UInt8[Tensor, "height width 4"]:
    """The tiles of a group beside each other, or where they are wide, such as spectrograms, below each other."""
    if groups and groups[0][0].shape[1] > 2 * groups[0][0].shape[0]:
        return _grid([[tile] for group in groups for tile in group], 1)
    return _grid(groups, across)


def _grid(groups: Sequence[Sequence[Picture]], across: int) -> UInt8[Tensor, "height width 4"]:
    """Groups of tiles in reading order, `across` groups in a line, on a transparent ground."""
    if not groups:
        raise ValueError("There is no picture to show; give at least one.")
    height, width, _ = groups[0][0].shape
    across = min(across, len(groups))
    lines = -(-len(groups) // across)
    group_width = len(groups[0]) * (width + _GAP) + 2 * _GAP
    canvas = torch.zeros(lines * (height + _GAP) - _GAP, across * group_width - 3 * _GAP, 4, dtype=torch.uint8)
    for index, group in enumerate(groups):
        top = index // across * (height + _GAP)
        for place, tile in enumerate(group):
            left = index % across * group_width + place * (width + _GAP)
            canvas[top : top + height, left : left + width, :3] = tile
            canvas[top : top + height, left : left + width, 3] = 255
    return canvas


def _png(canvas: UInt8[Tensor, "height width 4"]) -> bytes:
    from PIL import Image

    return png(Image.fromarray(canvas.numpy(), "RGBA"))


def png(picture: Image) -> bytes:
    """A picture as the bytes of its file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
