"""Runs from start to end, and their metrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from trunkline.errors import NotFoundError, RegistryError
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry

Start = Callable[..., int]


def test_a_started_run_is_running(registry: Registry, start: Start) -> None:
    run = registry.runs.get(start())
    assert (run.number, run.status, run.finished) == (1, "running", None)


@pytest.mark.dialect
def test_a_run_has_its_sources_and_settings(registry: Registry, start: Start) -> None:
    run = registry.runs.get(start())
    assert (run.base_name, run.dataset, run.split_fingerprint, run.seed, run.settings) == (
        "tiny",
        "medical/icd10",
        "split-1",
        1,
        {"r": 8},
    )


def test_a_run_names_its_plugin(registry: Registry, dataset: int) -> None:
    plugin = registry.sources.record_plugin(
        distribution="trunkline-medical", version="1.0", api=1, domain="medical"
    )
    run = registry.runs.start(
        recipe="medical/icd10",
        base_digest=registry.sources.list_bases()[0].digest,
        dataset_id=dataset,
        plugin_id=plugin,
        seed=0,
        settings={},
        environment={},
    )
    assert registry.runs.get(run).plugin == "trunkline-medical 1.0"


def test_a_run_on_an_unrecorded_base_is_refused(registry: Registry, dataset: int) -> None:
    with pytest.raises(NotFoundError, match="no base"):
        registry.runs.start(
            recipe="medical/icd10",
            base_digest="sha256:unknown",
            dataset_id=dataset,
            seed=0,
            settings={},
            environment={},
        )
    assert registry.runs.list() == []


def test_a_finished_run_stores_its_report(registry: Registry, start: Start) -> None:
    number = start()
    registry.runs.finish(number, "finished", report={"rows": 70, "loss": math.nan})
    run = registry.runs.get(number)
    assert run.status == "finished"
    assert run.report == {"rows": 70, "loss": None}
    assert run.finished is not None


def test_a_failed_run_stores_its_error(registry: Registry, start: Start) -> None:
    number = start()
    registry.runs.finish(number, "failed", error="The loss is not a number.")
    assert registry.runs.get(number).error == "The loss is not a number."


def test_a_run_ends_once(registry: Registry, start: Start) -> None:
    number = start()
    registry.runs.finish(number, "interrupted")
    with pytest.raises(RegistryError, match="ended already"):
        registry.runs.finish(number, "finished")


def test_an_unknown_end_status_is_refused(registry: Registry, start: Start) -> None:
    with pytest.raises(RegistryError, match="paused"):
        registry.runs.finish(start(), "paused")


def test_an_interrupted_run_can_be_resumed(registry: Registry, start: Start) -> None:
    number = start()
    registry.runs.finish(number, "interrupted")
    registry.runs.resume(number)
    run = registry.runs.get(number)
    assert (run.status, run.finished) == ("running", None)


def test_a_finished_run_is_not_resumed(registry: Registry, start: Start) -> None:
    number = start()
    registry.runs.finish(number, "finished")
    with pytest.raises(RegistryError, match="nothing to resume"):
        registry.runs.resume(number)


@pytest.mark.parametrize("number", [0, -1, 99, 2**70])
def test_an_unknown_run_is_refused_with_a_hint(registry: Registry, number: int) -> None:
    with pytest.raises(NotFoundError, match=str(number)) as caught:
        registry.runs.get(number)
    assert "trunkline runs list" in (caught.value.hint or "")


def test_runs_are_listed_newest_first_by_recipe_and_page(registry: Registry, start: Start) -> None:
    for recipe in ("medical/a", "medical/b", "medical/a", "medical/a"):
        start(recipe)
    listed = registry.runs.list(recipe="medical/a", limit=2, before=4)
    assert [run.number for run in listed] == [3, 1]


def test_a_run_names_the_versions_it_published(
    registry: Registry, publish: Callable[..., VersionRecord]
) -> None:
    version = publish()
    assert version.run is not None
    assert registry.runs.get(version.run).versions == ("medical/icd10@1",)


def test_every_start_and_end_of_a_run_is_an_event(registry: Registry, start: Start) -> None:
    number = start()
    registry.runs.finish(number, "interrupted")
    registry.runs.resume(number)
    registry.runs.finish(number, "finished", actor="ada")
    events = registry.events.list(subject=f"run/{number}")
    assert [event.kind for event in reversed(events)] == [
        "run.started",
        "run.interrupted",
        "run.resumed",
        "run.finished",
    ]
    assert events[0].actor == "ada"
    assert events[1].actor.startswith("system:")


def test_metrics_are_listed_by_step_and_name(registry: Registry, start: Start) -> None:
    run = start()
    registry.runs.log_metrics(run, 20, {"loss": 0.5, "accuracy": 0.8})
    registry.runs.log_metrics(run, 10, {"loss": 1.5})
    figures = [(row.step, row.name, row.value) for row in registry.runs.metrics(run)]
    assert figures == [(10, "loss", 1.5), (20, "accuracy", 0.8), (20, "loss", 0.5)]


@pytest.mark.dialect
def test_a_metric_logged_again_is_replaced(registry: Registry, start: Start) -> None:
    run = start()
    registry.runs.log_metrics(run, 10, {"loss": 1.5, "accuracy": 0.1})
    registry.runs.log_metrics(run, 10, {"loss": 1.0})
    figures = {row.name: row.value for row in registry.runs.metrics(run)}
    assert figures == {"loss": 1.0, "accuracy": 0.1}


@pytest.mark.dialect
def test_nan_and_infinity_are_stored(registry: Registry, start: Start) -> None:
    run = start()
    registry.runs.log_metrics(run, 1, {"a": math.nan, "b": math.inf})
    first, second = (row.value for row in registry.runs.metrics(run))
    assert math.isnan(first)
    assert second == math.inf


def test_metrics_are_filtered_by_name_and_paged(registry: Registry, start: Start) -> None:
    run = start()
    for step in range(5):
        registry.runs.log_metrics(run, step, {"loss": float(step), "other": 0.0})
    page = registry.runs.metrics(run, name="loss", limit=2, offset=3)
    assert [row.step for row in page] == [3, 4]


def test_metrics_of_an_unknown_run_are_refused(registry: Registry) -> None:
    with pytest.raises(NotFoundError):
        registry.runs.log_metrics(5, 1, {"loss": 1.0})
    with pytest.raises(NotFoundError):
        registry.runs.metrics(5)
