"""A recipe in YAML: everything that a training needs besides the rows and the plugins' code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator

from trunkline.contracts import TASKS, Gate, RecipeSpec, Settings, Task, Template
from trunkline.data.columns import DataFiles
from trunkline.data.targets import default_template
from trunkline.errors import DataError, NotFoundError, UsageError, one_line
from trunkline.files import validation_problem
from trunkline.plugins import Catalog
from trunkline.redaction import redact
from trunkline.refs import Ref
from trunkline.registry.records import RunRecord

if TYPE_CHECKING:
    from trunkline.training.job import TrainingJob

_MAX_BYTES = 1 << 20
_METRICS: Mapping[Task, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("micro_f1", "multilabel_macro_f1", "subset_accuracy"),
    "regression": ("mae", "r_squared"),
    "tagging": ("entity_f1", "entity_precision", "entity_recall"),
    "ranking": ("mrr", "recall_at_1", "recall_at_5"),
    "generation": ("exact_match",),
}
"""The metrics of a recipe that names none; the first is the gate's."""


_SCALARS = tuple(
    (tag, re.compile(rf"(?:{pattern})\Z"), first)
    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", "~nN"),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
            "-+.0123456789",
        ),
    )
)
"""Type, form and first characters of a scalar without quotes: YAML 1.2's core schema. ``010`` and
``1:30`` are texts, ``1e-4`` is a number.
"""


