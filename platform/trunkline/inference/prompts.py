"""Request validation: from a request's text or messages to prompt tokens that fit the context."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact
from trunkline.contracts import Template
from trunkline.data.encode import (
    NoRoomError,
    Prompt,
    chat_messages,
    encode_chat,
    encode_prompt,
    encode_raw,
    start_tokens,
)
from trunkline.errors import DataError, SingleTextError, UsageError
from trunkline.inference.embedding import EmbeddingTask
from trunkline.inference.request import Request, ResolvedRequest
from trunkline.inference.request_state import RequestState
from trunkline.labels import is_blank
from trunkline.lora.pool import AdapterPool
from trunkline.tasks import (
    AnyTask,
    ClassificationTask,
    GenerationTask,
    RankingTask,
    TaggingTask,
    prompt_limit,
    task_from_json,
)

if TYPE_CHECKING:
    from trunkline.bases import Base

BASE_NEW_TOKENS = 64
"""Default length of an answer of the bare base."""

BASE_TEMPLATE = Template(chat=True, clean=("strip",))
BASE_TEMPLATE_PLAIN = Template(clean=("strip",))

_MAX_CACHED_TASKS = 10_000


class RequestValidator:
    """Validates requests for one base and encodes their prompts. Safe from any thread.

    Args:
        kv_tokens: capacity of the KV cache.
        clock: gives seconds.
    """

    def __init__(
        self,
        base: Base,
        pool: AdapterPool,
        kv_tokens: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base = base
        self._pool = pool
        self._kv_tokens = kv_tokens
        self._clock = clock
        self._tasks: dict[str, tuple[AnyTask, Template, int | None]] = {}
        self._tokenizer_lock = threading.Lock()

    def validate(self, resolved: ResolvedRequest) -> RequestState:
        """Check a request, load its adapter into memory, and encode its prompt.

        Raises:
            DataError: the text is empty, or longer than the context of the base.
            UsageError: the adapter's task does not fit the request.
            IntegrityError, BaseMismatchError: the adapter can't be loaded.
        """
        submitted = self._clock()
        request, artifact = resolved.request, resolved.artifact
        _check_modality(resolved)
        task, template, max_length = self._read_task(artifact)
        self._check_ids(request.token_ids)
        check_abstain(request, resolved.name, task)
        _check_candidate(request, resolved.name, task)
        if artifact is not None:
            self._pool.load(artifact, resolved.name)
        with self._tokenizer_lock:
            prompt = encode_request(
                request, resolved.name, task, template, self._base.tokenizer, max_length
            )
            start = start_tokens(self._base.tokenizer) if request.embed else ()
        limit = self._limit_answer(request, len(prompt.ids), max_new_tokens(request, task))
        return RequestState(
            request=request,
            artifact=artifact,
            name=resolved.name,
            digest=artifact.digest if artifact is not None else self._base.digest,
            task=EmbeddingTask(_count_start(prompt.ids, start)) if request.embed else task,
            prompt=prompt.ids,
            max_new_tokens=limit,
            truncated=prompt.truncated,
            offsets=prompt.offsets,
            submitted=submitted,
        )

    def _read_task(self, artifact: Artifact | None) -> tuple[AnyTask, Template | None, int | None]:
        """The task, the template and the longest prompt, in tokens."""
        if artifact is None:
            return GenerationTask(BASE_NEW_TOKENS), None, None
        if (entry := self._tasks.get(artifact.digest)) is None:
            manifest = artifact.manifest
            task = task_from_json(dict(manifest.task))
            length = manifest.max_length
            limit = None if length is None else prompt_limit(task, length)
            entry = task, manifest.make_template(), limit
            if len(self._tasks) > _MAX_CACHED_TASKS:
                self._tasks.clear()
            self._tasks[artifact.digest] = entry
        return entry

    def _check_ids(self, ids: Sequence[int]) -> None:
        size = int(self._base.model.config.get_text_config().vocab_size)
        for token in ids:
            if not 0 <= token < size:
                raise DataError(
                    f"The token id {token} is not in the base's vocabulary of {size:,} tokens.",
                    f"Use the tokenizer of {self._base.info.name}, or send texts.",
                )

    def _limit_answer(self, request: Request, prompt: int, limit: int) -> int:
        """How many new tokens the answer may have.

        A limit that the request sets is reduced to what the context has room for. The adapter's
        own limit must fit, so that an answer is not cut unasked.

        Raises:
            DataError: the prompt is too long, or leaves no room for the answer.
        """
        context = self._base.info.context
        most = min(context, self._kv_tokens)
        if request.max_new_tokens is not None and limit:
            limit = max(1, min(limit, most - prompt))
        if prompt + limit > most:
            limit_name = f"the base's context of {context}" if most == context else (
                f"the memory for keys and values, {most} tokens"
            )  # fmt: skip
            subject = "The prompt" if request.token_ids else f"The text {preview(request)!r}"
            raise DataError(
                f"{subject} is too long: {prompt} tokens"
                + (f" and {limit} new ones" if limit else "")
                + f" don't fit {limit_name}.",
                "Shorten the text or request fewer new tokens." if limit else "Shorten the text.",
            )
        return limit


def encode_request(
    request: Request,
    name: str,
    task: AnyTask,
    template: Template | None,
    tokenizer: Any,
    max_length: int | None = None,
) -> Prompt:
    """Encode a request's prompt as token ids.

    A text in an adapter's template is cut to ``max_length`` as training did. A conversation of
    several messages is the client's own prompt and never cut.

    Args:
        request: a text, messages, or token ids.
        name: of the adapter version, for errors.
        task: of the adapter; a generation for the base.
        template: of the adapter; None for the base.
        tokenizer: of the base.
        max_length: the adapter's longest prompt, in tokens.

    Raises:
        DataError: the text is empty or has invalid characters.
        UsageError: the adapter takes no messages, or the last one is not the user's.
        SingleTextError: the adapter takes one message only.
    """
    if request.token_ids:
        return Prompt(list(request.token_ids), "", len(request.token_ids))
    if request.raw:
        if request.embed and is_blank(request.text):
            raise DataError("The text is empty.", "Give at least one word.")
        return encode_raw(request.text, tokenizer)
    if template is None:
        template = BASE_TEMPLATE if tokenizer.chat_template else BASE_TEMPLATE_PLAIN
    if not request.messages:
        if request.candidate is not None:
            template = template.with_candidate(request.candidate)
        tagging = isinstance(task, TaggingTask) and not request.embed
        try:
            return encode_prompt(
                request.text, template, tokenizer, max_length, with_offsets=tagging
            )
        except NoRoomError:
            if request.candidate is None:
                raise
            raise DataError(
                f"The candidate {shorten(request.candidate)!r} is too long: it leaves no room for "
                f"the query in a prompt of {max_length} tokens, and candidates are never cut.",
                "Shorten it.",
            ) from None
    if not isinstance(task, GenerationTask):
        raise UsageError(
            f"{name} is for {task.kind} and can't continue a conversation.",
            "Use `trunkline predict` with it.",
        )
    *history, last = request.messages
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise UsageError(
            f"The last message has the role {last.get('role')!r}.",
            "End the conversation with a message of the user that is a text.",
        )
    if not history:
        return encode_prompt(last["content"], template, tokenizer, max_length)
    if not template.chat:
        raise SingleTextError(
            f"{name} answers single texts: its template is not a chat, so the messages before the "
            "last one would be ignored.",
            "Send the last message alone.",
        )
    if is_blank(template.cleaned(last["content"])):
        raise DataError("The last message is empty.", "Give a text.")
    ids = encode_chat(chat_messages(history, last["content"], template), tokenizer)
    return Prompt(ids, template.cleaned(last["content"]), len(ids))


def _check_modality(resolved: ResolvedRequest) -> None:
    """Raise :class:`UsageError` for a picture: this engine's base reads text."""
    if resolved.request.image is not None:
        raise UsageError(
            f"{resolved.name} reads text, and the request has a picture.",
            "Send a text, or name an adapter that reads pictures.",
        )


