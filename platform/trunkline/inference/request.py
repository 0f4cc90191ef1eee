"""The public request and answer types; free of torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from trunkline.adapters.artifact import Artifact
from trunkline.contracts import Span, Target
from trunkline.errors import UsageError
from trunkline.images import ImageSource
from trunkline.refs import BASE

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_LENGTH = 256
MAX_TEMPERATURE = 10
MIN_SEED, MAX_SEED = -(2**63), 2**64 - 1
_MAX_INT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """One text for one adapter.

    Attributes:
        adapter: a ref such as ``medical/icd10-chapter@3``; None is the bare base.
        text: inserted into the adapter's template; for the bare base, a user message.
        max_new_tokens: limit of a generated answer; None: the adapter's own, 64 for the base.
            An answer also ends where the context does.
        temperature: 0 takes the likeliest token at each step.
        top_p: nucleus sampling (Holtzman et al. 2020), with ``temperature`` above 0; 0 takes the
            likeliest token.
        seed: of the sampling; answer ``i`` of one request is sampled with ``seed + i``.
        messages: a conversation (``role``, ``content``) instead of a text, for generation. The
            adapter's template is applied to the last message, which must be the user's; a template
            without chat uses that message alone.
        top_k: sample from this many likeliest tokens; 0: from all.
        stop: the answer ends before the first of these texts.
        logprobs: None: no log probabilities; a number: that of each new token, and of this many
            likeliest alternatives.
        n: number of answers to one prompt.
        deadline: seconds from submission until the request ends with an error.
        raw: the text is the complete prompt, without a template; for the base, and with ``echo`` or
            ``embed``.
        token_ids: the complete prompt, instead of a text.
        echo: the answer includes the log probabilities of the prompt's tokens if ``logprobs`` is
            set, and ``max_new_tokens`` may be 0.
        embed: the answer is the mean of the prompt's last hidden states, of length 1.
        ignore_eos: tokens that end an answer don't end it, and add no text; for load tests.
        abstain: the wanted precision of a classification, such as 0.95: a text whose likeliest
            label is less probable than the adapter's threshold for it gets no label.
        candidate: of a ranking: what is scored for the text, the query.
        image: a picture instead of a text, for an adapter that reads pictures; beside a text for
            a fusion, which reads both.

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
    top_k: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    n: int = 1
    deadline: float | None = None
    raw: bool = False
    token_ids: tuple[int, ...] = ()
    echo: bool = False
    embed: bool = False
    ignore_eos: bool = False
    abstain: float | None = None
    candidate: str | None = None
    image: ImageSource | None = None

    def __post_init__(self) -> None:
        if self.adapter is not None and not isinstance(self.adapter, str):
            raise UsageError(
                f"{self.adapter!r} is not a ref.", "Give a string, or None for the base."
            )
        if not isinstance(self.text, str):
            raise UsageError(
                f"The text is {self.text!r}, a {type(self.text).__name__}.", "Give a string."
            )
        if not isinstance(self.candidate, str | None):
            raise UsageError(f"The candidate is {self.candidate!r:.60}.", "Give a string.")
        if self.image is not None:
            _check_image(self)
        if self.max_new_tokens is not None:
            least = 0 if self.echo else 1
            _check_number(
                "max_new_tokens",
                self.max_new_tokens,
                int,
                least,
                _MAX_INT,
                f"Give an integer of at least {least}.",
            )
        _check_number(
            "temperature",
            self.temperature,
            float,
            0,
            MAX_TEMPERATURE,
            f"Give a number from 0 to {MAX_TEMPERATURE}.",
        )
        _check_number("top_p", self.top_p, float, 0, 1, "Give a number from 0 to 1.")
        _check_number("seed", self.seed, int, MIN_SEED, MAX_SEED, "Give an integer of 64 bits.")
        _check_number("top_k", self.top_k, int, 0, _MAX_INT, "Give an integer; 0 means all tokens.")
        _check_number("n", self.n, int, 1, MAX_CHOICES, f"Give 1 to {MAX_CHOICES}.")
        if self.logprobs is not None:
            _check_number(
                "logprobs", self.logprobs, int, 0, MAX_LOGPROBS, f"Give 0 to {MAX_LOGPROBS}."
            )
        if self.abstain is not None:
            _check_number("abstain", self.abstain, float, 0.5, 0.99, "Give 0.5 to 0.99.")
        if self.deadline is not None:
            _check_number("deadline", self.deadline, float, 0, 1e9, "Give seconds, at least 0.")
        if len(self.stop) > MAX_STOP_STRINGS or not all(
            isinstance(one, str) and 0 < len(one) <= MAX_STOP_LENGTH for one in self.stop
        ):
            raise UsageError(
                f"stop can't be {str(self.stop)[:80]}.",
                f"Give at most {MAX_STOP_STRINGS} texts of 1 to {MAX_STOP_LENGTH} characters.",
            )
        alone = self.adapter in (None, BASE) or self.echo or self.embed
        if self.raw and (self.messages or not alone):
            raise UsageError(
                "A raw prompt must be a text for the base.",
                "Leave raw out: an adapter's prompts use the template it was trained with.",
            )


