"""The bodies of requests, as OpenAI's clients send them.

Owns: their fields, and which known fields are refused because ignoring them would change the
answer. Fields that nobody knows are ignored, like those that change nothing (``user``,
``metadata``, ``store``, …). Must not know: models or the engine.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from trunkline.errors import TooLargeError
from trunkline.inference.request import MAX_LOGPROBS
from trunkline.serving.errors import ApiError

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "audio": (),
    "modalities": (["text"],),
    "reasoning_effort": ("none",),
    "web_search_options": (),
    "echo": (False,),
    "suffix": ("",),
}
"""Fields that would change the answer, and the values (besides null) with which they don't."""


def _storable(text: str) -> str:
    """JSON can hold half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, a lone surrogate") from None
    return text


MOST_MESSAGES = 2048
"""Of one talk, as with OpenAI; each costs work however short it is."""

Text = Annotated[str, AfterValidator(_storable)]
ModelName = Annotated[Text, Field(min_length=1, max_length=256)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
"""Told of its first fault only, so that a list full of faults costs no more than another."""

Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Timeout = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
"""Seconds from its arrival after which a request is given up; the server's own limit holds too."""


class TextPart(BaseModel):
    """A piece of a message; there are only texts."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One turn of a talk; ``developer`` is today's word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]

    def plain(self) -> dict[str, str]:
        """Role and text as the base's chat template knows them."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What a stream says besides the answer."""

    include_usage: Flag | None = None


class Generation(BaseModel):
    """What chat and completion have in common.

    ``temperature`` is 1 by default, as OpenAI's clients expect; without a ``seed`` every request
    draws its own.
    """

    model_config = ConfigDict(extra="allow")

    model: ModelName
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Whole | None = None
    n: Whole | None = None
    seed: Whole | None = None
    stop: Text | Texts | None = None
    max_tokens: Whole | None = None
    timeout: Timeout | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None

    def check_supported(self) -> None:
        """Refuse, by name, what can't be done and can't be left undone in silence.

        Raises:
            ApiError: 400, naming the field.
        """
        given = self.model_extra or {}
        for name, harmless in _NEUTRAL.items():
            value = given.get(name)
            if value is not None and value not in harmless:
                raise ApiError(
                    f"{name} is not supported here.",
                    "Leave it out.",
                    param=name,
                    code="unsupported_parameter",
                )
        best_of = given.get("best_of")
        if best_of is not None and best_of != (self.n or 1):
            raise ApiError(
                "best_of is not supported other than equal to n.",
                "Leave it out.",
                param="best_of",
                code="unsupported_parameter",
            )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream is to end with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(self, most_new_tokens: int) -> dict[str, Any]:
        """The fields of :class:`~trunkline.inference.request.Request` that this decides.

        Raises:
            ApiError: 400, more tokens are asked for than the server gives.
        """
        new_tokens = self.new_tokens()
        if new_tokens is not None and new_tokens > most_new_tokens:
            raise ApiError(
                f"max_tokens can't be {new_tokens}.",
                f"This server gives {most_new_tokens} at most.",
                param="max_tokens",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return {
            "max_new_tokens": new_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": self.top_k or 0,
            "seed": secrets.randbelow(2**31) if self.seed is None else self.seed,
            "stop": tuple(stop),
            "n": 1 if self.n is None else self.n,
        }

    def new_tokens(self) -> int | None:
        """How many are asked for."""
        return self.max_tokens


class ChatBody(Generation):
    """``POST /v1/chat/completions``."""

    messages: Annotated[
        list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: Whole | None = None
    logprobs: Flag | None = None
    top_logprobs: Whole | None = None

    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def scores(self) -> int | None:
        """How many likeliest tokens are to be told; None: no log probabilities at all.

        Raises:
            ApiError: 400, ``top_logprobs`` without ``logprobs``, or out of range.
        """
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            raise ApiError(
                f"top_logprobs can't be {self.top_logprobs}.",
                f"0 to {MAX_LOGPROBS}.",
                param="top_logprobs",
            )
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise ApiError(
                "top_logprobs needs logprobs.", "Send logprobs: true.", param="top_logprobs"
            )
        return None


class CompletionBody(Generation):
    """``POST /v1/completions``; a prompt is text, token ids are refused."""

    prompt: (
        Text
        | Texts
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    logprobs: Whole | None = None

    def prompts(self) -> list[str]:
        """The texts.

        Raises:
            ApiError: 400, there are none, or they are token ids.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [one for one in self.prompt if isinstance(one, str)]
        if not texts or len(texts) < len(self.prompt):
            raise ApiError(
                "prompt is not a text or a list of texts.",
                "Token ids are not taken, since each adapter has its own template.",
                param="prompt",
            )
        return texts


class PredictBody(BaseModel):
    """``POST /v1/classify`` and ``/v1/regress``."""

    model: ModelName
    input: Text | Texts
    timeout: Timeout | None = None

    def texts(self) -> list[str]:
        """The texts.

        Raises:
            ApiError: 400, there are none.
        """
        texts = [self.input] if isinstance(self.input, str) else self.input
        if not texts:
            raise ApiError("input is empty.", "Give a text or a list of texts.", param="input")
        return texts


def check_size(texts: list[str], most_texts: int, most_chars: int) -> None:
    """Refuse more than one request may hold.

    Raises:
        TooLargeError: too many texts, or too many characters in all.
    """
    if len(texts) > most_texts:
        raise TooLargeError(
            f"The request holds {len(texts):,} texts.", f"Send {most_texts:,} at most at once."
        )
    chars = sum(map(len, texts))
    if chars > most_chars:
        raise TooLargeError(
            f"The request's texts have {chars:,} characters.", f"Send {most_chars:,} at most."
        )
