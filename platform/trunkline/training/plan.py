"""Estimate the cost of a training without training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trunkline.contracts import RecipeSpec
from trunkline.data.prepare import prepare
from trunkline.inference.engine import Engine
from trunkline.registry.registry import Registry
from trunkline.tasks import task_for
from trunkline.training.job import TrainingJob, encode_parts
from trunkline.training.model import lora_model, lora_targets
from trunkline.training.trainer import steps_per_epoch, total_steps


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """The resolved recipe and its estimated cost.

    ``training_flops`` counts 6 operations per parameter and token (Kaplan et al. 2020, section
    2.1), an upper bound here, since frozen weights need no gradient of their own. ``seconds`` is
    scaled from this recipe's newest finished run on the same kind of device; None if there is none.
    ``lengths`` is a ``LengthReport`` of all parts as JSON.
    """

    recipe: RecipeSpec
    base: str
    data: dict[str, Any]
    tokens: int
    truncated: int
    longest: int
    lengths: dict[str, Any]
    steps: int
    trainable_parameters: int
    adapter_bytes: int
    training_flops: float
    seconds: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def plan_training(job: TrainingJob, engine: Engine, registry: Registry) -> TrainingPlan:
    """Encode the data and build the adapter to count their sizes; nothing is kept."""
    recipe, base = job.recipe, engine.base
    lora_targets(base.model, recipe.settings)
    prepared = prepare(job.dataset, recipe, job.transforms)
    train = (*prepared.split.train, *prepared.augmented)
    task = task_for(recipe, prepared.labels, train, job.dataset.unit)
    parts = encode_parts(job, prepared, task, engine)
    encoded = parts.train
    model = lora_model(base.info.name, task, recipe.settings, str(base.device))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    steps = total_steps(recipe.settings, len(encoded.examples))
    epochs = steps / steps_per_epoch(recipe.settings, len(encoded.examples))
    tokens = round(encoded.tokens * epochs)
    return TrainingPlan(
        recipe=recipe,
        base=base.info.name,
        data=prepared.report.to_json(),
        tokens=tokens,
        truncated=encoded.truncated,
        longest=encoded.longest,
        lengths=parts.lengths.to_json(),
        steps=steps,
        trainable_parameters=trainable,
        adapter_bytes=4 * trainable,
        training_flops=6.0 * base.info.parameters * tokens,
        seconds=_seconds(recipe.name, tokens, str(base.device), registry),
    )


def _seconds(recipe: str, tokens: int, device: str, registry: Registry) -> float | None:
    for run in registry.runs.list(recipe=recipe, limit=20):
        report = run.report or {}
        trained = report.get("tokens_trained")
        if run.status == "finished" and trained and run.environment.get("device") == device:
            return float(report["train_seconds"]) / trained * tokens
    return None
