"""Where a version comes from, as values: what ``provenance.json`` holds.

Owns: the form of the file, written. Must not know: how it is read without trust
(:mod:`trunkline.adapters.provenance`), the registry, or what any figure means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime
from typing import Any, Self

from trunkline.adapters.claims import plain_value

FORM = 2
UNKNOWN = "unknown"
"""Stands for a text that an earlier release did not write down."""

RUN_STATUSES = ("running", "finished", "failed", "interrupted")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseOrigin:
    """The base; ``parameters`` is 0 where their number is not known."""

    digest: str
    name: str
    source: str = UNKNOWN
    architecture: str = UNKNOWN
    parameters: int = 0
    dtype: str = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetOrigin:
    """The rows as they were used; ``counts`` is the report on them."""

    name: str
    fingerprint: str
    split_fingerprint: str
    rows: int
    license: str = UNKNOWN
    source: str = UNKNOWN
    counts: Mapping[str, Any] = field(default_factory=dict)
    description: str | None = None
    grouping: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginOrigin:
    """The release of the plugin that brought the recipe."""

    distribution: str
    version: str
    api: int
    domain: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrigin:
    """The run; ``number`` is that of the workspace in which the version stands."""

    number: int
    recipe: str
    status: str
    seed: int
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    specification: Mapping[str, Any] | None = None
    report: Mapping[str, Any] | None = None
    started: datetime | None = None
    finished: datetime | None = None
    plugin: PluginOrigin | None = None
    actor: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationOrigin:
    """Figures on one split."""

    split: str
    results: Mapping[str, Any]
    created: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A way from one workspace to another: the ref and the run's number there, who, when."""

    origin: str
    run: int | None
    by: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Everything that ``provenance.json`` says.

    Attributes:
        adapter: ``domain/name`` that it was made as; None where an earlier release did not say.
        task: its kind.
        created: when the artifact was made; of an earlier release, its file's own time.
        dataset, run: None for a version that was made elsewhere.
        evaluations: oldest first.
        imported: of a version made elsewhere, what is known of its origin.
        moved: from workspace to workspace, oldest first.
    """

    adapter: str | None
    task: str
    created: datetime
    base: BaseOrigin
    dataset: DatasetOrigin | None = None
    run: RunOrigin | None = None
    evaluations: tuple[EvaluationOrigin, ...] = ()
    imported: Mapping[str, Any] | None = None
    moved: tuple[Move, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that the file holds; not-a-number becomes null."""
        return {
            "format": FORM,
            "version": {
                "adapter": self.adapter,
                "task": self.task,
                "created": self.created.isoformat(),
            },
            "base": _json(self.base),
            "dataset": _json(self.dataset),
            "run": _json(self.run),
            "evaluations": _json(self.evaluations),
            "imported": _json(self.imported),
            "moved": [
                {"from": one.origin, "run": one.run, "by": one.by, "at": one.at.isoformat()}
                for one in self.moved
            ],
        }

    def moved_here(self, *, run: int | None, origin: str, by: str, at: datetime) -> Self:
        """The same after a move: its run has the number ``run`` in the workspace it came to.

        Args:
            run: from ``reserve_restored``; None where no run is known.
            origin: the ref that it had.
            by: who moved it.
            at: aware.
        """
        there = None if self.run is None else self.run.number
        here = None if self.run is None or run is None else replace(self.run, number=run)
        move = Move(origin=origin, run=there, by=by, at=at)
        return replace(self, run=here, moved=(*self.moved, move))


def _json(value: Any) -> Any:
    if is_dataclass(value):
        return {one.name: _json(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple | list):
        return [_json(item) for item in value]
    return plain_value(value)
