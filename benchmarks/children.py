"""Systems that are compared, each in a process of its own, measured in turn.

An idle one sleeps on its end of the pipe and takes nothing from the others. Within one process, two
threads that compute would slow each other (see ``bases/load.py``).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from multiprocessing import get_context
from types import TracebackType
from typing import Any


class Child:
    """An object in another process; :meth:`ask` calls its methods, and its ``close`` ends it."""

    def __init__(self, make: Callable[..., Any], *args: Any, **settings: Any) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, make, args, settings), daemon=True
        )
        self._process.start()
        self._ready = False

    def wait(self) -> None:
        """Until the object is made; several children may be made at once, before any is asked."""
        if not self._ready:
            self._answer()
            self._ready = True

    def ask(self, method: str, *args: Any) -> Any:
        """What the method gives; exits where it fails."""
        self.wait()
        self._pipe.send((method, args))
        return self._answer()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and self._process.is_alive():
            self.wait()
            self._pipe.send(None)
            self._process.join(20)
        self._process.kill()

    def _answer(self) -> Any:
        try:
            done, value = self._pipe.recv()
        except EOFError:
            raise SystemExit("A process that was measured has ended.") from None
        if not done:
            raise SystemExit(value)
        return value


def _serve(pipe: Any, make: Callable[..., Any], args: Any, settings: Any) -> None:
    try:
        system = make(*args, **settings)
        pipe.send((True, None))
        while (message := pipe.recv()) is not None:
            method, given = message
            pipe.send((True, getattr(system, method)(*given)))
        if hasattr(system, "close"):
            system.close()
    except Exception:
        pipe.send((False, traceback.format_exc()))
