"""Plugins, bases and datasets are recorded once."""

from __future__ import annotations

from datetime import timedelta

import pytest

from trunkline.registry.registry import Registry


@pytest.mark.dialect
def test_the_same_plugin_release_keeps_its_id(registry: Registry) -> None:
    release = {"distribution": "trunkline-medical", "version": "1.0", "domain": "medical"}
    first = registry.sources.record_plugin(**release, api=1)
    assert registry.sources.record_plugin(**release, api=1) == first


def test_another_plugin_release_gets_another_id(registry: Registry) -> None:
    first = registry.sources.record_plugin(distribution="p", version="1.0", api=1, domain="medical")
    second = registry.sources.record_plugin(
        distribution="p", version="1.1", api=1, domain="medical"
    )
    assert first != second


def test_a_base_keeps_its_first_name(registry: Registry, dataset: int) -> None:
    (known,) = registry.sources.list_bases()
    registry.sources.record_base(
        digest=known.digest,
        name="another",
        source="elsewhere",
        architecture="X",
        parameters=1,
        dtype="float32",
    )
    assert [base.name for base in registry.sources.list_bases()] == ["tiny"]


@pytest.mark.dialect
def test_a_base_may_have_more_than_2_31_parameters(registry: Registry, dataset: int) -> None:
    assert registry.sources.list_bases()[0].parameters == 7_000_000_000


def test_another_split_of_a_dataset_is_another_row(registry: Registry, dataset: int) -> None:
    other = registry.sources.record_dataset(
        name="medical/icd10",
        fingerprint="rows-1",
        split_fingerprint="split-2",
        rows=100,
        license="public domain",
        source="made in memory",
        counts={},
    )
    assert [row.id for row in registry.sources.list_datasets(name="medical/icd10")] == [
        other,
        dataset,
    ]


def test_datasets_are_listed_as_recorded(registry: Registry, dataset: int) -> None:
    (row,) = registry.sources.list_datasets()
    assert (row.rows, row.license, row.counts["test"]) == (100, "public domain", 20)


@pytest.mark.dialect
def test_times_are_aware_and_in_utc(registry: Registry, dataset: int) -> None:
    assert registry.sources.list_bases()[0].first_seen.utcoffset() == timedelta(0)


def test_lists_are_paged(registry: Registry, dataset: int) -> None:
    assert registry.sources.list_datasets(limit=1, offset=1) == []
    assert registry.sources.list_bases(limit=1, offset=1) == []
