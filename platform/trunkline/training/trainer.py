"""Train one adapter: optimizer steps, best checkpoint, artifact and proof.

transformers' Trainer takes the steps, with our loss, validation and progress reports. Everything
that draws random numbers comes after the seed is set.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, set_seed
from transformers.trainer_callback import PrinterCallback, TrainerState

from trunkline.adapters.artifact import Artifact
from trunkline.bases import Base
from trunkline.contracts import LossFunction, MetricSpec, ProgressListener, Settings
from trunkline.data.prepare import Prepared
from trunkline.errors import TrainingError
from trunkline.evaluation.calibration import MIN_ROWS
from trunkline.inference.image_engine import AnyEngine
from trunkline.tasks import AnyTask, ClassificationTask, MultilabelTask, task_for
from trunkline.tasks.batches import PIXELS, size_of, within_tokens
from trunkline.tasks.generation import IGNORED
from trunkline.training import augmentation as augmenting
from trunkline.training.calibrate import calibrate, fit_threshold
from trunkline.training.checkpoints import (
    Checkpoint,
    ResumableSampler,
    find_resume_point,
    load_weights,
    remove_checkpoints_after,
    remove_old_checkpoints,
    seal_checkpoint,
)
from trunkline.training.distributed import is_first, processes, total, wait_for_all
from trunkline.training.frozen_layers import FrozenLayers
from trunkline.training.fused_convolutions import fused_convolutions
from trunkline.training.job import (
    EncodedRows,
    TrainingJob,
    encode_parts,
    inputs_digest,
)
from trunkline.training.model import (
    check_fits_pool,
    initial_matrices,
    lora_targets,
    model_to_train,
)
from trunkline.training.proof import (
    SAMPLE,
    Proof,
    proof_input,
    prove,
    trained_outputs,
    write_artifact,
)
from trunkline.training.schedule import steps_per_epoch, training_arguments
from trunkline.training.scoring import (
    LOSS,
    SCORE,
    Selection,
    Validation,
    build_loss,
    make_validator,
    select_best,
)
from trunkline.training.stopping import CHECKPOINTS
from trunkline.training.together import ALONE, Place
from trunkline.training.trackers import Log, Reporter, tensorboard_callback

ROWS = "rows"
"""The index of each row of a batch, for the layers that are skipped."""

FORWARD_TOKENS = {"cpu": 384}
"""By type of device: tokens in a forward and backward pass, padding included, if not 16,384."""

OnValidation = Callable[[int, int, int, Validation], None]
"""Receives the step, the number of all steps, the training rows so far, and the result."""


@dataclass(frozen=True, slots=True)
class TrainerOutput:
    """The outcome of training one adapter.

    Attributes:
        best_score: of the best checkpoint; None if no validation took place.
        tokens_trained, pictures_trained: repetitions included; the other one is None.
        truncated, longest: of the training rows, see :class:`EncodedRows`; None of pictures.
        lengths, picture_size: see :class:`EncodedParts`; these, artifact and proof are None if the
            training was interrupted.
    """

    steps: int
    total_steps: int
    best_step: int
    best_score: float | None
    tokens_trained: int | None
    pictures_trained: int | None
    interrupted: bool
    truncated: int | None
    longest: int | None
    lengths: dict[str, Any] | None = None
    picture_size: tuple[int, int] | None = None
    artifact: Artifact | None = None
    proof: Proof | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields for a run's report, without the artifact."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "artifact"}
        return values | {"proof": asdict(self.proof) if self.proof else None}


def train_adapter(
    job: TrainingJob,
    prepared: Prepared,
    engine: AnyEngine,
    folder: Path,
    *,
    listener: ProgressListener,
    log: Log,
    should_stop: Callable[[], bool],
    resume: bool = False,
    tensorboard: Path | None = None,
    on_validation: OnValidation | None = None,
    place: Place = ALONE,
) -> TrainerOutput:
    """Train, write ``folder/artifact``, read it back and prove it.

    Args:
        job: the recipe and everything that it names.
        prepared: its rows.
        engine: holds the clean base, and determines which base is trained.
        folder: for the files of this run; its checkpoints remain if the training is interrupted.
        listener: receives stages and progress.
        log: receives metrics by optimizer step.
        should_stop: called after each step.
        resume: continue from the last checkpoint in ``folder``.
        tensorboard: folder for TensorBoard's event files.
        on_validation: called after each validation.
        place: among the trainings that share the base, if there are others.

    Raises:
        TrainingError, DataError, PluginError: nothing is published.
    """
    recipe, settings, base = job.recipe, job.settings, engine.base
    check_fits_pool(settings, engine.pool.pages)
    listener.stage("encoding")
    train_rows = (*prepared.split.train, *prepared.augmented)
    task = task_for(recipe, prepared.labels, train_rows, job.dataset.unit)
    encoded = encode_parts(job, prepared, task, engine)

    listener.stage("loading the base")
    set_seed(settings.seed)
    sample = [proof_input(example) for example in encoded.test.examples[:SAMPLE]]
    tokenizer = base.tokenizer if isinstance(base, Base) else None
    pad_id = 0 if tokenizer is None else tokenizer.pad_token_id

    def train() -> tuple[TrainerOutput, torch.Tensor | None]:
        """Take the steps and write the artifact; also the trained model's outputs."""
        nonlocal task
        model = model_to_train(base, task, settings)
        initial = initial_matrices(model, settings)
        loss = build_loss(job, task, train_rows)
        trainer = AdapterTrainer(
            model,
            task,
            encoded.train,
            settings,
            folder,
            inputs=inputs_digest(job, encoded, base.info.digest),
            pad_id=pad_id,
            loss=loss,
            in_parts=job.loss.is_mean,
            metric=job.deciding_metric,
            validate=make_validator(
                job.deciding_metric,
                prepared.split.validation,
                encoded.validation,
                task,
                tokenizer,
                loss,
            ),
            listener=listener,
            log=log,
            should_stop=should_stop,
            place=place,
            augmentation=augmenting.PictureAugmentation(job.transforms, settings.seed),
        )
        trainer.on_validation = on_validation
        if tensorboard is not None:
            trainer.add_callback(tensorboard_callback(tensorboard))
        fused = fused_convolutions(model, encoded.train.examples, bf16=trainer.args.bf16)
        with place.trains(model, base.info.name, settings) if tokenizer is not None else fused:
            output = trainer.take_steps(resume=resume)
        if output.interrupted or not is_first():
            return output, None
        if settings.calibrate and len(encoded.validation.examples) >= MIN_ROWS:
            if isinstance(task, ClassificationTask):
                listener.stage("calibrating")
                fit = partial(calibrate, model, task, encoded.validation, pad_id)
                task = place.call(fit)
            elif isinstance(task, MultilabelTask):
                listener.stage("choosing the threshold")
                task = place.call(partial(fit_threshold, model, task, encoded.validation, pad_id))
        artifact = write_artifact(
            model, folder / "artifact", job, prepared, engine, task, encoded.max_length, initial
        )
        expected = place.call(partial(trained_outputs, model, task, sample, pad_id))
        return replace(output, artifact=artifact), expected

    with place.base_released(engine):
        output, expected = train()
        gc.collect()  # the trained model, before the engine reads its weights again
    if output.artifact is None or expected is None:
        return output
    listener.stage("proving the artifact")
    proof = prove(expected, engine, output.artifact, task, sample)
    lengths = None if encoded.lengths is None else encoded.lengths.to_json()
    return replace(output, lengths=lengths, picture_size=encoded.picture_size, proof=proof)


