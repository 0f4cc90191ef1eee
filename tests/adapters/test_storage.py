"""A version is stored and fetched in the same way on disk, in memory and over S3."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from object_stores import Place, memory_place, s3_endpoint, s3_place
from stores import REF, new_store, put
from trunkline.adapters.artifact import MANIFEST, read_artifact
from trunkline.adapters.gc import verify_version
from trunkline.adapters.object_store import ObjectStorage
from trunkline.adapters.storage import LocalStorage
from trunkline.adapters.store import AdapterStore
from trunkline.errors import IntegrityError, NotFoundError, RegistryError, UsageError
from trunkline.refs import Ref

__all__ = ["s3_endpoint"]

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AdapterStore]:
    """A store of each kind."""
    yield from opened(request, tmp_path, request.param)


@pytest.fixture(params=["memory", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AdapterStore]:
    """An object store of each kind."""
    yield from opened(request, tmp_path, request.param)


@pytest.fixture
def memory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AdapterStore]:
    yield from opened(request, tmp_path, "memory")


def opened(request: pytest.FixtureRequest, folder: Path, kind: str) -> Iterator[AdapterStore]:
    place = None
    if kind == "memory":
        place = memory_place()
    elif kind == "s3":
        place = s3_place(request.getfixturevalue("s3_endpoint"))
    made = new_store(folder / "workspace", place)
    yield made
    made.registry.close()


def raw(store: AdapterStore) -> tuple[Any, str]:
    """fsspec's file system and root of an object store."""
    settings = store.workspace.configuration.store
    assert settings.url is not None
    return Place(settings.url, dict(settings.options)).open()


def keys(store: AdapterStore) -> list[str]:
    """The names of all objects below the root, sorted."""
    fs, root = raw(store)
    begin = len(root.rstrip("/")) + 1
    try:
        return sorted(key[begin:] for key in fs.find(root))
    except FileNotFoundError:
        return []


def cached(store: AdapterStore) -> list[str]:
    """The names in the cache, without locks."""
    root = store.cache.root
    return [one.name for one in root.iterdir() if one.suffix != ".lock"] if root.exists() else []


# ------------------------------------------------------------------------------------- all storages


