"""Install a plugin with pip into the running environment, and uninstall it.

Python can't reload modules reliably, so a new interpreter lists what the plugins contribute
afterwards.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import MappingProxyType

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from trunkline.errors import NotFoundError, PluginError, UsageError
from trunkline.plugins.catalog import CORE, SPECS, PluginInfo
from trunkline.plugins.isolation import unfinished_imports
from trunkline.redaction import redact

_LONGEST_IMPORT = 120.0
"""Seconds that importing all plugins may take."""

PINNED = ("torch", "transformers", "peft", "trunkline")
"""A plugin must run on the installed versions of these, never replace them."""

_VIEW = """
import dataclasses, json, sys
from trunkline.process import ignore_unreadable_entry_points
ignore_unreadable_entry_points()
from trunkline.plugins import load_plugins
owners = json.loads(sys.argv[2])
catalog = load_plugins(no_plugins=sys.argv[1] == "find", owners=owners)
print(json.dumps([dataclasses.asdict(plugin) for plugin in catalog.plugins]))
"""


def install(
    target: str,
    *,
    upgrade: bool = False,
    editable: bool = False,
    owners: Mapping[str, str] = MappingProxyType({}),
    python: str = sys.executable,
    on_line: Callable[[str], None] = lambda line: None,
) -> tuple[PluginInfo, ...]:
    """Install a plugin with pip and return the plugins that changed.

    Args:
        target: name of a distribution, optionally with a version (``trunkline-x>=1.2``); path of a
            folder (``./x``), wheel or source archive; or URL.
        upgrade: install a newer version if there is one.
        editable: link the folder instead of copying it.
        owners: domain → the distribution that it belongs to, from ``trunkline.toml``.
        python: interpreter of the environment to install into. pip's own settings apply.
        on_line: called with each line that pip prints.

    Returns:
        The plugins that the target installed, and any other whose state changed. A broken one is
        included, with status ``failed``; so is one whose domain belongs to another distribution.

    Raises:
        UsageError: the target is neither a name nor a path nor a URL.
        NotFoundError: there is no such file or folder.
        PluginError: pip failed (nothing is changed then), or it installed something that is not a
            plugin.
    """
    pip_target, name = _pip_target(target, editable)
    before = _view_before(python, owners)
    with tempfile.TemporaryDirectory(prefix="trunkline-") as folder:
        constraints = Path(folder, "constraints.txt")
        constraints.write_text(constraint_lines(), encoding="utf-8")
        report = Path(folder, "report.json")
        options = ["--constraint", str(constraints), "--report", str(report)]
        options += ["--upgrade"] if upgrade else []
        run_pip(python, ["install", *options, *pip_target], f"install {target!r}", on_line)
        installed = json.loads(report.read_text(encoding="utf-8"))["install"]

    new = {canonicalize_name(item["metadata"]["name"]) for item in installed}
    if name:
        new.add(canonicalize_name(name))
    after = _view(python, owners=owners)
    plugins = [plugin for plugin in after if canonicalize_name(plugin.distribution) in new]
    if not plugins:
        requested = [item["metadata"]["name"] for item in installed if item["requested"]]
        label = requested[0] if requested else name or target
        raise PluginError(
            f"{label!r} was installed, but it is not a plugin: it has no entry point of the group "
            "'trunkline'.",
            f"Remove it with `{python} -m pip uninstall {label}`.",
        )
    others = [plugin for plugin in after if plugin not in before and plugin not in plugins]
    return (*plugins, *others)


def uninstall(
    name: str,
    *,
    python: str = sys.executable,
    on_line: Callable[[str], None] = lambda line: None,
) -> PluginInfo:
    """Uninstall the distribution of a plugin, without importing it, and return the plugin.

    Args:
        name: the plugin's domain, or its distribution if several claim the domain.

    Raises:
        NotFoundError: no installed plugin has that name.
        UsageError: several distributions claim the domain, or it is the core's.
        PluginError: pip failed, or the distribution is still there afterwards.
    """
    plugin = removable(name, python=python)
    run_pip(python, ["uninstall", "--yes", plugin.distribution], f"uninstall {name!r}", on_line)
    remaining = {one.distribution for one in _view(python, load=False)}
    if plugin.distribution in remaining:
        raise PluginError(
            f"pip did not remove {plugin.distribution!r}: it was not installed by this "
            "environment's pip.",
            "Remove it from PYTHONPATH, or uninstall it in the environment that it belongs to.",
        )
    return plugin


def removable(name: str, *, python: str = sys.executable) -> PluginInfo:
    """The one plugin that :func:`uninstall` would remove; nothing is imported.

    Raises:
        NotFoundError, UsageError, PluginError: as :func:`uninstall`, before pip runs.
    """
    if name in (CORE, "trunkline"):
        raise UsageError(
            f"{name!r} can't be uninstalled as a plugin: it holds the built-ins.",
            "Name an installed plugin; `trunkline plugins list` shows all.",
        )
    plugins = [plugin for plugin in _view(python, load=False) if plugin.domain != CORE]
    matching = [plugin for plugin in plugins if plugin.domain == name] or [
        plugin
        for plugin in plugins
        if canonicalize_name(plugin.distribution) == canonicalize_name(name)
    ]
    if not matching:
        known = [plugin.domain for plugin in plugins]
        raise NotFoundError.named("plugin", name, known, "`trunkline plugins list` shows all.")
    distributions = sorted({plugin.distribution for plugin in matching})
    if len(distributions) > 1:
        raise UsageError(
            f"The domain {name!r} is claimed by {' and '.join(distributions)}.",
            f"Name the one to remove: `trunkline plugins uninstall {distributions[0]}`.",
        )
    if distributions[0] == "unknown":
        raise PluginError(
            f"The distribution behind {name!r} has no readable metadata, so pip can't remove it.",
            "Delete its folder from site-packages by hand.",
        )
    return matching[0]


def _pip_target(target: str, editable: bool) -> tuple[list[str], str | None]:
    """The arguments for pip, and the distribution's name if the target includes it."""
    flag = ["--editable"] if editable else []
    if not target.strip() or target.startswith("-") or not target.isprintable():
        raise UsageError(
            f"{target!r} can't be installed.",
            "Give the name of a distribution, a folder such as ./my-plugin, or a wheel.",
        )
    if "://" in target and "@" not in target.partition("://")[0]:
        return [*flag, target], None
    archive = target.endswith((".whl", ".tar.gz", ".zip"))
    if editable or archive or target.startswith((".", "~")) or os.sep in target.split("@")[0]:
        path = Path(target).expanduser().resolve()
        if not path.exists():
            raise NotFoundError(
                f"There is no file or folder {target!r}.",
                "A path holds a '/' or starts with '.'; a bare name is looked up by pip.",
            )
        if path.is_dir() and not any((path / name).exists() for name in _PROJECT_FILES):
            raise UsageError(
                f"The folder {target!r} has no {' or '.join(_PROJECT_FILES)}.",
                "Name the folder of the plugin's distribution, or its wheel.",
            )
        return [*flag, str(path)], _wheel_name(path)
    try:
        return [target], Requirement(target).name
    except InvalidRequirement:
        raise UsageError(
            f"{target!r} is neither the name of a distribution nor a path.",
            "Give a name such as my-plugin or my-plugin==1.2, a folder such as ./my-plugin, or a "
            "wheel.",
        ) from None


