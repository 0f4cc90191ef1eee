"""DICOM: gray values as the header says, no tag leaves the file, and odd files are refused."""

from __future__ import annotations

import io
import logging
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from cli_runner import invoke
from image_workbench import opened_images, shapes_recipe, tiny_resnet
from tiny_images import encoded, picture
from trunkline.contracts import DatasetSpec, Row
from trunkline.data.check import check_dataset
from trunkline.data.pictures import decode, decode_file
from trunkline.data.prepare import default_recipe
from trunkline.errors import DataError, TooLargeError, TrunklineError, UsageError

__all__ = ["tiny_resnet"]

PATIENT = "Doe^Jane^SECRET"


def dicom(
    pixels: np.ndarray,
    syntax: str = ExplicitVRLittleEndian,
    preamble: bytes = b"\0" * 128,
    **tags: Any,
) -> bytes:
    """A DICOM file of 12-bit gray, 16 bits of it allocated, or of 8-bit colors."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=preamble)
    dataset.PatientName, dataset.PatientID = PATIENT, "SECRET-7"
    colored = pixels.ndim == 3
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if colored else 1
    dataset.PhotometricInterpretation = "RGB" if colored else "MONOCHROME2"
    dataset.BitsAllocated = 8 if colored else 16
    dataset.BitsStored = 8 if colored else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    if colored:
        dataset.PlanarConfiguration = 0
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def gray(*values: int) -> np.ndarray:
    return np.array([values], dtype=np.uint16)


def shown(data: bytes) -> list[int]:
    """The first channel of the first row."""
    pixels = decode(data)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    return pixels[0, :, 0].tolist()


def test_least_is_black_and_largest_white_without_a_window() -> None:
    assert shown(dicom(gray(100, 200, 300))) == [0, 128, 255]


def test_window_of_the_header() -> None:
    data = dicom(gray(0, 1000, 2000, 3000, 4095), WindowCenter=2000, WindowWidth=2000)
    values = shown(data)
    assert (values[0], values[1], values[3], values[4]) == (0, 0, 255, 255)
    assert abs(values[2] - 128) <= 1


def test_picture_inside_of_the_window_keeps_its_contrast() -> None:
    values = shown(dicom(gray(1900, 2100), WindowCenter=2000, WindowWidth=2000))
    assert 110 < values[0] < 120 < 136 < values[1] < 146


def test_slope_and_intercept_come_before_the_window() -> None:
    # Hounsfield units: 1024 is 0, and the window is from -100 to 100
    data = dicom(
        gray(0, 924, 1024, 1124, 4000), RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0,
        WindowWidth=200,
    )  # fmt: skip
    values = shown(data)
    assert (values[0], values[1], values[3], values[4]) == (0, 0, 255, 255)
    assert abs(values[2] - 128) <= 1


def test_first_of_several_windows_counts() -> None:
    one = dicom(gray(0, 500, 4000), WindowCenter=500, WindowWidth=400)
    several = dicom(gray(0, 500, 4000), WindowCenter=[500, 3000], WindowWidth=[400, 100])
    assert shown(one) == shown(several)


def test_lookup_table_of_the_header() -> None:
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 8]
    table.add_new("LUTData", "US", [0, 10, 200, 255])
    data = dicom(gray(0, 1, 2, 3, 4), VOILUTSequence=[table])
    assert shown(data) == [0, 10, 200, 255, 255]


def test_monochrome1_is_inverted() -> None:
    data = dicom(gray(100, 200, 300), PhotometricInterpretation="MONOCHROME1")
    assert shown(data) == [255, 127, 0]


def test_signed_values() -> None:
    values = np.array([[-1000, 0, 1000]], dtype=np.int16)
    assert shown(dicom(values, PixelRepresentation=1, BitsStored=16, HighBit=15)) == [0, 128, 255]


def test_picture_of_one_value() -> None:
    assert set(shown(dicom(gray(7, 7, 7)))) == {0}


def test_colors() -> None:
    pixels = np.asarray(picture())
    assert np.array_equal(decode(dicom(pixels)), pixels)


def test_run_length_encoding() -> None:
    pixels = np.asarray(picture(mode="L")).astype(np.uint16) * 16
    plain = pydicom.dcmread(io.BytesIO(dicom(pixels)))
    plain.compress(RLELossless)
    stream = io.BytesIO()
    plain.save_as(stream, enforce_file_format=True)
    assert np.array_equal(decode(stream.getvalue()), decode(dicom(pixels)))


def framed(jpeg: bytes, **tags: Any) -> bytes:
    """A DICOM file with a JPEG in it."""
    from pydicom.encaps import encapsulate

    pixels = np.zeros((48, 40), dtype=np.uint16)
    values = {
        "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelData": encapsulate([jpeg]), **tags
    }  # fmt: skip
    return dicom(pixels, JPEGBaseline8Bit, **values)


def test_jpeg_inside() -> None:
    jpeg = encoded(picture(mode="L"), "JPEG", quality=95)
    plain = decode(jpeg).astype(float)
    scaled = (plain - plain.min()) / np.ptp(plain) * 255
    assert abs(decode(framed(jpeg)) - scaled).max() <= 1


def test_file_states_its_colors() -> None:
    assert decode_file(dicom(gray(1, 2))).mode == "MONOCHROME2"


# -------------------------------------------------------------------------------------- refused


def test_several_frames_are_refused() -> None:
    pixels = np.zeros((4, 4), dtype=np.uint16)
    data = dicom(pixels, NumberOfFrames=3, PixelData=pixels.tobytes() * 3)
    with pytest.raises(DataError, match="3 frames or pages"):
        decode(data)


@pytest.mark.parametrize(("rows", "columns"), [(65_535, 65_535), (1, 20_001), (8_000, 8_000)])
def test_huge_size_in_the_header_takes_no_memory(rows: int, columns: int) -> None:
    with pytest.raises(TooLargeError, match="pixels"):
        decode(dicom(gray(1, 2), Rows=rows, Columns=columns))


def test_jpeg_that_is_larger_than_its_header_is_refused() -> None:
    with pytest.raises(DataError, match="another size"):
        decode(framed(encoded(picture(width=4000, height=4000, mode="L"), "JPEG")))


@pytest.mark.parametrize("repeated", [False, True])
def test_run_length_bomb_is_refused_before_it_is_expanded(repeated: bool) -> None:
    """Two bytes stand for 128; a frame may also name one segment several times."""
    segment = b"\x81\x00" * 100_000
    starts = [64, 64] if repeated else [64, 64 + 4]
    header = np.array([2, *starts, *([0] * 13)], dtype="<u4").tobytes()
    frame = header + (b"" if repeated else b"\x81\x00" * 2) + segment
    data = dicom(np.zeros((8, 8), np.uint16))
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    with pytest.raises(DataError, match="another size than its header states"):
        decode(stream.getvalue())


def test_deflated_file_is_refused_before_it_is_inflated() -> None:
    plain = dicom(gray(1, 2), DeflatedExplicitVRLittleEndian)
    header = plain[: plain.index(DeflatedExplicitVRLittleEndian.encode()) + 22]
    bomb = header + zlib.compress(b"\0" * (64 << 20))[2:]
    for data in (plain, bomb):
        with pytest.raises(DataError, match=r"compression is not read \(Deflated"):
            decode(data)


def test_other_compressions_are_refused_by_name() -> None:
    data = framed(b"\xff\xd8").replace(
        JPEGBaseline8Bit.encode() + b"\0" * (len(JPEGBaseline8Bit) % 2), JPEGLSLossless.encode()
    )
    with pytest.raises(DataError, match=r"compression is not read \(JPEG-LS Lossless"):
        decode(data)


def test_file_without_a_picture_is_refused() -> None:
    dataset = pydicom.dcmread(io.BytesIO(dicom(gray(1, 2))))
    del dataset.PixelData
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    with pytest.raises(DataError, match="without a picture"):
        decode(stream.getvalue())


def test_palette_is_refused() -> None:
    with pytest.raises(DataError, match="colors are not read"):
        decode(dicom(gray(1, 2), PhotometricInterpretation="PALETTE COLOR"))


def test_file_that_is_also_a_tiff_is_read_as_dicom() -> None:
    tiff = encoded(picture(width=2, height=1), "TIFF")[:128].ljust(128, b"\0")
    assert shown(dicom(gray(1, 2, 3), preamble=tiff)) == [0, 128, 255]


def damaged() -> list[bytes]:
    plain = np.frombuffer(dicom(gray(*range(200)), WindowCenter=3, WindowWidth=9), dtype=np.uint8)
    rng = np.random.default_rng(0)
    files = [plain[:length].tobytes() for length in range(132, len(plain), 40)]
    for _ in range(200):
        data = plain.copy()
        places = rng.integers(132, len(data), 6)
        data[places] = rng.integers(0, 256, 6)
        files.append(data.tobytes())
    return files


def test_damage_raises_no_other_error_and_names_no_patient(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level(logging.DEBUG)
    messages: list[TrunklineError] = []
    for data in damaged():
        try:
            decode(data)
        except (DataError, TooLargeError) as error:
            messages.append(error)
    assert len(messages) > 20
    assert not [error for error in messages if "SECRET" in error.message]
    assert all(error.__suppress_context__ or error.__context__ is None for error in messages)
    assert "SECRET" not in caplog.text
    assert not [one for one in recwarn if "SECRET" in str(one.message)]


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UsageError, match="needs the package pydicom") as caught:
        decode(dicom(gray(1, 2)), "scan.dcm")
    assert "trunkline[dicom]" in str(caught.value.hint)


# --------------------------------------------------------------------------------- complete files


def scans(folder: Path, count: int = 12) -> Path:
    for number in range(2 * count):
        file = folder / ("normal", "opaque")[number % 2] / f"{number}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(picture(number, 40, 48, "L")).astype(np.uint16) * 16
        file.write_bytes(dicom(pixels))
    return folder


def test_no_tag_is_stored_anywhere(tmp_path: Path, tiny_resnet: Path) -> None:
    folder = scans(tmp_path / "scans")
    workspace = tmp_path / "workspace"
    for platform in opened_images(workspace, tiny_resnet):
        result = platform.train(shapes_recipe(folder, max_steps=1))
        assert result.evaluation_report.rows > 0
        args = ("--workspace", str(workspace), "--no-plugins", "datasets", "check", str(folder))
        report, sheet = tmp_path / "report.html", tmp_path / "sheet.png"
        done = invoke(*args, "--html", str(report), "--contact-sheet", str(sheet))
        assert done.exit_code == 0, done.stderr
        assert "MONOCHROME2 24" in done.stdout
    stored = [file for file in workspace.rglob("*") if file.is_file()]
    assert stored
    for file in (*stored, report, sheet):
        data = file.read_bytes()
        assert b"SECRET" not in data, file
        assert PATIENT.encode("utf-16-le") not in data, file


def test_scan_that_can_not_be_read_is_named_in_the_check() -> None:
    def row(number: int, data: bytes | Callable[[], bytes]) -> Row:
        return Row(id=str(number), target="ab"[number % 2], group=str(number), image=data)

    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 4096, (16, 16)).astype(np.uint16) for _ in range(13)]
    rows = [row(number, dicom(pixels)) for number, pixels in enumerate(drawn)]
    rows[5] = row(5, dicom(drawn[5])[:-40])
    dataset = DatasetSpec(
        name="own/scans", description="", task="classification", load=lambda: rows, license="",
        source="", grouping="", modality="image",
    )  # fmt: skip
    result = check_dataset(dataset, default_recipe(dataset))
    (finding,) = [one for one in result.findings if one.level == "error"]
    assert finding.rows == ("5",)
    assert "damaged or truncated DICOM" in finding.message
