"""One message of a conversation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: ``system``, ``user`` or ``assistant``.
        content: its text.
        loss: whether the tokens of an assistant's message carry loss.
    """

    role: str
    content: str
    loss: bool = False
