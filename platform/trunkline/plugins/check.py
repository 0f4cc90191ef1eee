"""Check one plugin before it is installed or published, in an interpreter of its own.

A plugin may end, crash or block the interpreter that imports it, so another one is started for
each. It runs :mod:`trunkline.training.plugin_check` and writes one JSON object per line: the stage
that begins, a finding, or that it is done. A folder is built into a wheel and unpacked, as an
installation would do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from queue import Empty, Queue
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from trunkline.errors import NotFoundError, PluginError, UsageError
from trunkline.plugins.discovery import (
    GROUP,
    Candidate,
    core_candidate,
    find_plugins,
    rejected_claims,
)
from trunkline.plugins.install import run_pip

TIMEOUT = 300.0
"""Seconds that one stage of a check may take."""

_GRACE = 5.0
_PROGRAM = """
import json, sys
request = json.loads(sys.argv[1])
sys.path[:] = request["path"]
from trunkline.process import ignore_unreadable_entry_points
ignore_unreadable_entry_points()
from trunkline.training.plugin_check import main
main(request)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of :func:`check`; a plugin with an ``error`` can't be used as it is.

    Attributes:
        subject: name of the plugin or spec that it is about.
    """

    level: Literal["error", "warning"]
    subject: str
    message: str

    @classmethod
    def error(cls, subject: str, message: str) -> Finding:
        """A finding that makes the plugin unusable."""
        return cls(level="error", subject=subject, message=message)

    @classmethod
    def warning(cls, subject: str, message: str) -> Finding:
        """A finding that the author should know about."""
        return cls(level="warning", subject=subject, message=message)


def check(
    target: str | Path,
    *,
    owners: Mapping[str, str] = MappingProxyType({}),
    base: str | None = None,
    timeout: float = TIMEOUT,
    on_stage: Callable[[str], None] = lambda text: None,
) -> tuple[Finding, ...]:
    """Load one plugin alone, check its recipes without a base, and report what is wrong.

    Args:
        target: domain or distribution of an installed plugin, or the folder of its
            ``pyproject.toml``, whose wheel is built and checked; it need not be installed.
        owners: domain → the distribution that it belongs to, from ``trunkline.toml``.
        base: name of the base whose tokenizer counts the lengths of texts; None: not counted.
        timeout: seconds that one stage may take: importing it, reading a dataset and so on.
        on_stage: called with a phrase when a stage begins.

    Returns:
        Errors and warnings; empty if there are none.

    Raises:
        NotFoundError: no such plugin or folder.
        UsageError: the folder holds no plugin.
    """
    installed = (core_candidate(), *find_plugins())
    matches = [one for one in installed if target in (one.domain, one.distribution)]
    if matches and isinstance(target, str):
        return _check_installed(matches, owners, base, timeout, on_stage)
    folder = Path(target).expanduser()
    if base is not None and os.path.isdir(base):  # the other interpreter has another folder
        base = os.path.abspath(base)
    if not folder.is_dir():
        known = [one.domain for one in installed]
        hint = "Give the domain of an installed plugin, or the folder of its pyproject.toml."
        raise NotFoundError.named("plugin or folder", str(target), known, hint)
    with TemporaryDirectory(prefix="trunkline-") as temporary:
        return _check_folder(folder, Path(temporary).resolve(), owners, base, timeout, on_stage)


def _check_installed(
    candidates: Iterable[Candidate],
    owners: Mapping[str, str],
    base: str | None,
    timeout: float,
    on_stage: Callable[[str], None],
) -> tuple[Finding, ...]:
    rejected = rejected_claims(find_plugins(), owners)
    findings: list[Finding] = []
    for candidate in candidates:
        if candidate in rejected:
            findings.append(Finding.error(candidate.distribution, rejected[candidate]))
        else:
            findings += _examine(_Request(candidate, sys.path, base), timeout, on_stage)
    return tuple(dict.fromkeys(findings))


def _check_folder(
    folder: Path,
    temporary: Path,
    owners: Mapping[str, str],
    base: str | None,
    timeout: float,
    on_stage: Callable[[str], None],
) -> tuple[Finding, ...]:
    project = read_project(folder)
    site, scratch = temporary / "site", temporary / "copy"
    scratch.mkdir()
    findings: list[Finding] = []
    left_out: list[Path] = []
    on_stage("building the wheel")
    try:
        unpack_wheel(folder, site, scratch)
        candidates = find_plugins([str(site)])
        left_out = list(files_left_out(folder, site))
    except PluginError as error:
        findings.append(Finding.error(str(folder), f"{error.message} {error.hint or ''}".strip()))
        candidates = _declared(project)
        site = (folder / "src" if (folder / "src").is_dir() else folder).resolve()
    if not candidates and not findings:
        raise UsageError(
            f"{str(folder / 'pyproject.toml')!r} declares no plugin: its wheel has no entry point "
            f"of the group {GROUP!r}.",
            f'Write for example [project.entry-points.{GROUP}] with mydomain = "my_module".',
        )
    for candidate in candidates:
        findings += _claim_findings(candidate, owners)
        request = _Request(candidate, [str(site), *sys.path], base, site, scratch)
        for finding in _examine(request, timeout, on_stage):
            findings.append(_explained(finding, site, left_out))
    return tuple(dict.fromkeys(findings))


def _declared(project: Mapping[str, Any]) -> tuple[Candidate, ...]:
    """The plugins that ``pyproject.toml`` declares."""
    table = project.get("project", {})
    points = table.get("entry-points", {}).get(GROUP, {})
    return tuple(
        Candidate(
            domain=domain,
            distribution=str(table.get("name", "unknown")),
            version=str(table.get("version", "unknown")),
            entry_point=EntryPoint(name=domain, value=value, group=GROUP),
        )
        for domain, value in points.items()
    )


def _claim_findings(candidate: Candidate, owners: Mapping[str, str]) -> list[Finding]:
    """Whether an installed plugin of another distribution owns the domain."""
    name = canonicalize_name(candidate.distribution)
    others = [one for one in find_plugins() if canonicalize_name(one.distribution) != name]
    newest = replace(candidate, installed=float("inf"))
    reason = rejected_claims((*others, newest), owners).get(newest)
    if reason is None:
        return []
    return [Finding.error(candidate.domain, f"once installed, it is not loaded: {reason}")]


def _explained(finding: Finding, site: Path, left_out: Iterable[Path]) -> Finding:
    """The finding with paths relative to the wheel, and the cure if a file is missing in it."""
    message = finding.message.replace(f"{site}{os.sep}", "")
    for file in left_out:
        if file.name in message:
            message += (
                f"; the folder has {file.as_posix()} but the wheel does not: declare it as package "
                "data, for example [tool.setuptools.package-data] with "
                f'{file.parts[0]} = ["*{file.suffix}"]'
            )
            break
    return replace(finding, message=message)


# --------------------------------------------------------------------------- the other interpreter


@dataclass(frozen=True, slots=True)
class _Request:
    """What the other interpreter checks.

    Attributes:
        path: its ``sys.path``.
        base: whose tokenizer counts lengths, if any.
        root: the folder that the plugin's modules must come from, if that is known.
        folder: its working folder; None: this process's.
        rows_only: compute nothing but a digest of each dataset's rows.
    """

    candidate: Candidate
    path: list[str]
    base: str | None = None
    root: Path | None = None
    folder: Path | None = None
    rows_only: bool = False

    def to_json(self) -> str:
        one = self.candidate
        return json.dumps(
            {
                "domain": one.domain,
                "distribution": one.distribution,
                "version": one.version,
                "module": one.entry_point and one.module,
                "violation": one.violation,
                "notes": one.notes,
                "path": [os.path.abspath(folder) for folder in self.path],
                "root": None if self.root is None else str(self.root),
                "base": self.base,
                "rows_only": self.rows_only,
            }
        )


def _examine(request: _Request, timeout: float, on_stage: Callable[[str], None]) -> list[Finding]:
    """Check one plugin, and whether it gives the same rows in another process."""
    digests: dict[str, str] = {}
    again: dict[str, str] = {}
    findings = _run(request, timeout, on_stage, digests)
    if digests:
        on_stage("reading the rows in another process")
        findings += _run(replace(request, rows_only=True), timeout, lambda text: None, again)
    for name, digest in digests.items():
        if again.get(name, digest) != digest:
            message = (
                "load gives other rows, or another order, in another process: it must not depend "
                "on the order of a set, on random numbers or on the time"
            )
            findings.append(Finding.error(name, message))
    return findings


def _run(
    request: _Request,
    timeout: float,
    on_stage: Callable[[str], None],
    digests: dict[str, str],
) -> list[Finding]:
    """Check one plugin in a new interpreter; ``digests`` receives those of its rows."""
    candidate = request.candidate
    findings: list[Finding] = []
    stage, done = "starting", False
    command = [sys.executable, "-P", "-X", "faulthandler", "-c", _PROGRAM, request.to_json()]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        cwd=request.folder,
        env={**os.environ, "PYTHONHASHSEED": "2" if request.rows_only else "1"},
        start_new_session=True,
    )
    lines = _lines_of(process)
    try:
        while not done:
            try:
                line = lines.get(timeout=timeout)
            except Empty:
                if process.poll() is None:
                    message = f"{stage} takes longer than {timeout:g} s; --timeout sets the limit"
                    return [*findings, Finding.error(candidate.domain, message)]
                line = None
            if line is None:
                break
            event = json.loads(line)
            done = "done" in event
            if "stage" in event:
                stage = event["stage"]
                on_stage(stage)
            if "rows" in event:
                digests[event["rows"]] = event["digest"]
            if "finding" in event:
                findings.append(Finding(**event["finding"]))
        if not done:
            message = f"{stage} ended the interpreter ({_end(process)}): a plugin must not do that"
            findings.append(Finding.error(candidate.domain, message))
        return findings
    finally:
        _stop(process, _GRACE if done else 0)


def _lines_of(process: subprocess.Popen[str]) -> Queue[str | None]:
    """A queue of the lines that the process writes, then None."""
    lines: Queue[str | None] = Queue()

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for line in stream:
                lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _end(process: subprocess.Popen[str]) -> str:
    """How a process ended."""
    try:
        code = process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        return "it closed its output"
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _stop(process: subprocess.Popen[str], grace: float) -> None:
    """Wait for a process, then end it with the processes that it started."""
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


_CACHES = {"__pycache__", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".tox",
           "node_modules"}  # fmt: skip
_OUTPUTS = {"build", "dist"}


def read_project(folder: Path) -> dict[str, Any]:
    """The contents of a folder's ``pyproject.toml``; empty if it has a ``setup.py`` instead.

    Raises:
        UsageError: there is neither file, or it can't be read.
    """
    file = folder / "pyproject.toml"
    if not file.exists() and (folder / "setup.py").exists():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{str(file)!r} declares no plugin: {type(error).__name__} {error}.",
            'Write for example [project.entry-points.trunkline] with mydomain = "my_module".',
        ) from None


def unpack_wheel(
    folder: Path,
    site: Path,
    scratch: Path,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Build a folder's wheel and unpack it into ``site``, without its dependencies.

    The wheel is built from a copy, so the folder gets no new files, and old build outputs in it
    can't hide that a file is missing. If this environment has everything that the build requires,
    no index is asked; else pip fetches it, with its own settings.

    Args:
        folder: holds the ``pyproject.toml`` or ``setup.py``.
        site: receives the packages; created.
        scratch: an empty folder for the copy.
        on_line: called with each line that pip prints.

    Raises:
        PluginError: the wheel can't be built.
    """
    project = read_project(folder)
    options = ["--no-deps", "--no-user", "--no-compile", "--target", str(site)]
    if _can_build_here(project):
        options.append("--no-build-isolation")
    copy = scratch / folder.resolve().name
    try:
        shutil.copytree(folder, copy, ignore=_ignored(folder), ignore_dangling_symlinks=True)
    except (OSError, shutil.Error) as error:
        raise PluginError(f"The folder {str(folder)!r} can't be copied: {error}.") from error
    action = f"build the wheel of {str(folder)!r}"
    try:
        run_pip(sys.executable, ["install", *options, str(copy)], action, on_line)
    except PluginError:
        if "version" not in project.get("project", {}).get("dynamic", ()):
            raise
        # The version may come from a version control system that a copy is not part of.
        run_pip(sys.executable, ["install", *options, str(folder)], action, on_line)


