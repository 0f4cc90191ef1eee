"""What the loaded plugins contribute, by name, and the rules that their specs must keep."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal, Protocol, TypeVar

from trunkline.contracts import (
    TASKS,
    BaselineSpec,
    DatasetSpec,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    TaskSpec,
    TransformSpec,
)
from trunkline.errors import NotFoundError

CORE = "core"
"""The domain of the built-ins; their names may be written without it."""

RESERVED_DOMAINS = {"base": "the bare base model", CORE: "the built-ins of Trunkline"}

Status = Literal["loaded", "failed", "blocked"]
Kind = Literal["datasets", "recipes", "losses", "metrics", "transforms", "baselines", "tasks"]

SPECS: dict[Kind, type] = {
    "datasets": DatasetSpec,
    "recipes": RecipeSpec,
    "losses": LossSpec,
    "metrics": MetricSpec,
    "transforms": TransformSpec,
    "baselines": BaselineSpec,
    "tasks": TaskSpec,
}
"""What each hook ``trunkline_<kind>`` yields."""


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Spec = TypeVar("_Spec", bound=_Named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """The specs of one plugin, in the order in which it yielded them."""

    datasets: tuple[DatasetSpec, ...] = ()
    recipes: tuple[RecipeSpec, ...] = ()
    losses: tuple[LossSpec, ...] = ()
    metrics: tuple[MetricSpec, ...] = ()
    transforms: tuple[TransformSpec, ...] = ()
    baselines: tuple[BaselineSpec, ...] = ()
    tasks: tuple[TaskSpec, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One installed plugin; holds names only, so it can be written as JSON.

    Attributes:
        domain: the name of its entry point.
        module: the module that the entry point names.
        distribution, version: as pip installed them; ``unknown`` if the metadata is unreadable.
        status: ``loaded``; ``failed``: set aside for the reason; ``blocked``: not imported,
            because the user asked for that.
        api: the contract number that the module declares; None if it was not imported.
        reason: one line, unless loaded.
        traceback: of a failure.
        datasets, recipes, losses, metrics, transforms, baselines, tasks: names; empty unless
            loaded.
    """

    domain: str
    module: str
    distribution: str
    version: str
    status: Status
    api: int | None = None
    reason: str | None = None
    traceback: str | None = None
    datasets: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[Kind, int]:
        """How many specs of each kind it contributes."""
        return {kind: len(getattr(self, kind)) for kind in SPECS}


