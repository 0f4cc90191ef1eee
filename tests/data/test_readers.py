"""Rows and texts from files of every format, streamed and as they are written."""

from __future__ import annotations

import os
import re
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from row_files import numbers_of, read, refusal, texts_of, written
from trunkline.data.readers import FileOptions, open_texts, read_columns, read_rows
from trunkline.data.readers.text import MAX_CHARACTERS
from trunkline.errors import DataError, NotFoundError, UsageError

TEXTS = ["a carp, swimming", "NA", "007"]
FILES = {
    "rows.csv": 'id,text\n1,"a carp, swimming"\n2,NA\n3,007\n',
    "marked.csv": '\ufeffid,text\r\n1,"a carp, swimming"\r\n\r\n2,NA\r\n3,007',
    "old.csv": 'text\r"a carp, swimming"\rNA\r007\r',
    "excel.csv": "sep=;\r\nid;text\r\n1;a carp, swimming\r\n2;NA\r\n3;007\r\n",
    "ended.csv": 'text,,\n"a carp, swimming",,\nNA,,\n007,,\n',
    "rows.tsv": "id\ttext\n1\ta carp, swimming\n2\tNA\n3\t007\n",
    "rows.jsonl": '{"text": "a carp, swimming"}\n{"text": "NA"}\n\n{"text": "007"}\n',
    "rows.ndjson": '{"text": "a carp, swimming"}\r\n{"text": "NA"}\r\n{"text": "007"}',
    "rows.json": '[{"text": "a carp, swimming"}, {"text": "NA"}, {"text": "007"}]\n',
    "spread.json": '[\n {"text":\n "a carp, swimming"},\n {"text": "NA"}, {"text": "007"}\n]',
    "lines.JSON": '{"text": "a carp, swimming"}\n{"text": "NA"}\n{"text": "007"}\n',
}


@pytest.mark.parametrize("name", FILES)
def test_texts_are_read_as_they_are_written(tmp_path: Path, name: str) -> None:
    file = open_texts(written(tmp_path, name, FILES[name]), "text", skip_empty=False)

    assert texts_of(file) == TEXTS
    assert numbers_of(file) == [1, 2, 3]
    assert (file.rows, file.empty) == (3, 0)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("marked.csv", [2, 4, 5]),
        ("old.csv", [2, 3, 4]),
        ("excel.csv", [3, 4, 5]),
        ("rows.jsonl", [1, 2, 4]),
        ("rows.ndjson", [1, 2, 3]),
        ("spread.json", [2, 4, 4]),
    ],
)
def test_rows_know_the_line_in_which_they_begin(
    tmp_path: Path, name: str, lines: list[int]
) -> None:
    path = written(tmp_path, name, FILES[name])

    assert [row.line for row in read_rows(path, ["text"])] == lines
    assert next(read_rows(path, ["text"])).place == f"Row 1 (line {lines[0]}) of {name}"


@pytest.mark.parametrize("name", FILES)
def test_columns_are_read_without_the_rows(tmp_path: Path, name: str) -> None:
    assert "text" in read_columns(written(tmp_path, name, FILES[name]))


