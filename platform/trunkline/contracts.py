"""The contract between the platform and its callers: specs of plugins, and progress listeners.

Specs are frozen values, checked when they are created. Callables inside a spec import what they
need when they are called, so listing plugins stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from trunkline.errors import UsageError
from trunkline.images import ImageInput as ImageInput
from trunkline.images import ImageSource as ImageSource
from trunkline.messages import Message as Message
from trunkline.redaction import redact
from trunkline.settings import Settings as Settings
from trunkline.settings import check_value, checks_field_names, is_finite
from trunkline.template import CLEAN_STEPS as CLEAN_STEPS
from trunkline.template import CleanStep as CleanStep
from trunkline.template import Template as Template

if TYPE_CHECKING:
    import torch

API = 1
"""Version of this contract; a plugin module declares it as ``TRUNKLINE_API = 1``."""

Task = Literal["classification", "multilabel", "regression", "generation", "tagging", "ranking"]
TASKS: tuple[Task, ...] = (
    "classification", "multilabel", "regression", "generation", "tagging", "ranking",
)  # fmt: skip

IMAGE_TASKS: tuple[Task, ...] = ("classification", "multilabel", "regression")
"""The kinds of task that can be learned of pictures."""


class Span(NamedTuple):
    """A labeled part of a text: the characters from ``start`` up to, not including, ``end``."""

    start: int
    end: int
    label: str


Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")
"""What rows hold, and what a base and its adapters read."""

Reads = Literal["text", "image", "text+image"]
"""What a version reads; ``text+image`` is a fusion of two adapters, which reads both."""

FusionMethod = Literal["average", "stacked"]
FUSION_METHODS: tuple[FusionMethod, ...] = ("average", "stacked")
"""How the probabilities of a text and an image adapter are combined."""

Target = str | float | tuple[str, ...] | tuple[Span, ...]
"""Of a classification the label, of a generation the answer, of a regression the number; of a
multilabel task the labels, of tagging the spans, of a ranking the relevant candidate. What a
ranking predicts are its candidates, the best first."""

MAX_CANDIDATES = 1000
"""The largest number of candidates of a ranking."""

MOST_NEW_TOKENS = 4096
"""The longest answer that a recipe may generate, in tokens."""


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


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example.

    A target that is a number of numpy or the like becomes a Python number. The slices are copied,
    and can't be changed afterwards.

    Attributes:
        id: stable name of the row within its dataset; predictions are stored under it.
        text: what the model reads, before the template.
        target: the label (classification), the labels (multilabel, perhaps none), the answer
            (generation), the number (regression, in the dataset's unit), the spans (tagging; they
            don't overlap) or the relevant candidate (ranking).
        candidates: of a ranking: different texts, the relevant one among them.
        group: near-duplicates share a group; a group is never divided between train, validation
            and test, and intervals resample groups.
        stratum: the split leaves at least one group of each stratum in train; by default the
            label, for classification.
        slices: name → value for the slices that the dataset declares (``{"country": "DE"}``).
        split: the part that the row belongs to in an official split: ``train``, ``validation`` or
            ``test``. All rows have one, or none has; a group lies in one part. Without validation
            rows, groups of train are taken.
        history: of a conversation, the messages before its last user message, which is ``text``;
            for a template that is a chat.
        image: of a dataset of pictures, instead of a text, or beside one if the dataset has both:
            the path of a picture, its encoded bytes, or a function that returns them. It becomes
            an :class:`~trunkline.images.ImageSource`.
    """

    id: str
    text: str = ""
    target: Target
    group: str
    candidates: tuple[str, ...] = ()
    stratum: str | None = None
    slices: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    split: str | None = None
    history: tuple[Message, ...] = ()
    image: ImageInput | ImageSource | None = None

    @property
    def picture(self) -> ImageSource:
        """The picture of a row that has one."""
        assert isinstance(self.image, ImageSource)
        return self.image

    @property
    def title(self) -> str:
        """The text, or the name of the picture."""
        return self.text if self.image is None else self.picture.name

    @property
    def full_text(self) -> str:
        """The texts of the history, if any, and the text; a line break between two."""
        return "\n".join((*(one.content for one in self.history), self.text))

    def __post_init__(self) -> None:
        target: Any = self.target
        if type(target) not in (str, bool, int, float) and isinstance(target, Real):
            number = int(target) if isinstance(target, Integral) else float(target)
            object.__setattr__(self, "target", number)
        if isinstance(self.slices, dict):
            object.__setattr__(self, "slices", MappingProxyType(dict(self.slices)))
        if self.image is not None and not isinstance(self.image, ImageSource):
            object.__setattr__(self, "image", ImageSource(self.image))


