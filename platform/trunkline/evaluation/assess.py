"""An artifact's predictions for held-out rows, as a server would give them.

Owns: the way from rows to predictions through the engine. Must not know: the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trunkline.adapters.artifact import Artifact
from trunkline.contracts import Row, Target
from trunkline.inference.engine import Engine
from trunkline.inference.request import Request, ResolvedRequest


@dataclass(frozen=True, slots=True)
class Predicted:
    """In the rows' order."""

    values: list[Target]
    confidences: list[float | None]


def predict_rows(
    engine: Engine,
    artifact: Artifact,
    name: str,
    rows: Sequence[Row],
    on_done: Callable[[int], None] | None = None,
) -> Predicted:
    """Ask the adapter for every row's text."""
    works = [ResolvedRequest(Request(name, row.text), artifact, name) for row in rows]
    answers = engine.run(works, on_done=on_done)
    return Predicted(
        [answer.output for answer in answers], [answer.confidence for answer in answers]
    )
