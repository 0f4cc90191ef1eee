"""The search language for versions: text → a tree of conditions.

::

    search     = either
    either     = both ("or" both)*
    both       = one ("and" one)*
    one        = "not" one | "(" either ")" | comparison
    comparison = field operator value
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    value      = number | name | "quoted text" | 'quoted text'

``not`` binds strongest, then ``and``, then ``or``. ``~`` means "contains", ignoring case. The
fields are those of :data:`FIELDS`, ``tag.KEY``, and ``SPLIT.METRIC`` (``test.accuracy``), also with
``.low`` and ``.high`` for the ends of its interval. :mod:`trunkline.registry.search` turns the tree
into a query.
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
Kind = Literal["text", "name", "number", "time", "boolean"]

FIELDS: dict[str, Kind] = {
    "adapter": "name",
    "domain": "name",
    "name": "name",
    "task": "name",
    "version": "number",
    "newest": "boolean",
    "digest": "name",
    "alias": "name",
    "base": "name",
    "modality": "name",
    "dataset": "name",
    "license": "text",
    "rows": "name",
    "run": "number",
    "bytes": "number",
    "created": "time",
}
"""Field → the type of its value. ``rows`` is the fingerprint of a dataset's rows; ``newest`` is yes
or no: whether the adapter has no higher visible number."""

MAX_CONDITIONS = 20
MAX_LENGTH = 1000
_MAX_DEPTH = 10

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<bracket>[()])
      | (?P<operator><=|>=|!=|[=<>~])
      | (?P<quoted>"[^"]*"|'[^']*')
      | (?P<bare>[^\s()=<>!~"']+)
    )""",
    re.VERBOSE,
)
_SCORE = re.compile(r"([a-z]+)\.([A-Za-z0-9_/.@-]+?)(?:\.(low|high))?", re.ASCII)
_TAG = re.compile(r"tag\.([a-z][a-z0-9_-]{0,39})", re.ASCII)
_HINT = "For example: domain=NAME and test.accuracy>0.85. docs/lineage.md has the grammar."


@dataclass(frozen=True, slots=True)
class FieldCondition:
    """A field of :data:`FIELDS` compared with a value."""

    field: str
    operator: Operator
    value: str | float | datetime | bool


@dataclass(frozen=True, slots=True)
class TagCondition:
    """A tag's value compared with a text."""

    key: str
    operator: Operator
    value: str


@dataclass(frozen=True, slots=True)
class ScoreCondition:
    """A metric's value, or an end of its interval, compared with a number."""

    split: str
    metric: str
    bound: Literal["value", "low", "high"]
    operator: Operator
    value: float


@dataclass(frozen=True, slots=True)
class Not:
    """The negation of a condition."""

    of: Condition


@dataclass(frozen=True, slots=True)
class And:
    """Every one of the conditions."""

    of: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one of the conditions."""

    of: tuple[Condition, ...]


Condition = FieldCondition | TagCondition | ScoreCondition | Not | And | Or


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


def parse(text: str) -> Condition:
    """Parse a search.

    Raises:
        UsageError: a syntax error; the message has its position, from 1.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(
            f"The search has {len(text):,} characters.", f"Use at most {MAX_LENGTH:,}."
        )
    return _Parser(list(_tokens(text)), len(text)).parse()


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            start = at + len(text[at:]) - len(text[at:].lstrip())
            raise _syntax_error(f"unexpected {shown(text[start : start + 1])}", start)
        yield _Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup))
        at = match.end()


def _syntax_error(problem: str, at: int, hint: str = _HINT) -> UsageError:
    return UsageError(f"Error in the search at character {at + 1}: {problem}.", hint)


