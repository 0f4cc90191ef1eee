"""The core's losses: closed forms, gradients, options."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from trunkline.contracts import LossContext
from trunkline.errors import NotFoundError, UsageError
from trunkline.tasks.losses import LOSSES, check_options

quick = settings(max_examples=30, deadline=None)

SPECS = {spec.name: spec for spec in LOSSES}
LABELS = ("food/fruit/apple", "food/fruit/pear", "food/bread", "tools")
COUNTS = dict(zip(LABELS, (8, 4, 2, 1), strict=True))
TARGETS = torch.tensor([0, 1, 2, 3, 0])
CLASSIFICATION = [spec.name for spec in LOSSES if spec.task == "classification"]
REGRESSION = [spec.name for spec in LOSSES if spec.task == "regression"]


def build(name: str, labels: tuple[str, ...] = LABELS, **options: Any) -> Any:
    spec = SPECS[name]
    counts = {label: COUNTS.get(label, 1) for label in labels}
    return spec.build(
        LossContext(labels=labels, counts=counts, options=check_options(spec, options))
    )


def logits(seed: int = 0, rows: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, len(LABELS), dtype=torch.float64, generator=generator)


def probabilities(values: torch.Tensor) -> list[list[float]]:
    return values.softmax(-1).tolist()


def outputs(seed: int = 0, rows: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, rows, dtype=torch.float64, generator=generator)
    return first, second


# ----------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_the_gradient_of_a_classification_loss_is_that_of_finite_differences(name: str) -> None:
    loss = build(name)
    assert torch.autograd.gradcheck(lambda z: loss(z, TARGETS), (logits().requires_grad_(),))


@pytest.mark.parametrize("name", REGRESSION)
def test_the_gradient_of_a_regression_loss_is_that_of_finite_differences(name: str) -> None:
    loss, (predicted, targets) = build(name), outputs()
    assert torch.autograd.gradcheck(lambda y: loss(y, targets), (predicted.requires_grad_(),))


@pytest.mark.parametrize("name", [*CLASSIFICATION, *REGRESSION])
def test_large_outputs_and_single_rows_give_finite_losses_and_gradients(name: str) -> None:
    loss = build(name)
    for rows in (1, 5):
        if name in CLASSIFICATION:
            value, targets = logits(rows=rows).float().sign() * 100, TARGETS[:rows]
        else:
            predicted, truth = outputs(rows=rows)
            value, targets = predicted.float().sign() * 100, truth.float()
        value.requires_grad_()
        result = loss(value, targets)
        result.backward()
        assert result.isfinite()
        assert value.grad is not None
        assert value.grad.isfinite().all()


# --------------------------------------------------------------------------------- closed forms


def test_smoothed_labels_share_a_part_of_the_target_with_all_labels() -> None:
    z = logits()
    expected = 0.0
    for row, target in zip(probabilities(z), TARGETS.tolist(), strict=True):
        for label, p in enumerate(row):
            expected -= (0.9 * (label == target) + 0.1 / 4) * math.log(p) / 5
    assert build("cross_entropy", label_smoothing=0.1)(z, TARGETS).item() == pytest.approx(expected)


def test_balanced_weights_count_every_label_the_same() -> None:
    z, weights = logits(), [15 / (4 * count) for count in COUNTS.values()]
    rows = zip(probabilities(z), TARGETS.tolist(), strict=True)
    expected = sum(-weights[target] * math.log(row[target]) for row, target in rows) / 5
    loss = build("cross_entropy", class_weight="balanced")
    assert loss(z, TARGETS).item() == pytest.approx(expected)


def test_the_focal_loss_scales_each_row_by_its_error() -> None:
    z = logits()
    rows = [row[t] for row, t in zip(probabilities(z), TARGETS.tolist(), strict=True)]
    expected = sum(-((1 - p) ** 1.5) * math.log(p) for p in rows) / 5
    assert build("focal", gamma=1.5)(z, TARGETS).item() == pytest.approx(expected)


def test_class_balanced_weights_follow_the_effective_number_of_rows() -> None:
    z, beta = logits(), 0.9
    raw = [(1 - beta) / (1 - beta**count) for count in COUNTS.values()]
    weights = [4 * weight / sum(raw) for weight in raw]
    rows = zip(probabilities(z), TARGETS.tolist(), strict=True)
    expected = sum(-weights[target] * math.log(row[target]) for row, target in rows) / 5
    assert build("class_balanced", beta=beta)(z, TARGETS).item() == pytest.approx(expected)


def test_the_cost_sensitive_loss_adds_the_expected_cost() -> None:
    z, costs = logits(), {"tools": {"food/bread": 20.0}}
    rows = list(zip(probabilities(z), TARGETS.tolist(), strict=True))
    expected = sum(-math.log(row[target]) for row, target in rows) / 5
    for row, target in rows:
        for label, p in enumerate(row):
            cost = 20.0 if (target, label) == (3, 2) else 2.0
            expected += 0.5 * p * cost * (label != target) / 5
    loss = build("cost_sensitive", costs=costs, other=2.0, weight=0.5)
    assert loss(z, TARGETS).item() == pytest.approx(expected)


def test_the_hierarchical_loss_sums_conditional_probabilities_up_to_the_root() -> None:
    z = logits()
    chains = {
        0: [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
        1: [[1], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
        2: [[2], [0, 1, 2], [0, 1, 2, 3]],
        3: [[3], [0, 1, 2, 3]],
    }
    expected = 0.0
    for row, target in zip(probabilities(z), TARGETS.tolist(), strict=True):
        masses = [sum(row[label] for label in node) for node in chains[target]]
        for level, (inner, outer) in enumerate(pairwise(masses)):
            expected -= math.exp(-0.3 * level) * math.log(inner / outer) / 5
    assert build("hierarchical", alpha=0.3)(z, TARGETS).item() == pytest.approx(expected)


def test_a_label_may_be_the_parent_of_others() -> None:
    labels = ("food", "food/bread", "tools", "tools/saw")
    z, targets = logits(), torch.tensor([0, 1, 2, 3, 0])
    loss = build("hierarchical", labels, alpha=0.0)
    assert loss(z, targets).item() == pytest.approx(cross_entropy(z, targets).item())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_entropy", {}),
        ("focal", {"gamma": 0.0}),
        ("class_balanced", {"beta": 0.0}),
        ("cost_sensitive", {"weight": 0.0}),
        ("hierarchical", {"alpha": 0.0}),
    ],
)
def test_without_its_effect_a_loss_is_the_cross_entropy(name: str, options: dict[str, Any]) -> None:
    z = logits(3)
    expected = cross_entropy(z, TARGETS).item()
    assert build(name, **options)(z, TARGETS).item() == pytest.approx(expected)


@quick
@given(st.floats(0.01, 3.0), st.integers(0, 99))
def test_huber_is_quadratic_up_to_delta_and_linear_beyond(delta: float, seed: int) -> None:
    predicted, targets = outputs(seed)
    errors = (predicted - targets).abs().tolist()
    rows = [e * e / 2 if e <= delta else delta * (e - delta / 2) for e in errors]
    assert build("huber", delta=delta)(predicted, targets).item() == pytest.approx(sum(rows) / 6)


@quick
@given(st.floats(0.05, 0.95))
def test_the_constant_of_least_pinball_loss_is_the_quantile(share: float) -> None:
    targets = torch.arange(101, dtype=torch.float64)
    loss = build("quantile", quantile=share)
    values = [loss(torch.full_like(targets, float(at)), targets).item() for at in range(101)]
    best = min(range(101), key=values.__getitem__)
    assert abs(best - share * 101) <= 1


def test_the_ranking_loss_averages_over_ordered_pairs() -> None:
    predicted, targets = outputs()
    pairs = [
        math.log1p(math.exp(-(predicted[i] - predicted[j]).item()))
        for i in range(6)
        for j in range(6)
        if targets[i] > targets[j]
    ]
    squared = (predicted - targets).square().mean().item()
    expected = squared + 2.0 * sum(pairs) / len(pairs)
    loss = build("pairwise_ranking", weight=2.0)
    assert loss(predicted, targets).item() == pytest.approx(expected)


# -------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("focal", {"gama": 1.0}, "gama"),
        ("mse", {"delta": 1.0}, "none"),
        ("cost_sensitive", {"costs": {"tols": {"tools": 1.0}}}, "tols"),
    ],
)
def test_an_unknown_option_or_label_is_refused(
    name: str, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(NotFoundError) as error:
        build(name, **options)
    assert part in f"{error.value.message} {error.value.hint}"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("focal", {"gamma": "2"}),
        ("focal", {"gamma": True}),
        ("focal", {"gamma": -1.0}),
        ("focal", {"gamma": math.nan}),
        ("class_balanced", {"beta": 1.0}),
        ("cross_entropy", {"label_smoothing": 1.0}),
        ("cross_entropy", {"class_weight": "balance"}),
        ("cost_sensitive", {"costs": {"tools": 3.0}}),
        ("cost_sensitive", {"costs": {"tools": {"tools": 3.0}}}),
        ("cost_sensitive", {"costs": {1: {}}}),
        ("cost_sensitive", {"costs": {"tools": {2: 3.0}}}),
        ("focal", {"gamma": 10**400}),
        ("focal", {1: 1}),
        ("focal", {"gamma": object()}),
        ("cost_sensitive", {"costs": {"tools": {"food/bread": "high"}}}),
        ("hierarchical", {"separator": ">"}),
        ("quantile", {"quantile": 0}),
        ("huber", {"delta": 0.0}),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(name: str, options: Any) -> None:
    spec = SPECS[name]
    with pytest.raises(UsageError) as error:
        spec.build(LossContext(labels=LABELS, counts=COUNTS, options=check_options(spec, options)))
    assert error.value.hint


@pytest.mark.parametrize("default", [object(), {1: 2}, {"a"}, math.inf, b"x"])
def test_a_default_that_json_cannot_hold_is_refused(default: Any) -> None:
    spec = replace(SPECS["focal"], options={"gamma": default})
    with pytest.raises(UsageError) as error:
        check_options(spec, {})
    assert error.value.hint
