"""Decoding: each odd kind of picture has a defined result, and none takes unbounded memory."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tiny_images import encoded, picture
from trunkline.data import pictures
from trunkline.errors import DataError, TooLargeError
from trunkline.images import MAX_BYTES, ImageSource
from trunkline.preprocessing import Preprocessing

PLAIN = Preprocessing(height=16, width=16)


def png(
    width: int,
    height: int,
    bits: int = 8,
    color: int = 2,
    key: bytes = b"",
    *,
    pixels: bytes | None = None,
    interlaced: bool = False,
) -> bytes:
    """A PNG that states a size, and a transparent color if there is a key; without pixels, or with
    these bytes as its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    data = b"" if pixels is None else zlib.compress(pixels)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    if key:
        parts.insert(1, chunk(b"tRNS", key))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("bits", "color", "key"),
    [(2, 0, b"\0\1"), (4, 0, b"\0\5"), (16, 0, b"\3\xe8"), (16, 2, b"\1\1\2\2\3\3")],
)
def test_transparent_color_that_is_not_of_8_bits_is_refused(
    bits: int, color: int, key: bytes
) -> None:
    """Pillow would put other pixels on white, or none."""
    with pytest.raises(DataError, match="as transparent"):
        pictures.decode(png(2, 1, bits, color, key))


def test_decoder_prints_nothing_beside_the_error() -> None:
    count = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # the tag for samples per pixel
    tiff = encoded(picture(), "TIFF")
    assert count + b"\x03\x00" in tiff
    broken = tiff.replace(count + b"\x03\x00", count + b"\xff\x00")
    code = (
        "import sys\n"
        "from trunkline.data.pictures import decode\n"
        "from trunkline.errors import DataError\n"
        "try:\n    decode(sys.stdin.buffer.read())\n"
        "except DataError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=broken, capture_output=True)
    assert (done.stdout, done.stderr) == (b"refused\n", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_formats_give_red_green_and_blue(format: str) -> None:
    pixels = pictures.decode(encoded(picture(), format))
    assert (pixels.shape, pixels.dtype) == ((48, 40, 3), np.uint8)


def test_lossless_picture_is_decoded_exactly() -> None:
    image = picture()
    assert np.array_equal(pictures.decode(encoded(image)), np.asarray(image))


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (20_001, 1), (8_000, 8_000)])
def test_huge_size_in_the_header_is_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(TooLargeError, match="pixels"):
        pictures.decode(png(width, height))


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("TIFF", {"compression": "tiff_deflate"})]
)
def test_decompression_bomb_takes_no_memory(format: str, options: dict[str, str]) -> None:
    bomb = encoded(Image.new("1", (18_000, 18_000)), format, **options)
    assert len(bomb) < 1 << 20
    with pytest.raises(TooLargeError):
        pictures.decode(bomb)


def test_bomb_in_a_text_chunk_is_refused() -> None:
    data = zlib.compress(b"a" * (80 << 20))
    body = b"key\0\0" + data
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    plain = encoded(picture())
    end_of_header = 8 + 25
    with pytest.raises(DataError, match="damaged"):
        pictures.decode(plain[:end_of_header] + chunk + plain[end_of_header:])


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(TooLargeError, match="32 MiB"):
        pictures.decode(b"\0" * (MAX_BYTES + 1))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
def test_truncated_picture_is_refused(format: str) -> None:
    data = encoded(picture(width=200, height=200), format)
    with pytest.raises(DataError, match=r"damaged or truncated|can be decoded"):
        pictures.decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    "data",
    [
        b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
        b"%PDF-1.7",
        b"",
        b"text",
        b"8BPS",
        b"%PDF-1.7\n" + encoded(picture()),
        b"<svg/>" + encoded(picture(), "GIF"),
    ],
    ids=["svg", "pdf", "empty", "text", "psd", "pdf and png", "svg and gif"],
)
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="not a picture"):
        pictures.decode(data)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_is_refused(format: str) -> None:
    frames = [picture(seed) for seed in range(3)]
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="3 frames or pages"):
        pictures.decode(data)


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(format: str) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    color = pictures.decode(encoded(image, format))[0, 0].astype(int)
    assert abs(color - [255, 0, 0]).max() <= 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled(format: str) -> None:
    values = np.array([[0, 257, 32_896, 65_535]], dtype=np.uint16)
    pixels = pictures.decode(encoded(Image.fromarray(values), format))
    assert pixels[0].tolist() == [[0] * 3, [1] * 3, [128] * 3, [255] * 3]


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="color mode F"):
        pictures.decode(encoded(Image.new("F", (4, 4)), "TIFF"))


