"""CoNLL files: a token and its tag on each line, an empty line between texts.

The first column is the token, the last one the tag, in the scheme IOB1, IOB2, BIOES or BILOU. The
tokens of a text are joined by one space, and its tags become spans of characters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from trunkline.data.readers.rows import FileOptions, FileRow, missing_column
from trunkline.data.readers.text import TextReader
from trunkline.errors import DataError

_COLUMNS = ("text", "spans")
_DOCUMENT = "-DOCSTART-"
_BEGINS, _INSIDE = "BSU", "IEL"

Token = tuple[str, str, int]
"""Text, tag, and line."""


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
            for line in reader:
                fields = line.split()
                if not fields or fields[0] == _DOCUMENT:
                    if tokens:
                        yield tokens
                    tokens = []
                    continue
                if len(fields) < 2:
                    raise DataError(
                        f"Line {reader.line} of {self._path.name} has a token without a tag: "
                        f"{fields[0]!r:.60}.",
                        "Write the tag after it, O outside of a span.",
                    )
                tokens.append((fields[0], fields[-1], reader.line))
        if tokens:
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
