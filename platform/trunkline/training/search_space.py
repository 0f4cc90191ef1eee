"""What a search may choose: settings with a range or a list of values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from trunkline.contracts import Settings
from trunkline.errors import UsageError
from trunkline.training.job import TrainingJob, with_settings

if TYPE_CHECKING:
    import optuna

SPACE: Mapping[str, str] = {
    "learning_rate": "1e-4:2e-3:log",
    "r": "8,16,32",
    "weight_decay": "0:0.1",
    "lora_dropout": "0:0.1",
}
"""What is searched by default: a range ``low:high[:log]``, or values with commas."""

_FIXED = ("split_seed", "max_train_samples", "seed")
"""Settings that choose the rows, or the luck of a training."""

_RANGE = re.compile(r"([^:,]+):([^:,]+)(:log)?")


@dataclass(frozen=True, slots=True)
class Choice:
    """The values that one setting may take."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    def draw(self, trial: optuna.Trial) -> Any:
        """A value for a trial."""
        if self.values:
            return trial.suggest_categorical(self.name, list(self.values))
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


def parse_space(job: TrainingJob, space: Mapping[str, str]) -> tuple[Choice, ...]:
    """The choices that texts such as ``1e-4:2e-3:log`` and ``8,16,32`` describe.

    Raises:
        NotFoundError: there is no such setting.
        UsageError: a range or a value is malformed or out of the setting's range.
    """
    kinds = {spec.name: type(spec.default) for spec in fields(Settings)}
    choices = []
    for name, text in space.items():
        if name in _FIXED:
            raise UsageError(
                f"{name} can't be searched: scores on other rows can't be compared.",
                f"Set it with --set {name}=VALUE.",
            )
        match = _RANGE.fullmatch(text.strip())
        ends = match.groups()[:2] if match else tuple(text.split(","))
        values = [
            getattr(with_settings(job.recipe, {name: end.strip()}).settings, name) for end in ends
        ]
        if match is None:
            choices.append(Choice(name, tuple(dict.fromkeys(values))))
            continue
        low, high = values
        if kinds[name] not in (int, float) or not low < high or (match[3] and low <= 0):
            raise UsageError(
                f"The range {text!r} of {name} is not one.",
                "Write low:high, or low:high:log with a low above 0, such as 1e-4:2e-3:log.",
            )
        choices.append(
            Choice(name, low=low, high=high, log=bool(match[3]), integer=kinds[name] is int)
        )
    return tuple(choices)


def start_of(job: TrainingJob, choice: Choice) -> Any:
    """The recipe's own value, or the nearest that the search may choose."""
    own = getattr(job.settings, choice.name)
    if choice.values:
        return own if own in choice.values else choice.values[0]
    return min(max(own, choice.low), choice.high)
