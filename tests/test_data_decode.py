"""Decoding: by content, upright, in the declared channels; what cannot be read says why and never warns."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.data import BrokenSample, decode

GRADIENT = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def encoded(picture: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    file.seek(0)
    return file


def npy(array: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return file


def png16(values: np.ndarray) -> io.BytesIO:
    """A 16-bit colour PNG, which Pillow cannot write; values uint16 [H, W, 3]."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + data)


def reason(file: io.BytesIO, channels: int = 3) -> str:
    with pytest.raises(BrokenSample) as raised:
        decode(file, channels)
    return raised.value.reason


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("BMP", {})])
def test_a_lossless_picture_keeps_its_bytes(kind, options):
    tensor = decode(encoded(Image.fromarray(GRADIENT), kind, **options))
    assert tensor.dtype == torch.uint8
    assert np.array_equal(tensor.permute(1, 2, 0), GRADIENT)


def test_the_first_frame_of_several_counts():
    frames = [Image.new("L", (4, 4), value) for value in (10, 200)]
    assert decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 1).unique().tolist() == [10]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize(("channels", "converted"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_every_mode_becomes_the_declared_channels_as_pillow_converts(mode, channels, converted):
    picture = Image.fromarray(GRADIENT).convert("RGB" if mode == "CMYK" else mode)
    picture = picture.convert("CMYK") if mode == "CMYK" else picture
    expected = np.array(picture.convert(converted)).reshape(6, 8, channels)
    assert np.array_equal(decode(encoded(picture, "TIFF"), channels).permute(1, 2, 0), expected)


def test_palette_transparency_and_a_corrupt_profile_raise_no_warning():
    palette = Image.fromarray(GRADIENT).convert("P")
    assert decode(encoded(palette, "PNG", transparency=bytes(range(100)))).shape == (3, 6, 8)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :8] = 255
    turns = {  # how a camera held that way stores the upright picture
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.fromarray(np.ascontiguousarray(turns[orientation])), "JPEG", quality=100, exif=exif)
    assert (decode(file).permute(1, 2, 0).int() - torch.from_numpy(upright).int()).abs().max() < 10


def test_damaged_exif_costs_the_orientation_not_the_picture():
    file = encoded(Image.fromarray(GRADIENT), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\1garbage")
    assert decode(file).shape == (3, 6, 8)


def test_sixteen_bits_are_kept_as_floats():
    values = np.arange(0, 6000, dtype=np.uint16).reshape(20, 100, 3) * 10
    expected = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)
    assert torch.equal(decode(png16(values)), expected)
    for kind in ("PNG", "TIFF"):
        grey = decode(encoded(Image.fromarray(values[..., 0]), kind), 3)
        assert grey.dtype == torch.float32
        assert torch.equal(grey, expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_layout_and_type(order):
    values = np.random.default_rng(0).integers(0, 256, (5, 6, 7), dtype=np.uint8)
    assert torch.equal(decode(npy(np.asarray(values, order=order)), 5), torch.from_numpy(values))
    assert torch.equal(decode(npy(np.asarray(values, order=order)), 7), torch.from_numpy(values).permute(2, 0, 1))
    assert torch.equal(decode(npy(values[0]), 1), torch.from_numpy(values[:1]))
    wide = values.astype(">u2") * 257
    assert torch.allclose(decode(npy(wide), 5), torch.from_numpy(values) / 255, atol=1e-7)
    for kind in ("<f2", ">f4", "<f8"):
        assert torch.equal(decode(npy((values / 256).astype(kind)), 5), torch.from_numpy(values) / 256)


def test_content_decides_not_the_extension(tmp_path: Path):
    path = tmp_path / "really_a_png.jpg"
    Image.fromarray(GRADIENT).save(path, "PNG")
    with open(path, "rb") as file:
        assert np.array_equal(decode(file).permute(1, 2, 0), GRADIENT)


class Trap:
    """Unpickling this would end the test run."""

    def __reduce__(self):
        return (SystemExit, ("unpickled",))


@pytest.mark.parametrize(
    ("file", "channels", "words"),
    [
        (io.BytesIO(), 3, "zero bytes"),
        (io.BytesIO(b"these are words, not a picture, whatever the name"), 3, "no picture"),
        (io.BytesIO(b"\x89PNG\r\n\x1a\n"), 3, "no picture"),
        (encoded(Image.fromarray(GRADIENT), "JPEG"), 5, "5 channels were declared"),
        (encoded(Image.fromarray(GRADIENT[..., 0].astype(np.int32)), "TIFF"), 3, "32-bit integer"),
        (encoded(Image.fromarray(GRADIENT[..., 0].astype(np.uint16)), "TIFF"), 4, "more than 8 bits"),
        (npy(np.zeros((4, 4, 2), np.uint8)), 3, "declared 3 channels"),
        (npy(np.zeros((4, 4), np.uint8)), 3, "declared 3 channels"),
        (npy(np.zeros((4, 0, 3), np.uint8)), 3, "without a single pixel"),
        (npy(np.zeros((4, 4, 3), np.int32)), 3, "type int32"),
        (npy(np.full((3, 4, 4), np.nan, np.float32)), 3, "not finite"),
        (npy(np.array([[Trap()]])), 1, "Python objects"),
        (io.BytesIO(npy(np.zeros((3, 9, 9), np.uint8)).getvalue()[:-5]), 3, "truncated"),
        (io.BytesIO(b"\x93NUMPY\x09\x00garbage and more of it"), 3, "cannot be decoded"),
    ],
)
def test_what_is_broken_says_why(file, channels, words):
    assert words in reason(file, channels)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_broken(kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind).getvalue()
    assert reason(io.BytesIO(data[: int(len(data) * share)]))


def test_a_truncated_16_bit_png_is_broken():
    values = np.random.default_rng(0).integers(0, 65536, (32, 32, 3), dtype=np.uint16)
    assert reason(io.BytesIO(png16(values).getvalue()[:3000]))


@pytest.mark.parametrize("excess", [1, 3])
def test_a_decompression_bomb_is_broken_not_a_warning(monkeypatch, excess):
    file = encoded(Image.new("L", (100, 100)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000 // excess - 1)
    assert "decompression bomb" in reason(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    file.seek(0)
    assert decode(file).shape == (3, 100, 100)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.8])
def test_a_flipped_byte_in_a_16_bit_png_breaks_the_sample_not_the_process(tmp_path: Path, place: float) -> None:
    path = tmp_path / "deep.png"
    values = np.random.default_rng(0).integers(0, 2**16, (64, 64), dtype=np.uint16)
    Image.fromarray(values).save(path)
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 0xFF
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(BrokenSample, match="cannot be decoded"):
        decode(file, 3)