@checks_field_names
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
        modality: what the rows hold: ``text``, or ``image``: each has a picture and no text.
        text_and_image: each row has both; ``modality`` is what the adapter reads.
        restrictions: what the license forbids, in a sentence; ``train``, the listing of plugins and
            the model card repeat it.
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
    modality: Modality = "text"
    restrictions: str = ""
    text_and_image: bool = False

    @property
    def has_pictures(self) -> bool:
        """Whether each row has a picture."""
        return self.modality == "image" or self.text_and_image

    @property
    def restricted_license(self) -> str | None:
        """The license with what it forbids; None if it forbids nothing."""
        return f"{self.license}: {self.restrictions}" if self.restrictions else None

    def __post_init__(self) -> None:
        _redact_texts(self, "description", "license", "source", "grouping", "unit", "restrictions")


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class TransformSpec:
    """A step that cleans or augments rows.

    Attributes:
        name: ``domain/name``.
        description: one line.
        stage: ``clean`` runs on each row before the split and yields one row, or none to drop it;
            ``augment`` runs on training rows only and may yield several. ``pixels`` changes the
            picture of a training row, anew in each epoch; ``mix`` mixes the pictures of a training
            batch.
        apply: ``(row, rng) -> rows``; draws random numbers from ``rng`` only, so that a run can be
            repeated. Cleaning that requests need at inference too belongs in
            :attr:`Template.clean`, because an artifact contains no plugin code. For ``pixels``
            ``(pixels, rng) -> pixels``, both ``[height, width, 3]`` uint8 and not changed in place.
            For ``mix`` ``(pixels, others, rng) -> (pixels, share)``: normalized pictures and those
            to mix in, ``[batch, 3, height, width]`` float32; the rows' own targets count ``share``
            of the loss, those of the others the rest.
    """

    name: str
    description: str
    stage: Literal["clean", "augment", "pixels", "mix"]
    apply: Callable[..., Any]

    @property
    def changes_pictures(self) -> bool:
        """Whether it changes pictures while they are trained on, and not rows."""
        return self.stage in ("pixels", "mix")


# ---------------------------------------------------------------------------- losses, metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class LossContext:
    """The data available when a loss is built.

    Attributes:
        labels: labels of a classification or multilabel head, in the order of its outputs; the
            tags of tagging; else empty.
        counts: training rows per label, of classification and multilabel; else empty.
        rows: training rows.
        options: the options of the loss, each with the recipe's value or its default.
    """

    labels: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    rows: int = 0
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


