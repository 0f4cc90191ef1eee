"""What the model reads: a request's text or talk, through the template of the adapter.

Owns: the way from a request to prompt tokens, the same for every interface. Must not know: batches,
files, HTTP.
"""

from __future__ import annotations

from typing import Any

from trunkline.contracts import Template
from trunkline.data.encode import check_characters, encode_chat, encode_prompt
from trunkline.errors import DataError, UsageError
from trunkline.inference.request import Request
from trunkline.tasks import AnyTask, GenerationTask

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
