"""Search for better settings of a recipe with Optuna, and stop trials that lose early.

Trials are trained some at a time on one copy of the base. One is stopped after a validation if it
is worse than the best finished trial, or than one beside it, at the same share of its training: if
the interval of the paired difference on the validation rows lies below zero. The test rows are
never read. Trials are kept in the registry's database, so a search can go on.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.contracts import ProgressListener, Scored, Settings
from trunkline.data.prepare import Prepared, prepare
from trunkline.errors import Interrupted, TrunklineError, UsageError, one_line
from trunkline.evaluation.intervals import paired_difference
from trunkline.training.distributed import require_one
from trunkline.training.job import TrainingJob, with_settings
from trunkline.training.model import check_targets
from trunkline.training.run import RunContext
from trunkline.training.run_info import specification
from trunkline.training.scoring import Validation
from trunkline.training.scratch import scratch_folder
from trunkline.training.search_space import SPACE, Choice, parse_space, start_of
from trunkline.training.together import (
    Place,
    SharedProgress,
    check_together,
    train_together,
)
from trunkline.training.trainer import TrainerOutput, train_adapter

if TYPE_CHECKING:
    import optuna

_STARTUP = 5
"""Trials that are drawn at random before the sampler learns from them; one is the recipe itself."""

_LEAST_ROWS = 20

TOGETHER = 4
"""Trials that are trained at once."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One training of a search.

    Attributes:
        number: of the trial, from 0; that is the recipe as it is.
        settings: those that the search chose.
        score: of the best validation; None if it failed.
        state: ``complete``, ``stopped`` (it was losing), ``failed`` or ``unfinished``.
        share: share of its steps that it took.
        rows: training rows that it took, repetitions included.
    """

    number: int
    settings: dict[str, Any]
    score: float | None
    state: str
    share: float
    rows: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TuningResult:
    """All trials of a search, and the best of the complete ones.

    Attributes:
        metric: the deciding metric, on the validation rows.
        rows: training rows that all trials took.
        full_rows: what they would have taken without stopping any.
    """

    metric: str
    higher_is_better: bool
    trials: tuple[Trial, ...]
    best: Trial | None
    rows: int
    full_rows: int


def tune(
    context: RunContext,
    job: TrainingJob,
    *,
    trials: int,
    seconds: float | None = None,
    space: Mapping[str, str] | None = None,
    together: int = TOGETHER,
) -> TuningResult:
    """Run trials until there are ``trials`` in all, or the time is over.

    Args:
        context: of the workspace; its registry's database keeps the trials.
        job: the recipe.
        trials: of this search in all, those of earlier calls included.
        seconds: when to stop; the trial that runs then is not finished.
        space: setting → range or values, see :data:`SPACE`.
        together: trials at once, on one copy of the base.

    Raises:
        UsageError: the space is malformed, Optuna is not installed, or this is one of several
            processes.
        Interrupted: stopped by the user; the finished trials are kept.
    """
    require_one()
    choices = parse_space(job, space or SPACE)
    check_targets(context.engine.base, job.recipe.settings)
    context.stage("reading data")
    prepared = prepare(job.dataset, job.recipe, job.transforms)
    identity = _identity(context, job, prepared, choices)
    with scratch_folder(context.workspace, f"tune-{identity}") as folder:
        study = _open_study(context, job, choices, identity)
        search = _Search(context, job, prepared, study, choices, seconds)
        while len(finished_trials(study)) < trials and not search.is_over():
            search.run_trials(folder, trials, together)
    return search.result()


# ---------------------------------------------------------------------------------------- study


def _identity(
    context: RunContext, job: TrainingJob, prepared: Prepared, choices: Sequence[Choice]
) -> str:
    """A digest of what makes scores comparable: recipe, code, rows, base, settings and space."""
    searched = {choice.name for choice in choices}
    recipe = specification(job)
    for name in ("config", "core", "plugin", "description"):
        del recipe[name]
    parts = [
        recipe,
        prepared.fingerprint,
        prepared.split.fingerprint,
        context.engine.base.digest,
        {
            spec.name: getattr(job.settings, spec.name)
            for spec in fields(Settings)
            if spec.name not in searched
        },
        [asdict(choice) for choice in choices],
    ]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _open_study(
    context: RunContext, job: TrainingJob, choices: Sequence[Choice], identity: str
) -> optuna.Study:
    """The study of this identity; a new one begins with the recipe as it is."""
    try:
        import optuna
    except ImportError:
        raise UsageError(
            "A search needs the package optuna.", "Run: pip install 'trunkline[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The registry keeps its own revision in alembic_version, which Optuna takes for its own
    storage = optuna.storages.RDBStorage(
        context.workspace.registry_url, skip_compatibility_check=True
    )
    with warnings.catch_warnings():
        # constant_liar is experimental; Optuna is capped
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=job.settings.seed, n_startup_trials=_STARTUP, constant_liar=True
        )
    study = optuna.create_study(
        study_name=f"{job.recipe.name}:{identity}",
        storage=storage,
        direction="maximize" if job.deciding_metric.higher_is_better else "minimize",
        sampler=sampler,
        load_if_exists=True,
    )
    failed = optuna.trial.TrialState.FAIL
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=failed)  # its process was killed
    own = {choice.name: start_of(job, choice) for choice in choices}
    waits = study.get_trials(states=(optuna.trial.TrialState.WAITING,))
    if not waits and all(one.params != own for one in finished_trials(study)):
        study.enqueue_trial(own)
    return study


def begun_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that began; the recipe itself waits in a new study."""
    import optuna

    return [one for one in study.trials if one.state != optuna.trial.TrialState.WAITING]


