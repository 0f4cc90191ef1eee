"""What all requests of one server share.

Owns: readiness, the threads for what blocks, the requests in flight, and the end of all that.
Must not know: routes or bodies.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from trunkline.errors import (
    BaseModelError,
    BusyError,
    NotFoundError,
    TrunklineError,
    UnavailableError,
)
from trunkline.serving.auth import Authenticator
from trunkline.serving.deployment import Presence
from trunkline.serving.metrics import Metrics
from trunkline.serving.models import ServedBase
from trunkline.serving.request_log import RequestLog
from trunkline.serving.settings import ServerSettings, is_loopback

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.inference.engine import Engine
    from trunkline.serving.call import Call

Result = TypeVar("Result")

_RETRY_SECONDS = 2.0


class Service:
    """One platform being served.

    Attributes:
        ready: the base is loaded.
        failure: why it could not be loaded.
        url: where it listens; empty where another program holds the socket.
        draining: nothing new is taken.
        calls: in flight, by id.
    """

    def __init__(self, platform: Platform, settings: ServerSettings) -> None:
        self.platform = platform
        self.settings = settings
        self.registry = platform.registry
        self.doorkeeper = Authenticator(
            self.registry, loopback=is_loopback(settings.host), host=settings.host
        )
        self.metrics = Metrics()
        self.failure: TrunklineError | None = None
        self.url = ""
        self.draining = False
        self.calls: dict[str, Call] = {}
        self._engine: Engine | None = None
        self._base: ServedBase | None = None
        self._presence: Presence | None = None
        self._log = RequestLog(self.registry.requests.log) if settings.log_requests else None
        self._asking = ThreadPoolExecutor(settings.workers, "registry")
        self._loading = ThreadPoolExecutor(settings.workers, "adapters")

    # ------------------------------------------------------------------------- beginning and end

    def start(self) -> None:
        """Begin to load the base, in a thread that does not hold up the process's end."""
        if self._log is not None:
            self._log.start()
        threading.Thread(target=self._load, name="base", daemon=True).start()

    async def stop(self) -> None:
        """Write what is left of the log, tell that the server ends, and end the threads; the
        engine is its owner's."""
        self.draining = True
        if self._log is not None:
            await asyncio.to_thread(self._log.stop)
        if self._presence is not None:
            await asyncio.to_thread(self._presence.stop)
        if self._engine is not None and self.metrics.observe in self._engine.observers:
            self._engine.observers.remove(self.metrics.observe)
        self._asking.shutdown(wait=False)
        self._loading.shutdown(wait=False)

    def _load(self) -> None:
        try:
            engine = self.platform.engine
            self._base = ServedBase(engine.base.info.name, engine.base.digest, int(time.time()))
            engine.observers.append(self.metrics.observe)
            self.metrics.watch(engine)
            if not (self.registry.read_only or self.draining):
                self._presence = Presence(
                    self.registry, engine.base.info, self.url, dtype=engine.base.kind
                )
                self._presence.watch(engine.pool)
                self._presence.start()
            self._engine = engine
        except TrunklineError as error:
            self.failure = error
        except Exception as error:
            logging.getLogger("trunkline.serving").exception("The base could not be loaded.")
            self.failure = BaseModelError(f"The base could not be loaded: {error}.")

    # ------------------------------------------------------------------------------ what is there

    @property
    def ready(self) -> bool:
        return self._engine is not None

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            UnavailableError: the base is not loaded.
        """
        if self._engine is None:
            raise self._not_yet()
        return self._engine

    @property
    def base(self) -> ServedBase:
        """What is told of the base.

        Raises:
            UnavailableError: it is not loaded.
        """
        if self._base is None or self._engine is None:
            raise self._not_yet()
        return self._base

    def _not_yet(self) -> UnavailableError:
        if self.failure is not None:
            return UnavailableError("The base could not be loaded.", self.failure.message)
        return UnavailableError(
            "The base is still being loaded.", "Ask again.", retry_after=_RETRY_SECONDS
        )

    # ----------------------------------------------------------------------------- what it shares

    async def ask(self, question: Callable[..., Result], *args: object) -> Result:
        """Run what waits for the registry in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._asking, question, *args)

    async def load(self, loading: Callable[..., Result], *args: object) -> Result:
        """Run what may read an adapter from disk in a thread; kept apart from :meth:`ask`, so
        that slow disks don't hold up questions."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._loading, loading, *args)

    async def keep(self, call: Call, status: int, output: str | None) -> None:
        """Commit a request's line, if requests are logged.

        Raises:
            RegistryError: it could not be written.
        """
        if self._log is not None:
            text = self.settings.log_text
            line = call.line(status, call.text if text else None, output if text else None)
            await self._log.keep(line, alone=call.named_by_client)

    def id_is_free(self, id: str) -> bool:
        """Whether no request, running or logged, has this id; blocks."""
        return id not in self.calls and self.id_is_new(id)

    def id_is_new(self, id: str) -> bool:
        """Whether no logged request has this id; blocks."""
        try:
            self.registry.requests.get(id)
        except NotFoundError:
            return True
        return False

    # -------------------------------------------------------------------------- requests in flight

    def enter(self, call: Call) -> None:
        """Count a request in.

        Raises:
            UnavailableError: the server is ending.
            BusyError: there are as many as may be.
        """
        if self.draining:
            raise UnavailableError("The server is ending.", "Ask another one, or this one later.")
        if len(self.calls) >= self.settings.max_requests:
            raise BusyError(
                f"The server has {len(self.calls):,} requests in flight, as many as it takes.",
                "Ask again later.",
            )
        self.calls[call.id] = call

    def rename(self, call: Call, id: str, *, by_client: bool) -> None:
        """Give a request in flight the id that its client chose, or another where that is taken."""
        self.calls[id] = self.calls.pop(call.id)
        call.id, call.named_by_client = id, by_client

    def leave(self, call: Call) -> None:
        """Count a request out, and give up what it has left behind."""
        call.cancel()
        self.calls.pop(call.id, None)

    def cancel_all(self) -> None:
        """Give up everything that is in flight."""
        for call in list(self.calls.values()):
            call.cancel()
