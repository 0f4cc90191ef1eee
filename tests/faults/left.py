"""What may be left of a command that ended badly: nothing, or all of it.

Owns: the complaints after a fault, in sentences. Must not know: how the fault was made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

from faults.cases import Ended, Scene
from faults.steps import Fault
from trunkline.adapters.artifact import read_artifact
from trunkline.errors import IntegrityError

VERIFY = ("adapters", "verify", "--all")
AUDIT = ("audit", "verify")
GC = ("gc",)
KEPT = ("visible", "removed")
"""States of a version that stay."""

LITTER = (
    ".trunkline/runs/*",
    "adapters/.publishing-*",
    "adapters/toy/animals/2*",
    "adapters/toy/half*",
    "adapters/toy/whole*",
)
"""What the scene ``littered`` holds that gc is to take, below the workspace."""


@dataclass
class Left:
    """Looks at a case after a fault.

    Args:
        scene: of the cases, laid out anew as this is made.
        again: the same command, as words; what it must succeed with.
        makes: how many versions the command makes visible.
        takes: refs of versions that the command removes.
        litter: patterns of files below the workspace that are to be gone in the end.
        allowed: patterns of files below the case that may stay.
        also: what else to look at, right after the fault and in the end.
        at_last: the same, in the end alone.
        hours: that pass before gc; what may be in use is left alone for one.
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
        going = [f"adapters/{place_of(ref)}" for ref in self.takes]
        going += [f"{one}/*" for one in going] + [*self.litter]
        self._files = {
            name: digest
            for name, digest in self.scene.files().items()
            if not any(fnmatch(name, pattern) for pattern in going)
        }

    def __call__(self, fault: Fault, ended: Ended) -> Iterator[str]:
        """:meth:`look`, whatever the fault was."""
        yield from self.look()

    def look(self) -> Iterator[str]:
        """What is wrong right after the fault, after the same command, and after gc."""
        first = self.scene.versions()
        yield from self._versions_whole(first)
        yield from self.also()
        done = self.scene.commands(VERIFY, self.again)
        self._let_time_pass()
        done += self.scene.commands(GC, VERIFY, AUDIT)
        for one in done:
            if one["status"] != 0 and not self._done_before(one["words"], one["output"]):
                told = f"`{' '.join(one['words'])}` ends with {one['status']}"
                yield f"{told}: {one['output'].strip()}"
        last = self.scene.versions()
        yield from self._versions_whole(last)
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

    def _done_before(self, words: Sequence[str], output: str) -> bool:
        """Whether a removal says that the killed one had removed the version already."""
        return bool(self.takes) and [*words] == [*self.again] and "was removed" in output

    def _versions_whole(self, versions: dict[str, str]) -> Iterator[str]:
        """Every version is as it was, or new and whole."""
        for ref, status in self._versions.items():
            gone = ref in self.takes and versions.get(ref) == "removed"
            if versions.get(ref) != status and not gone:
                yield f"{ref} was {status}, is {versions.get(ref)}"
        if self._new(versions) > 2 * self.makes:
            yield f"{self._new(versions)} versions came up"
        yield from self.artifacts()
        files = self.scene.files()
        for name, digest in self._files.items():
            if files.get(name) != digest:
                yield f"{name} was {'changed' if name in files else 'lost'}"

    def artifacts(self) -> Iterator[str]:
        """Visible versions whose files are not whole."""
        for path, digest in visible_artifacts(self.scene):
            try:
                read_artifact(self.scene.workspace / "adapters" / path, digest)
            except IntegrityError as error:
                yield f"{path} is visible and not whole: {error.message}"

    def _leftovers(self, versions: dict[str, str]) -> Iterator[str]:
        kept = [
            f"workspace/adapters/{place_of(ref)}"
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


def place_of(ref: str) -> str:
    """The folder of a version, below ``adapters/``."""
    return ref.replace("@", "/")


def visible_artifacts(scene: Scene) -> list[tuple[str, str]]:
    """Path below ``adapters/`` and digest of every visible version."""
    rows = scene.rows("SELECT path, digest FROM versions WHERE status = 'visible' ORDER BY path")
    return [(str(path), str(digest)) for path, digest in rows]


def told_once(output: str) -> list[str]:
    """What is wrong with how a refusal was told: one error, one hint, no traceback."""
    errors = [line for line in output.splitlines() if line.startswith("Error:")]
    wrong = []
    if len(errors) != 1:
        wrong.append(f"{len(errors)} errors were told: {output.strip()!r}")
    if "Hint:" not in output:
        wrong.append(f"no hint was told: {output.strip()!r}")
    if "Traceback" in output:
        wrong.append(f"a traceback was shown: {output.strip()[-600:]!r}")
    return wrong
