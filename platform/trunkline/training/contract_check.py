"""Call a loss and a metric with the inputs that make them fail late in a training.

A loss gets random batches, a batch of one row and large outputs; a metric gets right, wrong and
constant predictions, single rows, and labels that are never predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trunkline.contracts import MetricSpec, Row, Scored, Settings, Target
from trunkline.data.prepare import Prepared
from trunkline.errors import PluginCallError, TrunklineError
from trunkline.evaluation.intervals import estimate, score_of
from trunkline.tasks import AnyTask, ClassificationTask, GenerationTask, task_for
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
        for description, outputs, targets in _batches(task, job.settings):
            problem = _batch_problem(loss, outputs, targets)
            if problem is not None:
                return f"on {description} {problem}"
    except TrunklineError as error:
        return f"{error.message} {error.hint or ''}".strip()
    return None


def _batches(task: AnyTask, settings: Settings) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Description, outputs and targets of each test case."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def outputs(rows: int) -> torch.Tensor:
        if isinstance(task, ClassificationTask):
            size: tuple[int, ...] = (rows, len(task.labels))
        else:
            size = (rows, _VOCABULARY) if isinstance(task, GenerationTask) else (rows,)
        return torch.randn(size, generator=generator)

    def targets(rows: int) -> torch.Tensor:
        if isinstance(task, ClassificationTask):
            return torch.randint(len(task.labels), (rows,), generator=generator)
        if isinstance(task, GenerationTask):
            return torch.randint(_VOCABULARY, (rows,), generator=generator)
        return torch.randn(rows, generator=generator)

    yield "a random batch", outputs(_BATCH), targets(_BATCH)
    yield "a batch of one row", outputs(1), targets(1)
    if isinstance(task, ClassificationTask):
        for label in dict.fromkeys((0, len(task.labels) - 1)):
            labels = torch.full((_BATCH,), label)
            yield f"a batch with the label {task.labels[label]!r} only", outputs(_BATCH), labels
    large = outputs(_BATCH).sign() * LARGE
    yield f"outputs of ±{LARGE:g}", large, targets(_BATCH)
    rows = min(settings.per_device_train_batch_size, _MOST_ROWS)
    yield f"a batch of {rows} rows", outputs(rows), targets(rows)
    if isinstance(task, ClassificationTask):
        for label in range(1, min(len(task.labels) - 1, _MOST_LABELS)):
            labels = torch.full((_BATCH,), label)
            yield f"a batch with the label {task.labels[label]!r} only", outputs(_BATCH), labels


def _batch_problem(loss: LossFunction, outputs: torch.Tensor, targets: torch.Tensor) -> str | None:
    outputs.requires_grad_()
    before = targets.clone()
    value = loss(outputs, targets)
    if not bool((targets == before).all()):
        return "the loss changes the targets that it is given"
    if not bool(value.isfinite()):
        return f"the loss is {value.item()}"
    try:
        value.backward()
    except Exception as error:
        raise PluginCallError.raised("The gradient of the loss", error) from error
    gradient = outputs.grad
    if gradient is None:
        return "the loss does not depend on the outputs"
    if not bool(gradient.isfinite().all()):
        return "the gradient of the loss is not finite"
    if not bool(gradient.any()) and bool(outputs.detach().abs().max() < LARGE):
        return "the gradient of the loss is zero, so nothing would be learned"
    return None


# --------------------------------------------------------------------------------------- metric

_Case = tuple[str, Sequence[Target], Sequence[Target]]
"""Description, targets and predictions."""


def metric_problem(
    metric: MetricSpec, rows: Sequence[Row], labels: tuple[str, ...], *, builtin: bool = False
) -> str | None:
    """Why a validation or an evaluation would fail with a metric, or None.

    Args:
        metric: to be tried.
        rows: the test rows.
        labels: of a classification.
        builtin: try the rows as they are only, not single rows.
    """
    targets = [row.target for row in rows]
    groups = [row.group for row in rows]
    predictions = list(_predictions(targets, labels))
    few = [] if builtin else list(_few_rows(rows, labels))
    for description, truth, answers in (*predictions, *_slices(rows, labels), *few):
        try:
            problem = _score_problem(metric, truth, answers, labels)
        except TrunklineError as error:
            problem = error.message
        if problem is not None:
            return f"with {description}: {problem}"
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


def _predictions(targets: Sequence[Target], labels: tuple[str, ...]) -> Iterator[_Case]:
    """All rows with right, wrong and constant predictions."""
    yield "right predictions", targets, targets
    yield "wrong predictions", targets, [_wrong(target, labels) for target in targets]
    for value in _constants(targets, labels):
        yield f"the prediction {value!r:.40} for every row", targets, [value] * len(targets)


def _slices(rows: Sequence[Row], labels: tuple[str, ...]) -> Iterator[_Case]:
    """The rows of each slice with wrong predictions."""
    members: dict[tuple[str, str], list[Target]] = {}
    for row in rows:
        for name, value in row.slices.items():
            members.setdefault((name, value), []).append(row.target)
    for (name, value), targets in members.items():
        wrong = [_wrong(target, labels) for target in targets]
        yield f"wrong predictions for the slice {name} = {value!r:.40}", targets, wrong


def _few_rows(rows: Sequence[Row], labels: tuple[str, ...]) -> Iterator[_Case]:
    """Single rows, and rows of a single target."""
    for target in list(dict.fromkeys(row.target for row in rows))[:_CHOICES]:
        wrong = _wrong(target, labels)
        yield f"one row, {target!r:.40}, predicted right", [target], [target]
        yield f"one row, {target!r:.40}, predicted wrong", [target], [wrong]
        yield f"rows of {target!r:.40} only", [target] * 3, [target, wrong, target]


def _wrong(target: Target, labels: tuple[str, ...]) -> Target:
    if not isinstance(target, str):
        return -2.0 * target - 1.0
    if labels:
        return labels[(labels.index(target) + 1) % len(labels)]
    return f"not {target}"


def _constants(targets: Sequence[Target], labels: tuple[str, ...]) -> list[Target]:
    if labels:
        return list(labels[:_CHOICES])
    numbers = [float(target) for target in targets if not isinstance(target, str)]
    if not numbers:
        return ["", "?", "two\nlines"]
    return [0.0, sum(numbers) / len(numbers), -1.0, 1e9]