class Catalog:
    """Every plugin and, by name, everything that the loaded ones contribute.

    Every lookup raises :class:`NotFoundError` with the nearest name. The built-ins come first in
    every listing, and ``core/accuracy`` is the same as ``accuracy``.
    """

    def __init__(
        self, plugins: Iterable[PluginInfo], contributions: Iterable[Contribution]
    ) -> None:
        parts = tuple(contributions)
        self.plugins: tuple[PluginInfo, ...] = tuple(plugins)
        self._datasets = {spec.name: spec for part in parts for spec in part.datasets}
        self._recipes = {spec.name: spec for part in parts for spec in part.recipes}
        self._losses = {spec.name: spec for part in parts for spec in part.losses}
        self._metrics = {spec.name: spec for part in parts for spec in part.metrics}
        self._transforms = {spec.name: spec for part in parts for spec in part.transforms}
        self._baselines = {spec.name: spec for part in parts for spec in part.baselines}
        self._tasks = {spec.name: spec for part in parts for spec in part.tasks}

    def datasets(self) -> tuple[DatasetSpec, ...]:
        """All datasets, by domain and then in the plugin's order."""
        return tuple(self._datasets.values())

    def recipes(self) -> tuple[RecipeSpec, ...]:
        """All recipes, by domain and then in the plugin's order."""
        return tuple(self._recipes.values())

    def losses(self) -> tuple[LossSpec, ...]:
        """All losses, by domain and then in the plugin's order."""
        return tuple(self._losses.values())

    def metrics(self) -> tuple[MetricSpec, ...]:
        """All metrics, by domain and then in the plugin's order."""
        return tuple(self._metrics.values())

    def transforms(self) -> tuple[TransformSpec, ...]:
        """All transforms, by domain and then in the plugin's order."""
        return tuple(self._transforms.values())

    def baselines(self) -> tuple[BaselineSpec, ...]:
        """All baselines, by domain and then in the plugin's order."""
        return tuple(self._baselines.values())

    def tasks(self) -> tuple[TaskSpec, ...]:
        """All tasks, by domain and then in the plugin's order."""
        return tuple(self._tasks.values())

    def dataset(self, name: str) -> DatasetSpec:
        """The dataset ``domain/name``."""
        return self._lookup("dataset", name, self._datasets, "trunkline datasets list")

    def recipe(self, name: str) -> RecipeSpec:
        """The recipe ``domain/name``."""
        return self._lookup("recipe", name, self._recipes, "trunkline recipes list")

    def loss(self, name: str) -> LossSpec:
        """The loss ``mse`` of the core, or ``domain/name``."""
        return self._lookup("loss", name, self._losses, "trunkline plugins list")

    def metric(self, name: str) -> MetricSpec:
        """The metric ``accuracy`` of the core, or ``domain/name``."""
        return self._lookup("metric", name, self._metrics, "trunkline plugins list")

    def transform(self, name: str) -> TransformSpec:
        """The transform ``lowercase-copy`` of the core, or ``domain/name``."""
        return self._lookup("transform", name, self._transforms, "trunkline plugins list")

    def baseline(self, name: str) -> BaselineSpec:
        """The baseline ``majority`` of the core, or ``domain/name``."""
        return self._lookup("baseline", name, self._baselines, "trunkline plugins list")

    def task(self, name: str) -> TaskSpec:
        """The task ``classification`` of the core, or ``domain/name``."""
        return self._lookup("task", name, self._tasks, "trunkline plugins list")

    def loss_for(self, recipe: RecipeSpec) -> LossSpec:
        """The loss that a recipe names; for ``default`` that of its task."""
        if recipe.loss == "default":
            return self.loss(self.task(recipe.task).loss)
        return self.loss(recipe.loss)

    def baselines_for(self, recipe: RecipeSpec) -> tuple[BaselineSpec, ...]:
        """The baselines of a recipe's task, then those that the recipe names.

        Raises:
            NotFoundError: the recipe names a baseline that its kind of task does not have.
        """
        task = self.task(recipe.task)
        usable = {name: spec for name, spec in self._baselines.items() if task.kind in spec.tasks}
        names = [_without_core(name) for name in (*task.baselines, *recipe.baselines)]
        for name in names:
            if name not in usable:
                raise NotFoundError.named(
                    f"baseline of a {task.kind}", name, usable, f"Known: {', '.join(usable)}."
                )
        return tuple(usable[name] for name in dict.fromkeys(names))

    def plugin(self, name: str) -> PluginInfo:
        """The plugin of a domain, or else of a distribution.

        If several plugins claim one domain, this is the first; its reason names them all.
        """
        for plugin in (*self._of_domain(name), *self.plugins):
            if name in (plugin.domain, plugin.distribution):
                return plugin
        known = [plugin.domain for plugin in self.plugins]
        raise NotFoundError.named("plugin", name, known, "`trunkline plugins list` shows all.")

    def _of_domain(self, domain: str) -> Sequence[PluginInfo]:
        return [plugin for plugin in self.plugins if plugin.domain == domain]

    def _lookup(self, noun: str, name: str, specs: dict[str, _Spec], listing: str) -> _Spec:
        if _without_core(name) in specs:
            return specs[_without_core(name)]
        domain = name.partition("/")[0]
        for plugin in self._of_domain(domain):
            if plugin.status != "loaded":
                raise NotFoundError(
                    f"There is no {noun} {name!r}, because the plugin {domain!r} is set aside "
                    f"({plugin.status}): {plugin.reason}",
                    f"`trunkline plugins show {domain}` shows more.",
                )
        raise NotFoundError.named(noun, name, specs, f"`{listing}` lists the known ones.")


