"""Read and restore the state of the process that a plugin's import must not change."""

from __future__ import annotations

import csv
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from trunkline.errors import PluginError
from trunkline.process import error_filters, remove_error_filters

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def _mode_mask() -> int:
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def _variables() -> dict[str, str]:
    """The variables that Trunkline reads."""
    return {name: value for name, value in os.environ.items() if name.startswith("TRUNKLINE_")}


def _restore_variables(before: dict[str, str]) -> None:
    for name in _variables():
        del os.environ[name]
    os.environ.update(before)


def _torch_defaults() -> tuple[str, bool, str, str, int]:
    """The defaults of torch; those of a fresh torch if nothing has imported it."""
    torch = sys.modules.get("torch")
    if torch is None:
        return ("torch.float32", True, "cpu", "highest", 0)
    return (
        str(torch.get_default_dtype()),
        torch.is_grad_enabled(),
        str(torch.get_default_device()),
        torch.get_float32_matmul_precision(),
        torch.get_deterministic_debug_mode(),
    )


def _restore_torch(before: tuple[str, bool, str, str, int]) -> None:
    torch: Any = sys.modules["torch"]
    dtype, gradients, device, precision, determinism = before
    torch.set_default_dtype(getattr(torch, dtype.removeprefix("torch.")))
    torch.set_grad_enabled(gradients)
    torch.set_default_device(None if device == "cpu" else device)
    torch.set_float32_matmul_precision(precision)
    torch.set_deterministic_debug_mode(determinism)


_NUMPY_DEFAULTS = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}


def _numpy_errors() -> dict[str, str]:
    """What numpy does about floating-point errors; that of a fresh numpy if nothing imported it."""
    numpy: Any = sys.modules.get("numpy")
    return dict(_NUMPY_DEFAULTS) if numpy is None else dict(numpy.geterr())


def _restore_numpy(before: dict[str, str]) -> None:
    sys.modules["numpy"].seterr(**before)


def _timers() -> list[str]:
    """The timers that will send a signal, which ends the program."""
    names = ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF")
    known = [name for name in names if hasattr(signal, name)]
    return [name for name in known if signal.getitimer(getattr(signal, name))[0] > 0]


def _remove_timers(before: list[str]) -> None:
    for name in set(_timers()) - set(before):
        signal.setitimer(getattr(signal, name), 0)


def _blocked_signals() -> set[Any]:
    masks = hasattr(signal, "pthread_sigmask")
    return set(signal.pthread_sigmask(signal.SIG_BLOCK, ())) if masks else set()


def _restore_blocked_signals(before: set[Any]) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Limits(dict[str, tuple[int, int]]):
    """The soft and hard limits of the process; equal to others unless one of these is lower."""

    def __ne__(self, before: object) -> bool:
        return isinstance(before, dict) and bool(self.lower_than(before))

    def lower_than(self, before: dict[str, tuple[int, int]]) -> list[str]:
        """The names of the limits that are lower than before."""
        return [
            name
            for name, limits in self.items()
            if any(
                _height(now) < _height(then) for now, then in zip(limits, before[name], strict=True)
            )
        ]


def _height(limit: int) -> float:
    return float("inf") if limit == -1 else limit


def _limits() -> _Limits:
    """The limits that a process has, such as that of open files."""
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")] if resource else []
    return _Limits({name: resource.getrlimit(getattr(resource, name)) for name in names})


def _restore_limits(before: _Limits) -> None:
    """Raise the limits that were lowered, as far as this process may.

    Raises:
        PluginError: it may not raise a hard limit.
    """
    for name, limits in before.items():
        number = getattr(resource, name)
        hardest = resource.getrlimit(number)[1]
        for wanted in (limits, (min(limits[0], hardest, key=_height), hardest)):
            with suppress(OSError, ValueError):
                resource.setrlimit(number, wanted)
                break
    after = _limits()
    for name in after.lower_than(before):
        raise PluginError(
            f"importing it lowers the hard limit {name} of the process from "
            f"{_shown(before[name][1])} to {_shown(after[name][1])}, which can't be undone; leave "
            "the plugin out, and start again"
        )


def _shown(limit: int) -> str:
    return "unlimited" if limit == -1 else f"{limit:,}"


def _processors() -> frozenset[int]:
    """The processors that the process may run on, where the system says it."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def _restore_processors(before: frozenset[int]) -> None:
    os.sched_setaffinity(0, before)


def _priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0) if hasattr(os, "getpriority") else 0


def _restore_priority(before: int) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, before)


SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the file mode mask": (_mode_mask, os.umask),
    "the level below which logging is disabled": (
        lambda: logging.root.manager.disable,
        logging.disable,
    ),
    "warnings into errors": (error_filters, remove_error_filters),
    "variables that Trunkline reads": (_variables, _restore_variables),
    "the defaults of torch": (_torch_defaults, _restore_torch),
    "numpy's handling of errors": (_numpy_errors, _restore_numpy),
    "a timer that sends a signal": (_timers, _remove_timers),
    "the signals that are blocked": (_blocked_signals, _restore_blocked_signals),
    "limits of the process": (_limits, _restore_limits),
    "whether garbage is collected": (gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    "the trace function of threads": (threading.gettrace, threading.settrace),
    "the profile function of threads": (threading.getprofile, threading.setprofile),
    "how often threads take turns": (sys.getswitchinterval, sys.setswitchinterval),
    "the time limit of sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "the stack size of threads": (threading.stack_size, threading.stack_size),
    "the trace function": (sys.gettrace, sys.settrace),
    "the profile function": (sys.getprofile, sys.setprofile),
    "the limit of digits in a number": (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    "the limit of a field in CSV": (csv.field_size_limit, csv.field_size_limit),
    "the processors that it may use": (_processors, _restore_processors),
    "the priority of the process": (_priority, _restore_priority),
}
"""What it is → how to read it, and how to restore it."""
