"""The state that all requests of a server share, and the state of one HTTP request."""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.responses import JSONResponse
from starlette.types import Receive

from trunkline.engines import modality_of_request
from trunkline.errors import (
    BusyError,
    DataError,
    DeadlineError,
    Interrupted,
    NotFoundError,
    RegistryError,
    TooLargeError,
    TrunklineError,
    UnavailableError,
    UsageError,
)
from trunkline.inference.prompts import locate_error
from trunkline.inference.request import Answer
from trunkline.inference.request import Request as EngineRequest
from trunkline.inference.request_state import GenerationHandle
from trunkline.redaction import redact
from trunkline.registry.records import KeyRecord, RequestEntry
from trunkline.serving.collectors import DeploymentCollector
from trunkline.serving.engines import ServerBase, ServerEngines
from trunkline.serving.errors import deadline_error
from trunkline.serving.request_log import RequestLog
from trunkline.serving.settings import ServerSettings

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.contracts import Modality
    from trunkline.inference.engine import Engine
    from trunkline.inference.image_engine import AnyEngine
    from trunkline.lora.pool import AdapterPool
    from trunkline.resolution import ResolvedModel
    from trunkline.serving.heartbeat import RegistryHealth
    from trunkline.serving.metrics import Metrics

Result = TypeVar("Result")

_CANCEL_SECONDS = 2.0


