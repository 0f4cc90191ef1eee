"""Labels, candidates and spans in a column of a file: a JSON array, or texts with a separator."""

from __future__ import annotations

import json
import re
from typing import Any

from trunkline.contracts import Span
from trunkline.data.readers import FileRow, unique_keys
from trunkline.errors import DataError, one_line
from trunkline.labels import is_blank

_SEPARATORS = (",", ";", "|", "\t", "，", "；", "、")
_INDEX = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)


class SeparatorCheck:
    """Finds out that a separator separates nothing in a column, while another sign would.

    A column such as ``red,green`` would else give labels of which each is a whole list.

    Args:
        column: of labels or candidates.
        separator: the text that separates them.
    """

    def __init__(self, column: str, separator: str) -> None:
        self._column, self._separator = column, separator
        self._values: set[str] | None = set()

    def add(self, row: FileRow) -> None:
        """Look at the column of one row."""
        text = row.nested.get(self._column) or row.values.get(self._column)
        if text is None or self._values is None:
            return
        items = []
        if isinstance(text, str) and not text.lstrip().startswith("["):
            items = [one for one in text.split(self._separator) if not is_blank(one)]
        if len(items) > 1 or not isinstance(text, str) or text.lstrip().startswith("["):
            self._values = None
        elif items:
            self._values.add(items[0].strip())

    def check(self, name: str) -> None:
        """Look at what all rows have.

        Args:
            name: of the file.

        Raises:
            DataError: no row has several items, and another sign makes fewer items of the values.
        """
        values = self._values or set()
        for sign in _SEPARATORS:
            joined = sorted(value for value in values if sign in value)
            items = {item.strip() for value in values for item in value.split(sign)}
            if joined and (len(values) == 1 or len(items - {""}) <= len(values)):
                raise DataError(
                    f"No row of {name} has several items in {self._column!r}: they are separated "
                    f"by {self._separator!r}, and {joined[0]!r:.60} has {sign!r}.",
                    f"Use --separator {sign!r}, in YAML `separator`. If each is one item, write it "
                    f"as an array: {json.dumps([joined[0][:40]], ensure_ascii=False)}.",
                )


def read_items(row: FileRow, column: str, separator: str) -> tuple[str, ...]:
    """The texts of a column, each without white space at its ends; empty ones are left out.

    Raises:
        DataError: an array has something else than texts; names the row.
    """
    value = _value(row, column)
    if isinstance(value, str):
        value = _array(value, row, column) if value.startswith("[") else value.split(separator)
    for item in value:
        if not isinstance(item, str):
            raise DataError(
                f"{row.place} has {item!r:.60} in the array in {column!r}, not a text.",
                'Write it in quotes: ["…", "…"].',
            )
    return tuple(item.strip() for item in value if not is_blank(item))


def read_spans(row: FileRow, column: str) -> tuple[Span, ...]:
    """The spans of a column; whether they lie in the text is checked when rows are prepared.

    Raises:
        DataError: a value is not a span; names the row.
    """
    value = _value(row, column)
    if isinstance(value, str):
        value = _array(value, row, column) if value else []
    return tuple(_span(item, row, column) for item in value)


def _span(item: Any, row: FileRow, column: str) -> Span:
    values = [item.get(name) for name in Span._fields] if isinstance(item, dict) else item
    if isinstance(values, list) and len(values) == 3:
        start, end = (_index(value) for value in values[:2])
        if start is not None and end is not None and isinstance(values[2], str):
            return Span(start, end, values[2])
    raise DataError(
        f"{row.place} has {item!r:.60} in {column!r}, not a span.",
        'Write [start, end, "label"], or {"start": …, "end": …, "label": "…"}.',
    )


def _index(value: Any) -> int | None:
    """A whole number; the readers of JSON give its digits as they are written."""
    if isinstance(value, str):
        return int(value) if _INDEX.fullmatch(value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _value(row: FileRow, column: str) -> Any:
    """The list in a column, or its text without white space at the ends."""
    value = row.nested[column] if column in row.nested else row.values[column]
    if value is None:
        return ""
    if not isinstance(value, str | list):
        raise DataError(
            f"{row.place} has {value!r:.60} in {column!r}, neither an array nor a text.",
            "Write an array.",
        )
    return value.strip() if isinstance(value, str) else value


def _array(text: str, row: FileRow, column: str) -> list[Any]:
    try:
        items = json.loads(text, parse_float=str, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{row.place} has no JSON array in {column!r}: {one_line(error)}.",
            'Write JSON, with double quotes: ["red", "green"]. Python\'s json.dumps writes it.',
        ) from None
    if not isinstance(items, list):
        raise DataError(f"{row.place} has no JSON array in {column!r}.", "Write [ … ].")
    return items
