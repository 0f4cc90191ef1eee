"""Labels: what is cleaned off them, which of them look alike, and what is no text at all."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_INVISIBLE = (
    "\\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
)
_ENDS = re.compile(f"\\A[{_INVISIBLE}]+|[{_INVISIBLE}]+\\Z")
_BLANK = re.compile(f"[{_INVISIBLE}\ufe00-\ufe0f]+")
_NAMED = 3  # sets of similar labels that a sentence names


def clean_label(label: str) -> str:
    """The label without white space and invisible characters at its ends."""
    return _ENDS.sub("", label)


def is_blank(text: str) -> bool:
    """Whether a text has nothing but white space and invisible characters."""
    return not text or _BLANK.fullmatch(text) is not None


def similar_labels(labels: Iterable[str]) -> list[list[str]]:
    """The sets of labels that differ only in case, white space or Unicode form."""
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(_comparable(label), []).append(label)
    return [group for group in alike.values() if len(group) > 1]


def similar_advice(label: str, declared: Iterable[str]) -> str | None:
    """How an undeclared label should be written, if a declared one is similar."""
    near = next((one for one in declared if _comparable(one) == _comparable(label)), None)
    if near is None:
        return None
    return f"Write {label!a} as the declared {near!a}."


def _comparable(label: str) -> str:
    """The label without what sets of similar labels differ in."""
    return _BLANK.sub("", unicodedata.normalize("NFKC", label).casefold())


def similar_text(groups: Sequence[Sequence[str]]) -> str:
    """``'red' and 'Red'; …``, the first sets of similar labels."""
    named = "; ".join(" and ".join(_shown(group)) for group in groups[:_NAMED])
    return named + ("; …" if len(groups) > _NAMED else "")


def _shown(labels: Sequence[str]) -> list[str]:
    """The labels in quotes; escaped where they would look the same."""
    distinct = {unicodedata.normalize("NFC", label) for label in labels}
    return [repr(label) if len(distinct) == len(labels) else ascii(label) for label in labels]