def finished_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that ended by themselves; the others are repeated with other settings."""
    from optuna.trial import TrialState

    return [
        one
        for one in study.get_trials(
            states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        )
        if one.state != TrialState.FAIL or one.user_attrs.get("error") is not None
    ]


class _Search:
    """Runs the trials of one study, some at a time."""

    def __init__(
        self,
        context: RunContext,
        job: TrainingJob,
        prepared: Prepared,
        study: optuna.Study,
        choices: Sequence[Choice],
        seconds: float | None,
    ) -> None:
        self._context, self._job, self._prepared = context, job, prepared
        self._study, self._choices = study, choices
        self._running: list[_Watch] = []
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def run_trials(self, folder: Path, total: int, together: int) -> None:
        """Train once or several times with settings that the sampler chooses; record the outcomes.

        Args:
            folder: for the files of the trainings.
            total: trials of the search in all.
            together: of them at once, on one copy of the base.

        Raises:
            Interrupted: the user stopped it.
        """
        import optuna

        together = min(together, total - len(finished_trials(self._study)))
        self._running = [_Watch(self, self._study.ask()) for _ in range(together)]
        drawn = [
            {choice.name: choice.draw(watch.trial) for choice in self._choices}
            for watch in self._running
        ]
        names = [f"trial {watch.trial.number + 1} of {total}" for watch in self._running]
        for name, chosen in zip(names, drawn, strict=True):
            shown = ", ".join(f"{setting}={_text(value)}" for setting, value in chosen.items())
            self._context.stage(f"{name}: {shown}")
        listener: ProgressListener = self._context.listener
        shared = SharedProgress(listener)
        functions = [
            self._training(
                folder / str(watch.trial.number),
                chosen,
                watch,
                listener if together == 1 else shared.of(name),
            )
            for name, chosen, watch in zip(names, drawn, self._running, strict=True)
        ]
        try:
            outcomes = self._train(names, drawn, functions)
        except BaseException:
            for watch in self._running:
                self._study.tell(watch.trial, state=optuna.trial.TrialState.FAIL)
            raise
        for watch, outcome in zip(self._running, outcomes, strict=True):
            self._record(watch, outcome)
        for outcome in outcomes:
            if isinstance(outcome, Exception) and not isinstance(outcome, TrunklineError):
                raise outcome
        if self._context.should_stop():
            raise Interrupted(
                f"Stopped after {len(finished_trials(self._study))} trials, which are kept.",
                "The same command goes on with the search.",
            )

    def _training(
        self, folder: Path, chosen: Mapping[str, Any], watch: _Watch, listener: ProgressListener
    ) -> Callable[[Place], TrainerOutput]:
        """A function that trains with some settings."""

        def function(place: Place) -> TrainerOutput:
            try:
                output = train_adapter(
                    replace(self._job, recipe=with_settings(self._job.recipe, chosen)),
                    self._prepared,
                    self._context.engine,
                    folder,
                    listener=listener,
                    log=lambda step, values: None,
                    should_stop=watch.should_stop,
                    on_validation=watch.validated,
                    place=place,
                )
                if output.artifact is not None:
                    self._context.engine.pool.unload(output.artifact.digest)
                return output
            finally:
                watch.ended = True
                shutil.rmtree(folder, ignore_errors=True)

        return function

    def _train(
        self,
        names: Sequence[str],
        drawn: Sequence[Mapping[str, Any]],
        functions: Sequence[Callable[[Place], TrainerOutput]],
    ) -> list[TrainerOutput | Exception]:
        """Call the functions at once, or one after another if they can't share the base."""
        if self._share_base(names, drawn):
            return train_together(names, functions)
        return [
            train_together([name], [function])[0]
            for name, function in zip(names, functions, strict=True)
        ]

    def _share_base(self, names: Sequence[str], drawn: Sequence[Mapping[str, Any]]) -> bool:
        """Whether trainings with these settings can use one copy of the base."""
        if self._job.dataset.modality == "image":
            return False
        try:
            jobs = [with_settings(self._job.recipe, chosen).settings for chosen in drawn]
            check_together(dict(zip(names, jobs, strict=True)), self._context.engine.base.device)
        except TrunklineError:
            return False
        return True

    def _record(self, watch: _Watch, outcome: TrainerOutput | Exception) -> None:
        """Keep what a trial gave."""
        import optuna

        failed = isinstance(outcome, Exception) and not isinstance(outcome, Interrupted)
        failure = one_line(outcome) if isinstance(outcome, Exception) and failed else None
        watch.save(failure)
        state = optuna.trial.TrialState
        if failed or watch.best is None or watch.unfinished:
            self._study.tell(watch.trial, state=state.FAIL)
        elif watch.losing:
            self._study.tell(watch.trial, state=state.PRUNED)
        else:
            self._study.tell(watch.trial, watch.best)

    def is_stopped(self) -> bool:
        """Whether the user or the time ends the trial that runs."""
        return self._context.should_stop() or self.is_over()

    def is_better(self, score: float, other: float) -> bool:
        """Whether a score of the deciding metric is better than another."""
        higher = self._job.deciding_metric.higher_is_better
        return score > other if higher else score < other

    def compare(self, watch: _Watch, validation: Validation) -> None:
        """Stop the trials that are shown to lose at the share of a training where ``watch`` is.

        It is compared with the best trial so far, and with those that run beside it.
        """
        if len(validation.rows) < _LEAST_ROWS:
            return
        best = self._best()
        if best is not None:
            curve = best.user_attrs["predictions"]
            at = max((key for key in curve if float(key) <= watch.share + 1e-6), default=None)
            if at is not None and self._loses(validation, curve[at]):
                watch.losing = True
        key = watch.key
        for other in self._running:
            if other is watch or other.ended or key not in other.predictions:
                continue
            if self._loses(validation, other.predictions[key]):
                watch.losing = True
            elif self._loses(
                validation._replace(predictions=other.predictions[key]), validation.predictions
            ):
                other.losing = True

    def _loses(self, validation: Validation, other: Sequence[Any]) -> bool:
        """Whether predictions are worse than others of the same rows, beyond chance."""
        metric = self._job.deciding_metric
        rows = [self._prepared.split.validation[index] for index in validation.rows]
        scored = Scored(
            targets=[row.target for row in rows],
            predictions=validation.predictions,
            labels=self._prepared.labels,
        )
        difference = paired_difference(metric, scored, other, [row.group for row in rows])
        return difference.high < 0 if metric.higher_is_better else difference.low > 0

    def result(self) -> TuningResult:
        """What the trials gave."""
        shown = tuple(self._trial(trial) for trial in begun_trials(self._study))
        best = self._best()
        metric = self._job.deciding_metric
        full = sum(round(one.rows / one.share) for one in shown if one.share)
        return TuningResult(
            metric=metric.name,
            higher_is_better=metric.higher_is_better,
            trials=shown,
            best=None if best is None else shown[best.number],
            rows=sum(one.rows for one in shown),
            full_rows=full,
        )

    def _best(self) -> optuna.trial.FrozenTrial | None:
        import optuna

        complete = (optuna.trial.TrialState.COMPLETE,)
        return self._study.best_trial if self._study.get_trials(states=complete) else None

    def _trial(self, trial: optuna.trial.FrozenTrial) -> Trial:
        attributes = trial.user_attrs
        state = {"COMPLETE": "complete", "PRUNED": "stopped"}.get(trial.state.name, "failed")
        if state == "failed" and attributes.get("error") is None:
            state = "unfinished"
        return Trial(
            number=trial.number,
            settings=dict(trial.params),
            score=attributes.get("score"),
            state=state,
            share=float(attributes.get("share", 0.0)),
            rows=int(attributes.get("rows", 0)),
            error=attributes.get("error"),
        )


