"""One fault a case: a fresh copy of a workspace, a command that ends badly, and what is left.

Owns: copying, forking, reading back files and rows, and going through all faults of a command.
Must not know: any one command.
"""

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
"""What every child would import by itself; the rest comes with rehearsing."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a forked operation ended.

    Attributes:
        killed: by SIGKILL, as its fault says.
        status: of the process; a command that says no has 0 here and its own in ``result``.
        output: both streams.
        result, steps: None and none if it did not come to its end.
    """

    killed: bool
    status: int
    output: str
    result: Any = None
    steps: tuple[Step, ...] = ()


class Forks:
    """The warmed process, and operations in forks of it."""

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
        """Do an operation once in the warmed process itself, in a workspace of no importance."""
        self._ask({"rehearse": operation, "arguments": arguments, "environment": dict(environment)})

    def run(
        self,
        operation: str,
        environment: Mapping[str, str],
        *,
        watch: Path | None = None,
        fault: Fault | None = None,
        **arguments: Any,
    ) -> Ended:
        """Do an operation of ``faults.operations`` in a fork."""
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
        return Ended(**answer, steps=steps)

    def close(self) -> None:
        """End the warmed process."""
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
        assert line, "the warmed process ended; its own output says why"
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass(frozen=True)
class Scene:
    """A prepared workspace, to be copied for each case, and where the copies live.

    Attributes:
        made: the prepared folder; holds ``workspace``, ``tmp`` and ``out``.
        root: where each case is laid out; the same for all, so that their steps are the same.
        settings: more environment variables.
        renew: what else must be set back before a case (a database, a bucket).
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
        """Of a child: this workspace, and nothing of the user's own."""
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
        """Lay the case out anew."""
        self.root.mkdir(exist_ok=True)
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.made, self.root, symlinks=True, dirs_exist_ok=True)
        self.renew()
        return self

    def run(self, operation: str, *, fault: Fault | None = None, **arguments: Any) -> Ended:
        """Do an operation in this case, every step of it watched."""
        return self.forks.run(
            operation, self.environment, watch=self.root, fault=fault, **arguments
        )

    def commands(self, *lines: Sequence[str]) -> list[dict[str, Any]]:
        """Run commands in one fork, unwatched; see :func:`faults.operations.commands`."""
        ended = self.forks.run("commands", self.environment, lines=[list(words) for words in lines])
        assert ended.status == 0, ended.output
        results: list[dict[str, Any]] = ended.result
        return results

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read the registry past Trunkline."""
        engine = sa.create_engine(self.registry_url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query))]

    def versions(self) -> dict[str, str]:
        """``domain/name@number`` → its status."""
        found = self.rows(
            "SELECT domain, name, number, status FROM versions"
            " JOIN adapters ON adapters.id = versions.adapter_id"
        )
        return {f"{domain}/{name}@{number}": status for domain, name, number, status in found}

    def files(self, below: str = "workspace") -> dict[str, str]:
        """Path → digest of its bytes (folders: ``""``), without the registry's own files."""
        top = self.root / below
        found = {}
        for path in sorted(top.rglob("*")):
            name = path.relative_to(top).as_posix()
            if name.startswith("registry.db"):
                continue
            whole = path.is_file() and not path.is_symlink()
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if whole else ""
        return found


def enumerated(scene: Scene, operation: str, **arguments: Any) -> list[Step]:
    """The steps of the operation when nothing goes wrong; twice, and they must be the same."""
    runs = []
    for _ in range(2):
        ended = scene.reset().run(operation, **arguments)
        assert ended.status == 0, ended.output
        assert ended.result == 0, ended.output
        runs.append(list(ended.steps))
    for index, (one, other) in enumerate(zip_longest(*runs)):
        assert one == other, f"step {index} is {one}, then {other}: faults can't be placed"
    return runs[0]


def sampled(faults: Sequence[Fault], most: int) -> list[Fault]:
    """Some of them: those at commits and renames first, the rest evenly from all."""
    telling = [fault for fault in faults if fault.step.kind in ("commit", "rename", "put")]
    if len(telling) > most // 2:
        telling = _spread(telling, most - most // 2)
    chosen = {*telling, *_spread(faults, most - len(telling))}
    return [fault for fault in faults if fault in chosen]


def _spread(faults: Sequence[Fault], count: int) -> list[Fault]:
    if count < 1 or not faults:
        return []
    stride = max(len(faults) / count, 1.0)
    return [faults[int(place * stride)] for place in range(min(count, len(faults)))]


def try_all(
    scene: Scene,
    operation: str,
    settled: Callable[[Fault, Ended], Iterable[str]],
    *,
    modes: Sequence[When],
    most: int | None = None,
    **arguments: Any,
) -> int:
    """Put the operation through its faults, each in a fresh case, and look at what is left.

    Args:
        settled: says what is wrong afterwards, in sentences; none if nothing is.
        modes: kinds of faults.
        most: only a sample of so many.
        arguments: of the operation.

    Returns:
        How many faults were tried. Raises AssertionError with all complaints.
    """
    faults = faults_of(enumerated(scene, operation, **arguments), *modes)
    assert faults, "the operation takes no step"
    chosen = faults if most is None else sampled(faults, most)
    wrong = []
    for fault in chosen:
        ended = scene.reset().run(operation, fault=fault, **arguments)
        told = f"{fault.when} step {fault.index} ({fault.step})"
        if ended.status == LOST:
            wrong.append(f"{told}: another step was met there")
        elif fault.when != "full" and not ended.killed:
            wrong.append(f"{told}: was not met; {ended.output.strip()}")
        else:
            wrong += [f"{told}: {complaint}" for complaint in settled(fault, ended)]
    with suppress(OSError):
        shutil.rmtree(scene.root)
    assert not wrong, f"{len(wrong)} complaints:\n" + "\n".join(wrong)
    return len(chosen)
