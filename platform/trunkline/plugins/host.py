"""Import each discovered plugin in isolation and call its hooks.

A plugin that can't be imported, exits, raises or breaks a rule is set aside with a one-line reason
and its traceback; only Ctrl-C propagates. The built-ins are the plugin ``core``, which is always
loaded, and first.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import chain
from textwrap import shorten
from types import MappingProxyType
from typing import Any

import pluggy

from trunkline import hookspecs
from trunkline.contracts import API
from trunkline.errors import (
    Interrupted,
    NotFoundError,
    PluginError,
    TrunklineError,
    UsageError,
    one_line,
)
from trunkline.plugins.catalog import (
    CORE,
    SPECS,
    Catalog,
    Contribution,
    Kind,
    PluginInfo,
    resolve_recipes,
)
from trunkline.plugins.discovery import (
    GROUP,
    Candidate,
    core_candidate,
    find_plugins,
    rejected_claims,
)
from trunkline.plugins.isolation import ImportMarker, contained
from trunkline.plugins.validation import domain_violation, violations, with_tuples
from trunkline.process import ProcessExit, UserInterrupt, exits_refused
from trunkline.redaction import redact, redact_exception

HOOKS: Mapping[str, Kind] = MappingProxyType({f"trunkline_{kind}": kind for kind in SPECS})


def load_plugins(
    *,
    block: Iterable[str] = (),
    no_plugins: bool = False,
    strict: bool = False,
    owners: Mapping[str, str] = MappingProxyType({}),
) -> Catalog:
    """Load the built-ins and the installed plugins, and set aside those that fail.

    If the variable ``TRUNKLINE_LOAD_PLUGINS`` is set (domains with commas), no other plugin is
    imported; if it is empty, none is.

    Args:
        block: domains that are not imported.
        no_plugins: import the built-ins only.
        strict: raise if a plugin fails instead of setting it aside.
        owners: domain → the distribution that it belongs to; see
            :func:`~trunkline.plugins.discovery.rejected_claims`.

    Raises:
        NotFoundError: ``block`` or the variable names a plugin that isn't installed. A misspelled
            domain would otherwise silently load a plugin, or keep all others out.
        UsageError: ``block`` names the built-ins.
        PluginError: ``strict`` and at least one failed.
        Interrupted: the user pressed Ctrl-C while a plugin was imported.
    """
    candidates = find_plugins()
    blocked = _blocked(candidates, tuple(block), no_plugins)
    rejected = rejected_claims(candidates, owners)

    core_info, core = load_core()
    infos: list[PluginInfo] = [core_info]
    contributions: list[Contribution] = [core]
    for candidate in sorted(candidates, key=lambda one: (one.domain, one in rejected)):
        contribution = None
        if candidate.domain in blocked:
            info = candidate.info(status="blocked", reason=blocked[candidate.domain])
        elif candidate in rejected and candidate.domain != CORE:
            info = candidate.info(status="failed", reason=rejected[candidate])
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

    Raises:
        Interrupted: the user pressed Ctrl-C.
    """
    api: int | None = None
    notes: list[str] = []
    try:
        if core is None:
            plugin = _import(candidate)
            api = _declared_api(plugin)
            contribution = _collect(candidate.domain, plugin)
        else:
            marker = ImportMarker(
                domain=candidate.domain,
                distribution=candidate.distribution,
                version=candidate.version,
            )
            with contained(marker) as notes:
                plugin = _import(candidate)
                api = _declared_api(plugin)
                contribution = _collect(candidate.domain, plugin)
        with exits_refused():  # a message quotes values of the plugin
            broken = list(violations(candidate.domain, contribution, core))
        if broken:
            raise PluginError("; ".join(broken))
        contribution = resolve_recipes(with_tuples(contribution))
    except UserInterrupt:
        raise Interrupted(
            f"Interrupted while the plugin {candidate.domain!r} of {candidate.label} was imported.",
            f"If it hangs, leave it out: `trunkline --no-plugin {candidate.domain} …`.",
        ) from None
    except BaseException as error:
        if core is None and not isinstance(error, Exception):
            raise
        text = error.message if isinstance(error, TrunklineError) else f"it {_failure(error)}"
        reason = shorten(redact(text), 400, placeholder=" …")
        trace = _traceback(error)
        info = candidate.info(
            status="failed", api=api, reason=reason, traceback=trace, notes=tuple(notes)
        )
        return info, None
    names = {kind: tuple(spec.name for spec in getattr(contribution, kind)) for kind in SPECS}
    restricted = (dataset.restricted_license for dataset in contribution.datasets)
    info = candidate.info(
        status="loaded",
        api=api,
        notes=tuple(notes),
        restrictions=tuple(dict.fromkeys(filter(None, restricted))),
        **names,
    )
    return info, contribution


def _failure(error: BaseException) -> str:
    if isinstance(error, ProcessExit):
        return f"ends the program with {error.call}"
    if isinstance(error, SystemExit):
        return f"exits ({error.code!r})"
    try:
        return f"raises {one_line(error, with_type=True)}"
    except BaseException:  # its class has a metaclass that fails
        return "raises an exception that has no name"


def _traceback(error: BaseException) -> str:
    """The traceback of a failure, without secrets; the exception's own methods may fail too."""
    try:
        with exits_refused():
            return redact("".join(traceback.format_exception(redact_exception(error))))
    except BaseException:
        cause = error.__cause__ if isinstance(error, PluginError) else None
        frames = traceback.format_tb((cause or error).__traceback__)
        return redact("".join(["Traceback (most recent call last):\n", *frames]))


def _import(candidate: Candidate) -> Any:
    if candidate.violation is not None:
        raise PluginError(candidate.violation)
    assert candidate.entry_point is not None
    violation = domain_violation(candidate.domain)
    if violation and candidate is not core_candidate():
        raise PluginError(violation)
    if not candidate.entry_point.pattern.match(candidate.module):
        raise PluginError(
            f"its entry point names {candidate.module!r}, which is no module; write for example "
            f"{candidate.domain} = my_module"
        )
    try:
        return candidate.entry_point.load()
    except UserInterrupt:
        raise
    except BaseException as error:
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
    except UserInterrupt:
        raise
    except BaseException as error:
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
