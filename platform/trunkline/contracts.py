"""The contract between the platform and its callers: specs of plugins, and progress listeners.

Specs are frozen values, checked when they are created. Callables inside a spec import what they
need when they are called, so listing plugins stays cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from trunkline.errors import UsageError

if TYPE_CHECKING:
    import random

    import torch

API = 1
"""The number of this contract; a plugin module declares it as ``TRUNKLINE_API = 1``."""

Task = Literal["classification", "regression", "generation"]
TASKS: tuple[Task, ...] = ("classification", "regression", "generation")

CleanStep = Literal["strip", "squeeze", "lowercase"]
CLEAN_STEPS: tuple[CleanStep, ...] = ("strip", "squeeze", "lowercase")

Target = str | float

MOST_NEW_TOKENS = 4096
"""The longest answer that a recipe may ask for, in tokens."""


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
        id: stable name of the row within its dataset; predictions are kept under it.
        text: what the model reads, before the template.
        target: the label (classification), the answer (generation) or the number (regression,
            in the dataset's unit).
        group: rows that are near-copies of one another share a group; a group is never divided
            between train, validation and test, and intervals resample groups.
        stratum: the split leaves at least one group of every stratum in train (for
            classification the label, unless given).
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
    """Named rows with a license, a source, and the way they are split.

    Attributes:
        name: ``domain/name``.
        description: one line for ``datasets list``.
        task: what the rows' targets are.
        load: reads the rows; called only when they are needed, always gives the same rows in the
            same order.
        license: SPDX identifier or a short sentence.
        source: where the bytes come from, with the version.
        grouping: one sentence: what a group is, and why it is held out as a whole.
        unit: of a regression target (``"USD"``).
        slices: the names in every row's ``slices``; figures are also given for each value.
        labels: the labels in a fixed order; empty: those of the rows, sorted.
        validation_share, test_share: of the groups.
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
    """Cleaning or augmentation of rows.

    Attributes:
        name: ``domain/name``.
        description: one line.
        stage: ``clean`` runs on every row of the dataset before it is split and gives one row, or
            none to drop it; ``augment`` runs on training rows only and may give several.
        apply: ``(row, rng) -> rows``. What a request must go through as well at inference belongs
            in :attr:`Template.clean` instead, because an artifact carries no plugin code.
    """

    name: str
    description: str
    stage: Literal["clean", "augment"]
    apply: Callable[[Row, random.Random], Iterable[Row]]


