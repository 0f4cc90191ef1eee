"""Search for better settings of a recipe with Optuna, and stop trials that lose early.

A trial is stopped after a validation if it is worse than the best finished trial at the same share
of its training: if the interval of the paired difference on the validation rows lies below zero.
The test rows are never read. Trials are kept in the registry's database, so a search can go on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.contracts import Scored, Settings
from trunkline.data.prepare import Prepared, prepare
from trunkline.errors import Interrupted, TrunklineError, UsageError, one_line
from trunkline.evaluation.intervals import paired_difference
from trunkline.training.distributed import require_one
from trunkline.training.job import TrainingJob, with_settings
from trunkline.training.model import lora_targets
from trunkline.training.run import RunContext
from trunkline.training.run_info import specification
from trunkline.training.scoring import Validation
from trunkline.training.scratch import scratch_folder
from trunkline.training.trainer import train_adapter

if TYPE_CHECKING:
    import optuna

SPACE: Mapping[str, str] = {
    "learning_rate": "1e-4:2e-3:log",
    "r": "8,16,32",
    "weight_decay": "0:0.1",
    "lora_dropout": "0:0.1",
}
"""What is searched by default: a range ``low:high[:log]``, or values with commas."""

_FIXED = ("split_seed", "max_train_samples", "seed")
"""Settings that choose the rows, or the luck of a training."""

_RANGE = re.compile(r"([^:,]+):([^:,]+)(:log)?")
_STARTUP = 5
"""Trials that are drawn at random before the sampler learns from them; one is the recipe itself."""

_LEAST_ROWS = 20


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
) -> TuningResult:
    """Run trials until there are ``trials`` in all, or the time is over.

    Args:
        context: of the workspace; its registry's database keeps the trials.
        job: the recipe.
        trials: of this search in all, those of earlier calls included.
        seconds: when to stop; the trial that runs then is not finished.
        space: setting → range or values, see :data:`SPACE`.

    Raises:
        UsageError: the space is malformed, Optuna is not installed, or this is one of several
            processes.
        Interrupted: stopped by the user; the finished trials are kept.
    """
    require_one()
    choices = parse_space(job, space or SPACE)
    lora_targets(context.engine.base.model, job.recipe.settings)
    context.stage("reading data")
    prepared = prepare(job.dataset, job.recipe, job.transforms)
    identity = _identity(context, job, prepared, choices)
    with scratch_folder(context.workspace, f"tune-{identity}") as folder:
        study = _open_study(context, job, choices, identity)
        search = _Search(context, job, prepared, study, choices, seconds)
        while len(begun_trials(study)) < trials and not search.is_over():
            search.run_trial(folder, trials)
    return search.result()


# ---------------------------------------------------------------------------------------- space


@dataclass(frozen=True, slots=True)
class Choice:
    """The values that one setting may take."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def draw(self, trial: optuna.Trial) -> Any:
        """A value for a trial."""
        if self.values:
            return trial.suggest_categorical(self.name, list(self.values))
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def parse_space(job: TrainingJob, space: Mapping[str, str]) -> tuple[Choice, ...]:
    """The choices that texts such as ``1e-4:2e-3:log`` and ``8,16,32`` describe.

    Raises:
        NotFoundError: there is no such setting.
        UsageError: a range or a value is malformed or out of the setting's range.
    """
    kinds = {spec.name: type(spec.default) for spec in fields(Settings)}
    choices = []
    for name, text in space.items():
        if name in _FIXED:
            raise UsageError(
                f"{name} can't be searched: scores on other rows can't be compared.",
                f"Set it with --set {name}=VALUE.",
            )
        match = _RANGE.fullmatch(text.strip())
        ends = match.groups()[:2] if match else tuple(text.split(","))
        values = [
            getattr(with_settings(job.recipe, {name: end.strip()}).settings, name) for end in ends
        ]
        if match is None:
            choices.append(Choice(name, tuple(dict.fromkeys(values))))
            continue
        low, high = values
        if kinds[name] not in (int, float) or not low < high or (match[3] and low <= 0):
            raise UsageError(
                f"The range {text!r} of {name} is not one.",
                "Write low:high, or low:high:log with a low above 0, such as 1e-4:2e-3:log.",
            )
        choices.append(
            Choice(name, low=low, high=high, log=bool(match[3]), integer=kinds[name] is int)
        )
    return tuple(choices)


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
    study = optuna.create_study(
        study_name=f"{job.recipe.name}:{identity}",
        storage=storage,
        direction="maximize" if job.deciding_metric.higher_is_better else "minimize",
        sampler=optuna.samplers.TPESampler(seed=job.settings.seed, n_startup_trials=_STARTUP),
        load_if_exists=True,
    )
    failed = optuna.trial.TrialState.FAIL
    for trial in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=failed)  # its process was killed
    unfinished = [one.state == failed and not one.user_attrs.get("error") for one in study.trials]
    if all(unfinished):  # also where there is none yet
        study.enqueue_trial({choice.name: _start(job, choice) for choice in choices})
    return study


