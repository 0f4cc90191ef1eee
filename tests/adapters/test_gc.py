"""gc deletes what is unused, lists what is missing, and keeps everything else."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from sqlalchemy import text

from object_stores import memory_place
from stores import BASE, REF, new_run, new_store, put
from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.gc import Garbage, collect, find_garbage, remove_version, verify_version
from trunkline.adapters.store import AdapterStore
from trunkline.errors import NotFoundError, RefusedError, RegistryError
from trunkline.refs import Ref
from trunkline.registry.actors import current_process
from trunkline.registry.artifacts import LEASE, PATH_TAKEN, Artifacts, reservation_expired
from trunkline.registry.versions import Versions

WEIGHTS = "adapter_model.safetensors"
LONG_AGO = (datetime.now(UTC) - timedelta(hours=3)).timestamp()


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AdapterStore]:
    """A local store and an object store."""
    made = new_store(tmp_path / "workspace", memory_place() if request.param == "memory" else None)
    yield made
    made.registry.close()


@pytest.fixture
def local(tmp_path: Path) -> Iterator[AdapterStore]:
    made = new_store(tmp_path / "workspace")
    yield made
    made.registry.close()


def reserve(store: AdapterStore, ref: Ref = REF) -> str:
    """Reserve a number in a process that has ended; return the path of its files."""
    script = (
        "import sys; from trunkline.registry.registry import Registry\n"
        "with Registry.open(sys.argv[1]) as registry:\n"
        "    print(registry.versions.reserve(*sys.argv[2:4], task='classification'))"
    )
    url = f"sqlite:///{store.workspace.root / 'registry.db'}"
    command = [sys.executable, "-c", script, url, ref.domain, ref.name]
    number = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return f"{ref.domain}/{ref.name}/{number}"


def kinds(store: AdapterStore, **named: bool) -> list[tuple[str, str]]:
    return [(one.kind, one.name) for one in find_garbage(store, **named)]


def collect_all(store: AdapterStore, **named: bool) -> list[Garbage]:
    return list(collect(store, [one for one in find_garbage(store, **named) if one.deletable]))


def add_foreign(store: AdapterStore, path: str, source: Path) -> None:
    """Add an artifact's files without a row."""
    store.storage.add(read_artifact(source), path)
    for one in store.cache.folders():
        store.cache.remove(one)


def age(folder: Path) -> None:
    for one in (*folder.rglob("*"), folder):
        os.utime(one, (LONG_AGO, LONG_AGO))


# ------------------------------------------------------------------------------- reservation owners


def test_this_process_is_not_gone() -> None:
    now = datetime.now(UTC)
    assert not reservation_expired(current_process(), now - timedelta(days=9), now)


def test_later_process_with_the_same_pid_is_another_one() -> None:
    now = datetime.now(UTC)
    assert reservation_expired({**current_process(), "started": "1"}, now, now)


@pytest.mark.parametrize("publisher", [None, {"host": "elsewhere", "pid": 1, "started": "1"}])
def test_owner_on_another_host_is_waited_for(publisher: dict[str, Any] | None) -> None:
    now = datetime.now(UTC)
    assert not reservation_expired(publisher, now - LEASE, now)
    assert reservation_expired(publisher, now - LEASE - timedelta(seconds=1), now)


# ------------------------------------------------------------------------------------------ garbage


def test_valid_store_has_no_garbage(store: AdapterStore, sound: Path) -> None:
    store.fetch(put(store, sound))
    assert find_garbage(store) == []


def test_reservation_of_a_dead_owner_is_abandoned(store: AdapterStore) -> None:
    reserve(store)
    assert kinds(store) == [("reservation", "toy/animals@1")]
    collect_all(store)
    assert store.registry.artifacts.list_pending() == []
    assert find_garbage(store) == []


def test_files_of_a_dead_owner_are_deleted(store: AdapterStore, sound: Path) -> None:
    path = reserve(store)
    add_foreign(store, path, sound)
    collect_all(store)
    assert not store.storage.exists(path)
    assert find_garbage(store) == []


def test_publication_in_progress_is_kept(store: AdapterStore, sound: Path) -> None:
    number = store.registry.versions.reserve("toy", "animals", task="classification")
    add_foreign(store, f"toy/animals/{number}", sound)
    assert find_garbage(store) == []