def test_version_is_fetched_as_it_was_published(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    fetched = store.fetch(version)
    assert fetched.digest == version.digest
    assert {one.name: one.read_bytes() for one in fetched.folder.iterdir()} == {
        one.name: one.read_bytes() for one in sound.iterdir()
    }


def test_registry_knows_each_file_and_the_template(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    assert version.files is not None
    assert {name: entry["bytes"] for name, entry in version.files.items()} == {
        one.name: one.stat().st_size for one in sound.iterdir()
    }
    assert version.files[WEIGHTS]["sha256"] == read_artifact(sound).manifest.weights
    assert len(version.template_digest or "") == 64


def test_numbers_count_up(store: AdapterStore, sound: Path) -> None:
    assert [put(store, sound).number for _ in range(3)] == [1, 2, 3]


def test_number_with_existing_files_is_skipped(store: AdapterStore, sound: Path) -> None:
    store.storage.add(read_artifact(sound), "toy/animals/1")
    assert put(store, sound).number == 2


def test_removed_version_leaves_nothing(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    store.storage.remove(version.path)
    assert not store.storage.exists(version.path)
    assert list(store.storage.folders()) == []


def test_removing_twice_is_no_error(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    store.storage.remove(version.path)
    store.storage.remove(version.path)


def test_folders_list_every_version(store: AdapterStore, sound: Path) -> None:
    versions = [put(store, sound), put(store, sound), put(store, sound, Ref("toy", "prices"))]
    results = {one.path: one for one in store.storage.folders()}
    assert set(results) == {version.path for version in versions}
    one = results["toy/prices/1"]
    assert (one.version, one.bytes) == (("toy", "prices", 1), versions[2].bytes)
    assert one.names == {path.name for path in sound.iterdir()}


def test_replaced_card_is_fetched(store: AdapterStore, sound: Path) -> None:
    version = store.write_file(put(store, sound), "README.md", b"# New\n")
    assert (store.fetch(version).folder / "README.md").read_bytes() == b"# New\n"
    assert version.files is not None
    assert version.files["README.md"]["bytes"] == 6
    assert version.bytes == sum(entry["bytes"] for entry in version.files.values())


@pytest.mark.parametrize("name", [WEIGHTS, MANIFEST, "adapter_config.json", "../x", "run.py"])
def test_files_of_the_identity_are_never_replaced(
    memory: AdapterStore, sound: Path, name: str
) -> None:
    version = put(memory, sound)
    with pytest.raises(UsageError, match="can't be replaced"):
        memory.write_file(version, name, b"{}")


def test_configured_folder_replaces_adapters(tmp_path: Path, sound: Path) -> None:
    store = new_store(tmp_path / "workspace", Place("../shared", {}))
    put(store, sound)
    store.registry.close()
    assert read_artifact(tmp_path / "shared/toy/animals/1")
    assert isinstance(store.storage, LocalStorage)


# ------------------------------------------------------------------------------------ object stores


def test_manifest_is_written_last_and_removed_first(
    memory: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    calls: list[str] = []

    def record_calls(name: str, at: int) -> None:
        original: Callable[..., Any] = getattr(MemoryFileSystem, name)

        def call(self: Any, *given: Any, **named: Any) -> Any:
            calls.append(f"{name} {given[at].rpartition('/')[2]}")
            return original(self, *given, **named)

        monkeypatch.setattr(MemoryFileSystem, name, call)

    record_calls("put_file", 1)
    record_calls("rm_file", 0)
    version = put(memory, sound)
    memory.storage.remove(version.path)
    assert calls.index(f"put_file {MANIFEST}") == 2
    assert calls[3] == f"rm_file {MANIFEST}"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_failed_write_to_the_store_leaves_nothing(
    memory: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    original, count = MemoryFileSystem.put_file, 0

    def call(self: Any, *given: Any, **named: Any) -> Any:
        nonlocal count
        count += 1
        if count == at:
            raise ConnectionError("the line is dead")
        return original(self, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryFileSystem, "put_file", call)
        with pytest.raises(RegistryError, match="the line is dead") as caught:
            put(memory, sound)
    assert caught.value.hint
    assert (keys(memory), cached(memory)) == ([], [])
    with pytest.raises(NotFoundError):
        memory.registry.versions.resolve(REF)
    assert put(memory, sound).number == 2


def test_fetch_caches_one_copy_under_the_digest(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    fetched = objects.fetch(version)
    assert cached(objects) == [version.digest.removeprefix("sha256:")]
    assert fetched.folder.parent == objects.cache.root


def test_cached_version_is_fetched_without_the_store(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    objects.storage.remove(version.path)
    assert objects.fetch(version).digest == version.digest


def test_damaged_cached_copy_is_replaced(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    path = objects.fetch(version).folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    assert objects.fetch(version).digest == version.digest
    assert len(cached(objects)) == 1


def test_cached_copy_with_an_old_card_is_replaced(objects: AdapterStore, sound: Path) -> None:
    version = objects.write_file(put(objects, sound), "README.md", b"one")
    objects.fetch(version)
    version = objects.write_file(version, "README.md", b"two")
    assert (objects.fetch(version).folder / "README.md").read_bytes() == b"two"


def test_damaged_object_is_refused_and_leaves_no_copy(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    clear_cache(objects)
    fs, root = raw(objects)
    data = bytearray(fs.cat_file(f"{root}/{version.path}/{WEIGHTS}"))
    data[-1] ^= 1
    fs.pipe_file(f"{root}/{version.path}/{WEIGHTS}", bytes(data))
    with pytest.raises(IntegrityError, match="was changed") as caught:
        objects.fetch(version)
    assert objects.location(version) in caught.value.message
    assert cached(objects) == []


def test_object_of_another_size_is_not_downloaded(
    memory: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    version = put(memory, sound)
    clear_cache(memory)
    fs, root = raw(memory)
    fs.pipe_file(f"{root}/{version.path}/{WEIGHTS}", b"0" * 10)
    monkeypatch.setattr(MemoryFileSystem, "get_file", None, raising=False)
    with pytest.raises(IntegrityError, match="10 bytes, but the registry recorded"):
        memory.fetch(version)


def test_foreign_object_is_refused_unopened(
    memory: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    version = put(memory, sound)
    clear_cache(memory)
    fs, root = raw(memory)
    fs.pipe_file(f"{root}/{version.path}/training_args.bin", b"0")
    monkeypatch.setattr(MemoryFileSystem, "get_file", None, raising=False)
    with pytest.raises(IntegrityError, match=r"training_args\.bin"):
        memory.fetch(version)


def test_version_without_objects_is_no_artifact(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    clear_cache(objects)
    objects.storage.remove(version.path)
    with pytest.raises(IntegrityError, match="There is no artifact at"):
        objects.fetch(version)


def test_verify_bypasses_the_cache(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    objects.fetch(version)
    fs, root = raw(objects)
    fs.rm_file(f"{root}/{version.path}/{WEIGHTS}")
    assert "is missing" in (verify_version(objects, version).damage or "")


def test_concurrent_fetches_get_one_valid_copy(objects: AdapterStore, sound: Path) -> None:
    version = put(objects, sound)
    clear_cache(objects)
    results: list[str] = []

    def fetch() -> None:
        other = AdapterStore(objects.workspace, objects.registry)
        results.append(other.fetch(version).digest)

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [version.digest] * 6
    assert len(cached(objects)) == 1


def test_unreachable_store_is_an_error(
    tmp_path: Path, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    options = {"key": "x", "secret": "y", "endpoint_url": "http://127.0.0.1:9"}
    store = new_store(tmp_path / "workspace", Place("s3://nowhere/store", options))
    with (tmp_path / "workspace/trunkline.toml").open("a") as file:
        file.write("[store.options.config_kwargs.retries]\nmax_attempts = 0\n")
    with pytest.raises(RegistryError, match="can't be reached") as caught:
        put(store, sound)
    store.registry.close()
    assert "trunkline.toml" in (caught.value.hint or "")


def test_missing_bucket_is_an_error(tmp_path: Path, sound: Path, s3_endpoint: str) -> None:
    place = s3_place(s3_endpoint)
    store = new_store(tmp_path / "workspace", Place("s3://no-such-bucket/x", place.options))
    with pytest.raises(RegistryError, match="bucket does not exist"):
        put(store, sound)
    store.registry.close()


def test_unknown_url_scheme_is_refused_before_a_number_is_reserved(
    tmp_path: Path, sound: Path
) -> None:
    store = new_store(tmp_path / "workspace", Place("nosuch://x", {}))
    with pytest.raises(UsageError, match="nosuch"):
        put(store, sound)
    assert store.registry.artifacts.list_pending() == []
    store.registry.close()


def test_connection_does_not_outlive_a_fork(memory: AdapterStore) -> None:
    storage = memory.storage
    assert isinstance(storage, ObjectStorage)
    mine = storage.connect()[0]
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"1" if storage.connect()[0] is mine else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"0"


def clear_cache(store: AdapterStore) -> None:
    """Delete all entries of the cache."""
    for one in store.cache.folders():
        assert store.cache.remove(one)


def test_probe_of_a_sound_store_leaves_nothing(store: AdapterStore, sound: Path) -> None:
    put(store, sound)
    before = sorted(folder.path for folder in store.storage.folders())
    store.storage.probe()
    assert sorted(folder.path for folder in store.storage.folders()) == before
    if isinstance(store.storage, ObjectStorage):
        fs, root = raw(store)
        assert not [name for name in fs.find(root) if ".probe-" in name]


def test_probe_of_a_missing_bucket_is_an_error(tmp_path: Path, s3_endpoint: str) -> None:
    place = s3_place(s3_endpoint)
    store = new_store(tmp_path / "workspace", Place("s3://no-such-bucket/x", place.options))
    with pytest.raises(RegistryError) as caught:
        store.storage.probe()
    store.registry.close()
    assert "no-such-bucket" in caught.value.message
    assert caught.value.hint
