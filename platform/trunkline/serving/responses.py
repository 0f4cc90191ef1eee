"""OpenAI's route ``/v1/responses``, for text. Nothing is stored."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Discriminator, Field, StrictBool, Tag, model_validator

from trunkline.errors import TrunklineError
from trunkline.inference.request import MAX_LOGPROBS, Answer, StreamChunk, TokenScore
from trunkline.refs import shown
from trunkline.resolution import ResolvedModel
from trunkline.serving import fields
from trunkline.serving.bodies import JsonRoute
from trunkline.serving.errors import ApiError, error_body
from trunkline.serving.fields import StrictModel, Values, invalid, unsupported
from trunkline.serving.openai import chat_logprobs, submit_conversation
from trunkline.serving.schemas import (
    MAX_MESSAGES,
    Integer,
    MaxTokens,
    SamplingBody,
    Text,
    check_part,
    is_list,
    prepare_message,
    template_message,
)
from trunkline.serving.service import Context, RequestContext
from trunkline.serving.streams import Chunk, EventStream, usage

LOGPROBS = "message.output_text.logprobs"
"""The one value of ``include`` with an effect; the others concern tools, images or reasoning."""

_NOT_STORED = "Send the conversation in input: this server stores no responses."

Includable = Literal[
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]

NEUTRAL: Mapping[str, Values] = {
    **fields.GENERATION_NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "max_tool_calls": (),
    "previous_response_id": (),
    "conversation": (),
    "background": (False,),
    "background_options": (),
    "truncation": ("disabled",),
    "reasoning": ({}, {"effort": "none"}),
    "prompt": (),
    "context_management": ([],),
    "image": (),
    "moderation": (),
    "access_programs": (),
    "max_tokens": (),
    "n": (1,),
    "best_of": (1,),
}
NEUTRAL = {name: values for name, values in NEUTRAL.items() if name != "max_output_tokens"}
"""Unsupported field → its values, besides null, that mean "not used"."""

router = APIRouter(route_class=JsonRoute)


class InputText(StrictModel):
    """A part of a message; only text is supported."""

    ignored = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text", "text"]
    text: Text

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        check_part(data, "input_text", "output_text", "text")
        return data


class InputMessage(StrictModel):
    """One message of the input; an answer may be sent back as it is."""

    ignored = frozenset({"id", "status", "phase"})
    neutral: ClassVar[Mapping[str, Values]] = {"name": (), "tool_calls": ([],)}

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag(fields.TEXT_TAG)]
        | Annotated[list[InputText], Field(fail_fast=True), Tag(fields.LIST_TAG)],
        Discriminator(is_list),
    ]

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        kind = data.get("type")
        if isinstance(kind, str) and kind != "message":
            if "_call" in kind:
                hint, reason = fields.TOOL_HINT, fields.NO_TOOLS
            else:
                hint, reason = "Send messages only.", "only messages are supported"
            raise unsupported("type", hint, value=shown(kind), reason=reason)
        return prepare_message(data if kind is not None else {**data, "type": "message"})

    def to_template(self) -> dict[str, str]:
        """Role and text as chat templates expect them."""
        return template_message(self.role, self.content)


class TextConfig(StrictModel):
    """How the text of the answer is written; only plain text is supported."""

    neutral: ClassVar[Mapping[str, Values]] = {
        "format": ({"type": "text"},),
        "verbosity": ("medium",),
    }


class ResponsesBody(SamplingBody):
    """``POST /v1/responses``."""

    ignored = fields.GENERATION_IGNORED - {"user", "metadata", "store"}
    neutral = NEUTRAL

    input: Annotated[
        Annotated[Text, Tag(fields.TEXT_TAG)]
        | Annotated[
            list[InputMessage],
            Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True),
            Tag(fields.LIST_TAG),
        ],
        Discriminator(is_list),
    ]
    instructions: Text | None = None
    max_output_tokens: MaxTokens | None = None
    top_logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: list[Includable] | None = None
    text: TextConfig | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None
    store: StrictBool | None = None

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        for name in ("previous_response_id", "conversation"):
            if data.get(name) is not None:
                raise unsupported(name, _NOT_STORED, reason="responses are not stored")
        return data

    @model_validator(mode="after")
    def _check_last_message(self) -> Self:
        if not isinstance(self.input, str) and self.input[-1].role != "user":
            raise invalid(
                f"can't be {self.input[-1].role!r}: the input ends with a message of the user.",
                "Add one.",
                field=f"input[{len(self.input) - 1}].role",
            )
        return self

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates expect it."""
        messages = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        return messages + [message.to_template() for message in self.input]

    def new_tokens(self) -> tuple[str, int | None]:
        return "max_output_tokens", self.max_output_tokens

    def requested_logprobs(self) -> int | None:
        """How many likeliest tokens to report; None: no log probabilities at all."""
        wanted = LOGPROBS in (self.include or ()) or self.top_logprobs
        return (self.top_logprobs or 0) if wanted else None


