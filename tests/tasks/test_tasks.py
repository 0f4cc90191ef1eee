"""Tasks: targets are encoded, batched, computed and decoded; a task survives JSON."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_rows import make_recipe, make_row
from tiny_base import make_model, make_tokenizer
from trunkline.contracts import LossContext
from trunkline.data.encode import Prompt
from trunkline.errors import IntegrityError
from trunkline.plugins import load_plugins
from trunkline.tasks import (
    AnyTask,
    ClassificationTask,
    GenerationTask,
    MultilabelTask,
    RankingTask,
    RegressionTask,
    TaggingTask,
    task_for,
    task_from_json,
)
from trunkline.tasks.batches import by_length, pad, within_tokens
from trunkline.tasks.generation import IGNORED

quick = settings(max_examples=50, deadline=None)

CLASSES = ClassificationTask(("b", "a", "c"))
PRICES = RegressionTask("log", 1.5, 0.5, "USD")
ANSWERS = GenerationTask(8)
COLORS = MultilabelTask(("red", "blue"), 0.3)
finite = st.floats(-1e6, 1e6)
positive = st.floats(1e-6, 1e6)
scales = st.sampled_from(["linear", "log"])


@cache
def tokenizer() -> Any:
    return make_tokenizer()


# ---------------------------------------------------------------------------------- batches


@quick
@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_padding_keeps_ids_where_the_mask_says(sequences: list[list[int]]) -> None:
    for left in (False, True):
        batch = pad(sequences, 0, left=left)
        longest = max(map(len, sequences))
        assert batch["input_ids"].shape == batch["attention_mask"].shape
        assert batch["input_ids"].shape == (len(sequences), longest)
        for row, ids in enumerate(sequences):
            mask = batch["attention_mask"][row].bool()
            assert batch["input_ids"][row][mask].tolist() == ids
            assert bool(mask[-1 if left else 0])


def test_positions_count_from_the_first_real_token() -> None:
    batch = pad([[5, 6, 7], [8]], 0, left=True)

    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


@quick
@given(lengths=st.lists(st.integers(1, 60), max_size=40), limit=st.integers(1, 200))
def test_batches_within_tokens_hold_every_row_once_and_no_more(
    lengths: list[int], limit: int
) -> None:
    batches = list(within_tokens(lengths, limit))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= limit


@given(lengths=st.lists(st.integers(1, 50), max_size=30), size=st.integers(1, 8))
def test_batches_by_length_hold_every_row_once_the_longest_first(
    lengths: list[int], size: int
) -> None:
    batches = list(by_length(lengths, size))
    order = [index for batch in batches for index in batch]

    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)
    assert all(len(batch) <= size for batch in batches)


# --------------------------------------------------------------------------- classification


def prompts(ids: list[int]) -> list[Prompt]:
    return [Prompt(ids, "", len(ids))]


def test_label_is_encoded_by_its_place_in_the_head() -> None:
    example = CLASSES.example(prompts([4, 5]), make_row(1, target="a"), None)

    assert example == {"input_ids": [4, 5], "target": 1}


def test_classification_batch_holds_indices() -> None:
    examples = [
        CLASSES.example(prompts([4] * n), make_row(n, target="bac"[n - 1]), None) for n in (1, 2, 3)
    ]
    batch = CLASSES.collate(examples, 0)

    assert batch["input_ids"].shape == (3, 3)
    assert batch["targets"].tolist() == [0, 1, 2]
    assert str(batch["targets"].dtype) == "torch.int64"


def test_classification_is_decoded_to_the_likeliest_label_and_all_probabilities() -> None:
    import torch

    decoded = CLASSES.decode(torch.tensor([[0.0, 3.0, 0.0], [5.0, 1.0, 1.0]]))

    assert [label for label, _ in decoded] == ["a", "b"]
    for _, chances in decoded:
        assert len(chances) == 3
        assert sum(chances) == pytest.approx(1)


def test_label_counts_are_of_the_training_rows() -> None:
    rows = [make_row(n, target=label) for n, label in enumerate("aab")]
    context = CLASSES.loss_context(rows)

    assert context.labels == CLASSES.labels
    assert dict(context.counts) == {"a": 2, "b": 1}


# ------------------------------------------------------------------------------- regression


@quick
@given(mean=finite, deviation=positive, target=finite)
def test_linear_scale_comes_back(mean: float, deviation: float, target: float) -> None:
    task = RegressionTask("linear", mean, deviation, "USD")

    back = task.unscaled(task.scaled(target))
    assert back == pytest.approx(target, rel=1e-9, abs=1e-6)


@quick
@given(mean=st.floats(-10, 10), deviation=st.floats(0.01, 10), target=positive)
def test_log_scale_comes_back(mean: float, deviation: float, target: float) -> None:
    task = RegressionTask("log", mean, deviation, "USD")

    assert task.unscaled(task.scaled(target)) == pytest.approx(target, rel=1e-6)


@quick
@given(output=st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_log_scale_gives_a_finite_number_that_is_not_negative(output: float) -> None:
    value = PRICES.unscaled(output)

    assert math.isfinite(value * value)
    assert value >= 0


@quick
@given(
    targets=st.lists(positive, min_size=2, max_size=30), scale=st.sampled_from(["linear", "log"])
)
def test_fitted_scale_has_mean_0_and_deviation_1(targets: list[float], scale: str) -> None:
    task = RegressionTask.fitted(targets, scale=scale, unit="")
    scaled = [task.scaled(target) for target in targets]

    if max(targets) > min(targets) * 1.001:  # else rounding decides
        assert sum(scaled) / len(scaled) == pytest.approx(0, abs=1e-6)
        assert sum(one**2 for one in scaled) / len(scaled) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("targets", [[3.0], [3.0, 3.0, 3.0]])
def test_equal_targets_are_scaled_to_zero(targets: list[float]) -> None:
    task = RegressionTask.fitted(targets, scale="linear", unit="")

    assert task.deviation == 1
    assert task.scaled(3.0) == 0


def test_regression_batch_holds_scaled_floats() -> None:
    examples = [PRICES.example(prompts([4, 5]), make_row(n, target=target), None)
                for n, target in enumerate((math.exp(1.5), math.exp(2.0)))]  # fmt: skip
    batch = PRICES.collate(examples, 0)

    assert batch["targets"].tolist() == pytest.approx([0, 1])
    assert str(batch["targets"].dtype) == "torch.float32"


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regression_is_decoded_to_numbers_in_the_unit(shape: tuple[int, ...]) -> None:
    import torch

    decoded = PRICES.decode(torch.tensor([0.0, 1.0]).reshape(shape))

    assert [value for value, _ in decoded] == pytest.approx([math.exp(1.5), math.exp(2.0)])


# ------------------------------------------------------------------------------- generation


def generation_batch(*pairs: tuple[list[int], str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Examples and batch of prompts with answers."""
    examples = [
        ANSWERS.example(prompts(prompt), make_row(number, target=answer), tokenizer())
        for number, (prompt, answer) in enumerate(pairs)
    ]
    return examples, ANSWERS.collate(examples, tokenizer().pad_token_id)


