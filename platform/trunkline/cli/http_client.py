"""The client of a running server: transport, responses, and errors sent by the server.

Imported only for commands that send requests. Redirects are never followed: the key goes to the
named server alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ConfigDict, ValidationError

from trunkline.cli.client import TRUNCATED, Messages, Model
from trunkline.cli.output import note
from trunkline.contracts import Modality, Reads
from trunkline.errors import (
    AuthenticationError,
    BaseMismatchError,
    BaseModelError,
    BusyError,
    DataError,
    DeadlineError,
    ForbiddenError,
    IntegrityError,
    Interrupted,
    NotFoundError,
    RefusedError,
    RegistryError,
    SingleTextError,
    TooLargeError,
    TrunklineError,
    UnavailableError,
    UsageError,
    one_line,
)
from trunkline.evaluation.gates import GateCheck
from trunkline.images import ImageSource, data_url
from trunkline.inference.ranking import Ranking
from trunkline.inference.request import Answer, ScoredSpan, StreamChunk
from trunkline.promotion import GateRefusedError
from trunkline.redaction import redact_exception, redact_url, remember, remember_url
from trunkline.refs import BASE, Ref
from trunkline.serving.admin_schemas import Check

if TYPE_CHECKING:
    from pathlib import Path

    from trunkline.cli.progress import Lines, Live

DEFAULT_URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "TRUNKLINE_API_KEY"

_ROUTES = {
    "classification": "/v1/classify",
    "multilabel": "/v1/classify",
    "regression": "/v1/regress",
    "tagging": "/v1/tag",
}
_BATCH = 64
_BATCH_CHARS = 50_000
_TIMEOUT = httpx2.Timeout(600.0, connect=10.0)
_ATTEMPTS = 4
_LONGEST_WAIT = 10.0
_BY_STATUS: dict[int, type[TrunklineError]] = {
    400: UsageError,
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: RefusedError,
    413: TooLargeError,
    422: DataError,
    504: DeadlineError,
}
_BY_CODE: dict[str | None, type[TrunklineError]] = {
    kind.code: kind
    for kind in (
        BaseMismatchError,
        BaseModelError,
        DeadlineError,
        IntegrityError,
        Interrupted,
        RegistryError,
        SingleTextError,
    )
}
"""Errors whose code is more specific than their status, or that come without a status."""

_HINTS = {
    401: f"Put a key made by `trunkline keys create` into {KEY_VARIABLE}.",
    403: f"Use another key in {KEY_VARIABLE}.",
}


class _Response(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


_Parsed = TypeVar("_Parsed", bound=BaseModel)


class _ModelInfo(_Response):
    root: str
    task: str
    digest: str
    modality: Reads = "text"


class _ListedModel(_Response):
    id: str
    task: str


class _ModelList(_Response):
    data: list[_ListedModel]


class _Prediction(_Response):
    prompt_tokens: int
    truncated: bool = False
    label: str | None = None
    labels: tuple[str, ...] | None = None
    spans: tuple[ScoredSpan, ...] | None = None
    abstained: bool = False
    probabilities: dict[str, float] | None = None
    value: float | None = None
    unit: str | None = None


class _Predictions(_Response):
    model: str
    data: list[_Prediction]


class _CachedTokens(_Response):
    cached_tokens: int


class _Usage(_Response):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: _CachedTokens


class _RankedDocument(_Response):
    index: int
    relevance_score: float


class _RankedDocuments(_Response):
    model: str
    results: list[_RankedDocument]
    usage: _Usage
    truncated: bool


class _Message(_Response):
    content: str


class _Choice(_Response):
    message: _Message
    finish_reason: str | None


class _Completion(_Response):
    model: str
    truncated: list[int] = []
    choices: list[_Choice]
    usage: _Usage


class _Delta(_Response):
    content: str | None = None


class _ChunkChoice(_Response):
    index: int
    delta: _Delta
    finish_reason: str | None


class _Chunk(_Response):
    choices: list[_ChunkChoice]
    truncated: list[int] = []


class HttpClient:
    """Answers through a running server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def resolve(self, ref: str) -> Model:
        if ref != BASE:
            Ref.parse(ref)
        body = self._server.get(f"/v1/models/{quote(ref, safe='/@:')}")
        info = self._server.parse(_ModelInfo, body)
        note(info.root)
        return Model(info.root, info.task, info.digest, info.modality)

    def prepare(self, listener: Lines | Live, modality: Modality) -> None:
        """Do nothing: the server loads the base."""

    def predict(
        self, model: Model, texts: Sequence[str], abstain: float | None = None
    ) -> list[Answer]:
        if model.generates:
            raise UsageError(
                "The bare base predicts no labels."
                if model.name == BASE
                else f"{model.name} is for {model.task}.",
                f'Use `trunkline generate {model.name} "…"`.',
            )
        return [
            answer for batch in _batches(texts) for answer in self._predict(model, batch, abstain)
        ]

    def predict_images(
        self, model: Model, paths: Sequence[Path], abstain: float | None = None
    ) -> list[Answer]:
        return [
            answer
            for path in paths
            for answer in self._predict(model, [data_url(ImageSource(path).read())], abstain)
        ]

    def predict_pair(self, model: Model, text: str, path: Path, abstain: float | None) -> Answer:
        pair = {"text": text, "image_url": data_url(ImageSource(path).read())}
        return self._predict(model, [pair], abstain)[0]

    def _predict(self, model: Model, inputs: Sequence[Any], abstain: float | None) -> list[Answer]:
        body: dict[str, Any] = {"model": model.name, "input": list(inputs)}
        if abstain is not None:
            body["abstain"] = abstain
        if model.task == "ranking":
            raise UsageError(
                f"{model.name} ranks candidates, and there is none.", "Use --candidate, repeatedly."
            )
        response = self._server.parse(_Predictions, self._server.post(_ROUTES[model.task], body))
        return [
            Answer(
                adapter=response.model,
                digest=model.digest,
                task=model.task,
                prompt_tokens=item.prompt_tokens,
                truncated=item.truncated,
                label=item.label,
                labels=item.labels,
                spans=item.spans,
                abstained=item.abstained,
                probabilities=item.probabilities,
                value=item.value,
                unit=item.unit,
            )
            for item in response.data
        ]

    def rank(self, model: Model, query: str, candidates: Sequence[str]) -> Ranking:
        body = {"model": model.name, "query": query, "documents": list(candidates)}
        response = self._server.parse(_RankedDocuments, self._server.post("/v1/rank", body))
        if sorted(one.index for one in response.results) != list(range(len(candidates))):
            raise unexpected_response(self._server.url)
        return Ranking(
            adapter=response.model,
            digest=model.digest,
            candidates=tuple(candidates[one.index] for one in response.results),
            probabilities=tuple(one.relevance_score for one in response.results),
            prompt_tokens=response.usage.prompt_tokens,
            truncated=response.truncated,
        )

    def generate(self, model: Model, prompt: str, sampling: Mapping[str, Any]) -> Answer:
        if not model.generates:
            raise UsageError(
                f"{model.name} is for {model.task}.",
                f'Use `trunkline predict {model.name} "…"`.',
            )
        body = _chat_body(model, [{"role": "user", "content": prompt}], sampling)
        response = self._server.parse(_Completion, self._server.post("/v1/chat/completions", body))
        if not response.choices:
            raise unexpected_response(self._server.url)
        choice, usage = response.choices[0], response.usage
        return Answer(
            adapter=response.model,
            digest=model.digest,
            task=model.task,
            prompt_tokens=usage.prompt_tokens,
            new_tokens=usage.completion_tokens,
            cached_tokens=usage.prompt_tokens_details.cached_tokens,
            truncated=bool(response.truncated),
            text=choice.message.content,
            finish=choice.finish_reason,
        )

    def stream(
        self, model: Model, messages: Messages, sampling: Mapping[str, Any]
    ) -> Generator[StreamChunk]:
        body = _chat_body(model, messages, sampling) | {"stream": True}
        noted = False
        for event in self._server.events("/v1/chat/completions", body):
            chunk = self._server.parse(_Chunk, event)
            if chunk.truncated and not noted:
                noted = True
                note(TRUNCATED)
            for choice in chunk.choices:
                yield StreamChunk(
                    choice.index, choice.delta.content or "", (), choice.finish_reason
                )

    def adapters(self) -> list[tuple[str, str]]:
        models = self._server.parse(_ModelList, self._server.get("/v1/models")).data
        tasks: dict[str, str] = {}
        for model in models:
            if model.id != BASE:
                tasks.setdefault(model.id.partition("@")[0], model.task)
        return list(tasks.items())


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in requests of a size that a server accepts; a very long text is alone in one."""
    batch: list[str] = []
    for text in texts:
        if batch and (len(batch) == _BATCH or sum(map(len, batch)) + len(text) > _BATCH_CHARS):
            yield batch
            batch = []
        batch.append(text)
    if batch:
        yield batch


def _chat_body(model: Model, messages: Messages, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The body of a chat request; ``sampling`` uses the names of the command line."""
    body = {"model": model.name, "messages": list(messages), **sampling}
    limit = body.pop("max_new_tokens", None)
    return body if limit is None else body | {"max_tokens": limit}


