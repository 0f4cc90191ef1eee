"""A training job: a recipe with everything that it names, its settings and its encoded rows."""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from itertools import chain
from typing import Any

from trunkline.contracts import (
    BaselineSpec,
    DatasetSpec,
    LossSpec,
    MetricSpec,
    RecipeSpec,
    Row,
    Settings,
    Template,
    TransformSpec,
)
from trunkline.data.encode import NoRoomError, encode_prompts
from trunkline.data.lengths import LengthReport, check_answers_fit, check_conversations_fit
from trunkline.data.prepare import Prepared
from trunkline.errors import DataError, NotFoundError, UsageError
from trunkline.files import canonical_json
from trunkline.inference.engine import Engine
from trunkline.inference.image_engine import AnyEngine
from trunkline.plugins import Catalog, PluginInfo
from trunkline.settings import checked_setting, nearest_name, noun_for
from trunkline.tasks import AnyTask, TaggingTask, prompt_limit
from trunkline.tasks.batches import PIXELS, size_of
from trunkline.tasks.losses import check_options
from trunkline.tasks.ranking import candidate_prompts
from trunkline.training.config import RecipeConfig

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """A recipe with everything that it names.

    Attributes:
        metrics: the first is the gate's.
        config: the recipe as it was written in YAML or on the command line; None for a plugin's.
        plugin: whose rows are trained on; None for the user's own,
            and where the plugin is only checked.
    """

    recipe: RecipeSpec
    dataset: DatasetSpec
    transforms: tuple[TransformSpec, ...]
    loss: LossSpec
    metrics: tuple[MetricSpec, ...]
    baselines: tuple[BaselineSpec, ...]
    config: RecipeConfig | None = None
    plugin: PluginInfo | None = None

    @property
    def own_data(self) -> bool:
        """Whether the rows come from a user's own files, not from a plugin."""
        return self.config is not None and self.config.data is not None

    @property
    def settings(self) -> Settings:
        """The recipe's settings, overrides included."""
        return self.recipe.settings

    @property
    def deciding_metric(self) -> MetricSpec:
        """The gate's metric, which also selects the best checkpoint."""
        return self.metrics[0]


def make_job(
    catalog: Catalog, recipe: str | RecipeConfig, overrides: Mapping[str, Any]
) -> TrainingJob:
    """Look up a recipe and everything that it names.

    Args:
        recipe: the name of a plugin's recipe, or a recipe of the user's own.

    Raises:
        NotFoundError: there is no such recipe, setting or loss option, or it names something that
            is missing.
        UsageError: an override has the wrong type or is out of range, or the recipe of the user's
            own has the name of a plugin's, or a loss or metric of another task.
    """
    config = recipe if isinstance(recipe, RecipeConfig) else None
    if isinstance(recipe, str):
        spec = catalog.recipe(recipe)
        dataset = catalog.dataset(spec.dataset)
    else:
        if recipe.data is not None and recipe.name in {one.name for one in catalog.recipes()}:
            raise UsageError(
                f"{recipe.name} is a recipe of the plugin {recipe.name.partition('/')[0]!r}.",
                "Give the adapter for your own data another name.",
            )
        spec = catalog.resolved(recipe.recipe())
        dataset = (
            catalog.dataset(spec.dataset)
            if recipe.data is None
            else recipe.data.dataset(recipe.name)
        )
    spec = with_settings(spec, overrides)
    loss = catalog.loss_for(spec)
    spec = replace(spec, loss_options=check_options(loss, spec.loss_options))
    names = dict.fromkeys((spec.gate.metric, *spec.metrics))
    job = TrainingJob(
        recipe=spec,
        dataset=dataset,
        transforms=tuple(catalog.transform(name) for name in spec.transforms),
        loss=loss,
        metrics=tuple(catalog.metric(name) for name in names),
        baselines=catalog.baselines_for(spec, dataset.modality),
        config=config,
    )
    if not job.own_data:
        with suppress(NotFoundError):  # a plugin that is checked before it is installed
            job = replace(job, plugin=catalog.plugin(dataset.name.partition("/")[0]))
    if config is not None:
        _check_tasks(job)
    return job


