"""Import adapters that plain PEFT saved elsewhere.

The folder is not trusted: configuration, weights and the tokenizer's text files are read, every
check runs before anything is written, and a pattern in the configuration is never compiled. The
tensor names determine which modules are adapted; the imported configuration lists these modules by
name. The task comes from the user's options, the task type and the head. The training can't be
verified, so an imported version has no run and no dataset.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from trunkline.adapters.artifact import (
    CARD,
    CONFIG,
    MANIFEST,
    WEIGHTS,
    check_finite,
    read_artifact,
    seal,
    write_json,
)
from trunkline.adapters.card import render_card
from trunkline.adapters.config import (
    MAGNITUDE,
    PREFIX,
    TASK_TYPES,
    LoraShape,
    check_config,
    check_tensors,
    is_head,
)
from trunkline.adapters.peft_folder import PeftFolder, read_peft_folder, tokenizer_notes
from trunkline.adapters.peft_settings import TARGET_KEYS, left_out, resolve_settings
from trunkline.adapters.peft_targets import (
    ModuleTree,
    check_fits_base,
    check_head,
    read_module_tree,
    target_notes,
)
from trunkline.adapters.provenance import (
    UNKNOWN,
    BaseSection,
    Provenance,
    VersionSection,
    is_plain_text,
    write_provenance,
)
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import Task, Template, check_new_tokens
from trunkline.errors import (
    IntegrityError,
    NotFoundError,
    RefusedError,
    RegistryError,
    UsageError,
    reason_of,
)
from trunkline.files import TensorInfo, brief_repr, read_safetensors_header
from trunkline.labels import clean_label, similar_labels, similar_text
from trunkline.refs import Ref
from trunkline.registry.actors import system_actor
from trunkline.registry.records import VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.tables import utc_now

if TYPE_CHECKING:
    from trunkline.bases import BaseInfo


DEFAULT_TEMPLATE = Template(prompt="{text}", clean=())
"""The text is the prompt."""

DEFAULT_NEW_TOKENS = 128

GENERATION = "generation_config.json"

_NO_TARGET = "none"
"""The target if no tensor is a LoRA matrix; the check of the tensors reports that."""

_MAX_TEXT = 1000

_HALF = re.compile("[\ud800-\udfff]")


# -------------------------------------------------------------------------------- options and task


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What the user specifies about an adapter that was trained elsewhere.

    Attributes:
        task: by default derived from the task type and the outputs of the head.
        labels: in the order of the head's outputs, without invisible characters at their ends; by
            default ``LABEL_0``, ``LABEL_1``, … as in transformers.
        template: of the prompt.
        max_new_tokens: of a generated answer; by default :data:`DEFAULT_NEW_TOKENS`.
        unit: of a regression.
    """

    task: Task | None = None
    labels: tuple[str, ...] = ()
    template: Template = DEFAULT_TEMPLATE
    max_new_tokens: int | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        """Check the texts and clean the labels.

        Raises:
            UsageError: the labels are not several texts, or a text holds half a character.
        """
        labels: Any = self.labels
        if not isinstance(labels, tuple | list) or not all(isinstance(one, str) for one in labels):
            raise UsageError(
                f"The labels are {brief_repr(labels)}; a tuple of texts is wanted.",
                "Write for example labels=('cat', 'dog').",
            )
        if not isinstance(self.unit, str | None):
            raise UsageError(f"The unit is {brief_repr(self.unit)}, not a text.", "Omit it.")
        for text in (*labels, self.unit or ""):
            if _HALF.search(text):
                raise UsageError(
                    f"{brief_repr(text)} holds half a character.", "Write the character itself."
                )
        object.__setattr__(self, "labels", tuple(map(clean_label, labels)))


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
    if options.task == "tagging" or configured == "TOKEN_CLS":
        raise UsageError(
            f"{path} is for tagging, which is not imported: PEFT does not say what its tags mean.",
            "Train it here: trunkline train --data FILE --spans COLUMN.",
        )
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
    if outputs == 0:
        raise UsageError("The head has no outputs.", "Save the adapter again with its head.")
    kind: str = "generation"
    if task_type == "SEQ_CLS":
        kind = options.task or ("classification" if outputs > 1 else "regression")
    _check_applicable(options, kind)
    if options.template.takes_candidate != (kind == "ranking"):
        raise UsageError(
            f"The template {options.template.prompt!r} does not fit a task of the kind {kind}.",
            "A ranking needs {candidate} in it, other tasks don't.",
        )
    if kind == "generation":
        return _generation(options, context)
    if kind == "classification" and options.task is None:
        notes.append(
            "The folder does not tell whether a text has one label or several: one is assumed. Use "
            "--task multilabel for several."
        )
    if kind == "multilabel":
        notes.append("A label counts if its probability is at least 0.5.")
        return {"kind": kind, "labels": _label_names(options, outputs, notes), "threshold": 0.5}
    if kind == "ranking":
        _check_one_output("ranking", outputs)
        return {"kind": kind}
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
    _check_one_output("regression", outputs)
    notes.append("The head's output is used as the number itself (mean 0, deviation 1).")
    return {
        "kind": "regression",
        "scale": "linear",
        "mean": 0.0,
        "deviation": 1.0,
        "unit": options.unit or "",
    }


