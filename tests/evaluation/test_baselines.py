"""Baselines: what they are fitted on, choose on, and must not see."""

from __future__ import annotations

import random
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from made_rows import make_recipe, make_row, make_split
from tiny_base import make_tokenizer
from trunkline.contracts import (
    BaselineContext,
    BaselinePredictions,
    BaselineSpec,
    RecipeSpec,
    Row,
    Task,
    Template,
)
from trunkline.data.split import Split
from trunkline.errors import NotFoundError, PluginCallError
from trunkline.evaluation.baselines import FEW_SHOT, Baseline, fit_baselines
from trunkline.inference import forward
from trunkline.plugins import Catalog, load_plugins

FRUIT = ("apple", "pear", "cherry", "plum", "grape", "melon")
TOOLS = ("hammer", "saw", "drill", "wrench", "chisel", "pliers")


def sorted_goods() -> Split:
    """Fruit and tools: pairs of names, other pairs in each part."""
    rng = random.Random(3)

    def rows(count: int, first: int) -> list[Row]:
        made = []
        for number in range(first, first + count):
            kind = ("fruit", "tool")[number % 2]
            names = rng.sample(FRUIT if kind == "fruit" else TOOLS, 2)
            text = f"one {names[0]} and one {names[1]} no {number}"
            made.append(make_row(number, text=text, target=kind))
        return made

    return make_split(rows(30, 0), rows(10, 30), rows(12, 40))


def priced_goods() -> Split:
    """Prices that follow from the names; the first slice is the kind of good."""

    def rows(count: int, first: int) -> list[Row]:
        goods = {"golden ring": 900.0, "paper napkin": 0.05, "leather shoe": 80.0}
        names = sorted(goods)
        return [
            make_row(
                number,
                text=f"{names[number % 3]} model {number}",
                target=goods[names[number % 3]] * (1 + number % 5 / 10),
                slices={"kind": names[number % 3], "odd": str(number % 2)},
            )
            for number in range(first, first + count)
        ]

    return make_split(rows(30, 0), rows(9, 30), rows(12, 39))


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load_plugins(no_plugins=True)


def fitted(name: str, recipe: RecipeSpec, split: Split, base: Any = None) -> Baseline:
    spec = load_plugins(no_plugins=True).baseline(name)
    (baseline,) = fit_baselines([spec], recipe, split, base)
    return baseline


def majority(split: Split) -> Baseline:
    return fitted("majority", make_recipe(), split)


def tfidf(recipe: RecipeSpec, split: Split) -> Baseline:
    return fitted("tfidf", recipe, split)


def linear(recipe: RecipeSpec, split: Split) -> Baseline:
    return fitted("linear", recipe, split)


def group_median(split: Split) -> Baseline:
    return fitted("group-median", make_recipe("regression"), split)


def nearest(recipe: RecipeSpec, split: Split) -> Baseline:
    return fitted("nearest", recipe, split)


def prompted(recipe: RecipeSpec, split: Split, base: Any, shots: int) -> Baseline:
    return fitted("few-shot" if shots else "base", recipe, split, base)


def accuracy(baseline: Baseline, split: Split) -> float:
    hits = [
        row.target == prediction
        for row, prediction in zip(split.test, baseline.predictions, strict=True)
    ]
    return sum(hits) / len(hits)


def with_other_tests(split: Split) -> Split:
    """The same texts to be evaluated on, their targets swapped about."""
    targets = [row.target for row in split.test]
    return replace(
        split,
        test=tuple(
            replace(row, target=target)
            for row, target in zip(split.test, targets[1:] + targets[:1], strict=True)
        ),
    )


# ------------------------------------------------------- targets of the test rows stay hidden


