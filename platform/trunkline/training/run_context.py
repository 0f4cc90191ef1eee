"""The bench that a run works on: the parts of a workspace, and what every run does with them.

Owns: evaluating an artifact on held-out rows, and telling the registry of base, data and
predictions. Must not know: the order of a run, the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trunkline.adapters.artifact import Artifact
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import ProgressListener
from trunkline.data.prepare import Prepared
from trunkline.errors import Interrupted
from trunkline.evaluation.assess import predict_rows
from trunkline.evaluation.baselines import fit_baselines
from trunkline.evaluation.report import EvaluationReport, Prediction, evaluate
from trunkline.inference.engine import Engine
from trunkline.registry.records import PredictionRecord
from trunkline.registry.registry import Registry
from trunkline.training.fit import TrainingJob
from trunkline.workspace import Workspace


@dataclass(frozen=True, slots=True)
class RunContext:
    """Where the work is done: the workspace's parts and the engine on the clean base."""

    workspace: Workspace
    registry: Registry
    store: AdapterStore
    engine: Engine
    listener: ProgressListener
    should_stop: Callable[[], bool]

    def stage(self, text: str) -> None:
        """Tell the listener that a part begins, unless the user wants to stop.

        Raises:
            Interrupted: ``should_stop`` said so.
        """
        self.check_stop()
        self.listener.stage(text)

    def check_stop(self, _: int = 0) -> None:
        """Raise :class:`Interrupted` if the user wants to stop."""
        if self.should_stop():
            raise Interrupted("Stopped before the evaluation was made.")


def evaluate_artifact(
    bench: RunContext, training_job: TrainingJob, prepared: Prepared, artifact: Artifact
) -> tuple[EvaluationReport, list[Prediction]]:
    """Baselines and the artifact's answers on the test rows, and the verdict.

    Raises:
        Interrupted: the user stopped it.
    """
    recipe, split = training_job.recipe, prepared.split
    baselines = fit_baselines(training_job.baselines, recipe, split, bench.engine.base, bench.stage)
    bench.stage("predicting the test rows")
    predicted = predict_rows(
        bench.engine, artifact, recipe.name, split.test, on_done=bench.check_stop
    )
    bench.stage("evaluating")
    return evaluate(
        split.test,
        predicted.values,
        baselines,
        training_job.metrics,
        prepared.labels,
        predicted.confidences,
    )


def record_base(bench: RunContext) -> str:
    """Write the base down; gives its digest."""
    info = bench.engine.base.info
    bench.registry.sources.record_base(
        digest=info.digest,
        name=info.name,
        source=info.source,
        architecture=info.architecture,
        parameters=info.parameters,
        dtype=info.dtype,
    )
    return info.digest


def record_dataset(bench: RunContext, training_job: TrainingJob, prepared: Prepared) -> int:
    """Write the dataset down as it was split; gives its id."""
    dataset = training_job.dataset
    return bench.registry.sources.record_dataset(
        name=dataset.name,
        fingerprint=prepared.fingerprint,
        split_fingerprint=prepared.split.fingerprint,
        rows=prepared.report.kept,
        license=dataset.license,
        source=dataset.source,
        counts=prepared.report.to_json(),
    )


def prediction_record(prediction: Prediction) -> PredictionRecord:
    """A prediction as the registry keeps it."""
    baseline = prediction.baseline_prediction
    return PredictionRecord(
        row_id=prediction.row_id,
        group=prediction.group,
        target=str(prediction.target),
        prediction=str(prediction.prediction),
        confidence=prediction.confidence,
        baseline_prediction=None if baseline is None else str(baseline),
    )