def test_example_is_the_prompt_then_the_answer_then_the_end() -> None:
    examples, _ = generation_batch(([7, 8, 9], "milk"))
    answer = tokenizer()("milk").input_ids

    assert examples[0]["input_ids"] == [7, 8, 9, *answer, tokenizer().eos_token_id]
    assert examples[0]["answer"] == len(answer) + 1


@quick
@given(
    st.lists(
        st.tuples(st.lists(st.integers(3, 99), min_size=1, max_size=12), st.text(max_size=6)),
        min_size=1,
        max_size=5,
    )
)
def test_targets_are_the_answers_with_their_end_and_nothing_else(
    pairs: list[tuple[list[int], str]],
) -> None:
    examples, batch = generation_batch(*pairs)

    assert batch["targets"].shape == (len(pairs), max(one["answer"] for one in examples))
    for row, example in enumerate(examples):
        real = batch["targets"][row]
        assert real[real != IGNORED].tolist() == example["input_ids"][-example["answer"] :]
        assert int((real == IGNORED).sum()) == len(real) - example["answer"]
        assert real[-1] == tokenizer().eos_token_id


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_logits_stand_at_the_tokens_before_the_answers_whatever_the_padding(family: Any) -> None:
    import torch

    torch.manual_seed(0)
    pad_id, end = tokenizer().pad_token_id, tokenizer().eos_token_id
    model = make_model(family, len(tokenizer()), pad_id, end).eval()
    pairs = [([7, 8, 9, 10, 11, 12, 13], "milk"), ([20], "a much longer answer"), ([30, 31], "")]
    examples, batch = generation_batch(*pairs)
    with torch.inference_mode():
        logits, ids = ANSWERS.outputs(model, batch)
        alone = []
        for example in examples:
            logits_all = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
            alone.append(logits_all[-example["answer"] - 1 : -1])

    assert ids.tolist() == [one for ex in examples for one in ex["input_ids"][-ex["answer"] :]]
    assert logits.shape == (len(ids), len(tokenizer()))
    torch.testing.assert_close(logits, torch.cat(alone), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("task", [CLASSES, ANSWERS, PRICES], ids=lambda task: task.kind)
def test_default_loss_is_smaller_for_the_better_output(task: AnyTask) -> None:
    import torch

    catalog = load_plugins(no_plugins=True)
    spec = catalog.loss_for(make_recipe(task.kind))
    loss = spec.build(LossContext(labels=task.labels, options=spec.options))
    if isinstance(task, RegressionTask):
        good, bad, targets = torch.tensor([0.1]), torch.tensor([2.0]), torch.tensor([0.0])
    else:
        targets = torch.tensor([1])
        good, bad = torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[5.0, 0.0, 0.0]])

    assert loss(good, targets).shape == ()
    assert float(loss(good, targets)) < float(loss(bad, targets))


