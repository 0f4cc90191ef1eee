"""Filters of the templates: numbers, times, sizes, digests and JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from markupsafe import Markup

from trunkline.contracts import Span
from trunkline.data.targets import parse_prediction

DASH = "–"


def plain(value: Any) -> Any:
    """A value in the types of JSON; times in ISO 8601, numbers that are not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, datetime):
        return value.isoformat()
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


def figure(value: float | None, digits: int = 3) -> str:
    """A score or a loss: 0.913, 12.4, 1.3e-05."""
    if value is None or not math.isfinite(value):
        return DASH
    size = abs(value)
    if value != 0 and (size < 10**-digits or size >= 1e6):
        return f"{value:.2e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, digits - (1 if size >= 10 else 0) - (1 if size >= 100 else 0))}f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    text = figure(value)
    return f"+{text}" if value is not None and value > 0 and text != DASH else _minus(text)


def count(value: int | None) -> str:
    """A count with separators: 12,345."""
    return DASH if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """A share: 91.3 %."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def size(value: int | None) -> str:
    """Bytes: 4.2 MB."""
    if value is None:
        return DASH
    number = float(value)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            return (
                f"{number:.0f} {unit}" if unit == "B" or number >= 100 else f"{number:.1f} {unit}"
            )
        number /= 1000
    raise AssertionError


def duration(value: float | timedelta | None) -> str:
    """Seconds: 0.25 s, 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    if value is None:
        return DASH
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def short(digest: str | None) -> str:
    """The start of a digest: 12 hex digits."""
    return DASH if not digest else digest.removeprefix("sha256:")[:12]


def moment(value: datetime | None) -> Markup | str:
    """A time element in UTC; the script shows it in the reader's zone."""
    if value is None:
        return DASH
    utc = value.astimezone(UTC)
    return Markup('<time datetime="{}" title="{} UTC">{} UTC</time>').format(
        utc.isoformat(timespec="seconds").replace("+00:00", "Z"),
        f"{utc:%Y-%m-%d %H:%M:%S}",
        f"{utc:%Y-%m-%d %H:%M}",
    )


def capitalized(text: str) -> str:
    """A phrase as the start of a sentence."""
    return text[:1].upper() + text[1:]


def inline(value: Any) -> str:
    """Any stored value on one line."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={inline(item)}" for name, item in value.items()) or DASH
    if isinstance(value, list | tuple):
        return ", ".join(inline(item) for item in value) or DASH
    return str(value)


def answer(text: str | None, task: str) -> str:
    """A stored target or prediction: labels and spans without their JSON, the best candidate."""
    if not text or task not in ("multilabel", "tagging", "ranking"):
        return text or DASH
    try:
        value = parse_prediction(text, task)
    except (TypeError, ValueError):
        return text  # the target of a ranking is the candidate itself
    if not isinstance(value, tuple) or not value:
        return DASH
    if task == "ranking":
        return str(value[0])
    return ", ".join(
        f"{one.label} {one.start}–{one.end}" if isinstance(one, Span) else str(one) for one in value
    )


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text


FILTERS = {
    "figure": figure,
    "signed": signed,
    "count": count,
    "percent": percent,
    "size": size,
    "duration": duration,
    "short": short,
    "moment": moment,
    "inline": inline,
    "capitalized": capitalized,
    "answer": answer,
}
