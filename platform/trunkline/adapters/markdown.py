"""Foreign values in Markdown: no text can end a cell, begin a line, or become markup.

Owns: escaping, and how figures look. Must not know: what a card says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_MARKUP = re.compile(r"([\\`*\[\]<>|])")


def words(value: Any) -> str:
    """A text, or any value as text, in one line, what would be markup escaped."""
    return _MARKUP.sub(r"\\\1", " ".join(str(value).split()))


def code(value: Any) -> str:
    """A value as code: a text as it is, anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{' '.join(text.replace('`', chr(39)).split()) or ' '}`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table's lines; its cells are Markdown already."""
    return [
        f"| {' | '.join(heads)} |",
        f"{'|---' * len(heads)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]


def estimate(score: Any) -> str:
    """``0.862 [0.832, 0.891]`` of an object with value, low and high; ``-`` of nothing."""
    if not isinstance(score, dict) or score.get("value") is None:
        return "-"
    low, high = score.get("low"), score.get("high")
    if low is None or high is None:
        return figure(score["value"])
    return f"{figure(score['value'])} [{figure(low)}, {figure(high)}]"


def figure(value: float) -> str:
    """Three decimals; ``-`` of what is no finite number."""
    return f"{value:.3f}" if math.isfinite(value) else "-"


def duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``2.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