class _Watch:
    """Follows one trial: its validations, and whether it is to be stopped.

    Attributes:
        share: of its steps, at the last validation.
        predictions: of the validation rows, by share.
        best: the best score so far.
        losing: another trial is better; this one stops after its step.
        unfinished: the user or the time ends it.
        ended: it takes no more steps.
    """

    def __init__(self, search: _Search, trial: optuna.Trial) -> None:
        self.trial = trial
        self.predictions: dict[str, list[Any]] = {}
        self.share = 0.0
        self.best: float | None = None
        self.losing = self.unfinished = self.ended = False
        self._search, self._rows = search, 0

    @property
    def key(self) -> str:
        """The share as a key of ``predictions``."""
        return f"{self.share:.6f}"

    def should_stop(self) -> bool:
        self.unfinished = self.unfinished or (not self.losing and self._search.is_stopped())
        return self.losing or self.unfinished

    def validated(self, step: int, total: int, rows: int, validation: Validation) -> None:
        """A validation took place after ``step`` of ``total`` steps and ``rows`` rows."""
        if self.best is None or self._search.is_better(validation.score, self.best):
            self.best = validation.score
        self.share, self._rows = step / total, rows
        self.predictions[self.key] = list(validation.predictions)
        if step < total:
            self._search.compare(self, validation)

    def save(self, failure: str | None) -> None:
        """Keep what was seen with the trial."""
        values = {
            "predictions": self.predictions,
            "score": self.best if self.best is not None and math.isfinite(self.best) else None,
            "share": self.share,
            "rows": self._rows,
            "error": failure,
        }
        for name, value in values.items():
            self.trial.set_user_attr(name, value)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
