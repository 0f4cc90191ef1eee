"""Select the best validation of a training, and decide when to stop early.

The deciding metric comes first; equal scores are compared by the validation loss. Both decisions
are computed from the trainer's history, which every checkpoint contains, so a resumed training
decides as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

SCORE, LOSS = "eval_score", "eval_loss"
"""The names of a validation's results in the trainer's history."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The best of the validations so far.

    Attributes:
        since: validations after the best one.
        moved: the score was not the same in all validations.
    """

    step: int
    score: float
    since: int
    moved: bool

    def ends_training(self, patience: int) -> bool:
        """Whether to stop; a score that never moved says nothing about the training."""
        return 0 < patience <= self.since and self.moved


def select_best(
    history: Iterable[Mapping[str, Any]], *, higher_is_better: bool
) -> Selection | None:
    """Select the best validation; of equal ones the first. None if there was none.

    Args:
        history: ``log_history`` of transformers' ``TrainerState``.
        higher_is_better: direction of the score.
    """
    validations = [entry for entry in history if SCORE in entry]
    if not validations:
        return None

    def quality(entry: Mapping[str, Any]) -> tuple[float, float]:
        loss = entry.get(LOSS, math.inf)
        score = entry[SCORE] if higher_is_better else -entry[SCORE]
        return score, -loss if math.isfinite(loss) else -math.inf

    best = max(range(len(validations)), key=lambda index: (quality(validations[index]), -index))
    return Selection(
        step=validations[best]["step"],
        score=validations[best][SCORE],
        since=len(validations) - 1 - best,
        moved=len({entry[SCORE] for entry in validations}) > 1,
    )
