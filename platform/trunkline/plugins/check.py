"""Check one plugin before it is published: load it alone, read its rows and try its specs.

No model is loaded: a loss is built but not computed, and a baseline is not fitted.
"""

from __future__ import annotations

import math
import numbers
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

from trunkline.contracts import (
    DatasetSpec,
    LossContext,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    Row,
    Scored,
    TransformSpec,
)
from trunkline.errors import NotFoundError, UsageError
from trunkline.plugins.catalog import SPECS, Contribution
from trunkline.plugins.host import (
    GROUP,
    Candidate,
    core_candidate,
    find_plugins,
    load_core,
    load_plugin,
)

MIN_GROUPS = 3  # one each for train, validation and test
_SAMPLE_ROWS = 20
_HEAVY = ("torch", "transformers", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of :func:`check`; a plugin with an ``error`` can't be used as it is.

    Attributes:
        subject: name of the plugin or spec that it is about.
    """

    level: Literal["error", "warning"]
    subject: str
    message: str


Examine = Callable[
    [DatasetSpec, Sequence[Row], RecipeSpec | None, Sequence[TransformSpec]], Iterable[Finding]
]


def check(target: str | Path, examine: Examine | None = None) -> tuple[Finding, ...]:
    """Load one plugin alone, read all its rows, and report what is wrong with it.

    Args:
        target: domain of an installed plugin, or folder that holds a ``pyproject.toml`` (its code
            in ``src/`` or next to it; it need not be installed).
        examine: called for each recipe with its dataset, rows and transforms, and for each dataset
            without a recipe; gives more findings.

    Returns:
        Errors and warnings; empty if there are none.

    Raises:
        NotFoundError: no such plugin or folder.
        UsageError: the folder holds no plugin.
    """
    _, core = load_core()
    findings: list[Finding] = []
    candidates = _candidates(target)
    if len({candidate.domain for candidate, _ in candidates}) < len(candidates):
        owners = " and ".join(candidate.distribution for candidate, _ in candidates)
        findings.append(_error(str(target), f"its domain is claimed by {owners}"))
    for candidate, root in candidates:
        heavy = {name for name in _HEAVY if name in sys.modules}
        with _importable(root):
            info, contribution = load_plugin(
                candidate, None if candidate is core_candidate() else core
            )
            loaded = {name for name in _HEAVY if name in sys.modules} - heavy
            if contribution is None:
                findings.append(_error(candidate.domain, info.reason or "it failed"))
                continue
            findings += _module_findings(candidate, root, loaded, contribution)
            findings += _spec_findings(contribution, core, examine)
    return tuple(dict.fromkeys(findings))


def _error(subject: str, message: str) -> Finding:
    return Finding(level="error", subject=subject, message=message)


def _warning(subject: str, message: str) -> Finding:
    return Finding(level="warning", subject=subject, message=message)


def _candidates(target: str | Path) -> list[tuple[Candidate, Path | None]]:
    installed = (core_candidate(), *find_plugins())
    matches = [(one, None) for one in installed if target in (one.domain, one.distribution)]
    if matches and isinstance(target, str):
        return list(matches)
    folder = Path(target).expanduser()
    file = folder / "pyproject.toml"
    if not folder.is_dir():
        known = [one.domain for one in installed]
        hint = "Give the domain of an installed plugin, or the folder of its pyproject.toml."
        raise NotFoundError.named("plugin or folder", str(target), known, hint)
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
        points = project["entry-points"][GROUP].items()
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"{str(file)!r} declares no plugin: {type(error).__name__} {error}.",
            f'Write for example [project.entry-points.{GROUP}] with mydomain = "my_module".',
        ) from None
    root = (folder / "src" if (folder / "src").is_dir() else folder).resolve()
    return [
        (
            Candidate(
                domain=domain,
                distribution=str(project.get("name", "unknown")),
                version=str(project.get("version", "unknown")),
                entry_point=EntryPoint(name=domain, value=value, group=GROUP),
            ),
            root,
        )
        for domain, value in points
    ]


@contextmanager
def _importable(root: Path | None) -> Iterator[None]:
    if root is None:
        yield
        return
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path.remove(str(root))


def _module_findings(
    candidate: Candidate, root: Path | None, heavy: set[str], contribution: Contribution
) -> Iterator[Finding]:
    module = sys.modules.get(candidate.module.partition(":")[0])
    file = getattr(module, "__file__", None)
    if root is not None and file and not Path(file).resolve().is_relative_to(root):
        yield _warning(candidate.domain, f"the checked copy is {file}, not the one in {root}")
    for name in sorted(heavy):
        yield _warning(
            candidate.domain,
            f"importing it imports {name}, which slows every command; import inside functions",
        )
    if not any(getattr(contribution, kind) for kind in SPECS):
        yield _warning(candidate.domain, "it contributes nothing: no hook yields a spec")


def _spec_findings(
    contribution: Contribution, core: Contribution, examine: Examine | None
) -> Iterator[Finding]:
    rows: dict[str, Sequence[Row]] = {}
    for dataset in contribution.datasets:
        yield from _described(dataset, ("description", "license", "source", "grouping"))
        try:
            rows[dataset.name] = tuple(dataset.load())
            again = tuple(dataset.load())
        except (Exception, SystemExit) as error:
            yield _error(dataset.name, f"load raises {type(error).__name__}: {error}")
            continue
        findings = list(_row_findings(dataset, rows[dataset.name]))
        yield from findings
        if again != rows[dataset.name]:
            yield _error(dataset.name, "load gives other rows, or another order, the second time")
        if any(finding.level == "error" for finding in findings):
            del rows[dataset.name]  # checks on broken rows would only repeat the error
    transforms = {spec.name: spec for spec in (*core.transforms, *contribution.transforms)}
    for recipe in contribution.recipes:
        yield from _described(recipe, ("description",))
        yield from _recipe_findings(recipe, rows.get(recipe.dataset, ()), transforms)
    if examine is not None:
        for dataset in contribution.datasets:
            recipes: list[RecipeSpec | None] = [
                one for one in contribution.recipes if one.dataset == dataset.name
            ]
            for user in (recipes or [None]) if dataset.name in rows else ():
                steps = [transforms[name] for name in user.transforms] if user else []
                yield from examine(dataset, rows[dataset.name], user, steps)
    for loss in contribution.losses:
        yield from _described(loss, ("description",))
        users = [recipe for recipe in contribution.recipes if recipe.loss == loss.name]
        yield from _used(loss.name, users)
        for recipe in users:
            yield from _loss_findings(loss, rows.get(recipe.dataset, ()))
    for metric in contribution.metrics:
        yield from _described(metric, ("description",))
        users = [
            recipe
            for recipe in contribution.recipes
            if metric.name in (*recipe.metrics, recipe.gate.metric)
        ]
        yield from _used(metric.name, users)
        for recipe in users:
            yield from _metric_findings(metric, rows.get(recipe.dataset, ()))
    for spec in (*contribution.transforms, *contribution.baselines, *contribution.tasks):
        yield from _described(spec, ("description",))


def _described(spec: Any, attributes: tuple[str, ...]) -> Iterator[Finding]:
    for attribute in attributes:
        value = getattr(spec, attribute)
        if not isinstance(value, str) or not value.strip():
            yield _error(spec.name, f"its {attribute} is empty")


def _row_findings(dataset: DatasetSpec, rows: Sequence[Row]) -> Iterator[Finding]:
    if not rows:
        yield _error(dataset.name, "load gives no rows")
        return
    for number, row in enumerate(rows):
        violation = _row_violation(dataset, row)
        if violation:
            row_id = getattr(row, "id", row)
            yield _error(dataset.name, f"row {number} ({row_id!r:.60}): {violation}")
            return
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            yield _error(dataset.name, f"more than one row has the id {row.id!r}")
            break
        seen.add(row.id)
    groups = {row.group for row in rows}
    if len(groups) < MIN_GROUPS:
        yield _error(
            dataset.name, f"it has {len(groups)} groups; a split needs at least {MIN_GROUPS}"
        )
    if dataset.task == "classification" and len({row.target for row in rows}) < 2:
        yield _error(dataset.name, f"every row has the label {rows[0].target!r}")
    if dataset.task == "regression" and not dataset.unit:
        yield _warning(dataset.name, "it has no unit for its numbers")


def _row_violation(dataset: DatasetSpec, row: Any) -> str | None:
    if not isinstance(row, Row):
        return f"it is {type(row).__name__}, not Row"
    for attribute in ("id", "text", "group"):
        value = getattr(row, attribute)
        if not isinstance(value, str) or not value.strip():
            return f"its {attribute} is {value!r}, not a non-empty string"
    if dataset.task == "regression":
        if not _is_finite(row.target):
            return f"its target is {row.target!r}, not a finite number"
    elif not isinstance(row.target, str) or not row.target.strip():
        return f"its target is {row.target!r}, not a non-empty string"
    elif dataset.labels and row.target.strip() not in map(str.strip, dataset.labels):
        return f"its label {row.target!r} is not among the data set's labels"
    missing = [name for name in dataset.slices if name not in row.slices]
    return f"it has no slice {missing[0]!r}" if missing else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _recipe_findings(
    recipe: RecipeSpec, rows: Sequence[Row], transforms: dict[str, TransformSpec]
) -> Iterator[Finding]:
    sample = rows[:_SAMPLE_ROWS]
    for row in sample:
        if not recipe.template.cleaned(row.text):
            yield _error(recipe.name, f"its template leaves row {row.id!r} empty")
    if recipe.scale == "log" and any(
        isinstance(row.target, int | float) and row.target <= 0 for row in sample
    ):
        yield _error(recipe.name, "its scale is log, but a target is not above zero")
    for name in recipe.transforms:
        for row in sample:
            violation = _transform_violation(transforms[name], row)
            if violation:
                yield _error(name, f"on row {row.id!r} {violation}")
                break


def _transform_violation(transform: TransformSpec, row: Row) -> str | None:
    try:
        results = list(transform.apply(row, random.Random(0)))
    except (Exception, SystemExit) as error:
        return f"apply raises {type(error).__name__}: {error}"
    if not all(isinstance(result, Row) for result in results):
        return "apply gives something that is not a Row"
    if transform.stage == "clean" and len(results) > 1:
        return f"apply gives {len(results)} rows; a clean step gives one or none"
    return None


def _used(name: str, users: Sequence[RecipeSpec]) -> Iterator[Finding]:
    if not users and "/" in name:  # the built-ins have no recipes
        yield _warning(name, "no recipe uses it, so it was not tried")


def _labels(task: str, rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(sorted({str(row.target) for row in rows})) if task == "classification" else ()


def _loss_findings(loss: LossSpec, rows: Sequence[Row]) -> Iterator[Finding]:
    if not rows:
        return
    labels = _labels(loss.task, rows)
    counts = Counter(str(row.target) for row in rows) if labels else {}
    try:
        built = loss.build(LossContext(labels=labels, counts=counts))
    except (Exception, SystemExit) as error:
        yield _error(loss.name, f"build raises {type(error).__name__}: {error}")
        return
    if not callable(built):
        yield _error(loss.name, f"build gives {type(built).__name__}, which can't be called")


def _metric_findings(metric: MetricSpec, rows: Sequence[Row]) -> Iterator[Finding]:
    targets = [row.target for row in rows[:_SAMPLE_ROWS]]
    if not targets:
        return
    perfect = Scored(targets=targets, predictions=targets, labels=_labels(metric.task, rows))
    try:
        score = metric.compute(perfect)
    except (Exception, SystemExit) as error:
        yield _error(metric.name, f"compute raises {type(error).__name__}: {error}")
        return
    if not _is_finite(score):
        yield _error(metric.name, f"compute gives {score!r}, not a finite number")