class Service:
    """One platform behind a server: readiness, threads for blocking work, requests in flight.

    Attributes:
        with_engine: whether the server loads the base; without, it only shows the workspace.
        url: where the server listens; empty if another program owns the socket.
        draining: new requests are refused.
        in_flight: the requests in flight, by id.
    """

    def __init__(
        self,
        platform: Platform,
        settings: ServerSettings,
        metrics: Metrics,
        *,
        with_engine: bool = True,
    ) -> None:
        self.platform = platform
        self.with_engine = with_engine
        self.settings = settings
        self.registry = platform.registry
        self.metrics = metrics
        self.url = ""
        self.draining = False
        self.in_flight: dict[str, RequestContext] = {}
        self._served = ServerEngines(platform, metrics)
        self._log = (
            RequestLog(self.registry.requests.log, metrics.count_log_lines)
            if settings.log_requests
            else None
        )
        metrics.add(DeploymentCollector(self))
        self._query_threads = ThreadPoolExecutor(settings.workers, "registry")
        self._load_threads = ThreadPoolExecutor(settings.workers, "adapters")

    # ------------------------------------------------------------------------- start and stop

    def start(self) -> None:
        """Start to load the base in a daemon thread, which does not delay the process's exit."""
        if self._log is not None:
            self._log.start()
        if not self.with_engine:
            return
        threading.Thread(target=self._load_base, name="base", daemon=True).start()

    async def stop(self) -> None:
        """Write the rest of the log, record the server's end, and stop the threads.

        The engine stays open; the platform owns it.
        """
        self.draining = True
        if self._log is not None:
            await asyncio.to_thread(self._log.stop)
        await asyncio.to_thread(self._served.stop)
        self._query_threads.shutdown(wait=False)
        self._load_threads.shutdown(wait=False)

    def _load_base(self) -> None:
        self._served.load(lambda: None if self.registry.read_only or self.draining else self.url)

    @property
    def failure(self) -> TrunklineError | None:
        """Why the base could not be loaded."""
        return self._served.failure

    @property
    def ready(self) -> bool:
        """Whether the base is loaded, or none is needed."""
        return self._served.ready or not self.with_engine

    @property
    def registry_health(self) -> RegistryHealth | None:
        """What this server's heartbeat last saw of the registry; None if there was none yet."""
        return self._served.registry_health

    @property
    def engine(self) -> Engine:
        """The engine for texts; raises as :attr:`ServerEngines.text`, and without an engine."""
        return self._with_engine.text

    @property
    def engines(self) -> list[AnyEngine]:
        """The loaded engines, first the one that was loaded at the start; raises as ``base``."""
        return self._with_engine.loaded

    def engine_of(self, modality: Modality) -> AnyEngine:
        """The engine of a base; the first use of the one for pictures loads its base."""
        return self._with_engine.of(modality)

    def pool_of(self, digest: str) -> AdapterPool:
        """The pool that holds the adapter with this digest; loads no base.

        Raises:
            NotFoundError: the adapter is not in memory.
        """
        for engine in self.engines:
            if engine.pool.get(digest) is not None:
                return engine.pool
        raise NotFoundError("The adapter is not in memory.")

    @property
    def base(self) -> ServerBase:
        """The base; raises :class:`UnavailableError` until it is loaded, or if there is none."""
        return self._with_engine.base

    @property
    def _with_engine(self) -> ServerEngines:
        if not self.with_engine:
            raise UnavailableError(
                "This server runs without an engine.", "Start one with: trunkline serve."
            )
        return self._served

    # -------------------------------------------------------------------------------- threads

    async def query(self, function: Callable[..., Result], *args: object) -> Result:
        """Run a function that waits for the registry in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._query_threads, function, *args)

    async def load(self, function: Callable[..., Result], *args: object) -> Result:
        """Run a function that may read an adapter from disk in a thread.

        These threads are separate, so that a slow disk does not delay queries.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._load_threads, function, *args)

    # --------------------------------------------------------------------- requests in flight

    def add(self, context: RequestContext) -> None:
        """Register a request as in flight.

        Raises:
            UnavailableError: the server is shutting down.
            BusyError: the limit of requests in flight is reached.
        """
        if self.draining:
            raise UnavailableError(
                "The server is shutting down.", "Retry later, or use another server."
            )
        if len(self.in_flight) >= self.settings.max_requests:
            raise BusyError(
                f"The server has {len(self.in_flight):,} requests in flight, which is its limit.",
                "Retry later.",
            )
        self.in_flight[context.id] = context

    def remove(self, context: RequestContext) -> None:
        """Remove a request that has ended, and cancel what is left of it."""
        context.cancel()
        self.in_flight.pop(context.id, None)

    def cancel_all(self) -> None:
        """Cancel all requests in flight."""
        for context in list(self.in_flight.values()):
            context.cancel()

    def set_id(self, context: RequestContext, id: str, *, chosen_by_client: bool) -> None:
        """Give a request in flight another id."""
        self.in_flight[id] = self.in_flight.pop(context.id)
        context.id, context.id_from_client = id, chosen_by_client

    def id_is_free(self, id: str) -> bool:
        """Whether no request, running or logged, has this id; blocks."""
        return id not in self.in_flight and self.id_is_new(id)

    def id_is_new(self, id: str) -> bool:
        """Whether no logged request has this id; blocks."""
        try:
            self.registry.requests.get(id)
        except NotFoundError:
            return True
        return False

    async def log(self, context: RequestContext, status: int, output: str | None) -> None:
        """Commit a request's log line, if requests are logged.

        Raises:
            RegistryError: the line could not be written.
        """
        if self._log is not None:
            line = context.log_entry(status, output, with_text=self.settings.log_text)
            await self._log.write(line, alone=context.id_from_client)


