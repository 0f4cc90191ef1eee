"""The bodies of requests, as the clients of OpenAI and vLLM send them.

Every field is validated here, with the ranges of both; so an error names the field as the client
wrote it. :mod:`trunkline.serving.fields` decides about fields that are not supported.
"""

from __future__ import annotations

import secrets
from abc import abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    Tag,
    model_validator,
)

from trunkline.errors import UsageError
from trunkline.images import DATA_URL_HINT, is_address, is_data_url
from trunkline.inference.ranking import check_candidates
from trunkline.inference.request import (
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_SEED,
    MAX_STOP_LENGTH,
    MAX_STOP_STRINGS,
    MAX_TEMPERATURE,
    MIN_SEED,
)
from trunkline.labels import is_blank
from trunkline.refs import shown
from trunkline.serving import fields
from trunkline.serving.errors import ApiError
from trunkline.serving.fields import StrictModel, invalid, unsupported

MAX_MESSAGES = 2048
"""Messages of one conversation, as with OpenAI; each one costs time, however short it is."""

_MAX_INT = 2**63 - 1


def _reject_surrogates(text: str) -> str:
    """Refuse half a character (a lone surrogate), which JSON can contain but no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text contains half a character, a lone surrogate") from None
    return text


def _to_integer(value: Any) -> Any:
    """JSON has one type of number: a whole float is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def is_list(value: Any) -> str:
    return fields.LIST_TAG if isinstance(value, list) else fields.TEXT_TAG


def _check_data_url(url: str) -> str:
    """Refuse everything but a picture in a data URL."""
    if is_address(url):
        raise invalid("is an address, and this server fetches none.", DATA_URL_HINT)
    if not is_data_url(url):
        raise invalid("is not a picture in a data URL.", DATA_URL_HINT)
    return url


def is_picture(value: Any) -> str:
    return fields.PICTURE_TAG if isinstance(value, dict) else fields.TEXT_TAG


Text = Annotated[str, AfterValidator(_reject_surrogates)]
DataUrl = Annotated[Text, AfterValidator(_check_data_url)]
ModelName = Annotated[Text, Field(min_length=1, max_length=256)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
"""Validation stops at the first invalid item, so that a list of invalid items costs little."""

OneOrMore = Annotated[
    Annotated[Text, Tag(fields.TEXT_TAG)] | Annotated[Texts, Tag(fields.LIST_TAG)],
    Discriminator(is_list),
]
"""A text or a list of texts; an error is that of the one that was sent."""

Integer = Annotated[StrictInt, BeforeValidator(_to_integer)]
TokenIds = Annotated[list[Annotated[Integer, Field(ge=0)]], Field(fail_fast=True)]


def _input_kind(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, list):
        return "lists of token ids"
    if isinstance(first, int | float) and isinstance(value, list):
        return "token ids"
    return is_list(value)


TokenInputs = Annotated[
    Annotated[Text, Tag(fields.TEXT_TAG)]
    | Annotated[Texts, Tag(fields.LIST_TAG)]
    | Annotated[TokenIds, Tag("token ids")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("lists of token ids")],
    Discriminator(_input_kind),
]
"""One or several texts, or the token ids of one or several texts."""

Timeout = Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)]
"""Seconds from arrival until the request is cancelled; the server's own limit applies too."""

MaxTokens = Annotated[Integer, Field(ge=1, le=_MAX_INT)]


class TextPart(StrictModel):
    """A text as a part of a message."""

    ignored = fields.TEXT_PART_IGNORED

    type: Literal["text"]
    text: Text

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        check_part(data, "text", others=["image_url"])
        return data


class ImageUrl(StrictModel):
    """A picture in a data URL; ``detail`` has no effect, since an adapter reads one size."""

    ignored = fields.IMAGE_URL_IGNORED

    url: DataUrl


