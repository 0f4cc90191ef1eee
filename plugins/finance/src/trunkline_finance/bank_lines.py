"""The rows of ``finance/transactions``: bank-statement lines from the package solyanka.

solyanka *generates* statements. A pattern is a line or a template with random fields; it has tags,
a currency and a country file. One pattern yields at most one row. Its random fields are drawn from
a generator that is seeded with the template, so the rows are the same in every process.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trunkline.contracts import Row
from trunkline.errors import DataError
from trunkline_finance.categories import category_of
from trunkline_finance.merchants import group_by_merchant

COUNTRIES = {"oae": "uae", "mexica": "mexico", "general": "any", "eea": "any in the EEA"}
"""Countries of the files that are not named after their country."""

GENERATED_TAG = "ai_generated"


@dataclass(frozen=True, slots=True)
class Reading:
    """The rows, and the number of patterns that yielded none.

    Attributes:
        rows: in the order of file name and position.
        patterns: read from the package.
        unfolded: dropped, because no tag maps to a category.
        contradicted: dropped label conflicts: the same line has two categories.
        repeated: dropped duplicates: the same line with the same category.
    """

    rows: tuple[Row, ...]
    patterns: int
    unfolded: int
    contradicted: int
    repeated: int


def load() -> tuple[Row, ...]:
    """The rows of ``finance/transactions``."""
    return fold_patterns(read_patterns()).rows


def read_patterns() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield country and raw pattern, in the order of file name and position.

    Raises:
        DataError: solyanka is not installed.
    """
    from importlib import resources

    import yaml  # type: ignore[import-untyped]  # stubs are a package of their own

    try:
        folder = resources.files("solyanka.transaction_patterns") / "data"
    except ModuleNotFoundError as error:
        raise DataError(
            "The bank-statement lines can't be read: the package 'solyanka' is not installed.",
            "Run: pip install solyanka==0.4.1.",
        ) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".yml"):
            stem = file.name.removesuffix(".yml")
            country = COUNTRIES.get(stem, stem.replace("_", " "))
            for pattern in yaml.load(file.read_text(encoding="utf-8"), Loader=loader):
                yield country, pattern


def fold_patterns(patterns: Iterable[tuple[str, Mapping[str, Any]]]) -> Reading:
    """Make rows of patterns: a line, a category, a merchant. :class:`Reading` counts the drops."""
    read = [(country, pattern, expand(pattern)) for country, pattern in patterns]
    folded = [
        (country, pattern, line, category)
        for country, pattern, line in read
        if (category := category_of(pattern["types"])) is not None
    ]
    categories: dict[str, set[str]] = {}
    for _, _, line, category in folded:
        categories.setdefault(_same(line), set()).add(category)
    settled = [entry for entry in folded if len(categories[_same(entry[2])]) == 1]
    groups = group_by_merchant([(pattern["prettyTitle"], line) for _, pattern, line, _ in settled])
    rows: dict[str, Row] = {}
    for (country, pattern, line, category), group in zip(settled, groups, strict=True):
        rows.setdefault(
            _same(line),
            Row(
                id=f"line-{_digest(_same(line)).hex()[:16]}",
                text=line,
                target=category,
                group=group,
                slices={
                    "country": country,
                    "origin": "generated" if GENERATED_TAG in pattern["types"] else "collected",
                },
            ),
        )
    return Reading(
        rows=tuple(rows.values()),
        patterns=len(read),
        unfolded=len(read) - len(folded),
        contradicted=len(folded) - len(settled),
        repeated=len(settled) - len(rows),
    )


def expand(pattern: Mapping[str, Any]) -> str:
    """The line of a pattern, the same in every process.

    Random fields are filled in. A field that the template does not describe is removed.
    """
    title = pattern["title"]
    if isinstance(title, str):
        template, fields = title, pattern.get("params") or {}
    else:
        template, fields = title["template"], title.get("params") or {}
    rng = random.Random(_digest(template))
    line = template
    for name, field in fields.items():
        line = line.replace(f"{{{name}}}", _drawn(field, rng))
    return " ".join(re.sub(r"\{\w*\}", "", line).split())


def _drawn(field: Mapping[str, Any], rng: random.Random) -> str:
    generator = field["generator"]
    if generator == "choice":
        drawn = str(rng.choices(field["options"], weights=field.get("weights"))[0])
    elif generator == "random_digits":
        drawn = "".join(rng.choices(string.digits, k=field["length"]))
        if not field.get("zero_pad", True):
            drawn = str(int(drawn))
    elif generator == "random_alnum":
        signs = field.get("charset") or string.ascii_lowercase + string.digits
        drawn = "".join(rng.choices(signs, k=field["length"]))
    else:
        raise DataError(
            f"A bank-statement template uses the unknown generator {generator!r}.",
            "Install the version of solyanka that this plugin requires: solyanka==0.4.1.",
        )
    case = (field.get("transform") or {}).get("case")
    cases = {"upper": str.upper, "lower": str.lower, "title": str.title}
    return cases[case](drawn) if case in cases else drawn


def _same(line: str) -> str:
    return " ".join(line.lower().split())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