def _check_tasks(job: TrainingJob) -> None:
    """Raise :class:`UsageError` if a recipe of the user's own mixes tasks."""
    task = job.recipe.task
    named = [
        ("dataset", job.dataset.name, job.dataset.task),
        ("loss", job.loss.name, job.loss.task),
    ]
    named += [("metric", metric.name, metric.task) for metric in job.metrics]
    for noun, name, kind in named:
        if kind != task:
            raise UsageError(
                f"The {noun} {name} is for {kind}, and {job.recipe.name} is a {task}.",
                "`trunkline plugins show core` lists those of every task.",
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
            nearest = nearest_name(name, specs)
            raise NotFoundError(
                f"There is no setting {name!r}.",
                (f"Did you mean {nearest!r}? " if nearest else "")
                + f"`trunkline recipes show {recipe.name}` explains the supported settings: "
                f"{', '.join(specs)}.",
            )
        kind = type(specs[name].default)
        value = _parse(name, value, kind) if isinstance(value, str) else value
        value = checked_setting(name, value)
        values[name] = float(value) if kind is float else value
    return replace(recipe, settings=replace(recipe.settings, **values))


def parse_assignment(text: str, option: str = "--set") -> tuple[str, str]:
    """Split ``key=value`` into key and value.

    Args:
        option: that the text was given for, for the hint.

    Raises:
        UsageError: there is no ``=``, or no key before it.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UsageError(
            f"{text!r} is not key=value.", f"Write for example {option} max_steps=200."
        )
    return name.strip(), value.strip()


def _parse(name: str, text: str, kind: type) -> Any:
    try:
        if kind is bool:
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError
            return text.lower() in _TRUE
        if kind is not str and not _NUMBER.fullmatch(text):
            raise ValueError
        value = kind(text)
        if value == 0 and any(digit in "123456789" for digit in text.lower().partition("e")[0]):
            raise ValueError  # too small for a float
        return value
    except ValueError:
        raise UsageError(
            f"The setting {name} must be {noun_for(kind)}, not {text!r}.",
            f"Write for example --set {name}={getattr(Settings(), name)}.",
        ) from None


# ----------------------------------------------------------------------------------- encoding


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as examples of tokens or of pictures.

    Attributes:
        examples: with at most ``max_length`` tokens each.
        lengths: tokens of each prompt with its complete text.
        truncated: how many texts were cut.
    """

    examples: list[dict[str, Any]]
    lengths: list[int]
    truncated: int

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(map(size_of, self.examples))

    @property
    def longest(self) -> int:
        """Tokens of the longest example."""
        return max(map(size_of, self.examples), default=0)


@dataclass(frozen=True, slots=True)
class EncodedParts:
    """All rows of a job, encoded with one template and one limit.

    Attributes:
        max_length: the longest prompt with answer; stored in the artifact. None: pictures.
        lengths: of the prompts of all parts; None: pictures.
        picture_size: height and width that the base reads; None: texts.
    """

    train: EncodedRows
    validation: EncodedRows
    test: EncodedRows
    max_length: int | None
    lengths: LengthReport | None
    picture_size: tuple[int, int] | None = None


def encode_parts(
    job: TrainingJob, prepared: Prepared, task: AnyTask, engine: AnyEngine
) -> EncodedParts:
    """Encode every row that the job trains, validates or evaluates on.

    Whatever would fail later because of a row's length fails here.

    Raises:
        DataError: an answer is longer than ``max_new_tokens``, the template leaves no room for a
            text, a conversation is too long, or a row does not fit the engine's memory for keys
            and values.
        UsageError: ``max_length`` leaves no room for a prompt.
    """
    if not isinstance(engine, Engine):
        from trunkline.training.image_rows import encode_image_parts

        return encode_image_parts(
            prepared, task, engine.base.info.preprocessing.resized(job.settings.image_size)
        )
    recipe, base, split = job.recipe, engine.base, prepared.split
    max_length = min(recipe.settings.max_length, base.info.context)
    limit = prompt_limit(task, max_length)
    if limit < 1:
        raise UsageError(
            f"max_length = {max_length} leaves no room for a prompt: an answer may have "
            f"{recipe.max_new_tokens} tokens (max_new_tokens).",
            f"Use --set max_length={2 * recipe.max_new_tokens} or a recipe with shorter answers; "
            f"the base's context is {base.info.context}.",
        )
    check_answers_fit(prepared, recipe, base.tokenizer)
    rows = ((*split.train, *prepared.augmented), split.validation, split.test)
    train, validation, test = (
        encode_rows(part, recipe.template, task, base.tokenizer, max_length) for part in rows
    )
    lengths = [length for part in (train, validation, test) for length in part.lengths]
    check_conversations_fit([*chain(*rows)], lengths, recipe, base.info.context)
    reserved = max_length - limit
    longest = max(
        len(prompt)
        for part in (train, validation, test)
        for one in part.examples
        for prompt in example_prompts(one)
    )
    if longest + reserved > engine.max_model_len:
        raise DataError(
            f"A row takes {longest + reserved} tokens with its answer; the engine's memory for "
            f"keys and values holds {engine.max_model_len}.",
            f"Use --set max_length={engine.max_model_len}, or give the engine more kv_mib.",
        )
    return EncodedParts(train, validation, test, max_length, LengthReport.of(lengths, limit))


def encode_rows(
    rows: Sequence[Row], template: Template, task: AnyTask, tokenizer: Any, max_length: int
) -> EncodedRows:
    """Encode rows; a text that does not fit ``max_length`` is cut, as it is in inference.

    Raises:
        DataError: the template leaves no room for the text of a row.
    """
    limit = prompt_limit(task, max_length)
    examples: list[dict[str, Any]] = []
    lengths: list[int] = []
    truncated = 0
    tagging = isinstance(task, TaggingTask)
    for row in rows:
        try:
            prompts = encode_prompts(row, template, tokenizer, limit, with_offsets=tagging)
        except DataError as error:
            hint = error.hint
            if isinstance(error, NoRoomError):
                hint = f"Use more than --set max_length={max_length}, or a shorter template."
            raise DataError(f"Row {row.id!r}: {error.message}", hint) from None
        truncated += any(prompt.truncated for prompt in prompts)
        lengths.append(max(prompt.full_length for prompt in prompts))
        examples.append(task.example(prompts, row, tokenizer))
    return EncodedRows(examples, lengths, truncated)


def example_prompts(example: Mapping[str, Any]) -> list[list[int]]:
    """The token ids of an example without its answer; of a ranking one prompt per candidate."""
    ids: list[int] = example["input_ids"]
    if "sizes" in example:
        return candidate_prompts(example)
    return [ids[: len(ids) - example.get("answer", 0)]]


def prompt_of(example: Mapping[str, Any]) -> list[int]:
    """The token ids of an example without its answer; of a ranking those of its first candidate."""
    return example_prompts(example)[0]


def inputs_digest(job: TrainingJob, encoded: EncodedParts, base_digest: str) -> str:
    """Digest of what determines a training, so that no checkpoint of another one is resumed."""
    settings = {
        name: float(value) if type(value) is int else value  # 8 and 8.0 are the same setting
        for name, value in asdict(job.settings).items()
    }
    inputs = {
        "base": base_digest,
        "recipe": job.recipe.name,
        "task": job.recipe.task,
        "loss": job.loss.name,
        "loss_options": dict(job.recipe.loss_options),
        "metric": job.deciding_metric.name,
        "settings": settings,
        "transforms": [step.name for step in job.transforms if step.changes_pictures],
    }
    digest = hashlib.sha256(canonical_json(inputs))
    for rows in (encoded.train, encoded.validation):
        digest.update(f"{len(rows.examples)} rows".encode())
        for example in rows.examples:
            encoded_input = ("input_ids", PIXELS)
            rest = {name: value for name, value in example.items() if name not in encoded_input}
            digest.update(canonical_json(rest))
            digest.update(array("q", example.get("input_ids", ())))
    return digest.hexdigest()
