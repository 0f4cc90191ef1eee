"""One answer from several adapters: their probabilities or numbers, averaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trunkline.errors import UsageError
from trunkline.inference.request import Answer


def average(answers: Sequence[Answer]) -> Answer:
    """The average of the answers of different adapters to one text.

    A classification's label is the one with the highest mean probability; a regression's number is
    the mean. Names and digests are joined with ``+``; the counts are those of the first.

    Args:
        answers: one of each adapter, in the order of the adapters.

    Raises:
        UsageError: an adapter occurs twice, or they have different tasks, labels or units, or
            another task than these two.
    """
    first = answers[0]
    names = " + ".join(answer.adapter for answer in answers)
    usable = ("classification", "regression")
    if len({answer.task for answer in answers}) > 1 or first.task not in usable:
        tasks = ", ".join(dict.fromkeys(answer.task for answer in answers))
        raise UsageError(
            f"{names} can't be averaged: they are for {tasks}.",
            "Only classifications are averaged with each other, and regressions.",
        )
    repeated = [
        name for name, count in Counter(one.adapter for one in answers).items() if count > 1
    ]
    if repeated:
        raise UsageError(f"{repeated[0]} is named twice.", "Average different adapters.")
    common: dict[str, Any] = {
        "adapter": "+".join(answer.adapter for answer in answers),
        "digest": "+".join(answer.digest for answer in answers),
        "truncated": any(answer.truncated for answer in answers),
    }
    if first.task == "regression":
        if len({answer.unit for answer in answers}) > 1:
            raise UsageError(f"{names} predict numbers in different units.", "Use one unit.")
        values = [answer.value or 0.0 for answer in answers]
        return replace(first, **common, value=sum(values) / len(values))
    tables = [answer.probabilities or {} for answer in answers]
    if len({frozenset(table) for table in tables}) > 1:
        raise UsageError(f"{names} have different labels.", "Use adapters of one recipe.")
    mean = {label: sum(table[label] for table in tables) / len(tables) for label in tables[0]}
    return replace(
        first, **common, label=max(mean, key=lambda label: mean[label]), probabilities=mean
    )