def check_abstain(request: Request, name: str, task: AnyTask) -> None:
    if request.abstain is None:
        return
    try:
        if not isinstance(task, ClassificationTask):
            raise UsageError(
                f"{name} is for {task.kind}; only a classification abstains.", "Leave out abstain."
            )
        task.threshold(request.abstain)
    except UsageError as error:
        error.param = "abstain"
        raise


def _check_candidate(request: Request, name: str, task: AnyTask) -> None:
    ranks = isinstance(task, RankingTask) and not request.embed
    if ranks == (request.candidate is not None):
        return
    if ranks:
        raise UsageError(
            f"{name} ranks candidates, and there is none.",
            f'Use `trunkline predict {name} "a query" --candidate A --candidate B`, or /v1/rank.',
        )
    raise UsageError(
        f"{name} is for {task.kind}; only a ranking takes a candidate.", "Leave it out."
    )


def max_new_tokens(request: Request, task: AnyTask) -> int:
    """How many tokens the answer may have; 0 if a head answers."""
    if request.embed or not isinstance(task, GenerationTask):
        return 0
    return task.max_new_tokens if request.max_new_tokens is None else request.max_new_tokens


def _count_start(prompt: Sequence[int], start: Sequence[int]) -> int:
    """How many tokens at the start of a prompt are start tokens, if there are others."""
    begins = tuple(prompt[: len(start)]) == tuple(start)
    return len(start) if begins and len(prompt) > len(start) else 0


def preview(request: Request) -> str:
    """The beginning of a request's text, for errors."""
    return shorten(str(request.messages[-1].get("content") if request.messages else request.text))


def shorten(text: str) -> str:
    """The beginning of a text, for errors."""
    return text if len(text) <= 40 else f"{text[:40]}…"


def locate_error(error: DataError, index: int, count: int) -> DataError:
    """Name the position of an invalid text among ``count``, if there are several."""
    if count == 1:
        return error
    return DataError(f"Text {index + 1} of {count}: {error.message}", error.hint)
