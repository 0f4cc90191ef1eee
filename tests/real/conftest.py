"""The real base and the plugins' own data, thinned so that a session trains in minutes.

Owns: one workspace with a version of each task.
Must not know: what is asked of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import trunkline
from trunkline.api import Platform
from trunkline.contracts import Row
from trunkline.training.fit import Ingredients

RECIPES = {"medical/icd10-chapter": 12, "retail/unit-price": 60, "medical/icd10-title": 40}
"""Recipe → every so-manieth group of its dataset is kept."""

SETTINGS: dict[str, Any] = {
    "max_steps": 6, "max_examples": 64, "batch_size": 8, "evals_per_epoch": 1, "warmup": 0.0,
}  # fmt: skip


def thinned(rows: Iterable[Row], every: int) -> list[Row]:
    """A part of the rows that can still be split.

    Every ``every``-th stratum that has three groups or more, where rows name a stratum; else every
    ``every``-th group, without the labels that then stand in fewer than three.
    """
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.stratum or row.group].append(row)
    if any(row.stratum for found in groups.values() for row in found):
        full = [found for found in groups.values() if len({row.group for row in found}) >= 3]
        return [row for found in full[::every] for row in found]
    kept = [row for number, name in enumerate(groups) if number % every == 0
            for row in groups[name]]  # fmt: skip
    if not all(isinstance(row.target, str) for row in kept):
        return kept
    homes: dict[Any, set[str]] = defaultdict(set)
    for row in kept:
        homes[row.target].add(row.group)
    return [row for row in kept if len(homes[row.target]) >= 3]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform on the real base with a version of each recipe, a few steps trained."""
    from trunkline.base_model import DEFAULT_BASE, pull, release

    release()
    pull(DEFAULT_BASE)
    whole = Platform.ingredients

    def ingredients(self: Platform, recipe: str, settings: Mapping[str, Any]) -> Ingredients:
        found = whole(self, recipe, settings)
        rows = thinned(found.dataset.load(), RECIPES[recipe])
        return replace(found, dataset=replace(found.dataset, load=lambda: rows))

    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Platform, "ingredients", ingredients)
        platform = trunkline.open(folder)
        for recipe in RECIPES:
            platform.train(recipe, **SETTINGS)
        yield platform
        platform.registry.close()
    release()


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The converted base, as plain transformers loads it."""
    from trunkline.base_model import DEFAULT_BASE, describe

    return describe(DEFAULT_BASE).folder