def test_files_added_after_the_reservation_was_abandoned_are_not_published(
    store: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner whose reservation was abandoned by gc deletes its own files."""
    add = type(store.storage).add

    def slow(self: Any, *given: Any) -> Any:
        files = add(self, *given)
        store.registry.versions.abandon("toy", "animals", 1)
        return files

    monkeypatch.setattr(type(store.storage), "add", slow)
    with pytest.raises(RegistryError, match="not reserved"):
        put(store, sound)
    assert not store.storage.exists("toy/animals/1")


def test_files_of_a_failed_publication_are_deleted(store: AdapterStore, sound: Path) -> None:
    path = reserve(store)
    add_foreign(store, path, sound)
    store.registry.versions.abandon("toy", "animals", 1)
    assert kinds(store) == [("folder", path)]


def test_partial_folder_of_a_dead_owner_is_deleted(local: AdapterStore) -> None:
    reserve(local)
    half = local.workspace.adapters / ".publishing-toy.animals.1-abc"
    half.mkdir(parents=True)
    (half / WEIGHTS).write_bytes(b"half")
    assert ("leftover", half.name) in kinds(local)
    collect_all(local)
    assert list(local.workspace.adapters.iterdir()) == []


def test_partial_folder_of_a_live_owner_is_kept(local: AdapterStore) -> None:
    local.registry.versions.reserve("toy", "animals", task="classification")
    half = local.workspace.adapters / ".publishing-toy.animals.1-abc"
    half.mkdir(parents=True)
    age(half)
    assert find_garbage(local) == []


def test_partial_folder_of_no_version_is_deleted_after_an_hour(
    local: AdapterStore,
) -> None:
    half = local.workspace.adapters / ".publishing-xyz"
    half.mkdir(parents=True)
    assert find_garbage(local) == []
    age(half)
    assert kinds(local) == [("leftover", half.name)]


def test_complete_version_of_another_registry_is_only_listed(
    store: AdapterStore, sound: Path
) -> None:
    add_foreign(store, "toy/animals/7", sound)
    assert kinds(store) == [("unknown", "toy/animals/7")]
    assert collect_all(store) == []
    assert store.storage.exists("toy/animals/7")


def test_complete_version_of_another_registry_is_deleted_on_request(
    store: AdapterStore, sound: Path
) -> None:
    add_foreign(store, "toy/animals/7", sound)
    collect_all(store, unknown=True)
    assert not store.storage.exists("toy/animals/7")


def test_complete_version_whose_number_was_skipped_is_only_listed(
    store: AdapterStore, sound: Path
) -> None:
    add_foreign(store, "toy/animals/1", sound)
    assert put(store, sound).number == 2
    assert kinds(store) == [("unknown", "toy/animals/1")]
    row = store.registry.artifacts.find([("toy", "animals", 1)])["toy", "animals", 1]
    assert (row.status, row.removal_reason) == ("failed", PATH_TAKEN)


def test_incomplete_files_of_no_version_are_deleted(store: AdapterStore, sound: Path) -> None:
    add_foreign(store, "toy/animals/7", sound)
    remove_file(store, "toy/animals/7", WEIGHTS)
    assert kinds(store) == [("folder", "toy/animals/7")]


def remove_file(store: AdapterStore, path: str, name: str) -> None:
    root = getattr(store.storage, "root", None)
    if root is not None:
        (root / path / name).unlink()
    else:
        fs, base = store.storage.connect()  # type: ignore[attr-defined]
        fs.rm_file(f"{base}/{path}/{name}")


def test_version_without_files_is_listed(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    store.storage.remove(version.path)
    assert kinds(store) == [("missing", "toy/animals@1")]
    assert collect_all(store) == []


def test_other_files_in_the_store_are_kept(local: AdapterStore, sound: Path) -> None:
    put(local, sound)
    for name in ("README.md", "Notes/x.txt", "toy/animals/notes.txt", "toy/animals/01/x"):
        path = local.workspace.adapters / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kept")
    assert find_garbage(local) == []


def test_foreign_files_are_only_listed(local: AdapterStore) -> None:
    precious = local.workspace.adapters / "photos/holiday/1/beach.jpg"
    precious.parent.mkdir(parents=True)
    precious.write_text("kept")
    assert kinds(local) == [("unknown", "photos/holiday/1")]
    collect_all(local, unknown=True)
    assert precious.exists()


def test_link_is_deleted_but_not_its_target(local: AdapterStore, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (local.workspace.adapters / "toy/animals").mkdir(parents=True)
    (local.workspace.adapters / "toy/animals/1").symlink_to(tmp_path / "precious")
    collect_all(local)
    assert not (local.workspace.adapters / "toy").exists()
    assert (tmp_path / "precious" / "file").exists()


def test_find_garbage_changes_nothing(local: AdapterStore, sound: Path) -> None:
    path = reserve(local)
    add_foreign(local, path, sound)
    before = snapshot(local.workspace.root)
    find_garbage(local)
    assert snapshot(local.workspace.root) == before


def snapshot(root: Path) -> dict[str, int]:
    return {
        str(one.relative_to(root)): one.lstat().st_size
        for one in root.rglob("*")
        if not one.name.startswith("registry.db")
    }


def test_failing_disk_is_one_clear_error(
    local: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_foreign(local, reserve(local), sound)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(shutil, "rmtree", fail)
    with pytest.raises(RegistryError, match="Read-only") as caught:
        collect_all(local)
    assert "gc" in (caught.value.hint or "")


# ---------------------------------------------------------------------------------------- the cache


def test_cached_copy_of_a_removed_version_is_deleted(tmp_path: Path, sound: Path) -> None:
    store = new_store(tmp_path / "workspace", memory_place())
    version = store.fetch(put(store, sound)).digest
    remove_version(store, REF.at(1), reason="old")
    assert kinds(store) == [("cached", version.removeprefix("sha256:"))]
    collect_all(store)
    assert list(store.cache.root.iterdir()) == []
    store.registry.close()


def test_cached_copy_in_progress_is_kept(local: AdapterStore) -> None:
    with local.cache.new_entry("sha256:" + "a" * 64):
        assert find_garbage(local) == []


def test_incomplete_cached_copy_is_deleted(local: AdapterStore) -> None:
    half = local.cache.root / f".fetching-{'a' * 64}-x"
    half.mkdir(parents=True)
    assert kinds(local) == [("cached", half.name)]
    collect_all(local)
    assert not half.exists()


# --------------------------------------------------------------------------------------------- runs


def run_folder(store: AdapterStore, *, checkpoint: bool = False) -> Path:
    """The folder of a new run, as a killed training leaves it."""
    folder = store.workspace.run_path(new_run(store.registry))
    folder.mkdir(parents=True)
    (folder / ".lock").touch()
    if checkpoint:
        (folder / "checkpoints/checkpoint-1").mkdir(parents=True)
        (folder / "checkpoints/checkpoint-1/trainer_state.json").write_text("{}")
    return folder


def test_folder_of_a_dead_run_without_a_checkpoint_is_deleted(local: AdapterStore) -> None:
    folder = run_folder(local)
    assert kinds(local) == [("run", folder.name)]
    collect_all(local)
    assert not folder.exists()


def test_folder_of_a_resumable_run_is_kept(local: AdapterStore) -> None:
    run_folder(local, checkpoint=True)
    assert find_garbage(local) == []


def test_folder_of_a_finished_run_is_deleted_with_its_checkpoints(local: AdapterStore) -> None:
    folder = run_folder(local, checkpoint=True)
    local.registry.runs.finish(int(folder.name), "finished")
    assert kinds(local) == [("run", folder.name)]


def test_folder_of_a_run_in_progress_is_kept(local: AdapterStore) -> None:
    folder = run_folder(local)
    with FileLock(folder / ".lock"):
        assert find_garbage(local) == []
        assert list(collect(local, [Garbage("run", folder.name, "listed too late")])) == []
    assert folder.exists()


# ----------------------------------------------------------------------------------------- removing


def test_removed_version_leaves_a_tombstone_and_no_files(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    removed = remove_version(store, REF.at(1), reason="trained on the wrong year")
    assert (removed.version.digest, removed.files_kept) == (version.digest, None)
    assert not store.storage.exists(version.path)
    with pytest.raises(NotFoundError, match=r"was removed on .* trained on the wrong year"):
        store.registry.versions.resolve(REF.at(1))


def test_number_of_a_removed_version_is_not_reused(store: AdapterStore, sound: Path) -> None:
    put(store, sound)
    remove_version(store, REF.at(1), reason="old")
    assert put(store, sound).number == 2


def test_version_under_an_alias_is_not_removed(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    with store.registry.sessions.write() as session:
        session.execute(
            text("INSERT INTO aliases (adapter_id, alias, version_id) VALUES (1, 'canary', 1)")
        )
    with pytest.raises(RefusedError, match="alias 'canary' points at it"):
        remove_version(store, REF.at(1), reason="old")
    assert store.fetch(version).digest == version.digest


def serve(store: AdapterStore, version: Any) -> int:
    """Register a server of this process that has loaded a version."""
    number = store.registry.servers.start(
        socket.gethostname(), os.getpid(), "http://127.0.0.1:1", BASE
    )
    store.registry.servers.record_loads(number, [(str(version.ref), version.digest)])
    return number


def test_version_loaded_by_a_running_server_is_not_removed(
    store: AdapterStore, sound: Path
) -> None:
    version = put(store, sound)
    serve(store, version)
    with pytest.raises(RefusedError, match=r"server/1 .*holds it"):
        remove_version(store, REF.at(1), reason="old")
    assert store.fetch(version).digest == version.digest


def test_files_that_a_server_has_just_loaded_are_kept_until_it_stops(
    store: AdapterStore, sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = put(store, sound)
    original = Versions.remove

    def raced(self: Versions, *given: Any, **named: Any) -> Any:
        done = original(self, *given, **named)
        serve(store, version)
        return done

    monkeypatch.setattr(Versions, "remove", raced)
    assert "server/1" in (remove_version(store, REF.at(1), reason="old").files_kept or "")
    assert find_garbage(store) == []
    store.registry.servers.stop(1)
    assert ("folder", version.path) in kinds(store)


def test_files_of_an_interrupted_removal_are_deleted(store: AdapterStore, sound: Path) -> None:
    version = put(store, sound)
    store.registry.versions.remove(REF.at(1), reason="old")
    assert ("folder", version.path) in kinds(store)
    collect_all(store)
    assert not store.storage.exists(version.path)


# ---------------------------------------------------------------------------------------- verifying


def test_published_version_is_intact(store: AdapterStore, sound: Path) -> None:
    result = verify_version(store, put(store, sound))
    assert (result.damage, result.remarks) == (None, ())


def test_flipped_bit_is_damage(local: AdapterStore, sound: Path) -> None:
    version = put(local, sound)
    path = local.workspace.adapters / version.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert "was changed" in (verify_version(local, version).damage or "")


def with_extras(source: Path, folder: Path) -> Path:
    copy = Path(shutil.copytree(source, folder))
    (copy / "README.md").write_text("# Card\n")
    (copy / "provenance.json").write_text("{}\n")
    return copy


def test_edited_card_is_a_remark(local: AdapterStore, sound: Path, tmp_path: Path) -> None:
    version = put(local, with_extras(sound, tmp_path / "made"))
    (local.workspace.adapters / version.path / "README.md").write_text("# Mine\n")
    result = verify_version(local, version)
    assert result.damage is None
    assert result.remarks == ("README.md was changed since it was published",)


def test_card_written_through_the_store_is_no_remark(
    local: AdapterStore, sound: Path, tmp_path: Path
) -> None:
    version = put(local, with_extras(sound, tmp_path / "made"))
    assert verify_version(local, local.write_file(version, "README.md", b"# New\n")).remarks == ()


@pytest.mark.parametrize("failing", ["storage", "registry"])
def test_version_is_intact_after_an_interrupted_write_of_a_file(
    store: AdapterStore,
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failing: str,
) -> None:
    put(store, with_extras(sound, tmp_path / "made"))
    version = store.registry.versions.resolve(REF)[0]
    record = Artifacts.record_file

    def fail(*given: Any, **named: Any) -> Any:
        if named.get("written") is False:
            return record(*given, **named)
        raise KeyboardInterrupt

    owner: Any = type(store.storage) if failing == "storage" else Artifacts
    with monkeypatch.context() as patched:
        patched.setattr(owner, "write_file" if failing == "storage" else "record_file", fail)
        with pytest.raises(KeyboardInterrupt):
            store.write_file(version, "provenance.json", b'{"run": 2}')
    version = store.registry.versions.resolve(REF)[0]
    assert verify_version(store, version).damage is None
    assert store.fetch(version).digest == version.digest


@pytest.mark.parametrize("change", ["changed", "gone"])
def test_changed_provenance_is_damage(
    local: AdapterStore, sound: Path, tmp_path: Path, change: str
) -> None:
    version = put(local, with_extras(sound, tmp_path / "made"))
    path = local.workspace.adapters / version.path / "provenance.json"
    path.write_text('{"run": 9}') if change == "changed" else path.unlink()
    assert "provenance.json of toy/animals@1" in (verify_version(local, version).damage or "")


def test_unsigned_version_is_damaged_if_a_signature_is_required(
    local: AdapterStore, sound: Path, public_key: Path
) -> None:
    result = verify_version(local, put(local, sound), require_signature=True, keys=[public_key])
    assert "not signed" in (result.damage or "")


def test_unsigned_version_is_not_fetched_if_signatures_are_required(
    local: AdapterStore, sound: Path, public_key: Path
) -> None:
    version = put(local, sound)
    (local.workspace.root / "trunkline.toml").write_text(
        f'[signatures]\nrequired = true\nkeys = ["{public_key}"]\n'
    )
    with pytest.raises(Exception, match="not signed"):
        local.fetch(version)
    assert local.fetch(version, signed=False).digest == version.digest


@pytest.fixture(scope="session")
def public_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    path = tmp_path_factory.mktemp("keys") / "release.pub"
    path.write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return path
