"""Sound losses and metrics of every kind, of which `trunkline plugins check` has no findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from farm_plugin import (
    DATA,
    RIGHT,
    errors_of,
    findings_of,
    loss,
    metric,
)

AddPlugin = Callable[..., Path]


@pytest.mark.parametrize("task", DATA)
def test_sound_loss_and_metric_of_each_task_pass(task: str, add_plugin: AddPlugin) -> None:
    formula = "torch.nn.functional.cross_entropy(outputs, targets)"
    if task == "regression":
        formula = "(outputs - targets).square().mean()"
    code = f"import torch\n    return lambda outputs, targets: {formula}"
    body = loss(f"def build(context):\n    {code}", task)
    count = f"compute = lambda scored: {RIGHT} / len(scored.targets)"
    if task == "ranking":
        count = "compute = lambda scored: float(scored.predictions[0].index(scored.targets[0]))"
    add_plugin(
        "farm",
        body.replace("loss='farm/l'", "loss='farm/l', metrics=('farm/m',)")
        + metric(count, task).partition("yield recipe")[2].partition("\n")[2],
    )
    assert findings_of("farm") == []


SOUND_LOSSES = {
    "hinge": ("F.multi_margin_loss", "classification"),
    "pairs of labels": (
        "lambda a, b: F.softplus(-(a[:, None] - a[None]).abs().sum(-1)[b[:, None] != b]).mean() "
        "if len(set(b.tolist())) > 1 else a.sum() * 0",
        "classification",
    ),
    "pairs of numbers": (
        "lambda a, b: F.softplus((a[None] - a[:, None])[b[:, None] > b]).mean() "
        "if len(b) > 1 else a.sum() * 0",
        "regression",
    ),
    "insensitive": ("lambda a, b: F.relu((a - b).abs() - 2).mean()", "regression"),
    "in place": ("lambda a, b: F.cross_entropy(a.mul_(2), b)", "classification"),
}


@pytest.mark.parametrize("name", SOUND_LOSSES)
def test_loss_without_a_gradient_on_some_batches_is_sound(name: str, add_plugin: AddPlugin) -> None:
    formula, task = SOUND_LOSSES[name]
    code = f"def build(context):\n    import torch.nn.functional as F\n    return {formula}"
    add_plugin("farm", loss(code, task))
    assert findings_of("farm") == []


LOGARITHMS = (
    "from math import log1p\ndef compute(scored):\n"
    "    pairs = zip(scored.targets, scored.predictions)\n"
    "    return sum((log1p(a) - log1p(b)) ** 2 for a, b in pairs) / len(scored.targets)"
)


def test_metric_of_positive_numbers_is_sound_where_predictions_are_positive(
    add_plugin: AddPlugin,
) -> None:
    body = metric(LOGARITHMS, "regression")
    add_plugin("farm", body.replace("'farm/x', metrics", "'farm/x', scale='log', metrics"))
    assert findings_of("farm") == []


def test_metric_of_positive_numbers_is_tried_on_each_scale(add_plugin: AddPlugin) -> None:
    body = metric(LOGARITHMS, "regression")
    given = "metrics=('farm/m',), task='regression', gate=Gate(metric='mae'))\n"
    both = f"recipe('farm/x', scale='log', {given}    yield recipe('farm/y', dataset='farm/x', "
    add_plugin("farm", body.replace("recipe('farm/x', ", both))
    (error,) = errors_of("farm")
    assert "math domain error" in error
