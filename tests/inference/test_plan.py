"""Every answer that is being written gets its token; prompts share the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from trunkline.inference.step import plan


@dataclass(eq=False)
class Pending:
    """As much of a sequence as planning looks at."""

    pending: int


def planned(pending: list[int], chunk: int) -> dict[int, int]:
    """Place among the running → tokens of the next step."""
    running = [Pending(one) for one in pending]
    parts = plan(cast(Any, running), chunk)
    return {running.index(cast(Any, part.sequence)): part.tokens for part in parts}


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 64))
def test_writers_get_one_token_and_prompts_their_budget(pending: list[int], chunk: int) -> None:
    given_out = planned(pending, chunk)
    prompts = {place: one for place, one in enumerate(pending) if one > 1}
    assert all(given_out[place] == 1 for place, one in enumerate(pending) if one == 1)
    assert all(given_out.get(place, 0) <= one for place, one in prompts.items())
    spent = sum(given_out.get(place, 0) for place in prompts)
    assert spent == min(chunk, sum(prompts.values()))


def test_prompts_of_whom_was_served_least_go_first() -> None:
    running: list[Any] = [Pending(30), Pending(20), Pending(1)]
    parts = plan(running, 40, served=lambda one: one.pending)
    assert [(part.sequence.pending, part.tokens) for part in parts] == [(1, 1), (20, 20), (30, 20)]


def test_the_first_prompt_goes_first() -> None:
    assert planned([30, 30], 40) == {0: 30, 1: 10}
    assert planned([60, 30], 40) == {0: 40}
