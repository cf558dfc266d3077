"""Aligned rasters: samples of several pictures, depth and label maps of one size, and the view that cuts them alike.

`source = open_aligned(path, "train")` gives samples, `source.view(Crop(224))` batches of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor

from mmssl.data.decode import ENDINGS, BrokenSample
from mmssl.data.folders import (
    Label,
    check_unnamed,
    class_folders,
    endings,
    is_manifest,
    labels_of,
    part_of,
    rows_of,
    walk,
)
from mmssl.data.rasters import Raster, declared
from mmssl.data.shards import SHARD, Place, Shards
from mmssl.data.source import FileSource, Subset, subset, told_of_part
from mmssl.data.views import Crop, EvalView, Keys, render, sides
from mmssl.errors import UserError, as_text, nearest

# Ends of the names under which batches hold what is asked for at every pixel, and the labels that say where.
TARGET, WHERE = ".target", ".where"


class AlignedSource(FileSource):
    """Samples of several aligned rasters (see `Raster`), which lie in one of these:

    - a folder with one folder a modality, whose files have the same relative names but for their endings; where they
      lie in at least two folders there, these are the classes;
    - a manifest, .csv or .jsonl, with a column a modality, of paths relative to it, empty where a sample has none, and
      perhaps `label`;
    - tar shards, `1.rgb.png` and `1.depth.npy`, a folder of them or one.

    A sample is {name: values [C, H, W]} of the rasters that it has, of one height and width. `partial` are the names of
    those that some samples lack. label: what a manifest, or the JSON of a sample in shards, calls the class. A sample
    that cannot be read, in whole or part, raises BrokenSample, which names the file.

    Raises UserError when nothing is there or can be read, when a modality is missing everywhere, and when no sample has
    two of several.
    """

    kind = "sample"
    extensions = (*ENDINGS, ".npy")
    places: dict[str, list[Place | str | None]]

    def __init__(self, root: str | Path, rasters: Sequence[Raster], label: str | None = None) -> None:
        self.rasters = tuple(rasters)
        super().__init__(*self.located(Path(root), label), self.rasters[0].modality.channels)
        self._check()
        self.find_one_readable()

    @property
    def partial(self) -> tuple[str, ...]:
        """The names of the modalities that some samples lack."""
        return tuple(name for name, places in self.places.items() if None in places)

    def whole(self) -> Subset:
        """The samples that lack none of the modalities. Raises UserError where each lacks one."""
        complete = [index for index, places in enumerate(zip(*self.places.values())) if None not in places]
        if not complete:
            raise UserError(f"No sample of {self.given} has all of {', '.join(self.places)}; ask for fewer of them.")
        return subset(self, complete)

    def view(self, crop: Crop | EvalView) -> AlignedView:
        """The view of these rasters."""
        return AlignedView(crop, self.rasters, self.partial)

    def located(self, root: Path, label: str | None = None) -> tuple[Path, list[str], Sequence[Label | None] | None]:
        """(folder, names of the samples, labels); sets `places`, by modality where each sample's file lies."""
        self.given = root
        if is_manifest(root):
            return root.parent, *self._in_manifest(root, label)
        if root.suffix.lower() == SHARD and root.is_file():
            return root.parent, *self._in_shards(root.parent, [root.name], label)
        if not root.is_dir():
            problem = "is a file, not a folder" if root.exists() else "does not exist"
            raise UserError(f"{root} {problem}; give a folder of aligned rasters, a manifest or tar shards.")
        tars = [path for path in walk(root)[0] if path.lower().endswith(SHARD)]
        if tars and not any((root / raster.folder).is_dir() for raster in self.rasters):
            return root, *self._in_shards(root, tars, label)
        check_unnamed(root, label)
        return root, *self._in_folders(root)

    def _in_folders(self, root: Path) -> tuple[list[str], Sequence[Label | None] | None]:
        found: dict[str, dict[str, str]] = {}
        notes: list[str] = []
        for raster in self.rasters:
            files = walk(root / raster.folder)[0]
            by_stem = found[raster.name] = dict[str, str]()
            for path in files:
                stem, ending = os.path.splitext(path)
                if ending.lower() not in self.extensions:
                    continue
                if stem in by_stem:
                    raise UserError(f"{root} has {by_stem[stem]} and {raster.folder}/{path}: one a sample can be read.")
                by_stem[stem] = f"{raster.folder}/{path}"
            if others := [path for path in files if not path.lower().endswith(self.extensions)]:
                notes.append(f"{root / raster.folder}: left out {len(others)} files: {endings(others)}")
        self.notes = list(map(as_text, notes))
        stems = sorted(set().union(*found.values()))
        self.places = {name: [by_stem.get(stem) for stem in stems] for name, by_stem in found.items()}
        labels = class_folders(stems)
        return stems, labels if len(set(labels) - {None}) > 1 else None

    def _in_manifest(self, path: Path, label: str | None) -> tuple[list[str], Sequence[Label | None] | None]:
        rows = rows_of(path)
        columns = list(dict.fromkeys(column for row in rows for column in row))
        for raster in self.rasters:
            if rows and raster.folder not in columns:
                raise UserError(
                    f"The manifest {path} has no column {raster.folder!r} but {', '.join(columns)}: "
                    + nearest(raster.folder, columns)
                )
        self.places = {
            raster.name: [str(place) if (place := row.get(raster.folder)) else None for row in rows]
            for raster in self.rasters
        }
        names = [
            next((str(place) for place in places if place is not None), f"row {number}")
            for number, places in enumerate(zip(*self.places.values()), 1)
        ]
        return names, labels_of(path, self.kind, names, rows, label)

    def _in_shards(
        self, folder: Path, tars: list[str], label: str | None
    ) -> tuple[list[str], Sequence[Label | None] | None]:
        members = {
            raster.name: tuple(f".{raster.folder.lower()}{ending}" for ending in self.extensions)
            for raster in self.rasters
        }
        every = tuple(ending for each in members.values() for ending in each)
        self.shards = Shards(folder, tars, "raster", every, label, members)
        self.notes = self.shards.notes
        self.places = {name: [*places] for name, places in self.shards.beside.items()}
        return self.shards.paths, self.shards.labels

    def _check(self) -> None:
        for raster in self.rasters:
            if any(place is not None for place in self.places[raster.name]):
                continue
            where = "" if self.shards or is_manifest(self.given) else f": {self.given / raster.folder} holds none"
            raise UserError(
                f"No sample of {self.given} has {raster.name} ({raster.folder}){where}; add its files, or leave it out."
            )
        counts = [sum(place is not None for place in places) for places in zip(*self.places.values())]
        if len(self.rasters) > 1 and max(counts) == 1:
            files = [next(place for place in places if place is not None) for places in self.places.values()]
            raise UserError(
                f"No sample of {self.given} has two of its modalities: the files of one have the same name in each "
                f"folder, unlike {files[0]} and {files[1]}."
            )
        lacking = {name: self.places[name].count(None) for name in self.partial}
        told = [f"{self.given}: {count} of {len(self)} samples lack {name}" for name, count in lacking.items()]
        self.notes = [*self.notes, *map(as_text, told)]

    @property
    def read_from(self) -> list[Path]:
        """The files that the samples are read from; a shard once."""
        if self.shards is not None:
            return super().read_from
        return [self.root / str(place) for places in zip(*self.places.values()) for place in places if place]

    def read(self, index: int) -> dict[str, Tensor]:
        sample: dict[str, Tensor] = {}
        for raster in self.rasters:
            if (place := self.places[raster.name][index]) is None:
                continue
            try:
                sample[raster.name] = raster.read(BytesIO(self.content(place)))
            except BrokenSample as error:
                where = as_text(place) if isinstance(place, str) else f"its .{raster.folder} member"
                raise BrokenSample(f"cannot be read, as {where} {error.reason}") from error
        if not sample:
            raise BrokenSample("has no raster at all")
        if len({values.shape[-2:] for values in sample.values()}) > 1:
            shapes = (f"{name} of {values.shape[-2]} x {values.shape[-1]}" for name, values in sample.items())
            raise BrokenSample(f"has rasters of different sizes, {', '.join(shapes)} pixels; resample them to one")
        return sample


