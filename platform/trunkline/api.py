"""``trunkline.open()`` → :class:`Platform`, the object behind the command line and the Python API.

A platform connects the parts of one workspace: plugins, registry, artifact store and base. Each
part is created when it is first used, so opening a workspace is cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from trunkline import promotion
from trunkline.adapter_files import AdapterFiles
from trunkline.contracts import Gate, ImageInput, ImageSource, MetricSpec, NoProgress
from trunkline.data.prepare import DatasetReport, describe_dataset
from trunkline.engines import Engines
from trunkline.errors import UsageError
from trunkline.evaluation.report import EvaluationReport
from trunkline.inference.request import Answer, Request
from trunkline.plugins import Catalog, load_plugins
from trunkline.plugins.catalog import without_core
from trunkline.promotion import AliasChange, Promotion
from trunkline.refs import BASE, Ref
from trunkline.registry.records import AdapterRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.resolution import ResolvedModel
from trunkline.workspace import Workspace

if TYPE_CHECKING:
    from trunkline.adapters.gc import RemoveResult, VerifyResult
    from trunkline.adapters.store import AdapterStore
    from trunkline.contracts import ProgressListener
    from trunkline.evaluation.comparison import Comparison
    from trunkline.inference.engine import Engine
    from trunkline.inference.ranking import Ranking
    from trunkline.inference.request_state import GenerationHandle
    from trunkline.inference.settings import EngineSettings
    from trunkline.training.config import RecipeConfig
    from trunkline.training.cross_validation import CrossValidation, SeedRepetition
    from trunkline.training.job import TrainingJob
    from trunkline.training.plan import TrainingPlan
    from trunkline.training.run import RunContext, TrainingResult
    from trunkline.training.tune import TuningResult


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
    image_base: str | None = None,
) -> Platform:
    """Open a workspace; heavy parts are loaded when they are first used.

    Args:
        workspace: the folder that contains ``registry.db`` and ``adapters/``; by default
            ``TRUNKLINE_WORKSPACE``, else the current folder.
        base: name of the base, ``hf:<repo>[@revision]`` or a folder; by default ``smollm2-135m``.
        device: of the base; ``auto`` takes CUDA, MPS or CPU, in this order.
        dtype: of the base's weights.
        no_plugins: load no plugins.
        block: names of plugins that must not be imported.
        strict: fail if a plugin fails, instead of skipping it.
        engine: settings of the inference engine: rows, memory, queue.
        image_base: of the base for pictures; by default ``base`` or ``efficientnet-lite0``.

    Raises:
        UsageError: the workspace is not a folder.
    """
    located = Workspace.locate(workspace)
    rest = (no_plugins, tuple(block), strict, engine, image_base)
    return Platform(located, base, device, dtype, *rest)


@dataclass(frozen=True)
class Platform:
    """One workspace with its plugins, registry, adapters and base; created by :func:`open`."""

    workspace: Workspace
    base_name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    no_plugins: bool = False
    block: tuple[str, ...] = ()
    strict: bool = False
    engine_settings: EngineSettings | None = None
    image_base_name: str | None = None

    @cached_property
    def catalog(self) -> Catalog:
        """Everything that the core and the plugins contribute."""
        return load_plugins(
            no_plugins=self.no_plugins,
            block=self.block,
            strict=self.strict,
            owners=self.workspace.configuration.plugins.owners,
        )

    @cached_property
    def registry(self) -> Registry:
        """The registry; created if it does not exist."""
        return Registry.open(self.workspace.registry_url)

    @cached_property
    def store(self) -> AdapterStore:
        """The store of artifacts."""
        from trunkline.adapters.store import AdapterStore

        return AdapterStore(self.workspace, self.registry)

    @cached_property
    def engines(self) -> Engines:
        """The bases, each loaded at first use."""
        names = (self.base_name, self.image_base_name)
        return Engines(*names, self.device, self.dtype, self.engine_settings)

    @property
    def engine(self) -> Engine:
        """The text base in memory, with its pool of adapters."""
        return self.engines.text

    @property
    def base_digest(self) -> str:
        """Digest of the text base; does not load it."""
        return self.engines.text_digest

    @cached_property
    def files(self) -> AdapterFiles:
        """Imports and exports of versions."""
        return AdapterFiles(self)

    # ------------------------------------------------------------------------------ inference

    def resolve(self, ref: str | None, *, suggest: bool = True) -> ResolvedModel:
        """Find the one version that a ref selects now.

        Args:
            ref: ``domain/name[@selector]``; None or ``base`` is the bare base.
            suggest: name the closest adapter in the error for an unknown one.

        Raises:
            UsageError: the ref is malformed.
            NotFoundError: no version matches it.
        """
        if ref is None or ref == BASE:
            return ResolvedModel(self, None, BASE)
        version, selected_by = self.registry.versions.resolve(Ref.parse(ref), suggest=suggest)
        return ResolvedModel(self, version, selected_by)

    def run(
        self,
        requests: Sequence[Request],
        models: Mapping[str | None, ResolvedModel] = MappingProxyType({}),
        *,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Answer]:
        """Answer requests for any mixture of adapters, in their order.

        Args:
            models: the refs of the requests that are resolved already.
            on_done: called with the number of finished requests; a fusion makes two.

        Raises:
            UsageError, NotFoundError: a ref is malformed or matches no version.
            BaseMismatchError: an adapter was trained on another base.
            IntegrityError: an artifact does not match the registry.
            DataError: a text is empty or too long.
        """
        resolved = dict(models)
        for name in dict.fromkeys(one.adapter for one in requests):
            if name not in resolved:
                resolved[name] = self.resolve(name)
        chosen = [resolved[one.adapter] for one in requests]
        parts = [model.split(one) for model, one in zip(chosen, requests, strict=True)]
        answers = iter(self.engines.run([one for part in parts for one in part], on_done))
        triples = zip(chosen, requests, parts, strict=True)
        return [model.join(one, [next(answers) for _ in part]) for model, one, part in triples]

    def submit(self, request: Request, model: ResolvedModel | None = None) -> GenerationHandle:
        """Start answering a request; the handle waits for, awaits or streams the answer.

        Args:
            model: of the request, if its ref is resolved already.

        Raises:
            BusyError: too many requests are waiting.
            TrunklineError: as :meth:`run`.
        """
        model = model or self.resolve(request.adapter)
        model.artifact()  # a fusion has none, and no single handle
        (resolved,) = model.split(request)
        return self.engines.for_request(resolved).submit(resolved)

    def predict(self, adapter: str, texts: Sequence[str]) -> list[Answer]:
        """Predict a label with probabilities, or a number, for each text.

        Raises:
            UsageError: the adapter generates text, or ``texts`` is a single string.
        """
        if isinstance(texts, str):
            raise UsageError("predict takes a list of texts.", "Write [text] for a single one.")
        model = self.resolve(adapter)
        model.check_task(adapter, generates=False)
        return self.run([Request(adapter, text) for text in texts], {adapter: model})

    def predict_images(self, adapter: str, images: Sequence[ImageInput]) -> list[Answer]:
        """:meth:`predict` for pictures: paths, encoded bytes, or functions that return such."""
        return self.run([Request(adapter, image=ImageSource(image)) for image in images])

    def predict_pairs(self, adapter: str, pairs: Sequence[tuple[str, ImageInput]]) -> list[Answer]:
        """:meth:`predict` of a fusion, for pairs of a text and a picture."""
        return self.run([Request(adapter, one, image=ImageSource(two)) for one, two in pairs])

    def rank(self, adapter: str, query: str, candidates: Sequence[str]) -> Ranking:
        """Rank candidates for a query; raises as :meth:`run`."""
        from trunkline.inference.ranking import rank

        return rank(self.run, adapter, query, candidates)

    def generate(
        self,
        prompts: Sequence[tuple[str | None, str]],
        *,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[Answer]:
        """Generate a text for each pair of adapter (None: the bare base) and prompt.

        Raises:
            UsageError: an adapter does not generate text.
        """
        if isinstance(prompts, str) or not all(
            isinstance(pair, tuple | list) and len(pair) == 2 for pair in prompts
        ):
            raise UsageError(
                "generate takes pairs of adapter and prompt.",
                'Write [("domain/name", "…")]; None means the bare base.',
            )
        adapters = dict.fromkeys(adapter for adapter, _ in prompts)
        models = {adapter: self.resolve(adapter) for adapter in adapters}
        for adapter, model in models.items():
            model.check_task(adapter or BASE, generates=True)
        requests = [
            Request(adapter, text, max_new_tokens, temperature, top_p, seed)
            for adapter, text in prompts
        ]
        return self.run(requests, models)

    # ------------------------------------------------------------------------------- training

    def train(
        self,
        recipe: str | RecipeConfig,
        *,
        resume: int | None = None,
        listener: ProgressListener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        report_to: tuple[str, ...] = (),
        **settings: Any,
    ) -> TrainingResult:
        """Train a recipe, evaluate the adapter and publish it, whatever the verdict.

        Args:
            recipe: the name of a plugin's recipe, or a recipe for the user's own data.
            resume: number of an unfinished run; its settings are used, and its recipe if it was
                the user's own.
            listener: receives stages and progress.
            should_stop: called after each step; true stops the run as interrupted.
            report_to: ``("tensorboard",)`` writes event files.
            settings: overrides, such as ``max_steps=200``.

        Raises:
            NotFoundError: unknown recipe or setting.
            Interrupted, TrainingError, DataError: the run is recorded as such.
        """
        from trunkline.training.config import resumed
        from trunkline.training.run import train

        run = None
        if resume is not None:
            run = self.registry.runs.get(resume)
            recipe, settings = resumed(run, recipe, settings)
        job = self.training_job(recipe, settings)
        return train(self.run_context(job, listener, should_stop, report_to), job, run)

    def train_together(
        self,
        recipes: Sequence[str | RecipeConfig],
        *,
        listener: ProgressListener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        report_to: tuple[str, ...] = (),
        **settings: Any,
    ) -> list[TrainingResult | Exception]:
        """:meth:`train` several recipes at once; returns each result, or what ended its run."""
        from trunkline.training.run import train_several

        jobs = [self.training_job(recipe, settings) for recipe in recipes]
        return train_several(self.run_context(jobs[0], listener, should_stop, report_to), jobs)

    def cross_validate(
        self,
        recipe: str | RecipeConfig,
        folds: int,
        *,
        listener: ProgressListener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> CrossValidation:
        """Train once per fold and evaluate all held-out rows together; publish nothing."""
        job = self.training_job(recipe, settings)
        from trunkline.training.cross_validation import cross_validate

        return cross_validate(self.run_context(job, listener, should_stop), job, folds)

    def repeat(
        self,
        recipe: str | RecipeConfig,
        seeds: int,
        *,
        listener: ProgressListener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> SeedRepetition:
        """Train with the seeds 0, 1, … on one split, and evaluate each; publish nothing."""
        if "seed" in settings:
            raise UsageError("The seeds are 0, 1, …, so seed can't be set.", "Leave out seed.")
        job = self.training_job(recipe, settings)
        from trunkline.training.cross_validation import repeat_seeds

        return repeat_seeds(self.run_context(job, listener, should_stop), job, seeds)

    def evaluate(
        self,
        adapter: str,
        *,
        ensemble: Sequence[str] = (),
        listener: ProgressListener | None = None,
    ) -> EvaluationReport:
        """Evaluate a version on its own test rows again, and record the result.

        Args:
            ensemble: versions to average it with; the result is then not recorded.

        Raises:
            DataError: the version has no dataset, or its dataset has changed.
        """
        from trunkline.training.cross_validation import evaluate_ensemble, evaluate_version

        version = (model := self.resolve(adapter)).version
        if version.dataset is None:
            raise promotion.no_dataset_error(version)
        if model.fused is not None and not ensemble:
            return self.files.evaluate_fused(model, listener)
        job = self.job_of(version)
        context = self.run_context(job, listener)
        if ensemble:
            others = [self.resolve(one).version for one in ensemble]
            return evaluate_ensemble(context, job, [version, *others])
        return evaluate_version(context, job, version)

    def tune(
        self,
        recipe: str | RecipeConfig,
        *,
        trials: int = 20,
        seconds: float | None = None,
        space: Mapping[str, str] | None = None,
        together: int = 4,
        listener: ProgressListener | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> TuningResult:
        """Search for better settings on the validation rows; nothing is published.

        ``settings`` are those of every trial; see :func:`trunkline.training.tune.tune`.
        """
        if not 1 <= trials <= 10_000:
            raise UsageError(f"The number of trials can't be {trials}.", "Use 1 to 10,000.")
        job = self.training_job(recipe, settings)
        from trunkline.training.tune import tune

        context = self.run_context(job, listener, should_stop)
        return tune(context, job, trials=trials, seconds=seconds, space=space, together=together)

    def compare(
        self, adapter: str, against: str, *, listener: ProgressListener | None = None
    ) -> Comparison:
        """Compare a version with another predictor on the version's own test rows.

        Args:
            against: a ref of another version, ``baseline`` for the best one of its evaluation, or
                the name of a baseline, which is fitted.

        Raises:
            NotFoundError: there is no such version or baseline.
            DataError: the two have no predictions of the same rows.
        """
        from trunkline.training import comparison

        version, metric = self.resolve(adapter).version, self.catalog.metric
        if against == comparison.BEST:
            return comparison.compare_with_best(self.store, metric, version)
        baselines = {spec.name for spec in self.catalog.baselines()}
        if "/" in against and without_core(against) not in baselines:
            other = self.resolve(against).version
            return comparison.compare_versions(self.store, metric, version, other)
        job = self.job_of(version)
        context = self.run_context(job, listener)
        return comparison.compare_with_baseline(context, job, self.catalog, version, against)

    def plan(self, recipe: str | RecipeConfig, **settings: Any) -> TrainingPlan:
        """Estimate what a training would take; trains and writes nothing."""
        job = self.training_job(recipe, settings)
        from trunkline.training.plan import plan_training

        return plan_training(job, self.engines.of(job.dataset.modality), self.registry)

    def training_job(self, recipe: str | RecipeConfig, settings: Mapping[str, Any]) -> TrainingJob:
        """A recipe with overridden settings and everything that it names."""
        from trunkline.training.job import make_job

        return make_job(self.catalog, recipe, settings)

    def job_of(self, version: VersionRecord) -> TrainingJob:
        """The recipe that trained a version or its parents, with the settings of the run."""
        from trunkline.training.config import recorded_config

        version = self.registry.versions.trained(version) or version
        run = self.registry.runs.get(version.run) if version.run else None
        recipe = (run and recorded_config(run)) or version.ref.adapter
        return self.training_job(recipe, dict(run.settings) if run else {})

    def dataset_report(self, name: str) -> DatasetReport:
        """Read a dataset and split it with the default split."""
        return describe_dataset(self.catalog.dataset(name))

    def metric(self, name: str) -> MetricSpec:
        """A metric of the core or of a plugin."""
        return self.catalog.metric(name)

    def run_context(
        self,
        job: TrainingJob,
        listener: ProgressListener | None,
        should_stop: Callable[[], bool] = lambda: False,
        report_to: tuple[str, ...] = (),
    ) -> RunContext:
        """What a training uses of this workspace; the arguments are those of :meth:`train`."""
        from trunkline.training.run import RunContext

        return RunContext(
            self.workspace,
            self.registry,
            self.store,
            self.engines.of(job.dataset.modality),
            listener or NoProgress(),
            should_stop,
            report_to,
        )

    # ------------------------------------------------------------------------------- versions

    def adapters(self) -> Sequence[AdapterRecord]:
        """The adapters that have a version."""
        return self.registry.adapters.list()

    def evaluation_report(self, version: VersionRecord) -> tuple[EvaluationReport, Gate] | None:
        """The newest evaluation of a version on its test rows, with the gate of its recipe."""
        return promotion.evaluation_report_of(self.registry, version)

    def promote(
        self,
        adapter: str,
        alias: str = "champion",
        *,
        force: bool = False,
        reason: str = "",
        actor: str | None = None,
    ) -> Promotion:
        """Move an alias if the gate passes; see :func:`trunkline.promotion.promote`.

        Without a selector, ``adapter`` means the newest version, not the current champion.
        """
        return promotion.promote(
            self.store,
            Ref.parse(adapter),
            alias,
            metric=self.metric,
            demanded=self.workspace.configuration.gate,
            force=force,
            reason=reason,
            actor=actor,
        )

    def rollback(
        self, adapter: str, alias: str = "champion", *, reason: str = "", actor: str | None = None
    ) -> AliasChange:
        """Move an alias back by one version, without a gate; each call goes one step further."""
        ref = Ref.parse(adapter)
        return promotion.rollback(self.store, ref, alias, reason=reason, actor=actor)

    def unalias(
        self, adapter: str, alias: str, *, reason: str = "", actor: str | None = None
    ) -> AliasChange:
        """Remove an alias; see :func:`trunkline.promotion.unalias`."""
        ref = Ref.parse(adapter)
        return promotion.unalias(self.registry, ref, alias, reason=reason, actor=actor)

    def verify(
        self,
        version: VersionRecord,
        *,
        require_signature: bool = False,
        keys: Sequence[Path] = (),
    ) -> VerifyResult:
        """Recompute a version's digests in the store and check its signature.

        The signature rules of ``trunkline.toml`` always apply; its keys are used unless ``keys``
        is given.
        """
        from trunkline.adapters.gc import verify_version

        rules = self.workspace.configuration.signatures
        return verify_version(
            self.store,
            version,
            require_signature=require_signature or rules.required,
            keys=keys or rules.keys,
        )

    def remove_version(
        self, adapter: str, reason: str, *, actor: str | None = None
    ) -> RemoveResult:
        """Delete a version's files and keep its lineage."""
        from trunkline.adapters.gc import remove_version

        return remove_version(self.store, Ref.parse(adapter), reason=reason, actor=actor)
