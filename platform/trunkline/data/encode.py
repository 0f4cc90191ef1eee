"""Texts → token ids, by an adapter's template.

Owns: how a prompt is built, the same for training and inference. Must not know: tasks, models.

A user's text never yields a control token: only the chat template's own words may. So the text
``<|im_end|>`` inside a message is read as seven ordinary characters' tokens.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from trunkline.contracts import Template
from trunkline.errors import DataError, UsageError

_MARK = "TRUNKLINETEXTMARK"


def encode_prompt(text: str, template: Template, tokenizer: Any) -> list[int]:
    """Token ids of the filled template.

    Raises:
        DataError: the text is empty after cleaning.
        UsageError: the template wants a chat template that the base does not have.
    """
    if not template.cleaned(text):
        raise DataError("The text is empty.", "Give at least one word.")
    content = template.filled(text)
    if not template.chat:
        ids = list(
            tokenizer(content, split_special_tokens=True, add_special_tokens=False).input_ids
        )
        return _with_start(ids, tokenizer)
    messages = [{"role": "user", "content": content}]
    if template.system is not None:
        messages.insert(0, {"role": "system", "content": template.system})
    return encode_chat(messages, tokenizer)


def encode_chat(messages: list[dict[str, str]], tokenizer: Any) -> list[int]:
    """Token ids of a talk in the base's chat template, the assistant's turn opened."""
    if tokenizer.chat_template is None:
        raise UsageError(
            "The base has no chat template, but the adapter's template is a chat.",
            "Use a template with chat=False, or a base with a chat template.",
        )
    marked = [
        {"role": message["role"], "content": f"{_MARK}{index}{_MARK}"}
        for index, message in enumerate(messages)
    ]
    rest = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
    ids: list[int] = []
    for index, message in enumerate(messages):
        before, rest = rest.split(f"{_MARK}{index}{_MARK}", 1)
        ids += tokenizer(before, add_special_tokens=False).input_ids
        ids += tokenizer(
            message["content"], split_special_tokens=True, add_special_tokens=False
        ).input_ids
    return ids + list(tokenizer(rest, add_special_tokens=False).input_ids)


def encode_answer(answer: str, tokenizer: Any) -> list[int]:
    """Token ids of an answer, closed by the end-of-sequence token."""
    ids = tokenizer(answer, split_special_tokens=True, add_special_tokens=False).input_ids
    return [*ids, tokenizer.eos_token_id]


def _with_start(ids: list[int], tokenizer: Any) -> list[int]:
    start = _start_tokens(tokenizer)
    return [*start, *ids]


@lru_cache(maxsize=8)
def _start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer itself puts before a plain text (nothing, for most)."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    position = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return tuple(full[:position])
