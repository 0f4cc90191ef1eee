"""An observer of an adapter pool receives every load and eviction, in order."""

from __future__ import annotations

from typing import Any

import pytest

from pools import FIRST, LAST, NEXT, acquired, artifacts, base, full, fused_layers, model
from trunkline.adapters.artifact import Artifact
from trunkline.lora.pool import AdapterPool

__all__ = ["artifacts", "base", "full", "fused_layers", "model"]

Events = list[tuple[str, str, bool]]


@pytest.fixture
def events(full: AdapterPool) -> Events:
    """What an observer of the full adapter pool receives after the adapters in memory."""
    received: Events = []
    full.observe(lambda *event: received.append(event))
    received.clear()
    return received


def test_adapters_in_memory_are_reported_first(
    full: AdapterPool, artifacts: list[Artifact]
) -> None:
    events: Events = []
    full.observe(lambda *event: events.append(event))
    expected = [(artifacts[index].digest, f"toy/{index}@1", True) for index in (FIRST, LAST)]
    assert events == expected


def test_eviction_is_reported_before_the_load_that_caused_it(
    full: AdapterPool, artifacts: list[Artifact], events: Events
) -> None:
    full.load(artifacts[NEXT], "toy/9@1")
    expected = [
        (artifacts[FIRST].digest, "toy/0@1", False),
        (artifacts[NEXT].digest, "toy/9@1", True),
    ]
    assert events == expected


def test_unloading_is_reported(
    full: AdapterPool, artifacts: list[Artifact], events: Events
) -> None:
    full.unload(artifacts[FIRST].digest)
    assert events == [(artifacts[FIRST].digest, "toy/0@1", False)]


def test_adapter_in_use_is_reported_when_its_last_request_ends(
    full: AdapterPool, artifacts: list[Artifact], events: Events
) -> None:
    resident = acquired(full, artifacts[FIRST])
    full.unload(artifacts[FIRST].digest)
    before = list(events)
    full.release(resident)
    assert (before, events) == ([], [(artifacts[FIRST].digest, "toy/0@1", False)])


def test_loading_a_loaded_adapter_reports_nothing(
    full: AdapterPool, artifacts: list[Artifact], events: Events
) -> None:
    full.load(artifacts[FIRST])
    assert events == []


def test_adapter_that_can_not_be_uploaded_is_reported_as_dropped(
    full: AdapterPool, artifacts: list[Artifact], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(full.lora_slots, "write", fail)
    with pytest.raises(MemoryError):
        full.load(artifacts[NEXT])
    assert [loaded for digest, _, loaded in events if digest == artifacts[NEXT].digest] == [
        True,
        False,
    ]


def test_removed_observer_receives_nothing(full: AdapterPool, artifacts: list[Artifact]) -> None:
    events: Events = []

    def observe(*event: Any) -> None:
        events.append(event)

    full.observe(observe)
    full.unobserve(observe)
    events.clear()
    full.unload(artifacts[FIRST].digest)
    assert events == []