@pytest.mark.parametrize(
    ("name", "recipe", "split"),
    [
        ("majority", make_recipe(), sorted_goods()),
        ("tfidf", make_recipe(), sorted_goods()),
        ("nearest", make_recipe(), sorted_goods()),
        ("linear", make_recipe("regression", scale="log"), priced_goods()),
        ("group-median", make_recipe("regression"), priced_goods()),
    ],
    ids=["majority", "tfidf", "nearest", "linear", "group-median"],
)
def test_baseline_does_not_see_the_targets_of_the_test_rows(
    name: str, recipe: RecipeSpec, split: Split
) -> None:
    baseline = fitted(name, recipe, split)
    assert baseline == fitted(name, recipe, with_other_tests(split))
    assert len(baseline.predictions) == len(split.test)


def test_tfidf_chooses_on_validation() -> None:
    """Plurals are new words made of familiar characters."""
    kinds = {"fruit": FRUIT, "tool": TOOLS}

    def rows(ending: str) -> list[Row]:
        return [
            make_row(n, text=f"{name}{ending}", target=kind)
            for n, (kind, name) in enumerate((k, name) for k in kinds for name in kinds[k])
        ]

    known, plural = (make_split(rows(""), rows(ending), rows("")) for ending in ("", "s"))

    assert tfidf(make_recipe(), known).detail.startswith("words")
    assert tfidf(make_recipe(), plural).detail.startswith("characters")


# ------------------------------------------------------------------------------- classification


def test_majority_is_the_commonest_training_label() -> None:
    rows = [make_row(n, target=label) for n, label in enumerate("abbc")]
    split = make_split(rows, rows[3:], [make_row(9, target="c"), make_row(10, target="c")])

    assert majority(split).predictions == ["b", "b"]


def test_majority_of_equals_is_the_first_in_the_alphabet() -> None:
    rows = [make_row(n, target=label) for n, label in enumerate("baab")]

    assert majority(make_split(rows, rows, rows[:1])).predictions == ["a"]


def test_tfidf_learns_what_words_mean() -> None:
    split = sorted_goods()

    assert accuracy(tfidf(make_recipe(), split), split) == 1


def test_tfidf_says_what_it_chose() -> None:
    detail = tfidf(make_recipe(), sorted_goods()).detail

    assert detail.startswith(("words 1-2, C=", "characters 2-5, C="))


def test_tfidf_raises_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tfidf(make_recipe(), sorted_goods())


def test_baselines_read_the_cleaned_text() -> None:
    split = sorted_goods()
    recipe = make_recipe(template=Template(clean=("strip", "squeeze", "lowercase")))
    spaced = replace(
        split,
        test=tuple(replace(r, text=f"  {r.text.upper()}".replace(" ", "   ")) for r in split.test),
    )

    assert tfidf(recipe, spaced).predictions == tfidf(recipe, split).predictions
    assert nearest(recipe, spaced).predictions == nearest(recipe, split).predictions


def test_tfidf_of_a_single_class_says_that_class() -> None:
    split = sorted_goods()
    baseline = tfidf(make_recipe(), replace(split, train=split.train[:1]))

    assert set(baseline.predictions) == {split.train[0].target}


@pytest.mark.parametrize("marks", ["?!+-*/%&$§", "abcdefghij"])
def test_texts_of_one_character_leave_something_to_predict(marks: str) -> None:
    rows = [make_row(n, text=mark, target="ab"[n % 2], slices={}) for n, mark in enumerate(marks)]
    split = make_split(rows[:6], rows[6:8], rows[8:])
    numbers = make_split(
        *([replace(r, target=2.0) for r in part] for part in (rows[:6], rows[6:8], rows[8:]))
    )

    assert len(tfidf(make_recipe(), split).predictions) == 2
    assert len(nearest(make_recipe(), split).predictions) == 2
    assert linear(make_recipe("regression"), numbers).predictions == [2.0, 2.0]


# ------------------------------------------------------------------------------------ regression


