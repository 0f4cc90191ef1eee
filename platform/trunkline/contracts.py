"""The contract between the platform and its callers: specs of plugins, and progress listeners.

Specs are frozen values, checked when they are created. Callables inside a spec import what they
need when they are called, so listing plugins stays cheap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trunkline.errors import UsageError
from trunkline.ranges import check_value, is_finite, is_kind

if TYPE_CHECKING:
    import random

    import torch

API = 1
"""Version of this contract; a plugin module declares it as ``TRUNKLINE_API = 1``."""

Task = Literal["classification", "regression", "generation"]
TASKS: tuple[Task, ...] = ("classification", "regression", "generation")

CleanStep = Literal["strip", "squeeze", "lowercase"]
CLEAN_STEPS: tuple[CleanStep, ...] = ("strip", "squeeze", "lowercase")

Target = str | float

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
)  # fmt: skip
"""transformers' learning-rate schedules that need no arguments of their own."""

MOST_NEW_TOKENS = 4096
"""The longest answer that a recipe may generate, in tokens."""

_LAYERS = re.compile(r"|[0-9]+(,[0-9]+)*|top-[1-9][0-9]*", re.ASCII)


# ----------------------------------------------------------------------------------- progress


class ProgressListener(Protocol):
    """Receives the progress of a long operation: a training, a backup, a restore."""

    def stage(self, text: str) -> None:
        """A new stage begins; ``text`` names it, such as ``reading data``."""

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None:
        """``done`` of ``total`` units are complete; ``values`` holds the latest metrics."""


class NoProgress:
    """A :class:`ProgressListener` that ignores everything."""

    def stage(self, text: str) -> None: ...

    def progress(self, done: int, total: int, values: Mapping[str, float]) -> None: ...


# --------------------------------------------------------------------------------------- data


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example.

    Attributes:
        id: stable name of the row within its dataset; predictions are stored under it.
        text: what the model reads, before the template.
        target: the label (classification), the answer (generation) or the number (regression,
            in the dataset's unit).
        group: near-duplicates share a group; a group is never divided between train, validation
            and test, and intervals resample groups.
        stratum: the split leaves at least one group of each stratum in train; by default the
            label, for classification.
        slices: name → value for the slices that the dataset declares (``{"country": "DE"}``).
    """

    id: str
    text: str
    target: Target
    group: str
    stratum: str | None = None
    slices: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """A named dataset with its license, its source and how it is split.

    Attributes:
        name: ``domain/name``.
        description: one line for ``datasets list``.
        task: what the rows' targets are.
        load: reads the rows; called only when they are needed. It must always return the same
            rows in the same order.
        license: SPDX identifier or a short sentence.
        source: where the data comes from, with its version.
        grouping: one sentence: what a group is, and why its rows must stay together.
        unit: unit of a regression target (``"USD"``).
        slices: the names in every row's ``slices``; scores are also reported for each value.
        labels: the labels in a fixed order; empty: those of the rows, sorted.
        validation_share, test_share: shares of the groups.
    """

    name: str
    description: str
    task: Task
    load: Callable[[], Iterable[Row]]
    license: str
    source: str
    grouping: str
    unit: str | None = None
    slices: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    validation_share: float = 0.1
    test_share: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformSpec:
    """A step that cleans or augments rows.

    Attributes:
        name: ``domain/name``.
        description: one line.
        stage: ``clean`` runs on each row before the split and yields one row, or none to drop it;
            ``augment`` runs on training rows only and may yield several.
        apply: ``(row, rng) -> rows``. Cleaning that requests need at inference too belongs in
            :attr:`Template.clean`, because an artifact contains no plugin code.
    """

    name: str
    description: str
    stage: Literal["clean", "augment"]
    apply: Callable[[Row, random.Random], Iterable[Row]]


# ---------------------------------------------------------------------------- losses, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LossContext:
    """The data available when a loss is built.

    Attributes:
        labels: labels of the classification head, in the order of its outputs; else empty.
        counts: training rows per label; else empty.
    """

    labels: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


LossFunction = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """A training loss.

    Attributes:
        name: ``domain/name``.
        description: one line.
        task: the task that it is for.
        build: returns ``loss(outputs, targets) -> scalar``. Shapes: classification
            ``[batch, labels]`` float logits and ``[batch]`` int64 label indices; regression
            ``[batch]`` and ``[batch]`` float, both on the recipe's scale (standardized, after the
            logarithm if the recipe says so); generation ``[tokens, vocabulary]`` float logits and
            ``[tokens]`` int64 token ids of the answer.
    """

    name: str
    description: str
    task: Task
    build: Callable[[LossContext], LossFunction]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Targets and predictions to score, row by row.

    For classification and generation these are strings, for regression floats in the unit.
    """

    targets: Sequence[Any]
    predictions: Sequence[Any]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """A score over predictions.

    Attributes:
        name: ``domain/name``.
        description: one line, with the formula's source if it has one.
        task: the task that it is for.
        compute: returns the score of at least one row; called a thousand times per interval.
        higher_is_better: whether a higher score is better.
    """

    name: str
    description: str
    task: Task
    compute: Callable[[Scored], float]
    higher_is_better: bool = True


