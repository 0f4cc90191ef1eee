"""A schedule of requests, the same for every system, and when each was answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from timing import share


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request: seconds after the start, the adapter's number, the prompt as text and as ids."""

    due: float
    adapter: int
    text: str
    ids: list[int]


@dataclass(frozen=True, slots=True)
class Course:
    """How a request went; ``first`` token in seconds after it was due, ``end`` after the start."""

    first: float
    end: float


def zipf(count: int, adapters: int, seed: int) -> list[int]:
    """Adapters of requests: the k-th is asked for as often as 1/k (s = 1)."""
    weights = [1 / (place + 1) for place in range(adapters)]
    return random.Random(seed).choices(range(adapters), weights, k=count)


def poisson(count: int, per_second: float, seed: int) -> list[float]:
    """Times of arrival, the first at 0."""
    draw = random.Random(seed)
    return list(accumulate([0.0, *(draw.expovariate(per_second) for _ in range(count - 1))]))


def arrivals(
    prompts: Sequence[tuple[str, list[int]]], adapters: Sequence[int], due: Sequence[float]
) -> list[Arrival]:
    """Put together what was drawn."""
    return [
        Arrival(at, adapter, *prompt)
        for prompt, adapter, at in zip(prompts, adapters, due, strict=True)
    ]


def tokens_per_second(courses: Sequence[Course], new_tokens: int) -> float:
    """All new tokens over the time from the first arrival to the last answer."""
    return len(courses) * new_tokens / max(course.end for course in courses)


def first_tokens(courses: Sequence[Course]) -> tuple[float, float]:
    """Half, and 95 of 100, of the requests had their first token within so many seconds."""
    taken = [course.first for course in courses]
    return share(taken, 0.5), share(taken, 0.95)
