"""Prepared workspaces, the warm process that commands are forked from, and small disks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import next_revision
from faults.cases import MODULES, Forks, Scene, enumerate_steps
from faults.postgresql import Postgres
from faults.small_disk import MountError, SmallDisk
from faults.steps import Fault
from registry_rows import fill
from workbench import make_artifact, tiny

__all__ = ["tiny"]

SIZE = 1 << 20
"""Of the small disk, in bytes."""

NOT_MOUNTED: list[str] = []
"""Why there is no small disk, if there is none."""

REHEARSED = (
    ("db", "upgrade"),
    ("db", "current"),
    ("adapters", "list", "--json"),
    ("adapters", "verify", "--all"),
    ("adapters", "rm", "toy/none@1", "--reason", "a rehearsal"),
    ("adapters", "promote", "toy/none@1"),
    ("adapters", "export", "toy/none@1", "none.tar"),
    ("db", "backup", "none/none.db"),
    ("db", "restore", "none.db"),
    ("gc",),
    ("audit", "verify"),
)
"""Commands that the warm process runs before any fork, so that forks import little."""


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all fault tests."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def sound(faulty: Path, tiny: Path) -> Path:
    """A read-only classification artifact on the tiny Llama."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRUNKLINE_CACHE", str(faulty / "cache"))
        make_artifact(faulty / "sound", tiny, target_modules=["q_proj", "v_proj"])
    return faulty / "sound"


@pytest.fixture(scope="session")
def forks(faulty: Path) -> Iterator[Forks]:
    """Forks of a process without torch."""
    made = warmed(faulty / "light")
    yield made
    made.close()


@pytest.fixture(scope="session")
def heavy(faulty: Path, imports: list[str]) -> Iterator[Forks]:
    """Forks of a process that has imported an adapter, and so torch; they are slower."""
    made = warmed(faulty / "heavy")
    made.rehearse("command", rehearsing(faulty / "heavy"), args=imports)
    yield made
    made.close()


def warmed(folder: Path) -> Forks:
    (folder / "workspace").mkdir(parents=True)
    made = Forks(folder)
    made.warm(*MODULES)
    made.rehearse("commands", rehearsing(folder), lines=REHEARSED)
    return made


def rehearsing(folder: Path) -> dict[str, str]:
    """The environment of a scratch workspace."""
    return {
        "TRUNKLINE_WORKSPACE": str(folder / "workspace"),
        "TRUNKLINE_CACHE": str(folder.parent / "cache"),
        "TRUNKLINE_LOAD_PLUGINS": "",
    }


@pytest.fixture(scope="session")
def imports(sound: Path, tiny: Path) -> list[str]:
    """The arguments that import the artifact as the next version of ``toy/animals``."""
    return import_words(sound, tiny, "toy/animals")


def import_words(folder: Path, base: Path, name: str) -> list[str]:
    labels = ("--labels", "bird,fish,mammal")
    return ["adapters", "import", str(folder), "--name", name, "--base", str(base), *labels]


@pytest.fixture(scope="session")
def empty(faulty: Path, forks: Forks) -> Scene:
    """An empty workspace."""
    made = faulty / "empty"
    for name in ("workspace", "tmp", "out"):
        (made / name).mkdir(parents=True)
    return Scene(forks, made, faulty / "case")


@pytest.fixture(scope="session")
def stocked(heavy: Forks, empty: Scene, imports: list[str], sound: Path, tiny: Path) -> Scene:
    """``toy/animals`` with two versions, the first its champion, and ``toy/fish`` with one."""
    scene = replace(empty.reset(), forks=heavy)
    lines = [
        imports,
        imports,
        import_words(sound, tiny, "toy/fish"),
        ["adapters", "promote", "toy/animals@1", "--force", "--reason", "the first"],
    ]
    for done in scene.commands(*lines):
        assert done["status"] == 0, done["output"]
    made = empty.made.with_name("stocked")
    shutil.copytree(scene.root, made)
    return replace(scene, made=made)


