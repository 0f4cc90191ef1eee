"""Find plugins without importing them, decide who owns a domain, and contain their imports.

While a plugin is imported and its hooks are called, its output goes to stderr, ``os._exit`` becomes
an exception, and the working folder, signal handlers, locale and standard streams are restored.
What can't be contained, a crash below Python or an endless import, leaves a marker file: the next
command reads it and names the plugin.
"""

from __future__ import annotations

import json
import locale
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from trunkline.plugins.catalog import CORE, PluginInfo
from trunkline.process import exits_refused, stdout_to_stderr
from trunkline.workspace import cache_folder

GROUP = "trunkline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A discovered plugin, not imported.

    Attributes:
        entry_point: None if the distribution's ``entry_points.txt`` can't be parsed.
        installed: time of its installation, in seconds since the epoch.
        violation: why it can't be imported, or None.
        notes: what the user should know about its installation.
    """

    domain: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint | None
    installed: float = 0.0
    violation: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module that the entry point names."""
        return self.entry_point.value if self.entry_point else "unknown"

    @property
    def label(self) -> str:
        """Distribution and version: ``trunkline-law 1.0``."""
        return f"{self.distribution} {self.version}"

    def info(self, **fields: Any) -> PluginInfo:
        """Its :class:`PluginInfo` with the given status, reason and so on."""
        fields["notes"] = (*self.notes, *fields.get("notes", ()))
        return PluginInfo(
            domain=self.domain,
            module=self.module,
            distribution=self.distribution,
            version=self.version,
            **fields,
        )


@cache
def core_candidate() -> Candidate:
    """The built-ins, which need no entry point of their own."""
    try:
        version = metadata.version("trunkline")
    except metadata.PackageNotFoundError:  # run from a source tree
        version = "unknown"
    return Candidate(
        domain=CORE,
        distribution="trunkline",
        version=version,
        entry_point=metadata.EntryPoint(name=CORE, value="trunkline.core", group=GROUP),
    )


# -------------------------------------------------------------------------------- installations


@dataclass(frozen=True, slots=True)
class _Installation:
    """One folder ``*.dist-info`` or ``*.egg-info`` that declares plugins."""

    distribution: metadata.Distribution
    name: str
    version: str
    path: Path | None

    @property
    def folder(self) -> Path | None:
        """The folder of ``sys.path`` that holds it."""
        return None if self.path is None else self.path.parent


def find_plugins(path: list[str] | None = None) -> tuple[Candidate, ...]:
    """Every entry point of the group, by domain and distribution, without importing any.

    A distribution counts once. Of several copies the one is taken whose code Python imports: that
    of the first folder of ``sys.path``, and in one folder the newest version; the other versions
    are noted.

    Args:
        path: folders to search instead of ``sys.path``.
    """
    copies: dict[str, list[_Installation]] = defaultdict(list)
    searched = metadata.distributions() if path is None else metadata.distributions(path=path)
    for distribution in searched:
        text = distribution.read_text("entry_points.txt")
        if not text or f"[{GROUP}]" not in text:
            continue
        one = _installation(distribution)
        if one.path is None or not one.path.name.startswith("~"):  # "~": half removed by pip
            known = one.name != "unknown"
            copies[canonicalize_name(one.name) if known else str(one.path)].append(one)
    candidates = [
        candidate
        for installations in copies.values()
        for candidate in _candidates(*_select(installations))
    ]
    return tuple(sorted(candidates, key=lambda one: (one.domain, one.distribution)))


def _installation(distribution: metadata.Distribution) -> _Installation:
    path = getattr(distribution, "_path", None)
    path = path if isinstance(path, Path) else None
    try:
        described = distribution.metadata
        name: str | None = described["Name"]
        version: str | None = described["Version"]
    except Exception:
        name = version = None
    stem = path.name.rpartition(".")[0].split("-") if path else []
    name = name or (stem[0].replace("_", "-") if stem else None)
    version = version or (stem[1] if len(stem) > 1 else None)
    return _Installation(distribution, str(name or "unknown"), str(version or "unknown"), path)


