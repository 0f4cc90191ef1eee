"""Malicious archives: each is refused before anything is unpacked."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trunkline.adapters.archive import MAX_BYTES, MAX_PADDING, pack, unpack
from trunkline.adapters.artifact import KNOWN
from trunkline.errors import IntegrityError, NotFoundError, TrunklineError, UsageError

Change = Callable[[tarfile.TarInfo], None]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    (tmp_path / "unpacked").mkdir()
    return tmp_path / "unpacked"


def entry(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.size = size
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def archived(path: Path, *entries: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> Path:
    """An archive with a valid first entry and these entries of zero bytes."""
    with tarfile.open(path, "w", format=form) as made:
        made.addfile(entry("trunkline.json", 2), io.BytesIO(b"{}"))
        for one in entries:
            made.addfile(one, io.BytesIO(bytes(one.size)) if one.isreg() else None)
    return path


def refused(path: Path, folder: Path, **caps: int) -> str:
    """The error for a refused archive; nothing may have been unpacked."""
    with pytest.raises(IntegrityError) as caught:
        unpack(path, folder, **caps)
    assert list(folder.iterdir()) == []
    return str(caught.value)


# ----------------------------------------------------------------------------------- valid archives


def test_packed_artifact_is_unpacked_byte_for_byte(
    sound: Path, tmp_path: Path, empty: Path
) -> None:
    pack(sound, tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", empty)
    assert {path.name: path.read_bytes() for path in empty.iterdir()} == {
        path.name: path.read_bytes() for path in sound.iterdir()
    }


def test_same_files_give_the_same_archive(sound: Path, artifact: Path, tmp_path: Path) -> None:
    os.utime(artifact / "trunkline.json", (1, 1))
    pack(sound, tmp_path / "a.tar")
    pack(artifact, tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_archive_is_plain_tar(sound: Path, tmp_path: Path) -> None:
    pack(sound, tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "r:") as read:
        assert read.getnames() == sorted(path.name for path in sound.iterdir())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT])
def test_archive_that_another_program_made_of_the_files_is_read(
    sound: Path, tmp_path: Path, empty: Path, form: int
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form) as made:
        for path in sound.iterdir():
            made.add(path, path.name)
    assert len(unpack(tmp_path / "a.tar", empty)) == len(list(sound.iterdir()))


def test_foreign_files_are_not_packed(artifact: Path, tmp_path: Path, empty: Path) -> None:
    (artifact / "training_args.bin").write_bytes(b"\x80")
    pack(artifact, tmp_path / "a.tar")
    assert "training_args.bin" not in unpack(tmp_path / "a.tar", empty)


# -------------------------------------------------------------------------------------------- names


NAMES = [
    "../trunkline.json",
    "/etc/passwd",
    "a/../../trunkline.json",
    "./trunkline.json",
    "sub/trunkline.json",
    "trunkline.json/",
    "TRUNKLINE.JSON",
    "trunkline.json\n",
    "tr\u0443nkline.json",
    "..",
    ".",
    "evil.py",
    "adapter_model.bin",
    "C:\\trunkline.json",
    "a" * 100,
]


@pytest.mark.parametrize("name", NAMES)
def test_name_that_no_artifact_holds_is_refused(name: str, tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar", entry(name))
    assert "may not hold" in refused(path, empty) or "folder" in refused(path, empty)
    assert not (tmp_path / "trunkline.json").exists()


def test_name_with_a_prefix_is_refused(tmp_path: Path, empty: Path) -> None:
    long = "d" * 120 + "/trunkline.json"
    assert "may not hold" in refused(archived(tmp_path / "a.tar", entry(long)), empty)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_name_in_an_extension_is_refused(tmp_path: Path, empty: Path, form: int) -> None:
    path = archived(tmp_path / "a.tar", entry("d/" * 200 + "README.md"), form=form)
    assert "long name" in refused(path, empty) or "extended header" in refused(path, empty)


def test_pax_header_that_renames_a_sound_name_is_refused(tmp_path: Path, empty: Path) -> None:
    renamed = entry("README.md", pax_headers={"path": "../../evil"})
    path = archived(tmp_path / "a.tar", renamed, form=tarfile.PAX_FORMAT)
    assert "extended header" in refused(path, empty)


def test_member_twice_is_refused(tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar", entry("README.md"), entry("README.md"))
    assert "twice" in refused(path, empty)


# -------------------------------------------------------------------------------------------- kinds


KINDS = {
    "symbolic link": entry("README.md", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "hard link": entry("README.md", type=tarfile.LNKTYPE, linkname="trunkline.json"),
    "character device": entry("README.md", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "block device": entry("README.md", type=tarfile.BLKTYPE, devmajor=8),
    "named pipe": entry("README.md", type=tarfile.FIFOTYPE),
    "folder": entry("README.md", type=tarfile.DIRTYPE),
    "contiguous file": entry("README.md", type=tarfile.CONTTYPE),
}


@pytest.mark.parametrize("kind", KINDS)
def test_anything_but_a_regular_file_is_refused(kind: str, tmp_path: Path, empty: Path) -> None:
    assert "which is" in refused(archived(tmp_path / "a.tar", KINDS[kind]), empty)


def test_regular_file_with_a_link_name_is_refused(tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar", entry("README.md", linkname="/etc/passwd"))
    assert "may not hold" in refused(path, empty)


def test_sparse_file_is_refused(tmp_path: Path, empty: Path) -> None:
    """1 KB that claims to be 10 GB of zeros, as GNU tar writes holes."""
    header = bytearray(entry("adapter_model.safetensors").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[483:495] = b"112402762000\0"[:12]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + bytes(1024))
    assert "a sparse file" in refused(path, empty)


# ---------------------------------------------------------------------------- sizes and compression


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_compressed_archive_is_refused(mode: str, tmp_path: Path, empty: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as made:  # type: ignore[call-overload]
        made.addfile(entry("trunkline.json", 2), io.BytesIO(b"{}"))
    assert "is not an uncompressed tar archive" in refused(tmp_path / "a.tar", empty)


def test_zip_file_is_refused(tmp_path: Path, empty: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.tar", "w") as made:
        made.writestr("trunkline.json", "{}")
    assert "is not an uncompressed tar archive" in refused(tmp_path / "a.tar", empty)


def test_bomb_is_not_inflated(tmp_path: Path, empty: Path) -> None:
    """It would become ten thousand times its size."""
    with gzip.open(tmp_path / "a.tar", "wb") as file:
        for _ in range(10):
            file.write(bytes(1 << 20))
    assert (tmp_path / "a.tar").stat().st_size < 20_000
    assert "uncompressed" in refused(tmp_path / "a.tar", empty)


def test_size_beyond_the_archives_own_is_refused(tmp_path: Path, empty: Path) -> None:
    """1 KB that claims a member of 7 GiB."""
    header = entry("adapter_model.safetensors", 7 << 30).tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    assert "unexpected end of data" in refused(tmp_path / "a.tar", empty)


def test_size_above_8_gib_is_refused(tmp_path: Path, empty: Path) -> None:
    header = entry("adapter_model.safetensors", 10 << 30).tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + bytes(1024))
    assert "10,737,418,240 bytes" in refused(tmp_path / "a.tar", empty)


def test_archive_above_the_size_limit_is_refused_unread(tmp_path: Path, empty: Path) -> None:
    with (tmp_path / "a.tar").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "are allowed" in refused(tmp_path / "a.tar", empty)


def test_text_file_above_the_size_limit_is_refused(tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar", entry("README.md", (4 << 20) + 1))
    assert "README.md" in refused(path, empty)


@pytest.mark.parametrize(
    "members", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["10k", "1M"]
)
def test_many_members_are_refused_at_the_second(members: int, tmp_path: Path, empty: Path) -> None:
    """Two headers are read: no name may occur twice."""
    header = entry("README.md").tobuf(tarfile.USTAR_FORMAT)
    with (tmp_path / "a.tar").open("wb") as file:
        for _ in range(members // 10_000):
            file.write(header * 10_000)
    message = refused(tmp_path / "a.tar", empty)
    (tmp_path / "a.tar").unlink()
    assert "twice" in message


def test_archive_may_hold_every_name_of_an_artifact(tmp_path: Path, empty: Path) -> None:
    names = sorted(KNOWN - {"trunkline.json"})
    archived(tmp_path / "a.tar", *(entry(name) for name in names))
    assert len(unpack(tmp_path / "a.tar", empty)) == len(KNOWN)


def test_million_zero_blocks_at_the_end_are_refused(tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar")
    with path.open("ab") as file:
        file.truncate(MAX_PADDING + (1 << 20))
    assert "does not end" in refused(path, empty)


# ------------------------------------------------------------------------------------------- damage


def test_bytes_after_the_end_are_refused(tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar")
    with path.open("ab") as file:
        file.write(b"#!/bin/sh\n")
    assert "does not end" in refused(path, empty)


@pytest.mark.parametrize("keep", [0, 1, 511, 512, 700, 1024, 1536])
def test_archive_that_is_cut_off_is_refused(keep: int, tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar", entry("README.md", 600))
    os.truncate(path, keep)
    refused(path, empty)


@pytest.mark.parametrize("position", [0, 50, 100, 124, 148, 156, 200, 257, 263, 300, 345, 500])
def test_flipped_bit_in_a_header_is_refused(position: int, tmp_path: Path, empty: Path) -> None:
    path = archived(tmp_path / "a.tar")
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    refused(path, empty)


def test_file_that_is_no_archive_is_refused(tmp_path: Path, empty: Path) -> None:
    (tmp_path / "a.tar").write_bytes(os.urandom(2048))
    assert "is not an uncompressed tar archive" in refused(tmp_path / "a.tar", empty)


def test_named_pipe_is_not_waited_on(tmp_path: Path, empty: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    assert "not a plain file" in refused(tmp_path / "a.tar", empty)


def test_missing_archive_is_an_error(tmp_path: Path, empty: Path) -> None:
    for name in ("none.tar", "\0.tar", "x" * 300):
        with pytest.raises(NotFoundError):
            unpack(tmp_path / name, empty)


# ------------------------------------------------------------------------------------------ writing


def test_existing_file_is_not_overwritten(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("mine")
    with pytest.raises(UsageError, match="already"):
        pack(sound, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_text() == "mine"


def test_existing_file_is_replaced_on_request(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text("mine")
    assert pack(sound, tmp_path / "a.tar", overwrite=True) == (tmp_path / "a.tar").stat().st_size


def test_link_is_not_followed_when_writing(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").symlink_to(tmp_path / "precious")
    with pytest.raises(UsageError):
        pack(sound, tmp_path / "a.tar", overwrite=True)
    assert not (tmp_path / "precious").exists()


def test_failed_export_leaves_nothing_behind(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrunklineError, match="No space left"):
        pack(sound, tmp_path / "out.tar")
    assert not [path for path in tmp_path.iterdir() if "out.tar" in path.name]


def test_missing_folder_is_an_error(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(TrunklineError, match="can't be written"):
        pack(sound, tmp_path / "nowhere" / "a.tar")


def test_archive_changed_between_two_readings_is_refused(
    sound: Path, tmp_path: Path, empty: Path
) -> None:
    """Digests are compared after unpacking."""
    from trunkline.adapters.artifact import read_artifact

    pack(sound, tmp_path / "a.tar")
    data = bytearray((tmp_path / "a.tar").read_bytes())
    at = data.index(b"q_proj.lora_A.weight")
    data[at - 5] ^= 1
    (tmp_path / "a.tar").write_bytes(data)
    unpack(tmp_path / "a.tar", empty)
    with pytest.raises(IntegrityError):
        read_artifact(empty)
    shutil.rmtree(empty)
