"""Read a conversation from a value of a file: OpenAI's form of messages, or ShareGPT's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from trunkline.contracts import Message
from trunkline.errors import DataError

LossOn = Literal["last", "all"]

_KEYS = (("role", "content"), ("from", "value"))
_ROLES = {
    "system": "system", "user": "user", "assistant": "assistant",
    "human": "user", "gpt": "assistant",
}  # fmt: skip
_FORM = (
    'Write [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}], or "from" '
    'and "value" as in ShareGPT.'
)
_ORDER = (
    "A conversation is an optional system message, then user and assistant in turn, and ends with "
    "the assistant."
)
_SHOWN_ROLES = 8


def parse_conversation(value: Any, place: str, column: str, loss_on: LossOn) -> list[Message]:
    """The messages of a value.

    Args:
        value: a list of objects with ``role`` and ``content``, or ``from`` and ``value``. Further
            keys must be null.
        place: where it is, as the start of a sentence.
        column: that it is in, for errors.
        loss_on: whether the last message of the assistant carries loss, or all of them.

    Raises:
        DataError: it is something else, or the roles are in another order than an optional system
            message, then user and assistant in turn, the assistant last.
    """
    if not isinstance(value, list | tuple):
        raise DataError(f"{place} has {_kind(value)} in {column!r}, not a list of messages.", _FORM)
    messages = [
        _message(one, f"{place} has in message {number} of {column!r}", loss_on)
        for number, one in enumerate(value, start=1)
    ]
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or len(turns) % 2 or turns != ["user", "assistant"] * (len(turns) // 2):
        raise DataError(f"{place} has {_listed(roles)} in {column!r}.", _ORDER)
    return messages


def _message(value: Any, place: str, loss_on: LossOn) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{place} {_kind(value)}, not an object.", _FORM)
    keys = {key for key, one in value.items() if one is not None}
    names = _KEYS[1] if "from" in value else _KEYS[0]
    if further := sorted(keys.difference(names)):
        raise DataError(
            f"{place} the key {further[0]!r}.",
            "Only a role and a text are learned from: remove the key, or leave the row out.",
        )
    role, content = (value.get(name) for name in names)
    if not isinstance(role, str) or role not in _ROLES:
        raise DataError(
            f"{place} {_kind(role) if not isinstance(role, str) else repr(role)} as its "
            f"{names[0]!r}.",
            f"Use one of {', '.join(_ROLES)}; tool calls are not learned.",
        )
    if not isinstance(content, str):
        raise DataError(
            f"{place} {_kind(content)} as its {names[1]!r}, not a text.",
            "Write one text; images and tool calls are not learned.",
        )
    known = _ROLES[role]
    return Message(known, content, loss=loss_on == "all" and known == "assistant")


def _kind(value: Any) -> str:
    """A value that is not what was expected, for an error."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text {value[:40]!r}"
    if isinstance(value, dict):
        return "an object"
    return "an array" if isinstance(value, list | tuple) else f"the value {value!r:.40}"


def _listed(roles: Sequence[str]) -> str:
    if not roles:
        return "no message"
    more = ", …" if len(roles) > _SHOWN_ROLES else ""
    return f"messages of {', '.join(roles[:_SHOWN_ROLES])}{more}"