def _select(installations: list[_Installation]) -> tuple[_Installation, tuple[str, ...]]:
    """The installation whose code Python imports, and a note for each other version."""
    first = installations[0]
    if len(installations) == 1:
        return first, ()
    beside = [one for one in installations if one.folder == first.folder]
    selected = max(beside, key=lambda one: _order(one.version))
    notes = dict.fromkeys(
        f"{one.name} is installed in two versions: {selected.version} is loaded, {one.version} is "
        f"ignored; remove {one.path}"
        for one in installations
        if one.version != selected.version
    )
    return selected, tuple(notes)


def _order(version: str) -> tuple[bool, Any]:
    try:
        return True, Version(version)
    except InvalidVersion:
        return False, version


def _candidates(installation: _Installation, notes: tuple[str, ...]) -> list[Candidate]:
    fields: dict[str, Any] = {
        "distribution": installation.name,
        "version": installation.version,
        "installed": _installed(installation.path),
        "notes": notes,
    }
    try:
        points = list(installation.distribution.entry_points.select(group=GROUP))
    except Exception:
        violation = "its entry_points.txt can't be parsed; reinstall it"
        name = installation.name
        return [Candidate(domain=name, entry_point=None, violation=violation, **fields)]
    candidates: dict[str, Candidate] = {}
    for point in points:
        candidate = Candidate(domain=point.name, entry_point=point, **fields)
        before = candidates.setdefault(point.name, candidate)
        if before.module != candidate.module:
            violation = (
                f"its entry_points.txt declares {point.name!r} twice, as {before.module} and as "
                f"{candidate.module}"
            )
            candidates[point.name] = replace(before, violation=violation)
    return list(candidates.values())


def _installed(path: Path | None) -> float:
    """When pip wrote the distribution's metadata: pip writes ``RECORD`` on each installation."""
    if path is None:
        return 0.0
    for file in (path / "RECORD", path / "METADATA", path):
        try:
            return os.stat(file).st_mtime
        except OSError:
            continue
    return 0.0


# ------------------------------------------------------------------------------------ ownership


def rejected_claims(
    candidates: Iterable[Candidate], owners: Mapping[str, str]
) -> dict[Candidate, str]:
    """The candidates that claim a domain of another distribution, each with the reason.

    A domain belongs to the distribution that ``owners`` names, else to the one that was installed
    first; of two installed at the same time, to the first by name. A claim on the domain of the
    built-ins is left to the check of domains.

    Args:
        candidates: from :func:`find_plugins`.
        owners: domain → distribution, from the table ``[plugins.owners]`` of ``trunkline.toml``.
    """
    claims: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        claims[candidate.domain].append(candidate)
    rejected: dict[Candidate, str] = {}
    for domain, rivals in claims.items():
        trusted = owners.get(domain)
        if trusted is not None:
            reason = f"trunkline.toml gives the domain {domain!r} to {trusted}"
            losers = [one for one in rivals if not _same(one.distribution, trusted)]
        else:
            order = sorted(rivals, key=lambda one: (one.installed, one.distribution.lower()))
            losers = order[1:]
            reason = (
                f"the domain {domain!r} belongs to {order[0].label}, which was installed first; "
                "uninstall one of them, or name the owner in trunkline.toml"
            )
        rejected |= dict.fromkeys(losers, reason)
    return rejected


def _same(name: str, other: str) -> bool:
    return canonicalize_name(name) == canonicalize_name(other)


SLOW_SECONDS = 20.0
"""After this many seconds of an import, a note on stderr names the plugin."""


