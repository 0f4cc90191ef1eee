"""Training of one adapter: it learns, is reproducible, and stops on invalid input."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import toy_plugin
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.api import Platform
from trunkline.contracts import NoProgress, Scored
from trunkline.data.prepare import prepare
from trunkline.errors import DataError, NotFoundError, PluginError, TrainingError, UsageError
from trunkline.inference.engine import Engine
from trunkline.inference.request import Request, ResolvedRequest
from trunkline.settings import SCHEDULERS
from trunkline.training import together, trainer
from trunkline.training.job import TrainingJob
from trunkline.training.trainer import TrainerOutput, train_adapter
from workbench import RECIPES, SETTINGS, TrainedAdapter


class Log:
    """Records the metrics of every step."""

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    def __call__(self, step: int, values: Any) -> None:
        self.entries.append({"step": step, **values})

    def named(self, name: str) -> list[float]:
        return [entry[name] for entry in self.entries if name in entry]


def train(
    platform: Platform,
    folder: Path,
    recipe: str = "toy/animals",
    *,
    log: Log | None = None,
    change: Callable[[TrainingJob], TrainingJob] = lambda job: job,
    **settings: Any,
) -> TrainerOutput:
    """Train a recipe of the toy plugin, outside any run."""
    job = change(platform.training_job(recipe, {"max_steps": 4, **settings}))
    return train_adapter(
        job,
        prepare(job.dataset, job.recipe, job.transforms),
        platform.engine,
        folder,
        listener=NoProgress(),
        log=log or Log(),
        should_stop=lambda: False,
    )


def artifact_of(done: TrainerOutput) -> Artifact:
    assert done.artifact is not None
    return done.artifact


@pytest.mark.parametrize("recipe", RECIPES)
def test_loss_falls(platform: Platform, tmp_path: Path, recipe: str) -> None:
    log = Log()
    rate = {
        "learning_rate": 0.01,
        "warmup_ratio": 0.0,
        "evals_per_epoch": 5,
        "early_stopping_patience": 0,
    }
    train(platform, tmp_path / "run", recipe, log=log, max_steps=30, **rate)
    losses = log.named("loss")
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_same_seed_gives_the_same_digest(
    platform: Platform, trained: dict[str, TrainedAdapter], tmp_path: Path, recipe: str
) -> None:
    import torch

    torch.manual_seed(99)
    torch.rand(7)
    again = train(platform, tmp_path / "run", recipe, **SETTINGS)
    assert artifact_of(again).digest == trained[recipe].digest


def test_another_seed_gives_another_digest(
    platform: Platform, trained: dict[str, TrainedAdapter], tmp_path: Path
) -> None:
    other = train(platform, tmp_path / "run", **{**SETTINGS, "seed": 3})
    assert artifact_of(other).digest != trained["toy/animals"].digest


def test_lora_alpha_as_integer_or_float_gives_the_same_adapter(
    platform: Platform, trained: dict[str, TrainedAdapter], tmp_path: Path
) -> None:
    assert platform.catalog.recipe("toy/animals").settings.lora_alpha == 8
    other = train(platform, tmp_path / "run", lora_alpha="8.0", **SETTINGS)
    assert artifact_of(other).digest == trained["toy/animals"].digest


def test_tokens_of_every_pass_are_counted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", max_steps=0, num_train_epochs=2)
    assert done.tokens_trained == 2 * platform.plan("toy/animals", num_train_epochs=1).tokens


def test_truncated_prompts_are_counted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", max_length=14)
    assert done.truncated > 0
    assert done.longest <= 14
    assert done.lengths is not None
    assert done.lengths["limit"] == 14
    assert done.lengths["truncated"] >= done.truncated
    assert artifact_of(done).manifest.max_length == 14


def test_last_step_is_validated(platform: Platform, tmp_path: Path) -> None:
    log = Log()
    train(platform, tmp_path / "run", log=log, max_steps=5, evals_per_epoch=1)
    assert [entry["step"] for entry in log.entries if "validation.accuracy" in entry] == [3, 5]


def scripted(scores: list[float]) -> Callable[[TrainingJob], TrainingJob]:
    """Let the validations of a job give these scores, one after another."""
    given = iter(scores)

    def change(job: TrainingJob) -> TrainingJob:
        metric = replace(job.deciding_metric, compute=lambda _: next(given))
        return replace(job, metrics=(metric,))

    return change


def test_early_stopping_ends_after_the_patience(platform: Platform, tmp_path: Path) -> None:
    done = train(
        platform,
        tmp_path / "run",
        change=scripted([0.5, 0.4, 0.3, 0.2, 0.1, 0.0]),
        max_steps=6,
        evals_per_epoch=3,
        early_stopping_patience=2,
    )
    assert (done.steps, done.best_step) == (3, 1)


def test_patience_of_zero_disables_early_stopping(platform: Platform, tmp_path: Path) -> None:
    done = train(
        platform,
        tmp_path / "run",
        change=scripted([0.5, 0.4, 0.3, 0.2]),
        max_steps=4,
        evals_per_epoch=3,
        early_stopping_patience=0,
    )
    assert done.steps == 4


def test_best_checkpoint_is_written(platform: Platform, tmp_path: Path) -> None:
    choice = {"evals_per_epoch": 3, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    one = train(platform, tmp_path / "one", max_steps=1, **choice)
    other = train(
        platform, tmp_path / "other", max_steps=3, change=scripted([0.9, 0.1, 0.1]), **choice
    )
    assert other.best_step == 1
    assert artifact_of(one).manifest.weights == artifact_of(other).manifest.weights


def test_lower_score_is_better_if_the_metric_says_so(platform: Platform, tmp_path: Path) -> None:
    done = train(
        platform,
        tmp_path / "run",
        "toy/prices",
        change=scripted([0.9, 0.1, 0.5]),
        max_steps=3,
        evals_per_epoch=3,
    )
    assert (done.best_step, done.best_score) == (2, 0.1)


# ------------------------------------------------------------------------------- what is adapted


def adapted(artifact: Artifact) -> set[str]:
    return {name.split(".lora_")[0].removeprefix("base_model.model.") for name in artifact.tensors
            if "lora_A" in name}  # fmt: skip


def test_only_the_top_layers_are_adapted(platform: Platform, tmp_path: Path) -> None:
    names = adapted(artifact_of(train(platform, tmp_path / "run", layers_to_transform="top-1")))
    assert {name.split(".")[2] for name in names} == {"2"}
    assert len(names) == 7


def test_only_the_numbered_layers_are_adapted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", layers_to_transform=[0, 2], max_steps=1)
    assert {name.split(".")[2] for name in adapted(artifact_of(done))} == {"0", "2"}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_trains(platform: Platform, tmp_path: Path, scheduler: str) -> None:
    done = train(platform, tmp_path / "run", max_steps=2, lr_scheduler_type=scheduler)
    assert done.steps == 2


def test_only_named_target_modules_are_adapted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", target_modules="q_proj, v_proj")
    assert {name.rpartition(".")[2] for name in adapted(artifact_of(done))} == {"q_proj", "v_proj"}


def test_rank_stabilized_scaling_is_saved(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", use_rslora=True, r=16)
    assert artifact_of(done).lora.scaling == pytest.approx(8 / 4)


def test_too_many_top_layers_are_refused(platform: Platform, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is 'top-9', but the base has 3") as caught:
        train(platform, tmp_path / "run", layers_to_transform="top-9")
    assert "top-3 or less" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["qproj", "q_proj,qproj", "lm_head", "embed_tokens", "score"])
def test_unknown_target_module_is_refused(platform: Platform, tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        train(platform, tmp_path / "run", target_modules=name)
    assert "q_proj" in (caught.value.hint or "")


def test_no_target_module_is_refused(platform: Platform, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="contains no name"):
        train(platform, tmp_path / "run", target_modules=" , ")


# -------------------------------------------------------------------------------- plain PEFT


def test_artifact_has_no_trace_of_this_machine(
    trained: dict[str, TrainedAdapter], trained_workspace: Path
) -> None:
    folder = trained["toy/animals"].folder
    for path in folder.iterdir():
        assert str(trained_workspace).encode() not in path.read_bytes()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("recipe", RECIPES)
def test_artifact_loaded_by_plain_peft_gives_the_same_outputs(
    platform: Platform, trained: dict[str, TrainedAdapter], tiny: Path, recipe: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from trunkline.data.encode import encode_prompt
    from trunkline.inference.forward import next_logits
    from trunkline.inference.request import Request, ResolvedRequest

    artifact = read_artifact(trained[recipe].folder, trained[recipe].digest)
    engine = platform.engine
    ids = encode_prompt("two goats", artifact.manifest.make_template(), engine.base.tokenizer).ids
    work = ResolvedRequest(Request(recipe, "two goats"), artifact)
    if recipe == "toy/plurals":
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny), artifact.folder
        ).eval()
        theirs = next_logits(plain, [ids], 0)
        engine.run([work])
        with engine.pool.activate(artifact.digest):
            ours = next_logits(engine.base.model, [ids], 0)
        assert torch.allclose(ours, theirs, atol=1e-5)
        return
    outputs = 3 if recipe == "toy/animals" else 1
    plain = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=outputs),
        artifact.folder,
    ).eval()
    with torch.inference_mode():
        logits = plain(torch.tensor([ids])).logits[0]
    answer = engine.run([work])[0]
    if recipe == "toy/animals":
        assert answer.probabilities is not None
        probabilities = torch.tensor(list(answer.probabilities.values()))
        assert torch.allclose(probabilities, logits.softmax(-1), atol=1e-5)
    else:
        from trunkline.tasks import task_from_json

        task: Any = task_from_json(dict(artifact.manifest.task))
        assert answer.value == pytest.approx(task.unscaled(float(logits[0])), rel=1e-4)


# ------------------------------------------------------------------------------- what goes wrong


def with_loss(function: Any) -> Callable[[TrainingJob], TrainingJob]:
    """Replace the loss function of a job."""

    def change(job: TrainingJob) -> TrainingJob:
        assert job.loss is not None
        return replace(job, loss=replace(job.loss, build=lambda _: function))

    return change


def _raises(outputs: Any, targets: Any) -> Any:
    raise ZeroDivisionError("division by zero\nwith more lines")


LOSSES: dict[str, tuple[Any, str]] = {
    "raises": (_raises, "ZeroDivisionError: division by zero"),
    "a value a row": (lambda outputs, targets: outputs.sum(-1), r"shape \(\d+,\)"),
    "no tensor": (lambda outputs, targets: 0.5, "0.5"),
    "None": (lambda outputs, targets: None, "None"),
    "detached": (lambda outputs, targets: outputs.detach().sum(), "doesn't depend"),
    "no function": (7, "can't be called"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_error_of_a_loss_names_it(platform: Platform, tmp_path: Path, loss: str) -> None:
    function, pattern = LOSSES[loss]
    with pytest.raises(PluginError, match=pattern) as caught:
        train(platform, tmp_path / "run", change=with_loss(function))
    assert "toy/soft" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_error_of_building_a_loss_names_it(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_plugin, "soft_loss", lambda context: {}["weights"])
    with pytest.raises(PluginError, match="toy/soft failed: KeyError"):
        train(platform, tmp_path / "run")


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_the_training(
    platform: Platform, tmp_path: Path, factor: float
) -> None:
    change = with_loss(lambda outputs, targets: outputs.sum() * factor)
    with pytest.raises(TrainingError, match="at step 1") as caught:
        train(platform, tmp_path / "run", change=change)
    assert "learning_rate" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("compute", "pattern"),
    [
        (lambda scored: 1 / 0, "ZeroDivisionError"),
        (lambda scored: "0.5", "gave '0.5', not a number"),
        (lambda scored: float("nan"), "returned nan"),
    ],
)
def test_error_of_a_metric_names_it(
    platform: Platform, tmp_path: Path, compute: Callable[[Scored], Any], pattern: str
) -> None:
    def change(job: TrainingJob) -> TrainingJob:
        metric = replace(job.deciding_metric, name="toy/broken", compute=compute)
        return replace(job, metrics=(metric,))

    with pytest.raises(PluginError, match=f"toy/broken.*{pattern}"):
        train(platform, tmp_path / "run", change=change)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_answer_longer_than_max_new_tokens_is_refused_before_training(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    job = platform.training_job("toy/plurals", {})
    prepared = prepare(job.dataset, job.recipe)
    chosen = getattr(prepared.split, part)[0].id
    read = toy_plugin.read_plurals

    def change(job: TrainingJob) -> TrainingJob:
        rows = [
            replace(row, target="a very long answer indeed") if row.id == chosen else row
            for row in read()
        ]
        return replace(job, dataset=replace(job.dataset, load=lambda: rows))

    log = Log()
    with pytest.raises(DataError, match="would cut it off") as caught:
        train(platform, tmp_path / "run", "toy/plurals", change=change, log=log)
    assert chosen in caught.value.message
    assert not log.entries


def test_template_beyond_max_length_is_refused(platform: Platform, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no room for the text") as caught:
        train(platform, tmp_path / "run", "toy/plurals", max_length=20)
    assert "max_length=" in (caught.value.hint or "")


def lengthened(job: TrainingJob) -> TrainingJob:
    rows = [replace(row, text=f"{row.text} {'very ' * 400}") for row in job.dataset.load()]
    return replace(job, dataset=replace(job.dataset, load=lambda: rows))


def test_texts_longer_than_the_context_are_cut_and_the_adapter_answers_them(
    platform: Platform, tmp_path: Path
) -> None:
    done = train(platform, tmp_path / "run", change=lengthened, max_length=4000, max_steps=1)
    artifact = artifact_of(done)
    assert artifact.manifest.max_length == 256
    assert done.longest <= 256
    assert done.lengths is not None
    assert done.lengths["limit"] == 256
    assert done.lengths["truncated"] == done.lengths["rows"] > 60
    work = ResolvedRequest(Request("toy/animals", f"a sparrow {'very ' * 400}"), artifact)
    assert platform.engine.run([work])[0].truncated


# ------------------------------------------------------------------------ accumulation, LoRA+


@pytest.mark.parametrize("recipe", RECIPES)
def test_accumulated_batches_are_one_large_batch(
    recipe: str, platform: Platform, tmp_path: Path
) -> None:
    common = {"max_steps": 5, "evals_per_epoch": 1, "precision": "fp32", "learning_rate": 2e-3}
    large, small = Log(), Log()
    train(platform, tmp_path / "1", recipe, log=large, per_device_train_batch_size=8, **common)
    train(
        platform, tmp_path / "2", recipe, log=small, per_device_train_batch_size=2,
        gradient_accumulation_steps=4, **common,
    )  # fmt: skip
    assert len(large.named("loss")) >= 4
    assert small.named("loss") == pytest.approx(large.named("loss"), abs=1e-4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_batch_in_parts_gives_the_same_losses(
    recipe: str, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"max_steps": 5, "evals_per_epoch": 1, "precision": "fp32", "learning_rate": 2e-3}
    complete, parts = Log(), Log()
    train(platform, tmp_path / "1", recipe, log=complete, **common)
    monkeypatch.setitem(trainer.FORWARD_TOKENS, "cpu", 24)
    train(platform, tmp_path / "2", recipe, log=parts, **common)
    assert len(complete.named("loss")) >= 4
    assert parts.named("loss") == pytest.approx(complete.named("loss"), abs=1e-4)
    assert parts.named("grad_norm") == pytest.approx(complete.named("grad_norm"), rel=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_frozen_layers_in_bf16_change_no_loss(
    recipe: str, platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = {"max_steps": 4, "evals_per_epoch": 2, "precision": "bf16", "learning_rate": 2e-3}
    held, cast = Log(), Log()
    one = train(platform, tmp_path / "1", recipe, log=held, **common)
    monkeypatch.setattr(together, "frozen_in_bf16", lambda *_: nullcontext())
    other = train(platform, tmp_path / "2", recipe, log=cast, **common)
    assert held.entries == cast.entries
    assert artifact_of(one).digest == artifact_of(other).digest


def test_batch_of_a_loss_that_compares_rows_stays_complete(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def build(context: Any) -> Any:
        return lambda outputs, targets: sizes.append(len(targets)) or outputs.square().mean()

    def change(job: TrainingJob) -> TrainingJob:
        return replace(job, loss=replace(job.loss, build=build, is_mean=False))

    monkeypatch.setitem(trainer.FORWARD_TOKENS, "cpu", 24)
    train(
        platform, tmp_path / "run", change=change, max_steps=1, evals_per_epoch=1,
        per_device_train_batch_size=8,
    )  # fmt: skip
    assert sizes[0] == 8


def test_requests_wait_while_a_training_has_the_memory(platform: Platform) -> None:
    before = platform.run([Request("base", "two goats", max_new_tokens=4)])[0]
    with platform.engine.base_released():
        handle = platform.submit(Request("base", "two goats", max_new_tokens=4))
        with pytest.raises(TimeoutError):
            handle.answer(timeout=0.2)
    assert handle.answer(timeout=60).text == before.text


def test_other_engine_on_the_base_answers_during_a_training(platform: Platform) -> None:
    request = ResolvedRequest(Request("base", "two goats", max_new_tokens=4))
    other = Engine(platform.engine.base)
    try:
        before = other.run([request])[0]
        with platform.engine.base_released():
            assert other.run([request])[0].text == before.text
    finally:
        other.close()


def test_lora_plus_trains_b_at_its_own_rate(platform: Platform, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def norms(folder: Path, **settings: Any) -> tuple[float, float]:
        output = train(platform, folder, max_steps=1, precision="fp32", **settings)
        assert output.artifact is not None
        tensors = load_file(output.artifact.folder / "adapter_model.safetensors")
        sizes = {"lora_A": 0.0, "lora_B": 0.0}
        for name, tensor in tensors.items():
            for key in sizes:
                sizes[key] += float(tensor.abs().sum()) if key in name else 0.0
        return sizes["lora_A"], sizes["lora_B"]

    plain = norms(tmp_path / "1", learning_rate=1e-4)
    plus = norms(tmp_path / "2", learning_rate=1e-4, loraplus_lr_ratio=16.0)
    assert plus[0] == pytest.approx(plain[0], rel=1e-4)
    assert plus[1] == pytest.approx(16 * plain[1], rel=1e-2)
