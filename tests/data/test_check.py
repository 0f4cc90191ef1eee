"""What is wrong with a dataset is found before anything is trained, row by row."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiny_base import make_tokenizer
from trunkline.contracts import DatasetSpec, Row, Settings, Span
from trunkline.data.check import check_dataset, personal_data, script_of
from trunkline.data.check_report import DataFinding, DatasetCheck
from trunkline.data.prepare import default_recipe

CAUSES = {
    "home": ("water in the basement", "roof torn off by the storm", "kitchen fire", "burst pipe"),
    "car": ("rear end crash", "hail on the bonnet", "stolen wheels", "broken windscreen"),
    "pet": ("the dog needs a vet", "the cat swallowed wool", "a horse with colic", "sick parrot"),
}


def made(count: int = 90) -> list[Row]:
    """Clean rows of three labels."""
    drawn = random.Random(0)
    rows = []
    for number in range(count):
        label = tuple(CAUSES)[number % 3]
        first, second = drawn.sample(CAUSES[label], 2)
        text = f"{first} and {second}, {number} {drawn.randrange(10**6)} {drawn.random():.9f}"
        rows.append(Row(id=str(number), text=text, target=label, group=str(number)))
    return rows


def checked(rows: Sequence[Row], task: Any = "classification", **options: Any) -> DatasetCheck:
    dataset = DatasetSpec(
        name="own/claims", description="", task=task, load=lambda: rows, license="", source="",
        grouping="",
    )  # fmt: skip
    return check_dataset(dataset, default_recipe(dataset), **options)


def finding_of(rows: Sequence[Row], kind: str) -> DataFinding:
    """The one finding of a kind."""
    (finding,) = [one for one in checked(rows).findings if one.kind == kind]
    assert finding.message
    assert finding.advice.endswith(".")
    return finding


def changed(number: int, **fields: Any) -> list[Row]:
    rows = made()
    rows[number] = replace(rows[number], **fields)
    return rows


def test_clean_rows_have_no_findings() -> None:
    result = checked(made())
    assert [one for one in result.findings if one.kind != "label errors"] == []
    assert result.usable
    assert result.labels == {"home": 30, "car": 30, "pet": 30}
    assert sum(result.parts.values()) == result.rows == 90


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("empty texts", {"text": " \t"}),
        ("empty targets", {"target": ""}),
        ("label spaces", {"target": "car "}),
        ("encoding", {"text": "The KÃ¼che burned down"}),
        ("encoding", {"text": "a caf\ufffd burned down"}),
        ("encoding", {"text": "a \x07 bell"}),
        ("language", {"text": "вода в подвале дома"}),
        ("personal data", {"text": "write to jane.doe@example.org"}),
    ],
)
def test_finding_names_its_row(kind: str, fields: dict[str, str]) -> None:
    finding = finding_of(changed(7, **fields), kind)
    assert (finding.count, finding.rows) == (1, ("7",))


def test_repeated_row_is_named_and_not_the_one_that_stays() -> None:
    rows = made()
    rows.append(replace(rows[3], id="again", group="again"))
    assert finding_of(rows, "duplicates").rows == ("again",)


def test_both_sides_of_a_contradiction_are_named() -> None:
    rows = made()
    rows.append(replace(rows[3], id="other", target="pet", group="3"))
    assert set(finding_of(rows, "label conflicts").rows) == {"3", "other"}


def test_labels_that_differ_by_case() -> None:
    rows = [*changed(4, target="Car"), *changed(7, target="Car")]
    rows = [replace(row, id=f"{index}") for index, row in enumerate(rows)]
    finding = finding_of(rows, "similar labels")
    assert "'Car' and 'car'" in finding.message


def test_rare_label() -> None:
    rows = changed(5, target="boat")
    rows[8] = replace(rows[8], target="boat")
    finding = finding_of(rows, "rare labels")
    assert "'boat' 2" in finding.message
    assert finding.count == 2


def test_label_with_a_single_row_is_an_error() -> None:
    result = checked(changed(5, target="boat"))
    assert not result.usable
    assert result.findings[0].level == "error"
    assert "boat" in result.findings[0].message


def test_near_duplicates_across_an_official_split() -> None:
    rows = [replace(row, split="train") for row in made()]
    rows += [
        replace(row, id=f"t{row.id}", group=f"t{row.id}", split="test", text=row.text + ".")
        for row in rows[:6]
    ]
    finding = finding_of(rows, "near-duplicates")
    assert finding.count == 6
    assert set(finding.rows) == {f"t{number}" for number in range(6)}


def test_texts_that_are_cut_are_counted_with_a_length_that_fits() -> None:
    dataset = DatasetSpec(
        name="own/a", description="", task="classification", load=lambda: made(), license="",
        source="", grouping="",
    )  # fmt: skip
    recipe = replace(default_recipe(dataset), settings=Settings(max_length=16))
    result = check_dataset(dataset, recipe, tokenizer=(make_tokenizer(), 256))
    (finding,) = [one for one in result.findings if one.kind == "cut texts"]
    assert result.lengths is not None
    assert finding.count == result.lengths.truncated == 90
    assert f"max_length={result.lengths.p95}" in finding.advice


def test_rows_named_for_a_wrong_label_have_one() -> None:
    rows = made(240)
    wrong = {"10", "70", "130"}
    rows = [
        replace(row, target="pet" if row.target != "pet" else "car") if row.id in wrong else row
        for row in rows
    ]
    finding = finding_of(rows, "label errors")
    assert finding.rows
    assert set(finding.rows) <= wrong


def test_without_the_extra_it_says_how_to_get_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    (finding,) = [one for one in checked(made()).findings if one.kind == "label errors"]
    assert "pip install 'trunkline[check]'" in finding.message


def test_regression_and_generation_are_checked_too() -> None:
    numbers = [replace(row, target=float(index)) for index, row in enumerate(made())]
    assert checked(numbers, "regression").usable
    assert checked(made(), "generation").usable


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("call +49 30 901820 now", "a telephone number"),
        ("call 0041 44 668 18 00", "a telephone number"),
        ("SSN 078-05-1120", "a US social security number"),
        ("DE89 3704 0044 0532 0130 00", "an IBAN"),
        ("GB82WEST12345698765432", "an IBAN"),
        ("card 4111 1111 1111 1111", "a payment card number"),
        ("from 192.168.17.4", "an IP address"),
        ("jane@example.co.uk wrote", "an e-mail address"),
    ],
)
def test_personal_data_by_pattern(text: str, kind: str) -> None:
    assert list(personal_data(text)) == [kind]


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # a wrong check digit
        "0000 0000 0000 0000",
        "DE89 3704 0044 0532 0130 01",
        "version 1.2.3.4567",
        "300.1.1.1",
        "2026-11-29 12:00",
        "ICD-10-CM E11.22, 12 mg",
        "@handle and a@b",
        "ISBN 978-3-16-148410",
        "12,500.00 USD",
    ],
)
def test_what_only_looks_like_personal_data(text: str) -> None:
    assert list(personal_data(text)) == []


@given(st.text(max_size=200))
def test_every_text_can_be_examined(text: str) -> None:
    list(personal_data(text))
    script_of(text)


def test_stages_are_reported() -> None:
    stages: list[str] = []
    report: Callable[[str], None] = stages.append
    checked(made(), on_stage=report)
    assert stages == ["reading own/claims", "comparing rows", "looking for wrong labels"]


def test_number_that_is_too_large_is_a_finding() -> None:
    rows = [replace(row, target=float(index)) for index, row in enumerate(made())]
    rows[7] = replace(rows[7], target=float("inf"))
    findings = checked(rows, "regression").findings
    assert [one.rows for one in findings if one.kind == "infinite targets"] == [("7",)]


def test_labels_that_look_the_same_are_shown_escaped() -> None:
    forms = ("caf\u00e9", "cafe\u0301")
    rows = [
        replace(row, target=forms[index % 4 // 2]) if row.target == "home" else row
        for index, row in enumerate(made())
    ]
    message = finding_of(rows, "similar labels").message
    assert "'caf\\xe9'" in message
    assert "'cafe\\u0301'" in message


@pytest.mark.parametrize(("start", "end", "torn"), [(0, 5, False), (0, 4, True), (5, 9, True)])
def test_span_that_cuts_a_word_is_a_finding(start: int, end: int, torn: bool) -> None:
    rows = [
        Row(
            id=str(index),
            text=f"Lille was {index}",
            target=(Span(start, end, "X"),),
            group=str(index),
        )
        for index in range(30)
    ]
    dataset_findings = [one.kind for one in checked(rows, "tagging").findings]
    assert ("torn spans" in dataset_findings) == torn


def test_labels_that_hold_another_separator_are_a_finding() -> None:
    rows = [
        replace(row, target=("red,green", "blue")[index % 2 :][:1])
        for index, row in enumerate(made())
    ]
    (finding,) = [one for one in checked(rows, "multilabel").findings if one.kind == "separator"]
    assert finding.count == 45
    assert "--separator ','" in finding.advice
    rows[0] = replace(rows[0], target=("blue", "red,green"))
    assert "separator" not in {one.kind for one in checked(rows, "multilabel").findings}
