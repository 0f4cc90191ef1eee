"""Run a command with one fault in a fresh copy of a workspace, and collect what remains."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from faults.steps import LOST, Fault, Step, When, faults_of

TESTS = Path(__file__).parents[1]

MODULES = (
    "alembic.command",
    "faults.operations",
    "psycopg",
    "s3fs.core",
    "sqlalchemy.dialects.postgresql.psycopg",
    "trunkline.cli.root",
)
"""Modules that every child needs; rehearsals import the rest."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a forked operation.

    Attributes:
        killed: by SIGKILL, as the fault requires.
        status: exit status of the process; that of a command is in ``result``.
        output: both streams.
        result, steps: None and empty if the operation did not finish.
    """

    killed: bool
    status: int
    output: str
    result: Any = None
    steps: tuple[Step, ...] = ()


class Forks:
    """The warm process, and operations in forks of it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        environment = {**os.environ, "PYTHONPATH": str(TESTS), "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=scratch,
        )
        self._warm: set[str] = set()

    def warm(self, *modules: str) -> None:
        """Import modules once, for all later forks."""
        new = [name for name in modules if name not in self._warm]
        if new:
            self._ask({"warm": new})
            self._warm |= set(new)

    def rehearse(self, operation: str, environment: Mapping[str, str], **arguments: Any) -> None:
        """Run an operation once in the warm process itself, in a scratch workspace."""
        self._ask({"rehearse": operation, "arguments": arguments, "environment": dict(environment)})

    def run(
        self,
        operation: str,
        environment: Mapping[str, str],
        *,
        watch: Path | None = None,
        fault: Fault | None = None,
        **arguments: Any,
    ) -> Outcome:
        """Run an operation of ``faults.operations`` in a fork."""
        answer = self._ask(
            {
                "operation": operation,
                "arguments": arguments,
                "environment": dict(environment),
                "watch": None if watch is None else str(watch),
                "fault": None if fault is None else asdict(fault),
                "scratch": str(self._scratch),
            }
        )
        steps = tuple(Step(**step) for step in answer.pop("steps", ()))
        return Outcome(**answer, steps=steps)

    def close(self) -> None:
        """End the warm process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(10)

    def _ask(self, job: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the warm process ended; see its output"
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Scene:
    """A prepared workspace that is copied for each case.

    Attributes:
        made: the prepared folder; holds ``workspace``, ``tmp`` and ``out``.
        root: the folder of each case; the same for all, so that their steps are the same.
        settings: more environment variables.
        renew: resets what else a case uses (a database, a bucket).
    """

    forks: Forks
    made: Path
    root: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    renew: Callable[[], None] = lambda: None

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a child: this workspace and none of the user's settings."""
        return {
            "TRUNKLINE_WORKSPACE": str(self.workspace),
            "TRUNKLINE_CACHE": str(self.made.parent / "cache"),
            "TRUNKLINE_LOAD_PLUGINS": "",
            "TMPDIR": str(self.root / "tmp"),
            "USER": "ada",
            "LOGNAME": "ada",
            **self.settings,
        }

    @property
    def registry_url(self) -> str:
        return self.settings.get(
            "TRUNKLINE_REGISTRY", f"sqlite:///{self.workspace / 'registry.db'}"
        )

    def reset(self) -> Self:
        """Create a fresh copy of the prepared workspace."""
        self.root.mkdir(exist_ok=True)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.made, self.root, symlinks=True, dirs_exist_ok=True)
        self.renew()
        return self

    def run(self, operation: str, *, fault: Fault | None = None, **arguments: Any) -> Outcome:
        """Run an operation in this case and watch all of its steps."""
        return self.forks.run(
            operation, self.environment, watch=self.root, fault=fault, **arguments
        )

    def commands(self, *lines: Sequence[str]) -> list[dict[str, Any]]:
        """Run commands in one fork, unwatched; see :func:`faults.operations.commands`."""
        ended = self.forks.run("commands", self.environment, lines=[list(args) for args in lines])
        assert ended.status == 0, ended.output
        results: list[dict[str, Any]] = ended.result
        return results

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Query the registry directly."""
        engine = sa.create_engine(self.registry_url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def versions(self) -> dict[str, str]:
        """``domain/name@number`` → its status."""
        entries = self.rows(
            "SELECT domain, name, number, status FROM versions"
            " JOIN adapters ON adapters.id = versions.adapter_id"
        )
        return {f"{domain}/{name}@{number}": status for domain, name, number, status in entries}

    def files(self, below: str = "workspace") -> dict[str, str]:
        """Path → digest of its bytes (folders: ``""``), without the registry's own files."""
        top = self.root / below
        entries = {}
        for path in sorted(top.rglob("*")):
            name = path.relative_to(top).as_posix()
            if name.startswith("registry.db"):
                continue
            is_plain_file = path.is_file() and not path.is_symlink()
            entries[name] = hashlib.sha256(path.read_bytes()).hexdigest() if is_plain_file else ""
        return entries


def enumerate_steps(scene: Scene, operation: str, **arguments: Any) -> list[Step]:
    """The steps of an operation without a fault; two runs must take the same steps."""
    runs = []
    for _ in range(2):
        ended = scene.reset().run(operation, **arguments)
        assert ended.status == 0, ended.output
        assert ended.result == 0, ended.output
        runs.append(list(ended.steps))
    for index, (one, other) in enumerate(zip_longest(*runs)):
        assert one == other, f"step {index} is {one}, then {other}: faults can't be placed"
    return runs[0]


def sample_faults(faults: Sequence[Fault], most: int) -> list[Fault]:
    """A sample of faults: first at commits and renames, the rest evenly spaced."""
    important = [fault for fault in faults if fault.step.kind in ("commit", "rename", "put")]
    if len(important) > most // 2:
        important = _spread(important, most - most // 2)
    chosen = {*important, *_spread(faults, most - len(important))}
    return [fault for fault in faults if fault in chosen]


def _spread(faults: Sequence[Fault], count: int) -> list[Fault]:
    if count < 1 or not faults:
        return []
    stride = max(len(faults) / count, 1.0)
    return [faults[int(place * stride)] for place in range(min(count, len(faults)))]


def try_faults(
    scene: Scene,
    operation: str,
    settled: Callable[[Fault, Outcome], Iterable[str]],
    *,
    modes: Sequence[When],
    most: int | None = None,
    **arguments: Any,
) -> int:
    """Run an operation once per fault, each in a fresh case, and check what remains.

    Args:
        settled: returns the problems after a fault, in sentences.
        modes: kinds of faults.
        most: the maximum number of faults; a sample is taken.
        arguments: of the operation.

    Returns:
        The number of faults tried. Raises AssertionError with all problems.
    """
    faults = faults_of(enumerate_steps(scene, operation, **arguments), *modes)
    assert faults, "the operation takes no step"
    chosen = faults if most is None else sample_faults(faults, most)
    wrong = []
    for fault in chosen:
        ended = scene.reset().run(operation, fault=fault, **arguments)
        place = f"{fault.when} step {fault.index} ({fault.step})"
        if ended.status == LOST:
            wrong.append(f"{place}: the process took another step")
        elif fault.when != "full" and not ended.killed:
            wrong.append(f"{place}: was not reached; {ended.output.strip()}")
        else:
            wrong += [f"{place}: {complaint}" for complaint in settled(fault, ended)]
    with suppress(OSError):
        shutil.rmtree(scene.root)
    assert not wrong, f"{len(wrong)} complaints:\n" + "\n".join(wrong)
    return len(chosen)
