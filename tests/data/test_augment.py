"""Augmentation: copies of training rows with another text, the same target and the same group."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_row
from trunkline.contracts import TransformSpec
from trunkline.data.augment import TRANSFORMS, abbreviations, synonyms
from trunkline.data.transforms import augment_rows
from trunkline.errors import UsageError

quick = settings(max_examples=100, deadline=None)
SPECS = {spec.name: spec for spec in TRANSFORMS}
SYNONYMS = synonyms("own/synonyms", {"heart attack": ["myocardial infarction"], "pain": ["ache"]})
SHORT = abbreviations("own/short", {"MI": "myocardial infarction", "bp": "blood pressure"})


def changed(spec: TransformSpec, text: str, seed: int = 0) -> str | None:
    """The text of the added row, or None if none is added."""
    added = augment_rows([make_row(1, text=text)], [spec], random.Random(seed))
    return added[0].text if added else None


@quick
@given(st.sampled_from([*TRANSFORMS, SYNONYMS, SHORT]), st.text(max_size=60), st.integers(0, 9))
def test_a_copy_has_another_text_and_the_rest_of_its_row(
    spec: TransformSpec, text: str, seed: int
) -> None:
    row = make_row(1, text=text)
    added = augment_rows([row], [spec], random.Random(seed))
    assert added == augment_rows([row], [spec], random.Random(seed))
    for new in added:
        assert new.text.strip()
        assert new.text != text
        assert new.id != row.id
        assert (new.target, new.group, new.split) == (row.target, row.group, row.split)


@quick
@given(st.lists(st.sampled_from(["a", "bb", "ccc", "d9"]), min_size=1, max_size=30))
def test_swapping_keeps_all_words(tokens: list[str]) -> None:
    text = changed(SPECS["random-swap"], " ".join(tokens))
    assert sorted((text or " ".join(tokens)).split()) == sorted(tokens)


@quick
@given(st.integers(0, 99))
def test_noise_changes_one_word_in_ten_and_no_number(seed: int) -> None:
    tokens = [*["shipment"] * 18, "A1234", "2024"]
    text = changed(SPECS["character-noise"], " ".join(tokens), seed)
    if text is not None:  # a replacement may draw the same letter
        new = text.split()
        assert new[-2:] == tokens[-2:]
        assert sum(one != other for one, other in zip(new, tokens, strict=True)) <= 2
        assert all(token[0] == "s" and 7 <= len(token) <= 9 for token in new[:-2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("paid 12500 EUR", "paid 12,500 EUR"),
        ("paid 1,250,000.50 EUR", "paid 1250000.50 EUR"),
        ("in 2024", None),
        ("code 0123456", None),
        ("version 12345.67.8", None),
        ("x12345 and 12345x", None),
        ("12,34 is no number here", None),
        ("at 10000.", "at 10,000."),
    ],
)
def test_number_formats_keep_the_value(text: str, expected: str | None) -> None:
    assert changed(SPECS["number-formats"], text) == expected


@quick
@given(st.integers(0, 10**12), st.booleans())
def test_a_number_in_the_other_format_is_the_same_number(number: int, commas: bool) -> None:
    text = f"total {number:,}" if commas else f"total {number}"
    other = changed(SPECS["number-formats"], text)
    digits = re.sub(r"\D", "", other or text)
    assert int(digits) == number


def test_synonyms_keep_capitals_and_match_phrases_only() -> None:
    assert changed(SYNONYMS, "Heart attack") == "Myocardial infarction"
    assert changed(SYNONYMS, "PAIN") == "ACHE"
    assert changed(SYNONYMS, "painful heart attacks") is None
    assert changed(SHORT, "mi with high BP, not MIT") == (
        "myocardial infarction with high blood pressure, not MIT"
    )


@pytest.mark.parametrize(
    "table",
    [
        {}, [], None, {"pain": []}, {" ": ["x"]}, {"pain": [""]}, {"pain": [" "]}, {"pain": "ache"},
        {"pain": None}, {"pain": [1]}, {1: ["x"]}, {"pain": ["x"], "Pain": ["y"]},
    ],
)  # fmt: skip
def test_a_table_of_another_form_is_refused(table: Any) -> None:
    with pytest.raises(UsageError, match="own/synonyms") as error:
        synonyms("own/synonyms", table)
    assert error.value.hint


@pytest.mark.parametrize("table", [{}, {"MI": ["x"]}, {"MI": 5}, {"MI": " "}])
def test_an_abbreviation_has_one_meaning(table: Any) -> None:
    with pytest.raises(UsageError, match="own/short"):
        abbreviations("own/short", table)


def test_letters_without_a_case_of_their_own_stay() -> None:
    spec = synonyms("own/synonyms", {"wild": ["untamed"]})
    assert changed(spec, "the wıld one") is None
    assert changed(spec, "the WILD one") == "the UNTAMED one"
