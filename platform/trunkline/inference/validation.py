"""From a request to prompt tokens that fit.

Owns: what is checked before a request is taken on. Must not know: queues, steps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from trunkline.adapters.artifact import Artifact
from trunkline.contracts import Template
from trunkline.errors import DataError
from trunkline.inference.handle import GenerationHandle, Work
from trunkline.inference.prompts import BASE_NEW_TOKENS, encode_request, new_tokens, start_of
from trunkline.inference.request import Request
from trunkline.inference.request_state import RequestState
from trunkline.lora.pool import AdapterPool
from trunkline.tasks import AnyTask, GenerationTask, task_from_json

if TYPE_CHECKING:
    from trunkline.bases import Base

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

    def take(self, work: Work, cancel: Callable[[GenerationHandle], None]) -> RequestState:
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


def of_text(error: DataError, place: int, count: int) -> DataError:
    """What is wrong with one of ``count`` texts, with its place among them if there are others."""
    if count == 1:
        return error
    return DataError(f"Text {place + 1} of {count}: {error.message}", error.hint)
