"""What the loaded plugins contribute, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, Protocol, TypeVar

from trunkline.contracts import (
    BaselineSpec,
    DatasetSpec,
    LossSpec,
    MetricSpec,
    Modality,
    RecipeSpec,
    Task,
    TaskSpec,
    TransformSpec,
)
from trunkline.errors import NotFoundError

CORE = "core"
"""The domain of the built-ins; their names may be written without it."""

RESERVED_DOMAINS = {"base": "the bare base model", CORE: "the built-ins of Trunkline"}

Status = Literal["loaded", "failed", "blocked"]
Kind = Literal["datasets", "recipes", "losses", "metrics", "transforms", "baselines", "tasks"]

SPECS: Mapping[Kind, type] = MappingProxyType(
    {
        "datasets": DatasetSpec,
        "recipes": RecipeSpec,
        "losses": LossSpec,
        "metrics": MetricSpec,
        "transforms": TransformSpec,
        "baselines": BaselineSpec,
        "tasks": TaskSpec,
    }
)
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
        notes: sentences on its installation and import, such as a second installed version.
        restrictions: the licenses of its datasets that forbid something, each with what it forbids.
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
    notes: tuple[str, ...] = ()
    restrictions: tuple[str, ...] = ()
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

    def baselines_for(
        self, recipe: RecipeSpec, modality: Modality = "text"
    ) -> tuple[BaselineSpec, ...]:
        """The baselines of a recipe's task for a modality, then those that the recipe names.

        Raises:
            NotFoundError: the recipe names a baseline that its kind of task does not have.
        """
        task = self.task(recipe.task)
        own = [
            name
            for name in map(without_core, task.baselines)
            if name not in self._baselines or modality in self._baselines[name].modalities
        ]
        names = dict.fromkeys((*own, *map(without_core, recipe.baselines)))
        return tuple(self.baseline_for(name, task.kind, modality) for name in names)

    def baseline_for(self, name: str, kind: Task, modality: Modality = "text") -> BaselineSpec:
        """A baseline that can predict a kind of task, for rows of a modality.

        Raises:
            NotFoundError: there is none of this name.
        """
        usable = {
            key: spec
            for key, spec in self._baselines.items()
            if kind in spec.tasks and modality in spec.modalities
        }
        if without_core(name) not in usable:
            raise NotFoundError.named(
                f"baseline of a {kind}", name, usable, f"Known: {', '.join(usable)}."
            )
        return usable[without_core(name)]

    def resolved(self, recipe: RecipeSpec) -> RecipeSpec:
        """A recipe that no plugin contributes, as the rest of the platform reads recipes."""
        tasks = {name: task for name, task in self._tasks.items() if "/" in name}
        resolved = _resolve_recipe(recipe, tasks)
        self.task(resolved.task)
        return resolved

    def plugin(self, name: str) -> PluginInfo:
        """The plugin of a domain, or else of a distribution.

        If several plugins claim one domain, this is the owner's.
        """
        for plugin in (*self._of_domain(name), *self.plugins):
            if name in (plugin.domain, plugin.distribution):
                return plugin
        known = [plugin.domain for plugin in self.plugins]
        raise NotFoundError.named("plugin", name, known, "`trunkline plugins list` shows all.")

    def _of_domain(self, domain: str) -> Sequence[PluginInfo]:
        return [plugin for plugin in self.plugins if plugin.domain == domain]

    def _lookup(self, noun: str, name: str, specs: dict[str, _Spec], listing: str) -> _Spec:
        if without_core(name) in specs:
            return specs[without_core(name)]
        domain = name.partition("/")[0]
        for plugin in self._of_domain(domain)[:1]:  # the owner of the domain comes first
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
        task=task.kind if task else without_core(recipe.task),
        loss=without_core(loss),
        metrics=tuple(map(without_core, recipe.metrics)),
        transforms=tuple(map(without_core, recipe.transforms)),
        baselines=tuple(dict.fromkeys(map(without_core, baselines))),
        gate=replace(recipe.gate, metric=without_core(recipe.gate.metric)),
    )


def without_core(name: str) -> str:
    """The name without the prefix of the built-ins."""
    return name.removeprefix(f"{CORE}/") if isinstance(name, str) else name