@pytest.fixture(scope="session")
def shelf(stocked: Scene, forks: Forks) -> Scene:
    """``stocked`` for commands that import no adapter."""
    return replace(stocked, forks=forks)


@pytest.fixture(scope="session")
def base_digest(stocked: Scene) -> str:
    """The digest of the tiny Llama, as recorded."""
    [(digest,)] = stocked.reset().rows("SELECT digest FROM bases")
    return str(digest)


@pytest.fixture(scope="session")
def packed(stocked: Scene, sound: Path, base_digest: str) -> Scene:
    """``stocked`` with ``toy/trained@1``, which has a run, and an archive of it."""
    stocked.reset()
    trained = stocked.run("train", source=str(sound), ref="toy/trained", base_digest=base_digest)
    assert trained.status == 0, trained.output
    archive = str(stocked.root / "out/in.tar")
    [done] = stocked.commands(["adapters", "export", "toy/trained@1", archive])
    assert done["status"] == 0, done["output"]
    made = stocked.made.with_name("packed")
    shutil.copytree(stocked.root, made)
    return replace(stocked, made=made)


@pytest.fixture(scope="session")
def littered(shelf: Scene, sound: Path, base_digest: str) -> Scene:
    """``stocked`` with the leftovers of killed publications, a killed removal and a dead run."""

    def fault_at(kind: str, end: str, operation: str, **arguments: Any) -> Fault:
        steps = enumerate_steps(shelf, operation, **arguments)
        places = [
            index
            for index, step in enumerate(steps)
            if step.kind == kind and step.what.endswith(end)
        ]
        return Fault(places[0], "before" if kind == "remove" else "after", steps[places[0]])

    half = {"source": str(sound), "ref": "toy/half", "base_digest": base_digest}
    unpublished = {"source": str(sound), "ref": "toy/unpublished", "base_digest": base_digest}
    remove = {"args": ["adapters", "rm", "toy/animals@2", "--reason", "litter"]}
    faults = [
        ("publish", half, fault_at("write", ".safetensors", "publish", **half)),
        ("publish", unpublished, fault_at("rename", "/1", "publish", **unpublished)),
        ("command", remove, fault_at("remove", "", "command", **remove)),
    ]
    shelf.reset()
    for operation, arguments, fault in faults:
        ended = shelf.run(operation, fault=fault, **arguments)
        assert ended.killed, ended.output
    dead = shelf.workspace / ".trunkline/runs/7"
    dead.mkdir(parents=True)
    (dead / ".lock").touch()
    (dead / "log.txt").write_text("a run without a checkpoint")
    made = shelf.made.with_name("littered")
    shutil.copytree(shelf.root, made)
    return replace(shelf, made=made)


@pytest.fixture(scope="session")
def old(empty: Scene) -> Scene:
    """A workspace with a SQLite registry of the first schema, for code with a second revision."""
    made = empty.made.with_name("old")
    for name in ("workspace", "tmp", "out"):
        (made / name).mkdir(parents=True)
    fill(f"sqlite:///{made / 'workspace' / 'registry.db'}")
    migrations = next_revision.write(made)
    return replace(empty, made=made, settings={next_revision.ENVIRONMENT: str(migrations)})


@pytest.fixture(scope="session")
def small_disk(faulty: Path) -> Iterator[SmallDisk]:
    """A disk of a few hundred kilobytes; tests that need one are skipped if it can't be mounted."""
    try:
        disk = SmallDisk(faulty / "disk", SIZE)
    except MountError as error:
        NOT_MOUNTED.append(str(error))
        pytest.skip(f"Full and read-only disks are not tested: mounting is forbidden ({error}).")
    yield disk
    disk.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report what was not tested."""
    if NOT_MOUNTED:
        terminalreporter.section("NOT TESTED: full and read-only disks", yellow=True)
        terminalreporter.line(
            f"A small disk can't be mounted here ({NOT_MOUNTED[0]}). Run these tests as root, or "
            "where mounting a tmpfs is allowed: python -m pytest tests/faults/test_full_disk.py"
        )


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()