# ------------------------------------------------------------------------------------ recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a text becomes a prompt; stored in the artifact, so that inference uses the same one.

    Attributes:
        prompt: contains ``{text}`` exactly once.
        clean: steps applied to the text first: ``strip`` the ends, ``squeeze`` white space,
            ``lowercase``.
        chat: wrap the prompt as a user message in the base's chat template.
        system: the system message, with ``chat`` only.
    """

    prompt: str = "{text}"
    clean: tuple[CleanStep, ...] = ("strip", "squeeze")
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or self.prompt.count("{text}") != 1:
            raise UsageError(
                f"The template {self.prompt!r} does not contain {{text}} exactly once.",
                "Write for example 'Diagnosis: {text}'.",
            )
        if not isinstance(self.chat, bool) or not isinstance(self.system, str | None):
            raise UsageError(
                f"A template's chat must be true or false and system text, not {self.chat!r} "
                f"and {self.system!r}.",
                "Omit both for a plain prompt.",
            )
        for step in self.clean:
            if step not in CLEAN_STEPS:
                raise UsageError(
                    f"{step!r} is not a cleaning step.", f"Use any of: {', '.join(CLEAN_STEPS)}."
                )
        if self.system is not None and not self.chat:
            raise UsageError("A template has a system message but chat is off.", "Set chat=True.")

    def cleaned(self, text: str) -> str:
        """The text after the cleaning steps, in order."""
        for step in self.clean:
            if step == "strip":
                text = text.strip()
            elif step == "squeeze":
                text = " ".join(text.split())
            else:
                text = text.lower()
        return text

    def filled(self, text: str) -> str:
        """The prompt with the cleaned text inserted."""
        before, after = self.prompt.split("{text}")
        return f"{before}{self.cleaned(text)}{after}"


def _setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    return field(
        default=default,
        metadata={"help": help, "least": least, "most": most, "choices": choices},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The numbers of a recipe, which ``--set`` can override; each is checked.

    Names and meanings are those of transformers' ``TrainingArguments`` and PEFT's ``LoraConfig``.
    ``target_modules`` and ``layers_to_transform`` also accept lists, which are stored as text.
    """

    num_train_epochs: float = _setting(3.0, "passes over the training rows", least=0.0, most=1000)
    max_steps: int = _setting(
        -1, "number of optimizer steps; 0 or -1: by num_train_epochs", least=-1
    )
    max_train_samples: int = _setting(0, "largest number of training rows; 0: all", least=0)
    learning_rate: float = _setting(5e-4, "peak learning rate of AdamW", least=0.0, most=1.0)
    lr_scheduler_type: str = _setting(
        "linear", "schedule of the learning rate, as transformers names it", choices=SCHEDULERS
    )
    warmup_ratio: float = _setting(0.06, "share of the steps used for warmup", least=0.0, most=1.0)
    weight_decay: float = _setting(0.0, "weight decay of AdamW", least=0.0, most=1.0)
    per_device_train_batch_size: int = _setting(
        16, "rows in a batch on the device", least=1, most=4096
    )
    gradient_accumulation_steps: int = _setting(
        1, "batches accumulated before an optimizer step", least=1, most=4096
    )
    r: int = _setting(16, "LoRA rank", least=1, most=1024)
    lora_alpha: float = _setting(32.0, "LoRA alpha; updates are scaled by alpha / r", least=1e-6)
    lora_dropout: float = _setting(0.0, "LoRA dropout", least=0.0, most=0.9)
    use_rslora: bool = _setting(False, "scale by alpha / sqrt(r) (rank-stabilized LoRA)")
    target_modules: str = _setting(
        "all-linear", "'all-linear', or module names with commas: 'q_proj,v_proj'"
    )
    layers_to_transform: str = _setting(
        "", "layers to adapt: numbers with commas ('0,1,2') or 'top-10'; empty: all"
    )
    max_length: int = _setting(128, "longest prompt with answer, in tokens", least=4)
    evals_per_epoch: int = _setting(2, "validations in an epoch", least=1, most=100)
    early_stopping_patience: int = _setting(
        4, "stop after this many validations without improvement; 0: never", least=0
    )
    precision: str = _setting(
        "auto",
        "arithmetic of training; auto: bf16 where the device is fast at it, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    seed: int = _setting(0, "seed of initialization and row order", least=0, most=2**31 - 1)
    split_seed: int = _setting(0, "seed of the split by group", least=0, most=2**31 - 1)

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(
                self, spec.name, checked_setting(spec.name, getattr(self, spec.name))
            )


def checked_setting(name: str, value: Any) -> Any:
    """The value of a setting in its stored form.

    Raises:
        UsageError: it has the wrong type or is out of range.
    """
    spec = next(spec for spec in fields(Settings) if spec.name == name)
    if name == "target_modules":
        value = _joined(value, str)
    elif name == "layers_to_transform":
        value = "" if value is None else _joined([value] if is_kind(value, int) else value, int)
    subject = f"The setting {name}"
    check_value(subject, value, type(spec.default), **spec.metadata)
    empty = name == "target_modules" and not value.strip()
    malformed = name == "layers_to_transform" and not _LAYERS.fullmatch(value)
    if empty or malformed:
        raise UsageError(f"{subject} can't be {value!r}.", f"Give {spec.metadata['help']}.")
    return value


def _joined(value: Any, kind: type) -> Any:
    """Text without spaces, or a list of names or numbers as such text; others as they are."""
    if isinstance(value, str):
        return re.sub(r"\s*,\s*", ",", value.strip())
    if isinstance(value, list | tuple | set) and value and all(is_kind(one, kind) for one in value):
        return ",".join(str(one) for one in (sorted(value) if isinstance(value, set) else value))
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The conditions that a version must meet before an alias may move to it.

    Attributes:
        metric: the deciding metric; also selects the best checkpoint.
        beats_baseline: the interval of the paired difference to the best baseline lies above zero.
        at_least: the lowest score that passes (the highest, where lower is better).
        beats_champion: the interval of the paired difference to the current champion, on the same
            test rows, lies above zero.
        champion_margin: how much worse than the champion the version may be, in the metric's unit:
            that interval must lie above minus the margin.
        slices_at_least: the lowest score that each slice must reach (the highest, where lower is
            better).
        two_persons: the promoter is identified by an API key, and neither started the run nor
            imported the version.
    """

    metric: str
    beats_baseline: bool = True
    at_least: float | None = None
    beats_champion: bool = False
    champion_margin: float | None = None
    slices_at_least: float | None = None
    two_persons: bool = False

    def __post_init__(self) -> None:
        for name in ("at_least", "champion_margin", "slices_at_least"):
            bound = getattr(self, name)
            if bound is not None and not is_finite(bound):
                raise UsageError(
                    f"The gate's {name} is {bound!r}, not a finite number.",
                    "Give a number in the metric's unit, or None to omit the condition.",
                )
        if self.champion_margin is not None and self.champion_margin < 0:
            raise UsageError(
                f"The gate's champion_margin is {self.champion_margin!r}, which is below zero.",
                "Give how much worse than the champion a version may be, for example 0.01.",
            )
        for name in ("beats_baseline", "beats_champion", "two_persons"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(
                    f"The gate's {name} is {getattr(self, name)!r}, not true or false.",
                    "Write True or False.",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSpec:
    """How an adapter is trained.

    Attributes:
        name: ``domain/name``; also the name of the adapter.
        description: one line.
        dataset: name of a :class:`DatasetSpec`.
        task: must be the dataset's.
        template: text → prompt.
        settings: the settings of this recipe, which ``--set`` can override.
        loss: ``default`` or the name of a :class:`LossSpec`.
        metrics: names of core metrics (``accuracy``, ``macro_f1``, ``mae``, ``median_ape``,
            ``exact_match``, …) or of :class:`MetricSpec`; the gate's is added if missing.
        gate: the conditions for promotion.
        transforms: names of :class:`TransformSpec`, in order.
        baselines: names of baselines in addition to the task's own (see ``docs/evaluation.md``):
            ``few-shot``, ``nearest``.
        scale: scale of a regression target: ``linear`` or ``log``.
        max_new_tokens: the largest number of tokens of a generated answer.
    """

    name: str
    description: str
    dataset: str
    task: Task
    gate: Gate
    template: Template = Template()
    settings: Settings = Settings()
    loss: str = "default"
    metrics: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    scale: Literal["linear", "log"] = "linear"
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        check_new_tokens(self.max_new_tokens)


def check_new_tokens(count: Any) -> None:
    """Raise :class:`UsageError` unless an answer may have ``count`` tokens."""
    check_value("The setting max_new_tokens", count, int, least=1, most=MOST_NEW_TOKENS)
