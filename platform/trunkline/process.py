"""Protect this process from code that it calls: its standard output, its end, and what it imports.

Nothing here imports another module of Trunkline.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from functools import cache, wraps
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoints

_EXITS = ("_exit", "abort", "execv", "execve")
_CLOSES = ("close", "closerange", "dup2")
_DESCRIPTORS = ("/proc/self/fd", "/dev/fd")
_refusing = threading.local()


class UserInterrupt(KeyboardInterrupt):
    """A signal interrupted the process, as Ctrl-C does; a plain KeyboardInterrupt is code's own."""


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


@contextmanager
def user_interrupts() -> Iterator[None]:
    """Raise :class:`UserInterrupt` where a signal raises KeyboardInterrupt.

    Other threads than the main one, and processes that ignore the signal, are never interrupted.
    """
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


@contextmanager
def closes_refused() -> Iterator[None]:
    """Make ``os.close`` and the like fail for the files that were open before the block.

    They are others': the registry's, a lock's, a socket's. The standard streams may be closed.
    Other threads and child processes may close what they like.
    """
    _guard_closes()
    previous = getattr(_refusing, "files", None)
    _refusing.files = (os.getpid(), _open_files())
    try:
        yield
    finally:
        _refusing.files = previous


def _open_files() -> dict[int, tuple[int, int]]:
    """Descriptor → device and number of each open file; empty where the system lists none."""
    folder = next((one for one in _DESCRIPTORS if os.path.isdir(one)), None)
    files = {}
    for name in os.listdir(folder) if folder else ():
        with suppress(OSError, ValueError):
            if (number := int(name)) > 2:
                files[number] = _identity(number)
    return files


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


@cache
def _guard_closes() -> None:
    for name in _CLOSES:
        setattr(os, name, _guarded_close(name, getattr(os, name)))


def _guarded_close(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def call(*args: Any, **options: Any) -> Any:
        files = _files_of_others()
        numbers = [*args, *options.values()]
        if files and all(isinstance(one, int) for one in numbers[:2]):
            closed = {"close": numbers[:1], "dup2": numbers[1:2]}.get(name)
            for number in range(*numbers) if closed is None else closed:
                if number in files and _is_open(number, files[number]):
                    arguments = ", ".join(map(repr, numbers))
                    raise PermissionError(
                        f"os.{name}({arguments:.60}) would close files that it did not open"
                    )
        return original(*args, **options)

    return call


def _files_of_others() -> dict[int, tuple[int, int]]:
    """The files that this thread may not close now."""
    guarded: tuple[int, dict[int, tuple[int, int]]] | None = getattr(_refusing, "files", None)
    return guarded[1] if guarded is not None and guarded[0] == os.getpid() else {}


def _is_open(number: int, file: tuple[int, int]) -> bool:
    """Whether a descriptor still is of this file, and not of one that was opened since."""
    try:
        return _identity(number) == file
    except OSError:
        return False


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
def state_kept() -> Iterator[None]:
    """Restore what a plugin's function must not change for the code that runs after it.

    That is the working folder, whether torch computes gradients and with which type of numbers,
    what numpy does about errors, and warnings that become errors.
    """
    folder, numbers, filters = working_folder(), _numbers(), error_filters()
    try:
        yield
    finally:
        if folder is not None and working_folder() != folder:
            with suppress(OSError):
                os.chdir(folder)
        if _numbers() != numbers:
            _restore_numbers(*numbers)
        remove_error_filters(filters)


def working_folder() -> str | None:
    """The working folder; None if it was removed."""
    try:
        return os.getcwd()
    except OSError:
        return None


def error_filters() -> list[Any]:
    """The filters that turn warnings into errors."""
    return [one for one in warnings.filters if one[0] == "error"]


def remove_error_filters(before: list[Any]) -> None:
    """Remove the filters that turn warnings into errors, except those that were there before."""
    for one in error_filters():
        if one not in before:
            warnings.filters.remove(one)  # type: ignore[attr-defined]


def _numbers() -> tuple[bool, str, dict[str, str]]:
    """How torch and numpy compute; as when they are imported, if nothing imported them."""
    torch: Any = sys.modules.get("torch")
    numpy: Any = sys.modules.get("numpy")
    gradients, dtype = True, "torch.float32"
    if hasattr(torch, "get_default_dtype"):
        gradients, dtype = torch.is_grad_enabled(), str(torch.get_default_dtype())
    errors = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}
    return gradients, dtype, dict(numpy.geterr()) if hasattr(numpy, "geterr") else errors


def _restore_numbers(gradients: bool, dtype: str, errors: dict[str, str]) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(getattr(torch, dtype.removeprefix("torch.")))
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.seterr(**errors)


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


# ------------------------------------------------------------------------- installed distributions


def entry_points_of(distribution: Distribution) -> EntryPoints:
    """The entry points of a distribution; raises if its ``entry_points.txt`` can't be parsed."""
    points: EntryPoints = _parser()(distribution)
    return points


def ignore_unreadable_entry_points() -> None:
    """Let every library ignore a distribution whose ``entry_points.txt`` can't be parsed.

    pydantic, fsspec and torch read those of all distributions when they are imported, and fail
    because of a single one.
    """
    from importlib.metadata import Distribution, EntryPoints

    _parser()

    def entry_points(distribution: Distribution) -> EntryPoints:
        try:
            return entry_points_of(distribution)
        except Exception:
            return EntryPoints()

    Distribution.entry_points = property(entry_points)  # type: ignore[method-assign,assignment]


@cache
def _parser() -> Callable[[Distribution], EntryPoints]:
    """The getter of Python's own ``Distribution.entry_points``."""
    from importlib.metadata import Distribution

    getter: Callable[[Distribution], EntryPoints] = vars(Distribution)["entry_points"].fget
    return getter