def test_group_median_is_that_of_the_first_slice() -> None:
    train = [
        make_row(n, target=target, slices={"shop": shop, "other": str(n)})
        for n, (shop, target) in enumerate([("a", 1.0), ("a", 3.0), ("a", 50.0), ("b", 9.0)])
    ]
    test = [make_row(9, target=0.0, slices={"shop": shop, "other": "0"}) for shop in ("a", "b")]

    assert group_median(make_split(train, train, test)).predictions == [3.0, 9.0]


@pytest.mark.parametrize("slices", [{"shop": "unseen"}, {}])
def test_group_median_falls_back_on_all_rows(slices: dict[str, str]) -> None:
    train = [make_row(n, target=float(n), slices={"shop": str(n)}) for n in range(5)]
    test = [make_row(9, target=0.0, slices=slices)]

    assert group_median(make_split(train, train, test)).predictions == [2.0]


def test_linear_model_on_the_log_scale_gives_positive_numbers() -> None:
    predictions = linear(make_recipe("regression", scale="log"), priced_goods()).predictions

    assert all(isinstance(predictions, float) and predictions > 0 for predictions in predictions)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_linear_model_is_nearer_than_the_overall_median(scale: Any) -> None:
    split = priced_goods()
    predictions = linear(make_recipe("regression", scale=scale), split).predictions
    pairs = zip(predictions, split.test, strict=True)
    errors = [abs(float(prediction) - float(row.target)) for prediction, row in pairs]
    median = [abs(80 - float(row.target)) for row in split.test]

    assert sum(errors) < sum(median) / 2


# --------------------------------------------------------------------------------------- nearest


def test_nearest_gives_the_target_of_the_same_text() -> None:
    split = sorted_goods()
    rows = [replace(split.train[n], id=f"q{n}", target="?") for n in (3, 8, 20)]
    baseline = nearest(make_recipe(), replace(split, test=tuple(rows)))

    assert baseline.predictions == [split.train[n].target for n in (3, 8, 20)]


def test_nearest_finds_the_text_that_shares_most() -> None:
    train = [
        make_row(1, text="acute appendicitis with peritonitis", target="K35"),
        make_row(2, text="fracture of the lower leg", target="S82"),
    ]
    test = [make_row(3, text="fractured leg", target="?"), make_row(4, text="appendix", target="?")]

    assert nearest(make_recipe("generation"), make_split(train, train, test)).predictions == [
        "S82",
        "K35",
    ]


# ------------------------------------------------------------------------------ the base, prompted


