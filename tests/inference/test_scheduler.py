"""A flood of requests for one adapter delays those requests, not others."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.inference.scheduler import WaitQueue

Item = tuple[str, int]


class Simulation:
    """Some rows; each running item gets one step of a prompt and ends when the test says so."""

    def __init__(self, rows: int = 1) -> None:
        self.waiting: WaitQueue[Item] = WaitQueue()
        self.rows = rows
        self.running: list[Item] = []
        self.order: list[Item] = []

    def arrive(self, key: str, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.waiting.add(key, (key, number))

    def admit(self) -> None:
        for item in self.waiting.admit(self._try_start):
            self.running.append(item)
            self.order.append(item)

    def serve(self, prompt: int = 10, new: int = 1) -> None:
        for key, _ in self.running:
            self.waiting.count_served(key, prompt, new)

    def end(self, index: int = 0) -> None:
        key, _ = self.running.pop(index)
        self.waiting.end(key)

    def turn(self) -> None:
        """All running items are served, and the first one ends."""
        self.admit()
        self.serve()
        self.end()

    def _try_start(self, key: str, item: Item) -> bool | None:
        return True if len(self.running) < self.rows else None


def keys(order: list[Item]) -> list[str]:
    return [key for key, _ in order]


def test_five_are_admitted_soon_after_a_thousand_of_another_adapter() -> None:
    simulation = Simulation(rows=4)
    simulation.arrive("flood", 1000)
    for _ in range(50):
        simulation.turn()
    simulation.arrive("few", 5)
    begun = len(simulation.order)
    for _ in range(20):
        simulation.turn()
    assert keys(simulation.order[begun : begun + 11]).count("few") == 5


def test_free_rows_are_shared_evenly() -> None:
    simulation = Simulation(rows=8)
    simulation.arrive("flood", 1000)
    simulation.arrive("few", 5)
    simulation.admit()
    assert Counter(keys(simulation.order)) == {"flood": 4, "few": 4}


def test_two_floods_are_served_evenly() -> None:
    simulation = Simulation(rows=3)
    simulation.arrive("one", 500)
    simulation.arrive("other", 500)
    for _ in range(200):
        simulation.turn()
    counts = Counter(keys(simulation.order))
    assert abs(counts["one"] - counts["other"]) <= 6


def test_fairness_counts_tokens_not_requests() -> None:
    simulation = Simulation(rows=1)
    simulation.arrive("long", 300)
    simulation.arrive("short", 300)
    for _ in range(220):
        simulation.admit()
        simulation.waiting.count_served(
            simulation.running[0][0], 100 if simulation.running[0][0] == "long" else 10, 0
        )
        simulation.end()
    counts = Counter(keys(simulation.order))
    assert 8 <= counts["short"] / counts["long"] <= 12


def test_first_come_is_first_served_within_an_adapter() -> None:
    simulation = Simulation(rows=3)
    for start in range(0, 40, 4):
        simulation.arrive("one", 4, start)
        simulation.arrive("other", 4, start)
        simulation.turn()
    while simulation.running or len(simulation.waiting):
        simulation.turn()
    for key in ("one", "other"):
        numbers = [number for name, number in simulation.order if name == key]
        assert numbers == sorted(numbers) == list(range(40))


def test_front_goes_before_those_that_wait() -> None:
    simulation = Simulation()
    simulation.arrive("one", 2)
    simulation.waiting.add("one", ("one", 99), front=True)
    simulation.turn()
    assert simulation.order == [("one", 99)]


def test_an_adapter_that_paused_has_no_privilege() -> None:
    simulation = Simulation(rows=1)
    simulation.arrive("busy", 500)
    simulation.arrive("pausing", 1)
    for _ in range(200):
        simulation.turn()
    simulation.arrive("pausing", 100)
    begun = len(simulation.order)
    for _ in range(40):
        simulation.turn()
    counts = Counter(keys(simulation.order[begun:]))
    assert abs(counts["busy"] - counts["pausing"]) <= 2


def test_a_pause_does_not_reset_a_counter() -> None:
    simulation = Simulation(rows=1)
    simulation.arrive("greedy", 1)
    simulation.arrive("other", 100)
    simulation.admit()
    simulation.serve(prompt=1000)
    simulation.end()
    simulation.turn()
    simulation.arrive("greedy", 1)
    for _ in range(50):
        simulation.turn()
    assert keys(simulation.order).count("greedy") == 1


def test_adapter_that_can_not_start_lets_others_pass() -> None:
    waiting: WaitQueue[Item] = WaitQueue()
    for key in ("absent", "present"):
        for number in range(3):
            waiting.add(key, (key, number))
    admitted = list(waiting.admit(lambda key, _: key == "present"))
    assert admitted == [("present", 0), ("present", 1), ("present", 2)]
    assert len(waiting) == 3
    assert list(waiting.admit(lambda key, _: True)) == [("absent", number) for number in range(3)]


def test_round_ends_if_nothing_can_start() -> None:
    waiting: WaitQueue[Item] = WaitQueue()
    for number in range(3):
        waiting.add("one", ("one", number))
    waiting.add("other", ("other", 0))
    tried: list[Item] = []

    def try_start(key: str, item: Item) -> bool | None:
        tried.append(item)
        return True if len(tried) == 1 else None

    assert len(list(waiting.admit(try_start))) == 1
    assert len(tried) == 2
    assert len(waiting) == 3


def test_removing_items_keeps_the_order_of_the_others() -> None:
    waiting: WaitQueue[Item] = WaitQueue()
    for number in range(4):
        waiting.add("one", ("one", number))
    waiting.add("other", ("other", 1))
    removed = waiting.remove(lambda item: item[1] % 2 == 1)
    assert sorted(removed) == [("one", 1), ("one", 3), ("other", 1)]
    assert list(waiting.admit(lambda key, _: True)) == [("one", 0), ("one", 2)]
    assert len(waiting) == 0


def test_nothing_is_remembered_when_all_has_ended() -> None:
    simulation = Simulation(rows=2)
    for number in range(50):
        simulation.arrive(f"adapter{number}", 1)
    while len(simulation.waiting):
        simulation.turn()
    while simulation.running:
        simulation.end()
    assert not simulation.waiting.counters


def test_counters_of_idle_adapters_are_bounded() -> None:
    simulation = Simulation(rows=2)
    simulation.arrive("busy", 1)
    simulation.admit()
    for number in range(10_050):
        simulation.arrive(f"adapter{number}", 1)
        simulation.admit()
        simulation.end(1)
    assert len(simulation.waiting.counters) < 10_010
    assert "busy" in simulation.waiting.counters


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("cast"), st.sampled_from("xyz")), max_size=80))
def test_every_item_is_admitted_or_removed_once(steps: list[tuple[str, str]]) -> None:
    simulation = Simulation(rows=2)
    arrived: list[Item] = []
    removed: list[Item] = []
    for action, key in steps:
        if action == "c":
            arrived.append((key, len(arrived)))
            simulation.waiting.add(key, arrived[-1])
        elif action == "a":
            simulation.admit()
        elif action == "s":
            simulation.serve()
        elif simulation.running:
            simulation.end()
        else:
            removed += simulation.waiting.remove(lambda item: item[0] == key)  # noqa: B023
    while simulation.running or len(simulation.waiting):
        simulation.turn()
    assert sorted(simulation.order + removed) == sorted(arrived)
