"""Texts from files of every format, streamed and as they are written."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from trunkline.data.readers import TextFile, open_texts, read_rows
from trunkline.errors import DataError, NotFoundError, UsageError

TEXTS = ["a carp, swimming", "NA", "007"]
FILES = {
    "rows.csv": 'id,text\n1,"a carp, swimming"\n2,NA\n3,007\n',
    "marked.csv": '\ufefftext\r\n"a carp, swimming"\r\n\r\nNA\r\n007',
    "rows.tsv": "id\ttext\n1\ta carp, swimming\n2\tNA\n3\t007\n",
    "rows.jsonl": '{"text": "a carp, swimming"}\n{"text": "NA"}\n\n{"text": "007"}\n',
    "rows.ndjson": '{"text": "a carp, swimming"}\n{"text": "NA"}\n{"text": "007"}',
    "rows.json": '[{"text": "a carp, swimming"}, {"text": "NA"}, {"text": "007"}]\n',
    "spread.json": '[\n {"text":\n "a carp, swimming"},\n {"text": "NA"}, {"text": "007"}\n]',
    "lines.json": '{"text": "a carp, swimming"}\n{"text": "NA"}\n{"text": "007"}\n',
}


def texts_of(file: TextFile) -> list[str]:
    return [row.text for batch in file.batches() for row in batch]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", FILES)
def test_texts_are_read_as_they_are_written(tmp_path: Path, name: str) -> None:
    file = open_texts(written(tmp_path, name, FILES[name]), "text", skip_empty=False)

    assert texts_of(file) == TEXTS
    assert [row.number for batch in file.batches() for row in batch] == [1, 2, 3]
    assert (file.rows, file.empty) == (3, 0)


def test_parquet_is_read_by_column(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    table = pyarrow.table({"id": list(range(600)), "text": [f"text {n}" for n in range(600)]})
    pyarrow.parquet.write_table(table, path)
    file = open_texts(path, "text", skip_empty=False)

    assert texts_of(file) == [f"text {n}" for n in range(600)]
    assert next(read_rows(path, ["id"])) == {"id": 0}


def test_quoted_field_may_hold_lines_and_quotes(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", 'text,id\n"two\nlines, ""quoted""",1\n')

    assert texts_of(open_texts(path, "text", skip_empty=False)) == ['two\nlines, "quoted"']


def test_rows_may_end_early_or_lack_the_column(tmp_path: Path) -> None:
    short = written(tmp_path, "rows.csv", "id,text\n1,one\n2\n3,three\n")
    other = written(tmp_path, "rows.jsonl", '{"id": 1}\n{"text": "two"}\n{"text": null}\n')

    assert texts_of(open_texts(short, "text", skip_empty=True)) == ["one", "three"]
    file = open_texts(other, "text", skip_empty=True)
    assert (texts_of(file), file.empty) == (["two"], 2)


def test_numbers_of_json_become_texts(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", '{"text": 7}\n{"text": true}\n')

    assert texts_of(open_texts(path, "text", skip_empty=False)) == ["7", "True"]


def test_batches_hold_at_most_256_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "text\n" + "".join(f"row {n}\n" for n in range(600)))
    file = open_texts(path, "text", skip_empty=False)

    assert [len(batch) for batch in file.batches()] == [256, 256, 88]


def test_long_json_array_is_streamed(tmp_path: Path) -> None:
    rows = ", ".join(f'{{"text": "{"x" * 200} {n}"}}' for n in range(50_000))
    path = written(tmp_path, "rows.json", f"[{rows}]")
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert count == 50_000
    assert peak < path.stat().st_size / 10


def test_row_without_a_text_is_refused_with_its_number(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "id,text\n1,one\n2,\n3,three\n")

    with pytest.raises(DataError, match=r"Row 2 of rows\.csv has no text in 'text'") as caught:
        open_texts(path, "text", skip_empty=False)
    assert "--skip-empty" in (caught.value.hint or "")


def test_unknown_column_is_refused_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", "id,text\n1,one\n")

    with pytest.raises(NotFoundError) as caught:
        open_texts(path, "txt", skip_empty=False)
    assert caught.value.hint == "Did you mean 'text'? rows.csv has: id, text."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", ""),
        ("head.csv", "text\n"),
        ("wide.csv", "text\none,two\n"),
        ("quote.csv", 'text\n"one\n'),
        ("no.json", "{"),
        ("array.json", '[{"text": "one"}'),
        ("two.json", '[{"text": "one"}] []'),
        ("text.jsonl", '"one"\n'),
        ("bytes.csv", "text\n\udcff\n"),
        ("no.parquet", "text"),
    ],
)
def test_unreadable_file_is_a_data_error(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=name):
        open_texts(path, "text", skip_empty=False)


def test_unknown_suffix_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'rows\.xls' has no known suffix"):
        open_texts(written(tmp_path, "rows.xls", "text\n"), "text", skip_empty=False)
    with pytest.raises(NotFoundError, match="no file"):
        open_texts(tmp_path / "none.csv", "text", skip_empty=False)
