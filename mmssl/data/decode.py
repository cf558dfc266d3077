"""One file's bytes to one raw picture. The content decides, never the extension; what cannot be read says why."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from mmssl.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[int, int, int]
# What Pillow decodes by itself, the common first. Left out is what starts other programs (EPS, WMF), what only names a
# format (BUFR, GRIB, HDF5, MPEG), and what holds measurements of an unknown range (FITS, SPIDER). TGA, which begins
# with no signature, comes last.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "JPEG2000", "AVIF", "PPM", "DIB", "ICO", "ICNS", "PCX", "DCX"),
    *("SGI", "QOI", "DDS", "PSD", "SUN", "IM", "MSP", "XBM", "XPM", "TGA"),
)
# The endings that Pillow knows these formats by.
ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".jfif", ".jpe", ".mpo", ".apng", ".dib"),
    *(".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".avif", ".avifs", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    *(".ico", ".icns", ".pcx", ".dcx", ".sgi", ".rgb", ".rgba", ".bw", ".qoi", ".dds", ".psd", ".ras", ".im", ".msp"),
    *(".xbm", ".xpm", ".tga", ".icb", ".vda", ".vst"),
)
WHITE: Colour = (255, 255, 255)
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


def colour(text: str) -> Colour:
    """Red, green and blue, 0-255, of a CSS name (white, black, grey), `#rrggbb` or `R,G,B`; UserError for others."""
    from PIL import ImageColor

    numbers = text.replace(" ", "").split(",")
    try:
        found = tuple(map(int, numbers)) if len(numbers) > 1 else ImageColor.getrgb(text)
    except ValueError:
        found = ()
    if len(found) != 3 or not all(0 <= value <= 255 for value in found):
        raise UserError(f"background {text!r} is no colour: give white, black, grey, #rrggbb or R,G,B of 0 to 255.")
    return found


def decode(
    file: BufferedReader | BytesIO, channels: int = 3, background: Colour = WHITE
) -> UInt8[Tensor, "channels height width"] | Float[Tensor, "c h w"]:
    """A picture file of one of the `FORMATS` or a .npy array as raw values, uint8 0-255 or float32.

    Pictures come in Pillow's `convert` of the declared number of channels (1 grey, 3 RGB, 4 RGBA): what users of
    torchvision's ImageFolder get, but that transparent parts, whose colours nobody was meant to see, show `background`.
    With 4 channels transparency is kept as it is. EXIF orientation is applied; the first frame of several counts.
    16-bit PNG and grey pictures of 9 to 16 bits become float32 in 0-1, black 0 and white 1 whatever a TIFF stores
    (Pillow reads 16-bit colour of other formats with 8 bits). Arrays are [H, W] (one channel), [C, H, W] or [H, W, C]
    with the declared channels, in this order of preference: uint8 as it is, uint16 divided by 65535, floating point as
    it is (by convention 0-1) in float32.

    uint8 colour pictures are returned with the channel fastest in memory, as they were decoded: views resample that
    layout fastest. Raises BrokenSample for everything that is not such a picture, is cut short, or has more pixels
    than `PIL.Image.MAX_IMAGE_PIXELS`. No warning of the readers gets out.
    """
    return decode_over(file, channels, background)[0]


def decode_over(file: BufferedReader | BytesIO, channels: int, background: Colour) -> tuple[Tensor, bool]:
    """`decode`, and whether the background shows anywhere."""
    values, blended = _decoded(file, channels, background, measured=False)
    if values.is_floating_point() and not values.isfinite().all():
        raise BrokenSample("holds values that are not finite")
    return values, blended


def decode_raster(
    file: BufferedReader | BytesIO, channels: int
) -> UInt8[Tensor, "channels height width"] | Float[Tensor, "c h w"]:
    """`decode` of what was measured: pixels that are not there are NaN, and signed integers stand for themselves, as
    float32 (metres in a TIFF or .npy of int16). Raises BrokenSample, also where every pixel is NaN."""
    values = _decoded(file, channels, WHITE, measured=True)[0]
    if not values.is_floating_point():
        return values
    if values.isinf().any():
        raise BrokenSample("holds values that are infinite; mark pixels that are not there by NaN")
    if values.isnan().all():
        raise BrokenSample("has no pixel that is there, all are NaN; remove the file, and the sample goes without")
    return values


def decode_labels(file: BufferedReader | BytesIO) -> Int64[Tensor, "1 height width"]:
    """A map of class numbers: a palette picture (its indices, never its colours), a grey one of 1 to 32 bits, or a .npy
    array of integers, [H, W] or with one channel. Raises BrokenSample for all else."""
    head = first_bytes(file, 26)
    with _reasons():
        if head.startswith(_NPY):
            array = _load(file)
            array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1) if array.shape[-1] == 1 else array
        else:
            image = _open(file)
            _turn(image)
            if image.mode not in ("1", "L", "P", "I") and not image.mode.startswith("I;16"):
                raise BrokenSample(
                    f"has colours or fractions (mode {image.mode}) where class numbers are meant; store a palette or "
                    "grey PNG, or .npy"
                )
            array = np.array(image)[None]
    if array.ndim != 3 or len(array) != 1 or array.dtype.kind not in "bui":
        raise BrokenSample(f"has shape {array.shape} of {array.dtype}, where class numbers are meant: integers [H, W]")
    return torch.from_numpy(array.astype(np.int64))


def _decoded(file: BufferedReader | BytesIO, channels: int, background: Colour, measured: bool) -> tuple[Tensor, bool]:
    head = first_bytes(file, 26)
    with _reasons():
        if head.startswith(_NPY):
            return _read_array(file, channels, measured), False
        return _read_picture(file, head, channels, background, measured)


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Whatever readers raise becomes BrokenSample, and no warning of theirs gets out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except (BrokenSample, MemoryError):
            raise
        except Exception as error:  # on damaged files Pillow and its plugins raise nearly every type there is
            raise BrokenSample(f"cannot be decoded ({str(error) or type(error).__name__})") from error


def _open(file: BufferedReader | BytesIO) -> Image.Image:
    """A picture, its pixels not yet read."""
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        image: Image.Image = Image.open(file, formats=[kind for kind in FORMATS if kind in Image.OPEN])
    except UnidentifiedImageError:
        raise BrokenSample("is no picture: its content is of no kind that Pillow reads, and not .npy") from None
    except Image.DecompressionBombError:
        raise BrokenSample("has so many pixels that it may be a decompression bomb") from None
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise BrokenSample(
            f"has {image.width} x {image.height} pixels, which may be a decompression bomb "
            f"(PIL.Image.MAX_IMAGE_PIXELS is {Image.MAX_IMAGE_PIXELS})"
        )
    return image


def _turn(image: Image.Image) -> None:
    """Turns a picture upright, as its EXIF tells, after all its pixels were read."""
    from PIL import ImageOps

    image.load()
    with contextlib.suppress(Exception):  # damaged metadata raise what they like; the pixels were read whole above
        ImageOps.exif_transpose(image, in_place=True)


def _read_picture(
    file: BufferedReader | BytesIO, head: bytes, channels: int, background: Colour, measured: bool
) -> tuple[Tensor, bool]:
    image = _open(file)
    if channels not in MODES:
        raise BrokenSample(f"is a picture, but {channels} channels were declared, which only .npy files can hold")
    kind, tags = image.format, getattr(image, "tag_v2", {})
    image.load()
    if head.startswith(_PNG) and head[24] == 16:  # after Pillow has read it whole: a damaged one crashes torchvision's
        return _read_png16(file, image, channels, background)
    _turn(image)
    if image.mode.startswith("I;16") or image.mode == "F" or (image.mode, kind) == ("I", "PPM"):
        return _from_grey(_black_to_white(np.array(image), tags), channels), False
    if image.mode == "I":
        if measured:
            return _from_grey(np.array(image).astype(np.float32), channels), False
        raise BrokenSample("has 32-bit integer pixels, whose range is not known; store it as uint8, uint16 or float")
    image, blended = (image, False) if channels == 4 else _over(image, background)
    mode = MODES[channels]
    values = torch.from_numpy(np.array(image if image.mode == mode else image.convert(mode)))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1), blended


def _over(image: Image.Image, background: Colour) -> tuple[Image.Image, bool]:
    """The picture on the background, and whether that shows: transparency that is nowhere used costs one look."""
    from PIL import Image

    if not image.has_transparency_data:
        return image, False
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return image, False
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (*background, 255)), rgba), True


_PHOTOMETRIC, _BITS = 262, 258


def _black_to_white(values: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """Grey of more than 8 bits as uint16 0-65535 or as floats, black the least; `tags` are a TIFF's, or none.

    Pillow gives what the file holds: of 12 bits 0 to 4095, and white as 0 where the TIFF says that white is 0.
    """
    whole = 1 if values.dtype.kind == "f" else 2 ** tags.get(_BITS, (16,))[0] - 1
    values = whole - values if tags.get(_PHOTOMETRIC) == 0 else values
    return values.astype(np.uint16) if whole == 65535 else values / np.float32(whole)


def _read_png16(
    file: BufferedReader | BytesIO, image: Image.Image, channels: int, background: Colour
) -> tuple[Tensor, bool]:
    # Pillow reduces 16-bit colour to 8 bits; torchvision's reader keeps them.
    from torchvision.io import ImageReadMode, decode_png

    modes = {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB, 4: ImageReadMode.RGB_ALPHA}
    file.seek(0)
    data = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)

    def read(channels: int) -> Tensor:
        return decode_png(data, modes[channels], apply_exif_orientation=True).to(torch.float32)

    values = read(channels) / 65535
    if not image.has_transparency_data:
        return values, False
    hole = image.info.get("transparency")  # a colour that stands for "nothing", which torchvision does not look at
    alpha = read(4)[3:] / 65535 if hole is None else (read(3) != torch.tensor(hole).view(-1, 1, 1)).any(0, True).float()
    if channels == 4:
        return torch.cat([values[:3], alpha]), False
    if alpha.min() == 1:
        return values, False
    behind = torch.tensor(background) / 255
    behind = behind if channels == 3 else behind @ torch.tensor([[0.299], [0.587], [0.114]])
    return values * alpha + behind.view(-1, 1, 1) * (1 - alpha), True


def _from_grey(values: np.ndarray, channels: int) -> Tensor:
    if channels == 4:
        raise BrokenSample("is grey with more than 8 bits, which cannot become 4 channels; declare 1 or 3")
    return _to_tensor(values[None]).expand(channels, -1, -1)


def _load(file: BufferedReader | BytesIO) -> np.ndarray:
    """The plain numbers of a .npy file."""
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
    return array


def _read_array(file: BufferedReader | BytesIO, channels: int, measured: bool) -> Tensor:
    array = _load(file)
    array = array.astype(np.float32) if measured and array.dtype.kind == "i" else array
    shape = array.shape
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
    return torch.from_numpy(array.astype(np.float32))