def resolve_recipes(contribution: Contribution) -> Contribution:
    """The contribution, with its recipes as the rest of the platform reads them.

    Built-ins lose the prefix ``core/``. A task of the plugin is replaced by its kind, and its
    loss and baselines become those of the recipe.
    """
    tasks = {task.name: task for task in contribution.tasks}
    return replace(
        contribution,
        recipes=tuple(_resolve_recipe(recipe, tasks) for recipe in contribution.recipes),
    )


def _resolve_recipe(recipe: RecipeSpec, tasks: Mapping[str, TaskSpec]) -> RecipeSpec:
    task = tasks.get(recipe.task)
    loss, baselines = recipe.loss, recipe.baselines
    if task is not None:
        loss = task.loss if loss == "default" else loss
        baselines = (*task.baselines, *baselines)
    return replace(
        recipe,
        task=task.kind if task else _without_core(recipe.task),
        loss=_without_core(loss),
        metrics=tuple(map(_without_core, recipe.metrics)),
        transforms=tuple(map(_without_core, recipe.transforms)),
        baselines=tuple(dict.fromkeys(map(_without_core, baselines))),
        gate=replace(recipe.gate, metric=_without_core(recipe.gate.metric)),
    )


def _without_core(name: str) -> str:
    return name.removeprefix(f"{CORE}/") if isinstance(name, str) else name


# ----------------------------------------------------------------------------------- validation

_DOMAIN = re.compile(r"[a-z][a-z0-9-]{0,39}")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_FORMULA_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_CALLABLES: dict[Kind, str] = {
    "datasets": "load",
    "losses": "build",
    "metrics": "compute",
    "transforms": "apply",
    "baselines": "predict",
}


def domain_violation(domain: str) -> str | None:
    """Why an entry point of this name can't be a plugin, or None."""
    if domain in RESERVED_DOMAINS:
        return f"the name {domain!r} is reserved for {RESERVED_DOMAINS[domain]}"
    if not _DOMAIN.fullmatch(domain):
        return (
            f"{domain!r} is not a valid domain: use lower-case letters, digits and '-', "
            "a letter first, at most 40 characters"
        )
    return None


def violations(
    domain: str, contribution: Contribution, core: Contribution | None = None
) -> Iterator[str]:
    """Yield every rule that the specs of one plugin break, one sentence each; reads no rows.

    Args:
        domain: of the plugin.
        contribution: its specs.
        core: the built-ins, which recipes and tasks may name too; None for the core itself.
    """
    for kind in SPECS:
        specs = getattr(contribution, kind)
        yield from _name_violations(domain, kind, [spec.name for spec in specs])
        for spec in specs:
            yield from _value_violations(kind, spec)
    targets = _Targets(contribution, core or Contribution())
    for task in contribution.tasks:
        yield from targets.task_violations(task)
    for recipe in contribution.recipes:
        yield from targets.recipe_violations(recipe)


def _name_violations(domain: str, kind: Kind, names: list[Any]) -> Iterator[str]:
    grammar, extra = (_FORMULA_NAME, ", '_'") if kind in ("losses", "metrics") else (_NAME, "")
    for name in names:
        if not isinstance(name, str):
            yield f"a name in trunkline_{kind} is {name!r}, not a string"
            continue
        owner, slash, local = name.partition("/")
        if domain == CORE:
            owner, slash, local = CORE, "/", name
        if not slash or owner != domain:
            yield f"{name!r} in trunkline_{kind} is not qualified by its domain: '{domain}/…'"
        elif not grammar.fullmatch(local):
            yield (
                f"{name!r} in trunkline_{kind} is not a valid name: after '{domain}/' use "
                f"lower-case letters, digits{extra} and '-', a letter first, at most 64 characters"
            )
    for name, count in Counter(map(str, names)).items():
        if count > 1:
            yield f"trunkline_{kind} yields {name!r} {count} times"


