"""The task of an imported adapter, from the user's options, its task type and its head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from trunkline.adapters.config import TASK_TYPES
from trunkline.contracts import Task, Template, check_new_tokens
from trunkline.errors import UsageError
from trunkline.files import TensorInfo, brief_repr

DEFAULT_TEMPLATE = Template(prompt="{text}", clean=())
"""The text is the prompt."""

DEFAULT_NEW_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the user specifies about an adapter that was trained elsewhere.

    Attributes:
        task: by default derived from the task type and the outputs of the head.
        labels: in the order of the head's outputs; by default ``LABEL_0``, ``LABEL_1``, … as in
            transformers.
        template: of the prompt.
        max_new_tokens: of a generated answer; by default :data:`DEFAULT_NEW_TOKENS`.
        unit: of a regression.
    """

    task: Task | None = None
    labels: tuple[str, ...] = ()
    template: Template = DEFAULT_TEMPLATE
    max_new_tokens: int | None = None
    unit: str | None = None


def resolve_task_type(config: Mapping[str, Any], options: ImportOptions, path: Path) -> Any:
    """PEFT's task type: from the configuration, or else for the task in the options.

    Args:
        config: the content of ``adapter_config.json``; not checked yet.
        options: of the user.
        path: of the configuration.

    Raises:
        UsageError: both leave it open, or they contradict each other.
    """
    tasks = get_args(Task)
    if options.task is not None and options.task not in tasks:
        raise UsageError(f"There is no task {options.task!r}.", f"Use {', '.join(tasks)}.")
    configured = config.get("task_type")
    if options.task is None:
        if configured is None and config.get("peft_type") == "LORA":
            raise UsageError(
                f"{path} has no task_type.",
                "Name the task: --task generation, classification or regression.",
            )
        return configured
    expected = TASK_TYPES[options.task]
    if configured is not None and configured != expected:
        raise UsageError(
            f"{path} has the task_type {brief_repr(configured)}, which is not for {options.task}.",
            "Omit --task.",
        )
    return expected


def build_task(
    task_type: str,
    head: TensorInfo | None,
    options: ImportOptions,
    context: int,
    notes: list[str],
) -> dict[str, Any]:
    """Build the task entry of the manifest.

    Args:
        task_type: PEFT's.
        head: the matrix ``[outputs, hidden]``; None for a generation.
        options: of the user.
        context: of the base, in tokens.
        notes: receives a sentence for each assumption.

    Raises:
        UsageError: the options do not fit the adapter.
    """
    outputs = 2 if head is None or not head.shape else head.shape[0]
    kind: str = "generation"
    if task_type == "SEQ_CLS":
        kind = options.task or ("classification" if outputs > 1 else "regression")
    _check_applicable(options, kind)
    if kind == "generation":
        return _generation(options, context)
    if kind == "regression":
        return _regression(options, outputs, notes)
    return _classification(options, outputs, notes)


def _generation(options: ImportOptions, context: int) -> dict[str, Any]:
    count = DEFAULT_NEW_TOKENS if options.max_new_tokens is None else options.max_new_tokens
    check_new_tokens(count)
    if count >= context:
        raise UsageError(
            f"{count} new tokens leave no room for a prompt in a context of {context}.",
            "Choose a smaller number with --max-new-tokens.",
        )
    return {"kind": "generation", "max_new_tokens": count}


def _regression(options: ImportOptions, outputs: int, notes: list[str]) -> dict[str, Any]:
    if outputs != 1:
        raise UsageError(
            f"The head has {outputs} outputs, but a regression has one.",
            "Import it with --task classification.",
        )
    notes.append("The head's output is used as the number itself (mean 0, deviation 1).")
    return {
        "kind": "regression",
        "scale": "linear",
        "mean": 0.0,
        "deviation": 1.0,
        "unit": options.unit or "",
    }


def _classification(options: ImportOptions, outputs: int, notes: list[str]) -> dict[str, Any]:
    if outputs == 1:
        raise UsageError(
            "The head has one output, but a classification has two or more.",
            "Import it with --task regression.",
        )
    labels = options.labels
    if not labels:
        labels = tuple(f"LABEL_{index}" for index in range(outputs))
        notes.append(
            f"No labels were given: the outputs are named {labels[0]} to {labels[-1]}. Use "
            "--labels to name them."
        )
    if len(labels) != outputs or len(set(labels)) != outputs or not all(labels):
        raise UsageError(
            f"{len(labels)} labels ({brief_repr(', '.join(labels))}) were given for a head of "
            f"{outputs} outputs.",
            "Give a different label for each output, in their order.",
        )
    return {"kind": "classification", "labels": list(labels)}


def _check_applicable(options: ImportOptions, kind: str) -> None:
    for name, given, applicable in (
        ("labels", bool(options.labels), "classification"),
        ("a unit", bool(options.unit), "regression"),
        ("max_new_tokens", options.max_new_tokens is not None, "generation"),
    ):
        if given and kind != applicable:
            raise UsageError(
                f"The adapter is for {kind}, which does not use {name}.",
                f"Only a {applicable} has {name}.",
            )
