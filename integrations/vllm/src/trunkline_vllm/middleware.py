"""The middleware in front of vLLM: keys, versions, probes and the request log.

Only the routes named here are served; vLLM has others that answer with the base, or that load and
unload adapters for everyone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeVar

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import trunkline
from trunkline.adapters.artifact import Artifact
from trunkline.errors import (
    AuthenticationError,
    ForbiddenError,
    RefusedError,
    RegistryError,
    TrunklineError,
    UnavailableError,
    UsageError,
)
from trunkline.refs import BASE, Ref, shown
from trunkline.registry.records import KeyRecord, VersionRecord
from trunkline.serving.bodies import parse_body
from trunkline.serving.engines import ServerBase
from trunkline.serving.errors import INTERNAL_ERROR, ApiError, error_response, unknown_model
from trunkline.serving.middleware import Authenticator, check_header_size, read_body, replay
from trunkline.serving.models import MAX_LISTED, ServedModels
from trunkline.serving.request_log import RequestLog
from trunkline.serving.settings import ServerSettings
from trunkline_vllm.exchange import AnswerSender, Backlog, Exchange
from trunkline_vllm.probes import Probe, check_answer, stored_probes
from trunkline_vllm.prompts import COMPLETIONS, Prompts
from trunkline_vllm.resolver import NAME, share
from trunkline_vllm.servable import ServedBase
from trunkline_vllm.settings import Settings
from trunkline_vllm.versions import Remembered, Versions

OPEN = frozenset({"/health", "/ping"})
"""Routes without a key."""

READABLE = frozenset({"/metrics", "/version", "/load"})
MODELS = "/v1/models"
ANSWERING = frozenset({"/v1/chat/completions", COMPLETIONS})
LOADING = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})

_THREADS = 8

_log = logging.getLogger("trunkline_vllm")
Result = TypeVar("Result")


class TrunklineMiddleware:
    """For ``vllm serve --middleware trunkline_vllm.middleware.TrunklineMiddleware``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._gateway: Gateway | None = None
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            try:
                await self._app(scope, receive, send)
            finally:
                if self._gateway is not None:
                    await asyncio.to_thread(self._gateway.close)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif _path(scope) in OPEN or scope["method"] == "OPTIONS":
            await self._app(scope, receive, send)
        else:
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(_path(scope))
        started = False

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with self._opening:
                if self._gateway is None:
                    state = scope["app"].state
                    self._gateway = await asyncio.to_thread(Gateway.open, self._app, state)
            await self._gateway.answer(exchange, scope, receive, send_noted)
            return
        except TrunklineError as error:
            failure = error
        except Exception:
            _log.exception("A request failed.")
            failure = INTERNAL_ERROR
        if self._gateway is not None:
            failure = await self._gateway.fail(exchange, failure)
        if not started:
            await error_response(failure, exchange.headers)(scope, receive, send)


