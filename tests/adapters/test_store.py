"""A version is absent or complete, whatever happens during its publication."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.store import AdapterStore
from trunkline.errors import IntegrityError, NotFoundError, RegistryError
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.registry.versions import Versions
from trunkline.workspace import Workspace

REF = Ref("toy", "animals")
BASE = "b" * 64


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    (tmp_path / "workspace").mkdir()
    with Registry.open(f"sqlite:///{tmp_path / 'workspace' / 'registry.db'}") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path, registry: Registry) -> AdapterStore:
    return AdapterStore(Workspace(tmp_path / "workspace"), registry)


@pytest.fixture
def run(registry: Registry) -> int:
    return start_run(registry)


def start_run(registry: Registry) -> int:
    registry.sources.record_base(
        digest=BASE, name="tiny", source="made up", architecture="LlamaForCausalLM",
        parameters=1, dtype="float32",
    )  # fmt: skip
    dataset = registry.sources.record_dataset(
        name="toy/animals", fingerprint="f", split_fingerprint="s", rows=3, license="CC0-1.0",
        source="made up", counts={},
    )  # fmt: skip
    return registry.runs.start(
        recipe="toy/animals", base_digest=BASE, dataset_id=dataset, seed=0, settings={},
        environment={},
    )  # fmt: skip


def left_in(workspace: Path) -> list[str]:
    """Everything below ``adapters/``."""
    return sorted(
        path.relative_to(workspace).as_posix() for path in (workspace / "adapters").rglob("*")
    )


def assert_nothing_was_published(registry: Registry, workspace: Path) -> None:
    with pytest.raises(NotFoundError):
        registry.versions.resolve(REF)
    assert left_in(workspace) == []


def test_published_version_is_fetched_with_its_digest(
    store: AdapterStore, sound: Path, run: int
) -> None:
    version = store.publish(sound, REF, task="classification", run=run)
    assert version.number == 1
    assert store.fetch(version).digest == version.digest == read_artifact(sound).digest


def test_version_without_a_run_has_the_given_base(
    store: AdapterStore, sound: Path, run: int
) -> None:
    version = store.publish(sound, REF, task="classification", run=None, base_digest=BASE)
    assert (version.run, version.dataset, version.base_digest) == (None, None, BASE)


def test_numbers_count_up(store: AdapterStore, sound: Path, registry: Registry) -> None:
    numbers = [
        store.publish(sound, REF, task="classification", run=start_run(registry)).number
        for _ in range(3)
    ]
    assert numbers == [1, 2, 3]


def test_partial_folder_is_gone_after_publishing(
    store: AdapterStore, sound: Path, run: int, tmp_path: Path
) -> None:
    store.publish(sound, REF, task="classification", run=run)
    assert not [name for name in left_in(tmp_path / "workspace") if ".publishing" in name]


def test_files_of_another_registry_are_not_overwritten(
    store: AdapterStore, sound: Path, run: int, tmp_path: Path
) -> None:
    old = tmp_path / "workspace/adapters/toy/animals/1"
    old.mkdir(parents=True)
    (old / "README.md").write_text("of an earlier registry")
    version = store.publish(sound, REF, task="classification", run=run)
    assert version.number == 2
    assert (old / "README.md").read_text() == "of an earlier registry"


def test_invalid_folder_reserves_no_number(
    store: AdapterStore, artifact: Path, run: int, registry: Registry, sound: Path
) -> None:
    (artifact / "trunkline.json").unlink()
    with pytest.raises(IntegrityError):
        store.publish(artifact, REF, task="classification", run=run)
    assert store.publish(sound, REF, task="classification", run=run).number == 1


def test_file_that_changes_during_the_copy_is_not_published(
    store: AdapterStore,
    sound: Path,
    run: int,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copy = shutil.copyfile

    def garble(source: Path, target: Path) -> Any:
        copy(source, target)
        if target.suffix == ".safetensors":
            target.write_bytes(target.read_bytes()[:-1] + b"\1")

    monkeypatch.setattr(shutil, "copyfile", garble)
    with pytest.raises(IntegrityError, match="changed"):
        store.publish(sound, REF, task="classification", run=run)
    assert_nothing_was_published(registry, tmp_path / "workspace")


def failing(name: str, monkeypatch: pytest.MonkeyPatch, code: int, at: int = 1) -> None:
    """Let the ``at``-th call of ``os.<name>`` or ``shutil.<name>`` fail."""
    module = shutil if name == "copyfile" else os
    original, calls = getattr(module, name), 0

    def call(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise OSError(code, os.strerror(code))
        return original(*given, **named)

    monkeypatch.setattr(module, name, call)


@pytest.mark.parametrize(
    ("name", "at"),
    [("copyfile", 1), ("copyfile", 3), ("fsync", 1), ("fsync", 4), ("fsync", 5), ("rename", 1),
     ("chmod", 1)],
)  # fmt: skip
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_failing_disk_leaves_nothing(
    store: AdapterStore,
    sound: Path,
    run: int,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    at: int,
    code: int,
) -> None:
    with monkeypatch.context() as patched:
        failing(name, patched, code, at)
        with pytest.raises(RegistryError) as caught:
            store.publish(sound, REF, task="classification", run=run)
    assert os.strerror(code) in caught.value.message
    assert caught.value.hint
    assert_nothing_was_published(registry, tmp_path / "workspace")


def test_number_of_a_failed_publication_is_not_reused(
    store: AdapterStore, sound: Path, run: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        failing("rename", patched, errno.ENOSPC)
        with pytest.raises(RegistryError):
            store.publish(sound, REF, task="classification", run=run)
    assert store.publish(sound, REF, task="classification", run=run).number == 2


def test_registry_that_fails_last_leaves_no_folder(
    store: AdapterStore,
    sound: Path,
    run: int,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RegistryError("The registry is full.", "Make room.")

    monkeypatch.setattr(Versions, "publish", fail)
    with pytest.raises(RegistryError, match="full"):
        store.publish(sound, REF, task="classification", run=run)
    assert_nothing_was_published(registry, tmp_path / "workspace")


def test_visible_version_keeps_its_files_when_the_user_interrupts_just_then(
    store: AdapterStore,
    sound: Path,
    run: int,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = Versions.publish

    def interrupted(self: Versions, *given: Any, **named: Any) -> Any:
        publish(self, *given, **named)
        raise KeyboardInterrupt

    monkeypatch.setattr(Versions, "publish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.publish(sound, REF, task="classification", run=run)
    assert store.fetch(registry.versions.resolve(REF)[0]).lora.rank == 4


_KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from trunkline.adapters import store as module
from trunkline.adapters.store import AdapterStore
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.registry.versions import Versions
from trunkline.workspace import Workspace
workspace, source, run, where = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def dying(original, after):
    def call(*given, **named):
        if after:
            original(*given, **named)
        os.kill(os.getpid(), signal.SIGKILL)
    return call
name, _, when = where.partition(" ")
owner = {"copyfile": shutil, "rename": os, "fsync": os, "publish": Versions}[name]
setattr(owner, name, dying(getattr(owner, name), when == "after"))
registry = Registry.open(f"sqlite:///{workspace / 'registry.db'}")
AdapterStore(Workspace(workspace), registry).publish(
    source, Ref("toy", "animals"), task="classification", run=run)
"""