_PROJECT_FILES = ("pyproject.toml", "setup.py")


def _wheel_name(path: Path) -> str | None:
    if path.suffix != ".whl":
        return None
    try:
        return str(parse_wheel_filename(path.name)[0])
    except InvalidWheelFilename as error:
        raise UsageError(f"{path.name!r} is not a valid wheel name.", str(error)) from None


def constraint_lines() -> str:
    """One line ``name==version`` for each installed distribution of :data:`PINNED`."""
    lines = []
    for name in PINNED:
        try:
            lines.append(f"{name}=={metadata.version(name)}\n")
        except metadata.PackageNotFoundError:
            continue
    return "".join(lines)


def run_pip(
    python: str, arguments: Sequence[str], action: str, on_line: Callable[[str], None]
) -> None:
    command = [python, "-P", "-m", "pip", "--no-input", "--disable-pip-version-check", *arguments]
    lines: list[str] = []
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(redact(line.rstrip(), foreign=True))
            on_line(lines[-1])
    if process.returncode:
        raise PluginError(f"pip could not {action}: {_last_error(lines)}", _pip_hint(python, lines))


_CAUSE = re.compile(r"\s*((?:error: |[A-Za-z_.]+(?:Error|Exception): ).+)")
"""The line of a build's output that says why it failed."""


def _last_error(lines: Iterable[str]) -> str:
    messages = [line.strip() for line in lines if line.strip()]
    errors = [
        line.removeprefix("ERROR:").strip()
        for line in messages
        if line.startswith("ERROR:") and "ResolutionImpossible" not in line
    ]
    causes = [match[1] for line in messages if (match := _CAUSE.fullmatch(line))]
    last = (errors or messages or ["it printed nothing"])[-1]
    return f"{last} ({causes[-1]})" if causes and causes[-1] not in last else last


def _view_before(python: str, owners: Mapping[str, str]) -> tuple[PluginInfo, ...]:
    """As :func:`_view`; imports no plugin if one of them ends the interpreter."""
    try:
        return _view(python, owners=owners)
    except PluginError:
        return _view(python, load=False)


def _pip_hint(python: str, lines: Iterable[str]) -> str:
    text = "\n".join(lines)
    if "No module named pip" in text:
        return f"Install pip first: `{python} -m ensurepip`."
    clash = re.search(r"The user requested \(constraint\) (\S+)", text)
    if clash:
        return f"It needs another version than the installed {clash[1]}; nothing was changed."
    return f"Run `{python} -m pip` by hand to see its full output; nothing was changed."


def _view(
    python: str, *, load: bool = True, owners: Mapping[str, str] = MappingProxyType({})
) -> tuple[PluginInfo, ...]:
    """The plugins as a new interpreter sees them, ignoring the user's filters."""
    filters = ("TRUNKLINE_LOAD_PLUGINS", "TRUNKLINE_TRACE_HOOKS")
    process = subprocess.Popen(
        [python, "-P", "-c", _VIEW, "load" if load else "find", json.dumps(dict(owners))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={name: value for name, value in os.environ.items() if name not in filters},
    )
    try:
        output, errors = process.communicate(timeout=_LONGEST_IMPORT)
        end = f"ended the interpreter (exit code {process.returncode})"
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        end = f"takes longer than {_LONGEST_IMPORT:.0f} s"
    items = output.splitlines()[-1:]
    if process.returncode or not items:
        for marker in unfinished_imports(process.pid):
            raise PluginError(
                f"Importing the plugin {marker.domain!r} of {marker.distribution} "
                f"{marker.version} {end}.",
                f"`trunkline plugins uninstall {marker.distribution}` removes it.",
            )
        last = redact((errors.strip().splitlines() or ["it printed nothing"])[-1], foreign=True)
        raise PluginError(
            f"The plugins can't be listed by {python}: {last}",
            "Trunkline must be installed in that environment.",
        )
    lists = (*SPECS, "notes", "restrictions")
    return tuple(
        PluginInfo(**(item | {name: tuple(item[name]) for name in lists}))
        for item in json.loads(items[0])
    )
