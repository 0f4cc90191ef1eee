"""Strict JSON, safetensors headers, hashes and atomic writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.errors import IntegrityError, TrunklineError, UsageError
from trunkline.files import (
    canonical_json,
    indented_json,
    output_file,
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


@pytest.mark.parametrize("metadata", [{"format": 5}, {"format": None}, ["pt"], 3])
def test_metadata_that_are_not_texts_are_refused(metadata: Any) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    with pytest.raises(IntegrityError, match="metadata that are not texts"):
        header_of({"__metadata__": metadata, "a": entry}, 4)
    assert list(header_of({"__metadata__": {"format": "pt"}, "a": entry}, 4)) == ["a"]


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


# ------------------------------------------------------------------------------- output files


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


def write(path: Path, text: str, *, overwrite: bool = True) -> None:
    with output_file(path, overwrite=overwrite) as file:
        file.write(text)


def permissions(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_new_files_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    write(tmp_path / "shown", "x")
    write_atomically(tmp_path / "kept", "x")
    assert permissions(tmp_path / "shown") == permissions(tmp_path / "kept") == 0o666 & ~umask


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o604)
    write(path, "new")
    assert (path.read_text(), permissions(path)) == ("new", 0o604)


def test_failed_output_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write(path, "new\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_output_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with output_file(tmp_path / "file") as file:
        file.write("new")
        assert not (tmp_path / "file").exists()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("link", [False, True])
def test_existing_file_is_refused_on_request(tmp_path: Path, link: bool) -> None:
    path = tmp_path / "file"
    if link:
        path.symlink_to(tmp_path / "nothing")
    else:
        path.write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        write(path, "new", overwrite=False)
    assert path.is_symlink() or path.read_text() == "mine"


def test_output_goes_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write(link, "new")
    assert (target.read_text(), link.is_symlink()) == ("new", True)


def test_output_to_a_pipe_does_not_replace_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
    write(pipe, "new\n")
    content = os.read(reader, 100)
    os.close(reader)
    assert (content, pipe.is_fifo()) == (b"new\n", True)


@pytest.mark.parametrize("name", ["no/file", ".", "x" * 300])
def test_output_that_cannot_be_written_is_one_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrunklineError, match="can't be written: ") as caught:
        write(tmp_path / name, "new")
    assert "Errno" not in caught.value.message
    assert caught.value.hint


def test_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("ж" * 127 + "x")
    write(path, "new")
    assert path.read_text() == "new"
