"""Training rows a second: ours beside transformers' Trainer with PEFT, as their guides show it.

Both train LoRA of rank 16 on all linear layers, on the same rows of the plugin ``medical``, in
batches of 16 with lengths as they come, each in a process of its own and in turn. Seconds of
validation are not counted. Then the later epochs of a training of the upper third of the layers,
with the outputs of the layers below kept and computed each time. Prints medians, ratios and the
peak memory of each process; asserts nothing.
"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timing
from children import Child
from made import BASE
from timing import title

from trunkline.contracts import Row, Template
from trunkline.data.encode import encode_answer, encode_prompt

BATCH = 16
RECIPES = {"classification": "medical/icd10-chapter", "generation": "medical/icd10-title"}
LORA: Mapping[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0}


class StepClock:
    """A listener that keeps the seconds of each step, without those of validation."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._since = time.perf_counter()

    def stage(self, text: str) -> None:
        self._since = time.perf_counter()

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if len(self.steps) < done:
            self.steps.append(now - self._since)
        self._since = now


class Ours:
    """Trainings of a recipe."""

    def __init__(self, recipe: str, rows: int) -> None:
        import trunkline
        from trunkline.data.prepare import prepare

        self._platform = trunkline.open(tempfile.mkdtemp(), base=BASE)
        self._recipe, self._rows, self._prepare = recipe, rows, prepare

    def steps(self, settings: dict[str, Any]) -> list[float]:
        """Seconds of each step."""
        from trunkline.training.trainer import train_adapter

        common = {**LORA, "max_train_samples": self._rows, "evals_per_epoch": 1}
        job = self._platform.training_job(self._recipe, {**common, **settings})
        prepared = self._prepare(job.dataset, job.recipe, job.transforms)
        clock = StepClock()
        with tempfile.TemporaryDirectory() as folder:
            train_adapter(
                job,
                prepared,
                self._platform.engine,
                Path(folder),
                listener=clock,
                log=lambda step, values: None,
                should_stop=lambda: False,
            )
        return clock.steps

    def peak(self) -> float:
        """Peak memory of this process in GB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


class Peer(Ours):
    """transformers' Trainer and PEFT on the same rows."""

    def __init__(self, recipe: str, rows: int) -> None:
        from transformers import AutoTokenizer

        from trunkline.bases import describe

        super().__init__(recipe, rows)
        job = self._platform.training_job(recipe, {"max_train_samples": rows})
        prepared = self._prepare(job.dataset, job.recipe, job.transforms)
        self._labels = prepared.labels
        self._folder = describe(BASE).folder
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._examples = [self._encode(row, job.recipe.template) for row in prepared.split.train]

    def _encode(self, row: Row, template: Template) -> dict[str, Any]:
        """The same tokens as ours."""
        ids = encode_prompt(row.text, template, self._tokenizer, 128).ids
        if self._labels:
            return {"input_ids": ids, "labels": self._labels.index(str(row.target))}
        answer = encode_answer(str(row.target), self._tokenizer)
        return {"input_ids": ids + answer, "labels": [-100] * len(ids) + answer}

    def steps(self, settings: dict[str, Any]) -> list[float]:
        """Seconds of each step."""
        from peft import LoraConfig, get_peft_model
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForSequenceClassification,
            DataCollatorForTokenClassification,
            DataCollatorWithPadding,
            Trainer,
            TrainerCallback,
            TrainingArguments,
        )

        clock = StepClock()

        class Record(TrainerCallback):  # type: ignore[misc]  # untyped package
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.stage("training")

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                clock.progress(state.global_step, state.max_steps, {})

        if self._labels:
            model = AutoModelForSequenceClassification.from_pretrained(
                self._folder, num_labels=len(self._labels)
            )
            model.config.pad_token_id = self._tokenizer.pad_token_id
            collator: Any = DataCollatorWithPadding(self._tokenizer)
        else:
            model = AutoModelForCausalLM.from_pretrained(self._folder)
            collator = DataCollatorForTokenClassification(self._tokenizer)
        kind = "SEQ_CLS" if self._labels else "CAUSAL_LM"
        config = LoraConfig(task_type=kind, target_modules="all-linear", **LORA)
        with tempfile.TemporaryDirectory() as folder:
            Trainer(
                model=get_peft_model(model, config),
                args=TrainingArguments(
                    output_dir=folder,
                    per_device_train_batch_size=BATCH,
                    max_steps=settings["max_steps"],
                    learning_rate=5e-4,
                    bf16=settings["precision"] == "bf16",
                    use_cpu=True,
                    report_to="none",
                    disable_tqdm=True,
                    logging_strategy="no",
                    save_strategy="no",
                ),
                train_dataset=self._examples,
                data_collator=collator,
                callbacks=[Record()],
            ).train()
        return clock.steps


def speed(steps: Sequence[float]) -> float:
    """Rows a second, without the first two steps."""
    return BATCH / statistics.mean(steps[2:])


def main() -> None:
    options = timing.options(__doc__).parse_args()
    timing.say_where(None)
    rounds, steps = (1, 4) if options.quick else (3, 14)
    for task, recipe in RECIPES.items():
        with ExitStack() as stack:
            ours = stack.enter_context(Child(Ours, recipe, BATCH * steps))
            peer = stack.enter_context(Child(Peer, recipe, BATCH * steps))
            speeds: dict[str, list[float]] = {"ours": [], "peer": []}
            settings = {"max_steps": steps, "precision": "fp32"}
            for _ in range(rounds):
                for name, child in (("ours", ours), ("peer", peer)):
                    speeds[name].append(speed(child.ask("steps", settings)))
            peaks = {"ours": ours.ask("peak"), "peer": peer.ask("peak")}
        medians = {name: statistics.median(values) for name, values in speeds.items()}
        title(f"{task}, fp32 (targets: 1.5x for labels, 2x for short answers; memory 0.6x)")
        for name, value in medians.items():
            print(
                f"  {name:<6} {value:6.1f} rows/s, {value / medians['peer']:4.2f}x; "
                f"peak {peaks[name]:.2f} GB, {peaks[name] / peaks['peer']:4.2f}x"
            )
    frozen(rounds, 3 if options.quick else 6)


def frozen(rounds: int, epoch: int) -> None:
    """Later epochs of the upper third of the layers, with the layers below kept or not."""
    settings = {
        "num_train_epochs": 2.0, "layers_to_transform": "top-10", "precision": "fp32",
        "early_stopping_patience": 0,
    }  # fmt: skip
    times: dict[str, list[float]] = {"kept": [], "computed each time": []}
    with Child(Ours, RECIPES["classification"], BATCH * epoch) as ours:
        for _ in range(rounds):
            for name, budget in (("kept", 2048), ("computed each time", 0)):
                taken = ours.ask("steps", {**settings, "frozen_cache_mib": budget})
                times[name].append(statistics.mean(taken[epoch:]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    title("Upper 10 of 30 layers, later epochs (target: 3x)")
    for name, value in medians.items():
        ratio = medians["computed each time"] / value
        print(f"  {name:<20} {BATCH / value:6.1f} rows/s, {ratio:4.2f}x")


if __name__ == "__main__":
    main()
