"""What comes out of the steps: that it was learned, and that it is repeatable."""

from __future__ import annotations

import json
from collections.abc import Callable
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
from trunkline.training.job import TrainingJob
from trunkline.training.trainer import TrainerOutput, train_adapter

RECIPES = ("toy/animals", "toy/prices", "toy/plurals")


class Log:
    """Keeps the figures of every step."""

    def __init__(self) -> None:
        self.figures: list[dict[str, float]] = []

    def __call__(self, step: int, values: Any) -> None:
        self.figures.append({"step": step, **values})

    def named(self, name: str) -> list[float]:
        return [figures[name] for figures in self.figures if name in figures]


def train(
    platform: Platform,
    folder: Path,
    recipe: str = "toy/animals",
    *,
    log: Log | None = None,
    change: Callable[[TrainingJob], TrainingJob] = lambda training_job: training_job,
    **settings: Any,
) -> TrainerOutput:
    """Fit a recipe of the toy plugin, outside any run."""
    training_job = change(platform.training_job(recipe, {"max_steps": 4, **settings}))
    return train_adapter(
        training_job,
        prepare(training_job.dataset, training_job.recipe, training_job.transforms),
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
def test_same_seed_gives_the_same_digest(platform: Platform, tmp_path: Path, recipe: str) -> None:
    one = train(platform, tmp_path / "one", recipe, seed=5)
    other = train(platform, tmp_path / "other", recipe, seed=5)
    assert artifact_of(one).digest == artifact_of(other).digest


def test_same_seed_gives_the_same_digest_with_dropout(platform: Platform, tmp_path: Path) -> None:
    one = train(platform, tmp_path / "one", lora_dropout=0.2)
    other = train(platform, tmp_path / "other", lora_dropout=0.2)
    assert artifact_of(one).digest == artifact_of(other).digest


def test_another_seed_gives_another_digest(platform: Platform, tmp_path: Path) -> None:
    one = train(platform, tmp_path / "one", seed=0)
    other = train(platform, tmp_path / "other", seed=1)
    assert artifact_of(one).digest != artifact_of(other).digest


def test_digest_does_not_depend_on_what_was_drawn_before(
    platform: Platform, tmp_path: Path
) -> None:
    import torch

    one = train(platform, tmp_path / "one")
    torch.manual_seed(99)
    torch.rand(7)
    assert artifact_of(train(platform, tmp_path / "two")).digest == artifact_of(one).digest


def test_alpha_as_whole_number_or_not_is_the_same_adapter(
    platform: Platform, tmp_path: Path
) -> None:
    one = train(platform, tmp_path / "one", lora_alpha=8)
    other = train(platform, tmp_path / "other", lora_alpha="8.0")
    assert artifact_of(one).digest == artifact_of(other).digest


def test_tokens_of_every_pass_are_counted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", max_steps=0, num_train_epochs=2)
    assert done.tokens_trained == 2 * platform.plan("toy/animals", num_train_epochs=1).tokens


def test_truncated_prompts_are_counted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", max_length=8)
    assert done.truncated > 0
    assert done.longest == 8


def test_last_step_is_validated(platform: Platform, tmp_path: Path) -> None:
    log = Log()
    train(platform, tmp_path / "run", log=log, max_steps=5, evals_per_epoch=1)
    assert [f["step"] for f in log.figures if "validation.accuracy" in f] == [3, 5]


def scripted(scores: list[float]) -> Callable[[TrainingJob], TrainingJob]:
    """Ingredients whose validation gives these scores, one after another."""
    given = iter(scores)

    def change(training_job: TrainingJob) -> TrainingJob:
        metric = replace(training_job.deciding_metric, compute=lambda _: next(given))
        return replace(training_job, metrics=(metric,))

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


def test_no_patience_means_no_early_stopping(platform: Platform, tmp_path: Path) -> None:
    done = train(
        platform,
        tmp_path / "run",
        change=scripted([0.5, 0.4, 0.3, 0.2]),
        max_steps=4,
        evals_per_epoch=3,
        early_stopping_patience=0,
    )
    assert done.steps == 4


def test_best_checkpoint_is_what_is_written(platform: Platform, tmp_path: Path) -> None:
    choice = {"evals_per_epoch": 3, "lr_scheduler_type": "constant", "warmup_ratio": 0.0}
    one = train(platform, tmp_path / "one", max_steps=1, **choice)
    other = train(
        platform, tmp_path / "other", max_steps=3, change=scripted([0.9, 0.1, 0.1]), **choice
    )
    assert other.best_step == 1
    assert artifact_of(one).manifest.weights == artifact_of(other).manifest.weights


def test_lower_is_better_where_the_metric_says_so(platform: Platform, tmp_path: Path) -> None:
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


def test_upper_layers_alone_are_adapted(platform: Platform, tmp_path: Path) -> None:
    names = adapted(artifact_of(train(platform, tmp_path / "run", layers_to_transform="top-1")))
    assert {name.split(".")[2] for name in names} == {"2"}
    assert len(names) == 7


def test_named_target_modules_alone_are_adapted(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", target_modules="q_proj, v_proj")
    assert {name.rpartition(".")[2] for name in adapted(artifact_of(done))} == {"q_proj", "v_proj"}


def test_rank_stabilized_scaling_survives(platform: Platform, tmp_path: Path) -> None:
    done = train(platform, tmp_path / "run", use_rslora=True, r=16)
    assert artifact_of(done).lora.scaling == pytest.approx(8 / 4)


def test_too_many_upper_layers_are_refused(platform: Platform, tmp_path: Path) -> None:
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


def test_artifact_has_no_trace_of_this_machine(platform: Platform, tmp_path: Path) -> None:
    folder = artifact_of(train(platform, tmp_path / "run")).folder
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("recipe", RECIPES)
def test_artifact_loaded_by_plain_peft_answers_the_same(
    platform: Platform, tmp_path: Path, tiny: Path, recipe: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from trunkline.data.encode import encode_prompt
    from trunkline.inference.forward import next_logits
    from trunkline.inference.request import Request, ResolvedRequest

    artifact = artifact_of(train(platform, tmp_path / "run", recipe, max_steps=8))
    read_artifact(artifact.folder, artifact.digest)
    engine = platform.engine
    ids = encode_prompt("two goats", artifact.manifest.make_template(), engine.base.tokenizer)
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
        found = torch.tensor(list(answer.probabilities.values()))
        assert torch.allclose(found, logits.softmax(-1), atol=1e-5)
    else:
        from trunkline.tasks import task_from_json

        task: Any = task_from_json(dict(artifact.manifest.task))
        assert answer.value == pytest.approx(task.unscaled(float(logits[0])), rel=1e-4)


# ------------------------------------------------------------------------------- what goes wrong


def with_loss(function: Any) -> Callable[[TrainingJob], TrainingJob]:
    """Ingredients whose plugin's loss is built into ``function``."""

    def change(training_job: TrainingJob) -> TrainingJob:
        assert training_job.loss is not None
        return replace(training_job, loss=replace(training_job.loss, build=lambda _: function))

    return change


def _raises(outputs: Any, targets: Any) -> Any:
    raise ZeroDivisionError("division by zero\nwith more lines")


LOSSES: dict[str, tuple[Any, str]] = {
    "raises": (_raises, "ZeroDivisionError: division by zero"),
    "a value a row": (lambda outputs, targets: outputs.sum(-1), r"shape \(\d+,\)"),
    "no tensor": (lambda outputs, targets: 0.5, "0.5"),
    "None": (lambda outputs, targets: None, "None"),
    "detached": (lambda outputs, targets: outputs.detach().sum(), "doesn't depend"),
    "no function": (7, "TypeError"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_broken_loss_is_told_with_its_name(platform: Platform, tmp_path: Path, loss: str) -> None:
    function, words = LOSSES[loss]
    with pytest.raises(PluginError, match=words) as caught:
        train(platform, tmp_path / "run", change=with_loss(function))
    assert "toy/soft" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_loss_that_can_not_be_built_is_told_with_its_name(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_plugin, "soft_loss", lambda context: {}["weights"])
    with pytest.raises(PluginError, match="toy/soft can't be built: KeyError"):
        train(platform, tmp_path / "run")


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_loss_that_is_no_number_ends_the_training(
    platform: Platform, tmp_path: Path, factor: float
) -> None:
    change = with_loss(lambda outputs, targets: outputs.sum() * factor)
    with pytest.raises(TrainingError, match="at step 1") as caught:
        train(platform, tmp_path / "run", change=change)
    assert "learning_rate" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda scored: 1 / 0, "ZeroDivisionError"),
        (lambda scored: "much", "ValueError"),
        (lambda scored: float("nan"), "returned nan"),
    ],
)
def test_broken_metric_is_told_with_its_name(
    platform: Platform, tmp_path: Path, compute: Callable[[Scored], Any], words: str
) -> None:
    def change(training_job: TrainingJob) -> TrainingJob:
        metric = replace(training_job.deciding_metric, name="toy/broken", compute=compute)
        return replace(training_job, metrics=(metric,))

    with pytest.raises(PluginError, match=f"toy/broken.*{words}"):
        train(platform, tmp_path / "run", change=change)


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_answer_longer_than_may_be_generated_is_refused_before_training(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    training_job = platform.training_job("toy/plurals", {})
    prepared = prepare(training_job.dataset, training_job.recipe)
    chosen = getattr(prepared.split, part)[0].id
    read = toy_plugin.read_plurals

    def change(found: TrainingJob) -> TrainingJob:
        rows = [
            replace(row, target="a very long answer indeed") if row.id == chosen else row
            for row in read()
        ]
        return replace(found, dataset=replace(found.dataset, load=lambda: rows))

    log = Log()
    with pytest.raises(DataError, match="would cut it off") as caught:
        train(platform, tmp_path / "run", "toy/plurals", change=change, log=log)
    assert chosen in caught.value.message
    assert not log.figures


def test_answer_beyond_max_length_is_refused(platform: Platform, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would cut the answer off") as caught:
        train(platform, tmp_path / "run", "toy/plurals", max_length=20)
    assert "max_length=" in (caught.value.hint or "")


def lengthened(training_job: TrainingJob) -> TrainingJob:
    rows = [replace(row, text=f"{row.text} {'very ' * 400}") for row in training_job.dataset.load()]
    return replace(training_job, dataset=replace(training_job.dataset, load=lambda: rows))


def test_a_row_longer_than_the_context_is_refused_before_training(
    platform: Platform, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="the base's context is 256"):
        train(platform, tmp_path / "run", change=lengthened, max_length=4000)
    assert not (tmp_path / "run").exists()
