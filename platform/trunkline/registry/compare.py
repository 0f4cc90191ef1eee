"""What differs between two versions or two runs.

Owns: which facts are compared, and how figures are set side by side.
Must not know: where a lineage comes from, and how a difference is printed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trunkline.registry.lineage import Lineage
from trunkline.registry.records import EvaluationRecord

_RUN_FACTS = ("recipe", "status", "plugin", "seed", "error")
_NOT_COMPARED = ("seconds", "train_seconds")


@dataclass(frozen=True, slots=True)
class Difference:
    """A fact that is not the same on both sides; None where a side has no such fact."""

    what: str
    left: Any
    right: Any


@dataclass(frozen=True, slots=True)
class FigureDifference:
    """A metric on both sides.

    Attributes:
        what: ``split.metric``.
        left, right: its values; None where a side has none.
        difference: right minus left.
        same_rows: whether both are of the same rows, split the same way.
    """

    what: str
    left: float | None
    right: float | None
    difference: float | None
    same_rows: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two things side by side; ``left`` and ``right`` name them."""

    left: str
    right: str
    differences: tuple[Difference, ...]
    figures: tuple[FigureDifference, ...]


def compare(left: Lineage, right: Lineage) -> Comparison:
    """Everything in which two versions, or two runs, differ, and all their figures."""
    ours, theirs = dict(_facts(left)), dict(_facts(right))
    differences = tuple(
        Difference(what, ours.get(what), theirs.get(what))
        for what in dict.fromkeys([*ours, *theirs])
        if ours.get(what) != theirs.get(what)
    )
    return Comparison(_name(left), _name(right), differences, _figures(left, right))


def _name(lineage: Lineage) -> str:
    if lineage.version is not None:
        return str(lineage.version.ref)
    return "-" if lineage.run is None else f"run/{lineage.run.number}"


def _facts(lineage: Lineage) -> Iterator[tuple[str, Any]]:
    """Dotted name → value, in the order in which they are told."""
    if (version := lineage.version) is not None:
        yield from _flat(
            "version",
            {
                "digest": version.digest,
                "task": version.task,
                "bytes": version.bytes,
                "template": version.template_digest,
                "run": version.run,
                "removed": version.removal if version.removed else None,
            },
        )
    if (base := lineage.base) is not None:
        yield from _flat("base", {"name": base.name, "digest": base.digest, "dtype": base.dtype})
    if (dataset := lineage.dataset) is not None:
        yield from _flat(
            "dataset",
            {
                "name": dataset.name,
                "rows": dataset.fingerprint,
                "split": dataset.split_fingerprint,
                "count": dataset.rows,
                "license": dataset.license,
                "source": dataset.source,
                "counts": dataset.counts,
            },
        )
    if (run := lineage.run) is not None:
        yield from _flat("run", {name: getattr(run, name) for name in _RUN_FACTS})
        yield from _flat("settings", run.settings)
        yield from _flat("specification", run.specification or {})
        yield from _flat("environment", run.environment)
        report = {k: v for k, v in (run.report or {}).items() if k not in _NOT_COMPARED}
        report.pop("data", None)
        yield from _flat("report", report)


def _flat(prefix: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(f"{prefix}.{name}", value)
        elif value is not None:
            yield f"{prefix}.{name}", value


def _figures(left: Lineage, right: Lineage) -> tuple[FigureDifference, ...]:
    ours, theirs = _newest(left.evaluations), _newest(right.evaluations)
    found = []
    for split in dict.fromkeys([*ours, *theirs]):
        one, other = ours.get(split), theirs.get(split)
        same = one is not None and other is not None and _rows(one) == _rows(other)
        here, there = _scores(one), _scores(other)
        for metric in dict.fromkeys([*here, *there]):
            a, b = here.get(metric), there.get(metric)
            difference = None if a is None or b is None else b - a
            found.append(FigureDifference(f"{split}.{metric}", a, b, difference, same))
    return tuple(found)


def _newest(evaluations: tuple[EvaluationRecord, ...]) -> dict[str, EvaluationRecord]:
    """split → the newest evaluation on it."""
    return {one.split: one for one in reversed(evaluations)}


def _rows(evaluation: EvaluationRecord) -> tuple[str, str]:
    return evaluation.dataset_fingerprint, evaluation.split_fingerprint


def _scores(evaluation: EvaluationRecord | None) -> dict[str, float | None]:
    scores = {} if evaluation is None else evaluation.results.get("scores", {})
    return {
        name: score.get("value") for name, score in scores.items() if isinstance(score, Mapping)
    }
