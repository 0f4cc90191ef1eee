"""Lookups by name, and the error for an unknown name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trunkline.errors import NotFoundError
from trunkline.plugins import Catalog, load_plugins
from trunkline.plugins.catalog import SPECS

AddPlugin = Callable[..., Path]
NOUNS = ["dataset", "recipe", "loss", "metric", "transform", "baseline", "task"]
NAMES = {
    "dataset": "good/letters",
    "recipe": "good/letters",
    "loss": "good/soft_margin",
    "metric": "good/hits",
    "transform": "good/same",
    "baseline": "good/constant",
    "task": "good/ordinal",
}


@pytest.fixture
def catalog(add_plugin: AddPlugin) -> Catalog:
    add_plugin("good")
    add_plugin("broken", "raise ValueError('no table')")
    return load_plugins()


@pytest.mark.parametrize("noun", NOUNS)
def test_lookup_by_name(noun: str, catalog: Catalog) -> None:
    assert getattr(catalog, noun)(NAMES[noun]).name == NAMES[noun]


@pytest.mark.parametrize("noun", NOUNS)
def test_unknown_name_is_answered_with_the_nearest(noun: str, catalog: Catalog) -> None:
    with pytest.raises(NotFoundError) as caught:
        getattr(catalog, noun)(NAMES[noun][:-1])
    assert f"Did you mean {NAMES[noun]!r}?" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", SPECS)
def test_listing_holds_the_plugins_specs(kind: str, catalog: Catalog) -> None:
    names = [spec.name for spec in getattr(catalog, kind)()]
    assert [name for name in names if name.startswith("good/")] == list(
        getattr(catalog.plugin("good"), kind)
    )


@pytest.mark.parametrize("name", ["accuracy", "core/accuracy"])
def test_builtin_is_looked_up_with_or_without_its_domain(name: str, catalog: Catalog) -> None:
    assert catalog.metric(name).name == "accuracy"


def test_builtins_come_first_in_listings(catalog: Catalog) -> None:
    assert catalog.plugins[0].domain == "core"
    assert [spec.name for spec in catalog.metrics()][:2] == ["accuracy", "macro_f1"]


def test_default_loss_is_that_of_the_task(catalog: Catalog) -> None:
    recipe = catalog.recipe("good/letters")
    assert catalog.loss_for(recipe).name == "good/soft_margin"
    assert catalog.loss_for(replace(recipe, loss="default")).name == "cross_entropy"


def test_recipe_of_a_plugins_task_gets_its_baselines(catalog: Catalog) -> None:
    names = [spec.name for spec in catalog.baselines_for(catalog.recipe("good/letters"))]
    assert names == ["majority", "tfidf", "good/constant"]


def test_name_of_a_failed_plugin_says_so_and_why(catalog: Catalog) -> None:
    with pytest.raises(
        NotFoundError, match=r"'broken' is set aside \(failed\).*no table"
    ) as caught:
        catalog.recipe("broken/letters")
    assert "trunkline plugins show broken" in (caught.value.hint or "")


def test_name_of_a_blocked_plugin_says_so(add_plugin: AddPlugin) -> None:
    add_plugin("good")
    with pytest.raises(NotFoundError, match=r"set aside \(blocked\): --no-plugin names it"):
        load_plugins(block=["good"]).recipe("good/letters")


def test_unknown_plugin_is_answered_with_the_nearest(catalog: Catalog) -> None:
    with pytest.raises(NotFoundError) as caught:
        catalog.plugin("brokn")
    assert "'broken'" in (caught.value.hint or "")


def test_plugin_answers_to_its_distribution(catalog: Catalog) -> None:
    assert catalog.plugin("fake-good").domain == "good"
