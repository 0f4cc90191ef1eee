"""The grammar by which versions are searched: text → a tree of conditions.

Owns: the words, their types, and saying where a text goes wrong.
Must not know: tables; :mod:`trunkline.registry.finding` makes a query of the tree.

::

    search     = either
    either     = both ("or" both)*
    both       = one ("and" one)*
    one        = "not" one | "(" either ")" | comparison
    comparison = field operator value
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    value      = number | word | "text in quotes" | 'text in quotes'

``and`` binds stronger than ``or``, ``not`` strongest. ``~`` is "contains", whatever the case. The
fields are those of :data:`FIELDS`, ``tag.KEY``, and ``SPLIT.METRIC`` (``test.accuracy``), also with
``.low`` and ``.high`` for the ends of its interval.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from trunkline.errors import UsageError
from trunkline.refs import shown

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "~"]
Kind = Literal["text", "name", "number", "moment", "yes"]

FIELDS: dict[str, Kind] = {
    "adapter": "name",
    "domain": "name",
    "name": "name",
    "task": "name",
    "version": "number",
    "newest": "yes",
    "digest": "name",
    "alias": "name",
    "base": "name",
    "dataset": "name",
    "license": "text",
    "rows": "name",
    "run": "number",
    "bytes": "number",
    "created": "moment",
}
"""Field → what it is compared with. ``name`` and ``text`` are texts; ``rows`` is the fingerprint of
a dataset's rows; ``newest`` is yes or no: whether no higher number is visible."""

