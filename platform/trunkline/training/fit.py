"""One fit: a prepared dataset and a recipe → a proven artifact in a folder.

Owns: seeding, the LoRA model, the way to the artifact. Must not know: the registry. Everything
that draws random numbers comes after the seed is set.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.contracts import (
    DatasetSpec,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    Row,
    Scored,
    Settings,
    TransformSpec,
)
from trunkline.data.prepare import Prepared
from trunkline.errors import PluginError, TrainingError, TrunklineError
from trunkline.inference.engine import Engine
from trunkline.inference.forward import continue_all
from trunkline.tasks import AnyTask, GenerationTask, task_for
from trunkline.tasks.batches import by_length
from trunkline.training.examples import Encoded, check_answers_fit, encode_rows
from trunkline.training.proof import Proof, prove
from trunkline.training.steps import Listener, Plan, Stepped, take_steps

if TYPE_CHECKING:
    import torch

VALIDATION_GENERATIONS = 128
"""Most validation rows that a generation is judged on between steps."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """A recipe with everything it names; ``metrics`` has the deciding one first."""

    recipe: RecipeSpec
    dataset: DatasetSpec
    transforms: tuple[TransformSpec, ...]
    loss: LossSpec | None
    metrics: tuple[MetricSpec, ...]

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
    ingredients: Ingredients,
    prepared: Prepared,
    engine: Engine,
    folder: Path,
    *,
    listener: Listener,
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
        log: receives figures by optimiser step.
        should_stop: asked after every step.
        resume: go on from the last checkpoint in ``folder``.

    Raises:
        TrainingError, DataError, PluginError: with nothing published.
    """
    from transformers import set_seed

    recipe, settings = ingredients.recipe, ingredients.recipe.settings
    base = engine.base
    listener.stage("encoding")
    train = (*prepared.split.train, *prepared.augmented)
    task = task_for(recipe, prepared.labels, train, ingredients.dataset.unit)
    encoded = encode_rows(train, recipe, task, base.tokenizer)
    if isinstance(task, GenerationTask):
        check_answers_fit(train, recipe, base.tokenizer)
    validation = encode_rows(prepared.split.validation, recipe, task, base.tokenizer)

    listener.stage("loading the base")
    set_seed(settings.seed)
    model = lora_model(base.info.name, task, settings, str(base.device))
    loss = _build_loss(ingredients, task, train)
    listener.stage("training")
    stepped = take_steps(
        Plan(
            model=model,
            task=task,
            examples=encoded.examples,
            pad_id=base.tokenizer.pad_token_id,
            loss=loss,
            metric=ingredients.deciding,
            validate=_validator(ingredients, prepared, task, validation, base.tokenizer),
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
    artifact = _write(model, folder / "artifact", ingredients, prepared, engine, task)
    test = encode_rows(prepared.split.test[:64], recipe, task, base.tokenizer)
    prompts = [_prompt_of(example) for example in test.examples]
    proof = prove(model, engine, artifact, task, prompts)
    return Fitted(task, encoded, stepped, artifact, proof)


def lora_model(base_name: str, task: AnyTask, settings: Settings, device: str) -> Any:
    """A fresh copy of the base with an untrained LoRA adapter, and a head if the task has one.

    Raises:
        TrainingError: ``target_modules`` match nothing, or there are not that many layers.
    """
    from peft import LoraConfig, get_peft_model

    from trunkline.base_model import load_fresh

    dtype = "fp32" if device == "cpu" else "auto"
    model = load_fresh(base_name, task.head_size, device=device, dtype=dtype, seed=settings.seed)
    layers = model.config.num_hidden_layers
    if settings.upper_layers > layers:
        raise TrainingError(
            f"upper_layers = {settings.upper_layers}, but the base has {layers} layers.",
            f"Use --set upper_layers={layers} or less.",
        )
    chosen = range(layers - settings.upper_layers, layers) if settings.upper_layers else None
    targets: Any = settings.target_modules
    if targets != "all-linear":
        targets = [name.strip() for name in targets.split(",") if name.strip()]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        use_rslora=settings.rslora,
        target_modules=targets,
        layers_to_transform=list(chosen) if chosen else None,
        task_type="CAUSAL_LM" if isinstance(task, GenerationTask) else "SEQ_CLS",
    )
    try:
        with warnings.catch_warnings():
            # PEFT calls names of transformers that transformers 6 will drop; PEFT is capped
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise TrainingError(
            f"target_modules = {settings.target_modules!r} can't be adapted: {error}",
            "Use --set target_modules=all-linear, or names of the base's linear layers.",
        ) from error


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether training multiplies in bfloat16 (weights and adapters stay as they are)."""
    import torch

    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device.type != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def _build_loss(ingredients: Ingredients, task: AnyTask, train: Sequence[Row]) -> Any:
    if ingredients.loss is None:
        return task.default_loss()
    try:
        return ingredients.loss.build(task.loss_context(train))
    except TrunklineError:
        raise
    except Exception as error:
        raise PluginError(
            f"The loss {ingredients.loss.name} can't be built: {type(error).__name__}: {error}",
            "See the LossSpec contract in docs/hooks.md.",
        ) from error


def _validator(
    ingredients: Ingredients, prepared: Prepared, task: AnyTask, encoded: Encoded, tokenizer: Any
) -> Callable[[Any], float]:
    """The deciding metric on the validation rows, as a function of the model in training."""
    rows = prepared.split.validation
    metric = ingredients.deciding

    def score(predictions: Sequence[Any], targets: Sequence[Any]) -> float:
        return metric.compute(
            Scored(targets=targets, predictions=predictions, labels=prepared.labels)
        )

    if isinstance(task, GenerationTask):
        chosen = range(0, len(rows), max(1, -(-len(rows) // VALIDATION_GENERATIONS)))
        prompts = [_prompt_of(encoded.examples[index]) for index in chosen]
        answers = [rows[index].target for index in chosen]

        def generate(model: Any) -> float:
            texts = continue_all(model, tokenizer, prompts, task.max_new_tokens)
            return score(texts, answers)

        return generate

    def classify(model: Any) -> float:
        import torch

        predictions: list[Any] = [None] * len(rows)
        lengths = [len(example["input_ids"]) for example in encoded.examples]
        with torch.inference_mode():
            for batch in by_length(lengths, 64):
                examples = [encoded.examples[index] for index in batch]
                inputs = task.collate(examples, tokenizer.pad_token_id)
                inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
                outputs, _ = task.outputs(model, inputs)
                for index, (value, _) in zip(batch, task.decode(outputs), strict=True):
                    predictions[index] = value
        return score(predictions, [row.target for row in rows])

    return classify


def _write(
    model: Any,
    folder: Path,
    ingredients: Ingredients,
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
    manifest = seal(
        folder,
        base={"name": Path(info.name).name, "digest": info.digest},
        task=task.to_json(),
        template=ingredients.recipe.template,
        data={
            "dataset": ingredients.dataset.name,
            "fingerprint": prepared.fingerprint,
            "split": prepared.split.fingerprint,
        },
    )
    try:
        return read_artifact(folder, manifest.digest)
    except TrunklineError as error:
        raise TrainingError(
            f"What was trained can't be served: {error.message}", error.hint
        ) from error


def write_provenance(folder: Path, provenance: Mapping[str, Any]) -> None:
    """What lies outside the identity: run, times, metrics, package versions."""
    text = json.dumps(provenance, indent=2, sort_keys=True, ensure_ascii=False, default=str)
    (folder / "provenance.json").write_text(text + "\n", encoding="utf-8")


def _prompt_of(example: Mapping[str, Any]) -> list[int]:
    ids: list[int] = example["input_ids"]
    return ids[: len(ids) - example["answer"]] if "answer" in example else ids
