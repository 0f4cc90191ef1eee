"""The real base and the plugins' own data, thinned so that a session trains in minutes."""

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
from trunkline.training.job import TrainingJob

RECIPES = {
    "medical/icd10-chapter": ("group", 30),
    "retail/unit-price": ("group", 60),
    "medical/icd10-title": ("stratum", 100),
}
"""Recipe → the attribute to thin by, and the step: one of so many is kept."""

SETTINGS: dict[str, Any] = {
    "max_steps": 3, "max_train_samples": 64, "per_device_train_batch_size": 8, "evals_per_epoch": 1,
    "warmup_ratio": 0.0,
}  # fmt: skip


def thinned(rows: Iterable[Row], by: str, every: int) -> list[Row]:
    """Rows of every ``every``-th group or stratum that can still be split.

    A stratum in fewer than three groups, or a label, can't stand in all three parts.
    """
    parts: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        parts[str(getattr(row, by))].append(row)
    if by == "stratum":
        parts = {name: part for name, part in parts.items() if in_three_groups(part)}
    kept = [row for name in list(parts)[::every] for row in parts[name]]
    labels: dict[Any, list[Row]] = defaultdict(list)
    for row in kept:
        labels[row.target].append(row)
    if by == "stratum" or not isinstance(kept[0].target, str):
        return kept
    return [row for row in kept if in_three_groups(labels[row.target])]


def in_three_groups(rows: Iterable[Row]) -> bool:
    """Whether rows stand in three groups or more."""
    return len({row.group for row in rows}) >= 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform on the real base with a version of each recipe, a few steps trained."""
    from trunkline.bases import DEFAULT_BASE, pull, release

    release()
    pull(DEFAULT_BASE)
    original = Platform.training_job

    def training_job(self: Platform, recipe: str, settings: Mapping[str, Any]) -> TrainingJob:
        job = original(self, recipe, settings)
        rows = thinned(job.dataset.load(), *RECIPES[recipe])
        return replace(job, dataset=replace(job.dataset, load=lambda: rows))

    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TRUNKLINE_REGISTRY", "TRUNKLINE_LOAD_PLUGINS"):
            patch.delenv(name, raising=False)
        patch.setattr(Platform, "training_job", training_job)
        platform = trunkline.open(folder)
        for recipe in RECIPES:
            platform.train(recipe, **SETTINGS)
        yield platform
        platform.registry.close()
    release()


@pytest.fixture(scope="session")
def base_folder() -> Path:
    """The converted base, as plain transformers loads it."""
    from trunkline.bases import DEFAULT_BASE, describe

    return describe(DEFAULT_BASE).folder
