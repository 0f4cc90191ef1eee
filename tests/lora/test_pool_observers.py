"""Whoever watches a adapter pool knows what it holds, in the order in which it came to that."""

from __future__ import annotations

import pytest

from pools import FIRST, LAST, NEXT, acquired, base, full, fused_layers, made, model
from trunkline.adapters.artifact import Artifact
from trunkline.lora.pool import AdapterPool

__all__ = ["base", "full", "fused_layers", "made", "model"]

Seen = list[tuple[str, str, bool]]


@pytest.fixture
def seen(full: AdapterPool) -> Seen:
    """What a watcher of the full adapter pool was told after the adapters that it held already."""
    told: Seen = []
    full.observe(lambda *what: told.append(what))
    told.clear()
    return told


def test_what_is_in_memory_is_told_first(full: AdapterPool, made: list[Artifact]) -> None:
    told: Seen = []
    full.observe(lambda *what: told.append(what))
    wanted = [(made[index].digest, f"toy/{index}@1", True) for index in (FIRST, LAST)]
    assert told == wanted


def test_one_that_makes_room_leaves_before_the_other_comes(
    full: AdapterPool, made: list[Artifact], seen: Seen
) -> None:
    full.load(made[NEXT], "toy/9@1")
    wanted = [(made[FIRST].digest, "toy/0@1", False), (made[NEXT].digest, "toy/9@1", True)]
    assert seen == wanted


def test_unloading_is_told(full: AdapterPool, made: list[Artifact], seen: Seen) -> None:
    full.unload(made[FIRST].digest)
    assert seen == [(made[FIRST].digest, "toy/0@1", False)]


def test_one_in_use_leaves_when_its_last_request_ends(
    full: AdapterPool, made: list[Artifact], seen: Seen
) -> None:
    resident = acquired(full, made[FIRST])
    full.unload(made[FIRST].digest)
    before = list(seen)
    full.release(resident)
    assert (before, seen) == ([], [(made[FIRST].digest, "toy/0@1", False)])


def test_loading_what_is_loaded_tells_nothing(
    full: AdapterPool, made: list[Artifact], seen: Seen
) -> None:
    full.load(made[FIRST])
    assert seen == []


def test_one_that_can_not_be_placed_has_left_again(
    full: AdapterPool, made: list[Artifact], seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(full._lora_slots, "write", fail)
    with pytest.raises(MemoryError):
        full.load(made[NEXT])
    assert [loaded for digest, _, loaded in seen if digest == made[NEXT].digest] == [True, False]


def test_who_watches_no_more_is_told_nothing(full: AdapterPool, made: list[Artifact]) -> None:
    told: Seen = []
    watch = lambda *what: told.append(what)  # noqa: E731
    full.observe(watch)
    full.unobserve(watch)
    told.clear()
    full.unload(made[FIRST].digest)
    assert told == []
