"""What is asked and what is answered. Must not know: torch, the registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trunkline.errors import UsageError


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
    """

    adapter: str | None
    text: str = ""
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    messages: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens can't be {self.max_new_tokens}.", "At least 1.")
        if not 0 <= self.temperature <= 10:
            raise UsageError(f"temperature can't be {self.temperature}.", "0 to 10.")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p can't be {self.top_p}.", "Above 0, at most 1.")


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