# ---------------------------------------------------------------------------- losses, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LossContext:
    """What a loss may look at when it is built.

    Attributes:
        labels: of the classification head, in the order of its outputs; else empty.
        counts: training rows by label; else empty.
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
        task: what it is for.
        build: gives ``loss(outputs, targets) -> scalar``. Shapes: classification
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
    """What a metric looks at: targets and predictions, row by row.

    For classification and generation these are strings, for regression floats in the unit.
    """

    targets: Sequence[Any]
    predictions: Sequence[Any]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """A figure over predictions.

    Attributes:
        name: ``domain/name``.
        description: one line, with the formula's source if it has one.
        task: what it is for.
        compute: called with at least one row; called a thousand times for an interval.
        higher_is_better: which direction wins.
    """

    name: str
    description: str
    task: Task
    compute: Callable[[Scored], float]
    higher_is_better: bool = True


# --------------------------------------------------------------------------- baselines, tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineContext:
    """What a baseline may use: the same split and the same text that the adapter gets.

    Attributes:
        recipe: its template, scale and ``max_new_tokens``.
        train, validation, test: fit on train, choose hyperparameters on validation, predict test.
        base: the loaded base (``model``, ``tokenizer``, ``info``), with no adapter.
    """

    recipe: RecipeSpec
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    base: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselinePredictions:
    """What a baseline predicts.

    Attributes:
        values: one prediction for each test row, in the order of the rows.
        detail: a few words on what was fitted, for example the chosen hyperparameters.
    """

    values: Sequence[Target]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSpec:
    """An inexpensive method that an adapter is compared with.

    Attributes:
        name: ``domain/name``.
        description: one line.
        tasks: the kinds of task that it can predict.
        predict: fits and predicts; called once per evaluation. Import heavy packages inside it.
    """

    name: str
    description: str
    tasks: tuple[Task, ...]
    predict: Callable[[BaselineContext], BaselinePredictions]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A kind of question, with what every recipe for it uses by default.

    A plugin's task builds on one of the core's three kinds, because an artifact must be served
    without the plugin that trained it; the artifact and the registry record the kind.

    Attributes:
        name: ``domain/name``.
        description: one line.
        kind: what the model outputs: one of several labels (``classification``), a number
            (``regression``) or a text (``generation``).
        loss: the loss of a recipe that says ``default``.
        baselines: every recipe of the task is compared with these, in addition to the baselines of
            the core's task for its kind.
    """

    name: str
    description: str
    kind: Task
    loss: str
    baselines: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------ recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """How a text becomes a prompt; stored in the artifact, so that inference can't drift.

    Attributes:
        prompt: holds ``{text}`` exactly once.
        clean: steps on the text before it is put in: ``strip`` ends, ``squeeze`` white space,
            ``lowercase``.
        chat: wrap the prompt as a user's message in the base's chat template.
        system: the system message, with ``chat`` only.
    """

    prompt: str = "{text}"
    clean: tuple[CleanStep, ...] = ("strip", "squeeze")
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or self.prompt.count("{text}") != 1:
            raise UsageError(
                f"The template {self.prompt!r} does not hold {{text}} exactly once.",
                "Write for example 'Diagnosis: {text}'.",
            )
        if not isinstance(self.chat, bool) or not isinstance(self.system, str | None):
            raise UsageError(
                f"A template wants chat true or false and system a text, not {self.chat!r} and "
                f"{self.system!r}.",
                "Leave both away for a plain prompt.",
            )
        for step in self.clean:
            if step not in CLEAN_STEPS:
                raise UsageError(
                    f"{step!r} is no cleaning step.", f"Known: {', '.join(CLEAN_STEPS)}."
                )
        if self.system is not None and not self.chat:
            raise UsageError("A template has a system message but chat is off.", "Set chat=True.")

    def cleaned(self, text: str) -> str:
        """The text after the cleaning steps, in the order given."""
        for step in self.clean:
            if step == "strip":
                text = text.strip()
            elif step == "squeeze":
                text = " ".join(text.split())
            else:
                text = text.lower()
        return text

    def filled(self, text: str) -> str:
        """The prompt with the cleaned text in its place."""
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
    """Every number that a recipe may set and ``--set`` may override; each is range-checked."""

    num_train_epochs: float = _setting(3.0, "passes over the training rows", least=0.0, most=1000)
    max_steps: int = _setting(0, "stop after so many optimizer steps; 0: by epochs", least=0)
    max_train_samples: int = _setting(0, "use at most so many training rows; 0: all", least=0)
    learning_rate: float = _setting(5e-4, "peak learning rate of AdamW", least=0.0, most=1.0)
    lr_scheduler_type: str = _setting(
        "linear", "how the learning rate falls", choices=("linear", "cosine", "constant")
    )
    warmup_ratio: float = _setting(0.06, "share of the steps that warm up", least=0.0, most=1.0)
    weight_decay: float = _setting(0.0, "of AdamW", least=0.0, most=1.0)
    per_device_train_batch_size: int = _setting(
        16, "rows in a step on the device", least=1, most=4096
    )
    gradient_accumulation_steps: int = _setting(
        1, "batches summed before an optimizer step", least=1, most=4096
    )
    r: int = _setting(16, "LoRA rank", least=1, most=1024)
    lora_alpha: float = _setting(
        32.0, "LoRA alpha; the update is scaled by alpha / rank", least=1e-6
    )
    lora_dropout: float = _setting(0.0, "LoRA dropout", least=0.0, most=0.9)
    use_rslora: bool = _setting(False, "scale by alpha / sqrt(rank) (rank-stabilized LoRA)")
    target_modules: str = _setting(
        "all-linear", "'all-linear', or module names with commas: 'q_proj,v_proj'"
    )
    layers_to_transform: int = _setting(0, "adapt only the topmost layers; 0: all", least=0)
    max_length: int = _setting(128, "longest prompt with answer, in tokens", least=4)
    evals_per_epoch: int = _setting(2, "validations in an epoch", least=1, most=100)
    early_stopping_patience: int = _setting(
        4, "stop after so many validations without a better one; 0: never", least=0
    )
    precision: str = _setting(
        "auto",
        "arithmetic of training: bf16 where the device is fast at it, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    seed: int = _setting(0, "of initialization and row order", least=0, most=2**31 - 1)
    split_seed: int = _setting(0, "of the split by group", least=0, most=2**31 - 1)

    def __post_init__(self) -> None:
        for spec in fields(self):
            check_setting(spec.name, getattr(self, spec.name))


def check_setting(name: str, value: Any) -> None:
    """Raise :class:`UsageError` unless ``value`` is of the setting's type and in its range."""
    spec = next(spec for spec in fields(Settings) if spec.name == name)
    wanted = type(spec.default)
    typed = isinstance(value, wanted) and not (wanted is not bool and isinstance(value, bool))
    if wanted is float:
        typed = _is_number(value)
    if not typed:
        raise UsageError(
            f"The setting {name} wants {_article(wanted)}, not {value!r}.",
            f"{name}: {spec.metadata['help']}.",
        )
    least, most, choices = (spec.metadata[key] for key in ("least", "most", "choices"))
    if choices and value not in choices:
        raise UsageError(
            f"The setting {name} can't be {value!r}.", f"One of: {', '.join(choices)}."
        )
    if wanted is str and not value.strip():
        raise UsageError(
            f"The setting {name} can't be {value!r}.", f"{name}: {spec.metadata['help']}."
        )
    if (least is not None and value < least) or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"between {least} and {most}"
        raise UsageError(
            f"The setting {name} can't be {value!r}.",
            f"It must be {bounds}: {spec.metadata['help']}.",
        )


def _is_number(value: Any) -> bool:
    """Whether ``value`` is an int or a float that is finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _article(kind: type) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return words[kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """What a version must show before an alias may move to it.

    Attributes:
        metric: the figure that decides; also chooses the best checkpoint.
        beats_baseline: the interval of the paired difference to the best baseline lies above zero.
        at_least: the lowest score that passes (highest, where lower is better).
        beats_champion: the interval of the paired difference to the present champion, on the same
            test rows, lies above zero.
        champion_margin: no worse than the champion by more than this: that interval lies above
            minus the margin, in the metric's unit.
        slices_at_least: no slice scores less than this (more, where lower is better).
        two_persons: who promotes is known by a key, and did not start the run or import the
            version.
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
            if bound is not None and not _is_number(bound):
                raise UsageError(
                    f"The gate's {name} is {bound!r}, not a finite number.",
                    "Give a number in the metric's unit, or None for no such condition.",
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
    """How an adapter is made.

    A recipe names the specs of its own plugin (``domain/name``) and the built-ins of ``core``
    (``accuracy`` or ``core/accuracy``).

    Attributes:
        name: ``domain/name``; also the name of the adapter it makes.
        description: one line.
        dataset: name of a :class:`DatasetSpec`.
        task: name of a :class:`TaskSpec` of the dataset's kind.
        template: text → prompt.
        settings: the defaults of this recipe.
        loss: ``default`` (the task's) or the name of a :class:`LossSpec`.
        metrics: names of :class:`MetricSpec`; the gate's is added if missing.
        gate: when a version may go live.
        transforms: names of :class:`TransformSpec`, in order.
        baselines: names of :class:`BaselineSpec`, in addition to the task's own.
        scale: of a regression target: ``linear`` or ``log``.
        max_new_tokens: of a generated answer.
    """

    name: str
    description: str
    dataset: str
    task: str
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
    """Raise :class:`UsageError` unless an answer may be ``count`` tokens long."""
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not 1 <= count <= MOST_NEW_TOKENS:
        raise UsageError(
            f"max_new_tokens can't be {count!r}.",
            f"It must be a whole number between 1 and {MOST_NEW_TOKENS}.",
        )