@dataclass(frozen=True)
class AlignedView:
    """One cut for all rasters of a sample, drawn as `crop` does: continuous ones resampled as there, class numbers by
    the nearest pixel, at their own stride.

    Batches hold raw values by name, [B, C, height, width] uint8 or floating point with NaN where nothing was measured,
    class numbers int64 [B, height / stride, width / stride] with 255 where there is none, and for each of `partial`
    (those that samples may lack) `NAME.present` bool [B]; a raster that is not there is zeros.
    """

    crop: Crop | EvalView
    rasters: tuple[Raster, ...]
    partial: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for raster in self.rasters:
            if any(side % raster.stride for side in sides(self.crop.size)):
                raise UserError(
                    f"{raster.name} has a label every {raster.stride} pixels, which do not divide {self.crop.size}; "
                    "choose another size or stride."
                )

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        present: list[list[bool]] = []

        def filled() -> Iterator[dict[str, Tensor]]:
            for sample in samples:
                present.append([name in sample for name in self.partial])
                height, width = next(iter(sample.values())).shape[-2:]
                yield {
                    raster.name: sample[raster.name] if raster.name in sample else raster.absent(height, width)
                    for raster in self.rasters
                }

        strides = {raster.name: raster.stride for raster in self.rasters if raster.labels}
        batch = render(filled(), [self.crop.shot(keys, 0)._replace(strides=strides)])[0]
        batch |= {name: batch[name][:, 0].long() for name in strides}
        there = torch.tensor(present)
        return batch | {f"{name}.present": there[:, column] for column, name in enumerate(self.partial)}


