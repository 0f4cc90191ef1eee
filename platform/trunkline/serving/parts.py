"""What several forms of answers hold.

Owns: usage, and numbers that JSON can say. Must not know: routes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trunkline.inference.request import Answer

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, as in OpenAI's answers."""


def usage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Tokens of all answers together, in OpenAI's words."""
    prompt = sum(answer.prompt_tokens for answer in answers)
    new = sum(answer.new_tokens for answer in answers)
    cached = sum(answer.cached_tokens for answer in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": new,
        "total_tokens": prompt + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def finite(logprob: float) -> float:
    """A log probability as JSON can say it."""
    return logprob if math.isfinite(logprob) else LEAST_LOGPROB
