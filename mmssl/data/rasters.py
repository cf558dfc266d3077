"""Which rasters a sample has, by `name=folder` pairs or a small TOML file, and how one file of each is read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmssl.data.decode import BrokenSample, decode_labels, decode_raster
from mmssl.errors import UserError, nearest
from mmssl.modality import DEPTH, IMAGE, SEMSEG, ZERO_TO_ONE, Modality

# The class number of a pixel that has none.
NO_CLASS = 255
DECLARATION = "modalities.toml"
_KNOWN = {modality.name: modality for modality in (IMAGE, DEPTH, SEMSEG)}
_KINDS: dict[str, Literal["continuous", "categorical"]] = {"continuous": "continuous", "labels": "categorical"}
# What else batches hold.
_TAKEN = ("sample_id", "epoch", "draw", "step", "label")
# MultiMAE reads labels at a quarter of the pictures' resolution.
_STRIDE, _PATCH = 4, 16
_UNKNOWN = {"continuous": replace(DEPTH, per_sample=False), "labels": replace(SEMSEG, channels=1)}
# The fields that mean something for the other kind alone.
_OF_THE_OTHER = {"continuous": ("stride", "embedding"), "labels": ("mean", "std")}
_FIELDS: dict[str, tuple[tuple[type, ...], str]] = {
    "name": ((str,), "a word"),
    "folder": ((str,), "a folder's name"),
    "kind": ((str,), "continuous or labels"),
    "channels": ((int,), "a whole number"),
    "patch": ((int,), "a whole number"),
    "stride": ((int,), "a whole number"),
    "embedding": ((int,), "a whole number"),
    "mean": ((int, float, list), "a number, or one a channel"),
    "std": ((int, float, list), "a number, or one a channel"),
}


@dataclass(frozen=True)
class Raster:
    """One of the aligned rasters of a sample.

    modality: its name in batches, kind, channels (or classes), patch and statistics. folder: what holds its files, what
    manifests call their column, and its part of a shard's members (`1.depth.png`). stride: of labels, how many pixels
    along each side one label stands for in batches, that of the middle.
    """

    modality: Modality
    folder: str
    stride: int = 1

    @property
    def name(self) -> str:
        return self.modality.name

    @property
    def labels(self) -> bool:
        """Whether its values are class numbers."""
        return self.modality.kind == "categorical"

    def read(self, file: BufferedReader | BytesIO) -> Tensor:
        """Raw values [C, H, W]: as `decode_raster` has them, or class numbers, uint8 [1, H, W], 255 for none.

        Raises BrokenSample, also for labels that are no class, and for pixels that are not there where the modality
        has no gaps, as pictures.
        """
        if not self.labels:
            values = decode_raster(file, self.modality.channels)
            if not self.modality.gaps and values.isnan().any():
                raise BrokenSample(f"holds values that are not a number, which {self.name} cannot have; fill them in")
            return values
        ids, classes = decode_labels(file), self.modality.channels
        wrong = ids[((ids < 0) | (ids >= classes)) & (ids != NO_CLASS)]
        if len(wrong):
            raise BrokenSample(
                f"has the label {int(wrong[0])}, and {self.name} has {classes} classes, 0 to {classes - 1} ({NO_CLASS} "
                "is none); mend it, or declare more channels"
            )
        return ids.to(torch.uint8)

    def absent(self, height: int, width: int) -> Tensor:
        """Zeros as such a raster would be read."""
        as_bytes = self.labels or self.name in ZERO_TO_ONE
        channels = 1 if self.labels else self.modality.channels
        return torch.zeros(1, dtype=torch.uint8 if as_bytes else torch.float32).expand(channels, height, width)


def rasters_of(given: Sequence[str | Path]) -> tuple[Raster, ...]:
    """The rasters that a .toml file declares, or pairs `name=folder` of some of image, depth and semseg.

    The file has a table `[[modality]]` for each: `name`; `folder` (the name where not given); `kind`, "continuous" or
    "labels"; `channels`, for labels the number of classes; `patch`, the side of one in values; `mean` and `std`, a
    number or one a channel, of 0-1 values where files hold bytes (0 and 1 where not given: values as they are);
    for labels `stride`, pixels a label (4), and `embedding`, the width of a class's (64). The names image, depth and
    semseg bring what MultiMAE has, depth that each sample is standardised by itself unless `mean` or `std` is given;
    others are continuous, of one channel, where nothing else is said.

    Raises UserError for anything else.
    """
    texts = [str(each) for each in given]
    if len(texts) == 1 and texts[0].endswith(".toml"):
        return _in_toml(Path(texts[0]))
    rasters = []
    for text in texts:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder):
            raise UserError(f"{text!r} declares no modality: write name=folder, as in depth=depth, or give one .toml.")
        if name not in _KNOWN:
            raise UserError(
                f"Of the modality {name!r} neither kind nor channels are known, as they are of {', '.join(_KNOWN)}: "
                "declare it in a .toml file."
            )
        rasters.append(_raster({"name": name, "folder": folder}, text))
    return _checked(rasters, "the command line")


def declaration(root: Path) -> Path | None:
    """The file `modalities.toml` in a folder, or beside it or a file, where there is one."""
    return next((path for folder in (root, root.parent) if (path := folder / DECLARATION).is_file()), None)


def declared(root: Path, given: Sequence[str | Path] = ()) -> tuple[Raster, ...]:
    """The rasters that are `given` (see `rasters_of`), else those that `modalities.toml` in a folder, or beside it or a
    file, declares; UserError where there is none."""
    if given:
        return rasters_of(given)
    if (found := declaration(root)) is None:
        raise UserError(
            f"Which modalities {root} holds is not declared: give name=folder for each, or write a {DECLARATION} there."
        )
    return _in_toml(found)


def raster_named(name: str, rasters: Sequence[Raster]) -> Raster:
    """The one of `rasters` that is called so, by its name or its folder; UserError where there is none."""
    by_name = {**{each.folder: each for each in rasters}, **{each.name: each for each in rasters}}
    if name not in by_name:
        raise UserError(f"the data hold no modality {name!r}: {nearest(name, list(by_name))}")
    return by_name[name]


def common_grid(rasters: Sequence[Raster], size: int) -> tuple[int, int]:
    """Rows and columns of patches in square crops of `size` pixels, of which each raster has as many. Raises UserError
    where they have not, or `size` is no multiple of a patch."""
    patches = {raster.name: raster.modality.patch[0] * raster.stride for raster in rasters}
    if len(set(patches.values())) > 1:
        told = ", ".join(f"{name} {side}" for name, side in patches.items())
        raise UserError(
            f"The modalities have patches of different sizes, in pixels {told}: declare patches (of labels the product "
            "of patch and stride) of one size."
        )
    side = next(iter(patches.values()))
    if size < 1 or size % side:
        raise UserError(
            f"Patches of {side} pixels do not divide crops of {size}: give another --size, or declare others."
        )
    return size // side, size // side


def _in_toml(path: Path) -> tuple[Raster, ...]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as TOML ({error}); mend it.") from error
    if unknown := next((key for key in content if key != "modality"), None):
        raise UserError(f"{path} has an unknown table {unknown!r}: each modality is a table [[modality]].")
    tables = content.get("modality", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UserError(f"{path}: each modality is a table [[modality]], with two brackets.")
    return _checked([_raster(table, str(path)) for table in tables], str(path))


def _checked(rasters: list[Raster], where: str) -> tuple[Raster, ...]:
    if not rasters:
        raise UserError(f"{where} declares no modality: give at least one.")
    names = [raster.name for raster in rasters]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{where} declares the modality {twice!r} twice; give each its own name.")
    return tuple(rasters)


def _raster(table: Mapping[str, Any], where: str) -> Raster:
    """One declaration; `where` it stands, for messages."""
    name = table.get("name")
    whose = f"{where}: the modality {name!r}" if name else f"{where}: a modality without a name"
    for field, value in table.items():
        if field not in _FIELDS:
            raise UserError(f"{whose} has an unknown field {field!r}: {nearest(field, list(_FIELDS))}")
        types, meant = _FIELDS[field]
        if isinstance(value, bool) or not isinstance(value, types):
            raise UserError(f"{whose} has {field} = {value!r}, which must be {meant}.")
        if isinstance(value, int) and types == (int,) and value < 1:
            raise UserError(f"{whose} has {field} = {value}, which must be at least 1.")
    if not name:
        raise UserError(f"{whose} cannot be told from others: give it one.")
    if not name.isidentifier() or name in _TAKEN:
        raise UserError(f"{whose} cannot be called so in a batch; choose one word, none of {', '.join(_TAKEN)}.")
    known = _KNOWN.get(name)
    kind = table.get("kind", "labels" if known is SEMSEG else "continuous")
    if kind not in _KINDS:
        raise UserError(f"{whose} has the kind {kind!r}: {nearest(kind, list(_KINDS))}")
    if unused := [field for field in _OF_THE_OTHER[kind] if field in table]:
        raise UserError(f"{whose} is {kind} and has {unused[0]!r}, which means nothing there; leave it out.")
    base = known if known is not None and known.kind == _KINDS[kind] else replace(_UNKNOWN[kind], name=name)
    channels = table.get("channels", base.channels)
    if kind == "labels" and known is not SEMSEG and "channels" not in table:
        raise UserError(f"{whose} has labels and no channels, the number of its classes; give it.")
    if kind == "labels" and channels > NO_CLASS:
        raise UserError(f"{whose} has {channels} classes; at most {NO_CLASS} are possible, as {NO_CLASS} is none.")
    stride = table.get("stride", _STRIDE) if kind == "labels" else 1
    patch = table.get("patch", max(1, _PATCH // stride))
    same = channels == base.channels
    changes: dict[str, Any] = {"channels": channels, "patch": (patch, patch)}
    changes["embedding"] = table.get("embedding", base.embedding)
    # Statistics that are declared are those of the data: each sample's own would be taken off before them.
    changes["per_sample"] = base.per_sample and not {"mean", "std"} & set(table)
    try:
        for field, usual in (("mean", 0.0), ("std", 1.0)) if kind == "continuous" else ():
            changes[field] = _each(table.get(field, getattr(base, field) if same else usual), channels)
        modality = replace(base, **changes)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}.") from error
    return Raster(modality, table.get("folder", name), stride)


def _each(value: Any, channels: int) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, (list, tuple)) else (float(value),) * channels
