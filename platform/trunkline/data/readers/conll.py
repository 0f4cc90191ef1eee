"""CoNLL files: a token and its tag on each line, an empty line between texts.

The first column is the token, the last one the tag, in the scheme IOB1, IOB2, BIOES or BILOU. Tabs
separate the columns if the first line has one, else blanks; every line has as many columns. The
tokens of a text are joined by one space, and its tags become spans of characters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from trunkline.data.readers.rows import FileOptions, FileRow, missing_column
from trunkline.data.readers.text import TextReader
from trunkline.errors import DataError

_COLUMNS = ("text", "spans")
_DOCUMENT = "-DOCSTART-"
_BEGINS, _INSIDE = "BSU", "IEL"
_BLANKS = re.compile(r"[ \t]+")
_NUMBERED_COLUMNS = 4
"""From so many columns on, the first one may number the tokens, as in CoNLL-U."""

Token = tuple[str, str, int]
"""Text, tag, and line."""


class _Columns:
    """The columns of a file, as its first line with a token has them."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._line = 0
        self._count = 0
        self._has_tabs = False

    def split(self, text: str, line: int) -> list[str]:
        """The fields of a line; none if it separates texts.

        Raises:
            DataError: it has no tag, another number of fields than the first line, or no token.
        """
        text = text.rstrip(" \t\r\n")
        if not text or text.startswith(_DOCUMENT):
            return []
        if not self._line:
            self._has_tabs = "\t" in text
        fields = text.split("\t") if self._has_tabs else _BLANKS.split(text.lstrip(" "))
        fields = [field.strip(" ") for field in fields]
        place = f"Line {line} of {self._file}"
        if len(fields) < 2:
            raise DataError(
                f"{place} has a token without a tag: {fields[0]!r:.60}.",
                "Write the tag after it, O outside of a span.",
            )
        if not self._line:
            self._line, self._count = line, len(fields)
        if len(fields) != self._count:
            raise DataError(
                f"{place} has {len(fields)} columns, line {self._line} has {self._count}.",
                "Write as many in each line, with tabs between them if a token holds a blank.",
            )
        if not fields[0]:
            raise DataError(f"{place} has a tag without a token.", "Write the token before it.")
        return fields

    def check_numbers(self, tokens: Sequence[Token]) -> None:
        """Refuse a first column that numbers the tokens.

        Raises:
            DataError: the tokens of a text are 1, 2, and so on.
        """
        numbers = [str(number) for number in range(1, len(tokens) + 1)]
        numbered = self._count >= _NUMBERED_COLUMNS and len(tokens) > 1
        if numbered and numbers == [token for token, _, _ in tokens]:
            raise DataError(
                f"Line {tokens[0][2]} of {self._file} and those after it number the tokens in the "
                "first column.",
                "Remove that column: the first one is the token.",
            )


class ConllFile:
    """The texts of a CoNLL file, with the columns ``text`` and ``spans``."""

    def __init__(self, path: Path, options: FileOptions) -> None:
        self._path, self._options = path, options

    def columns(self) -> tuple[str, ...]:
        return _COLUMNS

    def rows(self, columns: Sequence[str] | None) -> Iterator[FileRow]:
        for column in columns or ():
            if column not in _COLUMNS:
                raise missing_column(self._path.name, column, _COLUMNS)
        for number, tokens in enumerate(self._texts(), start=1):
            text, spans = self._joined(tokens)
            values = {"text": text, "spans": json.dumps(spans, ensure_ascii=False)}
            kept = {column: values[column] for column in columns or _COLUMNS}
            yield FileRow(self._path.name, number, tokens[0][2], kept)

    def _texts(self) -> Iterator[list[Token]]:
        """The tokens of each text."""
        tokens: list[Token] = []
        with TextReader.of_file(self._path, self._options.encoding) as reader:
            columns = _Columns(self._path.name)
            for line in reader:
                fields = columns.split(line, reader.line)
                if fields:
                    tokens.append((fields[0], fields[-1], reader.line))
                elif tokens:
                    columns.check_numbers(tokens)
                    yield tokens
                    tokens = []
            if tokens:
                columns.check_numbers(tokens)
                yield tokens

    def _joined(self, tokens: Sequence[Token]) -> tuple[str, list[tuple[int, int, str]]]:
        """The text of the tokens, and their spans."""
        spans: list[tuple[int, int, str]] = []
        at, open_label = 0, ""
        for token, tag, line in tokens:
            part, dash, label = tag.partition("-")
            if tag == "O":
                open_label = ""
            elif not dash or not label or part not in (*_BEGINS, *_INSIDE):
                raise DataError(
                    f"Line {line} of {self._path.name} has the tag {tag!r:.60}.",
                    "A tag is O, or B- or I- with a label (also E-, S-, L- and U-).",
                )
            elif part in _INSIDE and label == open_label:
                spans[-1] = (spans[-1][0], at + len(token), label)
            else:
                spans.append((at, at + len(token), label))
            if tag != "O":
                open_label = "" if part in "SUEL" else label
            at += len(token) + 1
        return " ".join(token for token, _, _ in tokens), spans