MOST_CONDITIONS = 20
LONGEST_SEARCH = 1000
_DEEPEST = 10

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<bracket>[()])
      | (?P<operator><=|>=|!=|[=<>~])
      | (?P<quoted>"[^"]*"|'[^']*')
      | (?P<word>[^\s()=<>!~"']+)
    )""",
    re.VERBOSE,
)
_FIGURE = re.compile(r"([a-z]+)\.([A-Za-z0-9_/.@-]+?)(?:\.(low|high))?", re.ASCII)
_TAG = re.compile(r"tag\.([a-z][a-z0-9_-]{0,39})", re.ASCII)
_HINT = "For example: domain=NAME and test.accuracy>0.85. The guide on lineage has the grammar."


@dataclass(frozen=True, slots=True)
class Plain:
    """A field of :data:`FIELDS` compared with a value."""

    field: str
    operator: Operator
    value: str | float | datetime | bool


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag's value compared with a text."""

    key: str
    operator: Operator
    value: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric's value, or an end of its interval, compared with a number."""

    split: str
    metric: str
    bound: Literal["value", "low", "high"]
    operator: Operator
    value: float


@dataclass(frozen=True, slots=True)
class Not:
    """What the condition does not hold for."""

    of: Condition


@dataclass(frozen=True, slots=True)
class Both:
    """Every one of these holds."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of these holds at least."""

    of: tuple[Condition, ...]


Condition = Plain | Tagged | Figure | Not | Both | Either


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> Condition:
    """Read a search.

    Raises:
        UsageError: it breaks the grammar; the message tells the position, from 1.
    """
    if len(text) > LONGEST_SEARCH:
        raise UsageError(
            f"The search has {len(text):,} characters.", f"Use {LONGEST_SEARCH:,} at most."
        )
    return _Parser(list(_tokens(text)), len(text)).whole()


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            raise _wrong(f"{shown(text[start : start + 1])} is not understood", start)
        yield _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        at = match.end()


def _wrong(what: str, at: int, hint: str = _HINT) -> UsageError:
    return UsageError(f"In the search, at character {at + 1}: {what}.", hint)


class _Parser:
    """Takes tokens from the left; one function a rule of the grammar."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self._tokens = tokens
        self._next = 0
        self._end = end
        self._conditions = 0

    def whole(self) -> Condition:
        found = self._either(0)
        if (token := self._peek()) is not None:
            raise _wrong(f"'and' or 'or' is expected, not {shown(token.text)}", token.at)
        return found

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, expected: str) -> _Token:
        token = self._peek()
        if token is None:
            raise _wrong(f"{expected} is expected, and the search ends", self._end)
        self._next += 1
        return token

    def _said(self, *words: str) -> bool:
        """Take the next token if it is one of these words, unquoted, or brackets."""
        token = self._peek()
        if token is None or token.kind == "quoted" or token.text.lower() not in words:
            return False
        self._next += 1
        return True

    def _either(self, depth: int) -> Condition:
        found = [self._both(depth)]
        while self._said("or"):
            found.append(self._both(depth))
        return found[0] if len(found) == 1 else Either(tuple(found))

    def _both(self, depth: int) -> Condition:
        found = [self._one(depth)]
        while self._said("and"):
            found.append(self._one(depth))
        return found[0] if len(found) == 1 else Both(tuple(found))

    def _one(self, depth: int) -> Condition:
        token = self._peek()
        if depth > _DEEPEST and token is not None:
            raise _wrong(f"more than {_DEEPEST} brackets stand in one another", token.at)
        if self._said("not"):
            return Not(self._one(depth + 1))
        if self._said("("):
            found = self._either(depth + 1)
            closing = self._take("')'")
            if closing.text != ")":
                raise _wrong(f"')' is expected, not {shown(closing.text)}", closing.at)
            return found
        return self._comparison()

    def _comparison(self) -> Condition:
        field = self._take("a field")
        if field.kind != "word":
            raise _wrong(f"a field is expected, not {shown(field.text)}", field.at)
        operator = self._take(f"an operator behind {shown(field.text)}")
        if operator.kind != "operator":
            raise _wrong(
                f"one of = != < <= > >= ~ is expected, not {shown(operator.text)}", operator.at
            )
        value = self._take("a value")
        if value.kind not in ("word", "quoted"):
            raise _wrong(f"a value is expected, not {shown(value.text)}", value.at)
        self._conditions += 1
        if self._conditions > MOST_CONDITIONS:
            raise _wrong(f"there are more than {MOST_CONDITIONS} conditions", field.at)
        return _condition(field, operator, value)


def _condition(field: _Token, operator: _Token, value: _Token) -> Condition:
    sign: Operator = operator.text  # type: ignore[assignment]
    text = value.text[1:-1] if value.kind == "quoted" else value.text
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _wrong(f"{shown(text)} can't be looked for", value.at)
    if (tag := _TAG.fullmatch(field.text)) is not None:
        _check_operator(sign, "name", field, operator)
        return Tagged(tag[1], sign, text)
    kind = FIELDS.get(field.text)
    if kind is not None:
        _check_operator(sign, kind, field, operator)
        return Plain(field.text, sign, _value(kind, text, value.at))
    figure = _FIGURE.fullmatch(field.text)
    if figure is None or figure[1] == "tag":
        raise _wrong(
            f"there is no field {shown(field.text)}",
            field.at,
            f"Fields are {', '.join(FIELDS)}, tag.KEY, and a split with a metric, such as "
            "test.accuracy or test.accuracy.low.",
        )
    _check_operator(sign, "number", field, operator)
    bound: Literal["value", "low", "high"] = figure[3] or "value"  # type: ignore[assignment]
    return Figure(figure[1], figure[2], bound, sign, _number(text, value.at))


def _check_operator(sign: Operator, kind: Kind, field: _Token, operator: _Token) -> None:
    fitting = {
        "text": ("=", "!=", "~"),
        "name": ("=", "!=", "~"),
        "number": ("=", "!=", "<", "<=", ">", ">="),
        "moment": ("<", "<=", ">", ">="),
        "yes": ("=", "!="),
    }[kind]
    if sign not in fitting:
        raise _wrong(
            f"{shown(field.text)} can't be compared by {sign!r}",
            operator.at,
            f"It takes: {' '.join(fitting)}.",
        )


def _value(kind: Kind, text: str, at: int) -> str | float | datetime | bool:
    if kind == "number":
        return _number(text, at)
    if kind == "moment":
        return _moment(text, at)
    if kind == "yes":
        if text.lower() not in ("yes", "no"):
            raise _wrong(f"yes or no is expected, not {shown(text)}", at)
        return text.lower() == "yes"
    return text


def _number(text: str, at: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(f"a number is expected, not {shown(text)}", at)
    return number


def _moment(text: str, at: int) -> datetime:
    try:
        found = datetime.fromisoformat(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _wrong(
            f"a time is expected, not {shown(text)}",
            at,
            "Write 2026-11-21 or 2026-11-21T22:10, in UTC.",
        ) from None
