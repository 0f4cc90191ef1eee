"""The engines of a server: loaded in threads, counted by the metrics, recorded in the registry."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.errors import (
    BaseModelError,
    TrunklineError,
    UnavailableError,
    UsageError,
    one_line,
)
from trunkline.serving.heartbeat import RegistryHealth, ServerHeartbeat

if TYPE_CHECKING:
    from trunkline.api import Platform
    from trunkline.contracts import Modality
    from trunkline.inference.engine import Engine
    from trunkline.inference.image_engine import AnyEngine
    from trunkline.serving.metrics import Metrics

_RETRY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ServerBase:
    """The base that a server loads when it starts.

    Attributes:
        loaded_at: a Unix time.
        reads_text: whether the server answers texts; otherwise pictures only.
    """

    name: str
    digest: str
    loaded_at: int
    reads_text: bool = True


class ServerEngines:
    """The engines of one server; the one for pictures is loaded when it is first used.

    Where the platform's only base is one for pictures, it is loaded first, and texts are refused.

    Attributes:
        failure: why the base could not be loaded.
    """

    def __init__(self, platform: Platform, metrics: Metrics) -> None:
        self.failure: TrunklineError | None = None
        self._platform, self._metrics = platform, metrics
        self._first: AnyEngine | None = None
        self._base: ServerBase | None = None
        self._lock = threading.Lock()
        self._heartbeat: ServerHeartbeat | None = None

    def load(self, url: Callable[[], str | None]) -> None:
        """Load the first base; blocks.

        Args:
            url: where the server listens; None: it is not recorded in the registry.
        """
        engines = self._platform.engines
        try:
            only_images = engines.serves_images_only
            first = engines.of("image" if only_images else "text")
            info = first.base.info
            self._base = ServerBase(info.name, info.digest, int(time.time()), not only_images)
            if (address := url()) is not None:
                self._heartbeat = ServerHeartbeat(
                    self._platform.registry,
                    info,
                    address,
                    modality=first.modality,
                    dtype=first.base.kind,
                )
            self._attach(first)
            if self._heartbeat is not None:
                self._heartbeat.start()
            self._first = first
            if any(one.modality == "image" for one in engines.loaded()):  # preloaded
                self._image()
        except TrunklineError as error:
            self.failure = error
        except Exception as error:
            logging.getLogger("trunkline.serving").exception("The base could not be loaded.")
            self.failure = BaseModelError(f"The base could not be loaded: {one_line(error)}.")

    def stop(self) -> None:
        """Record the server's end; blocks. The engines stay open; the platform owns them."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        for engine in self._platform.engines.loaded():
            if self._metrics.observe in engine.observers:
                engine.observers.remove(self._metrics.observe)

    @property
    def registry_health(self) -> RegistryHealth | None:
        """What the heartbeat last saw of the registry; None if there was none yet."""
        return None if self._heartbeat is None else self._heartbeat.health

    @property
    def ready(self) -> bool:
        """Whether the first base is loaded."""
        return self._first is not None

    @property
    def base(self) -> ServerBase:
        """The base that was loaded first; raises :class:`UnavailableError` until it is."""
        if self._base is None or self._first is None:
            if self.failure is not None:
                raise UnavailableError("The base could not be loaded.", self.failure.message)
            raise UnavailableError("The base is loading.", "Retry.", retry_after=_RETRY_SECONDS)
        return self._base

    @property
    def text(self) -> Engine:
        """The engine for texts.

        Raises:
            UnavailableError: the base is not loaded yet.
            UsageError: the server answers pictures only.
        """
        if not self.base.reads_text:
            raise UsageError(
                f"This server answers pictures only: its base is {self.base.name}.",
                f"For texts too, start one with: trunkline serve --image-base {self.base.name}.",
            )
        return self._platform.engine

    @property
    def loaded(self) -> list[AnyEngine]:
        """The loaded engines, the first one first; raises as :attr:`base`."""
        digest = self.base.digest
        return sorted(self._platform.engines.loaded(), key=lambda one: one.base.digest != digest)

    def of(self, modality: Modality) -> AnyEngine:
        """The engine of a base; raises as :attr:`text`."""
        if modality == "text":
            return self.text
        _ = self.base  # until the first base is loaded, nothing is recorded
        return self._image()

    def _image(self) -> AnyEngine:
        with self._lock:
            engine = self._platform.engines.image
            self._attach(engine)
        return engine

    def _attach(self, engine: AnyEngine) -> None:
        """Count the engine's requests, and record its adapters, from now on."""
        if self._metrics.observe in engine.observers:
            return
        engine.observers.append(self._metrics.observe)
        self._metrics.watch(engine)
        if self._heartbeat is not None:
            self._heartbeat.watch(engine.pool)