def test_transparency_is_put_on_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pictures.decode(encoded(image)).min() == 255


def test_palette_with_transparency_is_put_on_white() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 0, 255, 255, 255])
    assert pictures.decode(encoded(image, transparency=0)).min() == 255


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    pixels = pictures.decode(encoded(image, exif=exif))
    assert pixels.shape == (4, 2, 3)
    assert pixels[0, 1].tolist() == [255] * 3


def test_what_follows_the_picture_is_dropped() -> None:
    stream = io.BytesIO(encoded(picture()))
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("payload.py", "raise SystemExit")
    assert np.array_equal(pictures.decode(stream.getvalue()), np.asarray(picture()))


def corrupted() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        plain = np.frombuffer(encoded(picture(), format), dtype=np.uint8)
        for _ in range(60):
            data = plain.copy()
            places = rng.integers(0, min(len(data), 200), 4)
            data[places] = rng.integers(0, 256, 4)
            yield data.tobytes()


def test_random_damage_raises_no_other_error() -> None:
    for data in corrupted():
        try:
            pixels = pictures.decode(data)
        except (DataError, TooLargeError):
            continue
        assert pixels.ndim == 3


# -------------------------------------------------------------------------------- preparation


def test_squashed_to_the_size_of_the_base() -> None:
    assert pictures.prepare(np.asarray(picture()), PLAIN).shape == (16, 16, 3)


def test_center_is_cropped() -> None:
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 24:40] = 255
    cropped = Preprocessing(height=16, width=16, shortest_edge=32)
    assert pictures.prepare(pixels, cropped).min() == 255


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 900)])
def test_very_long_picture_takes_little_memory(shape: tuple[int, int]) -> None:
    cropped = Preprocessing(height=224, width=224, shortest_edge=256)
    assert pictures.prepare(np.zeros((*shape, 3), np.uint8), cropped).shape == (224, 224, 3)


def test_tensor_is_normalized() -> None:
    pixels = np.full((2, 16, 16, 3), 255, dtype=np.uint8)
    tensor = pictures.to_tensor(pixels, PLAIN)
    assert tensor.shape == (2, 3, 16, 16)
    assert float(tensor.min()) == float(tensor.max()) == 1.0


# ------------------------------------------------------------------------------------ sources


def test_source_reads_a_path_bytes_or_a_function(tmp_path: Path) -> None:
    data = encoded(picture())
    (tmp_path / "a.png").write_bytes(data)
    sources = (ImageSource(str(tmp_path / "a.png")), ImageSource(data), ImageSource(lambda: data))
    assert [source.read() for source in sources] == [data] * 3
    assert sources[0].name == "a.png"


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no file"):
        ImageSource(tmp_path / "none.png").read()


def test_function_that_gives_no_bytes_is_an_error() -> None:
    with pytest.raises(DataError, match="not bytes"):
        ImageSource(lambda: "text").read()  # type: ignore[arg-type,return-value]


def test_large_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.png").open("wb") as stream:
        stream.truncate(MAX_BYTES * 4)
    with pytest.raises(TooLargeError, match="32 MiB"):
        ImageSource(tmp_path / "large.png").read()


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_png_that_ends_before_its_last_row_is_refused(rows: int) -> None:
    """Pillow decodes it, with black pixels instead of the missing ones."""
    row = b"\0" + b"\xff" * 4
    assert pictures.decode(png(4, 6, color=0, pixels=row * 6)).min() == 255
    with pytest.raises(DataError, match=r"last rows are missing|truncated"):
        pictures.decode(png(4, 6, color=0, pixels=row * rows))


@given(
    width=st.integers(1, 20), height=st.integers(1, 20), missing=st.integers(0, 1),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]),
)  # fmt: skip
def test_complete_png_of_any_kind_is_decoded(
    width: int, height: int, missing: int, mode: str
) -> None:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, "PNG")
    assert pictures.decode(stream.getvalue()).shape == (height, width, 3)
    length = sum(
        len(range(top, height, down)) * (1 + len(range(left, width, across)))
        for left, top, across, down in ADAM7
        if width > left
    )
    data = png(width, height, color=0, pixels=b"\0" * (length - missing), interlaced=True)
    if missing:
        with pytest.raises(DataError):
            pictures.decode(data)
    else:
        assert pictures.decode(data).shape == (height, width, 3)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip
