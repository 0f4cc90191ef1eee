"""An observer of an adapter pool receives every load and eviction, in order."""

from __future__ import annotations

from typing import Any

import pytest

from pools import FIRST, LAST, NEXT, acquired, base, full, fused_layers, made, model
from trunkline.adapters.artifact import Artifact
from trunkline.lora.pool import AdapterPool

__all__ = ["base", "full", "fused_layers", "made", "model"]

Events = list[tuple[str, str, bool]]


@pytest.fixture
def events(full: AdapterPool) -> Events:
    """What an observer of the full adapter pool receives after the adapters in memory."""
    received: Events = []
    full.observe(lambda *event: received.append(event))
    received.clear()
    return received


def test_adapters_in_memory_are_reported_first(full: AdapterPool, made: list[Artifact]) -> None:
    events: Events = []
    full.observe(lambda *event: events.append(event))
    expected = [(made[index].digest, f"toy/{index}@1", True) for index in (FIRST, LAST)]
    assert events == expected


def test_eviction_is_reported_before_the_load_that_caused_it(
    full: AdapterPool, made: list[Artifact], events: Events
) -> None:
    full.load(made[NEXT], "toy/9@1")
    expected = [(made[FIRST].digest, "toy/0@1", False), (made[NEXT].digest, "toy/9@1", True)]
    assert events == expected


def test_unloading_is_reported(full: AdapterPool, made: list[Artifact], events: Events) -> None:
    full.unload(made[FIRST].digest)
    assert events == [(made[FIRST].digest, "toy/0@1", False)]


def test_adapter_in_use_is_reported_when_its_last_request_ends(
    full: AdapterPool, made: list[Artifact], events: Events
) -> None:
    resident = acquired(full, made[FIRST])
    full.unload(made[FIRST].digest)
    before = list(events)
    full.release(resident)
    assert (before, events) == ([], [(made[FIRST].digest, "toy/0@1", False)])


def test_loading_a_loaded_adapter_reports_nothing(
    full: AdapterPool, made: list[Artifact], events: Events
) -> None:
    full.load(made[FIRST])
    assert events == []


def test_adapter_that_can_not_be_uploaded_is_reported_as_dropped(
    full: AdapterPool, made: list[Artifact], events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(full.lora_slots, "write", fail)
    with pytest.raises(MemoryError):
        full.load(made[NEXT])
    assert [loaded for digest, _, loaded in events if digest == made[NEXT].digest] == [True, False]


def test_removed_observer_receives_nothing(full: AdapterPool, made: list[Artifact]) -> None:
    events: Events = []

    def observe(*event: Any) -> None:
        events.append(event)

    full.observe(observe)
    full.unobserve(observe)
    events.clear()
    full.unload(made[FIRST].digest)
    assert events == []
