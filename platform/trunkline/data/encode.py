"""Encode texts as token ids with an adapter's template, identically for training and inference.

A user's text never produces a control token; only the chat template may. The text ``<|im_end|>``
inside a message is encoded as ordinary characters.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from trunkline.contracts import Message, Row, Template
from trunkline.errors import DataError, UsageError, one_line
from trunkline.labels import is_blank

ROLES = ("system", "user", "assistant")
_MARK = "TrunklineTextMark"
_SPACE = "\u2003"  # around a mark: it is missing where the chat template trims the content
_MARKED = re.compile(f"({_SPACE}?){_MARK}([0-9]+){_MARK}({_SPACE}?)")


class NoRoomError(DataError):
    """A template leaves no room for a text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """An encoded prompt.

    Attributes:
        ids: token ids.
        text: the cleaned text, as far as it is in the prompt.
        full_length: tokens that the prompt has with the complete text.
        offsets: if requested, for each token the characters of the text that it covers, without
            white space at their ends; None for a token of the template.
        learned: begin and end of each earlier answer of a conversation that carries loss, in
            ``ids``.
    """

    ids: list[int]
    text: str
    full_length: int
    offsets: tuple[tuple[int, int] | None, ...] = ()
    learned: tuple[tuple[int, int], ...] = ()

    @property
    def truncated(self) -> bool:
        """Whether the end of the text was cut off."""
        return self.full_length > len(self.ids)


def encode_prompt(
    text: str,
    template: Template,
    tokenizer: Any,
    max_length: int | None = None,
    *,
    with_offsets: bool = False,
) -> Prompt:
    """Encode a text in its template; training, evaluation and inference all call this.

    Where the prompt is longer than ``max_length`` tokens, it keeps as many characters from the
    start of the text as fit, and the complete template. The prompt is then that of the shorter
    text, so no character is divided and the same row always gives the same ids. Offsets count the
    characters of the cleaned text, and can't be had of a chat.

    Raises:
        DataError: the text is empty after cleaning, holds a lone surrogate, or the template leaves
            no room for a character of it.
        UsageError: the template needs a chat template that the base does not have.
    """

    def prompt(part: str, ids: list[int], full_length: int) -> Prompt:
        offsets = _text_offsets(part, template, tokenizer) if with_offsets else ()
        return Prompt(ids, part, full_length, offsets)

    def encode(part: str) -> list[int]:
        content = f"{template.prefix}{part}{template.suffix}"
        if not template.chat:
            return [*start_tokens(tokenizer), *_plain_ids(content, tokenizer)]
        messages = [{"role": "user", "content": content}]
        if template.system_message is not None:
            messages.insert(0, {"role": "system", "content": template.system_message})
        return encode_chat(messages, tokenizer)

    cleaned = template.cleaned(text)
    if is_blank(cleaned):
        raise DataError("The text is empty.", "Give at least one word.")
    ids = encode(cleaned)
    if max_length is None or len(ids) <= max_length:
        return prompt(cleaned, ids, len(ids))

    def start(characters: int) -> str:
        return template.cleaned(cleaned[:characters])

    fitting = bisect_right(
        range(1, len(cleaned)), max_length, key=lambda count: len(encode(start(count)))
    )
    kept = start(fitting)
    if is_blank(kept):
        raise NoRoomError(
            f"A prompt may have {max_length} tokens, which leaves no room for the text: the "
            f"template alone has {len(encode(''))}.",
            "Use a larger max_length or a shorter template.",
        )
    return prompt(kept, encode(kept), len(ids))


def encode_prompts(
    row: Row, template: Template, tokenizer: Any, max_length: int, *, with_offsets: bool = False
) -> list[Prompt]:
    """Encode a row; of a ranking there is a prompt for each candidate, which is never cut.

    Raises:
        DataError, UsageError: as :func:`encode_row`.
    """
    templates = [template.with_candidate(one) for one in row.candidates] or [template]
    return [
        encode_row(row, one, tokenizer, max_length, with_offsets=with_offsets) for one in templates
    ]


