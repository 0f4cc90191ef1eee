"""Find plugins without importing them, then import and ask each one by itself.

Owns: discovery, blocking before import, isolation of failures, the trace of hook calls.
Must not know: any domain, or what the specs are used for.

A plugin that can't be imported, exits, raises or breaks a rule is set aside with a one-line reason
and its traceback; only KeyboardInterrupt passes through.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from itertools import chain
from textwrap import shorten
from typing import Any

import pluggy

from trunkline import hookspecs
from trunkline.contracts import API
from trunkline.errors import NotFoundError, PluginError, TrunklineError
from trunkline.plugins.catalog import SPECS, Catalog, Contribution, Kind, PluginInfo
from trunkline.plugins.validate import domain_violation, violations

GROUP = "trunkline"
HOOKS: dict[str, Kind] = {f"trunkline_{kind}": kind for kind in SPECS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An entry point that was found but not imported; None if its file can't be parsed."""

    domain: str
    distribution: str
    version: str
    entry_point: metadata.EntryPoint | None

    @property
    def module(self) -> str:
        """What the entry point names."""
        return self.entry_point.value if self.entry_point else "unknown"

    def info(self, **what: Any) -> PluginInfo:
        """Its :class:`PluginInfo` with the given status, reason and so on."""
        return PluginInfo(
            domain=self.domain,
            module=self.module,
            distribution=self.distribution,
            version=self.version,
            **what,
        )


