"""Huber loss: values, monotonicity, and the bound on the gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trunkline.contracts import LossContext
from trunkline_retail.losses import DELTA, build_huber

errors = st.floats(-1e3, 1e3, width=32)
huber = build_huber(LossContext())


def loss(error: float) -> float:
    return float(huber(torch.tensor([error]), torch.zeros(1)))


def test_small_errors_have_a_quadratic_loss() -> None:
    assert loss(0.4) == pytest.approx(0.4**2 / 2)


def test_large_errors_have_a_linear_loss() -> None:
    assert loss(-3.0) == pytest.approx(DELTA * (3.0 - DELTA / 2))


def test_the_batch_is_averaged() -> None:
    both = float(huber(torch.tensor([0.4, 3.0]), torch.zeros(2)))
    assert both == pytest.approx((loss(0.4) + loss(3.0)) / 2)


@given(errors, errors)
def test_a_larger_error_never_costs_less(first: float, second: float) -> None:
    near, far = sorted((abs(first), abs(second)))
    assert loss(near) <= loss(-far)


@given(errors)
def test_no_rows_gradient_exceeds_delta(error: float) -> None:
    outputs = torch.tensor([error], requires_grad=True)
    huber(outputs, torch.zeros(1)).backward()
    assert outputs.grad is not None
    assert float(outputs.grad.abs()) <= DELTA + 1e-6
