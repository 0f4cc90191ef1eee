"""Near-duplicates of two parts, by all pairs and by MinHash."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_dataset, make_recipe, make_row, make_split
from trunkline.contracts import Message, Row, Template
from trunkline.data import near_duplicates as module
from trunkline.data.check import check_dataset
from trunkline.data.near_duplicates import JACCARD, Method, method_for, near_duplicates
from trunkline.data.prepare import prepare

METHODS: tuple[Method, ...] = ("tfidf", "minhash")
LONG = "the patient has a chronic disease of the left kidney with many complications noted"

both = pytest.mark.parametrize("method", METHODS)


def rows_of(texts: Sequence[str], start: int = 0) -> list[Row]:
    return [make_row(number, text=text) for number, text in enumerate(texts, start)]


def pairs(texts: Sequence[str], others: Sequence[str], method: Method) -> list[tuple[str, str]]:
    """Texts that have a near-duplicate, with that one."""
    close = near_duplicates(rows_of(texts), rows_of(others, 1000), Template(), method)
    return [(pair.row.text, pair.other.text) for pair in close]


@both
def test_near_copy_is_named_with_its_other(method: Method) -> None:
    texts = ["a cold morning in the hills", LONG]
    assert pairs(texts, ["something else entirely", f"{LONG}."], method) == [(LONG, f"{LONG}.")]


@both
@pytest.mark.parametrize("texts", [[], ["a"], ["?"]])
def test_short_texts_and_no_texts(method: Method, texts: list[str]) -> None:
    assert pairs(texts, [], method) == []
    assert pairs(texts, ["b"], method) == []
    assert pairs([], texts, method) == []


@both
def test_history_of_a_conversation_is_compared_too(method: Method) -> None:
    first, second = (
        make_row(number, text="Yes, please.", history=(Message("user", text),))
        for number, text in enumerate((LONG, "something else entirely"))
    )
    assert near_duplicates([first], [second], Template(chat=True), method) == []
    assert len(near_duplicates([first], [first], Template(chat=True), method)) == 1


def grams(text: str) -> set[str]:
    folded = text.casefold()
    return {folded[start : start + 5] for start in range(max(1, len(folded) - 4))}


drawn = st.text("abc é", min_size=1, max_size=40).filter(lambda text: bool(text.strip()))


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(drawn, max_size=6), others=st.lists(drawn, max_size=6), data=st.data())
def test_minhash_gives_no_pair_below_the_threshold(
    texts: list[str], others: list[str], data: Any
) -> None:
    others += [f"{text} x" for text in texts if data.draw(st.booleans())]
    for text, other in pairs(texts, others, "minhash"):
        one, two = grams(" ".join(text.split())), grams(" ".join(other.split()))
        assert len(one & two) / len(one | two) >= JACCARD


def test_minhash_misses_no_pair_among_many_rows() -> None:
    rng = random.Random(0)
    names = [f"{rng.randrange(10**6)}" for _ in range(400)]
    others = [" ".join(rng.sample(names, 12)) for _ in range(2000)]
    texts = [f"{other}!" for other in others[:200]]
    close = pairs(texts, others, "minhash")
    assert close == list(zip(texts, others[:200], strict=True))
    assert close == pairs(texts, others, "minhash")


def test_number_of_rows_decides_how_they_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_row(number, text=f"{LONG} {number} {number * 977}") for number in range(30)]
    again = make_row(99, text=f"{rows[3].text}.", group="other")
    dataset = make_dataset([*rows, again])
    few = prepare(dataset, make_recipe()).report
    monkeypatch.setattr(module, "EXACT_ROWS", 30)
    many = prepare(dataset, make_recipe()).report
    assert (few.compared_by, many.compared_by) == ("tfidf", "minhash")
    assert method_for(make_split(rows, [], [])) == "tfidf"
    assert method_for(make_split(rows, [again], [])) == "minhash"


@both
def test_check_names_rows_of_every_pair_of_parts(
    method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method == "minhash":
        monkeypatch.setattr(module, "EXACT_ROWS", 1)
    rng = random.Random(3)
    texts = [" ".join(str(rng.randrange(10**9)) for _ in range(9)) for _ in range(30)]
    parts = ["train"] * 20 + ["validation"] * 5 + ["test"] * 5
    rows = [
        make_row(number, text=text, split=part)
        for number, (text, part) in enumerate(zip(texts, parts, strict=True))
    ]
    for number, (source, part) in enumerate(
        [(0, "test"), (1, "validation"), (20, "test"), (2, "train")], 90
    ):
        rows.append(make_row(number, text=f"{texts[source]}.", split=part))
    findings = check_dataset(make_dataset(rows), make_recipe()).findings
    close = [one for one in findings if one.kind == "near-duplicates"]
    assert [(one.level, one.rows) for one in close] == [
        ("warning", ("r90",)), ("note", ("r91",)), ("note", ("r92",)),
    ]  # fmt: skip
    examples = [one.message.rpartition(": ")[2] for one in close]
    assert examples == [f"row {one} is like row {two}" for one, two in (
        ("r90", "r0"), ("r91", "r1"), ("r92", "r20"),
    )]  # fmt: skip
