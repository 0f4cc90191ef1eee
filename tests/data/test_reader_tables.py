"""Tables that other programs write: reading gives the table back or refuses it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from trunkline.data.readers import FileOptions, read_rows
from trunkline.errors import DataError, UsageError

Table = list[list[str]]
"""The header, then the rows."""

CHARACTERS = st.one_of(
    st.sampled_from("\",;|\t\n\r'\\ a1é冷\u2028\x0c\x85"),
    st.characters(exclude_categories=("Cs",), exclude_characters="\0\x1b\ufeff"),
)
TEXTS = st.text(CHARACTERS, max_size=8)
NAMES = st.lists(
    st.text(st.sampled_from("abcdé_ 1"), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
    unique=True,
)
ENDINGS = st.sampled_from(["\n", "\r\n", "\r"])
DELIMITERS = st.sampled_from([",", ";", "|", "\t"])
EXAMPLES = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def tables(draw: st.DrawFn, texts: st.SearchStrategy[str] = TEXTS) -> Table:
    names = draw(NAMES)
    row = st.lists(texts, min_size=len(names), max_size=len(names))
    return [names, *draw(st.lists(row, max_size=5))]


def read_table(path: Path, options: FileOptions | None = None) -> Table | None:
    """The table that the reader gives, or None if it refuses the file."""
    try:
        rows = list(read_rows(path, options=options))
    except (DataError, UsageError):
        return None
    return [[text or "" for text in row.values.values()] for row in rows]


def matches(result: Table | None, table: Table) -> bool:
    """Whether a result is a refusal or the rows of the table.

    Empty rows at the end of a table of one column may be blank lines at the end of the file.
    """
    if result is None:
        return True
    rows = table[1:]
    if len(table[0]) == 1:
        while len(rows) > len(result) and rows[-1] == [""]:
            rows = rows[:-1]
    return result == rows


def csv_text(table: Table, **dialect: object) -> str:
    stream = io.StringIO(newline="")
    try:
        csv.writer(stream, **dialect).writerows(table)  # type: ignore[arg-type]
    except csv.Error:
        assume(False)  # the dialect can't write this table
    return stream.getvalue()


@EXAMPLES
@given(
    table=tables(),
    delimiter=DELIMITERS,
    ending=ENDINGS,
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    suffix=st.sampled_from([".csv", ".tsv"]),
    has_option=st.booleans(),
)
def test_tables_of_pythons_csv_module(
    tmp_path: Path,
    table: Table,
    delimiter: str,
    ending: str,
    quoting: int,
    suffix: str,
    has_option: bool,
) -> None:
    text = csv_text(table, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(text.encode())
    options = FileOptions(delimiter=delimiter) if has_option else None

    assert matches(read_table(path, options), table)


@EXAMPLES
@given(table=tables(), delimiter=DELIMITERS)
def test_tables_without_quoting(tmp_path: Path, table: Table, delimiter: str) -> None:
    text = csv_text(table, delimiter=delimiter, quoting=csv.QUOTE_NONE, quotechar=None)
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode())

    assert matches(read_table(path, FileOptions(delimiter=delimiter, quoting=False)), table)
    assert matches(read_table(path, FileOptions(delimiter="\t")), table) or delimiter != "\t"


@EXAMPLES
@given(
    table=tables(),
    delimiter=DELIMITERS,
    ending=ENDINGS,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_quoted_tables_are_never_refused(
    tmp_path: Path, table: Table, delimiter: str, ending: str, encoding: str
) -> None:
    text = csv_text(table, delimiter=delimiter, lineterminator=ending, quoting=csv.QUOTE_ALL)
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding))
    options = FileOptions(delimiter=delimiter, quoting=True)

    assert read_table(path, options) == table[1:]


def office_text(
    table: Table, delimiter: str, ending: str, trailing: str, blanks: Sequence[int], quoted: bool
) -> str:
    """CSV as office programs write it."""

    def cell(text: str) -> str:
        if quoted or any(sign in text for sign in (delimiter, '"', "\n", "\r")):
            return '"{}"'.format(text.replace('"', '""'))
        return text

    lines = []
    for number, row in enumerate(table):
        lines.append(delimiter.join(map(cell, row)) + trailing)
        lines += [""] * blanks.count(number)
    return ending.join([*lines, ""])


@EXAMPLES
@given(
    table=tables(),
    delimiter=DELIMITERS,
    ending=st.sampled_from(["\r\n", "\n"]),
    trailing=st.integers(0, 2),
    blanks=st.lists(st.integers(0, 5), max_size=3),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    quoted=st.booleans(),
    has_option=st.booleans(),
)
def test_tables_of_office_programs(
    tmp_path: Path,
    table: Table,
    delimiter: str,
    ending: str,
    trailing: int,
    blanks: list[int],
    encoding: str,
    quoted: bool,
    has_option: bool,
) -> None:
    blanks = blanks if len(table[0]) > 1 or trailing else []
    text = office_text(table, delimiter, ending, delimiter * trailing, blanks, quoted)
    path = tmp_path / "rows.csv"
    path.write_bytes(text.encode(encoding))
    result = read_table(path, FileOptions(delimiter=delimiter) if has_option else None)

    assert matches(result, table)
    if has_option and delimiter != "\t" and quoted:
        assert result is not None


@EXAMPLES
@given(
    table=tables(),
    delimiter=DELIMITERS,
    quoting=st.sampled_from(["needed", "all_valid"]),
    has_option=st.booleans(),
)
def test_tables_of_pyarrow(
    tmp_path: Path, table: Table, delimiter: str, quoting: str, has_option: bool
) -> None:
    columns = dict(zip(table[0], zip(*table[1:], strict=True), strict=True)) if table[1:] else {}
    assume(columns)
    arrow = pyarrow.table({name: pyarrow.array(texts) for name, texts in columns.items()})
    path = tmp_path / "rows.csv"
    pyarrow.csv.write_csv(
        arrow, path, pyarrow.csv.WriteOptions(delimiter=delimiter, quoting_style=quoting)
    )
    options = FileOptions(delimiter=delimiter) if has_option else None

    assert matches(read_table(path, options), table)


@EXAMPLES
@given(
    table=tables(),
    delimiter=DELIMITERS,
    ending=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_tables_of_pandas(
    tmp_path: Path, table: Table, delimiter: str, ending: str, quoting: int, encoding: str
) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table[1:], columns=table[0], dtype=str)
    path = tmp_path / "rows.csv"
    frame.to_csv(
        path, sep=delimiter, lineterminator=ending, quoting=quoting, encoding=encoding, index=False
    )

    assert matches(read_table(path), table)
    assert matches(read_table(path, FileOptions(delimiter=delimiter)), table)


@EXAMPLES
@given(
    table=tables(),
    is_ascii=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_tables_of_json_are_never_refused(
    tmp_path: Path, table: Table, is_ascii: bool, indent: int | None, ending: str
) -> None:
    objects = [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    lines = ending.join(json.dumps(row, ensure_ascii=is_ascii) for row in objects)
    (tmp_path / "rows.jsonl").write_bytes(lines.encode())
    array = json.dumps(objects, ensure_ascii=is_ascii, indent=indent)
    (tmp_path / "rows.json").write_bytes(array.replace("\n", ending).encode())

    assert read_table(tmp_path / "rows.jsonl") == table[1:]
    assert read_table(tmp_path / "rows.json") == table[1:]


NUMBERS = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.builds("{}.{}0e+0{}".format, st.integers(0, 10**30), st.integers(0, 99), st.integers(0, 9)),
)


@EXAMPLES
@given(numbers=st.lists(NUMBERS, min_size=1))
def test_numbers_of_json_keep_every_character(tmp_path: Path, numbers: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": {number}}}\n' for number in numbers))
    assert read_table(path) == [[number] for number in numbers]


@EXAMPLES
@given(table=tables(st.text(st.characters(exclude_categories=("Cs",)), max_size=8)))
def test_tables_of_parquet_are_never_refused(tmp_path: Path, table: Table) -> None:
    assume(table[1:])
    columns = dict(zip(table[0], zip(*table[1:], strict=True), strict=True))
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({name: pyarrow.array(texts) for name, texts in columns.items()}), path
    )
    assert read_table(path) == table[1:]


@EXAMPLES
@given(data=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]))
def test_any_bytes_are_read_or_refused(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(data)
    read_table(path)
