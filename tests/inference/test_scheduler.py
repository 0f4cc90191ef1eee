"""A flood for one adapter delays itself, not the others."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.inference.scheduler import WaitQueue

Item = tuple[str, int]


class House:
    """Some rows; each item that is seated gets one step of a prompt and leaves when told."""

    def __init__(self, rows: int = 1) -> None:
        self.waiting: WaitQueue[Item] = WaitQueue()
        self.rows = rows
        self.seated: list[Item] = []
        self.order: list[Item] = []

    def come(self, key: str, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            self.waiting.add(key, (key, number))

    def admit(self) -> None:
        for item in self.waiting.admit(self._take):
            self.seated.append(item)
            self.order.append(item)

    def serve(self, prompt: int = 10, new: int = 1) -> None:
        for key, _ in self.seated:
            self.waiting.served(key, prompt, new)

    def leave(self, place: int = 0) -> None:
        key, _ = self.seated.pop(place)
        self.waiting.ended(key)

    def turn(self) -> None:
        """Everybody who is seated is served and the first one leaves; the row is given anew."""
        self.admit()
        self.serve()
        self.leave()

    def _take(self, key: str, item: Item) -> bool | None:
        return True if len(self.seated) < self.rows else None


def keys(order: list[Item]) -> list[str]:
    return [key for key, _ in order]


def test_five_are_admitted_soon_though_a_thousand_came_before_them() -> None:
    house = House(rows=4)
    house.come("flood", 1000)
    for _ in range(50):
        house.turn()
    house.come("few", 5)
    begun = len(house.order)
    for _ in range(20):
        house.turn()
    assert keys(house.order[begun : begun + 11]).count("few") == 5


def test_five_get_rows_though_all_rows_are_free_at_once() -> None:
    house = House(rows=8)
    house.come("flood", 1000)
    house.come("few", 5)
    house.admit()
    assert Counter(keys(house.order)) == {"flood": 4, "few": 4}


def test_two_floods_are_served_evenly() -> None:
    house = House(rows=3)
    house.come("one", 500)
    house.come("other", 500)
    for _ in range(200):
        house.turn()
    counts = Counter(keys(house.order))
    assert abs(counts["one"] - counts["other"]) <= 6


def test_evenly_means_tokens_not_requests() -> None:
    house = House(rows=1)
    house.come("long", 300)
    house.come("short", 300)
    for _ in range(220):
        house.admit()
        house.waiting.served(house.seated[0][0], 100 if house.seated[0][0] == "long" else 10, 0)
        house.leave()
    counts = Counter(keys(house.order))
    assert 8 <= counts["short"] / counts["long"] <= 12


def test_first_come_is_first_served_within_an_adapter() -> None:
    house = House(rows=3)
    for start in range(0, 40, 4):
        house.come("one", 4, start)
        house.come("other", 4, start)
        house.turn()
    while house.seated or len(house.waiting):
        house.turn()
    for key in ("one", "other"):
        numbers = [number for name, number in house.order if name == key]
        assert numbers == sorted(numbers) == list(range(40))


def test_front_goes_before_those_that_wait() -> None:
    house = House()
    house.come("one", 2)
    house.waiting.add("one", ("one", 99), front=True)
    house.turn()
    assert house.order == [("one", 99)]


def test_an_adapter_that_paused_is_not_privileged() -> None:
    house = House(rows=1)
    house.come("busy", 500)
    house.come("pausing", 1)
    for _ in range(200):
        house.turn()
    house.come("pausing", 100)
    begun = len(house.order)
    for _ in range(40):
        house.turn()
    counts = Counter(keys(house.order[begun:]))
    assert abs(counts["busy"] - counts["pausing"]) <= 2


def test_a_pause_does_not_pay_a_debt() -> None:
    house = House(rows=1)
    house.come("greedy", 1)
    house.come("other", 100)
    house.admit()
    house.serve(prompt=1000)
    house.leave()
    house.turn()
    house.come("greedy", 1)
    for _ in range(50):
        house.turn()
    assert keys(house.order).count("greedy") == 1


def test_no_for_an_adapter_lets_others_pass() -> None:
    waiting: WaitQueue[Item] = WaitQueue()
    for key in ("absent", "here"):
        for number in range(3):
            waiting.add(key, (key, number))
    given_out = list(waiting.admit(lambda key, _: key == "here"))
    assert given_out == [("here", 0), ("here", 1), ("here", 2)]
    assert len(waiting) == 3
    assert list(waiting.admit(lambda key, _: True)) == [("absent", number) for number in range(3)]


def test_no_for_anybody_ends_the_round() -> None:
    waiting: WaitQueue[Item] = WaitQueue()
    for number in range(3):
        waiting.add("one", ("one", number))
    waiting.add("other", ("other", 0))
    asked: list[Item] = []

    def take(key: str, item: Item) -> bool | None:
        asked.append(item)
        return True if len(asked) == 1 else None

    assert len(list(waiting.admit(take))) == 1
    assert len(asked) == 2
    assert len(waiting) == 3


def test_removed_items_are_gone_and_the_rest_keeps_its_order() -> None:
    waiting: WaitQueue[Item] = WaitQueue()
    for number in range(4):
        waiting.add("one", ("one", number))
    waiting.add("other", ("other", 1))
    removed = waiting.remove(lambda item: item[1] % 2 == 1)
    assert sorted(removed) == [("one", 1), ("one", 3), ("other", 1)]
    assert list(waiting.admit(lambda key, _: True)) == [("one", 0), ("one", 2)]
    assert len(waiting) == 0


def test_nothing_is_remembered_when_all_is_done() -> None:
    house = House(rows=2)
    for number in range(50):
        house.come(f"adapter{number}", 1)
    while len(house.waiting):
        house.turn()
    while house.seated:
        house.leave()
    assert house.waiting._counters == {}
    assert house.waiting._running == {}


def test_counters_of_the_idle_are_bounded_while_somebody_is_busy() -> None:
    house = House(rows=2)
    house.come("busy", 1)
    house.admit()
    for number in range(10_050):
        house.come(f"adapter{number}", 1)
        house.admit()
        house.leave(1)
    assert len(house.waiting._counters) < 10_010
    assert "busy" in house.waiting._counters


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("cast"), st.sampled_from("xyz")), max_size=80))
def test_every_item_is_given_once_whatever_happens(steps: list[tuple[str, str]]) -> None:
    house = House(rows=2)
    come: list[Item] = []
    gone: list[Item] = []
    for what, key in steps:
        if what == "c":
            come.append((key, len(come)))
            house.waiting.add(key, come[-1])
        elif what == "a":
            house.admit()
        elif what == "s":
            house.serve()
        elif house.seated:
            house.leave()
        else:
            gone += house.waiting.remove(lambda item: item[0] == key)  # noqa: B023
    while house.seated or len(house.waiting):
        house.turn()
    assert sorted(house.order + gone) == sorted(come)