@dataclass(frozen=True, slots=True)
class TopToken:
    """One of the likeliest tokens, with its natural log probability."""

    id: int
    token: str
    logprob: float
    raw_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token with its natural log probability, before temperature and truncation.

    Attributes:
        token: its text; replacement characters where it is only part of a character.
        logprob: None: the first token of a prompt.
        top: the likeliest tokens, best first.
        offset: position in the text at which the token begins, in characters; a token that is part
            of a character begins where the character does.
        raw_bytes: what it adds to the UTF-8 of the text; nothing if it is a special token.
    """

    id: int
    token: str
    logprob: float | None
    top: tuple[TopToken, ...] = ()
    offset: int = 0
    raw_bytes: bytes = b""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the answers to a prompt; ``finish`` is ``stop`` or ``length``."""

    index: int
    text: str
    finish: str
    new_tokens: int
    scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamChunk:
    """The next part of one choice in a stream; the last one has its ``finish``."""

    index: int
    text: str
    scores: tuple[TokenScore, ...] = ()
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredSpan:
    """A labeled part of a text: characters ``start`` up to, not including, ``end``.

    Attributes:
        text: these characters.
        probability: the lowest of its tokens' tags.
    """

    start: int
    end: int
    label: str
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request.

    Attributes:
        adapter: the immutable version that answered (``medical/icd10-chapter@3``), or ``base``.
        digest: of that version, or of the base.
        task: its kind.
        label, probabilities: of a classification.
        labels, probabilities: of a multilabel task: the labels that reach the threshold, and the
            probability of every label.
        spans: of tagging.
        abstained: no label was probable enough for the wanted precision, so ``label`` is None.
        value, unit: of a regression; of a ranking, the score of the candidate.
        text, finish: of a generation; ``finish`` is ``stop`` or ``length``.
        choices: all answers of a generation; text and finish are those of the first.
        prompt_tokens, new_tokens: counts; new tokens of all choices together.
        cached_tokens: tokens of the prompt that came from the prefix cache.
        truncated: whether the end of the text was cut off, as in training; see ``max_length``.
        prompt_scores: of the tokens of the prompt, if requested.
        embedding: of the text, if requested.
    """

    adapter: str
    digest: str
    task: str
    prompt_tokens: int
    new_tokens: int = 0
    cached_tokens: int = 0
    truncated: bool = False
    label: str | None = None
    abstained: bool = False
    labels: tuple[str, ...] | None = None
    probabilities: dict[str, float] | None = None
    spans: tuple[ScoredSpan, ...] | None = None
    value: float | None = None
    unit: str | None = None
    text: str | None = None
    finish: str | None = None
    choices: tuple[Choice, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()
    embedding: tuple[float, ...] = ()

    @property
    def output(self) -> Target:
        """The label, the labels, the number, the spans or the text."""
        if self.labels is not None:
            return self.labels
        if self.spans is not None:
            return tuple(Span(one.start, one.end, one.label) for one in self.spans)
        result = self.label if self.label is not None else self.value
        return self.text or "" if result is None else result

    @property
    def confidence(self) -> float | None:
        """Probability of the chosen label."""
        if self.probabilities is None or self.label is None:
            return None
        return self.probabilities[self.label]

    def to_json(self) -> dict[str, Any]:
        """The fields of this task; ``choices`` if there are several.

        ``cached_tokens`` is left out if it is 0, ``truncated`` and ``abstained`` if false.
        """
        nested = ("choices", "prompt_scores", "embedding", "spans")
        values = {name: getattr(self, name) for name in self.__slots__ if name not in nested}
        fields = {name: value for name, value in values.items() if value is not None}
        for name in ("cached_tokens", "truncated", "abstained"):
            if not fields[name]:
                del fields[name]
        if self.spans is not None:
            fields["spans"] = [asdict(span) for span in self.spans]
        if len(self.choices) > 1:
            fields["choices"] = [asdict(choice, dict_factory=_to_json) for choice in self.choices]
        return fields


@dataclass(frozen=True, slots=True)
class ResolvedRequest:
    """A request with the adapter version that answers it; ``artifact`` None is the bare base."""

    request: Request
    artifact: Artifact | None = None
    name: str = "base"


def _check_image(request: Request) -> None:
    """Raise :class:`UsageError` if a request for a picture has what only texts have."""
    if not isinstance(request.image, ImageSource):
        raise UsageError(
            f"The image is {request.image!r:.60}.", "Give a trunkline.images.ImageSource."
        )
    texts = ("messages", "token_ids", "candidate", "raw", "echo", "embed")
    for name in texts:
        if getattr(request, name):
            raise UsageError(
                f"A request has a picture and {name}.", "Send them as separate requests."
            )


def _to_json(fields: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(one) if isinstance(one, bytes) else one for name, one in fields}


def _check_number(name: str, value: Any, kind: type, low: float, high: float, hint: str) -> None:
    typed = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not typed or not low <= value <= high:
        raise UsageError(f"{name} can't be {value!r}.", hint)