class Server:
    """The transport to one server. Use it as a context manager, or close it.

    Args:
        url: ``http://host:port`` or ``https://…``; a trailing ``/v1`` is removed.
        key: sent as a bearer token; by default the value of ``TRUNKLINE_API_KEY``.

    Raises:
        UsageError: the URL or the key is malformed.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = _check_url(url)
        key = os.environ.get(KEY_VARIABLE, "").strip() if key is None else key
        remember(key)
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UsageError(
                f"The value of {KEY_VARIABLE} is not a key.", "`trunkline keys create` makes one."
            )
        try:
            self._client = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=_TIMEOUT,
                follow_redirects=False,
                trust_env=not _is_loopback(httpx2.URL(self.url).host),
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise UsageError(
                f"The address of a proxy can't be read: {one_line(error)}.",
                "Correct HTTP_PROXY, HTTPS_PROXY or ALL_PROXY; write %40 for '@' in a password.",
            ) from redact_exception(error)

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path such as ``/v1/models``."""
        return self._request("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers ``body``; retries when the server is busy."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._request("POST", path, body)
            except UnavailableError:
                raise
            except BusyError as busy:
                time.sleep(min(busy.retry_after, _LONGEST_WAIT))
        return self._request("POST", path, body)

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The JSON objects of a stream up to its ``[DONE]``; closing it cancels the request.

        Raises:
            TrunklineError: the server sent an error, or the stream ended without ``[DONE]``.
        """
        with (
            self._translating(),
            self._client.sse(self.url + path, method="POST", json=body) as source,
        ):
            if source.response.status_code != 200:
                source.response.read()
                raise self._refusal(source.response)
            for event in source:
                if event.data == "[DONE]":
                    return
                value = event.json()
                if not isinstance(value, dict):
                    raise ValueError("not an object")
                if "error" in value:
                    raise self._error_from(value["error"], None)
                yield value
        raise UnavailableError(
            f"The server at {self.url} ended the stream before it was complete.", "Try again."
        )

    def parse(self, model: type[_Parsed], body: object) -> _Parsed:
        """A response body as a validated object."""
        try:
            return model.model_validate(body)
        except ValidationError as error:
            raise unexpected_response(self.url) from error

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._translating():
            response = self._client.request(method, self.url + path, json=body)
            if response.status_code != 200:
                raise self._refusal(response)
            value = response.json()
            if not isinstance(value, dict):
                raise ValueError("not an object")
            return value

    def _refusal(self, response: httpx2.Response) -> TrunklineError:
        if response.is_redirect:
            target = response.headers.get("location", "another address")[:200]
            return UsageError(
                f"The server at {self.url} redirects to {target!r}, which is not followed.",
                "Pass that address to --url if you trust it with your key.",
            )
        return self._error_from(response.json()["error"], response)

    def _error_from(self, body: Any, response: httpx2.Response | None) -> TrunklineError:
        """The error that the server sent in OpenAI's form.

        Args:
            body: the object under ``error``.
            response: None for an error inside a stream.
        """
        status = 500 if response is None else response.status_code
        message, hint = " ".join(str(body["message"]).split()), body.get("hint")
        if hint:
            message = message.removesuffix(f" {hint}")
        hint = _HINTS.get(status) or hint
        if (checks := body.get("checks")) is not None:
            valid = [Check.model_validate(check) for check in checks]
            results = [GateCheck(one.name, one.passed, one.figures) for one in valid]
            return GateRefusedError(message, hint, results)
        kind = _BY_CODE.get(body.get("code") or "") or _BY_STATUS.get(status)
        if kind is None and response is not None and status in (429, 503):
            busy = BusyError if status == 429 else UnavailableError
            return busy(message, hint, retry_after=_seconds(response.headers.get("retry-after")))
        return (kind or TrunklineError)(message, hint)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Raise transport and format errors as Trunkline's own."""
        try:
            yield
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise UnavailableError(
                f"No server answers at {self.url} ({one_line(error)}).",
                "`trunkline serve` starts a server.",
            ) from redact_exception(error)
        except httpx2.TransportError as error:
            raise UnavailableError(
                f"The connection to {self.url} failed: {one_line(error)}.",
                "Check the server's output, and try again.",
            ) from redact_exception(error)
        except UnicodeEncodeError as error:
            raise DataError(
                "A text contains characters that can't be encoded.", "Send it as UTF-8."
            ) from error
        except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise unexpected_response(self.url) from redact_exception(error)


def unexpected_response(url: str) -> TrunklineError:
    """The error for a response that is not from a Trunkline server of this version."""
    return TrunklineError(
        f"The response from {url} is not one of a Trunkline server of this version.",
        "Check the address, and that the server runs the same version of Trunkline.",
    )


def _check_url(url: str) -> str:
    """The URL without a trailing slash; refuses what can't be a server's address.

    An error shows no part of the URL that may be a password or a key.
    """
    example = f"Write it like {DEFAULT_URL}."
    url = url.strip()
    remember_url(url)
    scheme, separator, rest = url.partition("://")
    subject = f"The URL {redact_url(url)!r}" if "@" not in url else "The URL"
    if not separator or scheme.lower() not in ("http", "https"):
        raise UsageError(f"{subject} does not begin with http:// or https://.", example)
    if "@" in rest:
        raise UsageError(
            f"{subject} contains a user name or a password, or '@' for another reason.",
            f"Remove it, and put the key into {KEY_VARIABLE}. {example}",
        )
    if "?" in rest or "#" in rest:
        raise UsageError(f"{subject} has parameters after its path.", example)
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UsageError(
            f"{subject} has a host or a port that can't be read.", example
        ) from redact_exception(error)
    if not parsed.host:
        raise UsageError(f"{subject} has no host.", example)
    return str(parsed).rstrip("/").removesuffix("/v1")


def _is_loopback(host: str) -> bool:
    """Whether a host is this machine, which needs no proxy."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 1))
    except ValueError:
        return 1.0
