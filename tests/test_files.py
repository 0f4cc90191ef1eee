"""Strict JSON, safetensors headers, hashes and atomic writes."""

from __future__ import annotations

import hashlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from trunkline.errors import IntegrityError
from trunkline.files import (
    canonical_json,
    indented_json,
    parse_json_object,
    parse_safetensors_header,
    read_json_object,
    read_safetensors_header,
    sha256_file,
    write_atomically,
)


def header_of(entries: dict[str, Any], data_bytes: int) -> dict[str, Any]:
    """Parse a safetensors file with these header entries and zeros as data."""
    raw = json.dumps(entries).encode()
    file = struct.pack("<Q", len(raw)) + raw + bytes(data_bytes)
    return dict(parse_safetensors_header(io.BytesIO(file), len(file), "weights"))


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": [1, 2.0], "a": "é"}) == '{"a":"é","b":[1,2.0]}'.encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_canonical_json_refuses_values_without_a_canonical_form(value: Any) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant|surrogates"):
        canonical_json([value])


def test_indented_json_can_be_parsed_again() -> None:
    value = {"b": 1, "a": {"c": None}}
    assert parse_json_object(indented_json(value), "value") == value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 2}', "The value is not valid JSON: the key 'a' occurs twice."),
        (b"[1]", "The value is not a JSON object."),
        (b'{"a": NaN}', "The value is not valid JSON: Out of range float values"),
        (b"\xff", "The value is not valid JSON"),
        (b'{"a":' * 100_000, "The value is not valid JSON"),
    ],
    ids=["duplicate key", "list", "NaN", "not UTF-8", "deep nesting"],
)
def test_malformed_object_is_refused_with_its_label(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_json_object(data, "The value")
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_infinity_is_accepted_on_request(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"limits": [0.0, Infinity]}')
    value = read_json_object(tmp_path / "config.json", allow_nan=True)
    assert value["limits"][1] == float("inf")


def test_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large.json").write_bytes(b" " * 2_000_000)
    with pytest.raises(IntegrityError, match="larger than 1 MiB"):
        read_json_object(tmp_path / "large.json", max_bytes=1 << 20)


def test_header_gives_shape_dtype_and_position(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int8)}, tmp_path / "w")
    tensors = read_safetensors_header(tmp_path / "w")
    assert {name: (info.dtype, info.shape, info.size) for name, info in tensors.items()} == {
        "a": ("F32", (2, 3), 6),
        "b": ("I8", (4,), 4),
    }
    assert max(info.stop for info in tensors.values()) == (tmp_path / "w").stat().st_size


def test_packed_dtype_counts_bits() -> None:
    assert header_of({"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, 2)["a"].size == 4


@pytest.mark.parametrize(
    ("entry", "data_bytes", "message"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, 4, "do not fit the shape"),
        ({"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}, 4, "unknown dtype 'F99'"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}, 8, "overlap or leave gaps"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, 6, "but its header describes"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, 4, "damaged header at 'a'"),
    ],
    ids=["size", "dtype", "gap", "trailing bytes", "negative shape"],
)
def test_inconsistent_header_is_refused(
    entry: dict[str, Any], data_bytes: int, message: str
) -> None:
    with pytest.raises(IntegrityError, match=message):
        header_of({"a": entry}, data_bytes)


def test_file_is_hashed_with_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