# ------------------------------------------------------------------------------------ JSON


def test_task_of_a_recipe_is_fitted_on_its_training_rows() -> None:
    rows = [make_row(n, target=float(n)) for n in (1, 3)]

    assert task_for(make_recipe(), ("a", "b"), rows, None) == ClassificationTask(("a", "b"))
    assert task_for(make_recipe("generation", max_new_tokens=9), (), rows, None).to_json() == {
        "kind": "generation",
        "max_new_tokens": 9,
    }
    assert task_for(make_recipe("regression"), (), rows, None) == RegressionTask("linear", 2, 1, "")


@pytest.mark.parametrize(
    "task",
    [CLASSES, PRICES, ANSWERS, COLORS, TaggingTask(("DRUG", "DOSE")), RankingTask()],
    ids=lambda task: task.kind,
)
def test_task_comes_back_from_json(task: AnyTask) -> None:
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"kind": "tagging"},
        {"kind": "tagging", "labels": []},
        {"kind": "multilabel", "labels": ["a"]},
        {"kind": "multilabel", "labels": ["a"], "threshold": 1},
        {"kind": "ranking", "labels": ["a"]},
        {"kind": "translation"},
        {"kind": ["classification"]},
        {"labels": ["a", "b"]},
        {"kind": "classification"},
        {"kind": "classification", "labels": ["a"]},
        {"kind": "classification", "labels": "ab"},
        {"kind": "classification", "labels": ["a", "a"]},
        {"kind": "classification", "labels": ["a", 2]},
        {"kind": "classification", "labels": None},
        {"kind": "classification", "labels": ["a", "b"], "threshold": 0.5},
        {"kind": "regression", "scale": "log", "mean": 0, "deviation": 1},
        {"kind": "regression", "scale": "cubic", "mean": 0, "deviation": 1, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": 0, "deviation": 0, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": 0, "deviation": -1, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": 0, "deviation": math.nan, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": 0, "deviation": math.inf, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": math.nan, "deviation": 1, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": None, "deviation": 1, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": "x", "deviation": 1, "unit": ""},
        {"kind": "regression", "scale": "log", "mean": 0, "deviation": 1, "unit": 5},
        {"kind": "generation", "max_new_tokens": 0},
        {"kind": "generation", "max_new_tokens": 10**9},
        {"kind": "generation", "max_new_tokens": 3.7},
        {"kind": "generation", "max_new_tokens": "8"},
        {"kind": "generation", "max_new_tokens": True},
        {"kind": "generation"},
    ],
    ids=str,
)
def test_description_that_is_no_task_is_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match="task can't be read") as caught:
        task_from_json(broken)
    assert caught.value.hint