class RequestContext:
    """One HTTP request, from its arrival to its line in the request log.

    Attributes:
        id: created by the server, or the client's own if it is unused.
        key: None if the server is open.
        model_name: the model as the client wrote it; None for requests that need no model.
        model: the version that answers.
        text: the input, for the log.
    """

    def __init__(self, service: Service, route: str) -> None:
        self.id = uuid.uuid4().hex
        self.id_from_client = False
        self.service = service
        self.route = route
        self.key: KeyRecord | None = None
        self.model_name: str | None = None
        self.model: ResolvedModel | None = None
        self.text: str | None = None
        self._arrived_at = datetime.now(UTC)
        self._started = time.monotonic()
        self._timeout: float | None = None
        self._handles: list[GenerationHandle] = []
        self._requests: Sequence[EngineRequest] = ()
        self._answers_from: ResolvedModel | None = None
        self._cancelled = False
        self._logging: asyncio.Future[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """The response's headers: the request's id, the version, its digest, and the texts cut."""
        headers = {"x-request-id": self.id}
        if self.model is not None:
            headers |= {
                "x-trunkline-version": self.model.name,
                "x-trunkline-digest": self.model.digest,
            }
        if self.truncated:
            headers["x-trunkline-truncated"] = ",".join(map(str, self.truncated))
        return headers

    @property
    def truncated(self) -> list[int]:
        """Indices of the texts that were cut to the adapter's longest prompt."""
        parts = max(1, len(self._handles) // max(1, len(self._requests)))  # two of a fusion
        cut = (index // parts for index, handle in enumerate(self._handles) if handle.truncated)
        return list(dict.fromkeys(cut))

    def set_model_name(self, name: str, text: str | None = None) -> None:
        """Record the model that the client names; from now on the request is logged."""
        self.model_name = name
        self.text = text

    # ------------------------------------------------------------------------------ inference

    async def submit(
        self,
        model: ResolvedModel,
        texts: Sequence[str | tuple[int, ...]],
        requests: Sequence[EngineRequest],
        timeout: float | None,
        *,
        field: str,
    ) -> None:
        """Submit all requests to the engine, or none.

        Args:
            model: answers all of them.
            texts: the texts or token ids of all requests; their size is limited.
            timeout: seconds that the client allows, from the arrival of its request.
            field: of the body that contains the texts, for errors.

        Raises:
            TooLargeError: there are too many texts, or too many characters.
            TrunklineError: the engine refuses one of the requests.
        """
        settings = self.service.settings
        self._timeout = timeout
        limit = settings.request_timeout
        seconds = limit if timeout is None else min(timeout, limit)
        try:
            check_size(texts, settings.max_inputs, settings.max_prompt_chars)
            deadline = self._started + seconds
            await self.service.load(self._submit, model, requests, deadline, field)
        except (UsageError, DataError, TooLargeError) as error:
            error.param = error.param or field
            raise

    def _submit(
        self,
        model: ResolvedModel,
        requests: Sequence[EngineRequest],
        deadline: float,
        field: str,
    ) -> None:
        """Runs in a thread; the request may be cancelled meanwhile."""
        self._requests, self._answers_from = requests, model
        try:
            for index, request in enumerate(requests):
                request = replace(request, deadline=max(0.0, deadline - time.monotonic()))
                try:
                    for part in model.split(request):
                        engine = self.service.engine_of(modality_of_request(part))
                        self._handles.append(engine.submit(part))
                except DataError as error:
                    located = locate_error(error, index, len(requests))
                    located.param = f"{field}[{index}]" if len(requests) > 1 else field
                    raise located from None
                if self._cancelled:
                    break
        except BaseException:
            self._cancelled = True
            raise
        finally:
            if self._cancelled:
                self.cancel()

    def cancel(self) -> None:
        """Ask the engine to cancel what it still computes for this request."""
        self._cancelled = True
        for handle in list(self._handles):
            if not handle.ended:
                handle.cancel()

    @property
    def handles(self) -> Sequence[GenerationHandle]:
        """The engines' handles, one for each text, in their order; two for a fusion."""
        return self._handles

    async def answers(self, receive: Receive | None = None) -> list[Answer]:
        """Wait for all answers, in the order of the requests.

        Args:
            receive: reports that the client has disconnected, which cancels the request.

        Raises:
            Interrupted: the client has disconnected.
            TrunklineError: the error of the first request that failed.
        """
        answering = asyncio.gather(*(handle.answer_async() for handle in self._handles))
        tasks: set[asyncio.Future[Any]] = {answering}
        if receive is not None:
            tasks.add(asyncio.ensure_future(disconnected(receive)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise Interrupted("The client has disconnected.")
            return self._joined(answering.result())
        finally:
            self.cancel()
            for task in tasks:
                task.cancel()
                task.add_done_callback(_retrieve_exception)

    def _joined(self, answers: list[Answer]) -> list[Answer]:
        """One answer for each request, of which a fusion has two."""
        model = self._answers_from
        if model is None or model.fused is None:
            return answers
        halves = iter(answers)
        return [model.join(one, [next(halves), next(halves)]) for one in self._requests]

    # -------------------------------------------------------------------- response and the log

    async def respond(self, content: dict[str, Any], output: str | None = None) -> JSONResponse:
        """Commit the request's log line, then create the response.

        Raises:
            RegistryError: the line could not be written.
        """
        await self.commit(200, output)
        return JSONResponse(content, headers=self.headers)

    async def commit(self, status: int, output: str | None = None) -> None:
        """Commit the request's log line, once, even if the caller is cancelled.

        A request that names no model is not logged.

        Raises:
            RegistryError: the line could not be written; raised to the first caller only.
        """
        if self.model_name is None:
            return
        if self._logging is None:
            self._logging = asyncio.ensure_future(self._commit(status, output))
            await asyncio.shield(self._logging)
        else:
            await asyncio.wait({self._logging})
            _retrieve_exception(self._logging)

    async def _commit(self, status: int, output: str | None) -> None:
        if status >= 400:
            self.service.metrics.count_error(self.model.name if self.model else None, status)
            await self._end()
        try:
            await self.service.log(self, status, output)
        except RegistryError:
            if not self.id_from_client or await self.service.query(self.service.id_is_new, self.id):
                raise
            unique = f"{self.id[:40]}-{uuid.uuid4().hex}"
            self.service.set_id(self, unique, chosen_by_client=False)
            await self.service.log(self, status, output)

    async def fail(self, error: TrunklineError) -> TrunklineError:
        """Cancel the request and commit its log line; returns the error for the client."""
        self.cancel()
        if isinstance(error, Interrupted) and self.service.draining:
            error = UnavailableError("The server shut down before the answer was ready.", "Retry.")
        elif isinstance(error, DeadlineError):
            error = deadline_error(self._timeout, self.service.settings.request_timeout)
        try:
            await self.commit(error.http_status)
        except RegistryError as log_error:
            error = log_error
        # Clients must not learn the workspace's path on this machine.
        folder = f"{self.service.platform.workspace.root}{os.sep}"
        error.message = error.message.replace(folder, "")
        return error

    async def _end(self) -> None:
        """Wait until the engine has ended the request, so that its tokens can be counted."""
        self.cancel()
        ending = [handle.answer_async() for handle in self._handles if not handle.ended]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*ending, return_exceptions=True), _CANCEL_SECONDS)

    def log_entry(self, status: int, output: str | None, *, with_text: bool) -> RequestEntry:
        """The request's line in the log; input and output only ``with_text``."""
        stats = [handle.stats for handle in self._handles if handle.stats is not None]
        return RequestEntry(
            id=self.id,
            at=self._arrived_at,
            key=None if self.key is None else self.key.id,
            route=self.route,
            model=redact(self.model_name or ""),
            version=None if self.model is None else self.model.name,
            digest=None if self.model is None else self.model.digest,
            prompt_tokens=sum(handle.prompt_tokens for handle in self._handles),
            new_tokens=sum(one.new_tokens for one in stats),
            status=status,
            seconds=time.monotonic() - self._started,
            text=self.text if with_text else None,
            output=output if with_text else None,
        )


async def request_context(request: Request) -> RequestContext:
    """FastAPI dependency: the context that the middleware created."""
    context: RequestContext = request.state.context
    return context


Context = Annotated[RequestContext, Depends(request_context)]
"""Parameter of a route."""


def check_finite(answer: Answer, field: str) -> None:
    """Raise :class:`DataError` for a number that is none; ``field`` is the one that was sent."""
    if answer.value is not None and not math.isfinite(answer.value):
        error = DataError(
            f"{answer.adapter} predicts {answer.value}, which is not a finite number.",
            "Check what you sent, or use another version.",
        )
        error.param = field
        raise error


def check_count(inputs: int, most: int) -> None:
    """Raise :class:`TooLargeError` for too many texts or pictures."""
    if inputs > most:
        raise TooLargeError(
            f"The request contains {inputs:,} inputs.", f"Send at most {most:,} at once."
        )


def check_size(texts: Sequence[str | tuple[int, ...]], max_texts: int, max_chars: int) -> None:
    """Refuse a request that is too large; a token id counts as a character.

    Raises:
        TooLargeError: too many texts, or too many characters in total.
    """
    check_count(len(texts), max_texts)
    chars = sum(map(len, texts))
    if chars > max_chars:
        raise TooLargeError(
            f"The request's texts have {chars:,} characters.", f"Send at most {max_chars:,}."
        )


async def disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _retrieve_exception(future: asyncio.Future[Any]) -> None:
    """Mark a future's exception as retrieved, so that asyncio does not report it."""
    if not future.cancelled():
        future.exception()