def _check_one_output(kind: str, outputs: int) -> None:
    if outputs != 1:
        raise UsageError(
            f"The head has {outputs} outputs, but a {kind} has one.",
            "Import it with --task classification.",
        )


def _classification(options: ImportOptions, outputs: int, notes: list[str]) -> dict[str, Any]:
    if outputs == 1:
        raise UsageError(
            "The head has one output, but a classification has two or more.",
            "Import it with --task regression.",
        )
    return {"kind": "classification", "labels": _label_names(options, outputs, notes)}


def _label_names(options: ImportOptions, outputs: int, notes: list[str]) -> list[str]:
    labels = options.labels
    if not labels:
        labels = tuple(f"LABEL_{index}" for index in range(outputs))
        notes.append(
            f"No labels were given: the outputs are named {labels[0]} to {labels[-1]}. Use "
            "--labels to name them."
        )
    hint = (
        "Give a different label for each output, in their order; --labels takes them with commas."
    )
    if len(labels) != outputs:
        count = "1 label was" if len(labels) == 1 else f"{len(labels)} labels were"
        raise UsageError(
            f"{count} given for a head of {outputs} outputs: {brief_repr(', '.join(labels))}.", hint
        )
    for index, label in enumerate(labels):
        if not label:
            raise UsageError(f"Label {index + 1} is empty.", hint)
        if label in labels[:index]:
            first = labels.index(label) + 1
            raise UsageError(f"Labels {first} and {index + 1} are both {brief_repr(label)}.", hint)
    if similar := similar_labels(labels):
        notes.append(
            "Labels differ only in case, white space or Unicode form, and are different labels: "
            f"{similar_text(similar)}."
        )
    return list(labels)


def _check_applicable(options: ImportOptions, kind: str) -> None:
    for name, given, applicable in (
        ("labels", bool(options.labels), ("classification", "multilabel")),
        ("a unit", bool(options.unit), ("regression",)),
        ("max_new_tokens", options.max_new_tokens is not None, ("generation",)),
    ):
        if given and kind not in applicable:
            raise UsageError(
                f"The adapter is for {kind}, which does not use {name}.",
                f"Only a {applicable[0]} has {name}.",
            )


# -------------------------------------------------------------------------------------- the import


@dataclass(frozen=True, slots=True)
class ImportedAdapter:
    """A published import: version, task, LoRA, number of adapted modules, and the assumptions."""

    version: VersionRecord
    task: Mapping[str, Any]
    lora: LoraShape
    modules: int
    notes: tuple[str, ...]


