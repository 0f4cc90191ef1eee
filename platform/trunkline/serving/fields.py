"""Which fields of a body are accepted beside those of its schema, and the strict base of schemas.

A field that could change the answer and is not supported is refused by name. Two kinds of fields
pass: those that can't change an answer, and those that have the value that means "not used", which
many clients send by default. ``docs/compatibility.md`` lists them; a test compares the page.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from trunkline.refs import shown

UNSUPPORTED = "unsupported_parameter"
"""The code of a refused field, in OpenAI's errors and in pydantic's."""

TEXT_TAG, LIST_TAG, PICTURE_TAG = "a text", "a list", "a picture"
TAGS = (TEXT_TAG, LIST_TAG, PICTURE_TAG)
"""Names of the alternatives of a union; they are part of pydantic's locations."""

INVALID = "invalid_value"
"""pydantic's type of an error made by :func:`invalid`."""

Values = tuple[Any, ...]

GENERATION_IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "parallel_tool_calls", "prediction",
    "include_reasoning", "request_id", "session_id", "stream_interval",
})  # fmt: skip
"""Fields of chat and completions that can't change an answer."""

GENERATION_NEUTRAL: Mapping[str, Values] = {
    "response_format": ({"type": "text"},),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "repeat_penalty": (1,),
    "length_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "repetition_detection": (),
    "min_p": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "smoothing_factor": (0,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "penalty_alpha": (0,),
    "use_beam_search": (False,),
    "num_beams": (1,),
    "do_sample": (),
    "min_tokens": (0,),
    "max_new_tokens": (),
    "max_output_tokens": (),
    "n_predict": (),
    "stop_sequences": ([],),
    "stop_token_ids": ([],),
    "include_stop_str_in_output": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_decoding_backend": (),
    "guided_whitespace_pattern": (),
    "structured_outputs": (),
    "grammar": ("",),
    "json_schema": (),
    "prompt_logprobs": (),
    "logprob_token_ids": (),
    "return_tokens_as_token_ids": (False,),
    "return_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "lora_request": (),
    "priority": (0,),
    "cache_salt": (),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
    "watermarking": (False,),
    "thinking_token_budget": (-1,),
}
"""Unsupported field of chat and completions → its values, besides null, that mean "not used"."""

CHAT_NEUTRAL: Mapping[str, Values] = {
    **GENERATION_NEUTRAL,
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "moderation": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "echo": (False,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
}

COMPLETION_NEUTRAL: Mapping[str, Values] = {
    **GENERATION_NEUTRAL,
    "suffix": ("",),
    "add_special_tokens": (True,),
    "prompt_embeds": (),
}

MESSAGE_IGNORED = frozenset({"cache_control"})

MESSAGE_NEUTRAL: Mapping[str, Values] = {
    "name": (),
    "tool_calls": ([],),
    "tool_call_id": (),
    "function_call": (),
    "refusal": (),
    "audio": (),
    "annotations": ([],),
    "reasoning": ("",),
    "reasoning_content": ("",),
    "prefix": (False,),
}

TEXT_PART_IGNORED = frozenset({"cache_control", "prompt_cache_breakpoint"})

IMAGE_URL_IGNORED = frozenset({"detail"})

STREAM_OPTIONS_IGNORED = frozenset({"continuous_usage_stats"})

STREAM_OPTIONS_NEUTRAL: Mapping[str, Values] = {"include_obfuscation": (False,)}

PREDICT_IGNORED = frozenset({"user", "metadata", "request_id"})

PREDICT_NEUTRAL: Mapping[str, Values] = {
    "truncate_prompt_tokens": (),
    "truncation_side": (),
    "add_special_tokens": (True,),
    "priority": (0,),
}

RANK_NEUTRAL: Mapping[str, Values] = {
    **PREDICT_NEUTRAL,
    "rank_fields": (["text"],),
    "max_chunks_per_doc": (),
    "max_tokens_per_doc": (),
    "return_embeddings": (False,),
}
"""Of the rerank of Cohere, Jina and vLLM."""

TOOL_FIELDS = frozenset({
    "tools", "tool_choice", "functions", "function_call", "tool_calls", "tool_call_id",
})  # fmt: skip

NO_TOOLS = "tools are not supported"
TOOL_HINT = "Put what a tool returns into a message of the user."

_LENGTHS = ("max_tokens", "max_output_tokens")
_PROMPTS = ("messages", "prompt", "input")

_MEANT = {
    "max_tokens": _LENGTHS,
    "max_completion_tokens": _LENGTHS,
    "max_output_tokens": _LENGTHS,
    "max_new_tokens": _LENGTHS,
    "max_length": _LENGTHS,
    "n_predict": _LENGTHS,
    "num_predict": _LENGTHS,
    "stop_sequences": ("stop",),
    "messages": _PROMPTS,
    "prompt": _PROMPTS,
    "input": _PROMPTS,
    "inputs": _PROMPTS,
}
"""Field of other servers or routes → the fields here with this meaning; a route has one of them."""

_HINTS = {
    "lora_request": "Name the adapter in model.",
    "adapter": "Name the adapter in model.",
    "name": "Write the name into content.",
}

_CLOSE = 0.8


class StrictModel(BaseModel):
    """An object of a body that refuses unknown fields by name.

    A field without an effect is left out before validation, as is null for a field that has a
    default. A class may restrict what is accepted
    further with :meth:`prepare`.

    Attributes:
        ignored: fields that are accepted with any value.
        neutral: field → the values besides null with which it is accepted.
    """

    model_config = ConfigDict(extra="forbid")

    ignored: ClassVar[frozenset[str]] = frozenset()
    neutral: ClassVar[Mapping[str, Values]] = {}

    @model_validator(mode="before")
    @classmethod
    def _leave_out_fields_without_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields: dict[str, Any] = {}
        for name, value in cls.prepare(data).items():
            if name in cls.model_fields:
                if value is not None or cls.model_fields[name].is_required():
                    fields[name] = value
            elif not cls._has_no_effect(name, value):
                raise _refusal(name, value, cls.model_fields)
        return fields

    @classmethod
    def prepare(cls, data: dict[str, Any]) -> dict[str, Any]:
        """Check or complete the fields as they were sent, before any other validation."""
        return data

    @classmethod
    def _has_no_effect(cls, name: str, value: Any) -> bool:
        if name in cls.ignored:
            return True
        if name not in cls.neutral:
            return False
        return value is None or any(_is_same(value, one) for one in cls.neutral[name])


def unsupported(
    field: str, hint: str, *, value: str = "used", reason: str = ""
) -> PydanticCustomError:
    """The error for a field that is not supported.

    Args:
        field: its path, relative to the object that is validated.
        value: the value that is refused, as text.
        reason: the end of the sentence "FIELD can't be VALUE: …".
    """
    context = {
        "field": field,
        "problem": f"can't be {value}: {reason or 'it is not supported'}.",
        "hint": hint,
    }
    return PydanticCustomError(UNSUPPORTED, "{field} {problem}", context)


def invalid(problem: str, hint: str, *, field: str = "") -> PydanticCustomError:
    """The error for a value of the validated field, or of a ``field`` inside it.

    Args:
        problem: continues a sentence that begins with the field's path.
    """
    context = {"problem": problem, "hint": hint, "field": field}
    return PydanticCustomError(INVALID, "{problem}", context)


def _refusal(name: str, value: Any, fields: Mapping[str, Any]) -> PydanticCustomError:
    """The error for a field that could change the answer."""
    if name in TOOL_FIELDS:
        return unsupported(name, TOOL_HINT, reason=NO_TOOLS)
    if name == "response_format" and isinstance(value, dict):
        inner = [key for key in value if key != "type"]
        path = f"{name}.{inner[0]}" if inner else name
        return unsupported(path, "Remove response_format.", reason="an answer is free text")
    meant = next((one for one in _MEANT.get(name, ()) if one in fields), None)
    hint = f"Send {meant}." if meant else _HINTS.get(name) or _suggest(name, fields)
    if isinstance(value, bool):
        return unsupported(name, hint, value="true" if value else "false")
    if isinstance(value, int | float):
        return unsupported(name, hint, value=repr(value))
    return unsupported(name, hint)


def _suggest(name: str, fields: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name.casefold()[:64], fields, n=1, cutoff=_CLOSE)
    return f"Did you mean {close[0]}? If not, remove it." if close else "Remove it."


def _is_same(value: Any, neutral: Any) -> bool:
    """Whether two JSON values are equal; in Python ``False == 0``.

    Null in an object is a field that is not set.
    """
    if isinstance(value, dict):
        value = {name: inner for name, inner in value.items() if inner is not None}
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


def shown_field(name: str) -> str:
    """A field's name or path as it is; quoted if it is not plain text."""
    plain = name.isascii() and name.isprintable() and 0 < len(name) <= 80 and " " not in name
    return name if plain else shown(name)