def encode_row(
    row: Row,
    template: Template,
    tokenizer: Any,
    max_length: int | None = None,
    *,
    with_offsets: bool = False,
) -> Prompt:
    """Encode a row's prompt, token for token as a server does for its text or its messages.

    A text is cut to ``max_length``; a conversation of several messages is never cut.

    Raises:
        DataError, UsageError: as :func:`encode_prompt` and :func:`encode_chat`; the row has a
            history but the template is no chat; or an earlier answer that carries loss is written
            otherwise in a conversation than as an answer.
    """
    if not row.history:
        return encode_prompt(row.text, template, tokenizer, max_length, with_offsets=with_offsets)
    if not template.chat:
        raise UsageError(
            f"Row {row.id!r} is a conversation, and the template is not a chat.",
            "Use a template with chat=True.",
        )
    ids = _conversation_ids(row.history, row.text, template, tokenizer)
    learned = tuple(_learned_spans(row, ids, template, tokenizer))
    return Prompt(ids, row.text, len(ids), learned=learned)


def request_messages(row: Row) -> tuple[dict[str, str], ...]:
    """The messages that a client sends for a row of several; none for a text."""
    if not row.history:
        return ()
    return (*history_messages(row.history), {"role": "user", "content": row.text})


def chat_messages(
    history: Sequence[Mapping[str, str]], text: str, template: Template
) -> list[dict[str, str]]:
    """The messages of a prompt: the history, and the text in the template.

    The template's system message is added unless the history begins with one.

    Args:
        history: the earlier messages, with ``role`` and ``content``; may be empty.
    """
    messages = [dict(message) for message in history]
    messages.append({"role": "user", "content": template.filled(text)})
    if template.system_message is not None and messages[0].get("role") != "system":
        messages.insert(0, {"role": "system", "content": template.system_message})
    return messages


def history_messages(history: Sequence[Message]) -> list[dict[str, str]]:
    """A row's earlier messages as a chat template takes them."""
    return [{"role": one.role, "content": one.content} for one in history]


def _conversation_ids(
    history: Sequence[Message], text: str, template: Template, tokenizer: Any
) -> list[int]:
    if not history:
        return encode_prompt(text, template, tokenizer).ids
    return encode_chat(chat_messages(history_messages(history), text, template), tokenizer)


def _learned_spans(
    row: Row, ids: list[int], template: Template, tokenizer: Any
) -> Iterator[tuple[int, int]]:
    """Where the earlier answers that carry loss are; each follows the prompt it would answer."""
    history = row.history
    for index, message in enumerate(history):
        if not message.loss:
            continue
        question = history[index - 1].content
        prompt = _conversation_ids(history[: index - 1], question, template, tokenizer)
        expected = prompt + encode_answer(message.content, tokenizer)
        if ids[: len(expected)] != expected:
            raise DataError(
                f"The base's chat template writes message {index + 1} of row {row.id!r} otherwise "
                "once more messages follow, so it can't carry loss.",
                "Use --loss-on last, or leave the row out.",
            )
        yield len(prompt), len(expected)


def encode_raw(text: str, tokenizer: Any) -> Prompt:
    """Encode a text as it is, without a template; white space is a prompt too.

    Raises:
        DataError: the text is empty, or holds a lone surrogate.
    """
    if not text:
        raise DataError("The text is empty.", "Give at least one character.")
    ids = [*start_tokens(tokenizer), *_plain_ids(text, tokenizer)]
    return Prompt(ids, text, len(ids))


def encode_chat(messages: Sequence[Mapping[str, str]], tokenizer: Any) -> list[int]:
    """Token ids of a conversation in the base's chat template, ending where the assistant starts.

    Raises:
        DataError: a message holds a lone surrogate.
        UsageError: the base has no chat template, or its template refuses these messages.
    """
    if tokenizer.chat_template is None:
        raise UsageError(
            "The base has no chat template, but the adapter's template is a chat.",
            "Use a template with chat=False, or a base with a chat template.",
        )
    rendered = _rendered([_role(message) for message in messages], tokenizer)
    ids: list[int] = []
    end = 0
    for match in _MARKED.finditer(rendered):
        content = messages[int(match[2])]["content"]
        content = content if match[1] else content.lstrip()
        content = content if match[3] else content.rstrip()
        ids += tokenizer(rendered[end : match.start()], add_special_tokens=False).input_ids
        ids += _plain_ids(content, tokenizer)
        end = match.end()
    return ids + list(tokenizer(rendered[end:], add_special_tokens=False).input_ids)


