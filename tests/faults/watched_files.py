"""Make every call that changes a disk a step: open, write, sync, rename, create, remove.

The calls are wrapped where Python enters the operating system, so ``shutil``, ``tempfile``,
``pathlib`` and ``tarfile`` all pass through.
"""

from __future__ import annotations

import builtins
import io
import os
import tarfile
from collections.abc import Callable
from functools import wraps
from typing import Any, Self

from faults.steps import Watch, die

_CALLS = (
    ("fsync", "sync", 0),
    ("fdatasync", "sync", 0),
    ("rename", "rename", 1),
    ("replace", "rename", 1),
    ("link", "rename", 1),
    ("symlink", "rename", 1),
    ("mkdir", "mkdir", 0),
    ("unlink", "remove", 0),
    ("remove", "remove", 0),
    ("rmdir", "remove", 0),
    ("truncate", "cut", 0),
    ("chmod", "mode", 0),
)
"""Functions of ``os``, their kinds of steps, and the position of the changed path."""


def watch_files(watch: Watch) -> None:
    """Install the wrappers."""
    _wrap_os(watch)
    _wrap_open(watch)
    _list_in_order()


def _wrap_os(watch: Watch) -> None:
    for name, kind, position in _CALLS:
        setattr(os, name, _wrapped(watch, getattr(os, name), kind, position))
    real_open, real_write, real_sendfile = os.open, os.write, os.sendfile
    creates = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

    @wraps(real_open)
    def open_(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        def act() -> int:
            return real_open(path, flags, mode, dir_fd=dir_fd)

        label = watch.label(path, dir_fd) if flags & creates else None
        return act() if label is None else watch.take("open", label, act)

    @wraps(real_write)
    def write(handle: int, data: Any) -> int:
        label = watch.label(handle)
        if label is None:
            return real_write(handle, data)
        return watch.write(label, data, lambda part: real_write(handle, part))

    @wraps(real_sendfile)
    def sendfile(out: int, source: int, offset: int | None, count: int, **more: Any) -> int:
        label = watch.label(out)
        size = min(count, os.fstat(source).st_size - (offset or 0))
        if label is None or size <= 0:
            return real_sendfile(out, source, offset, count, **more)
        met = watch.arrive("write", label)
        if met == "torn":
            real_sendfile(out, source, offset, max(size // 2, 1))
            die()
        sent = real_sendfile(out, source, offset, count, **more)
        if met == "after":
            die()
        return sent

    os.open, os.write, os.sendfile = open_, write, sendfile  # type: ignore[assignment]


def _wrapped(
    watch: Watch, real: Callable[..., Any], kind: str, position: int
) -> Callable[..., Any]:
    @wraps(real)
    def call(*args: Any, **named: Any) -> Any:
        folder = named.get("dst_dir_fd" if position else "dir_fd")
        label = watch.label(args[position], folder) if len(args) > position else None
        if label is None:
            return real(*args, **named)
        return watch.take(kind, label, lambda: real(*args, **named))

    return call


def _wrap_open(watch: Watch) -> None:
    real = io.open

    class WatchedFile(io.FileIO):
        """A file whose writes are steps."""

        label = ""

        def write(self, data: Any) -> int:
            return watch.write(self.label, data, super().write)

        def truncate(self, size: int | None = None) -> int:
            act = super().truncate
            return watch.take("cut", self.label, lambda: act(size))

    @wraps(real)
    def opened(
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        label = watch.label(file) if set(mode) & set("wax+") else None
        if label is None:
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        plain = mode.replace("b", "").replace("t", "")

        def act() -> WatchedFile:
            return WatchedFile(file, plain, closefd, opener)

        given = isinstance(file, int) or opener is not None
        raw = act() if given else watch.take("open", label, act)
        raw.label = label
        if buffering == 0:
            return raw
        size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
        buffered = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, buffering == 1)

    builtins.open = io.open = opened  # type: ignore[assignment]
    tarfile.bltn_open = opened  # type: ignore[attr-defined]


def _list_in_order() -> None:
    """List folders in the order of names, so that each run takes the same steps."""
    real_list, real_scan = os.listdir, os.scandir

    class Scan:
        def __init__(self, *args: Any) -> None:
            with real_scan(*args) as entries:
                self._entries = iter(sorted(entries, key=lambda entry: entry.name))

        def __iter__(self) -> Self:
            return self

        def __next__(self) -> Any:
            return next(self._entries)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_ended: object) -> None:
            self.close()

        def close(self) -> None:
            self._entries = iter(())

    os.listdir = lambda *args: sorted(real_list(*args))  # type: ignore[assignment]
    os.scandir = Scan  # type: ignore[assignment,misc]
