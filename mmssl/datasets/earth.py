"""Tiles of the Earth: three real aligned rasters, cut and parted so that a score counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mmssl.data.rasters import DECLARATION
from mmssl.errors import UserError

COLOURS, ELEVATION, LAND = "rgb.jpg", "elevation_plus_12000m.png", "landmask.png"
TILE = 64
BLOCKS = 12
# What added makes every elevation a positive 16-bit number, in metres.
_LIFT = 12_000
# Of twelve blocks of 30 degrees, from longitude -180. Test is the east of the Americas and that of Asia, val Alaska and
# Europe with Africa: every part has land and sea at all latitudes.
PARTS = ("val", "train", "train", "test", "train", "train") * 2
_CLASSES = ((0, 0, 128), (0, 128, 0), (64, 160, 255))  # ocean, land, lake


def write_earth_tiles(destination: str | Path, given: str | Path) -> dict[str, int]:
    """Aligned tiles of 64 x 64 pixels at the rasters' own resolution; how many each part has.

    given: a folder with `rgb.jpg`, `elevation_plus_12000m.png` (uint16, metres + 12 000) and `landmask.png` (0 ocean, 1
    land, 2 lake), of one size, equirectangular, north up, from longitude -180 to 180.
    `destination/{train,val,test}/{rgb,elevation,land}/` hold PNG, .npy of float32 in metres (which is no depth, and
    negative under water), and palette PNG, named after the tile's north-west corner in tenths of a degree,
    `n470_e0120`. `destination/modalities.toml` declares them, with the training part's mean and deviation of elevation.

    The globe is parted into twelve blocks of longitude, eight to train, two each for val and test. Each is cut from its
    western side into whole tiles, so that none overlaps another; what is left over (40 pixels, 3.3 degrees, of rasters
    4320 pixels wide) keeps blocks apart. What is left over of the latitudes is at the poles.

    Raises UserError where the rasters are not such, or nothing can be written.
    """
    destination, folder = Path(destination), Path(given)
    colours, lifted, land = (_opened(folder / name) for name in (COLOURS, ELEVATION, LAND))
    if len(sizes := {raster.shape[:2] for raster in (colours, lifted, land)}) > 1:
        raise UserError(f"The rasters in {folder} have different sizes, {sorted(sizes)}; resample them to one.")
    if lifted.ndim != 2 or land.ndim != 2 or colours.ndim != 3 or land.max() >= len(_CLASSES):
        raise UserError(
            f"The rasters in {folder} must be colours, one channel of metres + {_LIFT} and labels 0 to 2; fetch them "
            "again."
        )
    elevation = lifted.astype(np.float32) - _LIFT
    height, width = land.shape
    if height < TILE or width // BLOCKS < TILE:
        raise UserError(f"The rasters in {folder} are {height} x {width}, too small for tiles of {TILE} in 12 blocks.")
    counts = dict.fromkeys(PARTS, 0)
    known: list[np.ndarray] = []
    try:
        for part in counts:
            for name in ("rgb", "elevation", "land"):
                (destination / part / name).mkdir(parents=True, exist_ok=True)
        for part, top, left in corners(height, width):
            where = slice(top, top + TILE), slice(left, left + TILE)
            name = _named(90 - 180 * top / height, 360 * left / width - 180)
            Image.fromarray(colours[where]).save(destination / part / "rgb" / f"{name}.png")
            np.save(destination / part / "elevation" / f"{name}.npy", elevation[where])
            labels = Image.fromarray(land[where].astype(np.uint8)).convert("P")
            labels.putpalette([value for colour in _CLASSES for value in colour])
            labels.save(destination / part / "land" / f"{name}.png")
            counts[part] += 1
            known += [elevation[where]] if part == "train" else []
        declaration = _declaration(float(np.mean(known)), float(np.std(known)))
        (destination / DECLARATION).write_text(declaration, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The tiles cannot be written to {destination} ({error.strerror or error}).") from error
    return counts


def corners(height: int, width: int) -> list[tuple[str, int, int]]:
    """(part, top, left) of every tile of rasters of this size."""
    block = width // BLOCKS
    tops = range(height % TILE // 2, height - TILE + 1, TILE)
    lefts = [(part, k * block + x) for k, part in enumerate(PARTS) for x in range(0, block - TILE + 1, TILE)]
    return [(part, top, left) for part, left in lefts for top in tops]


def _opened(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB") if path.name == COLOURS else image)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror or error}); "
            f"a folder with {COLOURS}, {ELEVATION} and {LAND} is meant."
        ) from error


def _named(latitude: float, longitude: float) -> str:
    north, east = round(latitude * 10), round(longitude * 10)
    return f"{'n' if north >= 0 else 's'}{abs(north):03d}_{'e' if east >= 0 else 'w'}{abs(east):04d}"


def latitude(name: str) -> float:
    """Degrees north of a tile's northern edge, by its name, which may be a path."""
    corner = name.rsplit("/", 1)[-1].partition("_")[0]
    return int(corner[1:]) / (10 if corner[0] == "n" else -10)


def _declaration(mean: float, std: float) -> str:
    return f"""\
# Tiles of {TILE} pixels: patches of 8, a label every 2 pixels.
[[modality]]
name = "image"
folder = "rgb"
channels = 3
patch = 8

[[modality]]
name = "elevation"
kind = "continuous"
channels = 1
patch = 8
mean = {mean:.1f}
std = {std:.1f}

# 0 ocean, 1 land, 2 lake
[[modality]]
name = "land"
kind = "labels"
channels = 3
patch = 4
stride = 2
embedding = 16
"""
