"""Curves of runs: the points that a page shows, and figures of all points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from trunkline.registry.records import TOKENS, MetricRecord, RunRecord

MAX_POINTS = 300
"""Points of a curve that a page shows; more are thinned out evenly. The JSON has them all."""

MAX_METRICS = 200_000
"""Stored figures of a run that are read."""

Better = Literal["lowest", "highest"]
HigherIsBetter = Callable[[str], bool | None]
"""Whether more is better of a metric of this name; None if the metric is unknown."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric of a run: points for the chart, and figures of all points.

    Attributes:
        seconds: of each point, since the run started; None if a point's time is unknown.
        tokens: trained on until each point; None if the run does not log them.
        best: which end is the best value; None where neither is, as of a learning rate.
        total: how many points are stored.
    """

    name: str
    run: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    seconds: tuple[float, ...] | None
    tokens: tuple[float, ...] | None
    best: Better | None
    first: float
    last: float
    lowest: float
    lowest_step: int
    highest: float
    highest_step: int
    total: int

    def rows(self) -> list[tuple[str, ...]]:
        """The points as texts: the step, perhaps the tokens and the seconds, and the value."""
        columns: list[Sequence[str]] = [tuple(map(str, self.steps))]
        if self.tokens is not None:
            columns.append([f"{one:.0f}" for one in self.tokens])
        if self.seconds is not None:
            columns.append([f"{one:.1f}" for one in self.seconds])
        columns.append([f"{one:.6g}" for one in self.values])
        return list(zip(*columns, strict=True))


def curves_of(
    run: RunRecord, metrics: Sequence[MetricRecord], higher_is_better: HigherIsBetter
) -> list[Curve]:
    """The curves of a run, those of the loss first."""
    by_name: dict[str, list[MetricRecord]] = {}
    for metric in metrics:
        by_name.setdefault(metric.name, []).append(metric)
    tokens = {one.step: one.value for one in by_name.pop(TOKENS, ())}
    return [
        _curve(run, name, by_name[name], tokens, _better(name, higher_is_better))
        for name in sorted(by_name, key=lambda name: (_rank(name), name))
    ]


def axes_of(curves: Sequence[Curve]) -> list[str]:
    """What every one of the curves can be drawn over: steps, perhaps tokens and time."""
    axes = ["step"]
    if curves and all(one.tokens is not None for one in curves):
        axes.append("tokens")
    if curves and all(one.seconds is not None for one in curves):
        axes.append("time")
    return axes


def _rank(name: str) -> int:
    order = ("loss", "validation.loss", "validation", "learning_rate", "grad_norm")
    return next((index for index, one in enumerate(order) if name.startswith(one)), len(order))


def _better(name: str, higher_is_better: HigherIsBetter) -> Better | None:
    kind = name.rpartition(".")[2]
    if kind == "loss":
        return "lowest"
    if not name.startswith("validation."):
        return None
    higher = higher_is_better(kind)
    return None if higher is None else "highest" if higher else "lowest"


def _curve(
    run: RunRecord,
    name: str,
    points: Sequence[MetricRecord],
    tokens: Mapping[int, float],
    best: Better | None,
) -> Curve:
    stride = max(1, -(-len(points) // MAX_POINTS))
    shown = [one for index, one in enumerate(points) if index % stride == 0 or one is points[-1]]
    finite = [one for one in points if math.isfinite(one.value)] or list(points)
    lowest = min(finite, key=lambda one: one.value)
    highest = max(finite, key=lambda one: one.value)
    times = [one.at for one in shown if one.at is not None]
    counted = [tokens[one.step] for one in shown if one.step in tokens]
    return Curve(
        name=name,
        run=run.number,
        steps=tuple(one.step for one in shown),
        values=tuple(one.value for one in shown),
        seconds=(
            tuple(max(0.0, round((at - run.started).total_seconds(), 1)) for at in times)
            if len(times) == len(shown)
            else None
        ),
        tokens=tuple(counted) if len(counted) == len(shown) else None,
        best=best,
        first=points[0].value,
        last=points[-1].value,
        lowest=lowest.value,
        lowest_step=lowest.step,
        highest=highest.value,
        highest_step=highest.step,
        total=len(points),
    )
