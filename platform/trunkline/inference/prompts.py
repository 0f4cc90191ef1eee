"""What the model reads: a request's text or talk, through the template of the adapter.

Owns: the way from a request to prompt tokens, the same for every interface. Must not know: batches,
files, HTTP.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact
from trunkline.contracts import Template
from trunkline.data.encode import check_characters, encode_chat, encode_prompt
from trunkline.errors import DataError, UsageError
from trunkline.inference.request import Request, ResolvedRequest
from trunkline.inference.request_state import GenerationHandle, RequestState
from trunkline.lora.pool import AdapterPool
from trunkline.tasks import AnyTask, GenerationTask, task_from_json

if TYPE_CHECKING:
    from trunkline.bases import Base

BASE_NEW_TOKENS = 64
BASE_TEMPLATE = Template(chat=True, clean=("strip",))
BASE_TEMPLATE_PLAIN = Template(clean=("strip",))
RAW = Template(clean=())


def encode_request(
    request: Request, name: str, task: AnyTask, template: Template | None, tokenizer: Any
) -> list[int]:
    """Token ids of a request's prompt.

    Args:
        request: a text, or a talk.
        name: of the version, for errors.
        task: of the adapter; for the base a generation.
        template: of the adapter; None for the base.
        tokenizer: of the base.

    Raises:
        DataError: the text is empty or no text.
        UsageError: the adapter holds no talk, or the talk does not end with the user.
    """
    if template is None:
        if request.raw:
            if not request.text:
                raise DataError("The text is empty.", "Give at least one character.")
            check_characters(request.text)
            return encode_prompt(request.text, RAW, tokenizer)
        template = BASE_TEMPLATE if tokenizer.chat_template else BASE_TEMPLATE_PLAIN
        if not request.messages:
            return encode_prompt(request.text, template, tokenizer)
    if not request.messages:
        return encode_prompt(request.text, template, tokenizer)
    if not isinstance(task, GenerationTask):
        raise UsageError(
            f"{name} answers a {task.kind} and can't hold a talk.",
            "Ask it with `trunkline predict`.",
        )
    messages = [dict(message) for message in request.messages]
    last = messages[-1]
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        raise UsageError(
            f"The last message is of the role {last.get('role')!r}.",
            "A talk that is to be answered ends with the user's message, a text.",
        )
    if not template.chat:
        return encode_prompt(last["content"], template, tokenizer)
    if not template.cleaned(last["content"]).strip():
        raise DataError("The last message is empty.", "Give at least one word.")
    last["content"] = template.filled(last["content"])
    if template.system is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": template.system})
    return encode_chat(messages, tokenizer)


def new_tokens(request: Request, task: AnyTask) -> int:
    """How many tokens the answer may have; 0 where a head answers."""
    if not isinstance(task, GenerationTask):
        return 0
    return request.max_new_tokens or task.max_new_tokens


def start_of(request: Request) -> str:
    """The beginning of what was asked, for errors."""
    text = request.messages[-1].get("content") if request.messages else request.text
    return str(text) if len(str(text)) <= 40 else f"{str(text)[:40]}…"


_TASKS_KEPT = 10_000


class RequestValidator:
    """Takes requests for one base on. Safe from any thread.

    Args:
        kv_tokens: whose keys and values the engine has memory for.
    """

    def __init__(self, base: Base, pool: AdapterPool, kv_tokens: int) -> None:
        self._base = base
        self._pool = pool
        self._kv_tokens = kv_tokens
        self._tasks: dict[str, tuple[AnyTask, Template]] = {}
        self._tokenizing = threading.Lock()

    def take(
        self, work: ResolvedRequest, cancel: Callable[[GenerationHandle], None]
    ) -> RequestState:
        """Check a request and encode it; its adapter is in memory after that.

        Raises:
            DataError: the text is empty, or longer than the context of the base.
            UsageError: the adapter can't be asked like this.
            IntegrityError, BaseMismatchError: the adapter can't be loaded.
        """
        submitted = time.monotonic()
        request, artifact = work.request, work.artifact
        task, template = self._task(artifact)
        if artifact is not None:
            self._pool.load(artifact, work.name)
        with self._tokenizing:
            prompt = encode_request(request, work.name, task, template, self._base.tokenizer)
        limit = new_tokens(request, task)
        self._check_length(request, len(prompt), limit)
        digest = artifact.digest if artifact is not None else self._base.digest
        return RequestState(
            GenerationHandle(work, digest, len(prompt), cancel), task, prompt, limit, submitted
        )

    def _task(self, artifact: Artifact | None) -> tuple[AnyTask, Template | None]:
        if artifact is None:
            return GenerationTask(BASE_NEW_TOKENS), None
        if (found := self._tasks.get(artifact.digest)) is None:
            manifest = artifact.manifest
            found = task_from_json(dict(manifest.task)), manifest.make_template()
            if len(self._tasks) > _TASKS_KEPT:
                self._tasks.clear()
            self._tasks[artifact.digest] = found
        return found

    def _check_length(self, request: Request, prompt: int, limit: int) -> None:
        context = self._base.info.context
        most = min(context, self._kv_tokens)
        if prompt + limit > most:
            what = f"the base's context of {context}" if most == context else (
                f"the memory for keys and values, {most} tokens"
            )  # fmt: skip
            raise DataError(
                f"The text {start_of(request)!r} is too long: {prompt} tokens"
                + (f" and {limit} new ones" if limit else "")
                + f" don't fit {what}.",
                "Shorten the text or ask for fewer new tokens." if limit else "Shorten the text.",
            )


def locate_error(error: DataError, place: int, count: int) -> DataError:
    """What is wrong with one of ``count`` texts, with its place among them if there are others."""
    if count == 1:
        return error
    return DataError(f"Text {place + 1} of {count}: {error.message}", error.hint)
