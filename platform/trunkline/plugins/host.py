"""Discover plugins without importing them, then import each one in isolation and call its hooks.

A plugin that can't be imported, exits, raises or breaks a rule is set aside with a one-line reason
and its traceback; only KeyboardInterrupt propagates. The built-ins are the plugin ``core``, which
is always loaded, and first.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from itertools import chain
from textwrap import shorten
from typing import Any

import pluggy

from trunkline import hookspecs
from trunkline.contracts import API
from trunkline.errors import NotFoundError, PluginError, TrunklineError, UsageError
from trunkline.plugins.catalog import (
    CORE,
    SPECS,
    Catalog,
    Contribution,
    Kind,
    PluginInfo,
    domain_violation,
    resolve_recipes,
    violations,
)

GROUP = "trunkline"
HOOKS: dict[str, Kind] = {f"trunkline_{kind}": kind for kind in SPECS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A discovered plugin, not imported; no entry point if its file can't be parsed."""

    domain: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint | None

    @property
    def module(self) -> str:
        """The module that the entry point names."""
        return self.entry_point.value if self.entry_point else "unknown"

    def info(self, **fields: Any) -> PluginInfo:
        """Its :class:`PluginInfo` with the given status, reason and so on."""
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


def load_plugins(
    *, block: Iterable[str] = (), no_plugins: bool = False, strict: bool = False
) -> Catalog:
    """Load the built-ins and the installed plugins, and set aside those that fail.

    If the variable ``TRUNKLINE_LOAD_PLUGINS`` is set (domains with commas), no other plugin is
    imported; if it is empty, none is.

    Args:
        block: domains that are not imported.
        no_plugins: import the built-ins only.
        strict: raise if a plugin fails instead of setting it aside.

    Raises:
        NotFoundError: ``block`` or the variable names a plugin that isn't installed. A misspelled
            domain would otherwise silently load a plugin, or keep all others out.
        UsageError: ``block`` names the built-ins.
        PluginError: ``strict`` and at least one failed.
    """
    candidates = find_plugins()
    blocked = _blocked(candidates, tuple(block), no_plugins)
    claims: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        claims[candidate.domain].append(candidate)

    core_info, core = load_core()
    infos: list[PluginInfo] = [core_info]
    contributions: list[Contribution] = [core]
    for candidate in candidates:
        rivals = claims[candidate.domain]
        contribution = None
        if candidate.domain in blocked:
            info = candidate.info(status="blocked", reason=blocked[candidate.domain])
        elif len(rivals) > 1:
            names = " and ".join(f"{rival.distribution} {rival.version}" for rival in rivals)
            reason = f"the domain {candidate.domain!r} is claimed by {names}; uninstall one"
            info = candidate.info(status="failed", reason=reason)
        else:
            info, contribution = load_plugin(candidate, core)
        infos.append(info)
        if contribution is not None:
            contributions.append(contribution)

    failed = [info for info in infos if info.status == "failed"]
    if strict and failed:
        reasons = "; ".join(f"{info.domain}: {info.reason}" for info in failed)
        raise PluginError(
            f"{len(failed)} of {len(infos)} plugins failed. {reasons}.",
            f"See `trunkline plugins show {failed[0].domain}`, or leave out --strict.",
        )
    return Catalog(infos, contributions)


def find_plugins() -> tuple[Candidate, ...]:
    """Every entry point of the group, by domain and distribution, without importing any.

    A distribution that is on ``sys.path`` twice counts once, with the first copy. One whose
    ``entry_points.txt`` can't be parsed is listed under the distribution's name.
    """
    candidates: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        if not text or f"[{GROUP}]" not in text:
            continue
        name, version = _name_and_version(distribution)
        try:
            points = list(distribution.entry_points.select(group=GROUP))
        except Exception:
            points = []
            broken = Candidate(domain=name, distribution=name, version=version, entry_point=None)
            candidates.setdefault((name, name), broken)
        for point in points:
            candidate = Candidate(
                domain=point.name, distribution=name, version=version, entry_point=point
            )
            candidates.setdefault((point.name, name.lower().replace("_", "-")), candidate)
    return tuple(sorted(candidates.values(), key=lambda one: (one.domain, one.distribution)))


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    try:
        return str(distribution.metadata["Name"]), str(distribution.metadata["Version"])
    except Exception:
        return "unknown", "unknown"


def _blocked(
    candidates: Iterable[Candidate], block: tuple[str, ...], no_plugins: bool
) -> dict[str, str]:
    """Domain → why it must not be imported."""
    domains = {candidate.domain for candidate in candidates}
    reasons: dict[str, str] = {}
    only = os.environ.get("TRUNKLINE_LOAD_PLUGINS")
    if only is not None:
        selected = {name.strip() for name in only.split(",") if name.strip()} - {CORE}
        for name in sorted(selected - domains):
            hint = "TRUNKLINE_LOAD_PLUGINS names it; `trunkline plugins install` installs a plugin."
            raise NotFoundError.named("plugin", name, domains, hint)
        reasons |= dict.fromkeys(domains - selected, "TRUNKLINE_LOAD_PLUGINS does not name it")
    for name in block:
        if name == CORE:
            raise UsageError(
                "The plugin 'core' can't be blocked: it holds the built-ins.",
                "--no-plugin takes the domain of an installed plugin.",
            )
        if name not in domains:
            hint = "--no-plugin takes the domain of an installed plugin."
            raise NotFoundError.named("plugin", name, domains, hint)
        reasons[name] = "--no-plugin names it"
    if no_plugins:
        reasons |= dict.fromkeys(domains, "--no-plugins is set")
    return reasons


