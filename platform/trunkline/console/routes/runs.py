"""Runs: a list, one run with its curves as it trains, and several runs over each other."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.contracts import Settings
from trunkline.errors import BusyError, NotFoundError, UsageError
from trunkline.registry.records import MetricRecord, RunRecord

if TYPE_CHECKING:
    from trunkline.console.app import Console

routes = Routes()

PAGE_SIZE = 100
MAX_OVERLAID = 8
MAX_POINTS = 400
"""Steps of a curve that a page shows; more are thinned out evenly. The JSON has them all."""

STREAMS = 1000
"""Streams that may be open at once."""

POLL_SECONDS = 1.0
_KEEP_ALIVE_POLLS = 15


@dataclass(frozen=True, slots=True)
class Curve:
    """A metric of a run over its steps: points for the chart, and figures of all steps."""

    name: str
    run: int
    steps: tuple[int, ...]
    values: tuple[float, ...]
    first: float
    last: float
    lowest: float
    lowest_step: int
    highest: float
    highest_step: int
    total: int


@routes.get("/runs")
def runs(view: View) -> Page:
    """The runs, newest first."""
    recipe, status = view.text("recipe"), view.text("status")
    listed = view.registry.runs.list(
        recipe=recipe or None,
        status=status or None,
        limit=PAGE_SIZE + 1,
        before=view.number("before"),
        scope=view.access.scope,
    )
    records = listed[:PAGE_SIZE]
    return Page(
        "runs.html",
        N_("Runs"),
        {
            "runs": records,
            "recipe": recipe,
            "status": status,
            "next": records[-1].number if len(listed) > PAGE_SIZE else None,
        },
        command="trunkline runs list" + (f" --recipe {recipe}" if _is_name(recipe) else ""),
        place="runs",
    )


@routes.get("/runs/overlay")
def overlay(view: View) -> Page:
    """The same metric of several runs in one chart."""
    numbers = [_number(text) for text in view.request.query_params.getlist("run") if text.strip()]
    numbers = list(dict.fromkeys(numbers))
    if len(numbers) > MAX_OVERLAID:
        raise UsageError(
            f"{len(numbers)} runs can't be told apart in one chart.",
            f"Choose at most {MAX_OVERLAID}.",
        )
    records = [_visible_run(view, number) for number in numbers]
    curves = [
        one
        for record in records
        for one in curves_of(record.number, view.registry.runs.metrics(record.number))
    ]
    return Page(
        "overlay.html",
        N_("Overlay of runs"),
        {"runs": records, "curves": curves},
        {"metrics": list(dict.fromkeys(one.name for one in curves))},
        command=f"trunkline runs plot {' '.join(map(str, numbers))} --out runs.svg"
        if numbers
        else None,
        place="runs",
    )


@routes.get("/runs/{number:int}")
def run(view: View) -> Page:
    """One run: settings, environment, curves and report."""
    record = _visible_run(view, view.path["number"])
    metrics = view.registry.runs.metrics(record.number)
    curves = curves_of(record.number, metrics)
    return Page(
        "run.html",
        f"run/{record.number}",
        {"run": record, "curves": curves, "metrics": metrics},
        {"changed": _changed(record), "charts_of": list(dict.fromkeys(c.name for c in curves))},
        command=f"trunkline runs show {record.number}",
        place="runs",
    )


@routes.stream("/runs/{number:int}/stream")
async def stream(console: Console, view: View) -> Response:
    """Server-sent events: ``changed`` when the run has a new figure, ``ended`` at its end."""
    record = await console.run(_visible_run, view, view.path["number"])
    feeds = console.feeds
    feed = feeds.get(record.number)
    if sum(one.listeners for one in feeds.values()) >= STREAMS:
        raise BusyError(f"{STREAMS:,} streams are open, which is the limit.", "Retry later.")
    if feed is None:
        feed = feeds[record.number] = Feed(console, record.number)
    return StreamingResponse(feed.events(), media_type="text/event-stream")


class Feed:
    """Watches one run for all of its listeners, with one query in each interval."""

    def __init__(self, console: Console, number: int) -> None:
        self._console = console
        self._number = number
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._mark: tuple[str, int] = "", -1
        self.listeners = 0

    async def events(self) -> AsyncIterator[str]:
        """The events of one listener, until the run ends or the server stops."""
        self.listeners += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        seen: tuple[str, int] | None = None
        quiet = 0
        try:
            yield "retry: 2000\n\n"
            while not self._console.service.draining:
                if self._mark != seen and self._mark[1] >= 0:
                    seen, quiet = self._mark, 0
                    yield f"id: {seen[1]}\nevent: changed\ndata: {seen[1]}\n\n"
                    if seen[0] != "running":
                        yield f"event: ended\ndata: {seen[0]}\n\n"
                        return
                async with self._changed:
                    await self._changed.wait()
                quiet += 1
                if quiet >= _KEEP_ALIVE_POLLS:
                    quiet = 0
                    yield ": alive\n\n"
        finally:
            self.listeners -= 1
            if not self.listeners and self._task is not None:
                self._task.cancel()
                self._task = None
                self._console.feeds.pop(self._number, None)

    async def _watch(self) -> None:
        while True:
            progress = self._console.service.registry.runs.progress
            self._mark = await self._console.run(progress, self._number)
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(POLL_SECONDS)


def curves_of(number: int, metrics: Sequence[MetricRecord]) -> list[Curve]:
    """The curves of a run, those of the loss first."""
    by_name: dict[str, list[MetricRecord]] = {}
    for metric in metrics:
        by_name.setdefault(metric.name, []).append(metric)
    return [
        _curve(number, name, by_name[name])
        for name in sorted(by_name, key=lambda name: (_rank(name), name))
    ]


def _rank(name: str) -> int:
    order = ("loss", "validation.loss", "validation", "learning_rate", "grad_norm")
    return next((index for index, one in enumerate(order) if name.startswith(one)), len(order))


def _curve(number: int, name: str, points: Sequence[MetricRecord]) -> Curve:
    stride = max(1, -(-len(points) // MAX_POINTS))
    shown = [one for index, one in enumerate(points) if index % stride == 0 or one is points[-1]]
    finite = [one for one in points if math.isfinite(one.value)] or list(points)
    lowest = min(finite, key=lambda one: one.value)
    highest = max(finite, key=lambda one: one.value)
    return Curve(
        name=name,
        run=number,
        steps=tuple(one.step for one in shown),
        values=tuple(one.value for one in shown),
        first=points[0].value,
        last=points[-1].value,
        lowest=lowest.value,
        lowest_step=lowest.step,
        highest=highest.value,
        highest_step=highest.step,
        total=len(points),
    )


def _visible_run(view: View, number: int) -> RunRecord:
    """A run of a recipe that the key covers; the error is the same as for an unknown number."""
    problem = NotFoundError(f"There is no run {number}.", "List them under Runs.")
    try:
        record = view.registry.runs.get(number)
    except NotFoundError:
        raise problem from None
    if not view.access.may_use(record.recipe) and not view.access.sees_everything:
        raise problem
    return record


def _number(text: str) -> int:
    digits = text.strip().removeprefix("run/")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= 9):
        raise UsageError(f"{text[:40]!r} is not the number of a run.", "Write for example 3.")
    return int(digits)


def _is_name(recipe: str) -> bool:
    return bool(recipe) and recipe.replace("/", "").replace("-", "").isalnum() and recipe.isascii()


def _changed(run: RunRecord) -> Mapping[str, Any]:
    """The settings that differ from the platform's defaults."""
    defaults = {spec.name: spec.default for spec in fields(Settings)}
    return {name: value for name, value in run.settings.items() if defaults.get(name) != value}
