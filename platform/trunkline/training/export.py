"""Export a version for other programs, proved by repeating its stored test predictions.

``merged`` is a folder that plain transformers loads; ``gguf-lora`` is a LoRA file for llama.cpp.
Either is read back from disk without the adapter pool, and appears under its name only if it
repeats the predictions that the version's evaluation stored.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trunkline.adapters.artifact import WEIGHTS, Artifact, write_json
from trunkline.adapters.config import PREFIX, adapted_module
from trunkline.bases import describe, load_fresh, local_tokenizer
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
from trunkline.evaluation.report import answer_texts
from trunkline.inference.forward import GenerationSettings, generate_tokens, next_logits
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

if TYPE_CHECKING:
    from trunkline.adapters.store import AdapterStore
    from trunkline.inference.engine import Engine

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
_FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type of transformers → llama.cpp's name of the architecture. Of ``llama``, llama.cpp orders
the rows of the query and key projections in its own way (pairs of the rotary embedding)."""


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
    if artifact.manifest.reads_images:
        raise UsageError(
            f"{version.ref} reads pictures, which is not exported to other programs.",
            f"Archive it: `trunkline adapters export {version.ref}`.",
        )
    info = describe(base)
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
        _check_gguf(version, task, info.folder, use_dora=artifact.lora.use_dora)
    local = local_tokenizer(base)
    assert local is not None  # described above
    tokenizer, context = local
    limit = prompt_limit(task, min(artifact.manifest.max_length or context, context))

    def load_base() -> Any:
        return load_fresh(base, task.head_size, device=device)

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
        if format == "merged":
            _write_merged(load_base(), artifact, task, tokenizer, written)
            listener.stage("reading it back")
            model = _load_merged(written, task, device)
        else:
            _write_gguf(artifact, info.folder, written)
            listener.stage("reading it back")
            model = _load_gguf(load_base(), written)
        checked = _repeat(model, tokenizer, artifact, task, replay, limit, listener)
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


def probe_predictions(engine: Engine, artifact: Artifact, name: str) -> Replay:
    """The engine's answers to fixed texts, for a version that came without a dataset."""
    answers = answer_texts(engine, artifact, name, PROBES)
    return Replay(
        tuple(Row(id=text, text=text, target="", group=text) for text in PROBES),
        tuple(
            PredictionRecord(
                row_id=f"probe/{number}",
                group=text,
                target="",
                prediction=str(answer.output),
                confidence=answer.confidence,
            )
            for number, (text, answer) in enumerate(zip(PROBES, answers, strict=True), start=1)
        ),
    )


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
        "template": manifest.template,
        "max_length": manifest.max_length,
        "repeated_predictions": dict(checked),
    }


# ----------------------------------------------------------------------------------------- GGUF


def _check_gguf(version: VersionRecord, task: AnyTask, base: Path, *, use_dora: bool) -> None:
    if use_dora:
        raise UsageError(
            f"{version.ref} uses DoRA, which a LoRA file of llama.cpp can't hold.",
            "Use --format merged.",
        )
    if not isinstance(task, GenerationTask):
        raise UsageError(
            f"{version.ref} is for {task.kind}; llama.cpp has no head for it.",
            "Use --format merged.",
        )
    kind = _config(base).get("model_type")
    if kind not in _FAMILIES:
        raise UsageError(
            f"The base is a {kind} model; LoRA files are written for "
            f"{', '.join(sorted(_FAMILIES))}.",
            "Use --format merged, and llama.cpp's own converter.",
        )


def _config(base: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config


def _names(config: Mapping[str, Any]) -> Any:
    """gguf's map from names of transformers' tensors to those of llama.cpp."""
    import gguf

    architecture = _FAMILIES[config["model_type"]].upper()
    layers = int(config["num_hidden_layers"])
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture], layers)