def import_adapter(
    store: AdapterStore,
    registry: Registry,
    base: BaseInfo,
    folder: Path,
    ref: Ref,
    options: ImportOptions,
    *,
    source: Mapping[str, str] | None = None,
    actor: str | None = None,
) -> ImportedAdapter:
    """Check a plain PEFT folder and publish it as the next version of ``ref``.

    Args:
        store, registry: of the workspace.
        base: that the adapter was trained on, according to the user.
        folder: has ``adapter_config.json`` and ``adapter_model.safetensors``. The text files of a
            tokenizer are read for the notes; other files are neither opened nor copied.
        ref: ``domain/name`` without a selector.
        options: of the user.
        source: recorded as the origin; by default the name of the folder.
        actor: who imports; by default the system's user.

    Raises:
        UsageError: the options contradict the adapter or each other.
        IntegrityError: the adapter is malformed, does not fit the base, or is not plain LoRA.
        RefusedError: the adapter exists for another task.
        RegistryError: it can't be written; nothing is left behind.
    """
    _check_no_selector(ref)
    actor = actor or system_actor()
    peft = read_peft_folder(folder)
    peft.check_reads_text()
    origin = {
        **(source or {"folder": _safe_text(peft.name)}),
        "named_base": None if peft.named_base is None else _safe_text(peft.named_base),
    }
    notes: list[str] = []
    task_type = resolve_task_type(peft.config, options, folder / CONFIG)
    tree = read_module_tree(base.folder, with_head=peft.head is not None or task_type == "SEQ_CLS")
    config = explicit_config(peft, tree, notes)
    config["task_type"] = task_type
    lora = check_config(config, folder / CONFIG)
    check_head(peft, tree, task_type)
    task = build_task(task_type, peft.head, options, base.context, notes)
    check_tensors(peft.tensors, lora, task, folder / WEIGHTS)
    check_fits_base(peft, lora, tree)
    check_import_target(registry, ref, task["kind"])
    notes += target_notes(peft.config, tree)
    _note_origin(peft, base, notes)
    notes += tokenizer_notes(folder, base.folder, chat=options.template.chat)
    try:
        with tempfile.TemporaryDirectory(prefix="trunkline-import-") as staging:
            target = Path(staging)
            _copy_weights(target, peft, notes)
            write_json(target / CONFIG, config)
            _write_artifact(target, peft, task, base, ref, options, {**origin, "by": actor}, notes)
            registry.sources.record_base(
                digest=base.digest,
                name=base.name,
                source=base.source,
                architecture=base.architecture,
                parameters=base.parameters,
                dtype=base.dtype,
            )
            version = store.publish(
                target,
                ref,
                task=task["kind"],
                run=None,
                base_digest=base.digest,
                imported=origin,
                actor=actor,
            )
    except OSError as error:
        raise RegistryError(
            f"The adapter in {folder} can't be copied: {reason_of(error)}.",
            "Free space in the folder for temporary files, or choose another with TMPDIR.",
        ) from error
    return ImportedAdapter(version, task, lora, len(peft.adapted), tuple(notes))


def check_import_target(registry: Registry, ref: Ref, kind: str) -> None:
    """Check that an import may publish under ``ref``: a new name, or one for the same task.

    Raises:
        UsageError: the ref names a version.
        RefusedError: the adapter exists for another task.
    """
    _check_no_selector(ref)
    try:
        adapter = registry.adapters.get(ref.domain, ref.name)
    except NotFoundError:
        return
    if adapter.task != kind:
        raise RefusedError(
            f"The adapter '{ref}' is for {adapter.task}, not for {kind}.",
            "Import it under another name.",
        )


def explicit_config(peft: PeftFolder, tree: ModuleTree, notes: list[str]) -> dict[str, Any]:
    """Return the configuration with the adapted modules listed by name.

    Settings that change nothing are left out. The other keys are not checked yet.

    Raises:
        IntegrityError: the tensors do not prove that a setting is harmless.
    """
    config = resolve_settings(peft, tree, notes)
    for key in TARGET_KEYS:
        config.pop(key, None)
    config["target_modules"] = tree.targets(peft.adapted) or [_NO_TARGET]
    return config


def _check_no_selector(ref: Ref) -> None:
    if ref.selector is not None:
        raise UsageError(
            f"{str(ref)!r} names a version, but an import publishes the next one.",
            f"Use {ref.adapter}.",
        )


