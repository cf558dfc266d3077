"""Decoding: by content, upright, in the declared channels; what cannot be read says why and never warns."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmssl.data import BrokenSample, EvalView, FolderSource, Ledger, Loader, decode, evaluation_batches, subset
from mmssl.data.decode import colour, decode_over
from mmssl.errors import UserError

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


def png16(values: np.ndarray, hole: bytes = b"") -> io.BytesIO:
    """A 16-bit PNG, which Pillow cannot write with colour; values uint16 [H, W, 3], with alpha 4, grey with alpha 2.

    `hole` is the colour that stands for nothing (the chunk tRNS).
    """
    height, width, channels = values.shape
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    data = (
        chunk(b"IHDR", header)
        + (chunk(b"tRNS", hole) if hole else b"")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
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


def tiff(values: bytes, width: int, height: int, bits: int, photometric: int) -> io.BytesIO:
    """An uncompressed grey TIFF, little-endian."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: height, 279: len(values)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(values))
    return io.BytesIO(head + values + struct.pack("<H", len(tags)) + entries + bytes(4))


def twelve_bits(values: np.ndarray) -> bytes:
    first, second = values.reshape(-1, 2).T.astype(int)
    return np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1).astype(np.uint8).tobytes()


def test_black_is_0_and_white_1_however_a_grey_tiff_stores_them():
    ramp = np.linspace(0, 1, 24).reshape(3, 8)
    for bits, stored in ((8, np.uint8), (16, "<u2")):
        most = 2**bits - 1
        for photometric, values in ((1, ramp), (0, 1 - ramp)):
            found = decode(tiff((values * most).round().astype(stored).tobytes(), 8, 3, bits, photometric), 1)
            found = found / 255 if bits == 8 else found
            assert torch.allclose(found[0], torch.from_numpy(ramp).float(), atol=1 / most), (bits, photometric)
    twelve = decode(tiff(twelve_bits((ramp * 4095).round()), 8, 3, 12, 1), 3)
    assert torch.allclose(twelve[0], torch.from_numpy(ramp).float(), atol=1 / 4095)
    assert twelve.shape == (3, 3, 8)


@pytest.mark.parametrize("most", [4095, 65535])
def test_a_grey_portable_map_of_more_than_8_bits_is_scaled(most):
    values = np.array([[0, most // 2, most]])
    found = decode(io.BytesIO(b"P5 3 1 %d\n" % most + values.astype(">u2").tobytes()), 1)
    assert torch.allclose(found, torch.tensor([[[0.0, 0.5, 1.0]]]), atol=1e-3)


GLASS = Image.fromarray(np.stack([np.full((4, 6), v, np.uint8) for v in (250, 20, 90)] + [np.repeat(
    np.array([[0, 0, 51, 51, 255, 255]], np.uint8), 4, 0)], 2))  # fmt: skip


@pytest.mark.parametrize(
    "file",
    [
        encoded(GLASS, "PNG"),
        encoded(GLASS, "TIFF"),
        encoded(GLASS, "WEBP", lossless=True, exact=True),
        encoded(GLASS, "TGA"),
        encoded(GLASS, "JPEG2000"),
        encoded(GLASS.quantize(16), "PNG"),
        png16(np.array(GLASS).astype(np.uint16) * 257),
    ],
    ids=["png", "tiff", "webp", "tga", "jp2", "palette", "png16"],
)
def test_transparent_parts_show_the_background(file):
    """Fully, to four fifths and not at all transparent columns of one colour."""
    for background in ((255, 255, 255), (0, 0, 0), (10, 200, 30)):
        for channels in (1, 3):
            file.seek(0)
            found, blended = decode_over(file, channels, background)
            found = found * 255 if found.is_floating_point() else found.float()
            front, behind = torch.tensor([250.0, 20.0, 90.0]), torch.tensor(background).float()
            if channels == 1:
                weights = torch.tensor([0.299, 0.587, 0.114])
                front, behind = (front @ weights)[None], (behind @ weights)[None]
            expected = torch.stack([behind, 0.2 * front + 0.8 * behind, front], 1)
            assert (found[:, 1, ::2] - expected).abs().max() < 1.6
            assert blended
    file.seek(0)
    alpha = decode(file, 4)[3]
    assert (alpha * 255 if alpha.is_floating_point() else alpha).unique().tolist() == pytest.approx([0, 51, 255])


@pytest.mark.parametrize(
    "file",
    [
        encoded(GLASS.convert("LA"), "PNG"),
        encoded(GLASS.convert("LA"), "TIFF"),
        png16(np.array(GLASS.convert("LA")).astype(np.uint16) * 257),
        encoded(Image.new("L", (6, 4), 80), "PNG", transparency=80),
        encoded(Image.new("RGB", (6, 4), (80, 81, 82)), "PNG", transparency=(80, 81, 82)),
        encoded(Image.new("L", (6, 4), 80).convert("P"), "PNG", transparency=80),
        encoded(Image.new("L", (6, 4), 80).convert("P"), "GIF", transparency=80),
        png16(np.full((4, 6, 3), 800, np.uint16), struct.pack(">HHH", 800, 800, 800)),
    ],
    ids=["la", "la-tiff", "la16", "grey-hole", "colour-hole", "palette-hole", "gif", "hole16"],
)
def test_grey_and_single_transparent_colours_show_it_too(file):
    for channels in (1, 3):
        file.seek(0)
        found, blended = decode_over(file, channels, (255, 255, 255))
        assert blended
        assert found[:, :, 0].float().unique().item() in (1.0, 255.0)
    file.seek(0)
    assert (decode(file, 4)[3, :, 0] == 0).all()


def test_alpha_that_hides_nothing_changes_nothing():
    opaque = Image.fromarray(GRADIENT)
    opaque.putalpha(255)
    found, blended = decode_over(encoded(opaque, "PNG"), 3, (1, 2, 3))
    assert np.array_equal(found.permute(1, 2, 0), GRADIENT)
    assert not blended


def test_colours_are_named_or_numbered():
    assert [colour(text) for text in ("white", "Black", "grey", "#0a141e", "10, 20,30")] == [
        *((255, 255, 255), (0, 0, 0), (128, 128, 128), (10, 20, 30), (10, 20, 30))
    ]
    for text in ("", "whyte", "1,2", "1,2,300", "-1,2,3", "#12345678", "a,b,c"):
        with pytest.raises(UserError, match=r"is no colour: give white, black"):
            colour(text)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_where_the_background_shows_are_counted_once_each(tmp_path, workers):
    for number in range(6):
        (GLASS if number in (1, 4, 5) else GLASS.convert("RGB")).save(tmp_path / f"{number}.png")
    source = subset(FolderSource(tmp_path, background="#00ff00"), [5, 0, 1])
    loader = Loader(source, EvalView(4), batch_size=6, workers=workers)
    batches = list(loader.batches(0, 4))
    assert loader.ledger.blended == {0, 2}
    assert batches[0]["image"][batches[0]["sample_id"] == 0][0, :, 0, 0].tolist()[1] > 200
    ledger = Ledger()
    list(evaluation_batches(source, EvalView(4), batch_size=2, workers=workers, ledger=ledger))
    assert ledger.blended == {0, 2}
