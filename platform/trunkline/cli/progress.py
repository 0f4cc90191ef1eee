"""Progress on stderr, as a live bar on a terminal and as plain lines elsewhere; and Ctrl-C.

:class:`Live` and :class:`Lines` are :class:`~trunkline.contracts.ProgressListener` objects.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from trunkline.cli.output import bytes_text, duration, figure, note
from trunkline.redaction import redact

_QUIET_SECONDS = 10.0
_LEAST_SECONDS = 2.0
_RECENT_SECONDS = 30.0
_MARK_SECONDS = 1.0
_LEAST_MARKS = 5


class Pace:
    """Recent rate and remaining time.

    The rate is that of the last 30 seconds, or of the last few reports where they are farther
    apart. Pauses, such as validations, don't slow it down; the remaining time assumes that they go
    on as before. A resumed training does not begin at zero.
    """

    def __init__(self, unit: str, started: float) -> None:
        self._unit = unit
        self._started = started
        self._marks: deque[tuple[float, int]] = deque()
        self._first = 0
        self._pauses = 0.0
        self._paused_at: float | None = None

    @property
    def begun(self) -> bool:
        """Whether any progress was reported."""
        return bool(self._marks)

    def pause(self, now: float) -> None:
        """Another stage begins."""
        self._paused_at = now

    def resume(self, now: float) -> None:
        """The other stage has ended."""
        assert self._paused_at is not None
        pause, self._paused_at = now - self._paused_at, None
        self._marks = deque((moment + pause, done) for moment, done in self._marks)
        self._pauses += pause

    def at(self, now: float, done: int, total: int) -> list[str]:
        """``["1.2 steps/s", "40 s left"]``."""
        marks = self._marks
        if not marks:
            self._first = done - 1 if self._unit == "steps" else 0
            marks.append((self._started, self._first))
        if len(marks) > 1 and now - marks[-2][0] < _MARK_SECONDS:
            marks.pop()
        marks.append((now, done))
        while len(marks) > _LEAST_MARKS and now - marks[1][0] >= _RECENT_SECONDS:
            marks.popleft()
        rate = (done - marks[0][1]) / max(now - marks[0][0], 1e-9)
        if rate <= 0:
            return []
        per_unit = 1 / rate + self._pauses / max(1, done - self._first)
        left = [f"{duration((total - done) * per_unit)} left"] if done < total else []
        return [_speed(rate, self._unit), *left]


class _Stage:
    """One stage of the work, and how long it took so far."""

    def __init__(self, name: str, unit: str, now: float) -> None:
        self.name = name
        self.pace = Pace(unit, now)
        self.entered, self.seconds = now, 0.0

    def leave(self, now: float) -> None:
        self.seconds += now - self.entered
        self.pace.pause(now)

    def enter(self, now: float) -> None:
        self.entered = now
        self.pace.resume(now)


class _Stages:
    """The active stage, and an outer one that it interrupts and that goes on afterwards.

    A stage that reports progress, such as a training, is kept when another one begins. If it is
    named again, it goes on where it was.
    """

    def __init__(self, unit: str, clock: Callable[[], float]) -> None:
        self._unit, self._clock, self._created = unit, clock, clock()
        self._active: _Stage | None = None
        self._outer: _Stage | None = None
        self._last_inner: _Stage | None = None

    @property
    def current(self) -> str:
        """The name of the active stage."""
        return self._active.name if self._active else ""

    def stage(self, text: str) -> None:
        now = self._clock()
        left, self._active = self._active, None
        if left is not None:
            left.leave(now)
        if self._outer is not None and self._outer.name == text:
            self._last_inner, self._active, self._outer = left, self._outer, None
            self._active.enter(now)
            self._resumed(self._active, left)
            return
        if self._outer is not None:
            self._ended(self._outer)
            self._outer = self._last_inner = None
        if left is not None and left.pace.begun:
            self._outer = left
        elif left is not None:
            self._ended(left)
        self._active = _Stage(text, self._unit, now)
        self._begun(self._active)

    def _end_all(self) -> None:
        if self._outer is not None:
            self._ended(self._outer)
        if self._active is not None:
            self._active.leave(self._clock())
            self._ended(self._active)
        self._active = self._outer = None

    def _begun(self, stage: _Stage) -> None:
        """A new stage begins."""

    def _resumed(self, stage: _Stage, inner: _Stage | None) -> None:
        """The outer stage goes on after ``inner``."""

    def _ended(self, stage: _Stage) -> None:
        """A stage has ended."""


class Lines(_Stages):
    """Prints a line when a stage begins, and one per ten seconds or tenth of the work."""

    def __init__(self, unit: str = "steps", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(unit, clock)
        self._printed, self._tenth, self._pending = clock(), 0, ""

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        now = self._clock()
        parts = [f"{_amount(done, self._unit)} of {_amount(total, self._unit)}", *_figures(values)]
        if self._active is None:
            self._active = _Stage("", self._unit, self._created)
        parts += self._active.pace.at(now, done, total)
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
        self._end_all()

    def _begun(self, stage: _Stage) -> None:
        last = self._last_inner
        if last is not None and last.name == stage.name and last.seconds < _LEAST_SECONDS:
            return  # it was announced before, and is short
        self._flush()
        self.print(stage.name)
        if self._outer is None:
            self._printed, self._tenth = self._clock(), 0

    def _flush(self) -> None:
        if self._pending:
            self.print(self._pending)
            self._pending = ""


class Live(_Stages):
    """A spinner with the stage, and a bar with rate and remaining time."""

    def __init__(self, unit: str = "steps", clock: Callable[[], float] = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        super().__init__(unit, clock)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[amount]}", markup=False),
            TextColumn("{task.fields[figures]}", markup=False),
            console=Console(stderr=True, highlight=False, markup=False, emoji=False),
            transient=True,
        )
        self._tasks: dict[_Stage, Any] = {}
        self._bar.start()

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        if self._active is None:
            self.stage(self._unit)
        assert self._active is not None
        amount = f"{_amount(done, self._unit)}/{_amount(total, self._unit)}"
        pace = self._active.pace.at(self._clock(), done, total)
        self._bar.update(
            self._tasks[self._active],
            completed=done,
            total=total,
            amount=", ".join([amount, *pace]),
            figures=", ".join(_figures(values)),
        )

    def print(self, text: str) -> None:
        """Write a line above the bar."""
        self._bar.console.print(redact(text))

    def close(self) -> None:
        """End the last stage and remove the bar."""
        self._end_all()
        self._bar.stop()

    def _begun(self, stage: _Stage) -> None:
        self._tasks[stage] = self._bar.add_task(
            redact(stage.name), total=None, amount="", figures=""
        )

    def _resumed(self, stage: _Stage, inner: _Stage | None) -> None:
        if inner is not None:
            self._bar.remove_task(self._tasks.pop(inner))

    def _ended(self, stage: _Stage) -> None:
        self._bar.remove_task(self._tasks.pop(stage))
        self.print(f"{stage.name}  {duration(stage.seconds)}")


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
        "validation loss" if name == "validation.loss" else name.removeprefix("validation."): value
        for name, value in values.items()
        if name == "loss" or name.startswith("validation.")
    }
    return [f"{name} {figure(value)}" for name, value in shown.items()]