def test_row_gives_its_texts_and_refuses_what_it_lacks(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", '{"text": "one", "kind": null}\n')
    row = next(read_rows(path, ["text", "kind"]))

    assert row["text"] == "one"
    assert row.values["kind"] is None
    with pytest.raises(DataError, match=r"Row 1 \(line 1\) of rows.jsonl has no value in 'kind'"):
        row["kind"]
    with pytest.raises(NotFoundError, match="There is no column 'texts'"):
        row["texts"]


# --------------------------------------------------------------------------------- CSV and TSV


def test_quoted_field_holds_lines_and_quotes(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", 'text,id\n"two\r\nlines, ""quoted""",1\nnext,2\n')

    assert texts_of(open_texts(path, "text", skip_empty=False)) == [
        'two\r\nlines, "quoted"', "next",
    ]  # fmt: skip
    assert [row.line for row in read_rows(path)] == [2, 4]


MORE = r"Row 1 \(line 2\) of rows.csv has 3 fields, the header has 2"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\nfrozen pizza,GROCERY,\nusb cable,ELECTRONICS,\n", MORE),
        ("text,label\npizza, frozen,GROCERY\n", MORE),
        ("id,text,label\nfrozen pizza,GROCERY\n", r"Row 1 \(line 2\) of rows.csv has 2 fields"),
        ("id,text\n1,one\n\n2\n", r"Row 2 \(line 4\) of rows.csv has 1 field, the header has 2"),
        ("text,label,\nfrozen, pizza,GROCERY\n", "value in field 3, which has no name"),
    ],
    ids=["delimiter at the end", "unquoted delimiter", "missing field", "short row", "shifted"],
)
def test_rows_that_do_not_fit_the_header_are_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    assert re.search(message, refusal(tmp_path, "rows.csv", content).message)


def test_quotes_of_a_tsv_are_characters(tmp_path: Path) -> None:
    content = 'id\ttext\n1\tpan 12"\n2\t5" pipe, 3" long\n3\t"Hello" she said\n4\tend"\n'

    texts = ['pan 12"', '5" pipe, 3" long', '"Hello" she said', 'end"']
    assert read(tmp_path, "rows.tsv", content) == texts
    assert read(tmp_path, "rows.tsv", content, quoting=False) == texts


@pytest.mark.parametrize("field", ['"12 inch pan', '"quoted"', '"', '"a ""b"" c"', '""'])
def test_field_of_a_tsv_that_may_be_quoted_is_refused(tmp_path: Path, field: str) -> None:
    content = f"id\ttext\n1\tone\n2\t{field}\n3\tthree\n"

    error = refusal(tmp_path, "rows.tsv", content)
    assert "Line 3 of rows.tsv has a field that begins with a quote" in error.message
    assert "--no-quoting" in (error.hint or "")
    assert read(tmp_path, "rows.tsv", content, quoting=False) == ["one", field, "three"]


def test_option_for_a_tab_in_a_field_is_named(tmp_path: Path) -> None:
    hint = refusal(tmp_path, "rows.tsv", "text\tid\none\ttwo\t1\n").hint or ""
    assert hint == "Quote fields that hold a tab and add --quoting."


def test_quoted_tsv_is_read_with_the_option(tmp_path: Path) -> None:
    content = 'id\ttext\n1\t"tab\tand\nline"\n'
    assert read(tmp_path, "rows.tsv", content, quoting=True) == ["tab\tand\nline"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('id,text\n1,one\n2,"12 in pan\n3,three\n', "A quote in the row that begins in line 3"),
        ('id,text\n1,"12" pan\n', "Line 2 of rows.csv has text after a closing quote"),
        ('id,text\n1, "one"\n', "Line 2 of rows.csv has a blank before the quote"),
        ('id,text\n1,"5\\" pipe"\n', "Line 2 of rows.csv has text after a closing quote"),
    ],
    ids=["open", "after", "blank", "backslash"],
)
def test_misplaced_quotes_are_refused(tmp_path: Path, content: str, message: str) -> None:
    error = refusal(tmp_path, "rows.csv", content)
    assert message in error.message
    assert "--no-quoting" in (error.hint or "")


def test_blank_before_a_quote_inside_a_quoted_field_is_text(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.csv", 'text,id\n" ""one""",1\n') == [' "one"']


@pytest.mark.parametrize(
    ("name", "header", "expected"),
    [
        ("rows.csv", "id;text", "--delimiter ';'"),
        ("rows.csv", "id\ttext", "--delimiter tab"),
        ("rows.csv", "id|text", "--delimiter '|'"),
        ("rows.tsv", "id,text", "--delimiter ','"),
        ("rows.csv", "price, EUR;text", "--delimiter ';'"),
    ],
)
def test_another_delimiter_is_refused_with_the_option(
    tmp_path: Path, name: str, header: str, expected: str
) -> None:
    row = header.replace("text", "one").replace("id", "1").replace("price", "1")
    content = f"{header}\n{row}\n"

    assert expected in (refusal(tmp_path, name, content).hint or "")
    delimiter = expected.removeprefix("--delimiter ").strip("'")
    assert read(tmp_path, name, content, delimiter=delimiter) == ["one"]


def test_column_whose_name_has_another_delimiter_can_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "text; free\none\n")
    with pytest.raises(DataError, match="has one column"):
        read_columns(path)
    assert read_columns(path, FileOptions(delimiter="comma")) == ("text; free",)


def test_blank_lines_of_one_column_are_rows_without_a_text(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "text\none\n\n\u200b\nfour\n\n\n")
    file = open_texts(path, "text", skip_empty=True)

    assert (texts_of(file), numbers_of(file), file.empty) == (["one", "four"], [1, 4], 2)
    assert [row.line for row in read_rows(path)] == [2, 3, 4, 5]


def test_second_kind_of_line_ending_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "rows.csv", "text,id\none,1\ntwo\rlines,2\n")
    assert error.message == "Line 3 of rows.csv ends with CR, but line 1 with LF."
    assert "ends with LF" in refusal(tmp_path, "rows.csv", "text\r\none\ntwo\r\n").message
    assert "ends with CRLF" in refusal(tmp_path, "rows.tsv", "text\none\ntwo\r\n").message
    assert "line 1 with CR" in refusal(tmp_path, "rows.csv", "text\r\r\none\r\r\n").message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty.csv is empty"),
        ("\n\n", "empty.csv is empty"),
        (",,\n1,2,3\n", "The header of empty.csv names no column"),
        ("text\n", "empty.csv has no rows"),
        ("text,id\n,1\n", "has no row with a text in 'text'"),
        ("text,id,text\none,1,two\n", "names two columns 'text', fields 1 and 3"),
        ("text\none\0\n", "Line 2 of empty.csv has a NUL character"),
        ("text\none\n\ufefftext\ntwo\n", "Line 3 of empty.csv begins with a byte order mark"),
    ],
)
def test_empty_and_damaged_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    assert message in refusal(tmp_path, "empty.csv", content).message