@router.post("/v1/responses")
async def respond(body: ResponsesBody, context: Context, request: Request) -> Response:
    """Answer an input; with ``stream``, in events."""
    model = await submit_conversation(context, body, body.messages(), field="input")
    answer_format = AnswerFormat(body, model, context.id)
    if body.stream:
        return _stream(context, answer_format)
    answer = (await context.answers(request.receive))[0]
    return await context.respond(answer_format.response(answer), answer.choices[0].text)


@router.get("/v1/responses/{id}")
async def get_response(id: str) -> Response:
    """Refuse to return a past response."""
    raise ApiError("Responses are not stored.", _NOT_STORED, status=404, param="id")


class AnswerFormat:
    """OpenAI's objects for one answer."""

    def __init__(self, body: ResponsesBody, model: ResolvedModel, id: str) -> None:
        self._body = body
        self._model = model
        self._id = id
        self._created = int(time.time())
        self.message_id = f"msg_{id}"

    def response(
        self, answer: Answer | None = None, *, status: str = "in_progress", error: Any = None
    ) -> dict[str, Any]:
        """The response object; without an answer, that of a response in progress."""
        body = self._body
        output = []
        incomplete = None
        if answer is not None:
            message = self.message(answer)
            output, status = [message], message["status"]
            if status == "incomplete":
                incomplete = {"reason": "max_output_tokens"}
        return {
            "id": f"resp_{self._id}",
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": error,
            "incomplete_details": incomplete,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._model.name,
            "output": output,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": "disabled",
            "usage": None if answer is None else _usage(answer),
            "user": body.user,
        }

    def message(self, answer: Answer | None) -> dict[str, Any]:
        """The message object; without an answer, that of a message in progress."""
        status = "in_progress"
        if answer is not None:
            status = "completed" if answer.finish == "stop" else "incomplete"
        return {
            "id": self.message_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [] if answer is None else [self.part(answer)],
        }

    def part(self, answer: Answer | None) -> dict[str, Any]:
        """The one part of the message."""
        choice = None if answer is None else answer.choices[0]
        return {
            "type": "output_text",
            "text": "" if choice is None else choice.text,
            "annotations": [],
            "logprobs": [] if choice is None else self.logprobs(choice.scores),
        }

    def logprobs(self, scores: Sequence[TokenScore]) -> list[dict[str, Any]]:
        """Log probabilities of tokens."""
        return chat_logprobs(scores)["content"]


def _stream(context: RequestContext, answer_format: AnswerFormat) -> EventStream:
    numbers = itertools.count()
    place = {"item_id": answer_format.message_id, "output_index": 0, "content_index": 0}

    def event(kind: str, content: Mapping[str, Any]) -> Chunk:
        return {"type": kind, "sequence_number": next(numbers), **content}

    def chunks(_prompt: int, piece: StreamChunk) -> list[Chunk]:
        if not piece.text and not piece.scores:
            return []
        content = {"delta": piece.text, "logprobs": answer_format.logprobs(piece.scores)}
        return [event("response.output_text.delta", {**place, **content})]

    def closing(answers: Sequence[Answer]) -> list[Chunk]:
        answer = answers[0]
        message, part = answer_format.message(answer), answer_format.part(answer)
        done = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            event("response.output_text.done", {**place, **done}),
            event("response.content_part.done", {**place, "part": part}),
            event("response.output_item.done", {"output_index": 0, "item": message}),
            event(f"response.{message['status']}", {"response": answer_format.response(answer)}),
        ]

    def failure(error: TrunklineError) -> Chunk:
        problem = error_body(error)["error"]
        fields = {name: problem[name] for name in ("code", "message", "param")}
        return event("error", {**fields, "error": problem})

    opening = [
        event("response.created", {"response": answer_format.response()}),
        event("response.in_progress", {"response": answer_format.response()}),
        event(
            "response.output_item.added",
            {"output_index": 0, "item": answer_format.message(None)},
        ),
        event("response.content_part.added", {**place, "part": answer_format.part(None)}),
    ]
    return EventStream(context, opening, chunks, closing, failure=failure, named=True, end=b"")


def _usage(answer: Answer) -> dict[str, Any]:
    counts = usage([answer])
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": answer.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
