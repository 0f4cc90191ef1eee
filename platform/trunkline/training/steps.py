"""The optimizer steps: transformers' Trainer with our loss, our validation and our reports.

Owns: everything that happens between a fresh model and the best checkpoint. Must not know: the
registry, plugins, baselines.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from trunkline.contracts import LossFunction, MetricSpec, Settings
from trunkline.errors import TrainingError
from trunkline.tasks import AnyTask
from trunkline.training.checkpoints import Order, last_checkpoint, load_weights, step_of

_DONE = "steps.json"
"""Holds what the steps came to once they are all taken: a resumed run begins after them."""


class Listener(Protocol):
    """Whoever wants to hear how the work goes on."""

    def stage(self, text: str) -> None:
        """A new part of the work begins."""

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """``done`` of ``total`` optimizer steps, with the latest figures."""


class Silent:
    """Hears nothing."""

    def stage(self, text: str) -> None: ...

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, slots=True)
class Stepped:
    """What training came to; ``best_score`` is None if it was stopped before a validation."""

    steps: int
    total_steps: int
    best_step: int
    best_score: float | None
    tokens: int
    interrupted: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the steps need; ``validate`` gives the deciding metric on validation rows."""

    model: Any
    task: AnyTask
    examples: Sequence[dict[str, Any]]
    pad_id: int
    loss: LossFunction
    metric: MetricSpec
    validate: Callable[[Any], float]
    settings: Settings
    folder: Path
    bf16: bool
    resume: bool
    log: Callable[[int, Mapping[str, float]], None]
    listener: Listener
    should_stop: Callable[[], bool]


def total_steps(settings: Settings, examples: int) -> int:
    """Optimiser steps that a run takes if nothing stops it early."""
    if settings.max_steps:
        return settings.max_steps
    return max(1, math.ceil(settings.num_train_epochs * steps_per_epoch(settings, examples)))


def steps_per_epoch(settings: Settings, examples: int) -> int:
    """Optimiser steps of one pass over the examples."""
    return max(
        1,
        math.ceil(
            math.ceil(examples / settings.per_device_train_batch_size)
            / settings.gradient_accumulation_steps
        ),
    )


def validation_interval(settings: Settings, examples: int) -> int:
    """Steps between validations."""
    whole = min(steps_per_epoch(settings, examples), total_steps(settings, examples))
    return max(1, math.ceil(whole / settings.evals_per_epoch))


def warmup_steps(settings: Settings, examples: int) -> int:
    """Steps in which the learning rate rises; the first has none, so short runs do without."""
    share = settings.warmup_ratio * total_steps(settings, examples)
    return math.ceil(share) if share >= 1 else 0


def take_steps(plan: Plan) -> Stepped:
    """Train; at the end the model holds the best checkpoint's weights.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

    checkpoints, done = plan.folder / "checkpoints", plan.folder / _DONE
    if plan.resume and done.exists():
        stepped = Stepped(**json.loads(done.read_text(encoding="utf-8")))
        load_weights(plan.model, checkpoints / f"checkpoint-{stepped.best_step}")
        return stepped
    settings, task = plan.settings, plan.task
    every = validation_interval(settings, len(plan.examples))
    lengths = [len(example["input_ids"]) for example in plan.examples]
    order = Order(
        lengths, settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    )

    class _Steps(Trainer):  # type: ignore[misc]  # untyped package
        control: Any

        def _get_train_sampler(self, *_: Any) -> Order:
            return order

        def _save_rng_state(self, output_dir: str) -> None:
            super()._save_rng_state(output_dir)
            order.save(Path(output_dir))

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any
        ) -> Any:
            outputs, targets = task.outputs(model, inputs)
            loss = plan.loss(outputs, targets)
            if not bool(loss.isfinite()):
                raise TrainingError(
                    f"The loss became {loss.item()} at step {self.state.global_step + 1}.",
                    f"Use --set learning_rate={settings.learning_rate / 3:.0e}, or check the "
                    "recipe's loss.",
                )
            return (loss, outputs) if return_outputs else loss

        def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
            self.model.eval()
            figures = {f"{metric_key_prefix}_score": plan.validate(self.model)}
            self.model.train()
            self.log(figures)
            control: Any = self.callback_handler.on_evaluate(
                self.args, self.state, self.control, figures
            )
            self.control = control
            return figures

    class _Report(TrainerCallback):  # type: ignore[misc]  # untyped package
        def __init__(self) -> None:
            self.latest: dict[str, float] = {}
            self.stopped = False

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            plan.listener.progress(state.global_step, state.max_steps, self.latest)
            if state.global_step < state.max_steps and plan.should_stop():
                self.stopped = True
                control.should_training_stop = control.should_save = True
            return control

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            names = {"loss": "loss", "learning_rate": "learning_rate", "grad_norm": "grad_norm"}
            names["eval_score"] = f"validation.{plan.metric.name}"
            figures = {
                names[name]: float(value)
                for name, value in (logs or {}).items()
                if name in names and value is not None
            }
            self.latest.update(figures)
            plan.log(state.global_step, figures)

    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.num_train_epochs,
        max_steps=settings.max_steps or -1,
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=warmup_steps(settings, len(plan.examples)),
        weight_decay=settings.weight_decay,
        optim="adamw_torch",
        bf16=plan.bf16,
        use_cpu=plan.model.device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,
        load_best_model_at_end=True,
        metric_for_best_model="score",
        greater_is_better=plan.metric.higher_is_better,
        logging_strategy="steps",
        logging_steps=max(1, every // 5),
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        log_level="error",
    )
    report = _Report()
    callbacks: list[Any] = [report]
    if settings.early_stopping_patience:
        callbacks.append(
            EarlyStoppingCallback(early_stopping_patience=settings.early_stopping_patience)
        )
    trainer = _Steps(
        model=plan.model,
        args=arguments,
        train_dataset=list(plan.examples),
        eval_dataset=list(plan.examples[:1]),
        data_collator=lambda examples: task.collate(examples, plan.pad_id),
        callbacks=callbacks,
    )
    trainer.model_accepts_loss_kwargs = False
    _drop_printing(trainer)
    last = last_checkpoint(checkpoints) if plan.resume else None
    if last is not None and step_of(last) % steps_per_epoch(settings, len(plan.examples)):
        order.repeat(last)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    state = trainer.state
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    stepped = Stepped(
        steps=state.global_step,
        total_steps=state.max_steps,
        best_step=state.best_global_step or state.global_step,
        best_score=None if state.best_metric is None else float(state.best_metric),
        tokens=int(state.num_input_tokens_seen),
        interrupted=report.stopped,
    )
    if not stepped.interrupted:
        done.write_text(json.dumps(asdict(stepped)) + "\n", encoding="utf-8")
    return stepped


def _drop_printing(trainer: Any) -> None:
    """The Trainer prints every log entry as a dict; the listener is told instead."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
