"""Copies of artifacts on the disk of a vLLM server."""

from __future__ import annotations

import stat
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from trunkline.adapters.artifact import REQUIRED
from trunkline.adapters.storage import LocalStorage
from trunkline.api import Platform
from trunkline.errors import IntegrityError, RefusedError, RegistryError, UnavailableError
from trunkline.registry.records import VersionRecord
from trunkline_vllm.cache import AdapterCache

MANY = 1 << 30


class CountingStorage(LocalStorage):
    """Counts the files that were opened."""

    count = 0

    def open_file(self, path: str, name: str) -> AbstractContextManager[BinaryIO]:
        self.count += 1
        return super().open_file(path, name)


@pytest.fixture
def storage(platform: Platform) -> CountingStorage:
    return CountingStorage(platform.workspace.adapters)


@pytest.fixture
def versions(platform: Platform) -> list[VersionRecord]:
    return [platform.resolve(f"toy/{name}").version for name in ("plurals@1", "plurals@2", "plain")]


@pytest.fixture
def cache(tmp_path: Path) -> AdapterCache:
    return AdapterCache(tmp_path / "copies", MANY)


def load(cache: AdapterCache, storage: LocalStorage, version: VersionRecord, **limits: Any) -> Path:
    limits = {"max_bytes": MANY, "deadline": time.monotonic() + 60} | limits
    return cache.load(storage, version, REQUIRED, **limits).folder


def use(cache: AdapterCache, storage: LocalStorage, version: VersionRecord) -> None:
    """Load under a lease, at a time of its own."""
    time.sleep(0.02)
    with cache.lease(version.digest):
        load(cache, storage, version)


def copies(cache: AdapterCache) -> list[str]:
    return sorted(f"sha256:{one.name}" for one in cache.root.iterdir() if one.is_dir())


def test_copy_is_read_only_and_holds_the_identity_alone(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    folder = load(cache, storage, versions[0])
    assert folder == cache.root / versions[0].digest.removeprefix("sha256:")
    assert {one.name for one in folder.iterdir()} == set(REQUIRED)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o555
    assert {stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()} == {0o444}


def test_many_callers_fetch_once(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    threads = [threading.Thread(target=load, args=(cache, storage, versions[0])) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other_process = AdapterCache(cache.root, MANY)
    load(other_process, storage, versions[0])
    assert storage.count == len(REQUIRED)


@pytest.mark.parametrize("name", REQUIRED)
def test_changed_file_of_the_store_is_refused(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord], name: str
) -> None:
    file = storage.root / versions[0].path / name
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match="not what the registry recorded"):
        load(cache, storage, versions[0])
    assert copies(cache) == []


def test_missing_file_of_the_store_is_refused(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    (storage.root / versions[0].path / REQUIRED[1]).unlink()
    with pytest.raises(IntegrityError):
        load(cache, storage, versions[0])
    assert copies(cache) == []


def test_changed_copy_is_fetched_again(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    file = load(cache, storage, versions[0]) / "adapter_model.safetensors"
    original = file.read_bytes()
    file.chmod(0o644)
    file.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    load(cache, storage, versions[0])
    assert file.read_bytes() == original
    assert copies(cache) == [versions[0].digest]


def test_store_that_is_gone_does_not_matter_to_a_copy(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord], tmp_path: Path
) -> None:
    load(cache, storage, versions[0])
    load(cache, LocalStorage(tmp_path / "nowhere"), versions[0])


def test_large_artifact_is_refused(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    with pytest.raises(RefusedError, match="which this server does not fetch") as caught:
        load(cache, storage, versions[0], max_bytes=2000)
    assert "TRUNKLINE_VLLM_MAX_BYTES" in (caught.value.hint or "")
    assert (storage.count, copies(cache)) == (0, [])


def test_file_that_grew_is_not_read_to_its_end(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    with (storage.root / versions[0].path / REQUIRED[1]).open("ab") as file:
        file.write(bytes(4 << 20))
    with pytest.raises(RefusedError):
        load(cache, storage, versions[0], max_bytes=1 << 20)
    assert copies(cache) == []


def test_download_ends_at_its_deadline(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    with pytest.raises(UnavailableError, match="did not arrive in time"):
        load(cache, storage, versions[0], deadline=time.monotonic() - 1)
    assert copies(cache) == []


def test_full_or_closed_disk_is_an_error_of_the_cache(
    storage: CountingStorage, versions: list[VersionRecord], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    cache = AdapterCache(tmp_path / "file", MANY)
    with pytest.raises(RegistryError, match="cache"):
        load(cache, storage, versions[0])


def test_least_recently_used_copy_without_a_lease_is_deleted(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    first, second, third = versions
    for version in (first, second, first):
        use(cache, storage, version)
    small = AdapterCache(cache.root, sum(one.bytes for one in cache.folders()) + 4096)
    with cache.lease(first.digest):
        use(small, storage, third)
        assert copies(cache) == sorted([first.digest, third.digest])
        use(small, storage, second)
        assert copies(cache) == sorted([first.digest, second.digest])


def test_what_a_killed_download_left_is_deleted(
    cache: AdapterCache, storage: CountingStorage, versions: list[VersionRecord]
) -> None:
    cache.root.mkdir()
    left = cache.root / f".fetching-{'a' * 64}-x"
    left.mkdir()
    (left / "adapter_model.safetensors").write_bytes(b"half")
    load(cache, storage, versions[0])
    assert not left.exists()
