"""Rewrite a request for vLLM, so that it reads the prompt that our own engine would read."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from trunkline.adapters.artifact import Artifact
from trunkline.bases import local_tokenizer
from trunkline.data.encode import chat_messages, encode_prompt
from trunkline.errors import DataError, SingleTextError, UsageError
from trunkline.labels import is_blank
from trunkline.serving.errors import ApiError
from trunkline.tasks import prompt_limit, task_from_json

COMPLETIONS = "/v1/completions"


class Prompts:
    """Puts texts into the templates of adapters. Safe from any thread.

    Args:
        base: whose tokenizer vLLM uses too.
    """

    def __init__(self, base: str) -> None:
        self._base = base
        self._lock = threading.Lock()

    @cached_property
    def _tokenizer(self) -> Any:
        local = local_tokenizer(self._base)
        assert local is not None  # it was described
        return local[0]

    def rewrite(
        self, route: str, body: Mapping[str, Any], name: str, artifact: Artifact
    ) -> dict[str, Any]:
        """The body with the model's name, the filled template, and the adapter's own limit.

        A text for ``/v1/completions`` becomes token ids, cut as training cut it; token ids stay.

        Args:
            name: the immutable ref of the version.

        Raises:
            SingleTextError: a conversation for an adapter whose template is not a chat.
            DataError: a text is empty.
            ApiError: a message can't be put into the template.
        """
        limit = int(artifact.manifest.task["max_new_tokens"])
        limits = (
            ("max_tokens",) if route == COMPLETIONS else ("max_completion_tokens", "max_tokens")
        )
        rewritten = {**body, "model": name}
        if all(body.get(field) is None for field in limits):
            rewritten[limits[0]] = limit
        try:
            if route == COMPLETIONS:
                rewritten["prompt"] = self._token_ids(body.get("prompt"), artifact)
            else:
                rewritten["messages"] = self._messages(body.get("messages"), name, artifact)
        except UsageError as error:
            error.param = error.param or ("prompt" if route == COMPLETIONS else "messages")
            raise
        return rewritten

    def _token_ids(self, prompt: Any, artifact: Artifact) -> Any:
        if isinstance(prompt, list) and all(isinstance(one, str) for one in prompt):
            return [self._encode(one, artifact) for one in prompt]
        return self._encode(prompt, artifact) if isinstance(prompt, str) else prompt

    def _encode(self, text: str, artifact: Artifact) -> list[int]:
        manifest = artifact.manifest
        length = manifest.max_length
        limit = None if length is None else prompt_limit(task_from_json(manifest.task), length)
        with self._lock:
            return encode_prompt(text, manifest.make_template(), self._tokenizer, limit).ids

    def _messages(self, messages: Any, name: str, artifact: Artifact) -> list[dict[str, Any]]:
        template = artifact.manifest.make_template()
        if not template.chat:
            raise SingleTextError(
                f"{name} answers single texts: its template is not a chat.",
                f"Send the text as the prompt of POST {COMPLETIONS}.",
            )
        if not isinstance(messages, list) or not messages:
            raise ApiError("messages must be a list of messages.", "Send one.", param="messages")
        *history, last = [_message(one) for one in messages]
        if last["role"] != "user":
            raise ApiError(
                f"The last message has the role {last['role']!r}.",
                "End the conversation with a message of the user that is a text.",
                param="messages",
            )
        if is_blank(template.cleaned(last["content"])):
            raise DataError("The last message is empty.", "Give a text.")
        return chat_messages(history, last["content"], template)


def _message(message: Any) -> dict[str, Any]:
    """A message whose content is a text; ``developer`` means ``system``."""
    fields = dict(message) if isinstance(message, dict) else {}
    content = fields.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, texts)) if all(isinstance(one, str) for one in texts) else None
    if not isinstance(content, str) or not isinstance(fields.get("role"), str):
        raise ApiError(
            "Each message must have a role, and a content that is a text.",
            "Pictures, audio and calls of tools are not supported.",
            param="messages",
        )
    role = "system" if fields["role"] == "developer" else fields["role"]
    return {**fields, "role": role, "content": content}
