"""The validator for settings: type, range and choices, with one form of error message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trunkline.errors import UsageError

_NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def check_value(
    subject: str,
    value: Any,
    kind: type,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    help: str = "",
) -> None:
    """Raise :class:`UsageError` unless ``value`` has the type and lies in the range.

    Args:
        subject: what the value is for, as the start of a sentence: ``The setting r``.
        value: any object; an int is accepted as a float, a bool never as a number.
        kind: ``int``, ``float``, ``bool`` or ``str``.
        least, most: the inclusive range of a number; None: unbounded.
        choices: the accepted texts; empty: any.
        help: what the value means, for the hint.
    """
    if not is_kind(value, kind):
        raise UsageError(
            f"{subject} must be {noun_for(kind)}, not {value!r}.",
            f"{help[:1].upper()}{help[1:]}." if help else _range_hint(least, most),
        )
    if choices and value not in choices:
        raise UsageError(f"{subject} can't be {value!r}.", f"Use one of: {', '.join(choices)}.")
    if (least is not None and value < least) or (most is not None and value > most):
        meaning = f": {help}" if help else ""
        raise UsageError(
            f"{subject} can't be {value!r}.", f"{_range_hint(least, most)[:-1]}{meaning}."
        )


def is_kind(value: Any, kind: type) -> bool:
    """Whether ``value`` has the type; a float must be finite, and may be given as an int."""
    if kind is float:
        return is_finite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def is_finite(value: Any) -> bool:
    """Whether ``value`` is an int or a float that is finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def noun_for(kind: type) -> str:
    """The noun for a type in a message: ``an integer``."""
    return _NOUNS[kind]


def _range_hint(least: float | None, most: float | None) -> str:
    if least is None:
        return "Give a finite number."
    return (
        f"It must be at least {least}."
        if most is None
        else (f"It must be between {least} and {most}.")
    )
