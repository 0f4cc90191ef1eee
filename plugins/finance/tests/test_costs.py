"""The cost table, and the loss and the metric that read it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trunkline.contracts import LossContext, Scored
from trunkline.errors import NotFoundError, UsageError
from trunkline_finance.categories import CATEGORIES, EATING_OUT, GROCERIES, HEALTH, MONEY
from trunkline_finance.costs import SECTORS, WATCHED, cost, costs_of
from trunkline_finance.losses import build_cost_sensitive
from trunkline_finance.metrics import expected_cost

LABELS = (EATING_OUT, GROCERIES, HEALTH, MONEY)


def test_the_table_has_20_sectors() -> None:
    assert len({label for family in SECTORS.values() for label in family}) == 20


@pytest.mark.parametrize("label", [*CATEGORIES, "Manufacturing", "Finance and Insurance"])
def test_a_right_answer_costs_nothing(label: str) -> None:
    assert cost(label, label) == 0


def test_a_mistake_within_a_family_costs_half() -> None:
    assert (cost("Construction", "Manufacturing"), cost("Construction", "Retail Trade")) == (0.5, 1)


@pytest.mark.parametrize("watched", sorted(WATCHED - {MONEY}))
def test_missing_a_watched_sector_costs_twice_a_false_alarm(watched: str) -> None:
    assert cost(watched, "Manufacturing") == 2 * cost("Manufacturing", watched)


def test_mistaking_money_for_spending_costs_twice_the_reverse() -> None:
    assert cost(MONEY, GROCERIES) == 2 * cost(GROCERIES, MONEY)


def test_rows_of_the_matrix_are_the_truth() -> None:
    matrix = costs_of(LABELS).matrix
    assert matrix[3].tolist() == [2, 2, 2, 0]
    assert matrix[:, 3].tolist() == [1, 1, 1, 0]


def test_an_unknown_label_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(NotFoundError, match="'grocery'") as caught:
        costs_of((MONEY, "grocery"))
    assert "'groceries'" in str(caught.value.hint)


def test_an_unknown_label_is_refused_even_where_it_is_right() -> None:
    with pytest.raises(NotFoundError):
        cost("grocery", "grocery")


def test_the_metric_is_the_mean_of_the_costs() -> None:
    scored = Scored(
        targets=[MONEY, GROCERIES, GROCERIES, HEALTH],
        predictions=[GROCERIES, EATING_OUT, MONEY, HEALTH],
        labels=LABELS,
    )
    assert expected_cost(scored) == (2 + 0.5 + 1 + 0) / 4


def test_the_metric_needs_no_list_of_labels() -> None:
    assert expected_cost(Scored(targets=[MONEY], predictions=[HEALTH])) == 2


def test_the_metric_refuses_a_prediction_without_a_cost() -> None:
    with pytest.raises(NotFoundError):
        expected_cost(Scored(targets=[MONEY], predictions=["dragons"], labels=LABELS))


@given(st.lists(st.tuples(st.sampled_from(CATEGORIES), st.sampled_from(CATEGORIES)), min_size=1))
def test_the_metric_lies_between_0_and_2(pairs: list[tuple[str, str]]) -> None:
    targets, predictions = zip(*pairs, strict=True)
    assert 0 <= expected_cost(Scored(targets=targets, predictions=predictions)) <= 2


def test_the_loss_by_hand() -> None:
    loss = build_cost_sensitive(LossContext(labels=LABELS))
    even = loss(torch.zeros(1, 4), torch.tensor([3]))
    assert math.isclose(even.item(), math.log(4) + (2 + 2 + 2) / 4, rel_tol=1e-6)


def test_the_cheaper_mistake_has_the_lower_loss() -> None:
    loss = build_cost_sensitive(LossContext(labels=LABELS))
    target = torch.tensor([0])
    near, far = torch.tensor([[0.0, 3, 0, 0]]), torch.tensor([[0.0, 0, 3, 0]])
    assert loss(near, target) < loss(far, target)


def test_the_loss_is_finite_and_has_gradients_for_extreme_logits() -> None:
    loss = build_cost_sensitive(LossContext(labels=LABELS))
    logits = torch.tensor([[1e4, -1e4, 0, 0]], requires_grad=True)
    loss(logits, torch.tensor([1])).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_loss_approaches_zero_for_confident_correct_answers() -> None:
    loss = build_cost_sensitive(LossContext(labels=LABELS))
    assert loss(100 * torch.eye(4), torch.arange(4)).item() < 1e-6


def test_the_loss_refuses_a_context_without_labels() -> None:
    with pytest.raises(UsageError, match="without labels"):
        build_cost_sensitive(LossContext())


def test_the_loss_refuses_labels_without_a_cost() -> None:
    with pytest.raises(NotFoundError, match="'Diseases of the eye'"):
        build_cost_sensitive(LossContext(labels=("Diseases of the eye",)))
