"""The bodies of requests, as OpenAI's clients send them.

Known fields that are not supported are refused if ignoring them would change the answer. Unknown
fields are ignored, like those that change nothing (``user``, ``metadata``, ``store``).
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
)

from trunkline.inference.request import MAX_LOGPROBS
from trunkline.serving.errors import ApiError

MAX_MESSAGES = 2048
"""Messages of one conversation, as with OpenAI; each one costs time, however short it is."""

_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
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
"""Unsupported field → its values, besides null, that do not change the answer."""


def _reject_surrogates(text: str) -> str:
    """Refuse half a character (a lone surrogate), which JSON can contain but no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains half a character, a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_reject_surrogates)]
ModelName = Annotated[Text, Field(min_length=1, max_length=256)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
"""Validation stops at the first invalid item, so that a list of invalid items costs little."""

Timeout = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
"""Seconds from arrival until the request is cancelled; the server's own limit applies too."""


class TextPart(BaseModel):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: Text


class Message(BaseModel):
    """One message of a conversation; ``developer`` means ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]

    def to_template(self) -> dict[str, str]:
        """Role and text as chat templates expect them."""
        text = self.content
        if not isinstance(text, str):
            text = "".join(part.text for part in text)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(BaseModel):
    """What a stream contains besides the answer."""

    include_usage: StrictBool | None = None


class GenerationBody(BaseModel):
    """The fields that chat and completion requests share.

    As OpenAI's clients expect, the default ``temperature`` is 1, and a request without a ``seed``
    gets a random one.
    """

    model_config = ConfigDict(extra="allow")

    model: ModelName
    temperature: StrictFloat | None = None
    top_p: StrictFloat | None = None
    top_k: StrictInt | None = None
    n: StrictInt | None = None
    seed: StrictInt | None = None
    stop: Text | Texts | None = None
    max_tokens: StrictInt | None = None
    timeout: Timeout | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    def check_supported(self) -> None:
        """Refuse unsupported fields that would change the answer.

        Raises:
            ApiError: 400, with the name of the field.
        """
        extra = self.model_extra or {}
        for name, neutral in _NEUTRAL_VALUES.items():
            value = extra.get(name)
            if value is not None and value not in neutral:
                raise ApiError(
                    f"{name} is not supported.",
                    "Remove it.",
                    param=name,
                    code="unsupported_parameter",
                )
        best_of = extra.get("best_of")
        if best_of is not None and best_of != self.choices:
            raise ApiError(
                f"best_of can't be {best_of!r}; it must equal n.",
                "Remove it.",
                param="best_of",
                code="unsupported_parameter",
            )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        """The number of answers to each prompt."""
        return 1 if self.n is None else self.n

    def sampling(self, max_new_tokens: int) -> dict[str, Any]:
        """The sampling fields of :class:`~trunkline.inference.request.Request`.

        Args:
            max_new_tokens: the server's limit.

        Raises:
            ApiError: 400, the request exceeds the limit.
        """
        new_tokens = self.new_tokens()
        if new_tokens is not None and new_tokens > max_new_tokens:
            raise ApiError(
                f"max_tokens can't be {new_tokens}.",
                f"The limit of this server is {max_new_tokens}.",
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
            "n": self.choices,
        }

    def new_tokens(self) -> int | None:
        """The maximum of new tokens; None: the adapter's own."""
        return self.max_tokens


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: StrictInt | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report; None: no log probabilities at all.

        Raises:
            ApiError: 400, ``top_logprobs`` without ``logprobs``.
        """
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise ApiError(
                "top_logprobs requires logprobs.", "Send logprobs: true.", param="top_logprobs"
            )
        return None


class CompletionBody(GenerationBody):
    """``POST /v1/completions``; prompts are texts, token ids are refused."""

    prompt: (
        Text
        | Texts
        | Annotated[list[int], Field(fail_fast=True)]
        | Annotated[list[Annotated[list[int], Field(fail_fast=True)]], Field(fail_fast=True)]
    )
    logprobs: StrictInt | None = None

    def prompts(self) -> list[str]:
        """The prompts.

        Raises:
            ApiError: 400, there are none, or they are token ids.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        texts = [prompt for prompt in self.prompt if isinstance(prompt, str)]
        if not texts or len(texts) < len(self.prompt):
            raise ApiError(
                "prompt must be a text or a non-empty list of texts.",
                "Send texts, not token ids: each adapter has its own template.",
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
            raise ApiError("input is empty.", "Send a text or a list of texts.", param="input")
        return texts
