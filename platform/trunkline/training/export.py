"""Export a version for other programs, proved by repeating its stored test predictions.

``merged`` is a folder that plain transformers loads; ``gguf-lora`` is a LoRA file for llama.cpp.
Either is read back from disk without the adapter pool, and appears under its name only if it
repeats the predictions that the version's evaluation stored.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from trunkline.adapters.artifact import Artifact, write_json
from trunkline.bases import ImageBaseInfo, describe_any, load_fresh, local_tokenizer
from trunkline.bases.load import pick_device, quiet_transformers
from trunkline.contracts import NoProgress, ProgressListener, Row
from trunkline.data.encode import encode_row
from trunkline.data.targets import number
from trunkline.errors import (
    BaseMismatchError,
    DataError,
    RefusedError,
    TrunklineError,
    UsageError,
    reason_of,
)
from trunkline.evaluation.report import predict_rows
from trunkline.inference.forward import GenerationSettings, generate_tokens, next_logits
from trunkline.preprocessing import Preprocessing
from trunkline.promotion import evaluations_on_test
from trunkline.registry.records import PredictionRecord, VersionRecord
from trunkline.tasks import (
    AnyTask,
    ClassificationTask,
    GenerationTask,
    RegressionTask,
    prompt_limit,
    task_from_json,
)
from trunkline.tasks.batches import by_length, pad
from trunkline.training.export_gguf import check_gguf, load_gguf, write_gguf
from trunkline.training.export_images import (
    load_merged_images,
    picture_reader,
    probe_rows,
    write_merged_images,
)

if TYPE_CHECKING:
    import torch

    from trunkline.adapters.store import AdapterStore
    from trunkline.inference.image_engine import AnyEngine

ModelFormat = Literal["merged", "gguf-lora"]

TOLERANCE = 1e-3
"""Largest difference of a probability, or of a number in standard deviations of the target."""

PROBES = (
    "The delivery arrived two days late and one box was damaged.",
    "Acute appendicitis without abscess",
    "Card payment 12.40 EUR, supermarket, Berlin",
    "What does the warranty cover?",
    "Whole milk, 1 gallon",
    "Please cancel my order and refund the amount.",
    "a",
    "Der Zug nach München fährt um 9 Uhr.",
)
_SHOWN = 5
_BATCH = 32


@dataclass(frozen=True, slots=True)
class ModelExport:
    """A model that was written for other programs.

    Attributes:
        path: the folder, or the file.
        bytes: of all files.
        rows: predictions that were repeated.
        largest_difference: of a probability or a scaled number; 0 for texts.
        near_ties: texts that differ from a token on where two tokens were equally likely.
    """

    version: VersionRecord
    path: Path
    format: ModelFormat
    bytes: int
    rows: int
    largest_difference: float
    near_ties: int


@dataclass(frozen=True, slots=True)
class Replay:
    """Rows with the predictions that must be repeated, in the same order."""

    rows: tuple[Row, ...]
    predictions: tuple[PredictionRecord, ...]


def export_model(
    store: AdapterStore,
    version: VersionRecord,
    replay: Replay,
    target: Path,
    format: ModelFormat,
    *,
    base: str,
    device: str = "auto",
    listener: ProgressListener | None = None,
    actor: str | None = None,
) -> ModelExport:
    """Write a version as a model of its own, and repeat its stored test predictions with it.

    Args:
        store: holds the artifact.
        version: of the adapter.
        replay: what the export must repeat.
        target: the folder (``merged``) or the file (``gguf-lora``); it must not exist.
        base: name of the base that the version was trained on.
        device: where the predictions are repeated.
        listener: receives stages and progress.
        actor: recorded with the event.

    Raises:
        UsageError: ``target`` exists, or the format can't hold this version.
        BaseMismatchError: ``base`` is not the version's base.
        RefusedError: the export answers differently; nothing was written.
    """
    listener = listener or NoProgress()
    _check_target(target)
    artifact = store.fetch(version)
    info = describe_any(base)
    if info.digest != version.base_digest:
        raise BaseMismatchError(
            f"{version.ref} was trained on {version.base_name}, not on {base}.",
            f"Pass `trunkline --base {version.base_name}`.",
        )
    task = task_from_json(artifact.manifest.task)
    if not isinstance(task, ClassificationTask | RegressionTask | GenerationTask):
        raise UsageError(
            f"{version.ref} is for {task.kind}, which is not exported.",
            f"Its artifact loads with plain PEFT: `trunkline adapters show {version.ref}`.",
        )
    if format == "gguf-lora":
        check_gguf(version, task, info.folder, artifact)
    write: Callable[[Path], None]
    load: Callable[[Path], Exported]
    if isinstance(info, ImageBaseInfo):
        preprocessing = artifact.manifest.make_preprocessing()
        write = partial(write_merged_images, info, artifact, task)
        load = partial(_load_images, info, task, replay, preprocessing, device)
    else:
        local = local_tokenizer(base)
        assert local is not None  # described above
        tokenizer, context = local
        limit = prompt_limit(task, min(artifact.manifest.max_length or context, context))
        template = artifact.manifest.make_template()
        fresh = partial(load_fresh, base, task.head_size, device=device)

        def write(folder: Path) -> None:
            if format == "merged":
                _write_merged(fresh(), artifact, task, tokenizer, folder)
            else:
                write_gguf(artifact, info.folder, folder)

        def load(folder: Path) -> Exported:
            merged = format == "merged"
            model = _load_merged(folder, task, device) if merged else load_gguf(fresh(), folder)
            prompts = [encode_row(row, template, tokenizer, limit).ids for row in replay.rows]
            check = _text_check if isinstance(task, GenerationTask) else _prompt_check
            return Exported(prompts, [*map(len, prompts)], check(model, tokenizer, task))

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f".{target.name[:64]}.part")
        shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed
        staging.mkdir()
    except OSError as error:
        raise _not_written(target, error) from error
    try:
        listener.stage("writing the model")
        written = staging / "export"
        write(written)
        listener.stage("reading it back")
        checked = _repeat(load(written), replay, listener)
        detail = {"format": format, "name": target.name, **checked}
        store.registry.events.append("version.exported", version.ref, detail, actor=actor)
        if format == "merged":
            write_json(written / "trunkline_export.json", _usage(version, artifact, task, checked))
        size = sum(path.stat().st_size for path in [written, *written.rglob("*")] if path.is_file())
        _check_target(target)
        os.replace(written, target)
    except TrunklineError:
        raise
    except OSError as error:
        raise _not_written(target, error) from error
    finally:
        with suppress(OSError):
            shutil.rmtree(staging)
    return ModelExport(version, target, format, size, **checked)


def stored_predictions(store: AdapterStore, version: VersionRecord, test: Sequence[Row]) -> Replay:
    """The newest stored predictions of a version, in the order of its test rows.

    Raises:
        DataError: none are stored, or they are of other rows.
    """
    for evaluation in evaluations_on_test(store.registry, version.ref):
        stored = store.registry.evaluations.predictions(evaluation.id)
        by_id = {record.row_id: record for record in stored}
        if stored and set(by_id) == {row.id for row in test}:
            return Replay(tuple(test), tuple(by_id[row.id] for row in test))
    raise DataError(
        f"{version.ref} has no stored predictions on its test rows, so an export can't be proved.",
        f"Evaluate it first: `trunkline eval {version.ref}`.",
    )


def probe_predictions(engine: AnyEngine, artifact: Artifact, name: str) -> Replay:
    """The engine's answers to fixed texts or pictures, for a version without a dataset."""
    if artifact.manifest.reads_images:
        rows = probe_rows()
    else:
        rows = tuple(
            Row(id=f"probe/{number}", text=text, target="", group=text)
            for number, text in enumerate(PROBES, start=1)
        )
    predicted = predict_rows(engine, artifact, name, rows)
    return Replay(
        rows,
        tuple(
            PredictionRecord(
                row_id=row.id,
                group=row.group,
                target="",
                prediction=str(value),
                confidence=confidence,
            )
            for row, value, confidence in zip(
                rows, predicted.values, predicted.confidences, strict=True
            )
        ),
    )