# -------------------------------------------------------------------------------------- steps


class AdapterTrainer(Trainer):  # type: ignore[misc]  # untyped package
    """transformers' Trainer for a PEFT model, with our loss, validation, sampler and reports.

    Args:
        model: a PEFT model with an untrained adapter.
        adapter_task: collates examples and computes the outputs that the loss takes.
        train: the encoded training rows.
        settings: of the recipe.
        folder: gets the folder ``checkpoints``.
        inputs: digest of everything that determines the training.
        pad_id: id of the padding token.
        loss: called with outputs and targets.
        in_parts: whether a batch may be computed in parts; see ``LossSpec.is_mean``.
        metric: the deciding metric; names the validation score and its direction.
        validate: returns the score and the loss of the model on the validation rows.
        listener, log, should_stop, place: as for :func:`train_adapter`.
        augmentation: of pictures.
    """

    control: Any
    optimizer: Any
    on_validation: OnValidation | None = None

    def __init__(
        self,
        model: Any,
        adapter_task: AnyTask,
        train: EncodedRows,
        settings: Settings,
        folder: Path,
        *,
        inputs: str,
        pad_id: int,
        loss: LossFunction,
        in_parts: bool,
        metric: MetricSpec,
        validate: Callable[[Any], Validation],
        listener: ProgressListener,
        log: Log,
        should_stop: Callable[[], bool],
        place: Place = ALONE,
        augmentation: augmenting.PictureAugmentation | None = None,
    ) -> None:
        self.adapter_task, self.settings, self.place = adapter_task, settings, place
        self.augmentation, self.pad_id = augmentation, pad_id
        self.checkpoints, self.inputs = folder / CHECKPOINTS, inputs
        self.encoded, self.loss, self.validate = train, loss, validate
        self.metric, self.listener, self.in_parts = metric, listener, in_parts
        self.sampler = ResumableSampler(
            [size_of(example) for example in train.examples],
            settings.per_device_train_batch_size
            * settings.gradient_accumulation_steps
            * processes(),
        )
        self.pictures = PIXELS in train.examples[0]
        self.reporter = Reporter(metric, listener, log, should_stop, tokens=not self.pictures)
        super().__init__(
            model=model,
            args=training_arguments(
                settings,
                len(train.examples),
                self.checkpoints,
                model.device,
                "image" if self.pictures else "text",
            ),
            train_dataset=[{**one, ROWS: row} for row, one in enumerate(train.examples)],
            eval_dataset=[{**one, ROWS: row} for row, one in enumerate(train.examples[:1])],
            data_collator=lambda rows: self._collate([*map(augmenting.without_pixels, rows)]),
            callbacks=[self.reporter],
        )
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True  # by compute_loss
        compute = self.accelerator.backward
        self.accelerator.backward = lambda loss: place.backward(loss, compute)
        self.frozen = self._frozen_layers() if place.count == 1 and not self.pictures else None
        self.remove_callback(PrinterCallback)  # prints every log entry as a dict

    def _frozen_layers(self) -> FrozenLayers | None:
        """The layers to skip, if the first batch has the same outputs without them."""
        layers = lora_targets(self.model.get_base_model(), self.settings)[1]
        frozen = FrozenLayers.of(self.model, layers, self.settings.frozen_cache_mib << 20)
        if frozen is None:
            return None
        first = range(self.settings.per_device_train_batch_size)
        inputs = self._inputs(first[: len(self.train_dataset)])
        self.model.eval()
        exact = frozen.is_exact(inputs, lambda: self.adapter_task.outputs(self.model, inputs)[0])
        self.model.train()
        frozen.bf16 = self.args.bf16
        return frozen if exact else None

    def _collate(self, examples: Sequence[Any]) -> dict[str, torch.Tensor]:
        """A batch with the indices of its rows."""
        batch = self.adapter_task.collate(examples, self.pad_id)
        return {**batch, ROWS: torch.tensor([example[ROWS] for example in examples])}

    def _part(self, rows: Sequence[int], part: Sequence[int]) -> dict[str, torch.Tensor]:
        """A part of the rows of a batch to train on; pictures as they are in this epoch."""
        examples = [self.train_dataset[rows[index]] for index in part]
        if not self.augmentation:
            return self._collate(examples)
        epoch = self.state.global_step // steps_per_epoch(self.settings, len(self.train_dataset))
        before = [self.train_dataset[rows[index - 1]] for index in part if len(rows) > 1]
        return self.augmentation.batch(examples, before, self._collate, epoch)

    def _inputs(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The batch of these rows, on the model's device."""
        inputs, device = self._collate([self.train_dataset[row] for row in rows]), self.model.device
        return {name: tensor.to(device) for name, tensor in inputs.items() if name != ROWS}

    @property
    def _frozen_state(self) -> str:
        """The file of a checkpoint that tells what this process kept of the frozen layers."""
        return f"frozen_{self.args.process_index}.json"

    def take_steps(self, *, resume: bool) -> TrainerOutput:
        """Train; afterwards the model has the best checkpoint's weights.

        A resumed training ends with the adapter of an uninterrupted one: it continues from the
        newest complete checkpoint, or begins again, and reports which to the listener.

        Raises:
            TrainingError: the loss is not a finite number, or the best checkpoint is damaged.
        """
        checkpoint = self._resume_point() if resume else None
        self.listener.stage("training")
        if checkpoint is not None:
            self.state = TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
        if checkpoint is None or not self._is_finished():
            examples = len(self.encoded.examples)
            if checkpoint and checkpoint.step % steps_per_epoch(self.settings, examples):
                self.sampler.restore(checkpoint.folder)
            if checkpoint and self.frozen is not None:
                self.frozen.restore(checkpoint.folder / self._frozen_state, self._inputs)
            self.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        train, state, seen = self.encoded, self.state, int(self.state.num_input_tokens_seen)
        output = TrainerOutput(
            steps=state.global_step,
            total_steps=state.max_steps,
            best_step=state.best_global_step or state.global_step,
            best_score=None if state.best_metric is None else float(state.best_metric),
            tokens_trained=None if self.pictures else seen,
            pictures_trained=seen if self.pictures else None,
            interrupted=self.reporter.stopped and not self._is_finished(),
            truncated=None if self.pictures else train.truncated,
            longest=None if self.pictures else train.longest,
        )
        self.optimizer = self.lr_scheduler = None
        self.model.zero_grad()
        if not output.interrupted:
            load_weights(self.model, self.checkpoints / f"checkpoint-{output.best_step}")
        return output

    def _resume_point(self) -> Checkpoint | None:
        """The checkpoint to continue from; reports it, and removes newer ones."""
        point = find_resume_point(self.checkpoints, self.inputs)
        for problem in point.skipped:
            self.listener.stage(f"not resumable: {problem}")
        if point.checkpoint is None:
            self.listener.stage("no complete checkpoint: beginning again")
        elif point.checkpoint.finished:
            self.listener.stage("all steps are finished; none is repeated")
        else:
            self.listener.stage(f"resuming after step {point.checkpoint.step}")
        wait_for_all()
        if is_first():
            remove_checkpoints_after(self.checkpoints, point.checkpoint)
        return point.checkpoint

    def _selection(self) -> Selection | None:
        return select_best(self.state.log_history, higher_is_better=self.metric.higher_is_better)

    def _is_finished(self) -> bool:
        """Whether an uninterrupted training takes no step after this one."""
        best = self._selection()
        patience = self.settings.early_stopping_patience
        stopped_early = best is not None and best.ends_training(patience)
        return stopped_early or self.state.global_step >= self.state.max_steps

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best = self._selection()
        if best is None:
            return False
        self.state.best_metric, self.state.best_global_step = best.score, best.step
        return best.since == 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = self.checkpoints / f"checkpoint-{self.state.global_step}"
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)
        wait_for_all()
        super()._save_checkpoint(model, trial)
        wait_for_all()
        if is_first():
            seal_checkpoint(
                folder,
                training=self.inputs,
                step=self.state.global_step,
                best_step=self.state.best_global_step,
                finished=self._is_finished(),
            )
            remove_old_checkpoints(self.checkpoints)
        wait_for_all()

    def _get_train_sampler(self, *_: Any) -> ResumableSampler:
        return self.sampler

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.frozen is not None:
            self.frozen.save(Path(output_dir) / self._frozen_state)
        if is_first():
            self.sampler.save(Path(output_dir))

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        ratio = self.settings.loraplus_lr_ratio
        if ratio and self.optimizer is None:
            from peft.optimizers import create_loraplus_optimizer

            self.optimizer = create_loraplus_optimizer(
                self.model,
                torch.optim.AdamW,
                lr=self.settings.learning_rate,
                loraplus_lr_ratio=ratio,
                loraplus_weight_decay=self.settings.weight_decay,
            )
        return super().create_optimizer(*args, **kwargs)

    def _track_num_input_tokens(self, inputs: Any) -> None:
        if self.pictures:
            self.state.num_input_tokens_seen += total(len(inputs[ROWS]))
        else:
            super()._track_num_input_tokens(inputs)

    def _get_num_items_in_batch(self, batch_samples: Any, device: Any) -> Any:
        return total(sum(int((batch["targets"] != IGNORED).sum()) for batch in batch_samples))

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: int | None = None
    ) -> torch.Tensor:
        """One batch; in parts of similar length if it is large, which bounds the activations."""
        rows: list[int] = inputs[ROWS].tolist()
        lengths = [size_of(self.train_dataset[row]) for row in rows]
        limit = FORWARD_TOKENS.get(model.device.type, 16_384) // self.place.count
        parts = [*within_tokens(lengths, limit)] if self.in_parts else [[*range(len(rows))]]
        if len(parts) == 1 and not self.pictures:
            return self._pass(model, inputs, num_items_in_batch)
        losses = []
        for part in parts:
            last = part is parts[-1]  # processes add their gradients up once, after the last part
            with nullcontext() if last or processes() == 1 else model.no_sync():
                inputs = self._part(rows, part)
                losses.append(self._pass(model, inputs, num_items_in_batch))
        return torch.stack(losses).sum()

    def _pass(self, model: Any, inputs: Any, num_items_in_batch: int | None) -> torch.Tensor:
        """One forward and backward pass."""
        with self.place.passes(model):
            return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: int | None = None,
        **_: Any,
    ) -> Any:
        """The mean loss, weighted by the batch's share of the targets of an optimizer step.

        Accumulated batches thus give the gradient of one large batch, also if their answers have
        different numbers of tokens, and so do the averaged batches of several processes.
        """
        rows, mixed = inputs.pop(ROWS), augmenting.take_mixed(inputs)
        if self.frozen is None:
            outputs, targets = self.adapter_task.outputs(model, inputs)
        else:
            with self.frozen.skipped(rows.tolist(), inputs):
                outputs, targets = self.adapter_task.outputs(model, inputs)
        loss = augmenting.mixed_loss(self.loss, outputs, targets, mixed)
        if not bool(loss.isfinite()):
            raise TrainingError(
                f"The loss became {loss.item()} at step {self.state.global_step + 1}.",
                f"Use --set learning_rate={self.settings.learning_rate / 3:.0e}, or check the "
                "recipe's loss.",
            )
        if num_items_in_batch:
            loss = loss * (len(targets) * processes() / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _validate(self) -> Validation:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.args.bf16):
            return self.validate(self.model)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        self.listener.stage("validating")
        self.model.eval()
        result = self.place.call(self._validate)
        self.model.train()
        if self.on_validation is not None:
            step, total = self.state.global_step, self.state.max_steps
            batch = self.settings.per_device_train_batch_size
            taken = step * batch * self.settings.gradient_accumulation_steps * processes()
            self.on_validation(step, total, taken, result)
        metrics = {SCORE: result.score}
        if math.isfinite(result.loss):
            metrics[LOSS] = result.loss
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        if self._is_finished():
            self.control.should_training_stop = True
        self.listener.stage("training")
        return metrics