def load_core() -> tuple[PluginInfo, Contribution]:
    """Load the built-ins.

    Raises:
        PluginError: they break a rule, which is a defect of Trunkline.
    """
    info, contribution = load_plugin(core_candidate(), None)
    if contribution is None:
        raise PluginError(f"The built-ins can't be loaded: {info.reason}", "Reinstall trunkline.")
    return info, contribution


def load_plugin(
    candidate: Candidate, core: Contribution | None
) -> tuple[PluginInfo, Contribution | None]:
    """Import one plugin and call its hooks; the contribution is None if it is set aside.

    Anything it prints goes to stderr, so that it can't spoil a command's output.

    Args:
        candidate: from :func:`find_plugins`.
        core: the built-ins that its recipes may name; None to load the built-ins themselves.
    """
    api: int | None = None
    try:
        with redirect_stdout(sys.stderr):
            plugin = _import(candidate)
            api = _declared_api(plugin)
            contribution = _collect(candidate.domain, plugin)
        broken = list(violations(candidate.domain, contribution, core))
        if broken:
            raise PluginError("; ".join(broken))
        contribution = resolve_recipes(contribution)
    except (Exception, SystemExit) as error:
        reason = shorten(str(error), 400, placeholder=" …") or type(error).__name__
        trace = "".join(traceback.format_exception(error))
        return candidate.info(status="failed", api=api, reason=reason, traceback=trace), None
    names = {kind: tuple(spec.name for spec in getattr(contribution, kind)) for kind in SPECS}
    return candidate.info(status="loaded", api=api, **names), contribution


def _failure(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"exits ({error.code!r})"
    message = error.message if isinstance(error, TrunklineError) else str(error)
    return f"raises {type(error).__name__}: {message}"


def _import(candidate: Candidate) -> Any:
    if candidate.entry_point is None:
        raise PluginError("its entry_points.txt can't be parsed; reinstall it")
    violation = domain_violation(candidate.domain)
    if violation and candidate is not core_candidate():
        raise PluginError(violation)
    try:
        return candidate.entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"importing {candidate.module} {_failure(error)}") from error


def _declared_api(plugin: Any) -> int:
    api = getattr(plugin, "TRUNKLINE_API", None)
    if api is None:
        raise PluginError(f"it declares no TRUNKLINE_API; this Trunkline uses {API}")
    if isinstance(api, bool) or api != API:
        raise PluginError(
            f"it was written for TRUNKLINE_API {api!r}, but this Trunkline uses {API}"
        )
    return int(api)


def _collect(domain: str, plugin: Any) -> Contribution:
    """Register the plugin with a manager of its own and call every hook that it implements."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    if os.environ.get("TRUNKLINE_TRACE_HOOKS") == "1":
        _trace(manager, domain)
    _refuse_unmarked(manager, plugin)
    try:
        manager.register(plugin, name=domain)
    except pluggy.PluginValidationError as error:
        raise PluginError(str(error)) from error
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        callers = manager.get_hookcallers(plugin) or []
        unknown = next((caller.name for caller in callers if not caller.has_spec()), str(error))
        raise PluginError(f"it implements {unknown}, which is no hook{_nearest(unknown)}") from (
            error
        )
    parts: dict[str, Any] = {}
    for caller in manager.get_hookcallers(plugin) or []:
        if caller.has_spec():
            kind = HOOKS[caller.name]
            parts[kind] = _call_hook(caller, SPECS[kind])
    return Contribution(**parts)


def _call_hook(caller: pluggy.HookCaller, expected: type) -> tuple[Any, ...]:
    try:
        results = [tuple(result) if isinstance(result, Iterable) else result for result in caller()]
    except (Exception, SystemExit) as error:
        raise PluginError(f"{caller.name} {_failure(error)}") from error
    if len(results) < len(caller.get_hookimpls()):  # pluggy drops a result that is None
        raise PluginError(f"{caller.name} gives nothing; yield each {expected.__name__}")
    for result in results:
        if not isinstance(result, tuple):
            raise PluginError(
                f"{caller.name} gives one {type(result).__name__}; yield each {expected.__name__}"
            )
    specs = tuple(chain.from_iterable(results))
    for spec in specs:
        if not isinstance(spec, expected):
            raise PluginError(f"{caller.name} yields {spec!r:.80}, not a {expected.__name__}")
    return specs


def _refuse_unmarked(manager: pluggy.PluginManager, plugin: Any) -> None:
    """Raise for a hook without its marker, which pluggy would silently never call."""
    own = getattr(plugin, "__name__", None)
    for name, value in getattr(plugin, "__dict__", {}).items():
        if not callable(value) or getattr(value, "__module__", None) != own:
            continue
        if name in HOOKS and manager.parse_hookimpl_opts(plugin, name) is None:
            raise PluginError(f"{name} lacks the marker: put @hookimpl on the line before it")


def _nearest(hook: str) -> str:
    close = get_close_matches(hook, HOOKS, n=1)
    return f"; did you mean {close[0]}?" if close else f"; hooks are {', '.join(HOOKS)}"


def _trace(manager: pluggy.PluginManager, domain: str) -> None:
    def before(hook: str, methods: Any, arguments: Mapping[str, Any]) -> None:
        print(f"trunkline: {domain}: {hook} is called", file=sys.stderr)

    def after(outcome: Any, hook: str, methods: Any, arguments: Mapping[str, Any]) -> None:
        ending = f"raised {outcome.exception!r}" if outcome.exception else "returned"
        print(f"trunkline: {domain}: {hook} {ending}", file=sys.stderr)

    manager.add_hookcall_monitoring(before, after)