def test_two_columns_of_a_name_that_is_not_read_are_fine(tmp_path: Path) -> None:
    assert read(tmp_path, "rows.csv", "id,text,id\n1,one,2\n") == ["one"]


def test_column_without_a_name_is_an_index(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", ",text\n0,one\n")
    assert [dict(row.values) for row in read_rows(path)] == [{"": "0", "text": "one"}]


def test_long_fields_are_read_and_endless_ones_refused(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert read(tmp_path, "rows.csv", f'text,id\n"{long}\n{long}",1\n') == [f"{long}\n{long}"]

    line = "y" * 1000 + "\n"
    endless = 'text,id\nok,1\n"' + line * (MAX_CHARACTERS // 1000 + 2)
    error = refusal(tmp_path, "rows.csv", endless)
    assert "The row that begins in line 3 of rows.csv has a field of more than" in error.message


def test_endless_line_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, "rows.tsv", "text\n" + "x" * (MAX_CHARACTERS + 1))
    assert "Line 2 of rows.tsv has more than" in error.message


# ------------------------------------------------------------------------------------ JSON


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    "number", ["7", "1.50", "-0", "1e5", "1E+400", "12345678901234567890", "true", "false"]
)
def test_numbers_of_json_are_read_as_they_are_written(
    tmp_path: Path, name: str, number: str
) -> None:
    assert read(tmp_path, name, f'{{"text": {number}}}\n') == [number]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ('{"a": 1}', "an object"),
        ("[1]", "an array"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        (r'"\ud800"', r"'\ud800'"),
    ],
)
def test_values_that_are_no_texts_are_refused_with_the_row(
    tmp_path: Path, name: str, value: str, kind: str
) -> None:
    content = f'{{"text": "one", "id": NaN}}\n{{"text": {value}}}\n'
    message = refusal(tmp_path, name, content).message
    assert message.startswith(f"Row 2 (line 2) of {name} has {kind} in 'text', ")


