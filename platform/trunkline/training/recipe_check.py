"""Check a plugin's recipes without a base: everything of a training that needs no model.

Rows are read, cleaned and split; transforms, losses, baselines and metrics are called as a run
calls them, and metrics and losses also with the inputs that make them fail late.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trunkline.contracts import BaselineSpec, DatasetSpec, MetricSpec, Row, Scored
from trunkline.data.findings import Examiner
from trunkline.data.prepare import (
    Prepared,
    checked_additions,
    identified_rows,
    prepare,
)
from trunkline.data.targets import LABELED, labels_in, normalized, shape_problem
from trunkline.data.transforms import augment_rows
from trunkline.errors import MissingDataError, TrunklineError, plugin_call
from trunkline.evaluation.baselines import fit_baselines
from trunkline.evaluation.intervals import score_of
from trunkline.labels import clean_label, similar_advice
from trunkline.plugins.catalog import Catalog, Contribution
from trunkline.plugins.check import Finding
from trunkline.settings import is_finite
from trunkline.training.augmentation import is_repeatable
from trunkline.training.contract_check import loss_problem, metric_problem
from trunkline.training.job import TrainingJob, make_job

MIN_GROUPS = 3
"""One each for train, validation and test."""

_SCORED_ROWS = 200

Stage = Callable[[str], None]


def spec_findings(
    contribution: Contribution,
    core: Contribution,
    on_stage: Stage = lambda text: None,
    on_rows: Callable[[str, Sequence[Row]], None] = lambda name, rows: None,
    examiner: Examiner = Examiner(),  # noqa: B008  # frozen
) -> Iterator[Finding]:
    """Yield what is wrong with the rows, the descriptions and the functions of a plugin.

    Args:
        contribution: the plugin's specs, which break no rule of their own.
        core: the built-ins.
        on_stage: called with a phrase when a stage begins.
        on_rows: called with the name and the rows of each dataset that can be used.
        examiner: reports what is suspicious in prepared rows.
    """
    rows: dict[str, tuple[Row, ...]] = {}
    for dataset in contribution.datasets:
        on_stage(f"reading {dataset.name}")
        yield from _described(dataset, ("description", "license", "source", "grouping"))
        findings = list(_read(dataset, rows))
        yield from findings
        if any(finding.level == "error" for finding in findings):
            rows.pop(dataset.name, None)  # the check would only repeat the error
        elif dataset.name in rows:
            on_rows(dataset.name, rows[dataset.name])

    for dataset in contribution.datasets:
        used = any(recipe.dataset == dataset.name for recipe in contribution.recipes)
        if dataset.name in rows and not used:
            yield from examiner(dataset, rows[dataset.name], None, ())
    catalog = Catalog((), (core, contribution))
    checker = _RecipeChecker(catalog, contribution, rows, examiner, on_stage)
    for recipe in contribution.recipes:
        yield from _described(recipe, ("description",))
        yield from checker.recipe_findings(recipe.name)
    yield from checker.unused()
    for spec in (
        *contribution.losses,
        *contribution.metrics,
        *contribution.transforms,
        *contribution.baselines,
        *contribution.tasks,
    ):
        yield from _described(spec, ("description",))


def _described(spec: Any, attributes: tuple[str, ...]) -> Iterator[Finding]:
    for attribute in attributes:
        if not getattr(spec, attribute).strip():
            yield Finding.error(spec.name, f"its {attribute} is empty")


# ----------------------------------------------------------------------------------------- rows


def _read(dataset: DatasetSpec, rows: dict[str, tuple[Row, ...]]) -> Iterator[Finding]:
    """Read a dataset twice and check its rows, which are put into ``rows``."""
    try:
        with plugin_call("load"):
            rows[dataset.name] = identified_rows(dataset)
            again = identified_rows(dataset)
    except MissingDataError as error:
        yield Finding.warning(dataset.name, f"not checked: {_sentence(error)}")
        return
    except TrunklineError as error:
        yield Finding.error(dataset.name, _sentence(error))
        return
    yield from _row_findings(dataset, rows[dataset.name])
    if again != rows[dataset.name]:
        yield Finding.error(
            dataset.name, "load gives other rows, or another order, the second time"
        )


def _row_findings(dataset: DatasetSpec, rows: Sequence[Row]) -> Iterator[Finding]:
    if not rows:
        yield Finding.error(dataset.name, "load gives no rows")
        return
    for number, row in enumerate(rows):
        violation = _row_violation(dataset, row)
        if violation:
            row_id = getattr(row, "id", row)
            yield Finding.error(dataset.name, f"row {number} ({row_id!r:.60}): {violation}")
            return
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            yield Finding.error(dataset.name, f"more than one row has the id {row.id!r}")
            break
        seen.add(row.id)
    groups = {row.group for row in rows}
    if len(groups) < MIN_GROUPS:
        yield Finding.error(
            dataset.name, f"it has {len(groups)} groups; a split needs at least {MIN_GROUPS}"
        )
    if dataset.task == "classification" and len({row.target for row in rows}) < 2:
        yield Finding.error(dataset.name, f"every row has the label {rows[0].target!r}")
    if dataset.task == "regression" and not dataset.unit:
        yield Finding.warning(dataset.name, "it has no unit for its numbers")
    undeclared = sorted({name for row in rows for name in row.slices} - set(dataset.slices))
    if undeclared:
        yield Finding.warning(
            dataset.name,
            f"its rows have the slice {undeclared[0]!r}, which `slices` of the dataset does not "
            "name, so no scores are reported for it",
        )


def _row_violation(dataset: DatasetSpec, row: Any) -> str | None:
    if not isinstance(row, Row):
        return f"it is {type(row).__name__}, not Row"
    texts = ("id", "text", "group") if dataset.modality == "text" else ("id", "group")
    for attribute in texts:
        value = getattr(row, attribute)
        if not isinstance(value, str) or not value.strip():
            return f"its {attribute} is {value!r}, not a non-empty string"
    if dataset.task == "regression":
        if not is_finite(row.target):
            return f"its target is {row.target!r}, not a finite number"
    elif dataset.task not in ("multilabel", "tagging") and (
        not isinstance(row.target, str) or not row.target.strip()
    ):
        return f"its target is {row.target!r}, not a non-empty string"
    if problem := shape_problem(row):
        return problem
    try:
        row = normalized(row, dataset.task)
    except ValueError as error:
        return str(error)
    declared = [clean_label(label) for label in dataset.labels]
    for label in labels_in(row.target) if declared and dataset.task in LABELED else ():
        if clean_label(label) not in declared:
            advice = similar_advice(label, dataset.labels)
            unknown = f"its label {label!r} is not among the dataset's labels"
            return unknown if advice is None else f"{unknown}. {advice}".rstrip(".")
    if not isinstance(row.slices, Mapping):
        return f"its slices are {row.slices!r:.60}, not a mapping"
    missing = [name for name in dataset.slices if name not in row.slices]
    return f"it has no slice {missing[0]!r}" if missing else None


# -------------------------------------------------------------------------------------- recipes


class _RecipeChecker:
    """Checks recipes one after another and remembers what they used."""

    def __init__(
        self,
        catalog: Catalog,
        own: Contribution,
        rows: dict[str, tuple[Row, ...]],
        examiner: Examiner,
        on_stage: Stage,
    ) -> None:
        self._catalog, self._own, self._rows, self._on_stage = catalog, own, rows, on_stage
        self._examiner = examiner
        self._used: set[str] = set()
        self._tried: set[tuple[str, ...]] = set()

    def recipe_findings(self, name: str) -> Iterator[Finding]:
        """Check one recipe, unless the rows of its dataset can't be used."""
        try:
            job = make_job(self._catalog, name, {})
        except TrunklineError as error:
            yield Finding.error(name, _sentence(error))
            return
        specs: tuple[Any, ...] = (job.loss, *job.transforms, *job.metrics, *job.baselines)
        self._used |= {spec.name for spec in specs}
        if job.dataset.name not in self._rows:
            return
        self._on_stage(f"preparing the rows of {name}")
        try:
            prepared = self._prepare(job)
            own = any("/" in step.name for step in job.transforms)
            if own and _signature(self._prepare(job)) != _signature(prepared):
                yield Finding.error(
                    name,
                    "its transforms give other rows the second time: draw random numbers from "
                    "`rng` only",
                )
        except TrunklineError as error:
            yield Finding.error(name, _sentence(error))
            return
        yield from self._augment_findings(job, prepared)
        yield from self._examiner.prepared_findings(prepared, job.dataset, job.recipe)
        yield from self._loss_findings(job, prepared)
        yield from self._metric_findings(job, prepared)
        yield from self._baseline_findings(job, prepared)

    def unused(self) -> Iterator[Finding]:
        """Warn of each of the plugin's own specs that no recipe uses."""
        own = self._own
        specs: tuple[Any, ...] = (*own.losses, *own.metrics, *own.transforms, *own.baselines)
        for spec in specs:
            if spec.name not in self._used and "/" in spec.name:  # the built-ins have no recipes
                yield Finding.warning(spec.name, "no recipe uses it, so it was not tried")

    def _prepare(self, job: TrainingJob) -> Prepared:
        rows = self._rows[job.dataset.name]
        return prepare(replace(job.dataset, load=lambda: rows), job.recipe, job.transforms)

    def _is_new(self, spec: Any, job: TrainingJob, *situation: str) -> bool:
        """Whether a spec of the plugin is tried for the first time on this dataset.

        Args:
            situation: what else of the recipe the spec reads.
        """
        key = (spec.name, job.dataset.name, *situation)
        if "/" not in spec.name or key in self._tried:
            return False
        self._tried.add(key)
        return True

    def _augment_findings(self, job: TrainingJob, prepared: Prepared) -> Iterator[Finding]:
        """Try the plugin's augmentation on the rows that are not in train with this split."""
        steps = [one for one in job.transforms if "/" in one.name and one.stage == "augment"]
        rows = (*prepared.split.validation, *prepared.split.test)
        try:
            added = augment_rows(rows, steps, random.Random(job.settings.seed))
            checked_additions(job.dataset, job.recipe, added, prepared.labels)
            own = [one for one in job.transforms if "/" in one.name and one.changes_pictures]
            if own and not is_repeatable(own, rows[:2]):
                yield Finding.error(
                    job.recipe.name,
                    "its transforms give other pictures the second time: draw random numbers from "
                    "`rng` only",
                )
        except TrunklineError as error:
            yield Finding.error(job.recipe.name, _sentence(error))

    def _loss_findings(self, job: TrainingJob, prepared: Prepared) -> Iterator[Finding]:
        recipe = job.recipe
        options = repr(sorted(recipe.loss_options.items()))
        changed = dict(recipe.loss_options) != dict(job.loss.options)
        if not self._is_new(job.loss, job, options, recipe.scale) and (
            "/" in job.loss.name or not changed
        ):
            return
        self._on_stage(f"trying the loss {job.loss.name}")
        problem = loss_problem(job, prepared)
        if problem is not None:
            yield Finding.error(job.loss.name, problem)

    def _metric_findings(self, job: TrainingJob, prepared: Prepared) -> Iterator[Finding]:
        for metric in job.metrics:
            builtin = "/" not in metric.name
            if builtin or self._is_new(metric, job, job.recipe.scale):
                self._on_stage(f"trying the metric {metric.name}")
                problem = metric_problem(
                    metric,
                    _scored_rows(prepared, builtin),
                    prepared.labels,
                    builtin=builtin,
                    positive=job.recipe.scale == "log",
                    decides=metric.name == job.deciding_metric.name,
                )
                if problem is not None:
                    subject = job.recipe.name if builtin else metric.name
                    yield Finding.error(subject, problem)

    def _baseline_findings(self, job: TrainingJob, prepared: Prepared) -> Iterator[Finding]:
        for baseline in job.baselines:
            if not self._is_new(baseline, job, job.recipe.name):
                continue
            self._on_stage(f"fitting the baseline {baseline.name}")
            try:
                self._try_baseline(baseline, job, prepared)
            except TrunklineError as error:
                if _needs_base(error):
                    yield Finding.warning(
                        baseline.name, "it uses the base, so it was not tried on a row"
                    )
                else:
                    yield Finding.error(baseline.name, _sentence(error))

    def _try_baseline(self, spec: BaselineSpec, job: TrainingJob, prepared: Prepared) -> None:
        rows = prepared.split.test
        (fitted,) = fit_baselines([spec], job.recipe, prepared.split, _NoBase())
        targets = [row.target for row in rows]
        for metric in job.metrics:
            _score(metric, targets, fitted.predictions, prepared.labels)


def _score(
    metric: MetricSpec, targets: list[Any], predictions: list[Any], labels: tuple[str, ...]
) -> None:
    score_of(metric, Scored(targets=targets, predictions=predictions, labels=labels))


def _scored_rows(prepared: Prepared, builtin: bool) -> tuple[Row, ...]:
    """The test rows; for a metric of the plugin more, if they are few."""
    split = prepared.split
    if builtin:
        return split.test
    rows = (*split.test, *split.validation, *split.train)
    return rows[: max(len(split.test), _SCORED_ROWS)]


def _signature(prepared: Prepared) -> tuple[Any, ...]:
    return (prepared.fingerprint, prepared.split.fingerprint, prepared.augmented)


def _sentence(error: TrunklineError) -> str:
    return " ".join(part for part in (error.message, error.hint) if part).rstrip(".")


class _BaseNeeded(Exception):
    """A baseline used the base, which the check does not load."""


class _NoBase:
    """Takes the place of the base, and refuses every use."""

    def __getattr__(self, name: str) -> Any:
        raise _BaseNeeded(name)


def _needs_base(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, _BaseNeeded):
            return True
        error = error.__cause__ or error.__context__
    return False