def begun_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that began; the recipe itself waits in a new study."""
    import optuna

    return [one for one in study.trials if one.state != optuna.trial.TrialState.WAITING]


def _start(job: TrainingJob, choice: Choice) -> Any:
    """The recipe's own value, or the nearest that the search may choose."""
    own = getattr(job.settings, choice.name)
    if choice.values:
        return own if own in choice.values else choice.values[0]
    return min(max(own, choice.low), choice.high)


class _Search:
    """Runs the trials of one study one after another."""

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
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def is_over(self) -> bool:
        """Whether the time is over."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def run_trial(self, folder: Path, count: int) -> None:
        """Train once with settings that the sampler chooses, and record the outcome.

        Raises:
            Interrupted: the user stopped it.
        """
        import optuna

        trial = self._study.ask()
        chosen = {choice.name: choice.draw(trial) for choice in self._choices}
        shown = ", ".join(f"{name}={_text(value)}" for name, value in chosen.items())
        self._context.stage(f"trial {trial.number + 1} of {count}: {shown}")
        watch = _Watch(self, trial)
        failure: str | None = None
        try:
            recipe = with_settings(self._job.recipe, chosen)
            output = train_adapter(
                replace(self._job, recipe=recipe),
                self._prepared,
                self._context.engine,
                folder / str(trial.number),
                listener=self._context.listener,
                log=lambda step, values: None,
                should_stop=watch.should_stop,
                on_validation=watch.validated,
            )
            if output.artifact is not None:
                self._context.engine.pool.unload(output.artifact.digest)
        except TrunklineError as error:
            if isinstance(error, Interrupted):
                raise
            failure = one_line(error)
        except BaseException:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        finally:
            shutil.rmtree(folder / str(trial.number), ignore_errors=True)
        watch.save(failure)
        state = optuna.trial.TrialState
        if failure is not None or watch.best is None or watch.unfinished:
            self._study.tell(trial, state=state.FAIL)
        elif watch.losing:
            self._study.tell(trial, state=state.PRUNED)
        else:
            self._study.tell(trial, watch.best)
        if self._context.should_stop():
            raise Interrupted(
                f"Stopped after {len(begun_trials(self._study))} trials, which are kept.",
                "The same command goes on with the search.",
            )

    def is_stopped(self) -> bool:
        """Whether the user or the time ends the trial that runs."""
        return self._context.should_stop() or self.is_over()

    def is_better(self, score: float, other: float) -> bool:
        """Whether a score of the deciding metric is better than another."""
        higher = self._job.deciding_metric.higher_is_better
        return score > other if higher else score < other

    def is_losing(self, share: float, validation: Validation) -> bool:
        """Whether a trial is worse than the best one was at this share of its training."""
        best = self._best()
        if best is None or len(validation.rows) < _LEAST_ROWS:
            return False
        curve = {float(key): value for key, value in best.user_attrs["predictions"].items()}
        at = max((key for key in curve if key <= share + 1e-9), default=None)
        if at is None:
            return False
        metric = self._job.deciding_metric
        rows = [self._prepared.split.validation[index] for index in validation.rows]
        scored = Scored(
            targets=[row.target for row in rows],
            predictions=validation.predictions,
            labels=self._prepared.labels,
        )
        difference = paired_difference(metric, scored, curve[at], [row.group for row in rows])
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
    """Follows one trial: its validations, and whether it is to be stopped."""

    def __init__(self, search: _Search, trial: optuna.Trial) -> None:
        self._search, self._trial = search, trial
        self._predictions: dict[str, list[Any]] = {}
        self._share, self._rows = 0.0, 0
        self.best: float | None = None
        self.losing = self.unfinished = False

    def should_stop(self) -> bool:
        self.unfinished = self.unfinished or (not self.losing and self._search.is_stopped())
        return self.losing or self.unfinished

    def validated(self, step: int, total: int, rows: int, validation: Validation) -> None:
        """A validation took place after ``step`` of ``total`` steps and ``rows`` rows."""
        if self.best is None or self._search.is_better(validation.score, self.best):
            self.best = validation.score
        self._share, self._rows = step / total, rows
        self._predictions[f"{self._share:.6f}"] = list(validation.predictions)
        self.losing = step < total and self._search.is_losing(self._share, validation)

    def save(self, failure: str | None) -> None:
        """Keep what was seen with the trial."""
        values = {
            "predictions": self._predictions,
            "score": self.best if self.best is not None and math.isfinite(self.best) else None,
            "share": self._share,
            "rows": self._rows,
            "error": failure,
        }
        for name, value in values.items():
            self._trial.set_user_attr(name, value)


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
