"""Call a loss and a metric with the inputs that make them fail late in a training.

A loss gets random batches, a batch of one row and large outputs; a metric gets right, wrong and
constant predictions, single rows, and labels that are never predicted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trunkline.contracts import MetricSpec, Row, Scored, Settings, Span, Target, Task
from trunkline.data.prepare import Prepared
from trunkline.data.targets import labels_in, number
from trunkline.errors import PluginCallError, TrunklineError
from trunkline.evaluation.intervals import estimate, score_of
from trunkline.tasks import (
    AnyTask,
    ClassificationTask,
    MultilabelTask,
    RankingTask,
    RegressionTask,
    TaggingTask,
    task_for,
)
from trunkline.training.job import TrainingJob
from trunkline.training.scoring import build_loss

if TYPE_CHECKING:
    import torch

    from trunkline.contracts import LossFunction

LARGE = 100.0
"""Size of large outputs. ``exp`` of it is infinite in float32, so a loss that does not use
``log_softmax`` or the like fails on them."""

_BATCH = 8
_VOCABULARY = 512
_CANDIDATES = 5
_DRAWS = 20
_CHOICES = 20
_MOST_ROWS = 64
_MOST_LABELS = 200


# ----------------------------------------------------------------------------------------- loss


def loss_problem(job: TrainingJob, prepared: Prepared) -> str | None:
    """Why a training would fail with the job's loss, or None."""
    rows = (*prepared.split.train, *prepared.augmented)
    task = task_for(job.recipe, prepared.labels, rows, job.dataset.unit)
    try:
        loss = build_loss(job, task, rows)
        learns = uses_targets = False
        for description, outputs, targets in _batches(task, job.settings):
            problem, moves = _try_batch(loss, outputs, targets)
            if problem is not None:
                return f"on {description} {problem}"
            learns |= moves
            uses_targets = uses_targets or _uses_targets(loss, outputs, targets)
        if not learns:
            return "the gradient of the loss is zero on every batch, so nothing would be learned"
        if not uses_targets:
            return "the loss is the same with the targets of other rows: it ignores its targets"
        return _mean_problem(loss, task, job.settings) if job.loss.is_mean else None
    except TrunklineError as error:
        return f"{error.message} {error.hint or ''}".strip()