_Published = Annotated[str, AfterValidator(redact)]
"""Text that is stored and published with the adapter: without secrets."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TemplateConfig(_Strict):
    """The fields of :class:`~trunkline.contracts.Template`."""

    prompt: str = "{text}"
    clean: list[Literal["strip", "squeeze", "lowercase"]] = ["strip", "squeeze"]
    chat: bool = False
    system: str | None = None


class GateConfig(_Strict):
    """The fields of :class:`~trunkline.contracts.Gate`."""

    metric: str | None = None
    beats_baseline: bool = True
    at_least: float | None = None
    beats_champion: bool = False
    champion_margin: float | None = None
    slices_at_least: float | None = None
    two_persons: bool = False


class RecipeConfig(_Strict):
    """A recipe as it is written in YAML.

    Attributes:
        name: ``domain/name`` of the adapter.
        data: the user's own files; or
        dataset: the name of a plugin's dataset.
        settings: those that differ from the defaults.
        metrics: names; by default those of the task.

    The other fields are those of :class:`~trunkline.contracts.RecipeSpec`.
    """

    name: str
    description: _Published = ""
    data: DataFiles | None = None
    dataset: str | None = None
    task: str | None = None
    template: TemplateConfig = TemplateConfig()
    settings: dict[str, Any] = {}
    loss: str = "default"
    loss_options: dict[str, Any] = {}
    metrics: list[str] = []
    gate: GateConfig = GateConfig()
    transforms: list[str] = []
    baselines: list[str] = []
    scale: Literal["linear", "log"] = "linear"
    max_new_tokens: int = 32

    @model_validator(mode="after")
    def _check(self) -> RecipeConfig:
        if (self.data is None) == (self.dataset is None):
            raise ValueError("either data (own files) or dataset (of a plugin) is needed")
        if self.data is not None and self.task not in (None, self.data.task):
            raise ValueError(f"the task of these columns is {self.data.task}, not {self.task}")
        if self.data is None and self.task is None:
            raise ValueError("task is missing")
        if self._is_conversation:
            fixed = self.template.model_fields_set - {"system", "chat"}
            if fixed or not (self.template.chat or "chat" not in self.template.model_fields_set):
                raise ValueError(
                    "messages are written by the base's chat template as they are, so template may "
                    "have a system message only"
                )
        return self

    @property
    def _is_conversation(self) -> bool:
        return self.data is not None and self.data.messages is not None

    def recipe(self) -> RecipeSpec:
        """The recipe.

        Raises:
            UsageError: a value is out of range, or the name is not ``domain/name``.
        """
        kind = self.task if self.data is None else self.data.task
        metrics = tuple(self.metrics) or _METRICS.get(kind, ("accuracy",))  # type: ignore[call-overload]
        gate = self.gate.model_dump()
        return RecipeSpec(
            name=Ref.parse(self.name).adapter,
            description=self.description,
            dataset=self.dataset or self.name,
            task=str(kind),
            template=self._template(str(kind)),
            settings=Settings(**self.settings),
            loss=self.loss,
            loss_options=self.loss_options,
            metrics=metrics,
            gate=Gate(**{**gate, "metric": gate["metric"] or metrics[0]}),
            transforms=tuple(self.transforms),
            baselines=tuple(self.baselines),
            scale=self.scale,
            max_new_tokens=self.max_new_tokens,
        )

    def _template(self, kind: str) -> Template:
        """The template; what it leaves open is that of the task."""
        if kind not in TASKS:
            return Template(**{**self.template.model_dump(), "clean": tuple(self.template.clean)})
        default = default_template(kind)
        if self._is_conversation:
            default = Template(chat=True, clean=())
        values = {name: getattr(self.template, name) for name in self.template.model_fields_set}
        if "clean" in values:
            values["clean"] = tuple(values["clean"])
        return replace(default, **values)

    def is_same(self, other: RecipeConfig | None) -> bool:
        """Whether both train the same, wherever their files are named from."""
        if other is None:
            return False
        one, two = (
            config.to_json() | {"data": config.data and config.data.absolute().model_dump()}
            for config in (self, other)
        )
        return one == two

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is as by default is left out."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def to_yaml(self, folder: Path | None = None) -> str:
        """The recipe as YAML; what is as by default is left out.

        Args:
            folder: of the file that it is written to; paths of data are relative to it.
        """
        import yaml

        config = self
        if self.data is not None and folder is not None:
            config = self.model_copy(update={"data": self.data.seen_from(folder)})
        return yaml.dump(
            config.to_json(), Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=100
        )


def make_config(values: Mapping[str, Any], subject: str) -> RecipeConfig:
    """A recipe from plain values.

    Args:
        subject: where they are from, as the start of a sentence.

    Raises:
        UsageError: a field is unknown, missing or of the wrong type.
    """
    try:
        return RecipeConfig.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(
            f"{subject}: {validation_problem(error)}.", "`trunkline train --help` shows an example."
        ) from None


def read_config(path: Path) -> RecipeConfig:
    """Read a recipe from a YAML file; its paths are relative to the file's folder.

    Raises:
        NotFoundError: there is no such file.
        DataError: it is not YAML in UTF-8, or a key occurs twice.
        UsageError: a field is unknown, missing or of the wrong type.
    """
    config = make_config(_read_yaml(path), f"{path.name} is not a recipe")
    if config.data is None:
        return config
    return config.model_copy(update={"data": config.data.below(path.parent)})


def recorded_config(run: RunRecord) -> RecipeConfig | None:
    """The recipe of the user's own that a run recorded; None if it is a plugin's.

    Raises:
        UsageError: it can't be read.
    """
    values = (run.specification or {}).get("config")
    return None if values is None else make_config(values, f"The recipe of run {run.number}")


def resumed(
    run: RunRecord, recipe: str | RecipeConfig, settings: Mapping[str, Any]
) -> tuple[str | RecipeConfig, dict[str, Any]]:
    """The recipe and the settings with which a run goes on: those that it began with.

    Args:
        run: to resume.
        recipe, settings: those that were asked for.

    Raises:
        UsageError: something else was asked for.
    """
    name = recipe if isinstance(recipe, str) else recipe.name
    if run.recipe != name:
        raise UsageError(
            f"Run {run.number} is of {run.recipe}, not of {name}.",
            f"`trunkline train {run.recipe} --resume {run.number}`",
        )
    if settings:
        raise UsageError("A resumed run keeps its settings.", "Omit --set, or start a new run.")
    recorded = recorded_config(run)
    if not isinstance(recipe, str) and not recipe.is_same(recorded):
        raise UsageError(
            f"The recipe differs from that of run {run.number}, which a resumed run keeps.",
            f"Resume it with `trunkline train {name} --resume {run.number}`.",
        )
    return recorded or recipe, dict(run.settings)


def config_of_run(run: RunRecord, catalog: Catalog) -> RecipeConfig:
    """The recipe of a run with the settings that it was trained with, overrides included.

    Raises:
        NotFoundError: the recipe is a plugin's that is not loaded.
    """
    config = recorded_config(run) or config_of(catalog.recipe(run.recipe))
    return config.model_copy(update={"settings": _changed_settings(Settings(**run.settings))})


def config_of_job(job: TrainingJob, settings: Mapping[str, Any]) -> RecipeConfig:
    """The YAML form of a job's recipe with some settings replaced."""
    changed = _changed_settings(replace(job.settings, **settings))
    config = job.config or config_of(job.recipe)
    return config.model_copy(update={"settings": changed})


