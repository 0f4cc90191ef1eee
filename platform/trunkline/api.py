"""``trunkline.open()`` → :class:`Platform`: what the command line calls and what users import.

Owns: putting the parts of one workspace together, lazily. Must not know: click, terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.contracts import DatasetSpec, Gate, MetricSpec, RecipeSpec, Row
from trunkline.data.prepare import Prepared, prepare
from trunkline.errors import BaseMismatchError, UsageError
from trunkline.evaluation.metrics import CORE_METRICS
from trunkline.evaluation.report import EvaluationReport
from trunkline.inference.request import Answer, Request
from trunkline.lifecycle import Lifecycle
from trunkline.plugins import Catalog, load_plugins
from trunkline.refs import BASE, Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import Workspace

if TYPE_CHECKING:
    from trunkline.adapters.artifact import Artifact
    from trunkline.adapters.store import AdapterStore
    from trunkline.inference.engine import Engine
    from trunkline.inference.handle import GenerationHandle, Work
    from trunkline.inference.settings import EngineSettings
    from trunkline.training.cross_validation import CrossValidation
    from trunkline.training.fit import TrainingJob
    from trunkline.training.plan import TrainingPlan
    from trunkline.training.run import TrainedRun
    from trunkline.training.run_context import RunContext
    from trunkline.training.steps import Listener


def open(
    workspace: str | Path | None = None,
    *,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    no_plugins: bool = False,
    block: Iterable[str] = (),
    strict: bool = False,
    engine: EngineSettings | None = None,
) -> Platform:
    """The platform on one workspace; nothing heavy is loaded before it is needed.

    Args:
        workspace: the folder that holds ``registry.db`` and ``adapters/``; by default
            ``TRUNKLINE_WORKSPACE``, else the current folder.
        base: name of the base, ``hf:<repo>[@revision]`` or a folder; the default is
            ``smollm2-135m``.
        device, dtype: of the base; ``auto`` takes CUDA, MPS, CPU in this order.
        no_plugins: load none.
        block: names of plugins that are not even imported.
        strict: a plugin that fails is an error, not a set-aside.
        engine: rows, memory and queue of the engine.

    Raises:
        UsageError: the workspace is no folder.
    """
    located = Workspace.locate(workspace)
    return Platform(located, base, device, dtype, no_plugins, tuple(block), strict, engine)


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """A dataset looked at: what is left after the core's own checks, and some of its rows."""

    spec: DatasetSpec
    prepared: Prepared
    labels: dict[str, int]
    examples: tuple[Row, ...]