def encode_answer(answer: str, tokenizer: Any) -> list[int]:
    """Token ids of an answer, followed by the end-of-sequence token."""
    return [*_plain_ids(answer, tokenizer), tokenizer.eos_token_id]


def _role(message: Mapping[str, str]) -> str:
    """The role of a message; the prompt contains it literally, so only known roles pass."""
    role = message.get("role")
    if role not in ROLES or not isinstance(message.get("content"), str):
        raise UsageError(
            f"A chat can't contain a message with the role {role!r} and the content "
            f"{message.get('content')!r}.",
            f"Give every message a text as content and one of the roles {', '.join(ROLES)}.",
        )
    return role


def _rendered(roles: Sequence[str], tokenizer: Any) -> str:
    """The chat template's text of a conversation, with a mark for each message's content.

    The template may put the contents in another order, repeat them and trim them.
    """
    contents = [f"{_SPACE}{_MARK}{index}{_MARK}{_SPACE}" for index in range(len(roles))]
    marked = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    cause: Exception | None = None
    try:
        text: str = tokenizer.apply_chat_template(
            marked, tokenize=False, add_generation_prompt=True
        )
    except Exception as error:
        cause, reason = error, one_line(error)
    else:
        used = {int(match[2]) for match in _MARKED.finditer(text)}
        rest = _MARKED.sub("", text)
        if used == set(range(len(roles))) and _MARK not in rest and _SPACE not in rest:
            return text
        reason = "it omits or changes a message"
    raise UsageError(
        f"The base's chat template refuses a conversation of the roles {', '.join(roles)}: "
        f"{reason}.",
        "Alternate user and assistant messages, or omit the system message.",
    ) from cause


def _plain_ids(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a user's text, with control tokens encoded as ordinary characters."""
    check_characters(text)
    ids: list[int] = []
    for piece in _cut(text, tokenizer):
        ids += tokenizer(piece, split_special_tokens=True, add_special_tokens=False).input_ids
    return ids


def _text_offsets(
    text: str, template: Template, tokenizer: Any
) -> tuple[tuple[int, int] | None, ...]:
    """For each token of a prompt the characters of its text; see :class:`Prompt`."""
    content = f"{template.prefix}{text}{template.suffix}"
    first, last = len(template.prefix), len(template.prefix) + len(text)
    offsets: list[tuple[int, int] | None] = [None] * len(start_tokens(tokenizer))
    at = 0
    for piece in _cut(content, tokenizer):
        encoded = tokenizer(
            piece, split_special_tokens=True, add_special_tokens=False, return_offsets_mapping=True
        )
        for start, end in encoded.offset_mapping:
            start, end = max(at + start, first), min(at + end, last)
            if start >= end:
                offsets.append(None)
                continue
            while end > start and content[end - 1].isspace():
                end -= 1
            while start < end and content[start].isspace():
                start += 1
            offsets.append((start - first, end - first))
        at += len(piece)
    return tuple(offsets)


def check_characters(text: str) -> None:
    """Raise :class:`DataError` if the text holds a lone surrogate, which is half a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The text holds {text[error.start]!r}, which is not a character.",
            "Save it as UTF-8 and read it again.",
        ) from None


def _cut(text: str, tokenizer: Any) -> list[str]:
    """Split the text after the first character of anything that spells an added token.

    ``split_special_tokens`` covers the tokens that are marked special; many tokenizers have
    others, such as ``<tool_call>``, that are added but not marked.
    """
    pattern = _unmarked_tokens(tokenizer)
    if pattern is None:
        return [text]
    cuts = [0, *(match.start() + 1 for match in pattern.finditer(text)), len(text)]
    return [text[one:other] for one, other in pairwise(cuts)]


@lru_cache(maxsize=8)
def _unmarked_tokens(tokenizer: Any) -> re.Pattern[str] | None:
    added = [token for token in tokenizer.added_tokens_decoder.values() if not token.special]
    texts = {token.content for token in added if len(token.content.strip()) > 1}
    if not texts:
        return None
    return re.compile(f"(?=({'|'.join(map(re.escape, texts))}))", re.IGNORECASE)


@lru_cache(maxsize=8)
def start_tokens(tokenizer: Any) -> tuple[int, ...]:
    """The tokens that the tokenizer puts before a plain text; none for most tokenizers."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    position = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return tuple(full[:position])
