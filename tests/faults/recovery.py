"""Checks after a fault: a command has left nothing behind, or has completed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from faults.cases import Outcome, Scene
from faults.steps import Fault
from trunkline.adapters.artifact import read_artifact
from trunkline.errors import IntegrityError

VERIFY = ("adapters", "verify", "--all")
AUDIT = ("audit", "verify")
GC = ("gc",)
KEPT = ("visible", "removed")
"""The final statuses of a version."""

LITTER = (
    ".trunkline/runs/*",
    "adapters/.publishing-*",
    "adapters/toy/animals/2*",
    "adapters/toy/half*",
    "adapters/toy/unpublished*",
)
"""What gc must delete in the scene ``littered``, relative to the workspace."""


@dataclass
class RecoveryCheck:
    """Checks a case after a fault.

    Args:
        scene: of the cases; it is reset when the check is created.
        again: the arguments of the same command, which must succeed.
        makes: how many versions the command makes visible.
        takes: refs of versions that the command removes.
        litter: patterns of files below the workspace that must be gone in the end.
        allowed: patterns of files below the case that may remain.
        also: more checks, right after the fault and in the end.
        at_last: more checks, only in the end.
        hours: how much time passes before gc, which keeps recent files for one hour.
    """

    scene: Scene
    again: Sequence[str]
    makes: int = 0
    takes: Sequence[str] = ()
    litter: Sequence[str] = ()
    allowed: Sequence[str] = ()
    also: Callable[[], Iterable[str]] = tuple
    at_last: Callable[[], Iterable[str]] = tuple
    hours: int = 0
    _versions: dict[str, str] = field(init=False)
    _files: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.scene.reset()
        self._versions = {
            ref: status for ref, status in self.scene.versions().items() if status in KEPT
        }
        going = [f"adapters/{folder_of(ref)}" for ref in self.takes]
        going += [f"{one}/*" for one in going] + [*self.litter]
        self._files = {
            name: digest
            for name, digest in self.scene.files().items()
            if not any(fnmatch(name, pattern) for pattern in going)
        }

    def __call__(self, fault: Fault, ended: Outcome) -> Iterator[str]:
        """Run :meth:`look`; the fault makes no difference."""
        yield from self.look()

    def look(self) -> Iterator[str]:
        """Problems right after the fault, after the same command, and after gc."""
        first = self.scene.versions()
        yield from self._check_versions(first)
        yield from self.also()
        done = self.scene.commands(VERIFY, self.again)
        self._let_time_pass()
        done += self.scene.commands(GC, VERIFY, AUDIT)
        for one in done:
            if one["status"] != 0 and not self._done_before(one["args"], one["output"]):
                problem = f"`{' '.join(one['args'])}` ends with {one['status']}"
                yield f"{problem}: {one['output'].strip()}"
        last = self.scene.versions()
        yield from self._check_versions(last)
        made = self._new(last)
        if made - self._new(first) != self.makes:
            yield f"the same command made {made - self._new(first)} versions"
        for ref in self.takes:
            if last.get(ref) != "removed":
                yield f"{ref} is {last.get(ref)} after the same command"
        for ref, status in last.items():
            if status == "pending":
                yield f"{ref} is still reserved after gc"
        yield from self._leftovers(last)
        yield from self.also()
        yield from self.at_last()

    def _let_time_pass(self) -> None:
        then = time.time() - self.hours * 3600
        for path in self.scene.workspace.rglob("*") if self.hours else ():
            os.utime(path, (then, then))

    def _new(self, versions: dict[str, str]) -> int:
        visible = {ref for ref, status in versions.items() if status == "visible"}
        return len(visible - self._versions.keys())

    def _done_before(self, args: Sequence[str], output: str) -> bool:
        """Whether a removal reports that the killed one had already removed the version."""
        return bool(self.takes) and [*args] == [*self.again] and "was removed" in output

    def _check_versions(self, versions: dict[str, str]) -> Iterator[str]:
        """Check that every version is unchanged, or new and complete."""
        for ref, status in self._versions.items():
            gone = ref in self.takes and versions.get(ref) == "removed"
            if versions.get(ref) != status and not gone:
                yield f"{ref} was {status}, is {versions.get(ref)}"
        if self._new(versions) > 2 * self.makes:
            yield f"{self._new(versions)} versions appeared"
        yield from self.artifacts()
        files = self.scene.files()
        for name, digest in self._files.items():
            if files.get(name) != digest:
                yield f"{name} was {'changed' if name in files else 'lost'}"

    def artifacts(self) -> Iterator[str]:
        """Report visible versions whose files are incomplete."""
        for path, digest in visible_artifacts(self.scene):
            try:
                read_artifact(self.scene.workspace / "adapters" / path, digest)
            except IntegrityError as error:
                yield f"{path} is visible but incomplete: {error.message}"

    def _leftovers(self, versions: dict[str, str]) -> Iterator[str]:
        kept = [
            f"workspace/adapters/{folder_of(ref)}"
            for ref, status in versions.items()
            if status == "visible"
        ]
        for below in ("workspace", "tmp", "out"):
            for name in self.scene.files(below):
                path = f"{below}/{name}"
                belongs = any(
                    path == one or path.startswith(f"{one}/") or one.startswith(f"{path}/")
                    for one in kept
                )
                allowed = any(fnmatch(path, pattern) for pattern in self.allowed)
                known = below == "workspace" and name in self._files
                if not (belongs or allowed or known):
                    yield f"{path} is left after gc"


def folder_of(ref: str) -> str:
    """The folder of a version, below ``adapters/``."""
    return ref.replace("@", "/")


def visible_artifacts(scene: Scene) -> list[tuple[str, str]]:
    """Path below ``adapters/`` and digest of every visible version."""
    rows = scene.rows("SELECT path, digest FROM versions WHERE status = 'visible' ORDER BY path")
    return [(str(path), str(digest)) for path, digest in rows]


def reporting_problems(output: str) -> list[str]:
    """What is wrong with how an error was reported: one error, one hint, no traceback."""
    errors = [line for line in output.splitlines() if line.startswith("Error:")]
    wrong = []
    if len(errors) != 1:
        wrong.append(f"{len(errors)} errors were printed: {output.strip()!r}")
    if "Hint:" not in output:
        wrong.append(f"no hint was printed: {output.strip()!r}")
    if "Traceback" in output:
        wrong.append(f"a traceback was printed: {output.strip()[-600:]!r}")
    return wrong
