"""Find plugins without importing them, and decide which distribution owns a domain."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from trunkline.plugins.catalog import CORE, PluginInfo
from trunkline.process import entry_points_of

GROUP = "trunkline"
_ENTRY_POINTS = "entry_points.txt"
_MARK = "\ufeff"


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
        if not _declares_plugins(distribution):
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
    candidates = _with_shared_modules(candidates)
    return tuple(sorted(candidates, key=lambda one: (one.domain, one.distribution)))


def _with_shared_modules(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates, with a note for each module that two distributions claim."""
    claims: dict[str, dict[str, Candidate]] = defaultdict(dict)
    for one in candidates:
        if one.entry_point is not None:
            claims[one.module.partition(":")[0]].setdefault(one.distribution, one)
    noted: list[Candidate] = []
    for one in candidates:
        module = one.module.partition(":")[0]
        others = [rival.label for name, rival in claims[module].items() if name != one.distribution]
        notes = [
            f"its module {module} is also that of {label}, and Python imports only one of them; "
            "rename it, or uninstall one"
            for label in others
        ]
        noted.append(replace(one, notes=(*one.notes, *notes)) if notes else one)
    return noted


def _declares_plugins(distribution: metadata.Distribution) -> bool:
    """Whether the distribution's ``entry_points.txt`` has the group, in whatever encoding."""
    try:
        text = distribution.read_text(_ENTRY_POINTS) or ""
    except OSError:
        return False
    except UnicodeDecodeError:
        path = _path_of(distribution)
        try:
            content = b"" if path is None else (path / _ENTRY_POINTS).read_bytes()
        except OSError:
            return False
        text = content.replace(b"\0", b"").decode("latin-1")  # UTF-16 has the zero bytes
    return f"[{GROUP}]" in text


def _path_of(distribution: metadata.Distribution) -> Path | None:
    """The folder ``*.dist-info`` or ``*.egg-info``, if it is one on the disk."""
    path = getattr(distribution, "_path", None)
    return path if isinstance(path, Path) else None


def _installation(distribution: metadata.Distribution) -> _Installation:
    path = _path_of(distribution)
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
    for one in installations:
        if one.version == selected.version and _declared(one) - _declared(selected):
            notes[
                f"two distributions are named {one.name} {one.version}: that of {selected.path} is "
                f"loaded, that of {one.path} is ignored; rename or remove one"
            ] = None
    return selected, tuple(notes)


def _declared(installation: _Installation) -> set[tuple[str, str]]:
    """The domains and modules of the plugins that an installation declares."""
    try:
        points = entry_points_of(installation.distribution).select(group=GROUP)
    except Exception:
        return set()
    return {(one.name, one.value) for one in points}


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
        points = list(entry_points_of(installation.distribution).select(group=GROUP))
        if not points and (installation.distribution.read_text(_ENTRY_POINTS) or "")[:1] == _MARK:
            raise ValueError("a byte order mark hides the first group")
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
