"""Texts → token ids, by an adapter's template.

Owns: how a prompt is built, the same for training and inference. Must not know: tasks, models.

A user's text never yields a control token: only the chat template's own words may. So the text
``<|im_end|>`` inside a message is read as seven ordinary characters' tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

from trunkline.contracts import Template
from trunkline.errors import DataError, UsageError

ROLES = ("system", "user", "assistant")
_MARK = "TRUNKLINETEXTMARK"


def encode_prompt(text: str, template: Template, tokenizer: Any) -> list[int]:
    """Token ids of the filled template.

    Raises:
        DataError: the text is empty after cleaning, or holds something that is no character.
        UsageError: the template wants a chat template that the base does not have.
    """
    if not template.cleaned(text).strip():
        raise DataError("The text is empty.", "Give at least one word.")
    content = template.filled(text)
    if not template.chat:
        return [*_start_tokens(tokenizer), *_plain_ids(content, tokenizer)]
    messages = [{"role": "user", "content": content}]
    if template.system is not None:
        messages.insert(0, {"role": "system", "content": template.system})
    return encode_chat(messages, tokenizer)


def encode_chat(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> list[int]:
    """Token ids of a talk in the base's chat template, the assistant's turn opened.

    Raises:
        DataError: a message holds something that is no character.
        UsageError: the base has no chat template, or none that takes these messages.
    """
    if tokenizer.chat_template is None:
        raise UsageError(
            "The base has no chat template, but the adapter's template is a chat.",
            "Use a template with chat=False, or a base with a chat template.",
        )
    pieces = _around_contents([_role(message) for message in messages], tokenizer)
    ids: list[int] = []
    for index, message in enumerate(messages):
        ids += tokenizer(pieces[index], add_special_tokens=False).input_ids
        ids += _plain_ids(message["content"], tokenizer)
    return ids + list(tokenizer(pieces[-1], add_special_tokens=False).input_ids)


def encode_answer(answer: str, tokenizer: Any) -> list[int]:
    """Token ids of an answer, closed by the end-of-sequence token."""
    return [*_plain_ids(answer, tokenizer), tokenizer.eos_token_id]


def _role(message: Mapping[str, str]) -> str:
    """The role of a message; it stands in the prompt as it is, so only known ones may."""
    role = message.get("role")
    if role not in ROLES or not isinstance(message.get("content"), str):
        raise UsageError(
            f"A message of the role {role!r} with the content {message.get('content')!r} can't be "
            "put into a chat.",
            f"Give every message a content and one of the roles {', '.join(ROLES)}.",
        )
    return role


def _around_contents(roles: Sequence[str], tokenizer: Any) -> list[str]:
    """What the chat template writes before each message's content, and after the last."""
    from jinja2 import TemplateError

    marks = [f"{_MARK}{index}{_MARK}" for index in range(len(roles))]
    marked = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
    pieces: list[str] = []
    try:
        rest = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True)
        for mark in marks:
            before, rest = rest.split(mark, 1)
            pieces.append(before)
    except (TemplateError, ValueError) as error:
        reason = str(error) if isinstance(error, TemplateError) else "it leaves a message out"
        raise UsageError(
            f"The base's chat template takes no talk of the roles {', '.join(roles)}: {reason}.",
            "Let user and assistant take turns, or leave the system message away.",
        ) from error
    return [*pieces, rest]


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    """Ids of a user's text, read as ordinary characters whatever it spells."""
    check_characters(text)
    ids: list[int] = []
    for piece in _cut(text, tokenizer):
        ids += tokenizer(piece, split_special_tokens=True, add_special_tokens=False).input_ids
    return ids


def check_characters(text: str) -> None:
    """Raise :class:`DataError` if the text holds half a character (a lone surrogate)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text holds {text[error.start]!r}, which is no character.",
            "Save it as UTF-8 and read it again.",
        ) from None


def _cut(text: str, tokenizer: Any) -> list[str]:
    """The text, cut after the first character of whatever spells an added token.

    ``split_special_tokens`` covers the tokens that are marked special; many tokenizers have
    others, such as ``<tool_call>``, that are added but not marked.
    """
    pattern = _unmarked(tokenizer)
    if pattern is None:
        return [text]
    cuts = [0, *(match.start() + 1 for match in pattern.finditer(text)), len(text)]
    return [text[one:other] for one, other in pairwise(cuts)]


@lru_cache(maxsize=8)
def _unmarked(tokenizer: Any) -> re.Pattern[str] | None:
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
    words = {token.content for token in added if len(token.content.strip()) > 1}
    if not words:
        return None
    return re.compile(f"(?=({'|'.join(map(re.escape, words))}))", re.IGNORECASE)


@lru_cache(maxsize=8)
def _start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """What the tokenizer itself puts before a plain text (nothing, for most)."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    position = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return tuple(full[:position])