@pytest.mark.parametrize(
    ("where", "published"),
    [
        ("copyfile after", False),
        ("fsync before", False),
        ("rename before", False),
        ("rename after", False),
        ("publish before", False),
        ("publish after", True),
    ],
)
def test_killed_process_leaves_a_version_absent_or_complete(
    store: AdapterStore,
    sound: Path,
    run: int,
    registry: Registry,
    tmp_path: Path,
    where: str,
    published: bool,
) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "workspace"), str(sound), str(run)]
    died = subprocess.run([*command, where], check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    if published:
        assert store.fetch(registry.versions.resolve(REF)[0]).digest == read_artifact(sound).digest
    else:
        with pytest.raises(NotFoundError):
            registry.versions.resolve(REF)
    following = store.publish(sound, REF, task="classification", run=start_run(registry))
    assert following.number == 2
    assert store.fetch(following).digest == read_artifact(sound).digest


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_published_artifact_that_was_damaged_is_refused(
    store: AdapterStore, sound: Path, run: int, tmp_path: Path, name: str
) -> None:
    version = store.publish(sound, REF, task="classification", run=run)
    path = tmp_path / "workspace/adapters" / version.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError):
        store.fetch(version)


def test_published_artifact_that_was_replaced_by_another_is_refused(
    store: AdapterStore, sound: Path, run: int, tmp_path: Path, tiny: Path
) -> None:
    from workbench import make_artifact

    version = store.publish(sound, REF, task="classification", run=run)
    folder = tmp_path / "workspace/adapters" / version.path
    shutil.rmtree(folder)
    make_artifact(folder, tiny, target_modules=["q_proj"], seed=9)
    with pytest.raises(IntegrityError, match="but the registry has"):
        store.fetch(version)
