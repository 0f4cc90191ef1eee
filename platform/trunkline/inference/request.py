"""What is asked and what is answered. Must not know: torch, the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trunkline.errors import UsageError

_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """One text for one adapter.

    Attributes:
        adapter: a ref such as ``medical/icd10-chapter@3``; None is the bare base.
        text: put into the adapter's template; for the bare base, a user's message.
        max_new_tokens: of a generated answer; None: the adapter's own, for the base 64.
        temperature: 0 takes the likeliest token each time.
        top_p: nucleus sampling (Holtzman et al. 2020), with ``temperature`` above 0.
        seed: of the sampling.
        messages: a whole talk (``role``, ``content``) instead of a text, for generation.

    Raises:
        UsageError: a value is of the wrong kind or out of range.
    """

    adapter: str | None
    text: str = ""
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    messages: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise UsageError(
                f"{self.adapter!r} is not a ref.", "Give a text, or None for the base."
            )
        if not isinstance(self.text, str):
            raise UsageError(
                f"The text is {self.text!r}, a {type(self.text).__name__}.", "Give a text."
            )
        if self.max_new_tokens is not None:
            _check_number("max_new_tokens", self.max_new_tokens, int, 1, _MOST, "At least 1.")
        _check_number("temperature", self.temperature, float, 0, 10, "0 to 10.")
        _check_number("top_p", self.top_p, float, 1e-9, 1, "Above 0, at most 1.")
        _check_number("seed", self.seed, int, 0, _MOST, "A whole number, 0 or more.")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and from whom.

    Attributes:
        adapter: the immutable version that answered (``medical/icd10-chapter@3``), or ``base``.
        digest: that version's identity; of the base, the base's.
        task: classification, regression or generation.
        label, probabilities: of a classification.
        value, unit: of a regression.
        text, finish: of a generation; ``finish`` is ``stop`` or ``length``.
        prompt_tokens, new_tokens: counts.
    """

    adapter: str
    digest: str
    task: str
    prompt_tokens: int
    new_tokens: int = 0
    label: str | None = None
    probabilities: dict[str, float] | None = None
    value: float | None = None
    unit: str | None = None
    text: str | None = None
    finish: str | None = None

    @property
    def output(self) -> str | float:
        """The label, the number or the text."""
        result = self.label if self.label is not None else self.value
        return self.text or "" if result is None else result

    @property
    def confidence(self) -> float | None:
        """Probability of the chosen label."""
        if self.probabilities is None or self.label is None:
            return None
        return self.probabilities[self.label]

    def to_json(self) -> dict[str, Any]:
        """The fields that this task has."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in values.items() if value is not None}


def _check_number(name: str, value: Any, kind: type, least: float, most: float, hint: str) -> None:
    typed = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not typed or not least <= value <= most:
        raise UsageError(f"{name} can't be {value!r}.", hint)
