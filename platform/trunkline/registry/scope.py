"""Scopes: restrict a query to the adapters that a key's patterns cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, false, or_

from trunkline.refs import BASE
from trunkline.registry.tables import Adapter

Scope = Sequence[str] | None
"""A key's patterns, see :func:`~trunkline.registry.keys.check_pattern`; None covers everything."""


def covers_everything(scope: Scope) -> bool:
    """Whether a scope restricts nothing."""
    return scope is None or "*" in scope


def covered_adapters(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """Conditions on :class:`Adapter`, none where the scope covers everything."""
    if scope is None or "*" in scope:
        return ()
    parts: list[ColumnElement[bool]] = []
    for pattern in scope:
        domain, _, name = pattern.partition("/")
        if name == "*":
            parts.append(Adapter.domain == domain)
        elif name:
            parts.append(and_(Adapter.domain == domain, Adapter.name == name))
    return (or_(*parts) if parts else false(),)


def covered_names(column: Any, scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """The same for a column that holds ``domain/name`` or ``base``."""
    if scope is None or "*" in scope:
        return ()
    parts: list[ColumnElement[bool]] = []
    for pattern in scope:
        if pattern.endswith("/*"):
            # A range, so that the index on the column serves; "0" follows "/".
            domain = pattern[:-2]
            parts.append(and_(column >= f"{domain}/", column < f"{domain}0"))
        elif "/" in pattern or pattern == BASE:
            parts.append(column == pattern)
    return (or_(*parts) if parts else false(),)
