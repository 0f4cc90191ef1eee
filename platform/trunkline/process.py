"""Protect this process from code that it calls: its standard output, and its end.

Nothing here imports another module of Trunkline.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import cache, wraps
from typing import Any, TextIO

_EXITS = ("_exit", "abort", "execv", "execve")
_refusing = threading.local()


class ProcessExit(SystemExit):
    """Code that may not end the process called a function that does, such as ``os._exit``.

    Attributes:
        call: the call as text: ``os._exit(0)``.
    """

    def __init__(self, call: str) -> None:
        super().__init__(1)
        self.call = call


def return_free_memory() -> None:
    """Give memory that is free in this process back to the system, where the C library keeps it."""
    import ctypes

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def exits_refused() -> Iterator[None]:
    """Make ``os._exit`` and similar functions raise :class:`ProcessExit`.

    They work as before in other threads and in child processes.
    """
    _guard_exits()
    previous = getattr(_refusing, "process", None)
    _refusing.process = os.getpid()
    try:
        yield
    finally:
        _refusing.process = previous


def keep_exit_code() -> None:
    """Let nothing that this thread still calls end the process, which would set its exit code.

    Called last in the main thread: what a plugin registered with ``atexit`` runs after it.
    """
    _guard_exits()
    _refusing.process = os.getpid()


@cache
def _guard_exits() -> None:
    for name in _EXITS:
        if hasattr(os, name):
            setattr(os, name, _guarded(f"os.{name}", getattr(os, name)))


def _guarded(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def call(*args: Any, **options: Any) -> Any:
        if getattr(_refusing, "process", None) != os.getpid():
            return original(*args, **options)
        arguments = ", ".join(map(repr, args))
        raise ProcessExit(f"{name}({arguments:.60})")

    return call


@contextmanager
def stdout_to_stderr() -> Iterator[TextIO]:
    """Send to stderr whatever is written to stdout: by Python, C code and child processes.

    Yields:
        A stream that still writes to stdout.
    """
    stdout = sys.stdout
    with suppress(OSError, ValueError, AttributeError):
        stdout.flush()
    with ExitStack() as stack:
        stream = stdout
        saved = _replace_descriptor()
        if saved is not None:
            stack.callback(_restore_descriptor, saved)
            if _writes_to_descriptor(stdout):
                stream = os.fdopen(
                    os.dup(saved), "w", encoding=stdout.encoding, errors=stdout.errors
                )
                stack.callback(_close, stream)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield stream


def _replace_descriptor() -> int | None:
    """Let descriptor 1 write to stderr; returns a copy of it, or None if one is closed."""
    try:
        saved = os.dup(1)
    except OSError:
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(saved)
        return None
    return saved


def _restore_descriptor(saved: int) -> None:
    with suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    os.dup2(saved, 1)
    os.close(saved)


def _writes_to_descriptor(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError, AttributeError):
        return False


def _close(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        stream.close()
