"""Placement: few replicas for an adapter, none overloaded, little movement."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.serving.placement import BOUND, order, place

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
ADAPTERS = [f"toy/adapter-{number}@1" for number in range(400)]


@given(st.text(), NAMES, st.randoms())
def test_order_depends_on_the_names_alone(adapter: str, names: list[str], random: object) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert order(adapter, names) == order(adapter, shuffled)
    assert sorted(order(adapter, names)) == sorted(names)


@given(st.text(), st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 50), min_size=1))
def test_no_replica_is_given_more_than_the_bound(adapter: str, loads: dict[str, int]) -> None:
    replica = place(adapter, loads)
    mean = (sum(loads.values()) + 1) / len(loads)
    assert loads[replica] + 1 <= math.ceil(BOUND * mean)


@given(st.text(), NAMES)
def test_an_idle_fleet_gives_the_first_of_the_order(adapter: str, names: list[str]) -> None:
    loads = dict.fromkeys(names, 0)
    assert place(adapter, loads) == order(adapter, names)[0]
    busy = loads | {order(adapter, names)[0]: 1000}
    assert place(adapter, busy, math.inf) == order(adapter, names)[0]


def test_a_replica_that_leaves_moves_its_adapters_alone() -> None:
    names = [f"replica-{number}" for number in range(8)]
    before = {adapter: order(adapter, names)[0] for adapter in ADAPTERS}
    after = {adapter: order(adapter, names[:-1])[0] for adapter in ADAPTERS}
    moved = {adapter for adapter in ADAPTERS if before[adapter] != after[adapter]}
    assert moved == {adapter for adapter in ADAPTERS if before[adapter] == names[-1]}


def test_adapters_are_spread_over_the_replicas() -> None:
    counts = Counter(order(adapter, ["a", "b", "c", "d"])[0] for adapter in ADAPTERS)
    assert len(counts) == 4
    assert min(counts.values()) > len(ADAPTERS) / 8


def test_a_hot_adapter_spreads_as_it_is_requested() -> None:
    loads: dict[str, float] = dict.fromkeys(("a", "b", "c", "d"), 0)
    for _ in range(100):
        loads[place("toy/hot@1", loads)] += 1
    assert max(loads.values()) <= math.ceil(BOUND * 25)


@pytest.mark.parametrize("bound", [1.0, 2.0])
def test_the_bound_is_a_setting(bound: float) -> None:
    loads: dict[str, float] = {"a": 0, "b": 0}
    for _ in range(10):
        loads[place("toy/hot@1", loads, bound)] += 1
    assert max(loads.values()) == 5 * min(bound, 2.0)
