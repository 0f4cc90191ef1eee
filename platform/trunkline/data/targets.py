"""Targets and predictions by kind of task: their checks, and their form as text in the registry."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from numbers import Real
from typing import Any

from trunkline.contracts import MAX_CANDIDATES, Row, Span, Target, Task
from trunkline.errors import UsageError
from trunkline.labels import clean_label, is_blank
from trunkline.messages import Message
from trunkline.template import Template

LABELED: tuple[Task, ...] = ("classification", "multilabel", "tagging")
"""The tasks with labels."""


def labels_in(target: Target) -> tuple[str, ...]:
    """The labels that the target of a task with labels names."""
    if isinstance(target, str):
        return (target,)
    if not isinstance(target, tuple):
        return ()
    return tuple(one.label if isinstance(one, Span) else one for one in target)


def number(target: Target) -> float:
    """The target of a regression."""
    assert isinstance(target, int | float)
    return float(target)


def spans_of(row: Row) -> tuple[Span, ...]:
    """The target of a row of a tagging task."""
    target = row.target if isinstance(row.target, tuple) else ()
    return tuple(one for one in target if isinstance(one, Span))


_TEXT_FIELDS = {"id": False, "text": False, "group": False, "stratum": True, "split": True}
"""The fields of a row that are texts, and whether each may be None."""


def text_problem(row: Row) -> str | None:
    """What is wrong with the fields of a row that hold texts, or None."""
    for name, optional in _TEXT_FIELDS.items():
        value = getattr(row, name)
        if not isinstance(value, str) and not (optional and value is None):
            return f"its {name} is {value!r:.60}, not a text"
    slices: Any = row.slices
    if not isinstance(slices, Mapping):
        return f"its slices are {slices!r:.60}, not a mapping"
    for one in (*slices, *slices.values()):
        if not isinstance(one, str):
            return f"its slices have {one!r:.60}, not a text"
    for one in (row.id, row.text, row.group, *slices, *slices.values()):
        if not one.isascii() and any("\ud800" <= sign <= "\udfff" for sign in one):
            return f"{one!r:.60} holds half a character"
    return None


def shape_problem(row: Row) -> str | None:
    """What is wrong with the types of a row's history and candidates, or None."""
    history: Any = row.history
    if not isinstance(history, tuple | list):
        return f"its history is {history!r:.60}, not a tuple of messages"
    for one in history:
        if not isinstance(one, Message):
            return f"its history has {one!r:.60}, not a Message(role=…, content=…)"
    candidates: Any = row.candidates
    if isinstance(candidates, str) or not isinstance(candidates, Iterable):
        return f"its candidates are {candidates!r:.60}, not a tuple of texts"
    return None


def normalized(row: Row, task: Task) -> Row:
    """A row with labels, spans and candidates in their normal form: clean, sorted, as tuples.

    A row of a classification, a regression or a generation stays as it is.

    Raises:
        ValueError: its target or its candidates can't be used; the message says why.
    """
    if task == "multilabel":
        return replace(row, target=_labels(row.target))
    if task == "tagging":
        return replace(row, target=_spans(row.target, row.text))
    if task == "ranking":
        return replace(row, candidates=_candidates(row))
    if row.candidates:
        raise ValueError("it has candidates, which only a ranking has")
    return row


def _labels(target: Any) -> tuple[str, ...]:
    if isinstance(target, str) or not isinstance(target, Iterable):
        raise ValueError(f"its target is {target!r:.60}, not a tuple of labels")
    labels = list(target)
    for label in labels:
        if not isinstance(label, str) or not clean_label(label):
            raise ValueError(f"its target has the label {label!r:.60}, not a text")
    return tuple(sorted({clean_label(label) for label in labels}))