@dataclass(frozen=True)
class AskedView:
    """Rasters to read, `inputs`, and beside them what is asked for at every pixel, `target`, as `NAME.target`, and the
    labels that say where, if any, as `NAME.where` at the target's stride: all of them may be the same raster.

    Samples hold all of them. Batches are otherwise AlignedView's.
    """

    crop: Crop | EvalView
    inputs: tuple[Raster, ...]
    target: Raster
    where: Raster | None = None

    def __call__(self, samples: Iterable[dict[str, Tensor]], keys: Keys) -> dict[str, Tensor]:
        asked = {self.target.name + TARGET: self.target}
        if self.where is not None:
            asked[self.where.name + WHERE] = replace(self.where, stride=self.target.stride)
        renamed = [replace(raster, modality=replace(raster.modality, name=name)) for name, raster in asked.items()]
        twice = ({**sample, **{name: sample[raster.name] for name, raster in asked.items()}} for sample in samples)
        return AlignedView(self.crop, (*self.inputs, *renamed))(twice, keys)


def open_aligned(
    path: str | Path,
    split: str | None = None,
    modalities: Sequence[str | Path] = (),
    label: str | None = None,
) -> AlignedSource:
    """The `split` of aligned rasters ("train", "test" or None, see `open_source`), or of one file, which has no parts.

    modalities: see `declared`. label: what a manifest, or the JSON of a sample in shards, calls the class.
    """
    return open_declared(path, split, declared(Path(path), modalities), label)


def open_declared(
    path: str | Path, split: str | None, rasters: Sequence[Raster], label: str | None = None
) -> AlignedSource:
    """The same of some declared rasters alone."""
    root = Path(path)
    return told_of_part(AlignedSource(part_of(root, split), rasters, label), root, split)