@dataclass
class FakeModel:
    """Replaces the base's model: keeps the prompts and returns a fixed answer."""

    answer: str = "answer"
    prompts: Sequence[list[int]] = ()

    def generate_texts(
        self, model: Any, tokenizer: Any, prompts: Sequence[list[int]], limit: int
    ) -> list[str]:
        self.prompts = prompts
        return [self.answer] * len(prompts)

    def texts(self) -> list[str]:
        return [make_tokenizer().decode(ids) for ids in self.prompts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    fake = FakeModel()
    monkeypatch.setattr(forward, "generate_texts", fake.generate_texts)
    return fake


def a_base(context: int = 100_000) -> Any:
    return SimpleNamespace(
        model=None, tokenizer=make_tokenizer(), info=SimpleNamespace(context=context)
    )


CHAT = make_recipe("generation", template=Template(prompt="Say {text}", chat=True))


def numbered(part: str, count: int) -> list[Row]:
    return [make_row(n, id=f"{part}{n}", text=f"{part} {n}", target=f"answer {part} {n}")
            for n in range(count)]  # fmt: skip


SPLIT = make_split(numbered("train", 40), numbered("validation", 9), numbered("test", 3))


def test_bare_base_gets_the_adapters_prompt(model: FakeModel) -> None:
    baseline = prompted(CHAT, SPLIT, a_base(), 0)

    assert baseline.name == "base"
    assert model.texts()[0] == ("<|im_start|>user\nSay test 0<|im_end|>\n<|im_start|>assistant\n")


def test_few_shot_examples_come_from_train_alone(model: FakeModel) -> None:
    baseline = prompted(CHAT, SPLIT, a_base(), FEW_SHOT)

    assert baseline.name == "few-shot"
    for number, text in enumerate(model.texts()):
        assert text.count("answer train") == text.count("Say train") == FEW_SHOT
        assert "validation" not in text
        assert "answer test" not in text
        assert text.count("Say test") == 1
        assert text.endswith(f"Say test {number}<|im_end|>\n<|im_start|>assistant\n")


def test_few_shot_takes_fewer_examples_where_the_context_is_short(model: FakeModel) -> None:
    prompted(CHAT, SPLIT, a_base(context=256), FEW_SHOT)

    for ids, text in zip(model.prompts, model.texts(), strict=True):
        assert 0 < text.count("Say train") < FEW_SHOT
        assert len(ids) + CHAT.max_new_tokens <= 256


@pytest.mark.parametrize(
    ("answer", "kept"), [("Cholera\nand more", "Cholera"), ("", ""), ("Cholera", "Cholera")]
)
def test_first_line_of_the_bases_answer_counts(model: FakeModel, answer: str, kept: str) -> None:
    model.answer = answer

    assert prompted(CHAT, SPLIT, a_base(), 0).predictions == [kept] * 3


# ------------------------------------------------------------------------------- which baselines


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        ("classification", (), ("majority", "tfidf")),
        ("classification", ("nearest",), ("majority", "tfidf", "nearest")),
        ("classification", ("core/nearest",), ("majority", "tfidf", "nearest")),
        ("regression", (), ("group-median", "linear")),
        ("generation", ("few-shot", "nearest"), ("base", "few-shot", "nearest")),
        ("generation", ("base", "nearest"), ("base", "nearest")),
    ],
)
def test_recipe_gets_its_tasks_baselines_then_its_own(
    task: Task, names: tuple[str, ...], expected: tuple[str, ...], catalog: Catalog
) -> None:
    specs = catalog.baselines_for(make_recipe(task, baselines=names))
    assert tuple(spec.name for spec in specs) == expected


@pytest.mark.parametrize(
    ("task", "name"),
    [("generation", "fewshot"), ("classification", "few-shot"), ("regression", "majority")],
)
def test_baseline_of_another_task_is_refused(task: Task, name: str, catalog: Catalog) -> None:
    with pytest.raises(NotFoundError, match=f"no baseline of a {task} {name!r}") as caught:
        catalog.baselines_for(make_recipe(task, baselines=(name,)))
    assert "Known: " in str(caught.value.hint)


def test_baselines_are_computed_and_announced_in_order(catalog: Catalog) -> None:
    stages: list[str] = []
    split, recipe = sorted_goods(), make_recipe(baselines=("nearest",))
    results = fit_baselines(catalog.baselines_for(recipe), recipe, split, None, stages.append)

    assert [baseline.name for baseline in results] == ["majority", "tfidf", "nearest"]
    assert stages == ["baseline: majority", "baseline: tfidf", "baseline: nearest"]
    assert all(len(baseline.predictions) == len(split.test) for baseline in results)


def plugin_baseline(context: BaselineContext) -> BaselinePredictions:
    return BaselinePredictions(values=["fruit"] * (len(context.test) - 1))


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda context: 1 / 0, "The baseline farm/b failed: ZeroDivisionError"),
        (plugin_baseline, "The baseline farm/b gave 11 predictions for 12 test rows"),
    ],
)
def test_failure_of_a_plugins_baseline_names_it(predict: Any, message: str) -> None:
    spec = BaselineSpec(name="farm/b", description="d", tasks=("classification",), predict=predict)
    with pytest.raises(PluginCallError, match=message):
        fit_baselines([spec], make_recipe(), sorted_goods(), None)
