"""Runs: a list, one run with its curves as it trains, and several runs over each other."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from trunkline.console.curves import MAX_METRICS, Curve, axes_of, curves_of
from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.contracts import Settings
from trunkline.errors import BusyError, NotFoundError, TrunklineError, UsageError
from trunkline.registry.records import MetricRecord, RunRecord
from trunkline.training.stopping import is_resumable, is_trained

if TYPE_CHECKING:
    from trunkline.console.app import Console

routes = Routes()

PAGE_SIZE = 100
MAX_OVERLAID = 8
STREAMS = 1000
"""Streams that may be open at once."""

STREAMS_OF_KEY = 100
"""Of these, the streams of one key, so that one person can't take all of them."""

POLL_SECONDS = 1.0
_KEEP_ALIVE_POLLS = 15


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
    named = view.request.query_params.getlist("run")[:PAGE_SIZE]
    numbers = [_number(text) for one in named for text in one.replace(",", " ").split()]
    numbers = list(dict.fromkeys(numbers))
    if len(numbers) > MAX_OVERLAID:
        raise UsageError(
            f"{len(numbers)} runs can't be told apart in one chart.",
            f"Choose at most {MAX_OVERLAID}.",
        )
    records = [visible_run(view, number) for number in numbers]
    curves = [one for record in records for one in _curves(view, record)[0]]
    return Page(
        "overlay.html",
        N_("Overlay of runs"),
        {"runs": records, "curves": curves},
        {
            "metrics": list(dict.fromkeys(one.name for one in curves)),
            "axes": axes_of(curves),
            "most": MAX_OVERLAID,
        },
        command=f"trunkline runs plot {' '.join(map(str, numbers))} --out runs.svg"
        if numbers
        else None,
        place="runs",
    )


@routes.get("/runs/{number:int}")
def run(view: View) -> Page:
    """One run: settings, environment, curves and report."""
    record = visible_run(view, view.path["number"])
    curves, metrics = _curves(view, record)
    folder = view.platform.workspace.run_path(record.number)
    return Page(
        "run.html",
        f"run/{record.number}",
        {"run": record, "curves": curves, "metrics": metrics},
        {
            "changed": _changed(record),
            "charts_of": list(dict.fromkeys(one.name for one in curves)),
            "axes": axes_of(curves),
            "trained": record.status == "running" and is_trained(folder),
            "resumable": is_resumable(folder, record.status),
        },
        command=f"trunkline runs show {record.number}",
        place="runs",
    )


@routes.stream("/runs/{number:int}/stream")
async def stream(console: Console, view: View) -> Response:
    """Server-sent events: ``changed`` when the run has a new figure, ``ended`` at its end."""
    record = await console.run(visible_run, view, view.path["number"])
    owner = "" if view.access.key is None else view.access.key.id
    feeds = console.feeds
    _check_streams(feeds.values(), owner)
    if record.number not in feeds:
        feeds[record.number] = Feed(console, record.number)
    return _Stream(feeds[record.number], owner)


def _check_streams(feeds: Collection[Feed], owner: str) -> None:
    if sum(one.listeners.total() for one in feeds) >= STREAMS:
        raise BusyError(
            f"{STREAMS:,} streams are open, which is the server's limit.", "Retry later."
        )
    if owner and sum(one.listeners[owner] for one in feeds) >= STREAMS_OF_KEY:
        raise BusyError(
            f"{STREAMS_OF_KEY} streams of your key are open, which is the limit.",
            "Close some pages of running runs.",
        )


class _Stream(StreamingResponse):
    """A listener of a feed; it counts from the moment at which it was permitted to its end."""

    def __init__(self, feed: Feed, owner: str) -> None:
        super().__init__(feed.events(), media_type="text/event-stream")
        self._feed, self._owner = feed, owner
        feed.join(owner)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.leave(self._owner)


class Feed:
    """Watches one run for all of its listeners, with one query in each interval.

    Attributes:
        listeners: how many streams each key has open; of a server without keys, ``""``.
    """

    def __init__(self, console: Console, number: int) -> None:
        self._console = console
        self._number = number
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._mark: tuple[str, int] = "", -1
        self.listeners: Counter[str] = Counter()

    def join(self, owner: str) -> None:
        """Add a listener."""
        self.listeners[owner] += 1
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    def leave(self, owner: str) -> None:
        """Remove a listener; without any, the run is not watched any more."""
        self.listeners[owner] -= 1
        if not self.listeners.total() and self._task is not None:
            self._task.cancel()
            self._task = None
            self._console.feeds.pop(self._number, None)

    async def events(self) -> AsyncIterator[str]:
        """The events of one listener, until the run ends or the server stops."""
        seen: tuple[str, int] | None = None
        quiet = 0
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

    async def _watch(self) -> None:
        while True:
            progress = self._console.service.registry.runs.progress
            with suppress(TrunklineError):  # the registry may answer the next time
                self._mark = await self._console.run(progress, self._number)
            async with self._changed:
                self._changed.notify_all()
            await asyncio.sleep(POLL_SECONDS)


def _curves(view: View, record: RunRecord) -> tuple[list[Curve], Sequence[MetricRecord]]:
    """The curves of a run, and the figures that they are made of."""

    def higher_is_better(metric: str) -> bool | None:
        try:
            return view.platform.metric(metric).higher_is_better
        except TrunklineError:
            return None  # of a plugin that is not installed here

    metrics = view.registry.runs.metrics(record.number, limit=MAX_METRICS)
    return curves_of(record, metrics, higher_is_better), metrics


def visible_run(view: View, number: int) -> RunRecord:
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