class Gateway:
    """What all requests of one vLLM server share.

    Args:
        app: vLLM's application behind the middleware.
    """

    def __init__(self, app: ASGIApp, base: ServedBase, settings: Settings) -> None:
        self._app = app
        self._base = base
        self._settings = settings
        self._limits = ServerSettings()
        platform = trunkline.open(base=base.source, no_plugins=True)
        self._registry = platform.registry
        self.versions = Versions(platform, settings, base)
        self._models = ServedModels(
            platform, ServerBase(base.names[0], base.digest, int(time.time()))
        )
        self._keys: Remembered[KeyRecord | None] = Remembered(settings.grace_seconds)
        self._authenticators = {
            local: Authenticator(self._registry, loopback=local, host="localhost")
            for local in (True, False)
        }
        self._prompts = Prompts(base.source)
        self._proved: dict[str, asyncio.Lock | None] = {}
        self._backlog = Backlog(self._registry)
        self._request_log = RequestLog(self._backlog.commit)
        self._request_log.start()
        self._threads = ThreadPoolExecutor(_THREADS, "trunkline-registry")

    @classmethod
    def open(cls, app: ASGIApp, state: Any) -> Gateway:
        """Create it from vLLM's application that is up, and share its versions with the resolver.

        Raises:
            TrunklineError: a setting is invalid, or the base or the registry can't be read.
        """
        _check_flags(state)
        settings = Settings.read()
        gateway = cls(app, ServedBase.of_app(state, settings.base), settings)
        share(gateway.versions)
        return gateway

    def close(self) -> None:
        """Write the rest of the log; blocks."""
        self._request_log.stop()
        self._backlog.close()

    async def answer(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or raise :class:`TrunklineError` before anything is sent."""
        method, path, headers = scope["method"], _path(scope), Headers(scope=scope)
        check_header_size(headers, self._limits)
        if path in LOADING:
            raise ForbiddenError(
                "Adapters are loaded by name from the registry only.",
                "Name an adapter in a request, as in GET /v1/models.",
            )
        exchange.key = await self._query(self._identify, headers, _is_local(scope))
        if method == "GET" and path in READABLE:
            await self._app(scope, receive, send)
        elif method == "GET" and path == MODELS:
            await (await self._list(exchange))(scope, receive, send)
        elif method == "POST" and path in ANSWERING:
            body = parse_body(await read_body(receive, headers, self._limits), headers)
            await self._generate(exchange, body, scope, receive, send)
        else:
            raise ApiError(
                f"There is no {method} {shown(path)}.",
                f"Served are GET {MODELS}, POST {' and POST '.join(sorted(ANSWERING))}.",
                status=404,
            )

    async def fail(self, exchange: Exchange, error: TrunklineError) -> TrunklineError:
        """Log a request that failed; returns the error for the client."""
        try:
            await self._commit(exchange, error.http_status)
        except RegistryError as log_error:
            error = log_error
        return self.versions.public(error)

    # ------------------------------------------------------------------------------- the steps

    def _identify(self, headers: Headers, local: bool) -> KeyRecord | None:
        """The request's key; None on an open server; blocks."""
        authorization, host = headers.get("authorization"), headers.get("host")
        hashed = hashlib.sha256((authorization or "").encode()).digest()
        key = self._keys.call(
            (hashed, host, local),
            lambda: self._authenticators[local].authenticate(authorization, host),
        )
        if key is not None and key.expires is not None and key.expires <= datetime.now(UTC):
            raise AuthenticationError("The key has expired.", "Create one: trunkline keys create.")
        return key

    async def _list(self, exchange: Exchange) -> JSONResponse:
        entries, _ = await self._query(self._models.page, exchange.key, MAX_LISTED, None)
        data = [entry.to_json() for entry in entries if entry.task == "generation"]
        return JSONResponse({"object": "list", "data": data}, headers=exchange.headers)

    async def _generate(
        self,
        exchange: Exchange,
        body: dict[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        name = body.get("model")
        if not isinstance(name, str) or not name:
            raise ApiError("model is missing.", "Name one of GET /v1/models.", param="model")
        exchange.model = name
        version = await self._query(self._resolve, exchange.key, name)
        if version is None:
            exchange.base_digest = self._base.digest
            rewritten = {**body, "model": self._base.names[0]}
            await self._forward(exchange, rewritten, scope, receive, send)
            return
        exchange.version = version
        with self.versions.cache.lease(version.digest):
            artifact = await self.versions.load(version)
            await self._prove(version, artifact, scope)
            rewritten = await self._query(
                self._prompts.rewrite, exchange.route, body, str(version.ref), artifact
            )
            await self._forward(exchange, rewritten, scope, receive, send)

    def _resolve(self, key: KeyRecord | None, name: str) -> VersionRecord | None:
        """The version that a name selects now; None for the base; blocks."""
        if key is not None and not key.has_role("tester"):
            raise ForbiddenError(
                f"The key {key.id} has the role {key.role}, which may send no requests to a model.",
                "Create one with: trunkline keys create OWNER --role tester.",
            )
        is_base = name == BASE or name in self._base.names
        try:
            adapter = BASE if is_base else Ref.parse(name).adapter
            if key is not None and not key.may_use(adapter):
                raise ForbiddenError(
                    f"The key {key.id} may not use {adapter}.", "GET /v1/models lists what it may."
                )
            return None if is_base else self.versions.resolve(name)
        except UsageError:
            raise unknown_model(name) from None

    async def _prove(self, version: VersionRecord, artifact: Artifact, scope: Scope) -> None:
        """Before its first answer, let vLLM repeat the stored probes of a version.

        Raises:
            IntegrityError: vLLM answers otherwise.
            RefusedError: none are stored.
            UnavailableError: vLLM does not answer them.
        """
        digest = version.digest
        lock = self._proved.setdefault(digest, asyncio.Lock())
        if lock is None:
            return
        async with lock:
            if self._proved[digest] is None:  # by a request that was first
                return
            probes = await self._query(stored_probes, self._registry, version)
            if not probes and self._settings.probe == "required":
                raise RefusedError(
                    f"{version.ref} has no stored probes, so its answers here can't be proved.",
                    f"Where it was trained, run: trunkline-vllm probe {version.ref}.",
                )
            for probe in probes:
                check_answer(version, probe, await self._ask(version, probe, scope))
            self._proved[digest] = None

    async def _ask(self, version: VersionRecord, probe: Probe, scope: Scope) -> list[int]:
        """The tokens with which vLLM answers a probe."""
        status, data = 0, b""

        async def collect(message: Message) -> None:
            nonlocal status, data
            status = message.get("status", status)
            data += message.get("body", b"")

        inner = {**scope, "method": "POST", "path": COMPLETIONS, "raw_path": COMPLETIONS.encode()}
        inner |= {"root_path": "", "query_string": b"", "state": dict(scope.get("state", {}))}
        body = json.dumps(probe.body(str(version.ref))).encode()
        inner["headers"] = _json_headers([], body)
        await self._app(inner, replay(body, _never), collect)
        try:
            assert status == 200
            return list(json.loads(data)["choices"][0]["token_ids"])
        except (AssertionError, ValueError, LookupError, TypeError):
            _log.error("vLLM does not answer a probe of %s: %s %r", version.ref, status, data[:500])
            raise UnavailableError(
                f"vLLM does not answer a stored probe of {version.ref}: status {status}.",
                "The reason is in vLLM's own log.",
            ) from None

    async def _forward(
        self,
        exchange: Exchange,
        body: dict[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """Let vLLM answer, and log the request."""
        options = body.get("stream_options") or {}
        keep_usage = isinstance(options, dict) and bool(options.get("include_usage"))
        if body.get("stream") is True and isinstance(options, dict):
            body = {**body, "stream_options": {**options, "include_usage": True}}
        data = json.dumps(body).encode()
        inner = {**scope, "headers": _json_headers(scope["headers"], data)}

        sender = AnswerSender(exchange, send, keep_usage=keep_usage)
        await self._app(inner, replay(data, receive), sender)
        await sender.finish(partial(self._commit, exchange))

    async def _commit(self, exchange: Exchange, status: int) -> None:
        """Commit the request's line, once.

        Raises:
            RegistryError: it can't be written, and too many lines wait.
        """
        if exchange.model is not None and not exchange.logged:
            exchange.logged = True
            await self._request_log.write(exchange.entry(status))

    async def _query(self, function: Callable[..., Result], *args: object) -> Result:
        """Run a function that blocks in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _check_flags(state: Any) -> None:
    """Check that vLLM asks our resolver for adapters.

    Raises:
        UnavailableError: it was started otherwise.
    """
    if state.vllm_config.lora_config is None:
        raise UnavailableError("vLLM takes no adapters.", "Start it with --enable-lora.")
    if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "0").lower() not in ("1", "true"):
        raise UnavailableError(
            "vLLM does not ask for adapters by name.",
            "Start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; the routes that this opens stay "
            "closed.",
        )
    if os.environ.get("VLLM_SKIP_MODEL_NAME_VALIDATION", "0").lower() in ("1", "true"):
        raise UnavailableError(
            "vLLM would answer with the base for every name.",
            "Start it without VLLM_SKIP_MODEL_NAME_VALIDATION.",
        )
    resolvers = state.openai_serving_models.lora_resolvers
    if not any(getattr(one, "name", None) == NAME for one in resolvers):
        raise UnavailableError(
            "vLLM has not loaded the plugin 'trunkline'.",
            "Install trunkline-vllm where vLLM is, and name it in VLLM_PLUGINS if that is set.",
        )


def _path(scope: Scope) -> str:
    """The path as vLLM's router sees it."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def _is_local(scope: Scope) -> bool:
    """Whether the request arrived at a loopback address of this machine."""
    try:
        return ip_address((scope.get("server") or ("", 0))[0]).is_loopback
    except ValueError:
        return False


def _json_headers(headers: list[tuple[bytes, bytes]], body: bytes) -> list[tuple[bytes, bytes]]:
    """Headers for another body; those that describe the client's body are left out."""
    kept = [one for one in headers if not one[0].lower().startswith((b"content-", b"transfer-"))]
    length = str(len(body)).encode()
    return [*kept, (b"content-type", b"application/json"), (b"content-length", length)]


async def _never() -> Message:
    """A client that stays connected."""
    await asyncio.Event().wait()
    raise AssertionError