def _value_violations(kind: Kind, spec: Any) -> Iterator[str]:
    if kind in _CALLABLES and not callable(getattr(spec, _CALLABLES[kind])):
        yield f"{_CALLABLES[kind]} of {spec.name!r} can't be called"
    if kind == "transforms":
        if spec.stage not in ("clean", "augment"):
            yield f"stage of {spec.name!r} is {spec.stage!r}, not 'clean' or 'augment'"
    elif kind == "baselines":
        for task in spec.tasks:
            if task not in TASKS:
                yield f"tasks of {spec.name!r} has {task!r}, not one of {', '.join(TASKS)}"
    elif kind != "recipes":
        attribute = "kind" if kind == "tasks" else "task"
        if getattr(spec, attribute) not in TASKS:
            value = getattr(spec, attribute)
            yield f"{attribute} of {spec.name!r} is {value!r}, not one of {', '.join(TASKS)}"
    if isinstance(spec, DatasetSpec):
        yield from _share_violations(spec)
    if isinstance(spec, RecipeSpec) and spec.scale not in ("linear", "log"):
        yield f"scale of {spec.name!r} is {spec.scale!r}, not 'linear' or 'log'"


def _share_violations(dataset: DatasetSpec) -> Iterator[str]:
    held_out = {
        "validation_share": dataset.validation_share,
        "test_share": dataset.test_share,
    }
    for name, share in held_out.items():
        if not isinstance(share, int | float) or not 0 < share < 1:
            yield f"{name} of {dataset.name!r} is {share!r}, not between 0 and 1"
            return
    if sum(held_out.values()) >= 1:
        yield f"validation_share and test_share of {dataset.name!r} leave nothing to train on"


class _Targets:
    """What the recipes and tasks of one plugin may name: its own specs and the built-ins."""

    def __init__(self, own: Contribution, core: Contribution) -> None:
        self.datasets = {spec.name: (spec.task,) for spec in own.datasets}
        self.losses = {spec.name: (spec.task,) for spec in (*core.losses, *own.losses)}
        self.metrics = {spec.name: (spec.task,) for spec in (*core.metrics, *own.metrics)}
        self.transforms = {spec.name: TASKS for spec in (*core.transforms, *own.transforms)}
        self.baselines = {spec.name: spec.tasks for spec in (*core.baselines, *own.baselines)}
        self.tasks = {spec.name: spec.kind for spec in (*core.tasks, *own.tasks)}

    def task_violations(self, task: TaskSpec) -> Iterator[str]:
        subject = f"the task {task.name!r}"
        yield from _reference(subject, task.kind, "loss", task.loss, self.losses)
        for name in task.baselines:
            yield from _reference(subject, task.kind, "baseline", name, self.baselines)

    def recipe_violations(self, recipe: RecipeSpec) -> Iterator[str]:
        subject = f"the recipe {recipe.name!r}"
        kind = self.tasks.get(_without_core(recipe.task))
        if kind is None:
            yield _unknown(subject, "task", recipe.task, self.tasks)
        yield from _reference(subject, kind, "dataset", recipe.dataset, self.datasets)
        if recipe.loss != "default":
            yield from _reference(subject, kind, "loss", recipe.loss, self.losses)
        for name in dict.fromkeys((*recipe.metrics, recipe.gate.metric)):
            yield from _reference(subject, kind, "metric", name, self.metrics)
        for name in recipe.transforms:
            yield from _reference(subject, kind, "transform", name, self.transforms)
        for name in recipe.baselines:
            yield from _reference(subject, kind, "baseline", name, self.baselines)


def _reference(
    subject: str, kind: str | None, noun: str, name: str, targets: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Check that the target exists and fits ``kind``; None skips the second check."""
    tasks = targets.get(_without_core(name))
    if tasks is None:
        yield _unknown(subject, noun, name, targets)
    elif kind is not None and kind not in tasks:
        yield f"{subject} is a {kind} task but its {noun} {name!r} is for {', '.join(tasks)}"


def _unknown(subject: str, noun: str, name: str, known: Iterable[str]) -> str:
    close = get_close_matches(_without_core(str(name)), known, n=1, cutoff=0.5)
    nearest = f"; did you mean {close[0]!r}?" if close else ""
    return f"{subject} names the {noun} {name!r}, which doesn't exist{nearest}"
