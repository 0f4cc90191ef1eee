"""CoNLL files: tokens and tags become texts and spans, or the line is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.data.columns import DataFiles
from trunkline.data.readers import read_columns, read_rows
from trunkline.errors import DataError

tokens = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1).filter(
    lambda token: token.split() == [token] and token != "-DOCSTART-"
)
labels = st.sampled_from(["PER", "LOC", "B-X"])
spanned = st.lists(
    st.tuples(st.lists(tokens, min_size=1, max_size=3), st.none() | labels), min_size=1, max_size=6
)


def spans_of(path: Path) -> list[tuple[str, list[list[object]]]]:
    rows = read_rows(path, ("text", "spans"))
    return [(row["text"], json.loads(row["spans"])) for row in rows]


@given(st.lists(spanned, min_size=1, max_size=3), st.sampled_from(["iob2", "bioes"]))
def test_any_text_with_spans_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, data: list[list[tuple[list[str], str | None]]],
    scheme: str,
) -> None:  # fmt: skip
    lines: list[str] = ["-DOCSTART- -X- O", ""]
    expected = []
    for parts in data:
        at, spans, text = 0, [], []
        for words_of_part, label in parts:
            size = len(words_of_part)
            length = len(" ".join(words_of_part))
            for index, token in enumerate(words_of_part):
                tag = "O" if label is None else f"{'B' if index == 0 else 'I'}-{label}"
                if label is not None and scheme == "bioes" and index == size - 1:
                    tag = f"{'S' if size == 1 else 'E'}-{label}"
                lines.append(f"{token} X {tag}")
            if label is not None:
                spans.append([at, at + length, label])
            at += length + 1
            text += words_of_part
        lines.append("")
        expected.append((" ".join(text), spans))
    path = tmp_path_factory.mktemp("conll") / "rows.conll"
    path.write_text("\n".join(lines), encoding="utf-8")
    assert read_columns(path) == ("text", "spans")
    assert spans_of(path) == expected


def test_inside_without_begin_starts_a_span(tmp_path: Path) -> None:
    path = tmp_path / "rows.bio"
    path.write_text("a I-PER\nb I-PER\nc I-LOC\nd O\ne I-LOC\n")
    assert spans_of(path) == [("a b c d e", [[0, 3, "PER"], [4, 5, "LOC"], [8, 9, "LOC"]])]


@pytest.mark.parametrize("line", ["aspirin", "aspirin X", "aspirin B", "aspirin B-", "x Q-DRUG"])
def test_line_without_a_tag_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.conll"
    path.write_text(f"took O\n{line}\n")
    with pytest.raises(DataError, match=r"Line 2 of rows\.conll"):
        list(read_rows(path, None))


@pytest.mark.parametrize(
    "token", ["10\u00a0000", "New York", "東\u3000京", "a\u2028b", "a\x0bb", "#"]
)
def test_token_is_read_as_it_is_written(tmp_path: Path, token: str) -> None:
    path = tmp_path / "rows.conll"
    path.write_text(f"{token}\tX\tB-LOC\nis\tX\tO\n", encoding="utf-8")
    assert spans_of(path) == [(f"{token} is", [[0, len(token), "LOC"]])]


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        ("took X O\nNew York B-LOC X\n", "Line 2 of rows.conll has 4 columns, line 1 has 3"),
        ("took X O\naspirin B-DRUG\n", "Line 2 of rows.conll has 2 columns, line 1 has 3"),
        ("took\tO\n\tB-DRUG\n", "Line 2 of rows.conll has a tag without a token"),
        ("took\tO\nNew York B-LOC\n", "Line 2 of rows.conll has a token without a tag"),
        ("1\tAm\tO\tO\n2\tAbend\tB-T\tO\n", "Line 1 of rows.conll and those after it number"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path: Path, lines: str, part: str) -> None:
    path = tmp_path / "rows.conll"
    path.write_text(lines)
    with pytest.raises(DataError, match=part):
        list(read_rows(path, None))


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_labels_are_separated_or_an_array(tmp_path: Path) -> None:
    cells = ["red; blue", '["green", "a;b"]', "", " ; "]
    file = write(tmp_path / "rows.jsonl", [{"text": "x", "kind": cell} for cell in cells])
    rows = list(DataFiles(file=file, labels="kind").rows())
    assert [row.target for row in rows] == [("red", "blue"), ("green", "a;b"), (), ()]


def test_lists_of_json_and_parquet_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    spans = [[0, 7, "DRUG"], [8, 13, "DOSE"]]
    objects = [dict(zip(("start", "end", "label"), one, strict=True)) for one in spans]
    rows = [
        {"text": "aspirin 10 mg", "kind": ["red", "007"], "spans": objects},
        {"text": "aspirin 10 mg", "kind": [], "spans": None},
        {"text": "aspirin 10 mg", "kind": None, "spans": []},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for file in (path, tmp_path / "rows.parquet"):
        labels = [row.target for row in DataFiles(file=str(file), labels="kind").rows()]
        assert labels == [("red", "007"), (), ()]
        tagged = [row.target for row in DataFiles(file=str(file), spans="spans").rows()]
        assert tagged == [((0, 7, "DRUG"), (8, 13, "DOSE")), (), ()]


@pytest.mark.parametrize("cell", ["[1]", '["a"', '["a", null]', "[[]]"])
def test_array_of_other_than_texts_is_refused(tmp_path: Path, cell: str) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "x", "kind": cell}])
    with pytest.raises(DataError, match="Row 1"):
        list(DataFiles(file=file, labels="kind").rows())


TWICE = '[{"start": 0, "start": 4, "end": 7, "label": "X"}]'


@pytest.mark.parametrize("cell", ["DRUG", "{}", "[1]", "[[0, 1]]", '[["DRUG"]]', TWICE])
def test_other_than_spans_is_refused(tmp_path: Path, cell: str) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "x", "spans": cell}])
    with pytest.raises(DataError, match="Row 1"):
        list(DataFiles(file=file, spans="spans").rows())


def test_separator_without_lists_is_refused() -> None:
    with pytest.raises(ValueError, match="separator belongs to labels or candidates"):
        DataFiles(file="x.csv", label="a", separator=",")


def test_relevant_candidate_loses_its_blanks_as_candidates_do(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "x", "bought": " tea", "shelf": "milk ; tea"}])
    (row,) = DataFiles(file=file, relevant="bought", candidates="shelf").rows()
    assert (row.target, row.candidates) == ("tea", ("milk", "tea"))


def test_list_as_python_writes_it_is_refused_with_the_cure(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [{"text": "x", "kind": "['red', 'green']"}])
    with pytest.raises(DataError) as caught:
        list(DataFiles(file=file, labels="kind").rows())
    assert "double quotes" in (caught.value.hint or "")


@pytest.mark.parametrize("columns", [{"relevant": "a"}, {"label": "a", "candidates": "b"}])
def test_ranking_needs_both_columns(columns: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="both relevant and candidates"):
        DataFiles(file="x.csv", **columns)  # type: ignore[arg-type]
