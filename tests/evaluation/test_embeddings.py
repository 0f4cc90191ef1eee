"""Sentence embeddings from the pinned wheel, and the baseline that uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from made_rows import make_recipe, make_row
from trunkline.contracts import BaselineContext, Row
from trunkline.errors import IntegrityError
from trunkline.evaluation.baselines import embedding
from trunkline.evaluation.embeddings import PACKAGE, embed

pytestmark = pytest.mark.real

MEALS = (
    "pizza",
    "fresh bread",
    "a bowl of soup",
    "roast chicken",
    "rice and beans",
    "an apple pie",
)
TOOLS = ("hammer", "a steel saw", "an electric drill", "wrench", "a set of chisels", "pliers")


def test_close_meanings_have_close_embeddings() -> None:
    texts = ["Acute appendicitis", "inflammation of the appendix", "frozen pizza", ""]
    vectors = embed(texts)
    assert vectors.shape == (4, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    cosines = vectors[0] @ vectors.T
    assert cosines[1] == pytest.approx(0.69, abs=0.02)
    assert cosines[2] == pytest.approx(0.09, abs=0.02)
    assert embed(texts[1:2])[0] == pytest.approx(vectors[1], abs=1e-5)


def rows(texts: tuple[str, ...], start: int, target: object) -> list[Row]:
    made = [make_row(start + number, text=text) for number, text in enumerate(texts)]
    return [replace(row, target=target) for row in made]


def context(task: str, targets: tuple[object, object]) -> BaselineContext:
    parts = [
        (*rows(MEALS[cut], 10 * at, targets[0]), *rows(TOOLS[cut], 10 * at + 5, targets[1]))
        for at, cut in enumerate((slice(0, 3), slice(3, 4), slice(4, 6)))
    ]
    recipe = make_recipe(task)  # type: ignore[arg-type]
    return BaselineContext(recipe=recipe, train=parts[0], validation=parts[1], test=parts[2])


def test_the_baseline_knows_words_that_are_not_in_train() -> None:
    predicted = embedding(context("classification", ("meal", "tool")))
    assert list(predicted.values) == ["meal", "meal", "tool", "tool"]
    assert predicted.detail.startswith("MiniLM, C=")


def test_numbers_are_predicted_on_the_recipes_scale() -> None:
    predicted = embedding(context("regression", (10.0, 1000.0)))
    meals, tools = predicted.values[:2], predicted.values[2:]
    assert max(map(float, meals)) < min(map(float, tools))
    assert predicted.detail.startswith("MiniLM, alpha=")


def test_an_archive_of_other_bytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "model.zip").write_bytes(b"PK")
    monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(IntegrityError, match="is not the model of"):
        embed(["a"])
    assert not (tmp_path / "cache" / "embeddings").exists()