def _spans(target: Any, text: str) -> tuple[Span, ...]:
    if isinstance(target, str) or not isinstance(target, Iterable):
        raise ValueError(f"its target is {target!r:.60}, not a tuple of spans")
    spans: list[Span] = []
    for one in target:
        try:
            start, end, label = one
        except (TypeError, ValueError):
            raise ValueError(
                f"its target has {one!r:.60}, not a span (start, end, label)"
            ) from None
        if not _is_index(start) or not _is_index(end) or not 0 <= start < end <= len(text):
            raise ValueError(
                f"the span {start!r:.20} to {end!r:.20} is outside of its text of {len(text)} "
                "characters"
            )
        if not isinstance(label, str) or not clean_label(label):
            raise ValueError(f"a span has the label {label!r:.60}, not a text")
        spans.append(Span(start, end, clean_label(label)))
    spans.sort()
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise ValueError(
                f"the spans {one.start} to {one.end} and {other.start} to {other.end} overlap"
            )
    return tuple(spans)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _candidates(row: Row) -> tuple[str, ...]:
    if problem := shape_problem(row):
        raise ValueError(problem)
    candidates = tuple(row.candidates)
    if not 2 <= len(candidates) <= MAX_CANDIDATES:
        raise ValueError(f"it has {len(candidates)} candidates; 2 to {MAX_CANDIDATES} are wanted")
    for one in candidates:
        if not isinstance(one, str) or is_blank(one):
            raise ValueError(f"it has the candidate {one!r:.60}, not a text")
    if len(set(candidates)) < len(candidates):
        raise ValueError("it has a candidate twice")
    if row.target not in candidates:
        raise ValueError(f"its target {row.target!r:.60} is none of its candidates")
    return candidates


def check_template(template: Template, task: Task) -> None:
    """Raise :class:`UsageError` if a template does not fit the kind of task."""
    if template.takes_candidate != (task == "ranking"):
        raise UsageError(
            f"The template {template.prompt!r} "
            + ("has no {candidate}." if task == "ranking" else "has {candidate}."),
            "A ranking needs it, for example '{text}\\n{candidate}'; other tasks have none.",
        )
    if task == "tagging" and (template.clean or template.chat):
        raise UsageError(
            "The template of a tagging task can't clean the text or be a chat: spans count the "
            "characters of the text.",
            "Use Template(clean=()); in YAML, clean: [].",
        )


def default_template(task: Task) -> Template:
    """The template of a recipe that has none."""
    if task == "ranking":
        return Template(prompt="{text}\n{candidate}")
    return Template(clean=()) if task == "tagging" else Template()


# ------------------------------------------------------------------------------- as text


def target_text(value: Target) -> str:
    """A target or a prediction as text: of labels, spans or candidates a JSON array."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else str(value)


def parse_target(text: str, task: str) -> Target:
    """The target that :func:`target_text` made; raises ValueError for another text."""
    return text if task == "ranking" else parse_prediction(text, task)


def parse_prediction(text: str, task: str) -> Target:
    """The prediction that :func:`target_text` made; raises ValueError for another text."""
    if task == "regression":
        return float(text)
    if task in ("classification", "generation"):
        return text
    values = json.loads(text)
    if not isinstance(values, list):
        raise ValueError(f"not an array: {text[:60]!r}")
    return tuple(Span(*one) if task == "tagging" else one for one in values)


def is_right(target: Target, prediction: Target, task: str) -> bool:
    """Whether a prediction is the target; of a ranking, whether the best candidate is."""
    if task == "ranking":
        return isinstance(prediction, tuple) and prediction[:1] == (target,)
    return prediction == target


def prediction_problem(value: Any, task: str, row: Row) -> str | None:
    """What a baseline should have predicted instead of a value, or None if it can be scored."""
    if task == "regression":
        usable, wanted = _is_number(value), "a finite number"
    elif task == "multilabel":
        usable, wanted = _all_are(value, str), "a tuple of labels"
    elif task == "tagging":
        usable, wanted = _all_are(value, Span), "a tuple of spans"
    elif task == "ranking":
        usable = isinstance(value, tuple) and sorted(value) == sorted(row.candidates)
        wanted = "a tuple of the row's candidates"
    else:
        usable, wanted = isinstance(value, str), "a text"
    return None if usable else wanted


def _all_are(value: Any, kind: type) -> bool:
    return isinstance(value, tuple) and all(isinstance(one, kind) for one in value)


def _is_number(value: Any) -> bool:
    """Whether a value is a finite number of Python or numpy."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def count_labels(rows: Iterable[Row], labels: Iterable[str]) -> Mapping[str, int]:
    """How many rows have each of the labels."""
    counts = dict.fromkeys(labels, 0)
    for row in rows:
        for label in set(labels_in(row.target)):
            if label in counts:
                counts[label] += 1
    return counts