def test_other_columns_of_json_may_hold_anything(tmp_path: Path) -> None:
    content = '{"text": "one", "meta": {"scores": [1, NaN]}}\n'
    assert read(tmp_path, "rows.jsonl", content) == ["one"]


def test_texts_after_megabytes_of_null_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        file.writelines(['{"text": null, "id": "%s"}\n' % ("x" * 1000)] * 3000)
        file.writelines(['{"id": 1}\n', '{"text": "one"}\n'])
    file = open_texts(path, "text", skip_empty=True)

    assert (texts_of(file), numbers_of(file), file.empty) == (["one"], [3002], 3001)


def test_numbers_after_many_texts_are_read(tmp_path: Path) -> None:
    content = '{"text": "one"}\n' * 1000 + '{"text": 2}\n{"text": "three"}\n'
    assert read(tmp_path, "rows.jsonl", content)[-3:] == ["one", "2", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": "two}\n', "Line 2 of a.jsonl is not JSON: unter"),
        ("b.jsonl", '{"text": "a", "text": "b"}\n', "Line 1 of b.jsonl can't be used: the key 'te"),
        ("c.jsonl", '"one"\n', "Line 1 of c.jsonl is the text or number 'one', not an object"),
        ("d.jsonl", '[{"text": "one"}]\n', "Line 1 of d.jsonl is an array, not an object"),
        ("e.jsonl", "{\n", "Line 1 of e.jsonl is not JSON"),
        ("f.jsonl", '{"text": "a"} {"text": "b"}\n', "Line 1 of f.jsonl is not JSON: extra data"),
        ("g.jsonl", '{"text": "one"}\nnull\n', "Line 2 of g.jsonl is null, not an object"),
        ("h.jsonl", "[" * 100_000, "Line 1 of h.jsonl is nested too deeply"),
        ("i.json", '[{"text": "one"},\n {"text": "two}]', "Line 2 of i.json is not JSON"),
        ("j.json", '[{"text": "one"}', "Line 1 of j.json is not JSON: an array needs ','"),
        ("k.json", '[{"text": "one"}]\n[]', "Line 2 of k.json is not JSON: more text follows"),
        ("l.json", '[\n{"text": "a",\n"text": "b"}]', "Line 2 of l.json can't be used: the key"),
        ("m.json", '[{"text": "one"}, 7]', "Line 1 of m.json has the text or number '7' where"),
        ("n.json", '[{"text": "one"},]', "Line 1 of n.json"),
        ("o.json", '[{"text": "one"} {"text": "two"}]', "Line 1 of o.json is not JSON"),
        ("p.json", "[]", "p.json has no rows"),
        ("q.jsonl", "\n \n", "q.jsonl has no rows"),
        ("r.jsonl", '{"text": "a\tb"}\n', "Line 1 of r.jsonl is not JSON: invalid control"),
        ("s.json", '[{"text": "a"},\n{"text": "b"},\n{"text": c}]\n', "Line 3 of s.json is not"),
        ("t.json", '{"text": "a"}\n{"text": "b"}\n{"text": c}\n', "Line 3 of t.json is not JSON"),
        ("u.jsonl", '{"text": "a}\n', "is not JSON: unterminated string starting at column 10."),
    ],
)
def test_broken_json_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    assert message in refusal(tmp_path, name, content).message