class _Parser:
    """A recursive-descent parser with one method for each rule of the grammar."""

    def __init__(self, tokens: list[_Token], end: int) -> None:
        self._tokens = tokens
        self._next = 0
        self._end = end
        self._conditions = 0

    def parse(self) -> Condition:
        condition = self._either(0)
        if (token := self._peek()) is not None:
            raise _syntax_error(f"expected 'and' or 'or', not {shown(token.text)}", token.at)
        return condition

    def _peek(self) -> _Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, expected: str) -> _Token:
        token = self._peek()
        if token is None:
            raise _syntax_error(f"expected {expected}, but the search ends", self._end)
        self._next += 1
        return token

    def _accept(self, *keywords: str) -> bool:
        """Take the next token if it is one of these keywords or brackets, unquoted."""
        token = self._peek()
        if token is None or token.kind == "quoted" or token.text.lower() not in keywords:
            return False
        self._next += 1
        return True

    def _either(self, depth: int) -> Condition:
        parts = [self._both(depth)]
        while self._accept("or"):
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _both(self, depth: int) -> Condition:
        parts = [self._one(depth)]
        while self._accept("and"):
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self, depth: int) -> Condition:
        token = self._peek()
        if depth > _MAX_DEPTH and token is not None:
            raise _syntax_error(f"more than {_MAX_DEPTH} nested brackets", token.at)
        if self._accept("not"):
            return Not(self._one(depth + 1))
        if self._accept("("):
            condition = self._either(depth + 1)
            closing = self._take("')'")
            if closing.text != ")":
                raise _syntax_error(f"expected ')', not {shown(closing.text)}", closing.at)
            return condition
        return self._comparison()

    def _comparison(self) -> Condition:
        field = self._take("a field")
        if field.kind != "bare":
            raise _syntax_error(f"expected a field, not {shown(field.text)}", field.at)
        operator = self._take(f"an operator after {shown(field.text)}")
        if operator.kind != "operator":
            raise _syntax_error(
                f"expected one of = != < <= > >= ~, not {shown(operator.text)}", operator.at
            )
        value = self._take("a value")
        if value.kind not in ("bare", "quoted"):
            raise _syntax_error(f"expected a value, not {shown(value.text)}", value.at)
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise _syntax_error(f"more than {MAX_CONDITIONS} conditions", field.at)
        return _condition(field, operator, value)


def _condition(field: _Token, operator: _Token, value: _Token) -> Condition:
    sign: Operator = operator.text  # type: ignore[assignment]
    text = value.text[1:-1] if value.kind == "quoted" else value.text
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _syntax_error(f"{shown(text)} can't be searched for", value.at)
    if (tag := _TAG.fullmatch(field.text)) is not None:
        _check_operator(sign, "name", field, operator)
        return TagCondition(tag[1], sign, text)
    kind = FIELDS.get(field.text)
    if kind is not None:
        _check_operator(sign, kind, field, operator)
        return FieldCondition(field.text, sign, _value(kind, text, value.at))
    score = _SCORE.fullmatch(field.text)
    if score is None or score[1] == "tag":
        raise _syntax_error(
            f"there is no field {shown(field.text)}",
            field.at,
            f"Fields are {', '.join(FIELDS)}, tag.KEY, and a split with a metric, such as "
            "test.accuracy or test.accuracy.low.",
        )
    _check_operator(sign, "number", field, operator)
    bound: Literal["value", "low", "high"] = score[3] or "value"  # type: ignore[assignment]
    return ScoreCondition(score[1], score[2], bound, sign, _number(text, value.at))


def _check_operator(sign: Operator, kind: Kind, field: _Token, operator: _Token) -> None:
    operators: tuple[str, ...] = {
        "text": ("=", "!=", "~"),
        "name": ("=", "!=", "~"),
        "number": ("=", "!=", "<", "<=", ">", ">="),
        "time": ("<", "<=", ">", ">="),
        "boolean": ("=", "!="),
    }[kind]
    if sign not in operators:
        raise _syntax_error(
            f"{shown(field.text)} can't be compared with {sign!r}",
            operator.at,
            f"Use one of: {' '.join(operators)}.",
        )


def _value(kind: Kind, text: str, at: int) -> str | float | datetime | bool:
    if kind == "number":
        return _number(text, at)
    if kind == "time":
        return _time(text, at)
    if kind == "boolean":
        if text.lower() not in ("yes", "no"):
            raise _syntax_error(f"expected yes or no, not {shown(text)}", at)
        return text.lower() == "yes"
    return text


def _number(text: str, at: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _syntax_error(f"expected a number, not {shown(text)}", at)
    return number


def _time(text: str, at: int) -> datetime:
    try:
        time = datetime.fromisoformat(text)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _syntax_error(
            f"expected a time, not {shown(text)}",
            at,
            "Write 2026-11-21 or 2026-11-21T22:10, in UTC.",
        ) from None