def load_plugins(
    *,
    block: Iterable[str] = (),
    no_plugins: bool = False,
    strict: bool = False,
    core_metrics: Collection[str] | None = None,
) -> Catalog:
    """Import the installed plugins, ask each for its specs, and set aside those that fail.

    The variable ``TRUNKLINE_LOAD_PLUGINS`` (domains with commas; empty: none) names the only ones
    that may be imported.

    Args:
        block: domains that are not imported.
        no_plugins: import none.
        strict: a plugin that fails raises instead of being set aside.
        core_metrics: metrics that recipes may name beside their plugin's own; None: names without
            a domain are taken on trust.

    Raises:
        NotFoundError: ``block`` or the variable names a plugin that isn't installed: a misspelt
            one would otherwise be imported, or everything else kept out, without a word.
        PluginError: ``strict`` and at least one failed.
    """
    candidates = find_plugins()
    blocked = _blocked(candidates, tuple(block), no_plugins)
    claims: dict[str, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        claims[candidate.domain].append(candidate)

    infos: list[PluginInfo] = []
    contributions: list[Contribution] = []
    for candidate in candidates:
        rivals = claims[candidate.domain]
        if candidate.domain in blocked:
            info = candidate.info(status="blocked", reason=blocked[candidate.domain])
            contribution = None
        elif len(rivals) > 1:
            named = " and ".join(f"{rival.distribution} {rival.version}" for rival in rivals)
            reason = f"the domain {candidate.domain!r} is claimed by {named}; uninstall one"
            info, contribution = candidate.info(status="failed", reason=reason), None
        else:
            info, contribution = ask_plugin(candidate, core_metrics)
        infos.append(info)
        if contribution is not None:
            contributions.append(contribution)

    failed = [info for info in infos if info.status == "failed"]
    if strict and failed:
        told = "; ".join(f"{info.domain}: {info.reason}" for info in failed)
        raise PluginError(
            f"{len(failed)} of {len(infos)} plugins failed. {told}.",
            f"See `trunkline plugins show {failed[0].domain}`, or leave out --strict.",
        )
    return Catalog(infos, contributions)


def find_plugins() -> tuple[Candidate, ...]:
    """Every entry point of the group, by domain and distribution, without importing any.

    A distribution that is on ``sys.path`` twice counts once, the first copy; one whose
    ``entry_points.txt`` can't be parsed stands under its distribution's name.
    """
    found: dict[tuple[str, str], Candidate] = {}
    for distribution in metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        if not text or f"[{GROUP}]" not in text:
            continue
        label = _label(distribution)
        try:
            points = list(distribution.entry_points.select(group=GROUP))
        except Exception:
            points = []
            broken = Candidate(
                domain=label[0], distribution=label[0], version=label[1], entry_point=None
            )
            found.setdefault((label[0], label[0]), broken)
        for point in points:
            candidate = Candidate(
                domain=point.name, distribution=label[0], version=label[1], entry_point=point
            )
            found.setdefault((point.name, label[0].lower().replace("_", "-")), candidate)
    return tuple(sorted(found.values(), key=lambda one: (one.domain, one.distribution)))


def _label(distribution: metadata.Distribution) -> tuple[str, str]:
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
        wanted = {name.strip() for name in only.split(",") if name.strip()}
        for name in sorted(wanted - domains):
            hint = "TRUNKLINE_LOAD_PLUGINS names it; `trunkline plugins install` brings a plugin."
            raise NotFoundError.named("plugin", name, domains, hint)
        reasons |= dict.fromkeys(domains - wanted, "TRUNKLINE_LOAD_PLUGINS does not name it")
    for name in block:
        if name not in domains:
            hint = "--no-plugin takes the domain of an installed plugin."
            raise NotFoundError.named("plugin", name, domains, hint)
        reasons[name] = "--no-plugin names it"
    if no_plugins:
        reasons |= dict.fromkeys(domains, "--no-plugins keeps all out")
    return reasons


def ask_plugin(
    candidate: Candidate, core_metrics: Collection[str] | None = None
) -> tuple[PluginInfo, Contribution | None]:
    """Import one plugin and ask its hooks; the contribution is None if it had to be set aside.

    What it prints goes to stderr, so that it can't spoil a command's output.
    """
    api: int | None = None
    try:
        with redirect_stdout(sys.stderr):
            plugin = _imported(candidate)
            api = _declared_api(plugin)
            contribution = _collected(candidate.domain, plugin)
        broken = list(violations(candidate.domain, contribution, core_metrics))
        if broken:
            raise PluginError("; ".join(broken))
    except (Exception, SystemExit) as error:
        reason = shorten(str(error), 400, placeholder=" …") or type(error).__name__
        trace = "".join(traceback.format_exception(error))
        return candidate.info(status="failed", api=api, reason=reason, traceback=trace), None
    names = {kind: tuple(spec.name for spec in getattr(contribution, kind)) for kind in SPECS}
    return candidate.info(status="loaded", api=api, **names), contribution


def _told(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"exits ({error.code!r})"
    told = error.message if isinstance(error, TrunklineError) else str(error)
    return f"raises {type(error).__name__}: {told}"


def _imported(candidate: Candidate) -> Any:
    if candidate.entry_point is None:
        raise PluginError("its entry_points.txt can't be parsed; reinstall it")
    refused = domain_violation(candidate.domain)
    if refused:
        raise PluginError(refused)
    try:
        return candidate.entry_point.load()
    except (Exception, SystemExit) as error:
        raise PluginError(f"importing {candidate.module} {_told(error)}") from error


def _declared_api(plugin: Any) -> int:
    api = getattr(plugin, "TRUNKLINE_API", None)
    if api is None:
        raise PluginError(f"it declares no TRUNKLINE_API; this Trunkline speaks {API}")
    if isinstance(api, bool) or api != API:
        raise PluginError(
            f"it was written for TRUNKLINE_API {api!r}, but this Trunkline speaks {API}"
        )
    return int(api)


def _collected(domain: str, plugin: Any) -> Contribution:
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
            parts[kind] = _asked(caller, SPECS[kind])
    return Contribution(**parts)


def _asked(caller: pluggy.HookCaller, wanted: type) -> tuple[Any, ...]:
    try:
        answers = caller()
        given = [tuple(one) if isinstance(one, Iterable) else one for one in answers]
    except (Exception, SystemExit) as error:
        raise PluginError(f"{caller.name} {_told(error)}") from error
    if len(given) < len(caller.get_hookimpls()):  # pluggy drops an answer that is None
        raise PluginError(f"{caller.name} gives nothing; yield each {wanted.__name__}")
    for one in given:
        if not isinstance(one, tuple):
            raise PluginError(
                f"{caller.name} gives one {type(one).__name__}; yield each {wanted.__name__}"
            )
    specs = tuple(chain.from_iterable(given))
    for spec in specs:
        if not isinstance(spec, wanted):
            raise PluginError(f"{caller.name} yields {spec!r:.80}, not a {wanted.__name__}")
    return specs


def _refuse_unmarked(manager: pluggy.PluginManager, plugin: Any) -> None:
    """A hook without its marker would never be called, and nobody would be told."""
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
        ended = f"raised {outcome.exception!r}" if outcome.exception else "answered"
        print(f"trunkline: {domain}: {hook} {ended}", file=sys.stderr)

    manager.add_hookcall_monitoring(before, after)
