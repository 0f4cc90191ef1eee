"""The settings of a recipe, and the validators of fields: name, type, range, choices."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import wraps
from typing import Any, TypeVar

from trunkline.errors import UsageError

Spec = TypeVar("Spec", bound=type)

SCHEDULERS = (
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup",
    "inverse_sqrt",
)  # fmt: skip
"""transformers' learning-rate schedules that need no arguments of their own."""

_OTHER_NAMES = {
    "alpha": "lora_alpha",
    "batch_size": "per_device_train_batch_size",
    "bf16": "precision",
    "cutoff_len": "max_length",
    "dropout": "lora_dropout",
    "dtype": "precision",
    "epochs": "num_train_epochs",
    "fp16": "precision",
    "fp32": "precision",
    "img_size": "image_size",
    "input_size": "image_size",
    "lora_r": "r",
    "lora_rank": "r",
    "lr": "learning_rate",
    "max_seq_length": "max_length",
    "patience": "early_stopping_patience",
    "rank": "r",
    "resolution": "image_size",
    "rslora": "use_rslora",
    "scheduler": "lr_scheduler_type",
    "torch_dtype": "precision",
    "train_batch_size": "per_device_train_batch_size",
    "warmup_steps": "warmup_ratio",
}
"""Settings of other programs → the setting that serves the same purpose, for hints."""

_LAYERS = re.compile(r"|[0-9]+(,[0-9]+)*|top-[1-9][0-9]*", re.ASCII)
_MODULES = re.compile(r"[\w.,-]+")
_INITIALIZATION = re.compile(r"true|gaussian|orthogonal|olora|pissa(_niter_[1-9][0-9]?)?", re.ASCII)
_NOUNS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def checks_field_names(spec: Spec) -> Spec:
    """Class decorator: a dataclass refuses a field that it lacks and suggests the nearest one.

    Its constructor then raises :class:`UsageError` instead of ``TypeError``.
    """
    names = tuple(one.name for one in fields(spec))
    construct = spec.__init__  # type: ignore[misc]

    @wraps(construct)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        for name in values:
            if name not in names:
                raise _unknown_field(spec.__name__, name, names)
        construct(self, *args, **values)

    spec.__init__ = checked  # type: ignore[misc]
    return spec


def nearest_name(name: str, names: Collection[str]) -> str | None:
    """The field of ``names`` that was probably meant by ``name``."""
    name = name.lower()
    if _OTHER_NAMES.get(name) in names:
        return _OTHER_NAMES[name]
    return next(iter(get_close_matches(name, names, n=1, cutoff=0.5)), None)


def _unknown_field(owner: str, name: str, names: Collection[str]) -> UsageError:
    nearest = nearest_name(name, names)
    question = f" Did you mean {nearest!r}?" if nearest else ""
    return UsageError(
        f"{owner} has no field {name!r}.{question}", f"Its fields are: {', '.join(names)}."
    )


def check_value(
    subject: str,
    value: Any,
    kind: type,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Sequence[str] = (),
    help: str = "",
) -> None:
    """Raise :class:`UsageError` unless ``value`` has the type and lies in the range.

    Args:
        subject: what the value is for, as the start of a sentence: ``The setting r``.
        value: any object; an int is accepted as a float, a bool never as a number.
        kind: ``int``, ``float``, ``bool`` or ``str``.
        least, most: the inclusive range of a number; None: unbounded.
        choices: the accepted texts; empty: any.
        help: what the value means, for the hint.
    """
    if not is_kind(value, kind):
        remedy = _range_hint(least, most) if kind in (int, float) else f"Give {noun_for(kind)}."
        raise UsageError(
            f"{subject} must be {noun_for(kind)}, not {value!r}.",
            f"{help[:1].upper()}{help[1:]}." if help else remedy,
        )
    if choices and value not in choices:
        raise UsageError(f"{subject} can't be {value!r}.", f"Use one of: {', '.join(choices)}.")
    if (least is not None and value < least) or (most is not None and value > most):
        meaning = f": {help}" if help else ""
        raise UsageError(
            f"{subject} can't be {value!r}.", f"{_range_hint(least, most)[:-1]}{meaning}."
        )