def _batches(task: AnyTask, settings: Settings) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Description, outputs and targets of each test case."""
    import torch

    generator = torch.Generator().manual_seed(0)

    width = {"generation": _VOCABULARY, "ranking": _CANDIDATES}.get(task.kind, task.head_size or 1)

    def outputs(rows: int) -> torch.Tensor:
        size = (rows,) if isinstance(task, RegressionTask) else (rows, width)
        return torch.randn(size, generator=generator)

    def targets(rows: int) -> torch.Tensor:
        if isinstance(task, RegressionTask):
            return torch.randn(rows, generator=generator)
        if isinstance(task, MultilabelTask):
            return torch.randint(2, (rows, width), generator=generator).float()
        return torch.randint(width, (rows,), generator=generator)

    def one_label(label: int) -> tuple[str, torch.Tensor, torch.Tensor]:
        name = task.labels[label]
        labels = torch.full((_BATCH,), label)
        return f"a batch with the label {name!r} only", outputs(_BATCH), labels

    yield "a random batch", outputs(_BATCH), targets(_BATCH)
    yield "a batch of one row", outputs(1), targets(1)
    labels = len(task.labels) if isinstance(task, ClassificationTask) else 0
    for label in dict.fromkeys((0, labels - 1)) if labels else ():
        yield one_label(label)
    if isinstance(task, MultilabelTask):
        yield "a batch without a label", outputs(_BATCH), torch.zeros(_BATCH, width)
        yield "a batch with every label", outputs(_BATCH), torch.ones(_BATCH, width)
    if isinstance(task, TaggingTask):
        outside = torch.zeros(_BATCH, dtype=torch.long)  # large outputs: the gradient may be zero
        yield "tokens outside of spans only", outputs(_BATCH).sign() * LARGE, outside
    if isinstance(task, RankingTask):
        fewer = outputs(_BATCH)
        fewer[:, 2:] = -math.inf
        yield "rows with two candidates", fewer, torch.zeros(_BATCH, dtype=torch.long)
    large = outputs(_BATCH).sign() * LARGE
    yield f"outputs of ±{LARGE:g}", large, targets(_BATCH)
    rows = min(settings.per_device_train_batch_size, _MOST_ROWS)
    yield f"a batch of {rows} rows", outputs(rows), targets(rows)
    for label in range(1, min(labels - 1, _MOST_LABELS)):
        yield one_label(label)


def _try_batch(
    loss: LossFunction, outputs: torch.Tensor, targets: torch.Tensor
) -> tuple[str | None, bool]:
    """What is wrong with a loss on one batch, and whether it moves outputs of a usual size.

    A sound loss may have no gradient on some batches: one of pairs on a single row, or a hinge loss
    where every margin is kept.
    """
    leaf = outputs.requires_grad_()
    before = targets.clone()
    value = loss(leaf.clone(), targets)  # a model's outputs are no leaf either
    if not bool((targets == before).all()):
        return "the loss changes the targets that it is given", False
    if not bool(value.isfinite()):
        return f"the loss is {value.item()}", False
    if _has_parameters(value, leaf):
        return (
            "the loss has parameters of its own, which are not trained: make them constants",
            False,
        )
    try:
        value.backward()
    except Exception as error:
        raise PluginCallError.raised("The gradient of the loss", error) from error
    gradient = leaf.grad
    if gradient is None:
        return "the loss does not depend on the outputs", False
    if not bool(gradient.isfinite().all()):
        return "the gradient of the loss is not finite", False
    return None, bool(gradient.any()) and bool(leaf.detach().abs().max() < LARGE)


def _uses_targets(loss: LossFunction, outputs: torch.Tensor, targets: torch.Tensor) -> bool:
    """Whether a loss differs where each row has the target of the next one."""
    import torch

    def value(targets: torch.Tensor) -> float:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return float(loss(outputs.detach().clone(), targets))

    return value(targets) != value(targets.roll(1, 0))


def _has_parameters(value: torch.Tensor, leaf: torch.Tensor) -> bool:
    """Whether a value has a gradient with respect to anything else than the outputs."""
    nodes, seen = [value.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", leaf) is not leaf:
            return True
        nodes += [one for one, _ in node.next_functions]
    return False


def _mean_problem(loss: LossFunction, task: AnyTask, settings: Settings) -> str | None:
    """Whether a loss that says ``is_mean`` differs if a batch is computed in parts."""
    _, outputs, targets = next(_batches(task, settings))

    def value(first: int, end: int) -> float:
        return float(loss(outputs[first:end].clone(), targets[first:end]))

    batch, part = len(targets), len(targets) // 3
    complete = value(0, batch)
    if value(0, batch) != complete:  # it draws random numbers
        return None
    in_parts = (part * value(0, part) + (batch - part) * value(part, batch)) / batch
    if math.isclose(complete, in_parts, rel_tol=1e-3, abs_tol=1e-7):
        return None
    return (
        f"is_mean is True, but the loss of a batch of {batch} is {complete:.4g} and the mean over "
        f"its parts is {in_parts:.4g}: leave is_mean out"
    )


# --------------------------------------------------------------------------------------- metric

_Case = tuple[str, Sequence[Target], Sequence[Target]]
"""Description, targets and predictions."""


def metric_problem(
    metric: MetricSpec,
    rows: Sequence[Row],
    labels: tuple[str, ...],
    *,
    builtin: bool = False,
    positive: bool = False,
    decides: bool = False,
) -> str | None:
    """Why a validation or an evaluation would fail with a metric, or None.

    Args:
        metric: to be tried.
        rows: the test rows.
        labels: of a classification.
        builtin: try the rows as they are only, not single rows.
        positive: of a regression on the scale ``log``, whose predictions are above zero.
        decides: it is the gate's, so it must score right predictions better than wrong ones.
    """
    groups = [row.group for row in rows]
    make = _PredictionMaker(metric.task, labels, positive)
    predictions = list(make.predictions(rows))
    few = [] if builtin else list(make.few_rows(rows))
    for description, truth, answers in (*predictions, *make.slices(rows), *few):
        try:
            problem = _score_problem(metric, truth, answers, labels)
        except TrunklineError as error:
            problem = error.message
        if problem is not None:
            return f"with {description}: {problem}"
    if decides and not builtin:
        right, wrong = (
            score_of(metric, Scored(targets=list(truth), predictions=list(answers), labels=labels))
            for _, truth, answers in predictions[:2]
        )
        better = right > wrong if metric.higher_is_better else right < wrong
        if not better:
            return (
                f"it decides, with higher_is_better={metric.higher_is_better}, but right "
                f"predictions have {right:.4g} and wrong ones {wrong:.4g}"
            )
    for description, truth, answers in predictions[:3]:  # as arrays, with an interval's draws
        scored = Scored(targets=truth, predictions=answers, labels=labels)
        try:
            estimate(metric, scored, groups, draws=_DRAWS)
        except TrunklineError as error:
            return f"with {description}, in numpy arrays: {error.message}"
    return None


def _score_problem(
    metric: MetricSpec,
    targets: Sequence[Target],
    predictions: Sequence[Target],
    labels: tuple[str, ...],
) -> str | None:
    scored = Scored(targets=list(targets), predictions=list(predictions), labels=labels)
    score = score_of(metric, scored)
    if (scored.targets, scored.predictions) != (list(targets), list(predictions)):
        return "it changes the targets or the predictions that it is given"
    if score_of(metric, scored) != score:
        return "it gives another score the second time"
    return None


@dataclass(frozen=True)
class _PredictionMaker:
    """Makes predictions for rows, as a metric of one task might get them."""

    task: Task
    labels: tuple[str, ...]
    positive: bool = False

    def predictions(self, rows: Sequence[Row]) -> Iterator[_Case]:
        """All rows with right, wrong and constant predictions."""
        targets = [row.target for row in rows]
        yield "right predictions", targets, [self.right(row) for row in rows]
        yield "wrong predictions", targets, [self.wrong(row) for row in rows]
        for value in self.constants(rows):
            yield f"the prediction {value!r:.40} for every row", targets, [value] * len(rows)

    def slices(self, rows: Sequence[Row]) -> Iterator[_Case]:
        """The rows of each slice with wrong predictions."""
        members: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            for name, value in row.slices.items():
                members.setdefault((name, value), []).append(row)
        for (name, value), of_slice in members.items():
            wrong = [self.wrong(row) for row in of_slice]
            description = f"wrong predictions for the slice {name} = {value!r:.40}"
            yield description, [row.target for row in of_slice], wrong

    def few_rows(self, rows: Sequence[Row]) -> Iterator[_Case]:
        """Single rows, and rows of a single target."""
        for row in list({row.target: row for row in reversed(rows)}.values())[:_CHOICES]:
            target, right, wrong = row.target, self.right(row), self.wrong(row)
            yield f"one row, {target!r:.40}, predicted right", [target], [right]
            yield f"one row, {target!r:.40}, predicted wrong", [target], [wrong]
            yield f"rows of {target!r:.40} only", [target] * 3, [right, wrong, right]

    def right(self, row: Row) -> Target:
        if self.task == "ranking":
            return (str(row.target), *(one for one in row.candidates if one != row.target))
        return row.target

    def wrong(self, row: Row) -> Target:
        target = row.target
        match self.task:
            case "regression":
                wrong = 2.0 * number(target) + 1.0
                return wrong if self.positive else -wrong
            case "classification":
                return self.labels[(self.labels.index(str(target)) + 1) % len(self.labels)]
            case "multilabel":
                return tuple(sorted(set(self.labels) - set(labels_in(target))))
            case "tagging":
                return () if target else (Span(0, 1, self.labels[0]),)
            case "ranking":
                return (*(one for one in row.candidates if one != target), str(target))
        return f"not {target}"

    def constants(self, rows: Sequence[Row]) -> list[Target]:
        match self.task:
            case "regression":
                numbers = [number(row.target) for row in rows]
                mean = sum(numbers) / len(numbers)
                return [1e-6, mean, 1e9] if self.positive else [0.0, mean, -1.0, 1e9]
            case "classification":
                return list(self.labels[:_CHOICES])
            case "multilabel":
                return [(), tuple(sorted(self.labels))]
            case "tagging":
                return [()]
            case "ranking":
                return []  # a prediction is an order of the row's own candidates
        return ["", "?", "two\nlines"]