@dataclass(frozen=True)
class Platform(Lifecycle):
    """One workspace with its plugins, registry, adapters and base. Made by :func:`open`."""

    workspace: Workspace
    base_name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    no_plugins: bool = False
    block: tuple[str, ...] = ()
    strict: bool = False
    engine_settings: EngineSettings | None = None

    @cached_property
    def catalog(self) -> Catalog:
        """What the plugins bring."""
        return load_plugins(
            no_plugins=self.no_plugins,
            block=self.block,
            strict=self.strict,
            core_metrics=CORE_METRICS,
        )

    @cached_property
    def registry(self) -> Registry:
        """The registry; made if it is not there."""
        return Registry.open(self.workspace.registry_url)

    @cached_property
    def store(self) -> AdapterStore:
        """The artifacts."""
        from trunkline.adapters.store import AdapterStore

        return AdapterStore(self.workspace, self.registry)

    @cached_property
    def engine(self) -> Engine:
        """The base in memory, with its adapter pool of adapters."""
        from trunkline.bases import DEFAULT_BASE, load
        from trunkline.inference.engine import Engine

        name = self.base_name or DEFAULT_BASE
        return Engine(load(name, device=self.device, dtype=self.dtype), self.engine_settings)

    # ------------------------------------------------------------------------------ inference

    def run(
        self,
        requests: Sequence[Request],
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer requests of any mixture, in their order.

        Each ref is resolved once, to one immutable version, which the answer names.

        Raises:
            UsageError, NotFoundError: a ref is malformed or nothing answers to it.
            BaseMismatchError: an adapter was trained on another base.
            IntegrityError: an artifact is not what the registry knows.
            DataError: a text is empty or too long.
        """
        resolved: dict[str | None, Work] = {}
        works: list[Work] = []
        for request in requests:
            known = resolved.get(request.adapter)
            if known is None:
                known = resolved[request.adapter] = self.work(request)
            works.append(replace(known, request=request))
        if not works:
            return []
        return self.engine.run(works, on_done=on_done)

    def submit(self, request: Request) -> GenerationHandle:
        """Ask for an answer that is waited for, awaited or streamed by its ticket.

        Raises:
            BusyError: too many requests are waiting.
            As :meth:`run`.
        """
        return self.engine.submit(self.work(request))

    def work(self, request: Request) -> Work:
        """A request with the one immutable version that answers it.

        Raises:
            UsageError, NotFoundError: the ref is malformed or nothing answers to it.
            BaseMismatchError: it was trained on another base.
            IntegrityError: the artifact is not what the registry knows.
        """
        from trunkline.inference.handle import Work

        if request.adapter is None or request.adapter == BASE:
            return Work(request)
        version = self.resolve(request.adapter)
        self._check_base(version)
        return Work(request, self._artifact(version), str(version.ref))

    def predict(self, adapter: str, texts: Sequence[str]) -> list[Answer]:
        """Labels with probabilities, or numbers in their unit, one a text.

        Raises:
            UsageError: the adapter generates text, or ``texts`` is one string.
        """
        if isinstance(texts, str):
            raise UsageError("predict wants a list of texts.", "Write [text] for a single one.")
        self._expect(adapter, generates=False)
        return self.run([Request(adapter, text) for text in texts])

    def generate(
        self,
        prompts: Sequence[tuple[str | None, str]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Answer]:
        """Texts for pairs of adapter (None: the bare base) and prompt.

        Raises:
            UsageError: an adapter does not generate text.
        """
        if isinstance(prompts, str) or not all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in prompts
        ):
            raise UsageError(
                "generate wants pairs of adapter and prompt.",
                'Write [("domain/name", "…")]; None stands for the bare base.',
            )
        for adapter in dict.fromkeys(adapter for adapter, _ in prompts):
            self._expect(adapter, generates=True)
        return self.run(
            [
                Request(adapter, text, max_new_tokens, temperature, top_p, seed)
                for adapter, text in prompts
            ]
        )

    def resolve(self, adapter: str) -> VersionRecord:
        """The one version that answers a ref."""
        return self.registry.versions.resolve(Ref.parse(adapter))[0]

    def _artifact(self, version: VersionRecord) -> Artifact:
        """The artifact of a version; one that is resident already is not read again."""
        if "engine" in self.__dict__:
            resident = self.engine.pool.get(version.digest)
            if resident is not None:
                return resident.artifact
        return self.store.fetch(version)

    @cached_property
    def _base_digest(self) -> str:
        """Of the base in memory, else of its files; nothing is loaded for it."""
        if "engine" in self.__dict__:
            return self.engine.base.digest
        from trunkline.bases import DEFAULT_BASE, describe

        return describe(self.base_name or DEFAULT_BASE).digest

    def _check_base(self, version: VersionRecord) -> None:
        """Refuse a version of other weights than the base's, with the command that retrains it."""
        here = self._base_digest
        if version.base_digest == here:
            return
        chosen = "" if self.base_name is None else f" --base {self.base_name}"
        again = f"train it again: `trunkline{chosen} train {version.ref.adapter}`"
        if version.run is None:
            again = "import one that was made for this base"
        theirs = Path(version.base_name).name
        raise BaseMismatchError(
            f"{version.ref} was trained on {theirs} "
            f"({version.base_digest[:12]}…); the base here is {here[:12]}….",
            f"Load the base that it was trained on (`--base {theirs}`), or {again}.",
        )

    def _expect(self, adapter: str | None, *, generates: bool) -> None:
        if adapter is None or adapter == BASE:
            if not generates:
                raise UsageError(
                    "The bare base gives no labels.", 'Ask it with `trunkline generate base "…"`.'
                )
            return
        task = self.resolve(adapter).task
        if (task == "generation") != generates:
            verb = "predict" if generates else "generate"
            raise UsageError(
                f"{adapter} is for {task}.", f'Ask it with `trunkline {verb} {adapter} "…"`.'
            )

    # ------------------------------------------------------------------------------- training

    def train(
        self,
        recipe: str,
        *,
        resume: int | None = None,
        listener: Listener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> TrainedRun:
        """Train a recipe, evaluate it, publish the version whatever the verdict.

        Args:
            recipe: ``domain/name``.
            resume: number of a run that did not finish; its settings are used.
            listener: hears of stages and progress.
            should_stop: asked after every step; true ends the run as interrupted.
            settings: overrides, such as ``max_steps=200``.

        Raises:
            NotFoundError: unknown recipe or setting.
            Interrupted, TrainingError, DataError: the run is recorded as such.
        """
        from trunkline.training.run import train

        begun = None
        if resume is not None:
            begun = self.registry.runs.get(resume)
            if begun.recipe != recipe:
                raise UsageError(
                    f"Run {resume} is of {begun.recipe}, not of {recipe}.",
                    f"`trunkline train {begun.recipe} --resume {resume}`",
                )
            if settings:
                raise UsageError(
                    "A resumed run keeps its settings.", "Leave --set away, or start a new run."
                )
            settings = dict(begun.settings)
        training_job = self.training_job(recipe, settings)
        bench = self._bench(listener, should_stop)
        return train(bench, training_job, self._plugin_of(recipe), begun)

    def cross_validate(
        self,
        recipe: str,
        folds: int,
        *,
        listener: Listener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> CrossValidation:
        """Train once a fold and evaluate all held-out rows together; nothing is published."""
        from trunkline.training.cross_validation import cross_validate

        if not 2 <= folds <= 20:
            raise UsageError(f"{folds} folds can't be made.", "Use 2 to 20.")
        training_job = self.training_job(recipe, settings)
        bench = self._bench(listener, should_stop)
        return cross_validate(bench, training_job, folds)

    def evaluate(self, adapter: str, *, listener: Listener | None = None) -> EvaluationReport:
        """Evaluate a version on its own test rows again, and record it.

        Raises:
            DataError: it came without a dataset, or its dataset can't be evaluated on.
        """
        from trunkline.promotion import without_rows
        from trunkline.training.cross_validation import evaluate_version

        version = self.resolve(adapter)
        if version.dataset is None:
            raise without_rows(version)
        settings = dict(self.registry.runs.get(version.run).settings) if version.run else {}
        training_job = self.training_job(version.ref.adapter, settings)
        return evaluate_version(self._bench(listener, lambda: False), training_job, version)

    def plan(self, recipe: str, **settings: Any) -> TrainingPlan:
        """What training would take: nothing is trained or written."""
        from trunkline.training.plan import plan_training

        training_job = self.training_job(recipe, settings)
        return plan_training(training_job, self.engine, self.registry)

    def training_job(self, recipe: str, settings: Mapping[str, Any]) -> TrainingJob:
        """A recipe with its overrides and everything it names."""
        from trunkline.training.fit import TrainingJob
        from trunkline.training.settings import with_settings

        spec = with_settings(self.catalog.recipe(recipe), settings)
        names = dict.fromkeys((spec.gate.metric, *spec.metrics))
        return TrainingJob(
            recipe=spec,
            dataset=self.catalog.dataset(spec.dataset),
            transforms=tuple(self.catalog.transform(name) for name in spec.transforms),
            loss=None if spec.loss == "default" else self.catalog.loss(spec.loss),
            metrics=tuple(self.metric(name) for name in names),
        )

    def dataset_report(self, name: str) -> DatasetReport:
        """Read a dataset and count it as the default split would divide it."""
        spec = self.catalog.dataset(name)
        recipe = RecipeSpec(
            name=spec.name,
            description="a look at the data",
            dataset=spec.name,
            task=spec.task,
            gate=Gate(metric="accuracy"),
        )
        prepared = prepare(spec, recipe)
        rows = (*prepared.split.train, *prepared.split.validation, *prepared.split.test)
        labels: dict[str, int] = {}
        if spec.task == "classification":
            for label in prepared.labels:
                labels[label] = sum(row.target == label for row in rows)
        return DatasetReport(spec, prepared, labels, rows[:: max(1, len(rows) // 5)][:5])

    def metric(self, name: str) -> MetricSpec:
        """A metric of the core or of a plugin."""
        return CORE_METRICS.get(name) or self.catalog.metric(name)

    def _plugin_of(self, recipe: str) -> Any:
        return self.catalog.plugin(recipe.split("/")[0])

    def _bench(self, listener: Listener | None, should_stop: Callable[[], bool]) -> RunContext:
        from trunkline.training.run_context import RunContext
        from trunkline.training.steps import Silent

        return RunContext(
            self.workspace,
            self.registry,
            self.store,
            self.engine,
            listener or Silent(),
            should_stop,
        )
