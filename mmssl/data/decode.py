"""One file's bytes to one raw picture. The content decides, never the extension; what cannot be read says why."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from io import BufferedReader, BytesIO
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_NPY = b"\x93NUMPY"
_PNG = b"\x89PNG\r\n\x1a\n"


class BrokenSample(Exception):
    """A sample that cannot be read; `reason` is a phrase that follows the sample's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A sample's file, open for reading; whatever the operating system refuses then raises BrokenSample."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise BrokenSample(f"cannot be opened ({error.strerror or type(error).__name__})") from error


def first_bytes(file: BufferedReader | BytesIO, count: int) -> bytes:
    """How a file begins, the position left at its start; raises BrokenSample when it is empty."""
    head = file.read(count)
    file.seek(0)
    if not head:
        raise BrokenSample("is empty (zero bytes)")
    return head


def decode(
    file: BufferedReader | BytesIO, channels: int = 3
) -> UInt8[Tensor, "channels height width"] | Float[Tensor, "c h w"]:
    """A picture file (JPEG, PNG, WebP, TIFF, BMP, GIF) or a .npy array as raw values, uint8 0-255 or float32.

    Pictures come in Pillow's `convert` of the declared number of channels (1 grey, 3 RGB, 4 RGBA): what users of
    torchvision's ImageFolder get, so transparency is dropped and not blended. EXIF orientation is applied; the first
    frame of several counts. 16-bit PNG and 16-bit grey TIFF become float32 in 0-1 (Pillow reads 16-bit colour TIFF
    with 8 bits). Arrays are [H, W] (one channel), [C, H, W] or [H, W, C] with the declared channels, in this order of
    preference: uint8 as it is, uint16 divided by 65535, floating point as it is (by convention 0-1) in float32.

    uint8 colour pictures are returned with the channel fastest in memory, as they were decoded: views resample that
    layout fastest. Raises BrokenSample for everything that is not such a picture, is cut short, or has more pixels
    than `PIL.Image.MAX_IMAGE_PIXELS`. No warning of the readers gets out.
    """
    head = first_bytes(file, 26)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _read_array(file, channels) if head.startswith(_NPY) else _read_picture(file, head, channels)
        except (BrokenSample, MemoryError):
            raise
        except Exception as error:  # on damaged files Pillow and its plugins raise nearly every type there is
            raise BrokenSample(f"cannot be decoded ({str(error) or type(error).__name__})") from error


def _read_picture(file: BufferedReader | BytesIO, head: bytes, channels: int) -> Tensor:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise BrokenSample(f"is no picture: its content is none of {', '.join(FORMATS)} or .npy") from None
    except Image.DecompressionBombError:
        raise BrokenSample("has so many pixels that it may be a decompression bomb") from None
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise BrokenSample(
            f"has {image.width} x {image.height} pixels, which may be a decompression bomb "
            f"(PIL.Image.MAX_IMAGE_PIXELS is {Image.MAX_IMAGE_PIXELS})"
        )
    if channels not in MODES:
        raise BrokenSample(f"is a picture, but {channels} channels were declared, which only .npy files can hold")
    image.load()
    if head.startswith(_PNG) and head[24] == 16:  # after Pillow has read it whole: a damaged one crashes torchvision's
        return _read_png16(file, channels)
    with contextlib.suppress(Exception):  # damaged metadata raise what they like; the pixels were read whole above
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or image.mode == "F":
        return _from_grey(np.array(image), channels)
    if image.mode == "I":
        raise BrokenSample("has 32-bit integer pixels, whose range is not known; store it as uint8, uint16 or float")
    mode = MODES[channels]
    values = torch.from_numpy(np.array(image if image.mode == mode else image.convert(mode)))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _read_png16(file: BufferedReader | BytesIO, channels: int) -> Tensor:
    # Pillow reduces 16-bit colour to 8 bits; torchvision's reader keeps them.
    from torchvision.io import ImageReadMode, decode_png

    modes = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB, 4: ImageReadMode.RGB_ALPHA}
    file.seek(0)
    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    return decode_png(data, modes[channels], apply_exif_orientation=True).to(torch.float32) / 65535


def _from_grey(values: np.ndarray, channels: int) -> Tensor:
    if channels == 4:
        raise BrokenSample("is grey with more than 8 bits, which cannot become 4 channels; declare 1 or 3")
    return _to_tensor(values[None]).expand(channels, -1, -1)


def _read_array(file: BufferedReader | BytesIO, channels: int) -> Tensor:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise BrokenSample("holds Python objects, which are never unpickled; store plain numbers")
    data, needed = file.read(), math.prod(shape) * dtype.itemsize
    if len(data) < needed:
        raise BrokenSample(f"is truncated: {len(data)} of {needed} bytes of values")
    array = np.frombuffer(data[:needed], dtype).reshape(shape, order="F" if fortran else "C")
    if array.size == 0:
        raise BrokenSample(f"has shape {shape}, without a single pixel")
    if array.ndim == 2 and channels == 1:
        return _to_tensor(array[None])
    if array.ndim == 3 and channels in (shape[0], shape[2]):
        return _to_tensor(array if shape[0] == channels else array.transpose(2, 0, 1))
    raise BrokenSample(f"has shape {shape}, which is not [H, W, C] or [C, H, W] with the declared {channels} channels")


def _to_tensor(array: np.ndarray) -> Tensor:
    if array.dtype == np.uint8:
        return torch.from_numpy(np.array(array))
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return torch.from_numpy(array.astype(np.float32) / np.float32(65535))
    if array.dtype.kind != "f":
        raise BrokenSample(f"has values of type {array.dtype}; uint8, uint16 and floating point can be read")
    values = torch.from_numpy(array.astype(np.float32))
    if not values.isfinite().all():
        raise BrokenSample("holds values that are not finite")
    return values
