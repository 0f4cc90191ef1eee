"""A training job: a recipe with everything that it names, its settings and its encoded rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from trunkline.contracts import (
    BaselineSpec,
    DatasetSpec,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    Row,
    Settings,
    TransformSpec,
)
from trunkline.data.encode import encode_answer, encode_prompt
from trunkline.data.prepare import Prepared
from trunkline.errors import DataError, NotFoundError, UsageError
from trunkline.plugins import Catalog
from trunkline.settings import checked_setting, noun_for
from trunkline.tasks import AnyTask, GenerationTask

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A recipe with everything that it names; the first of ``metrics`` is the gate's."""

    recipe: RecipeSpec
    dataset: DatasetSpec
    transforms: tuple[TransformSpec, ...]
    loss: LossSpec
    metrics: tuple[MetricSpec, ...]
    baselines: tuple[BaselineSpec, ...]

    @property
    def settings(self) -> Settings:
        """The recipe's settings, overrides included."""
        return self.recipe.settings

    @property
    def deciding_metric(self) -> MetricSpec:
        """The gate's metric, which also selects the best checkpoint."""
        return self.metrics[0]


def make_job(catalog: Catalog, recipe: str, overrides: Mapping[str, Any]) -> TrainingJob:
    """Look up a recipe and everything that it names.

    Raises:
        NotFoundError: there is no such recipe or setting.
        UsageError: an override has the wrong type or is out of range.
    """
    spec = with_settings(catalog.recipe(recipe), overrides)
    names = dict.fromkeys((spec.gate.metric, *spec.metrics))
    return TrainingJob(
        recipe=spec,
        dataset=catalog.dataset(spec.dataset),
        transforms=tuple(catalog.transform(name) for name in spec.transforms),
        loss=catalog.loss_for(spec),
        metrics=tuple(catalog.metric(name) for name in names),
        baselines=catalog.baselines_for(spec),
    )


# ----------------------------------------------------------------------------------- settings


def with_settings(recipe: RecipeSpec, overrides: Mapping[str, Any]) -> RecipeSpec:
    """The recipe with some settings replaced; texts are converted to the setting's type.

    Raises:
        NotFoundError: there is no such setting; the hint names the closest and lists all.
        UsageError: a value has the wrong type or is out of range.
    """
    specs = {spec.name: spec for spec in fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in overrides.items():
        if name not in specs:
            raise NotFoundError.named(
                "setting",
                name,
                specs,
                f"`trunkline recipes show {recipe.name}` explains the supported settings: "
                f"{', '.join(specs)}.",
            )
        kind = type(specs[name].default)
        value = _parse(name, value, kind) if isinstance(value, str) else value
        value = checked_setting(name, value)
        values[name] = float(value) if kind is float else value
    return replace(recipe, settings=replace(recipe.settings, **values))


def parse_assignment(text: str) -> tuple[str, str]:
    """Split ``key=value`` into key and value.

    Raises:
        UsageError: there is no ``=``, or no key before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(f"{text!r} is not key=value.", "Write for example --set max_steps=200.")
    return name.strip(), value.strip()


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError
            return text.lower() in _TRUE
        return kind(text)
    except ValueError:
        raise UsageError(
            f"The setting {name} must be {noun_for(kind)}, not {text!r}.",
            f"Write for example --set {name}={getattr(Settings(), name)}.",
        ) from None


# ----------------------------------------------------------------------------------- encoding


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as token examples; ``truncated`` prompts were cut to ``max_length``."""

    examples: list[dict[str, Any]]
    truncated: int
    tokens: int
    longest: int


def encode_rows(
    rows: Sequence[Row], recipe: RecipeSpec, task: AnyTask, tokenizer: Any
) -> EncodedRows:
    """Encode rows with the recipe's template.

    Raises:
        DataError: an answer would be cut off; the model would learn incomplete answers.
    """
    limit = recipe.settings.max_length
    examples: list[dict[str, Any]] = []
    truncated = tokens = longest = 0
    for row in rows:
        prompt = encode_prompt(row.text, recipe.template, tokenizer)
        if len(prompt) > limit and not isinstance(task, GenerationTask):
            prompt = prompt[:limit]
            truncated += 1
        example = task.example(prompt, row, tokenizer)
        length = len(example["input_ids"])
        if length > limit:
            raise DataError(
                f"Row {row.id!r} takes {length} tokens with its answer; max_length = {limit} would "
                "cut the answer off.",
                f"Use --set max_length={length} or more.",
            )
        examples.append(example)
        tokens += length
        longest = max(longest, length)
    return EncodedRows(examples, truncated, tokens, longest)


def check_answers_fit(prepared: Prepared, recipe: RecipeSpec, tokenizer: Any) -> None:
    """Raise :class:`DataError` if an answer is longer than the recipe's ``max_new_tokens``."""
    if recipe.task != "generation":
        return
    split = prepared.split
    for row in (*split.train, *prepared.augmented, *split.validation, *split.test):
        length = len(encode_answer(str(row.target), tokenizer))
        if length > recipe.max_new_tokens:
            raise DataError(
                f"The answer of row {row.id!r} has {length} tokens; max_new_tokens = "
                f"{recipe.max_new_tokens} would cut it off.",
                "Raise max_new_tokens in the recipe.",
            )


def prompt_of(example: Mapping[str, Any]) -> list[int]:
    """The token ids of an example without its answer."""
    ids: list[int] = example["input_ids"]
    return ids[: len(ids) - example["answer"]] if "answer" in example else ids
