"""Rows of a user's own files, by the names of their columns."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trunkline.data.columns import SPLITS, DataFiles, parse_text_template
from trunkline.errors import DataError, NotFoundError, UsageError

HEAD = ("title", "body", "kind", "price", "customer", "part")
ROWS = (
    ("Leak", "water in the basement", "home", "12.5", "a", "train"),
    ("Crash", "rear end", "car", "7", "b", "Training"),
    ("", "", "car", "", "b", "dev"),
    ("Hail", " hail, ", "car", "1e3", "c", "TEST"),
)


@pytest.fixture
def claims(tmp_path: Path) -> str:
    return written(tmp_path / "claims.csv", ROWS)


def written(path: Path, rows: Any) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([HEAD, *rows])
    return str(path)


def test_rows_are_numbered_as_in_the_file(claims: str) -> None:
    rows = list(DataFiles(file=claims, text="body", label="kind").rows())
    assert [row.id for row in rows] == ["1", "2", "3", "4"]
    assert [row.text for row in rows] == [body for _, body, *_ in ROWS]
    assert [row.target for row in rows] == [kind for _, _, kind, *_ in ROWS]
    assert {row.split for row in rows} == {None}


def test_text_of_several_columns(claims: str) -> None:
    files = DataFiles(file=claims, text="{title}:\n{body} {{}}", label="kind")
    texts = [row.text for row in files.rows()]
    assert texts[0] == "Leak:\nwater in the basement {}"
    assert texts[2] == ""  # a row whose columns are all empty has no text


def test_numbers_are_read_strictly(tmp_path: Path, claims: str) -> None:
    targets = [row.target for row in DataFiles(file=claims, text="body", target="price").rows()]
    assert targets[:2] == [12.5, 7.0]
    assert targets[2] != targets[2]  # an empty one, which preparation drops and counts
    assert targets[3] == 1000.0
    for bad in ("1,5", "1_000", "7 EUR", "nan", "inf", "0x1f", "٣"):
        path = written(tmp_path / "bad.csv", [("t", "b", "k", bad, "c", "train")])
        with pytest.raises(DataError, match=r"Row 1 \(line 2\) of bad.csv") as caught:
            list(DataFiles(file=path, text="body", target="price").rows())
        assert repr(bad) in caught.value.message


def test_official_split_of_a_column(claims: str) -> None:
    files = DataFiles(file=claims, text="body", label="kind", split="part")
    assert [row.split for row in files.rows()] == ["train", "train", "validation", "test"]


@pytest.mark.parametrize("value", ["", "holdout", "0", "train test"])
def test_unknown_part_is_refused(tmp_path: Path, value: str) -> None:
    path = written(tmp_path / "a.csv", [("t", "b", "k", "1", "c", value)])
    with pytest.raises(DataError, match="Row 1"):
        list(DataFiles(file=path, text="body", label="kind", split="part").rows())


def test_official_split_of_files(tmp_path: Path, claims: str) -> None:
    other = written(tmp_path / "held-out.csv", ROWS[:1])
    rows = list(DataFiles(file=claims, text="body", label="kind", test=other).rows())
    assert [row.split for row in rows] == ["train"] * 4 + ["test"]
    assert rows[-1].id == "test/1"
    # The same text on both sides is not one group: an official split is taken as it is.
    assert rows[0].group != rows[-1].group


def test_rows_with_the_same_text_are_one_group(tmp_path: Path) -> None:
    texts = ("Hail  storm", "hail storm ", "HAIL STORM", "hailstorm")
    path = written(tmp_path / "a.csv", [("t", text, "k", "1", "c", "train") for text in texts])
    rows = list(DataFiles(file=path, text="body", label="kind").rows())
    assert len({row.group for row in rows[:3]}) == 1
    assert rows[3].group != rows[0].group
    assert all(text not in row.group for text in texts for row in rows)


def test_group_column(tmp_path: Path, claims: str) -> None:
    files = DataFiles(file=claims, text="body", label="kind", group="customer")
    assert [row.group for row in files.rows()] == ["a", "b", "b", "c"]
    path = written(
        tmp_path / "b.csv", [("t", "b", "k", "1", name, "train") for name in ("A", "A ", " A", "a")]
    )
    rows = list(DataFiles(file=path, text="body", label="kind", group="customer").rows())
    assert [row.group for row in rows] == ["A", "A", "A", "a"]  # blanks must not divide a group
    path = written(tmp_path / "a.csv", [("t", "b", "k", "1", " ", "train")])
    with pytest.raises(DataError, match="no group"):
        list(DataFiles(file=path, text="body", label="kind", group="customer").rows())


def test_missing_column_is_named_with_the_nearest(claims: str) -> None:
    with pytest.raises(NotFoundError, match="'kimd'") as caught:
        list(DataFiles(file=claims, text="body", label="kimd").rows())
    assert "'kind'" in str(caught.value.hint)


def test_one_column_can_not_be_text_and_label(claims: str) -> None:
    with pytest.raises(UsageError, match="both"):
        list(DataFiles(file=claims, text="{title} {kind}", label="kind").rows())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"label": "a", "target": "b"},
        {"label": "a", "split": "s", "test": "t.csv"},
        {"label": "a", "validation": "v.csv"},
        {"label": "a", "unit": "USD"},
        {"label": "a", "lable": "b"},
        {"label": 7},
    ],
    ids=str,
)
def test_contradictions_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DataFiles(file="a.csv", **fields)


@pytest.mark.parametrize("text", ["{", "a}", "{}", "{a:3}", "{a!r}", "{{}}"])
def test_malformed_text_template_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_text_template(text)


names = st.text(st.characters(exclude_characters="{}!:[].", codec="utf-8"), min_size=1)


@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8")), names), min_size=1))
def test_text_template_gives_its_columns_back(parts: list[tuple[str, str]]) -> None:
    escaped = "".join(
        literal.replace("{", "{{").replace("}", "}}") + "{" + name + "}" for literal, name in parts
    )
    filled = "".join(
        literal + ("" if name is None else f"<{name}>")
        for literal, name in parse_text_template(escaped)
    )
    assert filled == "".join(f"{literal}<{name}>" for literal, name in parts)


def test_every_part_of_a_split_is_known() -> None:
    assert set(SPLITS.values()) == {"train", "validation", "test"}


# ---------------------------------------------------------------------------------- separators


def tagged(folder: Path, values: list[str], name: str = "rows.csv") -> str:
    path = folder / name
    if path.suffix == ".jsonl":
        lines = [json.dumps({"t": f"text {i}", "l": one}) for i, one in enumerate(values)]
        path.write_text("\n".join(lines))
        return str(path)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("t", "l"), *((f"text {i}", v) for i, v in enumerate(values))])
    return str(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
@pytest.mark.parametrize("sign", [",", "|", "\t", "、"])
@pytest.mark.parametrize(
    "values", [["a~b", "b~c", "a", "c~a~b"], ["a~b~c"] * 3], ids=["lists", "one list"]
)
def test_labels_with_another_separator_are_refused(
    tmp_path: Path, values: list[str], sign: str, name: str
) -> None:
    file = tagged(tmp_path, [one.replace("~", sign) for one in values], name)
    with pytest.raises(DataError, match="has several items in 'l'") as caught:
        list(DataFiles(file=file, text="t", labels="l").rows())
    assert f"--separator {sign!r}" in (caught.value.hint or "")
    rows = list(DataFiles(file=file, text="t", labels="l", separator=sign).rows())
    assert rows[0].target == tuple(values[0].split("~"))


@pytest.mark.parametrize(
    "values",
    [
        ["Smith, John", "Lee, Ann", "red"],
        ["a,b;c", "d,e", "d"],
        ['["a,b"]', "a,b", "a", "b"],
        ["a", "b", ""],
    ],
    ids=["names", "several", "array", "single"],
)
def test_labels_that_hold_a_sign_are_read(tmp_path: Path, values: list[str]) -> None:
    file = tagged(tmp_path, values)
    assert len(list(DataFiles(file=file, text="t", labels="l").rows())) == len(values)


def test_candidates_with_another_separator_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('t,r,c\nx,a,"a,b"\ny,b,"b,a"\n')
    with pytest.raises(DataError, match="in 'c'") as caught:
        list(DataFiles(file=str(path), text="t", relevant="r", candidates="c").rows())
    assert "--separator ','" in (caught.value.hint or "")
