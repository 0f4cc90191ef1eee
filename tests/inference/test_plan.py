"""Every running answer gets its token; prompts share the rest of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from trunkline.inference.scheduler import plan_step


@dataclass(eq=False)
class Pending:
    """The part of a sequence that planning reads."""

    pending: int


def planned(pending: list[int], chunk: int) -> dict[int, int]:
    """Index among the running sequences → tokens of the next step."""
    running = [Pending(one) for one in pending]
    parts = plan_step(cast(Any, running), chunk)
    return {running.index(cast(Any, part.sequence)): part.tokens for part in parts}


@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 64))
def test_generating_sequences_get_one_token_and_prompts_their_budget(
    pending: list[int], chunk: int
) -> None:
    tokens = planned(pending, chunk)
    prompts = {index: one for index, one in enumerate(pending) if one > 1}
    assert all(tokens[index] == 1 for index, one in enumerate(pending) if one == 1)
    assert all(tokens.get(index, 0) <= one for index, one in prompts.items())
    spent = sum(tokens.get(index, 0) for index in prompts)
    assert spent == min(chunk, sum(prompts.values()))


def test_prompts_of_the_adapter_with_the_smallest_counter_go_first() -> None:
    running: list[Any] = [Pending(30), Pending(20), Pending(1)]
    parts = plan_step(running, 40, counter=lambda one: one.pending)
    assert [(part.sequence.pending, part.tokens) for part in parts] == [(1, 1), (20, 20), (30, 20)]


def test_the_first_prompt_goes_first() -> None:
    assert planned([30, 30], 40) == {0: 30, 1: 10}
    assert planned([60, 30], 40) == {0: 40}