Compared = list[tuple[str | None, float, bool]]
"""For each row: the new prediction if it differs, the difference, whether it is a near-tie."""

Compare = Callable[[Any, Sequence[PredictionRecord]], Compared]
"""Called with the inputs of some rows and their stored predictions."""


class Exported(NamedTuple):
    """An export that was read back: what it reads of each row, with its size, and the comparison.

    An input is the token ids of a prompt, or a function that returns a picture.
    """

    inputs: Sequence[Any]
    sizes: Sequence[int]
    compare: Compare


def _check_target(target: Path) -> None:
    if os.path.lexists(target):
        raise UsageError(f"{str(target)!r} already exists.", "Name another file or folder.")


def _not_written(target: Path, error: Exception) -> RefusedError:
    return RefusedError(
        f"{str(target)!r} can't be written: {reason_of(error)}.",
        "Free disk space or grant write permission, or name a place elsewhere.",
    )


# --------------------------------------------------------------------------------------- merged


def _write_merged(
    model: Any, artifact: Artifact, task: AnyTask, tokenizer: Any, folder: Path
) -> None:
    """The base with the adapter added to its weights (PEFT computes), and the tokenizer."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # as in lora_model
        loaded = PeftModel.from_pretrained(model, artifact.folder)
    merged = loaded.merge_and_unload(safe_merge=True)
    if isinstance(task, ClassificationTask):
        merged.config.id2label = dict(enumerate(task.labels))
        merged.config.label2id = {label: index for index, label in enumerate(task.labels)}
    elif isinstance(task, RegressionTask):
        merged.config.problem_type = "regression"
    with quiet_transformers():
        merged.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)


def _load_merged(folder: Path, task: AnyTask, device: str) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = (
        AutoModelForCausalLM
        if isinstance(task, GenerationTask)
        else AutoModelForSequenceClassification
    )
    with quiet_transformers():
        model = kind.from_pretrained(folder, dtype="auto", local_files_only=True)
    return model.to(pick_device(device)).eval()


def _usage(
    version: VersionRecord, artifact: Artifact, task: AnyTask, checked: Mapping[str, Any]
) -> dict[str, Any]:
    """What a user of the folder needs beside the weights."""
    manifest = artifact.manifest
    return {
        "adapter": str(version.ref),
        "digest": version.digest,
        "base": manifest.base,
        "task": task.to_json(),
        **(
            {"preprocessing": manifest.preprocessing}
            if manifest.reads_images
            else {"template": manifest.template, "max_length": manifest.max_length}
        ),
        "repeated_predictions": dict(checked),
    }


# --------------------------------------------------------------------------------------- replay


def _repeat(exported: Exported, replay: Replay, listener: ProgressListener) -> dict[str, Any]:
    """Predict every row with the exported model.

    Returns:
        ``rows``, ``largest_difference`` and ``near_ties``.

    Raises:
        RefusedError: a prediction differs; names the first rows.
    """
    inputs, compare = exported.inputs, exported.compare
    listener.stage("repeating the stored predictions")
    differing: list[tuple[str, str, str]] = []
    largest, ties, done = 0.0, 0, 0
    for batch in by_length(exported.sizes, _BATCH):
        stored = [replay.predictions[index] for index in batch]
        results = compare([inputs[index] for index in batch], stored)
        for record, (value, difference, tie) in zip(stored, results, strict=True):
            ties += tie
            if value is not None:
                differing.append((record.row_id, record.prediction, value))
            else:
                largest = max(largest, difference)
        done += len(batch)
        listener.progress(done, len(inputs), {})
    if differing:
        rows = "; ".join(
            f"row {row!r:.40}: {before!r:.60} became {now!r:.60}"
            for row, before, now in sorted(differing)[:_SHOWN]
        )
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise RefusedError(
            f"The export answers {len(differing)} of {len(inputs)} test rows differently from the "
            f"evaluated version: {rows}{more}.",
            "Nothing was written. Evaluate the version again with `trunkline eval`, on this "
            "machine and in floating point, then export it again.",
        )
    return {"rows": len(inputs), "largest_difference": largest, "near_ties": ties}


def _prompt_check(model: Any, tokenizer: Any, task: AnyTask) -> Compare:
    def logits(prompts: Sequence[list[int]]) -> torch.Tensor:
        inputs = pad(prompts, tokenizer.pad_token_id)
        outputs: torch.Tensor = model(
            **{name: ids.to(model.device) for name, ids in inputs.items()}
        ).logits
        return outputs

    return _head_check(logits, task)


def _load_images(
    info: ImageBaseInfo,
    task: AnyTask,
    replay: Replay,
    preprocessing: Preprocessing,
    device: str,
    folder: Path,
) -> Exported:
    """Read the export of an adapter for pictures back."""
    import torch

    model = load_merged_images(info, task, folder, device)

    def logits(pictures: Sequence[Callable[[], torch.Tensor]]) -> torch.Tensor:
        return model(torch.stack([read() for read in pictures])).cpu()

    readers = [picture_reader(row, preprocessing) for row in replay.rows]
    return Exported(readers, [1] * len(readers), _head_check(logits, task))


def _head_check(logits: Callable[[Any], torch.Tensor], task: AnyTask) -> Compare:
    """Labels must be the same, and probabilities and scaled numbers within the tolerance."""
    import torch

    assert isinstance(task, ClassificationTask | RegressionTask)

    def compare(inputs: Any, stored: Sequence[PredictionRecord]) -> Compared:
        with torch.inference_mode():
            outputs = logits(inputs)
        results: Compared = []
        for record, (value, probabilities) in zip(stored, task.decode(outputs), strict=True):
            if isinstance(task, RegressionTask):
                difference = abs(task.scaled(number(value)) - task.scaled(float(record.prediction)))
                same = difference <= TOLERANCE
            else:
                expected, now = record.confidence, max(probabilities or (0.0,))
                difference = 0.0 if expected is None else abs(now - expected)
                same = value == record.prediction and difference <= TOLERANCE
            shown = str(value)
            if probabilities is not None:
                shown = f"{value} at {max(probabilities):.4f}"
            results.append((None if same else shown, difference, False))
        return results

    return compare


def _text_check(model: Any, tokenizer: Any, task: AnyTask) -> Compare:
    """Texts must be the same up to a token that is as likely as the stored one."""
    assert isinstance(task, GenerationTask)
    settings = GenerationSettings(task.max_new_tokens)

    def decode(ids: Sequence[int]) -> str:
        text: str = tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def is_tie(prompt: list[int], ids: list[int], text: str) -> bool:
        """Whether the first differing token was as likely as the stored one."""
        other = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        pairs = zip(ids, other, strict=False)
        at = next((index for index, (one, two) in enumerate(pairs) if one != two), None)
        if at is None:
            return False
        (likely,) = next_logits(model, [prompt + ids[:at]], tokenizer.pad_token_id).softmax(-1)
        return abs(float(likely[ids[at]] - likely[other[at]])) <= TOLERANCE

    def compare(prompts: Sequence[list[int]], stored: Sequence[PredictionRecord]) -> Compared:
        answers = generate_tokens(model, tokenizer, prompts, settings)
        results: Compared = []
        for prompt, ids, record in zip(prompts, answers, stored, strict=True):
            text, expected = decode(ids), record.prediction.strip()
            tie = text != expected and is_tie(prompt, ids, expected)
            results.append((None if text == expected or tie else text, 0.0, tie))
        return results

    return compare
