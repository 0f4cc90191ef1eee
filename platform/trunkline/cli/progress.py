"""Progress on stderr, as a live bar on a terminal and as plain lines elsewhere; and Ctrl-C.

:class:`Live` and :class:`Lines` are :class:`~trunkline.contracts.ProgressListener` objects.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trunkline.cli.output import bytes_text, duration, figure, note

_QUIET_SECONDS = 10.0
_LEAST_SECONDS = 2.0


class Lines:
    """Prints a line when a stage begins, and one per ten seconds or tenth of the work."""

    def __init__(self, unit: str = "steps", clock: Callable[[], float] = time.monotonic) -> None:
        self.current = ""
        self._unit = unit
        self._clock = clock
        self._pace = Pace(unit, clock())
        self._printed, self._tenth, self._pending = clock(), 0, ""

    def stage(self, text: str) -> None:
        self._flush()
        self.current = text
        self._pace = Pace(self._unit, self._clock())
        self._printed, self._tenth = self._clock(), 0
        self.print(text)

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        now = self._clock()
        parts = [f"{_amount(done, self._unit)} of {_amount(total, self._unit)}"]
        parts += [*_figures(values), *self._pace.at(now, done, total)]
        self._pending = "  " + ", ".join(parts)
        tenth = done * 10 // max(1, total)
        quiet = now - self._printed
        if quiet >= _QUIET_SECONDS or (tenth > self._tenth and quiet >= _LEAST_SECONDS):
            self._printed, self._tenth = now, tenth
            self._flush()

    def print(self, text: str) -> None:
        """Write a line."""
        note(text)

    def close(self) -> None:
        """End the last stage."""
        self._flush()

    def _flush(self) -> None:
        if self._pending:
            self.print(self._pending)
            self._pending = ""


class Pace:
    """Rate and remaining time since a start time. A resumed training does not begin at zero."""

    def __init__(self, unit: str, started: float) -> None:
        self._unit = unit
        self._started = started
        self._before: int | None = None

    def at(self, now: float, done: int, total: int) -> list[str]:
        """``["1.2 steps/s", "40 s left"]``."""
        if self._before is None:
            self._before = done - 1 if self._unit == "steps" else 0
        rate = (done - self._before) / max(now - self._started, 1e-9)
        if rate <= 0:
            return []
        left = [f"{duration((total - done) / rate)} left"] if done < total else []
        return [_speed(rate, self._unit), *left]


class Live:
    """A spinner with the stage, and a bar with rate and remaining time."""

    def __init__(self, unit: str = "steps") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self.current = ""
        self._unit = unit
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, highlight=False, markup=False, emoji=False),
            transient=True,
        )
        self._task: Any = None
        self._started = time.monotonic()
        self._pace = Pace(unit, self._started)
        self._bar.start()

    def stage(self, text: str) -> None:
        self._finish()
        self.current, self._started = text, time.monotonic()
        self._pace = Pace(self._unit, self._started)
        self._task = self._bar.add_task(text, total=None, amount="", figures="")

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        if self._task is None:
            self.stage(self._unit)
        amount = f"{_amount(done, self._unit)}/{_amount(total, self._unit)}"
        pace = self._pace.at(time.monotonic(), done, total)
        self._bar.update(
            self._task,
            completed=done,
            total=total,
            amount=", ".join([amount, *pace]),
            figures=", ".join(_figures(values)),
        )

    def print(self, text: str) -> None:
        """Write a line above the bar."""
        self._bar.console.print(text)

    def close(self) -> None:
        """End the last stage and remove the bar."""
        self._finish()
        self._bar.stop()

    def _finish(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self.print(f"{self.current}  {duration(time.monotonic() - self._started)}")
            self._task = None


@contextmanager
def working(unit: str = "steps") -> Iterator[Lines | Live]:
    """A progress listener that suits stderr, closed at the end."""
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    listener: Lines | Live = Live(unit) if live else Lines(unit)
    try:
        yield listener
    finally:
        listener.close()


@contextmanager
def stop_on_interrupt(listener: Lines | Live) -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the user pressed Ctrl-C.

    Training checks it after each step and between stages. A second Ctrl-C interrupts at once.
    """
    requested = False

    def request_stop(number: int, frame: Any) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = True
        part = "step" if listener.current == "training" else "stage"
        listener.print(f"stopping after this {part}; press Ctrl-C again to quit at once")

    before = signal.signal(signal.SIGINT, request_stop)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, before)


def _amount(count: int, unit: str) -> str:
    return bytes_text(count) if unit == "bytes" else f"{count:,}"


def _speed(rate: float, unit: str) -> str:
    """``12.5 rows/s``, ``3.1 s/step``, ``4.2 MB/s``."""
    if unit == "bytes":
        return f"{bytes_text(round(rate))}/s"
    return f"{rate:,.1f} {unit}/s" if rate >= 1 else f"{1 / max(rate, 1e-9):.1f} s/{unit[:-1]}"


def _figures(values: Mapping[str, float]) -> list[str]:
    shown = {
        name.removeprefix("validation."): value
        for name, value in values.items()
        if name == "loss" or name.startswith("validation.")
    }
    return [f"{name} {figure(value)}" for name, value in shown.items()]
