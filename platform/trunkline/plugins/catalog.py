"""What the installed plugins contribute, and the answer when a name is unknown.

Owns: lookups by qualified name over loaded plugins, and what is told about the others.
Must not know: how plugins are found, or any domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from trunkline.contracts import DatasetSpec, LossSpec, MetricSpec, RecipeSpec, TransformSpec
from trunkline.errors import NotFoundError

Status = Literal["loaded", "failed", "blocked"]
Kind = Literal["datasets", "recipes", "losses", "metrics", "transforms"]

SPECS: dict[Kind, type] = {
    "datasets": DatasetSpec,
    "recipes": RecipeSpec,
    "losses": LossSpec,
    "metrics": MetricSpec,
    "transforms": TransformSpec,
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginInfo:
    """One installed plugin, as it stands; holds names only, so it can be written as JSON.

    Attributes:
        domain: the name of its entry point.
        module: what the entry point names.
        distribution, version: what pip installed; ``unknown`` if its metadata can't be read.
        status: ``loaded``; ``failed``: set aside for the reason; ``blocked``: not imported,
            because the user said so.
        api: the contract number that the module declares; None if it was not imported.
        reason: one line, unless loaded.
        traceback: of a failure.
        datasets, recipes, losses, metrics, transforms: names; empty unless loaded.
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

    @property
    def counts(self) -> dict[Kind, int]:
        """How many specs of each kind it contributes."""
        return {kind: len(getattr(self, kind)) for kind in SPECS}


class Catalog:
    """Every plugin and, by qualified name, everything that the loaded ones contribute."""

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

    def datasets(self) -> tuple[DatasetSpec, ...]:
        """All data sets, by domain and then in the plugin's order."""
        return tuple(self._datasets.values())

    def recipes(self) -> tuple[RecipeSpec, ...]:
        """All recipes, by domain and then in the plugin's order."""
        return tuple(self._recipes.values())

    def losses(self) -> tuple[LossSpec, ...]:
        """All losses of plugins; the core's own are not among them."""
        return tuple(self._losses.values())

    def metrics(self) -> tuple[MetricSpec, ...]:
        """All metrics of plugins; the core's own are not among them."""
        return tuple(self._metrics.values())

    def transforms(self) -> tuple[TransformSpec, ...]:
        """All transforms, by domain and then in the plugin's order."""
        return tuple(self._transforms.values())

    def dataset(self, name: str) -> DatasetSpec:
        """The data set ``domain/name``; raises :class:`NotFoundError` with the nearest name."""
        return self._found("dataset", name, self._datasets, "trunkline datasets list")

    def recipe(self, name: str) -> RecipeSpec:
        """The recipe ``domain/name``; raises :class:`NotFoundError` with the nearest name."""
        return self._found("recipe", name, self._recipes, "trunkline recipes list")

    def loss(self, name: str) -> LossSpec:
        """The loss ``domain/name``; raises :class:`NotFoundError` with the nearest name."""
        return self._found("loss", name, self._losses, "trunkline plugins list")

    def metric(self, name: str) -> MetricSpec:
        """The metric ``domain/name``; raises :class:`NotFoundError` with the nearest name."""
        return self._found("metric", name, self._metrics, "trunkline plugins list")

    def transform(self, name: str) -> TransformSpec:
        """The transform ``domain/name``; raises :class:`NotFoundError` with the nearest name."""
        return self._found("transform", name, self._transforms, "trunkline plugins list")

    def plugin(self, name: str) -> PluginInfo:
        """The plugin of a domain, or else of a distribution.

        Of several that claim one domain, the first; their reason names them all. Raises
        :class:`NotFoundError` with the nearest domain.
        """
        for plugin in (*self._of_domain(name), *self.plugins):
            if name in (plugin.domain, plugin.distribution):
                return plugin
        known = [plugin.domain for plugin in self.plugins]
        raise NotFoundError.named("plugin", name, known, "`trunkline plugins list` shows all.")

    def _of_domain(self, domain: str) -> Sequence[PluginInfo]:
        return [plugin for plugin in self.plugins if plugin.domain == domain]

    def _found(self, noun: str, name: str, specs: dict[str, _Spec], listing: str) -> _Spec:
        if name in specs:
            return specs[name]
        domain = name.partition("/")[0]
        for plugin in self._of_domain(domain):
            if plugin.status != "loaded":
                raise NotFoundError(
                    f"There is no {noun} {name!r}, because the plugin {domain!r} is set aside "
                    f"({plugin.status}): {plugin.reason}",
                    f"`trunkline plugins show {domain}` tells more.",
                )
        raise NotFoundError.named(noun, name, specs, f"`{listing}` shows what there is.")
