"""Reading IDX files, the official split, and the errors when they are missing or damaged."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trunkline.errors import DataError, MissingDataError
from trunkline_retail import garments
from trunkline_retail.garments import GARMENT, LABELS, load_garment

PARTS = {"train": 12, "t10k": 5}


def idx(values: np.ndarray) -> bytes:
    head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    return head + values.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of a few random pictures, those of train packed and those of test not."""
    rng = np.random.default_rng(0)
    for prefix, count in PARTS.items():
        files = {
            f"{prefix}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28)),
            f"{prefix}-labels-idx1-ubyte": np.arange(count) % len(LABELS),
        }
        for name, values in files.items():
            if prefix == "train":
                (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (tmp_path / name).write_bytes(idx(values))
    monkeypatch.setenv(garments.VARIABLE, str(tmp_path))
    return tmp_path


def test_official_test_part_is_kept(folder: Path) -> None:
    rows = list(load_garment())
    assert [row.split for row in rows] == ["train"] * 12 + ["test"] * 5
    assert [row.target for row in rows[:12]] == [*LABELS, *LABELS[:2]]
    assert (rows[0].id, rows[-1].id) == ("train-00000", "test-00004")


def test_picture_is_that_of_the_file_with_a_margin(folder: Path) -> None:
    row = list(load_garment())[3]
    pixels = np.asarray(Image.open(io.BytesIO(row.picture.read())))
    expected = np.random.default_rng(0).integers(0, 256, (12, 28, 28))[3]
    assert pixels.shape == (32, 32)
    assert (pixels[2:-2, 2:-2] == expected).all()
    assert pixels.sum() == expected.sum()


def test_reading_twice_gives_the_same_pictures(folder: Path) -> None:
    first, second = ([row.picture.identified() for row in load_garment()] for _ in range(2))
    assert [one.sha256 for one in first] == [one.sha256 for one in second]


def test_missing_files_are_one_sentence_that_says_where_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(garments.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(MissingDataError, match="is not on this machine") as caught:
        list(load_garment())
    assert "dataset-fashion-mnist" in (caught.value.hint or "")
    assert garments.VARIABLE in (caught.value.hint or "")


@pytest.mark.parametrize(
    "damage", [b"", b"\0\0\x08\x01\0\0", b"\0\0\x08\x03", b"\0\0\x08\x01\0\0\0\x09\1\2"]
)
def test_damaged_file_is_named(folder: Path, damage: bytes) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(damage)
    with pytest.raises(DataError, match="t10k-labels-idx1-ubyte is not complete"):
        list(load_garment())


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:30] + data[60:]])
def test_damaged_compression_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    packed = folder / "train-images-idx3-ubyte.gz"
    packed.write_bytes(damage(packed.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz can't be read"):
        list(load_garment())


@pytest.mark.parametrize("labels", [np.full(5, 10), np.arange(4)])
def test_labels_of_other_pictures_are_refused(folder: Path, labels: np.ndarray) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(labels))
    with pytest.raises(DataError, match="not those of its 5 pictures"):
        list(load_garment())


def test_dataset_reads_pictures() -> None:
    assert (GARMENT.modality, GARMENT.labels) == ("image", LABELS)
