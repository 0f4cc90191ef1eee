"""Admission, cancellation, deadlines and shutdown, for the engine of either modality."""

from __future__ import annotations

import atexit
import warnings
import weakref
from collections.abc import Callable, Iterable
from typing import Protocol

from trunkline.errors import (
    BaseModelError,
    BusyError,
    DeadlineError,
    Interrupted,
    TrunklineError,
    UnavailableError,
    one_line,
)
from trunkline.inference.request_state import RequestState, RequestStats, Result

Observer = Callable[[RequestStats], None]


class Closable(Protocol):
    """An engine, as far as the end of the process concerns it."""

    def close(self) -> None: ...


def check_open(*, draining: bool) -> None:
    """Raise :class:`UnavailableError` if the engine takes no more requests."""
    if draining:
        raise UnavailableError(
            "The engine takes no more requests.", "Send the request to another server."
        )


def check_queue(waiting: int, limit: int) -> None:
    """Raise :class:`BusyError` if as many requests wait as may."""
    if waiting >= limit:
        raise BusyError(
            f"{waiting} requests are waiting already.",
            "Try again later, or give the server a longer --queue.",
        )


def early_end(state: RequestState, now: float) -> tuple[TrunklineError, str] | None:
    """The error and the outcome of a request that was cancelled or is late; else None."""
    if state.cancelled:
        return Interrupted("The request was cancelled."), "cancelled"
    if state.is_late(now):
        late = DeadlineError(
            f"The request was not answered within {state.request.deadline:g} seconds.",
            "Give it a longer deadline, or try again when the engine is less busy.",
        )
        return late, "deadline"
    return None


def finish(
    state: RequestState, result: Result, outcome: str, now: float, observers: Iterable[Observer]
) -> None:
    """End a request, and give its account to the observers."""
    stats = state.finish(result, outcome, now)
    for observer in observers:
        try:
            observer(stats)
        except Exception as error:  # a failing observer must not end a request
            reason = one_line(error, with_type=True)
            warnings.warn(f"An observer of the engine failed: {reason}", stacklevel=2)


def longest_wait(waiting: Iterable[RequestState], now: float) -> float:
    """How long the first of the waiting requests has been waiting, in seconds; 0 if none waits."""
    return max((now - one.submitted for one in waiting), default=0.0)


def adapter_names(requests: Iterable[RequestState]) -> tuple[str, ...]:
    """The versions that requests need, sorted; the bare base is none."""
    return tuple(sorted({one.name for one in requests if one.artifact is not None}))


def closed_error() -> UnavailableError:
    """Of a request that is open when its engine is closed."""
    return UnavailableError("The engine was closed.", "Send the request again.")


def as_trunkline_error(error: BaseException, remedy: str) -> TrunklineError:
    """The error of a request whose step failed; ``remedy`` is what helps if memory ran out."""
    if isinstance(error, TrunklineError):
        return error
    return BaseModelError(
        f"The step failed: {one_line(error, with_type=True)[:200]}.",
        f"If memory ran out, give the engine {remedy}.",
    )


def close_at_exit(engine: Closable) -> None:
    """Close the engine when the process ends, if it is still there."""
    atexit.register(_close, weakref.ref(engine))


def _close(engine: weakref.ref[Closable]) -> None:
    if (open_engine := engine()) is not None:
        open_engine.close()
