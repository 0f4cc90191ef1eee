"""The playground: one prompt for several adapters and the base at once, side by side.

Each column is a request of its own: with an id, a line in the request log, and a lineage. The
answers are streamed to a browser with JavaScript; others wait for the complete page.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.responses import Response, StreamingResponse

from trunkline.console.pages import N_, Page, Redirect
from trunkline.console.routes import Routes
from trunkline.console.view import PREFIX, View
from trunkline.contracts import MOST_NEW_TOKENS
from trunkline.data.cases import add_case
from trunkline.data.targets import target_text
from trunkline.errors import Interrupted, NotFoundError, TrunklineError, UsageError
from trunkline.inference.request import Answer
from trunkline.inference.request import Request as EngineRequest
from trunkline.labels import is_blank
from trunkline.refs import BASE, Ref, shown
from trunkline.serving.errors import INTERNAL_ERROR
from trunkline.serving.models import resolve
from trunkline.serving.service import RequestContext
from trunkline.serving.streams import adapter_of
from trunkline.tasks.ranking import ranked

if TYPE_CHECKING:
    from trunkline.console.app import Console
    from trunkline.resolution import ResolvedModel

routes = Routes()

MODELS = 4
"""Adapters beside the base that one prompt can be sent to."""

SUGGESTED = 200
"""Adapters that the page suggests."""

SHOWN = 5
"""Probabilities that a column shows."""

_SEND_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class PromptForm:
    """What the form says."""

    prompt: str = ""
    models: tuple[str, ...] = ()
    candidates: tuple[str, ...] = ()
    max_new_tokens: str = ""
    temperature: str = ""
    seed: str = ""

    def fields(self) -> dict[str, str]:
        """The fields of the form, for a link that fills it in."""
        adapters = [one for one in self.models if one != BASE]
        values = {
            "prompt": self.prompt,
            **{f"model{index + 1}": one for index, one in enumerate(adapters)},
            "base": "yes" if BASE in self.models else "",
            "candidates": "\n".join(self.candidates),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        return {name: value for name, value in values.items() if value}

    def sampling(self, limit: int | None) -> dict[str, Any]:
        """The arguments of a generation.

        Raises:
            UsageError: one is not a number, or out of range.
        """
        tokens = _number("max_new_tokens", self.max_new_tokens, int)
        most = limit or MOST_NEW_TOKENS
        if tokens is not None and not 1 <= tokens <= most:
            raise UsageError(f"max_new_tokens can't be {tokens}.", f"Give 1 to {most:,}.")
        temperature = _number("temperature", self.temperature, float)
        seed = _number("seed", self.seed, int)
        return {
            "max_new_tokens": tokens,
            "temperature": 0.0 if temperature is None else temperature,
            "seed": 0 if seed is None else int(seed),
        }


@dataclass(slots=True)
class Column:
    """The answer of one model, as far as it is known.

    Attributes:
        model: as it was asked for.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        output: the answer as text; of a generation, its beginning while it runs.
        probabilities: of labels, spans or candidates, the highest first; of a generation, the
            geometric mean of its tokens' probabilities is ``probability``.
        first_token, seconds: from the request's arrival in the engine.
    """

    model: str
    state: str = "waiting"
    version: str | None = None
    digest: str | None = None
    task: str | None = None
    dataset: str | None = None
    output: str = ""
    unit: str | None = None
    probabilities: Sequence[tuple[str, float]] = ()
    probability: float | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    truncated: bool = False
    first_token: float | None = None
    seconds: float | None = None
    request: str | None = None
    error: str | None = None
    hint: str | None = None


@dataclass(slots=True)
class Exchange:
    """A prompt with the answers of all models.

    Attributes:
        changed: whether an answer has changed since it was last sent.
    """

    form: PromptForm
    columns: list[Column] = field(default_factory=list)
    changed: bool = True


@routes.get("/playground", role="tester")
def playground(view: View) -> Page:
    """The form, filled in by the query."""
    return _page(view, Exchange(_read_form(view.query)))


@routes.stream("/playground", method="POST", role="tester")
async def answer(console: Console, view: View) -> Page | Response:
    """Send the prompt to each model, and show the answers when they are complete or as they come.

    A browser with JavaScript asks for server-sent events; each has all columns so far.
    """
    streams = "text/event-stream" in view.request.headers.get("accept", "")
    exchange = Exchange(_read_form(view.form))
    try:
        sampling = _check(exchange.form, view)
    except TrunklineError as error:
        if not streams:
            raise
        exchange.columns = [_failed(Column(""), error)]
        return _events(_once(console, view, exchange))
    exchange.columns = [Column(model) for model in exchange.form.models]
    if streams:
        return _events(_stream(console, view, exchange, sampling))
    await asyncio.gather(*_tasks(view, exchange, sampling))
    return await console.run(_page, view, exchange)


@routes.post("/playground/cases", role="tester")
def save_case(view: View) -> Redirect:
    """Add a prompt with its right answer to the test cases of a dataset."""
    form = view.form
    name = form.get("dataset", "")
    domain, _, rest = name.partition("/")
    ref = view.access.check_adapter(domain, rest)
    known = any(one.name == ref.adapter for one in view.platform.catalog.datasets())
    if not known and not view.registry.sources.list_datasets(name=ref.adapter, limit=1):
        raise NotFoundError(f"There is no dataset {shown(name)}.", "List them under Datasets.")
    prediction = {"version": str(Ref.parse(form.get("version", ""))),
                  "output": form.get("output", "")}  # fmt: skip
    count = add_case(
        view.platform.workspace,
        ref.adapter,
        form.get("prompt", ""),
        form.get("target", ""),
        prediction=prediction,
        actor=view.access.actor,
    )
    data = {"dataset": ref.adapter, "cases": count}
    return Redirect(f"/datasets/{ref.adapter}", data, done="case-saved")


# ----------------------------------------------------------------------------------- the form


def _read_form(fields: Mapping[str, str]) -> PromptForm:
    names = [fields.get(f"model{index + 1}", "").strip() for index in range(MODELS)]
    names.append(BASE if fields.get("base") == "yes" else "")
    return PromptForm(
        prompt=fields.get("prompt", ""),
        models=tuple(dict.fromkeys(filter(None, names))),
        candidates=tuple(filter(None, map(str.strip, fields.get("candidates", "").splitlines()))),
        **{
            name: fields.get(name, "").strip() for name in ("max_new_tokens", "temperature", "seed")
        },
    )


def _check(form: PromptForm, view: View) -> dict[str, Any]:
    """Refuse what no model could answer; returns the arguments of generations."""
    if not form.models:
        raise UsageError(N_("No model is chosen."), N_("Name an adapter, or choose the base."))
    if is_blank(form.prompt):
        raise UsageError(N_("The prompt is empty."), N_("Write a text."))
    return form.sampling(view.service.settings.max_new_tokens)


def _number(name: str, text: str, kind: type[int] | type[float]) -> Any:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{name} can't be {shown(text)}.", "Write a number.") from None


def _page(view: View, exchange: Exchange) -> Page:
    adapters = view.registry.adapters.list(limit=SUGGESTED, scope=view.access.scope)
    form = exchange.form
    command = None
    if len(form.models) == 1 and form.prompt and form.models[0] != BASE:
        command = f"trunkline predict {form.models[0]} TEXT"
    return Page(
        "playground.html",
        N_("Playground"),
        {"prompt": form.prompt, "models": form.models, "answers": exchange.columns},
        {"sent": form, "adapters": adapters, "places_for_models": range(MODELS),
         **_shown(exchange)},
        command=command or "trunkline predict ADAPTER TEXT",
        place="playground",
    )  # fmt: skip


def _shown(exchange: Exchange) -> dict[str, Any]:
    fields = exchange.form.fields()
    ended = all(one.state in ("done", "failed") for one in exchange.columns)
    return {
        "columns": exchange.columns,
        "sent_prompt": exchange.form.prompt,
        "permalink": f"{PREFIX}/playground?{urlencode(fields)}" if fields else None,
        "ended": ended,
    }


# -------------------------------------------------------------------------------- the answers


def _tasks(view: View, exchange: Exchange, sampling: Mapping[str, Any]) -> list[asyncio.Task[None]]:
    return [
        asyncio.ensure_future(_fill(view, exchange, column, sampling))
        for column in exchange.columns
    ]


async def _fill(
    view: View, exchange: Exchange, column: Column, sampling: Mapping[str, Any]
) -> None:
    """Ask one model, and keep its answer in the column."""
    service, form = view.service, exchange.form
    context = RequestContext(service, f"{PREFIX}/playground")
    context.key = view.access.key
    column.request = context.id
    try:
        try:
            service.add(context)
            texts = [form.prompt, *form.candidates]
            logged = form.prompt if not form.candidates else json.dumps(texts)
            context.set_model_name(column.model, logged)
            model = await resolve(context, column.model)
            column.state, column.version, column.digest = "running", model.name, model.digest
            column.task = model.task
            column.dataset = None if model.record is None else model.record.dataset
            exchange.changed = True
            requests = _requests(model, form, sampling)
            await context.submit(model, [form.prompt] * len(requests), requests, None,
                                 field="prompt")  # fmt: skip
            if model.task == "generation":
                async for piece in context.handles[0].stream():
                    column.output += piece.text
                    exchange.changed = True
            answers = await context.answers()
            _read(column, answers, form)
            stats = [one.stats for one in context.handles if one.stats is not None]
            column.first_token = next((one.first_token_seconds for one in stats), None)
            column.seconds = max((one.seconds for one in stats), default=None)
            await context.commit(200, column.output)
            column.state = "done"
        except TrunklineError as error:
            _failed(column, await context.fail(error))
        except Exception:
            logging.getLogger("trunkline.console").exception("An answer of the playground failed.")
            _failed(column, await context.fail(INTERNAL_ERROR))
        except asyncio.CancelledError:
            context.cancel()
            await asyncio.shield(context.commit(Interrupted.http_status))
            raise
    finally:
        exchange.changed = True
        service.remove(context)


def _requests(
    model: ResolvedModel, form: PromptForm, sampling: Mapping[str, Any]
) -> list[EngineRequest]:
    if model.modality != "text":
        raise UsageError(
            f"{model.name} reads pictures, which the playground can't send.",
            f"Use: trunkline predict {model.name} picture.jpg",
        )
    if model.task == "generation":
        return [EngineRequest(adapter_of(model), form.prompt, logprobs=0, **sampling)]
    if model.task != "ranking":
        return [EngineRequest(model.name, form.prompt)]
    if len(form.candidates) < 2:
        raise UsageError(
            f"{model.name} ranks candidates.", "Write two or more, each on a line of its own."
        )
    return [
        EngineRequest(model.name, form.prompt, candidate=candidate) for candidate in form.candidates
    ]


def _read(column: Column, answers: Sequence[Answer], form: PromptForm) -> None:
    """Keep complete answers in the column."""
    answer = answers[0]
    column.prompt_tokens = sum(one.prompt_tokens for one in answers)
    column.new_tokens = sum(one.new_tokens for one in answers)
    column.truncated = any(one.truncated for one in answers)
    column.unit = answer.unit
    if column.task == "ranking":
        order, shares = ranked([one.value or 0.0 for one in answers])
        names = [form.candidates[index] for index in order]
        column.output, column.probabilities = names[0], list(zip(names, shares, strict=True))
    elif column.task == "generation":
        column.output = answer.text or ""
        scores = [one.logprob for one in answer.choices[0].scores if one.logprob is not None]
        if scores:
            column.probability = math.exp(sum(scores) / len(scores))
    elif answer.spans is not None:
        column.output = target_text(answer.output)
        column.probabilities = [
            (f"{one.label}: {one.text}", one.probability) for one in answer.spans
        ]
    else:
        column.output = target_text(answer.output)
        listed = (answer.probabilities or {}).items()
        column.probabilities = sorted(listed, key=lambda pair: -pair[1])[:SHOWN]
        column.probability = answer.confidence


def _failed(column: Column, error: TrunklineError) -> Column:
    column.state, column.error, column.hint = "failed", error.message, error.hint
    return column


# --------------------------------------------------------------------------------- the stream


def _events(events: AsyncIterator[str]) -> Response:
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(events, media_type="text/event-stream", headers=headers)


async def _once(console: Console, view: View, exchange: Exchange) -> AsyncIterator[str]:
    yield await _event(console, view, exchange)


async def _stream(
    console: Console, view: View, exchange: Exchange, sampling: Mapping[str, Any]
) -> AsyncIterator[str]:
    tasks = _tasks(view, exchange, sampling)
    try:
        while not all(task.done() for task in tasks):
            if exchange.changed:
                exchange.changed = False
                yield await _event(console, view, exchange)
            await asyncio.wait(tasks, timeout=_SEND_SECONDS)
        for task in tasks:
            task.result()
        yield await _event(console, view, exchange)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _event(console: Console, view: View, exchange: Exchange) -> str:
    page = Page("playground_answers.html", "", {}, _shown(exchange))
    text = await console.run(console.renderer.fragment, view, page)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "".join(f"data: {line}\n" for line in lines) + "\n"