def test_column_of_json_that_no_row_has_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", '{"txt": "one"}\n{"txt": "two"}\n')
    for skip_empty in (True, False):
        with pytest.raises(NotFoundError, match="There is no column 'text'") as caught:
            open_texts(path, "text", skip_empty=skip_empty)
        assert "Did you mean 'txt'?" in (caught.value.hint or "")


def test_long_json_array_is_streamed(tmp_path: Path) -> None:
    rows = ", ".join(f'{{"text": "{"x" * 200} {n}"}}' for n in range(20_000))
    path = written(tmp_path, "rows.json", f"[{rows}]")
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 20_000
    assert peak < path.stat().st_size / 10


# --------------------------------------------------------------------------------- Parquet


def parquet(folder: Path, **columns: object) -> Path:
    path = folder / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    path = parquet(tmp_path, id=list(range(600)), text=[f"text {n}" for n in range(600)])
    file = open_texts(path, "text", skip_empty=False)

    assert texts_of(file) == [f"text {n}" for n in range(600)]
    assert numbers_of(file) == list(range(1, 601))
    assert read_columns(path) == ("id", "text")


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.string(),
        pyarrow.large_string(),
        pyarrow.string_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.string()),
    ],
    ids=str,
)
def test_every_type_of_strings_is_read_from_parquet(tmp_path: Path, kind: object) -> None:
    texts = pyarrow.array(["one", None, "", "007"]).cast(kind)
    file = open_texts(parquet(tmp_path, text=texts), "text", skip_empty=True)

    assert (texts_of(file), numbers_of(file), file.empty) == (["one", "007"], [1, 4], 2)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([1.5], "double"),
        ([True], "bool"),
        ([b"one"], "binary"),
        ([{"a": "b"}], "struct<a: string>"),
        ([["one"]], "list<"),
    ],
)
def test_other_types_of_parquet_are_refused(
    tmp_path: Path, values: list[object], kind: str
) -> None:
    path = parquet(tmp_path, text=values, other=values)
    with pytest.raises(DataError) as caught:
        open_texts(path, "text", skip_empty=False)
    assert caught.value.message.startswith(f"Row 1 of rows.parquet has {kind}")


def test_bytes_in_a_string_column_of_parquet_are_refused_with_the_row(tmp_path: Path) -> None:
    data = pyarrow.array([b"one"] * 300 + [b"t\xfc"], pyarrow.binary())
    path = parquet(tmp_path, text=data.view(pyarrow.string()))
    with pytest.raises(DataError, match=r"Row 301 of rows.parquet has bytes in 'text'"):
        open_texts(path, "text", skip_empty=False)


def test_columns_of_parquet_may_have_dots(tmp_path: Path) -> None:
    path = parquet(tmp_path, **{"a": ["one"], "a.b": ["two"], "c": [{"d": "three"}]})
    assert next(read_rows(path, ["a", "a.b"])).values == {"a": "one", "a.b": "two"}
    with pytest.raises(NotFoundError):
        open_texts(path, "c.d", skip_empty=False)


# ------------------------------------------------------------------------------------ files


def test_batches_hold_at_most_256_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "text\n" + "".join(f"row {n}\n" for n in range(600)))
    file = open_texts(path, "text", skip_empty=False)

    assert [len(batch) for batch in file.batches()] == [256, 256, 88]


def test_file_that_changes_between_check_and_reading_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "text\none\n")
    file = open_texts(path, "text", skip_empty=False)
    written(tmp_path, "rows.csv", "text\nanother\n")

    with pytest.raises(DataError, match=r"rows\.csv was changed while it was read"):
        texts_of(file)


def test_row_without_a_text_is_refused_with_its_number(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "id,text\n1,one\n2,\n3,three\n")

    with pytest.raises(DataError, match=r"Row 2 \(line 3\) of rows\.csv has no text") as caught:
        open_texts(path, "text", skip_empty=False)
    assert "--skip-empty" in (caught.value.hint or "")


def test_column_that_looks_like_json_can_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", '{"text"}\none\n')
    assert read_columns(path, FileOptions(delimiter="comma")) == ('{"text"}',)