class ImagePart(StrictModel):
    """A picture as OpenAI's clients send it; ``image_url`` may be the data URL itself."""

    ignored = fields.TEXT_PART_IGNORED

    type: Literal["image_url"] = "image_url"
    image_url: Annotated[
        Annotated[DataUrl, Tag(fields.TEXT_TAG)] | Annotated[ImageUrl, Tag(fields.PICTURE_TAG)],
        Discriminator(is_picture),
    ]

    @property
    def url(self) -> str:
        """The data URL."""
        return self.image_url if isinstance(self.image_url, str) else self.image_url.url


class PredictPart(ImagePart):
    """A picture; for a fusion, a text and a picture together."""

    text: Text | None = None


def check_part(data: dict[str, Any], *kinds: str, others: Sequence[str] = ()) -> None:
    """Refuse a part of a message by its type.

    Args:
        kinds: the types of a text, of which errors name the first.
        others: further types that the message may have.
    """
    kind = data.get("type")
    if isinstance(kind, str) and kind not in kinds:
        supported = " and ".join(map(repr, (kinds[0], *others)))
        reason = f"only {supported} {'are' if others else 'is'} supported"
        raise unsupported("type", "Send text.", value=shown(kind), reason=reason)


def prepare_message(data: dict[str, Any]) -> dict[str, Any]:
    """Refuse what a tool returns, and read null as the empty text of an assistant's message."""
    role = data.get("role")
    if role in ("tool", "function"):
        raise unsupported("role", fields.TOOL_HINT, value=shown(role), reason=fields.NO_TOOLS)
    if role == "assistant" and "content" in data and data["content"] is None:
        return {**data, "content": ""}
    return data


def _part_kind(value: Any) -> str:
    is_image = isinstance(value, dict) and value.get("type") == "image_url"
    return fields.PICTURE_TAG if is_image else fields.TEXT_TAG


MessagePart = Annotated[
    Annotated[TextPart, Tag(fields.TEXT_TAG)] | Annotated[ImagePart, Tag(fields.PICTURE_TAG)],
    Discriminator(_part_kind),
]
"""A text, or a picture in a message of the user."""


class Message(StrictModel):
    """One message of a conversation; ``developer`` means ``system``.

    The content of an assistant's message may be null, which is an empty text.
    """

    ignored = fields.MESSAGE_IGNORED
    neutral = fields.MESSAGE_NEUTRAL

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag(fields.TEXT_TAG)]
        | Annotated[list[MessagePart], Field(fail_fast=True), Tag(fields.LIST_TAG)],
        Discriminator(is_list),
    ]

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        return prepare_message(data)

    @model_validator(mode="after")
    def _check_pictures(self) -> Self:
        if self.pictures and self.role != "user":
            field = f"content[{next(iter(self.pictures))}].type"
            raise unsupported(
                field, "Send it in a message of the user.", value=shown("image_url"),
                reason=f"a message of the {self.role} has no pictures",
            )  # fmt: skip
        return self

    @property
    def pictures(self) -> dict[int, ImagePart]:
        """The pictures, by their index in the content."""
        if isinstance(self.content, str):
            return {}
        return {i: part for i, part in enumerate(self.content) if isinstance(part, ImagePart)}

    def to_template(self) -> dict[str, str]:
        """Role and text as chat templates expect them, without pictures."""
        if isinstance(self.content, str):
            return template_message(self.role, self.content)
        texts = [part for part in self.content if isinstance(part, TextPart)]
        return template_message(self.role, texts)


class ContentPart(Protocol):
    """A part of a message's content, in any of OpenAI's forms."""

    text: str


def template_message(role: str, content: str | Sequence[ContentPart]) -> dict[str, str]:
    """A message as chat templates expect it; OpenAI's role ``developer`` is ``system``."""
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if role == "developer" else role, "content": text}


class StreamOptions(StrictModel):
    """What a stream contains besides the answer."""

    ignored = fields.STREAM_OPTIONS_IGNORED
    neutral = fields.STREAM_OPTIONS_NEUTRAL

    include_usage: StrictBool | None = None


