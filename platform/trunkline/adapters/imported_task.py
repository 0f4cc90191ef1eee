"""What an adapter made elsewhere is for: told by the user, or by its head and task type.

Owns: the defaults, and which words of the user contradict the adapter. Must not know: files, the
base's modules, the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from trunkline.adapters.config import TASK_TYPES
from trunkline.contracts import Task, Template, check_new_tokens
from trunkline.errors import UsageError
from trunkline.files import TensorInfo, brief_repr

AS_IS = Template(prompt="{text}", clean=())
"""The template of an adapter of which nothing is told: the text is the prompt."""

NEW_TOKENS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What a user says of an adapter made elsewhere; None and empty: as its files suggest.

    Attributes:
        task: by default from its task type and the outputs of its head.
        labels: in the order of the head's outputs; by default ``LABEL_0``, ``LABEL_1``, … as
            transformers names them.
        template: of the prompt.
        max_new_tokens: of a generated answer; by default :data:`NEW_TOKENS`.
        unit: of a regression.
    """

    task: Task | None = None
    labels: tuple[str, ...] = ()
    template: Template = AS_IS
    max_new_tokens: int | None = None
    unit: str | None = None


def task_type(config: Mapping[str, Any], wishes: Wishes, path: Path) -> Any:
    """PEFT's word for the task, as the configuration has it, or else as the user's task means it.

    Args:
        config: of the adapter.
        wishes: of the user.
        path: of the configuration.

    Raises:
        UsageError: neither says it, or they contradict each other.
    """
    if wishes.task is not None and wishes.task not in get_args(Task):
        raise UsageError(f"There is no task {wishes.task!r}.", f"Use {', '.join(get_args(Task))}.")
    said = config.get("task_type")
    if wishes.task is None:
        if said is None and config.get("peft_type") == "LORA":
            raise UsageError(
                f"{path} does not say its task_type.",
                "Say what it does: --task generation, classification or regression.",
            )
        return said
    meant = TASK_TYPES[wishes.task]
    if said is not None and said != meant:
        raise UsageError(
            f"{path} has the task_type {brief_repr(said)}, which is not for {wishes.task}.",
            "Leave --task away.",
        )
    return meant


def imported_task(
    kind_of_model: str, head: TensorInfo | None, wishes: Wishes, context: int, notes: list[str]
) -> dict[str, Any]:
    """The task as an artifact describes it.

    Args:
        kind_of_model: PEFT's task type.
        head: the head's matrix ``[outputs, hidden]``; a missing one is left to later checks.
        wishes: of the user.
        context: of the base, in tokens.
        notes: gets a sentence for everything that was taken for granted.

    Raises:
        UsageError: the wishes don't suit the adapter.
    """
    outputs = 2 if head is None or not head.shape else head.shape[0]
    kind: str = "generation"
    if kind_of_model == "SEQ_CLS":
        kind = wishes.task or ("classification" if outputs > 1 else "regression")
    _check_belongs(wishes, kind)
    if kind == "generation":
        count = NEW_TOKENS if wishes.max_new_tokens is None else wishes.max_new_tokens
        check_new_tokens(count)
        if count >= context:
            raise UsageError(
                f"{count} new tokens leave no room for a prompt in a context of {context}.",
                "Give fewer with --max-new-tokens.",
            )
        return {"kind": kind, "max_new_tokens": count}
    if kind == "regression":
        if outputs != 1:
            raise UsageError(
                f"The head has {outputs} outputs, a regression has one.",
                "Import it with --task classification.",
            )
        notes.append("The head's output is taken as the number itself (mean 0, deviation 1).")
        unit = wishes.unit or ""
        return {"kind": kind, "scale": "linear", "mean": 0.0, "deviation": 1.0, "unit": unit}
    if outputs == 1:
        raise UsageError(
            "The head has one output, a classification has two or more.",
            "Import it with --task regression.",
        )
    labels = wishes.labels
    if not labels:
        labels = tuple(f"LABEL_{index}" for index in range(outputs))
        notes.append(
            f"No labels were given: the outputs are called {labels[0]} to {labels[-1]}; --labels "
            "names them."
        )
    if len(labels) != outputs or len(set(labels)) != outputs or not all(labels):
        raise UsageError(
            f"{len(labels)} labels ({brief_repr(', '.join(labels))}) were given for a head of "
            f"{outputs} outputs.",
            "Give each output a label of its own, in their order.",
        )
    return {"kind": kind, "labels": list(labels)}


def _check_belongs(wishes: Wishes, kind: str) -> None:
    for what, said, where in (
        ("labels", wishes.labels, "classification"),
        ("a unit", wishes.unit, "regression"),
        ("max_new_tokens", wishes.max_new_tokens is not None, "generation"),
    ):
        if said and kind != where:
            raise UsageError(
                f"The adapter is for {kind}, which has no use for {what}.",
                f"Only a {where} has {what}.",
            )