def _write_gguf(artifact: Artifact, base: Path, path: Path) -> None:
    """The matrices as llama.cpp's converter names and orders them."""
    import gguf
    from safetensors.torch import load_file

    config = _config(base)
    names = _names(config)
    lora = artifact.lora
    writer = gguf.GGUFWriter(path, _FAMILIES[config["model_type"]])
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    # llama.cpp scales by alpha / rank
    writer.add_float32("adapter.lora.alpha", lora.scaling * lora.rank)
    tensors = load_file(artifact.folder / WEIGHTS)
    for key in sorted(tensors):
        module = adapted_module(key)
        if module is None:
            continue
        name = names.get_name(module)
        if name is None:
            raise UsageError(
                f"llama.cpp has no tensor for the layer {module!r}.", "Use --format merged."
            )
        first = tensors[key].float().numpy()
        second = tensors[f"{PREFIX}{module}.lora_B.weight"].float().numpy()
        if _FAMILIES[config["model_type"]] == "llama":
            second = _permuted(second, name, config)
        writer.add_tensor(f"{name}.weight.lora_a", first)
        writer.add_tensor(f"{name}.weight.lora_b", second)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(matrix: Any, name: str, config: Mapping[str, Any]) -> Any:
    """Rows of a query or key projection in llama.cpp's order: pairs instead of halves."""
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config.get("num_key_value_heads") or config["num_attention_heads"],
    }.get(name.rpartition(".")[2])
    if heads is None:
        return matrix
    rows = matrix.reshape(heads, 2, matrix.shape[0] // heads // 2, matrix.shape[1])
    return rows.swapaxes(1, 2).reshape(matrix.shape).copy()


def _load_gguf(model: Any, path: Path) -> Any:
    """The base with the file's update added; the order of the rows is restored by transformers."""
    import gguf
    import torch
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    config = model.config.to_dict()
    names = _names(config)
    modules = {
        names.get_name(name): module
        for name, module in model.named_modules()
        if names.get_name(name) is not None
    }
    reader = gguf.GGUFReader(path)
    alpha = float(reader.get_field("adapter.lora.alpha").contents())
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    processor = TENSOR_PROCESSORS.get(_FAMILIES[config["model_type"]], TensorProcessor)(config)
    with torch.no_grad():
        for name, second in tensors.items():
            if not name.endswith(".lora_b"):
                continue
            weight = name.removesuffix(".lora_b")
            first = tensors[f"{weight}.lora_a"]
            update = (alpha / first.shape[0]) * (second @ first)
            restored = torch.from_numpy(
                processor.process(weights=update.numpy(), name=weight).weights.copy()
            )
            target = modules[weight.removesuffix(".weight")].weight
            target += restored.to(target)
    return model.eval()


# --------------------------------------------------------------------------------------- replay


def _repeat(
    model: Any,
    tokenizer: Any,
    artifact: Artifact,
    task: AnyTask,
    replay: Replay,
    limit: int,
    listener: ProgressListener,
) -> dict[str, Any]:
    """Predict every row with the exported model.

    Returns:
        ``rows``, ``largest_difference`` and ``near_ties``.

    Raises:
        RefusedError: a prediction differs; names the first rows.
    """
    template = artifact.manifest.make_template()
    prompts = [encode_row(row, template, tokenizer, limit).ids for row in replay.rows]
    listener.stage("repeating the stored predictions")
    check = _text_check if isinstance(task, GenerationTask) else _head_check
    compare = check(model, tokenizer, task)
    differing: list[tuple[str, str, str]] = []
    largest, ties, done = 0.0, 0, 0
    for batch in by_length([len(ids) for ids in prompts], _BATCH):
        stored = [replay.predictions[index] for index in batch]
        results = compare([prompts[index] for index in batch], stored)
        for record, (value, difference, tie) in zip(stored, results, strict=True):
            ties += tie
            if value is not None:
                differing.append((record.row_id, record.prediction, value))
            else:
                largest = max(largest, difference)
        done += len(batch)
        listener.progress(done, len(prompts), {})
    if differing:
        rows = "; ".join(
            f"row {row!r:.40}: {before!r:.60} became {now!r:.60}"
            for row, before, now in sorted(differing)[:_SHOWN]
        )
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise RefusedError(
            f"The export answers {len(differing)} of {len(prompts)} test rows differently from the "
            f"evaluated version: {rows}{more}.",
            "Nothing was written. Evaluate the version again with `trunkline eval`, on this "
            "machine and in floating point, then export it again.",
        )
    return {"rows": len(prompts), "largest_difference": largest, "near_ties": ties}


Compared = list[tuple[str | None, float, bool]]
"""For each row: the new prediction if it differs, the difference, whether it is a near-tie."""

Compare = Callable[[Sequence[list[int]], Sequence[PredictionRecord]], Compared]


def _head_check(model: Any, tokenizer: Any, task: AnyTask) -> Compare:
    """Labels must be the same, and probabilities and scaled numbers within the tolerance."""
    import torch

    assert isinstance(task, ClassificationTask | RegressionTask)

    def compare(prompts: Sequence[list[int]], stored: Sequence[PredictionRecord]) -> Compared:
        inputs = pad(prompts, tokenizer.pad_token_id)
        with torch.inference_mode():
            outputs = model(**{name: ids.to(model.device) for name, ids in inputs.items()}).logits
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
