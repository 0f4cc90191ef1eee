"""One fit: a prepared dataset and a recipe → a proven artifact in a folder.

Owns: seeding, the LoRA model, the way to the artifact. Must not know: the registry. Everything
that draws random numbers comes after the seed is set.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.contracts import (
    BaselineSpec,
    DatasetSpec,
    LossSpec,
    MetricSpec,
    ProgressListener,
    RecipeSpec,
    TransformSpec,
)
from trunkline.data.prepare import Prepared
from trunkline.errors import DataError, TrainingError, TrunklineError
from trunkline.inference.engine import Engine
from trunkline.tasks import AnyTask, task_for
from trunkline.training.examples import Encoded, check_answers_fit, encode_rows
from trunkline.training.model import lora_model, uses_bf16
from trunkline.training.proof import SAMPLE, Proof, prove
from trunkline.training.scoring import build_loss, prompt_of, validator
from trunkline.training.steps import Plan, Stepped, take_steps


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A recipe with everything it names; ``metrics`` has the deciding one first."""

    recipe: RecipeSpec
    dataset: DatasetSpec
    transforms: tuple[TransformSpec, ...]
    loss: LossSpec
    metrics: tuple[MetricSpec, ...]
    baselines: tuple[BaselineSpec, ...]

    @property
    def deciding(self) -> MetricSpec:
        return self.metrics[0]


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a fit left: the artifact, and the counts for the run's report.

    ``artifact`` and ``proof`` are None if the work was interrupted.
    """

    task: AnyTask
    encoded: Encoded
    stepped: Stepped
    artifact: Artifact | None
    proof: Proof | None

    def to_json(self) -> dict[str, Any]:
        stepped = asdict(self.stepped)
        return {
            "tokens_trained": stepped.pop("tokens"),
            "truncated": self.encoded.truncated,
            "longest": self.encoded.longest,
            **stepped,
            "proof": asdict(self.proof) if self.proof else None,
        }


def fit(
    training_job: TrainingJob,
    prepared: Prepared,
    engine: Engine,
    folder: Path,
    *,
    listener: ProgressListener,
    log: Callable[[int, Mapping[str, float]], None],
    should_stop: Callable[[], bool],
    resume: bool = False,
) -> Fitted:
    """Train, write ``folder/artifact``, read it back and prove it.

    Args:
        ingredients: the recipe and what it names.
        prepared: the rows.
        engine: on the clean base; also tells which base to train.
        folder: of this run; its checkpoints stay there if the work is interrupted.
        listener: hears of stages and progress.
        log: receives figures by optimizer step.
        should_stop: asked after every step.
        resume: go on from the last checkpoint in ``folder``.

    Raises:
        TrainingError, DataError, PluginError: with nothing published.
    """
    from transformers import set_seed

    recipe, settings = training_job.recipe, training_job.recipe.settings
    base = engine.base
    listener.stage("encoding")
    train = (*prepared.split.train, *prepared.augmented)
    task = task_for(recipe, prepared.labels, train, training_job.dataset.unit)
    encoded = encode_rows(train, recipe, task, base.tokenizer)
    check_no_answer_cut(prepared, recipe, base.tokenizer)
    validation = encode_rows(prepared.split.validation, recipe, task, base.tokenizer)
    sample = encode_rows(prepared.split.test[:SAMPLE], recipe, task, base.tokenizer)
    longest = max(encoded.longest, validation.longest, sample.longest)
    if longest > base.info.context:
        raise DataError(
            f"A row takes {longest} tokens; the base's context is {base.info.context}.",
            f"Use --set max_length={base.info.context} or less, or leave long rows out.",
        )

    listener.stage("loading the base")
    set_seed(settings.seed)
    model = lora_model(base.info.name, task, settings, str(base.device))
    loss = build_loss(training_job.loss, task, train)
    listener.stage("training")
    stepped = take_steps(
        Plan(
            model=model,
            task=task,
            examples=encoded.examples,
            pad_id=base.tokenizer.pad_token_id,
            loss=loss,
            metric=training_job.deciding,
            validate=validator(
                training_job.deciding, prepared.split.validation, validation, task, base.tokenizer
            ),
            settings=settings,
            folder=folder,
            bf16=uses_bf16(settings.precision, base.device),
            resume=resume,
            log=log,
            listener=listener,
            should_stop=should_stop,
        )
    )
    if stepped.interrupted:
        return Fitted(task, encoded, stepped, None, None)

    listener.stage("proving the artifact")
    artifact = _write(model, folder / "artifact", training_job, prepared, engine, task)
    prompts = [prompt_of(example) for example in sample.examples]
    proof = prove(model, engine, artifact, task, prompts)
    return Fitted(task, encoded, stepped, artifact, proof)


def check_no_answer_cut(prepared: Prepared, recipe: RecipeSpec, tokenizer: Any) -> None:
    """Raise :class:`DataError` if the recipe may not generate as much as some row wants."""
    if recipe.task == "generation":
        split = prepared.split
        rows = (*split.train, *prepared.augmented, *split.validation, *split.test)
        check_answers_fit(rows, recipe, tokenizer)


def _write(
    model: Any,
    folder: Path,
    training_job: TrainingJob,
    prepared: Prepared,
    engine: Engine,
    task: AnyTask,
) -> Artifact:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    info = engine.base.info
    name = Path(info.name).name if Path(info.name).is_absolute() else info.name
    try:
        manifest = seal(
            folder,
            base={"name": name, "digest": info.digest},
            task=task.to_json(),
            template=training_job.recipe.template,
            data={
                "dataset": training_job.dataset.name,
                "fingerprint": prepared.fingerprint,
                "split": prepared.split.fingerprint,
            },
        )
        return read_artifact(folder, manifest.digest)
    except TrunklineError as error:
        raise TrainingError(
            f"What was trained can't be served: {error.message}", error.hint
        ) from error