LossFunction = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec:
    """A training loss.

    Attributes:
        name: ``domain/name``.
        description: one line.
        task: the task that it is for.
        build: returns ``loss(outputs, targets) -> scalar``. Shapes: classification
            ``[batch, labels]`` float logits and ``[batch]`` int64 label indices; multilabel
            ``[batch, labels]`` float logits and 0 or 1; tagging ``[tokens, tags]`` float logits and
            ``[tokens]`` int64 indices, of the texts' tokens; ranking ``[batch, candidates]`` float
            scores, -inf where a row has fewer, and ``[batch]`` int64 indices; regression
            ``[batch]`` and ``[batch]`` float, both on the recipe's scale (standardized, after the
            logarithm if the recipe says so); generation ``[tokens, vocabulary]`` float logits and
            ``[tokens]`` int64 token ids of the answer. The scalar and its gradient must be finite,
            also for one row and for outputs of ±100.
        options: name → default of each option that a recipe's ``loss_options`` may set; a value
            must have the default's type.
        is_mean: whether the loss of a batch is the mean of the losses of its rows, or of its tokens
            for generation. A large batch is then computed in parts, which takes less memory.
    """

    name: str
    description: str
    task: Task
    build: Callable[[LossContext], LossFunction]
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    is_mean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """Targets and predictions to score, row by row.

    For classification and generation targets and predictions are strings, for regression floats in
    the dataset's unit, for multilabel tuples of labels, for tagging tuples of :class:`Span`; for
    ranking a target is the relevant candidate and a prediction all candidates, the best first.

    Attributes:
        targets: the true value of each row.
        predictions: the predicted value of each row, in the same order.
        labels: all labels of a classification, multilabel or tagging task, in a fixed order, also
            those that no row has; else empty.
    """

    targets: Sequence[Any]
    predictions: Sequence[Any]
    labels: tuple[str, ...] = ()


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """A score over predictions.

    Attributes:
        name: ``domain/name``.
        description: one line, with the formula's source if it has one.
        task: the task that it is for.
        compute: returns the score of one row or more, a finite number also where every prediction
            is wrong or the same. Targets and predictions are lists or numpy arrays, and must not be
            changed. Called a thousand times per interval.
        higher_is_better: whether a higher score is better.
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
        base: the loaded base (``model``, ``info``, of text also ``tokenizer``), with no adapter.
    """

    recipe: RecipeSpec
    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    base: Any = None


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class BaselinePredictions:
    """What a baseline predicts.

    Attributes:
        values: one prediction for each test row, in the order of the rows; see :class:`Scored`.
        detail: a few words on what was fitted, for example the chosen hyperparameters.
    """

    values: Sequence[Target]
    detail: str = ""


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSpec:
    """An inexpensive method that an adapter is compared with.

    Attributes:
        name: ``domain/name``.
        description: one line.
        tasks: the kinds of task that it can predict.
        predict: fits and predicts; called once per evaluation. Import heavy packages inside it.
        modalities: of the rows that it can predict.
    """

    name: str
    description: str
    tasks: tuple[Task, ...]
    predict: Callable[[BaselineContext], BaselinePredictions]
    modalities: tuple[Modality, ...] = ("text",)


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """A kind of question, with what every recipe for it uses by default.

    A plugin's task builds on one of the core's kinds, because an artifact must be served
    without the plugin that trained it; the artifact and the registry record the kind.

    Attributes:
        name: ``domain/name``.
        description: one line.
        kind: what the model outputs: one of several labels (``classification``), any of several
            labels (``multilabel``), a number (``regression``), a text (``generation``), labeled
            spans (``tagging``) or an order of candidates (``ranking``).
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


@checks_field_names
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


@checks_field_names
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSpec:
    """How an adapter is trained.

    A recipe names the specs of its own plugin (``domain/name``) and the built-ins of ``core``
    (``accuracy`` or ``core/accuracy``).

    Attributes:
        name: ``domain/name``; also the name of the adapter.
        description: one line.
        dataset: name of a :class:`DatasetSpec`.
        task: name of a :class:`TaskSpec` of the dataset's kind.
        template: text → prompt.
        settings: the settings of this recipe, which ``--set`` can override.
        loss: ``default`` (the task's) or the name of a :class:`LossSpec`.
        loss_options: values of the loss's options, such as ``{"label_smoothing": 0.1}``.
        metrics: names of :class:`MetricSpec`; the gate's is added if missing.
        gate: the conditions for promotion.
        transforms: names of :class:`TransformSpec`, in order.
        baselines: names of :class:`BaselineSpec`, in addition to the task's own.
        scale: scale of a regression target: ``linear`` or ``log``.
        max_new_tokens: the largest number of tokens of a generated answer.
    """

    name: str
    description: str
    dataset: str
    task: str
    gate: Gate
    template: Template = Template()  # noqa: RUF009  # frozen
    settings: Settings = Settings()  # noqa: RUF009  # frozen
    loss: str = "default"
    loss_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    metrics: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    scale: Literal["linear", "log"] = "linear"
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        check_new_tokens(self.max_new_tokens)
        _redact_texts(self, "description")


def _redact_texts(spec: Any, *names: str) -> None:
    """Remove secrets from texts of a spec that are stored and published with its adapters."""
    for name in names:
        if isinstance(value := getattr(spec, name), str):
            object.__setattr__(spec, name, redact(value))


def check_new_tokens(count: Any) -> None:
    """Raise :class:`UsageError` unless an answer may have ``count`` tokens."""
    check_value("The setting max_new_tokens", count, int, least=1, most=MOST_NEW_TOKENS)