def _note_origin(peft: PeftFolder, base: BaseInfo, notes: list[str]) -> None:
    named = peft.named_base
    repo = base.name.removeprefix("hf:").partition("@")[0]
    if named is not None and named not in (base.name, Path(base.name).name, repo):
        notes.append(
            f"{CONFIG} names the base {brief_repr(named)}; that this is {base.name} can't be "
            "verified."
        )
    if (peft.folder / GENERATION).exists():
        notes.append(f"{GENERATION} in the folder is not used: a request has its own settings.")
    if (peft.folder / MANIFEST).exists():
        notes.append(
            f"{MANIFEST} in the folder was not read: task and template come from your options."
        )


def _copy_weights(target: Path, peft: PeftFolder, notes: list[str]) -> None:
    """Copy the weights; the copy is checked, not the original."""
    source = peft.folder / WEIGHTS
    shutil.copyfile(source, target / WEIGHTS)
    if read_safetensors_header(target / WEIGHTS) != peft.tensors:
        raise IntegrityError(f"{source} changed while it was read.", "Import it again.")
    check_finite(target / WEIGHTS, source)
    without, zero_head = _without_effect(target / WEIGHTS, peft)
    if len(without) == len(peft.adapted):
        notes.append(
            "The adapter changes nothing: every product of its matrices is zero"
            + (", and only its head is used." if peft.head else ". Its answers are the base's.")
            + " Was it saved before its training?"
        )
    elif without:
        notes.append(
            f"{len(without)} of {len(peft.adapted)} adapted modules change nothing, because the "
            f"product of their matrices is zero: {brief_repr(without[0])} is the first."
        )
    if zero_head:
        notes.append("The head is zero in every element: each text gets the same answer.")


def _without_effect(weights: Path, peft: PeftFolder) -> tuple[list[str], bool]:
    """The adapted modules whose matrices have the product zero; whether the head is zero.

    The product is the sum over the ranks of a column of B times a row of A.
    """
    from safetensors import safe_open

    without = []
    with safe_open(weights, framework="pt") as file:
        scaled = {name for name in peft.adapted if f"{PREFIX}{name}{MAGNITUDE}" in peft.tensors}
        for name in sorted(peft.adapted - scaled):
            rows = file.get_tensor(f"{PREFIX}{name}.lora_A.weight").any(dim=1)
            columns = file.get_tensor(f"{PREFIX}{name}.lora_B.weight").any(dim=0)
            if not bool((rows & columns).any()):
                without.append(name)
        heads = [file.get_tensor(name) for name in peft.tensors if is_head(name)]
    return without, any(not bool(head.any()) for head in heads)


def _write_artifact(
    target: Path,
    peft: PeftFolder,
    task: Mapping[str, Any],
    base: BaseInfo,
    ref: Ref,
    options: ImportOptions,
    origin: Mapping[str, Any],
    notes: list[str],
) -> None:
    """Write the manifest, the provenance and the card beside weights and configuration."""
    name = Path(base.name).name if Path(base.name).is_absolute() else base.name
    seal(
        target,
        base={"name": name, "digest": base.digest},
        task=task,
        template=options.template,
        data={"dataset": UNKNOWN, "fingerprint": UNKNOWN, "split": UNKNOWN},
    )
    now = utc_now()
    recorded = {key: ascii(value)[:_MAX_TEXT] for key, value in left_out(peft.config).items()}
    provenance = Provenance(
        version=VersionSection(adapter=ref.adapter, task=task["kind"], created=now),
        base=BaseSection(
            digest=base.digest,
            name=name,
            source=base.source,
            architecture=base.architecture,
            parameters=base.parameters,
            dtype=base.dtype,
        ),
        imported={
            **origin,
            "at": now.isoformat(),
            "left_out": recorded,
            "notes": [_safe_text(sentence) for sentence in notes],
        },
    )
    write_provenance(target, provenance)
    card = render_card(read_artifact(target), provenance, str(ref))
    (target / CARD).write_text(card, encoding="utf-8")


def _safe_text(text: str) -> str:
    """A text from outside, escaped if it has control characters or is too long."""
    return text if is_plain_text(text) else ascii(text)[:_MAX_TEXT]