def is_kind(value: Any, kind: type) -> bool:
    """Whether ``value`` has the type; a float must be finite, and may be given as an int."""
    if kind is float:
        return is_finite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def is_finite(value: Any) -> bool:
    """Whether ``value`` is an int or a float that is finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def noun_for(kind: type) -> str:
    """The noun for a type in a message: ``an integer``."""
    return _NOUNS[kind]


def _range_hint(least: float | None, most: float | None) -> str:
    if least is None:
        return "Give a finite number."
    return (
        f"It must be at least {least}."
        if most is None
        else (f"It must be between {least} and {most}.")
    )


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


@checks_field_names
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
    loraplus_lr_ratio: float = _setting(
        0.0,
        "learning rate of the B matrices over that of the others (LoRA+); 0: the same",
        least=0.0,
    )
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
    init_lora_weights: str = _setting(
        "true",
        "how the matrices start: 'true', 'gaussian', 'orthogonal', 'olora', 'pissa' or "
        "'pissa_niter_4'",
    )
    use_rslora: bool = _setting(False, "scale by alpha / sqrt(r) (rank-stabilized LoRA)")
    use_dora: bool = _setting(
        False, "also train the magnitude of each output (DoRA); inference costs more"
    )
    target_modules: str = _setting(
        "all-linear", "'all-linear', or module names with commas: 'q_proj,v_proj'"
    )
    layers_to_transform: str = _setting(
        "", "layers to adapt: numbers with commas ('0,1,2') or 'top-10'; empty: all"
    )
    max_length: int = _setting(
        128, "longest prompt with answer, in tokens; a longer text is cut", least=4
    )
    image_size: int = _setting(
        0,
        "shorter edge of the pictures that an image base reads, in pixels; 0: as the base states",
        least=0,
        most=4096,
    )
    evals_per_epoch: int = _setting(2, "validations in an epoch", least=1, most=100)
    early_stopping_patience: int = _setting(
        4, "stop after this many validations without improvement; 0: never", least=0
    )
    calibrate: bool = _setting(
        True, "fit a temperature and abstention thresholds on the validation rows"
    )
    frozen_cache_mib: int = _setting(
        2048,
        "with layers_to_transform: memory for the outputs of the layers below, in MiB; 0: none",
        least=0,
    )
    precision: str = _setting(
        "auto",
        "arithmetic of training; auto: bf16 where the device is fast at it, else fp32",
        choices=("auto", "fp32", "bf16"),
    )
    seed: int = _setting(0, "seed of initialization and row order", least=0, most=2**31 - 1)
    split_seed: int = _setting(0, "seed of the split by group", least=0, most=2**31 - 1)

    @property
    def subtracts_initial(self) -> bool:
        """Whether training takes the first ``s·BA`` out of the base's weights (PiSSA, OLoRA).

        The saved adapter then has twice the rank, so that it fits the unchanged base.
        """
        return self.init_lora_weights.startswith(("pissa", "olora"))

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
    elif name == "init_lora_weights":
        value = "true" if value is True else value.lower() if isinstance(value, str) else value
    subject = f"The setting {name}"
    check_value(subject, value, type(spec.default), **spec.metadata)
    malformed = name == "layers_to_transform" and not _LAYERS.fullmatch(value)
    unknown = name == "init_lora_weights" and not _INITIALIZATION.fullmatch(value)
    unnamed = name == "target_modules" and not _MODULES.fullmatch(value)
    if malformed or unknown or unnamed:
        raise UsageError(f"{subject} can't be {value!r}.", f"Give {spec.metadata['help']}.")
    return value


def _joined(value: Any, kind: type) -> Any:
    """Text without spaces, or a list of names or numbers as such text; others as they are."""
    if isinstance(value, str):
        return re.sub(r"\s*,\s*", ",", value.strip())
    if isinstance(value, list | tuple | set) and value and all(is_kind(one, kind) for one in value):
        return ",".join(str(one) for one in (sorted(value) if isinstance(value, set) else value))
    return value
