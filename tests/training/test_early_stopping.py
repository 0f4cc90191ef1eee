"""The best validation, and when a training stops early."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trunkline.training.scoring import Selection, select_best


def history(*validations: tuple[float, float]) -> list[dict[str, float]]:
    """A trainer's history with these scores and losses, one per step."""
    entries: list[dict[str, float]] = []
    for step, (score, loss) in enumerate(validations, 1):
        entries.append({"step": step, "loss": 9.0})
        entries.append({"step": step, "eval_score": score, "eval_loss": loss})
    return entries


def best(*validations: tuple[float, float], higher: bool = True) -> Selection:
    selection = select_best(history(*validations), higher_is_better=higher)
    assert selection is not None
    return selection


def test_no_validation_selects_nothing() -> None:
    assert select_best([{"step": 1, "loss": 2.0}], higher_is_better=True) is None


def test_score_decides_before_the_loss() -> None:
    assert best((0.4, 0.1), (0.5, 0.9)).step == 2
    assert best((0.4, 0.9), (0.5, 0.1), higher=False).step == 1


def test_tied_scores_are_decided_by_the_loss() -> None:
    assert best((0.5, 0.9), (0.5, 0.3), (0.5, 0.6)).step == 2
    assert best((0.5, 0.9), (0.5, 0.3), (0.5, 0.6), higher=False).step == 2


def test_full_tie_is_decided_for_the_first() -> None:
    assert best((0.5, 0.3), (0.5, 0.3)).step == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_no_number_never_wins_a_tie(loss: float) -> None:
    assert best((0.5, loss), (0.5, 0.3)).step == 2
    assert best((0.5, 0.3), (0.5, loss)).step == 1


def test_validation_without_a_loss_never_wins_a_tie() -> None:
    entries = [{"step": 1, "eval_score": 0.5}, *history((0.5, 0.4))[1:]]
    selection = select_best(entries, higher_is_better=True)
    assert selection is not None
    assert selection.since == 0


def test_score_that_never_moved_stops_nothing() -> None:
    selection = best(*[(0.0, 1.0 + step) for step in range(9)])
    assert selection.since == 8
    assert not selection.ends_training(2)


def test_constant_score_with_a_falling_loss_is_progress() -> None:
    assert best((0.1, 1.0), (0.2, 0.9), (0.2, 0.8), (0.2, 0.7)).since == 0


def test_score_that_moved_and_stays_worse_stops_the_training() -> None:
    selection = best((0.5, 1.0), (0.4, 0.9), (0.4, 0.8))
    assert not selection.ends_training(3)
    assert selection.ends_training(2)
    assert not selection.ends_training(0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12),
    st.booleans(),
)
def test_no_validation_is_better_than_the_selected_one(
    validations: list[tuple[float, float]], higher: bool
) -> None:
    selection = best(*validations, higher=higher)
    score, loss = validations[selection.step - 1]
    for other_score, other_loss in validations:
        assert other_score <= score if higher else other_score >= score
        if other_score == score:
            assert other_loss >= loss
    assert selection.since == len(validations) - selection.step