class SamplingBody(StrictModel):
    """The fields that all requests for a text share.

    As OpenAI's clients expect, the default ``temperature`` is 1, and a request without a ``seed``
    gets a random one.
    """

    ignored = fields.GENERATION_IGNORED

    model: ModelName
    temperature: Annotated[StrictFloat, Field(ge=0, le=MAX_TEMPERATURE)] | None = None
    top_p: Annotated[StrictFloat, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, le=_MAX_INT)] | None = None
    seed: Annotated[Integer, Field(ge=MIN_SEED, le=MAX_SEED)] | None = None
    stop: OneOrMore | None = None
    ignore_eos: StrictBool | None = None
    timeout: Timeout | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stop(self) -> Self:
        stop = self._stop_strings()
        longest = max(map(len, stop), default=0)
        if len(stop) > MAX_STOP_STRINGS or longest > MAX_STOP_LENGTH:
            problem = (
                f"{len(stop)} texts" if len(stop) > MAX_STOP_STRINGS else f"{longest} characters"
            )
            raise invalid(
                f"can't have {problem}.",
                f"Send at most {MAX_STOP_STRINGS} texts of {MAX_STOP_LENGTH} characters.",
                field="stop",
            )
        return self

    def _stop_strings(self) -> list[str]:
        """The stop strings; an empty one never ends an answer."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in stop if text]

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def choices(self) -> int:
        """The number of answers to each prompt."""
        return 1

    def sampling(self, max_new_tokens: int | None) -> dict[str, Any]:
        """The sampling fields of :class:`~trunkline.inference.request.Request`.

        Args:
            max_new_tokens: the operator's limit; None: the context is the limit.

        Raises:
            ApiError: 400, the request exceeds the limit.
        """
        field, new_tokens = self.new_tokens()
        if new_tokens is not None and max_new_tokens is not None and new_tokens > max_new_tokens:
            raise ApiError(
                f"{field} can't be {new_tokens}; the limit of this server is {max_new_tokens}.",
                "Send less, or ask the operator to raise it: "
                f"trunkline serve --limit max_new_tokens={new_tokens}.",
                param=field,
            )
        random_seed = self.seed is None or self.seed == -1
        return {
            "max_new_tokens": new_tokens,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "top_k": max(0, self.top_k or 0),
            "seed": secrets.randbelow(2**31) if random_seed else self.seed,
            "stop": tuple(self._stop_strings()),
            "n": self.choices,
            "ignore_eos": bool(self.ignore_eos),
        }

    @abstractmethod
    def new_tokens(self) -> tuple[str, int | None]:
        """The field that limits the new tokens, and its value; None: the adapter's own limit."""

    @abstractmethod
    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report; None: no log probabilities at all."""


class GenerationBody(SamplingBody):
    """The fields that chat and completion requests share."""

    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: MaxTokens | None = None

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Accept ``best_of`` if it equals ``n``."""
        best_of = data.get("best_of")
        if best_of is None or (best_of == (data.get("n") or 1) and best_of is not True):
            return {name: value for name, value in data.items() if name != "best_of"}
        raise unsupported("best_of", "Remove it.", reason="it must equal n")

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    def new_tokens(self) -> tuple[str, int | None]:
        return "max_tokens", self.max_tokens