class UserInterrupt(KeyboardInterrupt):
    """The user pressed Ctrl-C; a plain KeyboardInterrupt was raised by the plugin itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportMarker:
    """Which plugin was being imported."""

    domain: str
    distribution: str
    version: str


@contextmanager
def contained(marker: ImportMarker) -> Iterator[list[str]]:
    """Contain a block that imports a plugin.

    Yields:
        A list that holds, after the block, a sentence for each part of the process that the plugin
        changed and that was restored.
    """
    notes: list[str] = []
    with ExitStack() as stack:
        stack.enter_context(_marked(marker))
        stack.enter_context(_noted_if_slow(marker))
        stack.enter_context(stdout_to_stderr())
        stack.enter_context(exits_refused())
        stack.enter_context(_user_interrupts())
        stack.enter_context(_restored(notes))
        yield notes


@contextmanager
def _user_interrupts() -> Iterator[None]:
    """Raise :class:`UserInterrupt` for Ctrl-C; only the main thread can receive signals."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return

    def handle(number: int, frame: Any) -> None:
        try:
            previous(number, frame)
        except KeyboardInterrupt as error:
            raise UserInterrupt from error

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


# -------------------------------------------------------------------------- state of the process


@contextmanager
def _restored(notes: list[str]) -> Iterator[None]:
    """Restore what a plugin must not change for the others, and note each change."""
    folder, handlers, language = _folder(), _handlers(), locale.setlocale(locale.LC_ALL)
    streams = (sys.stdin, sys.stdout, sys.stderr)
    hook, limit = sys.excepthook, sys.getrecursionlimit()
    try:
        yield
    finally:
        if folder is not None and _folder() != folder:
            notes.append("importing it changes the working folder, which was restored")
            with suppress(OSError):
                os.chdir(folder)
        for number, handler in _handlers().items():
            if handler is not handlers[number] and handlers[number] is not None:
                name = signal.Signals(number).name
                notes.append(f"importing it changes the handler of {name}, which was restored")
                signal.signal(number, handlers[number])
        if locale.setlocale(locale.LC_ALL) != language:
            notes.append("importing it changes the locale, which was restored")
            with suppress(locale.Error):
                locale.setlocale(locale.LC_ALL, language)
        if (sys.stdin, sys.stdout, sys.stderr) != streams:
            notes.append("importing it replaces a standard stream, which was restored")
            sys.stdin, sys.stdout, sys.stderr = streams
        if sys.excepthook is not hook:
            notes.append("importing it replaces sys.excepthook, which was restored")
            sys.excepthook = hook
        if sys.getrecursionlimit() != limit:
            notes.append("importing it changes the recursion limit, which was restored")
            sys.setrecursionlimit(limit)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _handlers() -> dict[int, Any]:
    """The handler of each signal; empty outside the main thread, which alone may set them."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {int(number): signal.getsignal(number) for number in signal.valid_signals()}


# --------------------------------------------------------------------------- unfinished imports


@contextmanager
def _noted_if_slow(marker: ImportMarker) -> Iterator[None]:
    def note() -> None:
        print(
            f"trunkline: importing the plugin {marker.domain!r} of {marker.distribution} has taken "
            f"{SLOW_SECONDS:.0f} s; --no-plugin {marker.domain} leaves it out",
            file=sys.stderr,
        )

    timer = threading.Timer(SLOW_SECONDS, note)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def _marked(marker: ImportMarker) -> Iterator[None]:
    """Keep a marker file of this process during the block."""
    file: Path | None = None
    with suppress(OSError, RuntimeError):  # no home folder, or a read-only one
        file = _markers() / f"{os.getpid()}-{threading.get_ident()}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(marker)), encoding="utf-8")
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                file.unlink()


def unfinished_imports(process: int | None = None) -> list[ImportMarker]:
    """The plugins during whose import an earlier process ended; each is returned once.

    Args:
        process: only the ended process with this id.
    """
    markers: list[ImportMarker] = []
    with suppress(OSError, RuntimeError):
        for file in sorted(_markers().iterdir()):
            number = file.name.partition("-")[0]
            if not number.isdecimal() or (process is not None and int(number) != process):
                continue
            if process is None and _is_alive(int(number)):
                continue
            with suppress(OSError, ValueError, TypeError):
                text = file.read_text(encoding="utf-8")
                file.unlink()
                markers.append(ImportMarker(**json.loads(text)))
    return markers


def _markers() -> Path:
    return cache_folder() / "importing"


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to another user
        return True
    return True