def config_of(recipe: RecipeSpec) -> RecipeConfig:
    """The YAML form of a plugin's recipe, which still needs the plugin's dataset."""
    return RecipeConfig(
        name=recipe.name,
        description=recipe.description,
        dataset=recipe.dataset,
        task=recipe.task,
        template=TemplateConfig(
            **{**asdict(recipe.template), "clean": list(recipe.template.clean)}
        ),
        settings=_changed_settings(recipe.settings),
        loss=recipe.loss,
        loss_options=dict(recipe.loss_options),
        metrics=list(recipe.metrics),
        gate=GateConfig(**asdict(recipe.gate)),
        transforms=list(recipe.transforms),
        baselines=list(recipe.baselines),
        scale=recipe.scale,
        max_new_tokens=recipe.max_new_tokens,
    )


def _changed_settings(settings: Settings) -> dict[str, Any]:
    """The settings that differ from the defaults."""
    return {
        spec.name: value
        for spec in fields(Settings)
        if (value := getattr(settings, spec.name)) != spec.default
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    if not path.is_file():
        raise NotFoundError(
            f"There is no file {str(path)!r}.", "Give the path of a recipe in YAML."
        )
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path.name} is larger than 1 MiB.", "A recipe in YAML is small.")
    try:
        value = yaml.load(path.read_text(encoding="utf-8-sig"), _unique_key_loader())
    except UnicodeDecodeError:
        raise DataError(f"{path.name} is not UTF-8.", "Save it as UTF-8.") from None
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        raise DataError(
            f"{path.name} has a value that YAML can't read: {one_line(error)}.",
            "Write plain values, without tags such as !!int.",
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f" in line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "it is nested too deeply"
        raise DataError(f"{path.name} is not YAML{line}: {problem}.", "Correct it.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path.name} is not a recipe.", "Write one `name: value` a line.")
    return value


def _unique_key_loader() -> Any:
    """YAML's safe loader, which refuses a key that occurs twice, and aliases."""
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                event = self.peek_event()
                raise yaml.MarkedYAMLError(
                    problem="an alias (*) is not supported", problem_mark=event.start_mark
                )
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise yaml.MarkedYAMLError(
                        problem="a key is not a text", problem_mark=key.start_mark
                    )
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {}
    for tag, pattern, first in _SCALARS:
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, [*first, ""])
    return Loader


def _dumper() -> Any:
    """YAML's safe dumper, which quotes a text that the loader would read as something else."""
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # yaml has no types
        pass

    def represent(dumper: Any, text: str) -> Any:
        is_scalar = any(pattern.match(text) for _, pattern, _ in _SCALARS)
        # in single quotes, this line break would be read as a blank
        style = '"' if "\x85" in text else "'" if is_scalar else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, represent)
    return Dumper
