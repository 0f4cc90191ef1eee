"""Contain what a plugin does to the process while it is imported and its hooks are called.

Its output goes to stderr, ``os._exit`` becomes an exception, threads become daemons, and the
working folder, signal handlers, imported modules and the like are restored. What can't be
contained, a crash below Python or an endless import, leaves a marker file: the next command reads
it and names the plugin.
"""

from __future__ import annotations

import builtins
import contextlib
import csv
import dataclasses
import functools
import hashlib
import importlib
import io
import json
import locale
import logging
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import Any

from trunkline.errors import PluginError
from trunkline.plugins.process_state import SHARED
from trunkline.process import (
    closes_refused,
    exits_refused,
    stdout_to_stderr,
    user_interrupts,
    working_folder,
)
from trunkline.workspace import cache_folder

SLOW_SECONDS = 20.0
"""After this many seconds of an import, a note on stderr names the plugin."""


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
        stack.enter_context(_streams_open(notes))
        stack.enter_context(stdout_to_stderr())
        stack.enter_context(exits_refused())
        stack.enter_context(closes_refused())
        stack.enter_context(user_interrupts())
        stack.enter_context(_forks_ended())
        stack.enter_context(_restored(notes))
        stack.enter_context(_threads_as_daemons(notes))
        stack.enter_context(_modules_restored(notes))
        yield notes


@contextmanager
def _streams_open(notes: list[str]) -> Iterator[None]:
    """Open the standard streams again that a plugin closes, and restore methods that it replaces.

    Every command uses them.
    """
    kept: list[tuple[str, Any, int, int, dict[str, Any]]] = []
    names = ("stdin", "stdout", "stderr")
    attributes = [(name, vars(stream), dict(vars(stream))) for name in names
                  if hasattr(stream := getattr(sys, name), "__dict__")]  # fmt: skip
    for name in names:
        stream = getattr(sys, name)
        with suppress(OSError, ValueError, AttributeError):
            form = {"encoding": stream.encoding, "errors": stream.errors}
            number = stream.fileno()
            kept.append((name, stream, number, os.dup(number), form))
    try:
        yield
    finally:
        for name, current, before in attributes:
            if current != before:
                current.clear()
                current.update(before)
                notes.append(f"importing it replaces methods of sys.{name}, which were restored")
        for name, stream, number, copy, form in kept:
            lost = _is_closed(stream)
            if lost or not _is_same_file(number, copy):
                os.dup2(copy, number)
                notes.append(f"importing it closes sys.{name}, which was opened again")
            os.close(copy)
            if lost:
                mode, buffering = ("r", -1) if name == "stdin" else ("w", 1)
                opened = os.fdopen(number, mode, buffering, **form)
                for owner in (name, f"__{name}__"):
                    if getattr(sys, owner) is stream:
                        setattr(sys, owner, opened)
            elif form != {"encoding": stream.encoding, "errors": stream.errors}:
                stream.reconfigure(**form)
                notes.append(f"importing it changes the encoding of sys.{name}, which was restored")


def _is_closed(stream: Any) -> bool:
    try:
        return bool(stream.closed)
    except ValueError:  # it was detached from its buffer
        return True


def _is_same_file(number: int, copy: int) -> bool:
    try:
        return os.path.sameopenfile(number, copy)
    except OSError:
        return False


@contextmanager
def _forks_ended() -> Iterator[None]:
    """End a forked process that leaves the block: it would run the command a second time."""
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != process:
            os._exit(1)


@contextmanager
def _threads_as_daemons(notes: list[str]) -> Iterator[None]:
    """Make the threads of the block daemons: a program ends only after all other threads."""
    start, owner = threading.Thread.start, threading.get_ident()
    changed: list[threading.Thread] = []

    def start_as_daemon(thread: threading.Thread) -> None:
        if not thread.daemon and threading.get_ident() == owner:
            thread.daemon = True
            changed.append(thread)
        start(thread)

    threading.Thread.start = start_as_daemon  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
        if any(thread.is_alive() for thread in changed):
            notes.append("importing it starts a thread, which commands don't wait for at their end")


# -------------------------------------------------------------------------- state of the process

_GUARDED = (
    builtins, contextlib, csv, dataclasses, functools, hashlib, importlib, io, json, locale,
    logging, metadata, os, pathlib, re, secrets, shutil, signal, subprocess, sys, tempfile,
    threading, time,
)  # fmt: skip
"""The modules whose functions, classes and methods a plugin must not replace, beside those of
:data:`_OWN`: what Trunkline calls for every command."""

_OWN = ("trunkline", "pluggy", "click", "rich")
"""The packages by which every other plugin is loaded, and every command reads and prints."""