class ChatBody(GenerationBody):
    """``POST /v1/chat/completions``."""

    neutral = fields.CHAT_NEUTRAL

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: MaxTokens | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    @model_validator(mode="after")
    def _check_last_message(self) -> Self:
        last = self.messages[-1]
        if last.role != "user":
            raise invalid(
                f"can't be {last.role!r}: a conversation ends with a message of the user.",
                "Add one.",
                field=f"messages[{len(self.messages) - 1}].role",
            )
        return self

    @model_validator(mode="after")
    def _check_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise invalid("requires logprobs.", "Send logprobs: true.", field="top_logprobs")
        return self

    def new_tokens(self) -> tuple[str, int | None]:
        if self.max_completion_tokens is None:
            return super().new_tokens()
        return "max_completion_tokens", self.max_completion_tokens

    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report; None: no log probabilities at all."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionBody(GenerationBody):
    """``POST /v1/completions``; prompts are texts or token ids."""

    neutral = fields.COMPLETION_NEUTRAL

    prompt: TokenInputs
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    echo: StrictBool | None = None
    max_tokens: Annotated[Integer, Field(ge=0, le=_MAX_INT)] | None = None

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        check_inputs("prompt", self.prompt)
        if self.max_tokens == 0 and not self.echo:
            hint = "Send at least 1, or echo: true."
            raise invalid("can't be 0 without echo.", hint, field="max_tokens")
        return self

    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report; None: no log probabilities at all."""
        return self.logprobs

    def prompts(self) -> list[str | tuple[int, ...]]:
        """The prompts, each a text or token ids."""
        return split_inputs(self.prompt)


def _predict_kind(value: Any) -> str:
    return fields.LIST_TAG if isinstance(value, list) else is_picture(value)


_TextOrPicture = Annotated[
    Annotated[Text, Tag(fields.TEXT_TAG)] | Annotated[PredictPart, Tag(fields.PICTURE_TAG)],
    Discriminator(is_picture),
]

PredictInput = Annotated[
    Annotated[Text, Tag(fields.TEXT_TAG)]
    | Annotated[PredictPart, Tag(fields.PICTURE_TAG)]
    | Annotated[list[_TextOrPicture], Field(fail_fast=True), Tag(fields.LIST_TAG)],
    Discriminator(_predict_kind),
]
"""A text, or a picture as a text or an object; or a list of them."""


class _HeadBody(StrictModel):
    """What requests for labels, numbers and spans share."""

    ignored = fields.PREDICT_IGNORED
    neutral = fields.PREDICT_NEUTRAL

    model: ModelName
    input: Any
    timeout: Timeout | None = None

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        if isinstance(self.input, list) and not self.input:
            raise invalid("is empty.", "Send a text or a list of texts.", field="input")
        return self

    def inputs(self) -> list[Any]:
        """The texts or pictures."""
        return self.input if isinstance(self.input, list) else [self.input]


class TagBody(_HeadBody):
    """``POST /v1/tag``."""

    input: OneOrMore


class PredictBody(_HeadBody):
    """``POST /v1/classify`` and ``/v1/regress``."""

    input: PredictInput
    abstain: Annotated[StrictFloat, Field(ge=0.5, le=0.99)] | None = None


class RankBody(StrictModel):
    """``POST /v1/rank``, with the fields of Cohere's and Jina's rerank."""

    ignored = fields.PREDICT_IGNORED
    neutral = fields.RANK_NEUTRAL

    model: ModelName
    query: Text
    documents: Texts
    top_n: Annotated[Integer, Field(ge=0, le=_MAX_INT)] | None = None
    return_documents: StrictBool = True
    timeout: Timeout | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if is_blank(self.query):
            raise invalid("is empty.", "Send the text to rank the documents for.", field="query")
        try:
            check_candidates(self.documents)
        except UsageError as error:
            problem = f"can't be ranked: {error.message}"
            raise invalid(problem, error.hint or "", field="documents") from None
        return self


Inputs = str | list[str] | list[int] | list[list[int]]


def check_inputs(name: str, value: Inputs) -> None:
    """Refuse a field without any text, or with a list of token ids that is empty."""
    if not isinstance(value, str) and (not value or [] in value):
        hint = "Send a text, a list of texts, or the token ids of one or several texts."
        field = f"{name}[{value.index([])}]" if len(value) > 1 else name  # type: ignore[arg-type]
        raise invalid("is empty.", hint, field=field)


def split_inputs(value: Inputs) -> list[str | tuple[int, ...]]:
    """One or several texts, or token ids of one or several texts, as a list."""
    if isinstance(value, str):
        return [value]
    inputs: list[str | tuple[int, ...]] = []
    for one in value:
        if isinstance(one, int):
            return [tuple(value)]  # type: ignore[arg-type]
        inputs.append(one if isinstance(one, str) else tuple(one))
    return inputs
