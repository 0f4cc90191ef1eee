"""From the model that a request names to an adapter on the disk: resolved, fetched, checked."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from trunkline.adapters.artifact import REQUIRED, SIGNATURE, Artifact
from trunkline.adapters.signing import check_signature
from trunkline.api import Platform
from trunkline.errors import RegistryError, TrunklineError, UnavailableError
from trunkline.registry.records import VersionRecord
from trunkline_vllm.cache import AdapterCache
from trunkline_vllm.servable import ServedBase, check_artifact, check_version
from trunkline_vllm.settings import Settings

Value = TypeVar("Value")

_MAX_REMEMBERED = 10_000
_RETRY_SECONDS = 2.0
_THREADS = 4


class Remembered(Generic[Value]):
    """Answers of the registry, for the time in which it can't be reached. Safe from any thread.

    Args:
        seconds: how long after the registry gave an answer it may be used again.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._answers: dict[Hashable, tuple[float, Value]] = {}
        self._retry_at = -1.0
        self._lock = threading.Lock()

    def call(self, question: Hashable, query: Callable[[], Value]) -> Value:
        """The result of ``query``; if the registry can't be reached, the remembered one.

        For :data:`_RETRY_SECONDS` after a failure, what is remembered is used without a query, so
        that a registry that does not respond delays few requests.

        Raises:
            RegistryError: the registry can't be reached, and nothing recent is remembered.
        """
        now = self._clock()
        entry = self._answers.get(question)
        if entry is not None and now - entry[0] > self._seconds:
            entry = None
        if entry is not None and now < self._retry_at:
            return entry[1]
        try:
            answer = query()
        except RegistryError:
            self._retry_at = self._clock() + _RETRY_SECONDS
            if entry is not None:
                return entry[1]
            raise
        except TrunklineError:
            self._answers.pop(question, None)
            raise
        with self._lock:
            if len(self._answers) >= _MAX_REMEMBERED:
                self._answers.clear()
            self._answers[question] = self._clock(), answer
        return answer


class Versions:
    """The versions that one vLLM server can serve.

    Attributes:
        cache: the copies on this machine's disk; a caller leases the digest that it uses.
    """

    def __init__(self, platform: Platform, settings: Settings, base: ServedBase) -> None:
        self.cache = AdapterCache(settings.cache, settings.cache_bytes)
        self._platform = platform
        self._settings = settings
        self._base = base
        self._resolved: Remembered[VersionRecord] = Remembered(settings.grace_seconds)
        self._checked: set[str] = set()
        self._loading: dict[str, asyncio.Future[Artifact]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "trunkline-adapters")

    def resolve(self, ref: str) -> VersionRecord:
        """The version that a ref selects now, if vLLM can serve it; blocks.

        Raises:
            UsageError: the ref is malformed, or selects nothing.
            RegistryError: the registry can't be reached, and did not resolve the ref recently.
            TrunklineError: vLLM can't serve the version.
        """
        version = self._resolved.call(
            ref, lambda: self._platform.resolve(ref, suggest=False).version
        )
        check_version(version, self._base)
        return version

    async def load(self, version: VersionRecord) -> Artifact:
        """The verified and checked copy; of all requests for a version, one fetches it.

        Raises:
            UnavailableError: it did not arrive in time; a later request may find it.
            TrunklineError: it can't be fetched, is damaged, or vLLM can't serve it.
        """
        loading = self._loading.get(version.digest)
        if loading is None:
            loop = asyncio.get_running_loop()
            loading = loop.run_in_executor(self._threads, self._load, version)
            self._loading[version.digest] = loading
            loading.add_done_callback(lambda done: self._finish(version.digest, done))
        try:
            async with asyncio.timeout(self._settings.load_seconds):
                return await asyncio.shield(loading)
        except TimeoutError:
            raise UnavailableError(
                f"{version.ref} is not on this server yet.", "Retry.", retry_after=5.0
            ) from None

    def public(self, error: TrunklineError) -> TrunklineError:
        """The error without the paths of this machine, for clients."""
        for folder in (self.cache.root, self._platform.workspace.root):
            error.message = error.message.replace(f"{folder}{os.sep}", "")
        return error

    def _load(self, version: VersionRecord) -> Artifact:
        rules = self._platform.workspace.configuration.signatures
        signed = rules.required and SIGNATURE in (version.files or {})
        artifact = self.cache.load(
            self._platform.store.storage,
            version,
            (*REQUIRED, SIGNATURE) if signed else REQUIRED,
            max_bytes=self._settings.max_bytes,
            deadline=time.monotonic() + self._settings.load_seconds,
        )
        if version.digest not in self._checked:
            if rules.required:
                check_signature(artifact.folder, rules.keys)
            check_artifact(version, artifact, self._base)
            self._checked.add(version.digest)
        return artifact

    def _finish(self, digest: str, done: asyncio.Future[Any]) -> None:
        self._loading.pop(digest, None)
        if not done.cancelled():
            done.exception()  # everybody who waited may have left
