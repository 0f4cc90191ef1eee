"""One request on its way: whose it is, what it asks, what became of it.

Owns: the way from a model's name to tickets of the engine and back, and the request's line in the
log. Must not know: the forms of requests and answers.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse
from starlette.types import Receive

from trunkline.errors import (
    DataError,
    DeadlineError,
    Interrupted,
    RegistryError,
    TrunklineError,
    UnavailableError,
)
from trunkline.inference.prompts import locate_error
from trunkline.inference.request import Answer, Request, StreamChunk
from trunkline.inference.request_state import GenerationHandle
from trunkline.registry.records import KeyRecord, RequestLine
from trunkline.serving.errors import ApiError, too_late
from trunkline.serving.models import Model, find_model
from trunkline.serving.schemas import check_size
from trunkline.serving.streams import gone, merged

if TYPE_CHECKING:
    from trunkline.serving.service import Service

ROUTES = {
    "generation": "/v1/chat/completions",
    "classification": "/v1/classify",
    "regression": "/v1/regress",
}
_CANCEL_SECONDS = 2.0


class Call:
    """One request of HTTP.

    Attributes:
        id: the server's own, or its client's where that is unused.
        key: None where none is needed.
        asked: the model as the client wrote it, once that is known.
        text: what is asked, for the log.
        model: what ``asked`` was resolved to.
    """

    def __init__(self, service: Service, route: str) -> None:
        self.id = uuid.uuid4().hex
        self.named_by_client = False
        self.service = service
        self.route = route
        self.key: KeyRecord | None = None
        self.asked: str | None = None
        self.text: str | None = None
        self.model: Model | None = None
        self.at = datetime.now(UTC)
        self._started = time.monotonic()
        self._timeout: float | None = None
        self._tickets: list[GenerationHandle] = []
        self._given_up = False
        self._settling: asyncio.Future[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What every response says: the request's id and, if known, who answers."""
        told = {"x-request-id": self.id}
        if self.model is not None:
            told |= {
                "x-trunkline-version": self.model.root,
                "x-trunkline-digest": self.model.digest,
            }
        return told

    def about(self, asked: str, text: str | None = None) -> None:
        """Say which model is asked for; from here on the request has a line in the log."""
        self.asked = asked
        self.text = text

    # ------------------------------------------------------------------------------ to the engine

    async def resolve(self, asked: str, task: str) -> Model:
        """Fix the version that answers, for this request's whole life.

        Raises:
            ApiError: 404, nothing answers to ``asked`` for this key; 400, it has another task.
            BaseMismatchError: it was made on another base.
        """
        service = self.service
        model = await service.ask(find_model, service.registry, service.base, self.key, asked)
        self.model = model
        if model.task != task:
            raise ApiError(
                f"{model.root} is for {model.task}.",
                f"Send it to POST {ROUTES[model.task]}.",
                param="model",
                code="wrong_task",
            )
        return model

    async def submit(
        self, model: Model, texts: list[str], requests: Sequence[Request], timeout: float | None
    ) -> None:
        """Hand all requests to the engine, or none.

        Args:
            model: of all of them.
            texts: everything in them that counts against the limits.
            requests: their adapter and deadline are set here.
            timeout: seconds; None, or more than the server gives, is as long as that gives.

        Raises:
            TooLargeError: more than one request may hold.
            TrunklineError: the engine refuses one of them.
        """
        settings = self.service.settings
        check_size(texts, settings.max_inputs, settings.max_prompt_chars)
        adapter = None if model.parent is None else model.root
        self._timeout = timeout
        most = settings.request_timeout
        seconds = most if timeout is None else min(timeout, most)
        asked = [replace(request, adapter=adapter) for request in requests]
        await self.service.load(self._submit, asked, self._started + seconds)

    def _submit(self, requests: list[Request], until: float) -> None:
        work = self.service.platform.resolve_request(requests[0])
        engine = self.service.engine
        try:
            for place, request in enumerate(requests):
                request = replace(request, deadline=max(0.0, until - time.monotonic()))
                try:
                    self._tickets.append(engine.submit(replace(work, request=request)))
                except DataError as error:
                    raise locate_error(error, place, len(requests)) from None
                if self._given_up:
                    break
        except BaseException:
            self._given_up = True
            raise
        finally:
            if self._given_up:
                self.cancel()

    def cancel(self) -> None:
        """Give up what the engine still has of this request."""
        self._given_up = True
        for handle in list(self._tickets):
            if not handle.ended:
                handle.cancel()

    # -------------------------------------------------------------------------------- and back

    async def answers(self, receive: Receive | None = None) -> list[Answer]:
        """All answers, in the order of the requests.

        Args:
            receive: tells when the client goes away, which ends the work.

        Raises:
            Interrupted: it did.
            TrunklineError: what the first request that failed ended with.
        """
        answering = asyncio.gather(*(handle.answer_async() for handle in self._tickets))
        waiting: set[asyncio.Future[Any]] = {answering}
        if receive is not None:
            waiting.add(asyncio.ensure_future(gone(receive)))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise Interrupted("The client went away.")
            return answering.result()
        finally:
            self.cancel()
            for one in waiting:
                one.cancel()
                one.add_done_callback(_heard)

    def pieces(self) -> AsyncGenerator[tuple[int, StreamChunk]]:
        """The streams of all requests as they come, each piece with its request's place."""
        return merged([handle.stream() for handle in self._tickets])

    # -------------------------------------------------------------------------------- the account

    async def reply(self, content: dict[str, Any], output: str | None = None) -> JSONResponse:
        """Commit the request's line, and only then give the answer.

        Raises:
            RegistryError: the line could not be written.
        """
        await self.settle(200, output)
        return JSONResponse(content, headers=self.headers)

    async def settle(self, status: int, output: str | None = None) -> None:
        """Commit the request's line, once, though whoever waits for that is cancelled; a request
        that named no model has none.

        Raises:
            RegistryError: it could not be written; told to the first who asks.
        """
        if self.asked is None:
            return
        if self._settling is None:
            self._settling = asyncio.ensure_future(self._settle(status, output))
            await asyncio.shield(self._settling)
        else:
            await asyncio.wait({self._settling})
            _heard(self._settling)

    async def _settle(self, status: int, output: str | None) -> None:
        if status >= 400:
            self.service.metrics.count_error(self.model.root if self.model else None, status)
            await self._end()
        try:
            await self.service.keep(self, status, output)
        except RegistryError:
            if not self.named_by_client or await self.service.ask(self.service.id_is_new, self.id):
                raise
            free = f"{self.id[:40]}-{uuid.uuid4().hex}"
            self.service.rename(self, free, by_client=False)
            await self.service.keep(self, status, output)

    async def fail(self, error: TrunklineError) -> TrunklineError:
        """Commit the line of a request that failed; gives what the client is to be told."""
        return self._without_folder(await self._fail(error))

    async def _fail(self, error: TrunklineError) -> TrunklineError:
        self.cancel()
        if isinstance(error, Interrupted) and self.service.draining:
            error = UnavailableError("The server ended before the answer did.", "Ask again.")
        elif isinstance(error, DeadlineError):
            error = too_late(self._timeout, self.service.settings.request_timeout)
        try:
            await self.settle(error.http_status)
        except RegistryError as unwritten:
            return unwritten
        return error

    def _without_folder(self, error: TrunklineError) -> TrunklineError:
        """Where the workspace lies on this machine is nothing to its clients."""
        folder = f"{self.service.platform.workspace.root}{os.sep}"
        error.message = error.message.replace(folder, "")
        return error

    async def _end(self) -> None:
        """Wait until the engine has let go, so that its tokens can be counted."""
        self.cancel()
        ending = [handle.answer_async() for handle in self._tickets if not handle.ended]
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*ending, return_exceptions=True), _CANCEL_SECONDS)

    def line(self, status: int, text: str | None, output: str | None) -> RequestLine:
        """What the log says of this request."""
        served = [handle.stats for handle in self._tickets if handle.stats is not None]
        return RequestLine(
            id=self.id,
            at=self.at,
            key=None if self.key is None else self.key.id,
            route=self.route,
            asked=self.asked or "",
            version=None if self.model is None else self.model.root,
            digest=None if self.model is None else self.model.digest,
            prompt_tokens=sum(handle.prompt_tokens for handle in self._tickets),
            new_tokens=sum(one.new_tokens for one in served),
            status=status,
            seconds=time.monotonic() - self._started,
            text=text,
            output=output,
        )


def _heard(ended: asyncio.Future[Any]) -> None:
    """Take the exception of what nobody waits for any more, so that asyncio does not tell it."""
    if not ended.cancelled():
        ended.exception()