@contextmanager
def _modules_restored(notes: list[str]) -> Iterator[None]:
    """Restore imported modules that a plugin removes, and functions that it replaces.

    What follows the block may use any of these functions, so that nothing is called before they
    are restored.
    """
    functions, attributes = _functions(), _attributes()
    table, modules, environment = sys.modules, dict(sys.modules), os.environ
    filters = warnings.filters
    lists = {name: getattr(sys, name) for name in _IMPORT_LISTS}
    entries = {name: list(values) for name, values in lists.items()}
    try:
        yield
    finally:
        for contents, name, value, path in functions:
            if name not in contents or contents[name] is not value:
                contents[name] = value
                notes.append(f"importing it replaces {path}, which was restored")
        for kind, before in attributes:
            for name, value in before.items():
                if kind.__dict__.get(name) is not value:
                    setattr(kind, name, value)
                    path = f"{kind.__module__}.{kind.__qualname__}.{name}"
                    notes.append(f"importing it replaces {path}, which was restored")
        for name, values in lists.items():
            _restore_list(name, values, entries[name], notes)
        if not isinstance(warnings.filters, list):
            warnings.filters = filters
            notes.append("importing it replaces warnings.filters, which was restored")
        if os.environ is not environment:
            os.environ = environment  # noqa: B003  # the plugin did, and this is undone
            notes.append("importing it replaces os.environ, which was restored")
        if sys.modules is not table:
            table |= sys.modules if isinstance(sys.modules, dict) else {}
            sys.modules = table
            notes.append("importing it replaces sys.modules, which was restored")
        _restore_modules(modules, notes)


def _guarded_modules() -> list[Any]:
    own = [one for name, one in sys.modules.items() if one and name.partition(".")[0] in _OWN]
    return [*_GUARDED, *own]


def _functions() -> list[tuple[dict[str, Any], str, Any, str]]:
    """The functions and classes of the guarded modules: contents, name, value and path."""
    return [
        (module.__dict__, name, value, f"{module.__name__}.{name}")
        for module in _guarded_modules()
        for name, value in module.__dict__.items()
        if callable(value) and (module, name) != (sys, "excepthook")
    ]


def _attributes() -> list[tuple[type, dict[str, Any]]]:
    """The functions and properties of each class that a guarded module defines."""
    kinds = {
        value: None
        for module in _guarded_modules()
        for value in module.__dict__.values()
        if isinstance(value, type) and value.__module__.partition(".")[0] in _OWNERS
    }
    return [
        (kind, {name: value for name, value in vars(kind).items() if isinstance(value, _METHODS)})
        for kind in kinds
    ]


_OWNERS = frozenset((*_OWN, *(module.__name__.partition(".")[0] for module in _GUARDED)))

_METHODS = (FunctionType, classmethod, staticmethod, property)


_IMPORT_LISTS = ("path", "meta_path", "path_hooks")
"""The lists of ``sys`` by which modules are found."""


def _restore_list(name: str, values: list[Any], before: list[Any], notes: list[str]) -> None:
    """Restore a list of :data:`_IMPORT_LISTS`, with what the plugin added at its end.

    In front, a folder's ``utils.py`` or a finder that fails would take the place of the modules
    that the others and Trunkline import later.
    """
    current = getattr(sys, name, None)
    after = list(current) if isinstance(current, list | tuple) else []
    known = {_identity(one) for one in before}
    added = [one for one in after if _identity(one) not in known]
    if not known <= {_identity(one) for one in after}:
        noun = {"path": "folders", "meta_path": "finders"}.get(name, "entries")
        notes.append(f"importing it removes {noun} from sys.{name}, which was restored")
    elif [_identity(one) for one in after[: len(before)]] != [_identity(one) for one in before]:
        notes.append(f"importing it puts entries first on sys.{name}, which were moved to its end")
    values[:] = [*before, *(one for one in added if name != "path" or type(one) is str)]
    setattr(sys, name, values)
    if name == "path_hooks":
        sys.path_importer_cache.clear()


def _identity(one: Any) -> Any:
    """What two entries of such a list have in common if they are the same."""
    return one if type(one) is str else id(one)


def _restore_modules(before: Mapping[str, Any], notes: list[str]) -> None:
    """Restore modules that were removed or blocked, and those of Trunkline that were replaced."""
    blocked = [
        name for name, module in sys.modules.items() if module is None and before.get(name, name)
    ]
    lost = {
        name: module
        for name, module in before.items()
        if module is not None
        and (current := sys.modules.get(name)) is not module
        and (current is None or name.partition(".")[0] == "trunkline")
    }
    if blocked or lost:
        notes.append("importing it removes imported modules or blocks some, which was restored")
    for name in blocked:
        del sys.modules[name]
    sys.modules.update(lost)
    for name, module in lost.items():
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:
            setattr(sys.modules[parent], child, module)


@contextmanager
def _restored(notes: list[str]) -> Iterator[None]:
    """Restore what a plugin must not change for the others, and note each change.

    Raises:
        PluginError: a change can't be undone.
    """
    folder, handlers, language = working_folder(), _handlers(), locale.setlocale(locale.LC_ALL)
    streams = (sys.stdin, sys.stdout, sys.stderr)
    hook, limit = sys.excepthook, sys.getrecursionlimit()
    shared = {name: read() for name, (read, _) in SHARED.items()}
    for_good: list[PluginError] = []
    ended = False
    try:
        yield
        ended = True
    finally:
        if folder is not None and working_folder() != folder:
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
        for name, (read, write) in SHARED.items():
            if read() != shared[name]:
                try:
                    write(shared[name])
                except PluginError as error:
                    for_good.append(error)
                    notes += [] if ended else [error.message]
                except (OSError, ValueError):
                    notes.append(f"importing it changes {name}, which can't be undone")
                else:
                    notes.append(f"importing it changes {name}, which was restored")
    if for_good:
        raise for_good[0]


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
