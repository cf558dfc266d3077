"""Which modalities of a model, and of aligned data, `mmssl embed` and `mmssl evaluate` read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmssl.commands.reading import Reading
from mmssl.data.rasters import Raster, declaration, raster_named, rasters_of
from mmssl.encoder import Encoder
from mmssl.errors import UserError, nearest
from mmssl.modality import AUDIO, IMAGE, TEXT, VIDEO

# What a folder holds that declares nothing.
_PLAIN = (IMAGE.name, VIDEO.name, AUDIO.name, TEXT.name)
# What pairs hold.
PAIR = {IMAGE.name, TEXT.name}


def asked_of(encoder: Encoder, data: Path, reading: Reading) -> tuple[Encoder, Reading]:
    """The encoder of those modalities alone that are to be read, and how: as aligned rasters where `modalities.toml`
    declares that the data are such, as pairs where pictures and texts are asked for together.

    Raises UserError where the data cannot hold what is to be read.
    """
    found, names = declaration(data), list(encoder.tokenizers)
    if found is not None and not reading.modalities:
        reading = replace(reading, modalities=(str(found),))
    if reading.modalities:
        if reading.frames:
            raise UserError(f"{data} holds aligned rasters, which are no videos: leave out --frames")
        wanted = [each.name for each in inputs_of(encoder, rasters_of(reading.modalities), reading.inputs)]
    else:
        wanted = list(reading.inputs) or [name for name in names if len(names) == 1 or name == IMAGE.name]
        if set(wanted) != PAIR and (len(wanted) != 1 or wanted[0] in {*names}.difference(_PLAIN)):
            raise UserError(
                f"{data} does not declare which modalities it holds, and the model reads {', '.join(names)}: write "
                "name=folder for each by --modalities, or choose one of them by --inputs"
            )
    return (encoder if wanted == names else encoder.only(*wanted)), reading


def inputs_of(encoder: Encoder, rasters: Sequence[Raster], given: Sequence[str], but: str = "") -> tuple[Raster, ...]:
    """The rasters that the encoder is to read: those `given` by name or folder, else all that it can, `but` one.

    Raises UserError for one that the data lack or the encoder does not read, and where none is left.
    """
    known = list(encoder.tokenizers)
    found = [raster_named(name, rasters) for name in given]
    if unread := [each.name for each in found if each.name not in known]:
        raise UserError(f"the model does not read {unread[0]!r}: {nearest(unread[0], known)}")
    found = found or [each for each in rasters if each.name in known and each.name != but]
    if not found:
        held = ", ".join(each.name for each in rasters)
        beside = f" beside {but}" if but else ""
        raise UserError(
            f"the model reads {', '.join(known)} and the data hold {held}: there is nothing to read{beside}"
        )
    return tuple(dict.fromkeys(found))


def pixels(encoder: Encoder, rasters: Sequence[Raster]) -> tuple[int, int]:
    """Height and width of the pictures that an encoder was made for. Raises UserError where the rasters' strides make
    them different ones."""
    sizes = {each.name: [side * each.stride for side in encoder.tokenizer(each.name).config.size] for each in rasters}
    height, width = next(iter(sizes.values()))
    if other := next((name for name, size in sizes.items() if size != [height, width]), None):
        of = " x ".join(map(str, sizes[other]))
        raise UserError(
            f"the model reads {next(iter(sizes))} of {height} x {width} pixels and {other} of {of}: declare the stride "
            "that it was trained with"
        )
    return height, width
