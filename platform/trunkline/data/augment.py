"""Transforms that add changed copies of training rows; plugins make more with their own tables.

The copies keep the group and the target of their row. Random-word operations are those of Wei & Zou
2019 (EDA), character noise that of Belinkov & Bisk 2018.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trunkline.contracts import Row, TransformSpec
from trunkline.errors import UsageError
from trunkline.labels import is_blank

_SHARE = 0.1
"""Share of the words, or of the characters, that a copy changes."""

_NUMBER = re.compile(r"(?<![\w.,])([1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?(?![\w.,]*\w)")
_TOKEN = re.compile(r"\w+(?:[-'’]\w+)*")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Change = Callable[[str, random.Random], str]


def copies(suffix: str, change: Change) -> Callable[[Row, random.Random], list[Row]]:
    """The function of a transform that adds a copy of each row with a changed text.

    Args:
        suffix: appended to the id of a copy.
        change: ``(text, rng) -> text``; an equal or an empty text adds no row.
    """

    def apply(row: Row, rng: random.Random) -> list[Row]:
        text = change(row.text, rng)
        if text == row.text or is_blank(text):
            return [row]
        return [replace(row, id=f"{row.id}+{suffix}", text=text)]

    return apply


def synonyms(
    name: str, table: Mapping[str, Sequence[str]], description: str | None = None
) -> TransformSpec:
    """A transform that replaces a tenth of the words in a table by one of their synonyms.

    Args:
        name: ``domain/name``.
        table: a word or phrase, in any case → its synonyms. The longest phrase is replaced first.
        description: one line.

    Raises:
        UsageError: the table is empty, a phrase has no list of texts, or occurs in two cases.
    """
    known = _table(name, table)

    def change(text: str, rng: random.Random) -> str:
        matches = list(known.pattern.finditer(text))
        if not matches:
            return text
        chosen = set(_sample(matches, rng))

        def one(match: re.Match[str]) -> str:
            if match not in chosen:
                return match[0]
            return _in_case(rng.choice(known.replacements(match[0])), match[0])

        return _replaced(text, matches, one)

    return TransformSpec(
        name=name,
        description=description or f"add a copy with synonyms from a table of {len(table)}",
        stage="augment",
        apply=copies("synonyms", change),
    )


def abbreviations(
    name: str, table: Mapping[str, str], description: str | None = None
) -> TransformSpec:
    """A transform that writes out every abbreviation of a table.

    Args:
        name: ``domain/name``.
        table: abbreviation, in any case → what it stands for.
        description: one line.

    Raises:
        UsageError: the table is empty, or a value is no text.
    """
    known = _table(name, {key: (value,) for key, value in _pairs(name, table)})

    def change(text: str, rng: random.Random) -> str:
        matches = list(known.pattern.finditer(text))
        return _replaced(text, matches, lambda match: known.replacements(match[0])[0])

    return TransformSpec(
        name=name,
        description=description or f"add a copy with {len(table)} abbreviations written out",
        stage="augment",
        apply=copies("abbreviations", change),
    )


class _Table:
    """Phrases, whose letters may have any case → what may stand in their place."""

    def __init__(self, values: Mapping[str, tuple[str, ...]]) -> None:
        self._values = {key.lower(): value for key, value in values.items()}
        phrases = sorted(values, key=len, reverse=True)
        alternatives = "|".join(re.escape(phrase) for phrase in phrases)
        self.pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)

    def replacements(self, text: str) -> tuple[str, ...]:
        """What may stand in the place of a match; letters such as ı have no case of their own."""
        return self._values.get(text.lower(), (text,))


def _pairs(name: str, table: Any) -> list[tuple[Any, Any]]:
    if not isinstance(table, Mapping) or not table:
        raise UsageError(
            f"The table of {name} is {table!r:.60}, not a mapping with entries.",
            "Write for example {'kidney': ['renal']}.",
        )
    return list(table.items())


def _table(name: str, table: Any) -> _Table:
    values: dict[str, tuple[str, ...]] = {}
    folded: dict[str, str] = {}
    for key, value in _pairs(name, table):
        usable = isinstance(value, list | tuple | set | frozenset) and all(map(_is_text, value))
        if not _is_text(key) or not value or not usable:
            raise UsageError(
                f"The table of {name} has {value!r:.60} for {key!r:.60}.",
                "Give each word or phrase a list of texts, such as {'kidney': ['renal']}.",
            )
        if (other := folded.setdefault(key.lower(), key)) != key:
            raise UsageError(
                f"The table of {name} has {other!r} and {key!r}, which differ only in case.",
                "Give each word or phrase once.",
            )
        values[key] = tuple(sorted(value) if isinstance(value, set | frozenset) else value)
    return _Table(values)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _replaced(
    text: str, matches: Iterable[re.Match[str]], value: Callable[[re.Match[str]], str]
) -> str:
    parts, end = [], 0
    for match in matches:
        parts += [text[end : match.start()], value(match)]
        end = match.end()
    return "".join([*parts, text[end:]])


def _in_case(text: str, model: str) -> str:
    """The text in capitals or with a capital, if the model is."""
    if model.isupper() and len(model) > 1:
        return text.upper()
    return text[:1].upper() + text[1:] if model[:1].isupper() else text


def _sample(items: Sequence[re.Match[str]], rng: random.Random) -> list[re.Match[str]]:
    """A tenth of the items, at least one."""
    return rng.sample(list(items), max(1, round(_SHARE * len(items))))


def _lowercase(text: str, rng: random.Random) -> str:
    return text.lower()


def _delete_words(text: str, rng: random.Random) -> str:
    """Each word is deleted with a probability; at least one stays."""
    tokens = text.split()
    kept = [token for token in tokens if rng.random() >= _SHARE]
    return " ".join(kept or tokens[:1])


def _swap_words(text: str, rng: random.Random) -> str:
    """Two words change places, once for each ten words."""
    tokens = text.split()
    if len(tokens) < 2:
        return text
    for _ in range(max(1, round(_SHARE * len(tokens)))):
        one, other = rng.sample(range(len(tokens)), 2)
        tokens[one], tokens[other] = tokens[other], tokens[one]
    return " ".join(tokens)


def _add_noise(text: str, rng: random.Random) -> str:
    """One typing error in a tenth of the words of three letters or more; digits stay."""
    matches = [m for m in _TOKEN.finditer(text) if len(m[0]) > 2 and m[0].isalpha()]
    if not matches:
        return text
    return _replaced(
        text,
        sorted(_sample(matches, rng), key=lambda match: match.start()),
        lambda match: _typing_error(match[0], rng),
    )


def _typing_error(token: str, rng: random.Random) -> str:
    """The word with two letters swapped, one missing, one twice, or one replaced; not the first."""
    at = rng.randrange(1, len(token) - 1)
    kind = rng.randrange(4)
    if kind == 0:
        return token[:at] + token[at + 1] + token[at] + token[at + 2 :]
    if kind == 1:
        return token[:at] + token[at + 1 :]
    if kind == 2:
        return token[:at] + token[at] + token[at:]
    return token[:at] + rng.choice(_LETTERS) + token[at + 1 :]


def _format_numbers(text: str, rng: random.Random) -> str:
    """Commas between thousands are added where there are none, and else removed; values stay."""

    def other(match: re.Match[str]) -> str:
        digits, rest = match[1], match[2] or ""
        if "," in digits:
            return digits.replace(",", "") + rest
        # A leading zero marks a code, four digits may be a year: both stay
        if len(digits) < 5 or digits.startswith("0"):
            return match[0]
        return f"{int(digits):,}{rest}"

    return _NUMBER.sub(other, text)


def _spec(name: str, description: str, suffix: str, change: Change) -> TransformSpec:
    return TransformSpec(
        name=name, description=description, stage="augment", apply=copies(suffix, change)
    )


TRANSFORMS: tuple[TransformSpec, ...] = (
    _spec("lowercase-copy", "add a lower-case copy of each training row", "lowercase", _lowercase),
    _spec(
        "random-deletion",
        "add a copy with each word deleted at probability 0.1 (Wei & Zou 2019, EDA)",
        "deletion",
        _delete_words,
    ),
    _spec(
        "random-swap",
        "add a copy with a tenth of the words swapped (Wei & Zou 2019, EDA)",
        "swap",
        _swap_words,
    ),
    _spec(
        "character-noise",
        "add a copy with a typing error in a tenth of the words (Belinkov & Bisk 2018)",
        "noise",
        _add_noise,
    ),
    _spec(
        "number-formats",
        "add a copy with the thousands' commas of numbers added or removed",
        "numbers",
        _format_numbers,
    ),
)
"""Registered by the plugin ``core``."""