def test_unknown_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "id,text\n1,one\n")

    with pytest.raises(NotFoundError) as caught:
        open_texts(path, "txt", skip_empty=False)
    assert caught.value.hint == "Did you mean 'text'? rows.csv has: id, text."


def test_column_is_not_listed_at_any_length(tmp_path: Path) -> None:
    header = ",".join([*(f"column {n}" for n in range(500)), "x" * 5000])
    path = written(tmp_path, "rows.csv", f"{header}\n")

    with pytest.raises(NotFoundError) as caught:
        open_texts(path, "text", skip_empty=False)
    assert "and 481 more" in (caught.value.hint or "")
    assert len(caught.value.hint or "") < 500


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.xls", "is a workbook"),
        ("rows.csv.gz", "is compressed"),
        ("rows.txt", "has no known suffix"),
        ("rows", "has no known suffix"),
    ],
)
def test_unknown_suffix_is_refused_with_the_way_out(
    tmp_path: Path, name: str, message: str
) -> None:
    assert message in refusal(tmp_path, name, "text\none\n").message


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.csv", b"\x1f\x8b\x08\x00\x00", "gzip"),
        ("b.csv", b"PK\x03\x04\x14\x00", "Excel"),
        ("c.jsonl", b"\x28\xb5\x2f\xfd\x04", "Zstandard"),
        ("d.csv", b"PAR1\x15\x04", "Parquet"),
        ("g.parquet", b"PK\x03\x04\x14\x00", "Excel"),
        ("h.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        ("i.parquet", b"version https://git-lfs.github.com/spec/v1\noid 0\n", "Git LFS"),
        ("j.json", b"<!DOCTYPE html>\n<title>Sign in</title>\n", "a web page"),
        ("k.csv", b'{"text": "one", "id": 1}\n{"text": "two", "id": 2}\n', "JSON, not a table"),
        ("l.tsv", b'[\n  {"text": "one"}\n]\n', "JSON, not a table"),
        ("e.parquet", b"text\none\n", "can't be read as Parquet"),
        ("f.parquet", b"", "can't be read as Parquet"),
    ],
)
def test_content_of_another_format_is_named(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    assert kind in refusal(tmp_path, name, content).message


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name, message in (
        ("none.csv", "There is no file"),
        ("folder.csv", "is a folder"),
        ("pipe.csv", "is not a regular file"),
    ):
        with pytest.raises(UsageError, match=message):
            open_texts(tmp_path / name, "text", skip_empty=False)
    with pytest.raises(UsageError, match="'-' is not a regular file"):
        open_texts(Path("-"), "text", skip_empty=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rows.jsonl", {"delimiter": ";"}, "--delimiter applies to CSV and TSV"),
        ("rows.json", {"quoting": False}, "--quoting applies to CSV and TSV"),
        ("rows.parquet", {"encoding": "cp1252"}, "--encoding applies to text files"),
        ("rows.csv", {"encoding": "cp9999"}, "There is no text encoding 'cp9999'"),
        ("rows.csv", {"encoding": "zip"}, "There is no text encoding 'zip'"),
        ("rows.csv", {"delimiter": ";;"}, "';;' is not a delimiter"),
        ("rows.csv", {"delimiter": '"'}, "is not a delimiter"),
        ("rows.csv", {"delimiter": ""}, "'' is not a delimiter"),
    ],
)
def test_options_that_do_not_apply_are_wrong_usage(
    tmp_path: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, "text\none\n", **options)
    assert message in caught.value.message


@pytest.mark.parametrize("line", ['"a\\\\",c"', 'x,"a\\\\",c"'])
def test_an_escaped_quote_is_not_read_as_two_fields(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{','.join('abc'[: line.count(',') + 1])}\n{line}\n")
    with pytest.raises(DataError, match="backslash"):
        list(read_rows(path))