def files_left_out(folder: Path, site: Path) -> Iterator[Path]:
    """Files of the folder's packages that the unpacked wheel does not contain, relative to it."""
    root = folder / "src" if (folder / "src").is_dir() else folder
    for package in site.iterdir():
        source = root / package.name
        if not package.is_dir() or not source.is_dir():
            continue
        for file in sorted(source.rglob("*")):
            path = file.relative_to(root)
            skipped = file.suffix == ".pyc" or _CACHES & set(path.parts)
            if file.is_file() and not skipped and not (site / path).exists():
                yield path


def _can_build_here(project: dict[str, Any]) -> bool:
    """Whether every requirement of the build is installed in this environment."""
    required = project.get("build-system", {}).get("requires", ["setuptools"])
    try:
        for text in required:
            requirement = Requirement(text)
            installed = metadata.version(requirement.name)
            if not requirement.specifier.contains(installed, prereleases=True):
                return False
    except (InvalidRequirement, TypeError, metadata.PackageNotFoundError):
        return False
    return True


def _ignored(folder: Path) -> Callable[[Any, list[str]], set[str]]:
    def ignored(parent: Any, names: list[str]) -> set[str]:
        return {
            name
            for name in names
            if name in _CACHES
            or name.endswith(".egg-info")
            or (name in _OUTPUTS and Path(parent) == folder)
            or Path(parent, name, "pyvenv.cfg").exists()
        }

    return ignored
