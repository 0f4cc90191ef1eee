"""Models exported for other programs: they repeat the stored predictions, or are not written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cli_runner import invoke
from tiny_base import HIDDEN, LAYERS
from trunkline.adapters.artifact import WEIGHTS
from trunkline.api import Platform
from trunkline.errors import DataError, RefusedError, UsageError
from trunkline.training.cross_validation import prepare_version
from trunkline.training.export import Replay, export_model, stored_predictions

RECIPES = ("animals", "prices", "plurals")


def replay_of(platform: Platform, name: str) -> Replay:
    version = platform.resolve(name).version
    _, rows, _ = prepare_version(platform.store, platform.job_of(version), version)
    return stored_predictions(platform.store, version, rows.split.test)


def export(platform: Platform, name: str, replay: Replay, target: Path, format: Any) -> Any:
    version = platform.resolve(name).version
    assert platform.base_name is not None
    return export_model(
        platform.store, version, replay, target, format, base=platform.base_name, device="cpu"
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_merged_model_repeats_every_stored_prediction(
    name: str, trained_platform: Platform, tmp_path: Path
) -> None:
    done = trained_platform.files.export_model(f"toy/{name}", tmp_path / "model", "merged")
    stored = replay_of(trained_platform, f"toy/{name}")
    assert done.rows == len(stored.rows) > 0
    assert done.largest_difference <= 1e-3
    assert {path.suffix for path in (tmp_path / "model").iterdir()} <= {
        ".json",
        ".safetensors",
        ".jinja",
    }
    event = trained_platform.registry.events.list(subject=f"toy/{name}")[0]
    assert (event.kind, event.detail["format"]) == ("version.exported", "merged")


def test_plain_transformers_gives_the_labels_of_a_merged_model(
    trained_platform: Platform, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    trained_platform.files.export_model("toy/animals", folder, "merged")
    usage = json.loads((folder / "trunkline_export.json").read_text())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    stored = replay_of(trained_platform, "toy/animals")
    for row, expected in zip(stored.rows, stored.predictions, strict=True):
        prompt = usage["template"]["prompt"].replace("{text}", " ".join(row.text.split()))
        with torch.inference_mode():
            (p,) = model(**tokenizer(prompt, return_tensors="pt")).logits.softmax(-1)
        assert model.config.id2label[int(p.argmax())] == expected.prediction
        assert float(p.max()) == pytest.approx(expected.confidence, abs=1e-3)


def test_a_lora_file_for_llama_cpp_has_its_names_and_its_order_of_rows(
    trained_platform: Platform, tmp_path: Path
) -> None:
    path = tmp_path / "plurals.gguf"
    done = trained_platform.files.export_model("toy/plurals", path, "gguf-lora")
    assert done.rows == len(replay_of(trained_platform, "toy/plurals").rows)
    reader = gguf.GGUFReader(path)
    fields = {name: reader.get_field(name).contents() for name in reader.fields}
    artifact = trained_platform.store.fetch(trained_platform.resolve("toy/plurals").version)
    assert fields["general.architecture"] == "llama"
    assert fields["general.type"] == "adapter"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] / artifact.lora.rank == pytest.approx(artifact.lora.scaling)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * 7 * LAYERS
    saved = load_file(artifact.folder / WEIGHTS)
    module = "base_model.model.model.layers.1.self_attn.{}.lora_B.weight"
    # A head of 8: rows 0 4 1 5 2 6 3 7, since llama.cpp rotates neighbors, transformers halves
    first = saved[module.format("q_proj")].numpy()
    size = HIDDEN // 4
    order = [
        head * size + half * size // 2 + row
        for head in range(4)
        for row in range(size // 2)
        for half in range(2)
    ]
    assert np.array_equal(tensors["blk.1.attn_q.weight.lora_b"], first[order])
    value = saved[module.format("v_proj")].numpy()
    assert np.array_equal(tensors["blk.1.attn_v.weight.lora_b"], value)


@pytest.mark.parametrize(
    ("name", "format"), [("animals", "merged"), ("prices", "merged"), ("plurals", "gguf-lora")]
)
def test_an_export_that_answers_differently_is_not_written(
    name: str, format: str, trained_platform: Platform, tmp_path: Path
) -> None:
    replay = replay_of(trained_platform, f"toy/{name}")
    first = replay.predictions[0]
    changed = "99999.5" if name == "prices" else "another answer"
    other = (replace(first, prediction=changed), *replay.predictions[1:])
    with pytest.raises(RefusedError) as error:
        export(
            trained_platform,
            f"toy/{name}",
            replace(replay, predictions=other),
            tmp_path / "out",
            format,
        )
    assert first.row_id in error.value.message
    assert f"1 of {len(other)}" in error.value.message
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_probability_that_moved_is_a_difference(
    trained_platform: Platform, tmp_path: Path
) -> None:
    replay = replay_of(trained_platform, "toy/animals")
    first = replay.predictions[0]
    assert first.confidence is not None
    moved = (replace(first, confidence=first.confidence - 0.002), *replay.predictions[1:])
    with pytest.raises(RefusedError, match="1 of"):
        export(
            trained_platform,
            "toy/animals",
            replace(replay, predictions=moved),
            tmp_path / "out",
            "merged",
        )


def test_a_version_without_a_dataset_repeats_the_answers_to_fixed_texts(
    trained_platform: Platform, tmp_path: Path
) -> None:
    artifact = trained_platform.store.fetch(trained_platform.resolve("toy/animals").version)
    labels = tuple(artifact.manifest.task["labels"])
    folder = tmp_path / "peft"
    folder.mkdir()
    for name in ("adapter_config.json", WEIGHTS):
        (folder / name).write_bytes((artifact.folder / name).read_bytes())
    trained_platform.files.import_adapter(folder, "toy/away", labels=labels)
    done = trained_platform.files.export_model("toy/away", tmp_path / "out", "merged")
    assert done.rows == 8


@pytest.mark.parametrize("name", ["animals", "prices"])
def test_llama_cpp_has_no_head_for_labels_and_numbers(
    name: str, trained_platform: Platform, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="no head"):
        trained_platform.files.export_model(f"toy/{name}", tmp_path / "out", "gguf-lora")


def test_nothing_is_replaced(trained_platform: Platform, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        trained_platform.files.export_model("toy/plurals", tmp_path / "out", "gguf-lora")
    assert (tmp_path / "out").read_text() == "precious"


def test_predictions_of_other_rows_prove_nothing(trained_platform: Platform) -> None:
    version = trained_platform.resolve("toy/animals").version
    with pytest.raises(DataError, match="no stored predictions"):
        stored_predictions(trained_platform.store, version, [])


def test_the_command_prints_the_proof(trained_platform: Platform, tmp_path: Path) -> None:
    base = str(trained_platform.base_name)
    where = ["--workspace", str(trained_platform.workspace.root), "--base", base]
    target = str(tmp_path / "model")
    done = invoke(*where, "adapters", "export", "toy/animals@1", target, "--format", "merged")
    assert (done.exit_code, "stored predictions" in done.stdout) == (0, True), done.output
    path = str(tmp_path / "p.gguf")
    done = invoke(
        *where, "adapters", "export", "toy/plurals@1", path, "--format", "gguf-lora", "--json"
    )
    shown = json.loads(done.stdout)
    assert (shown["adapter"], shown["format"]) == ("toy/plurals@1", "gguf-lora")
    assert shown["bytes"] == Path(path).stat().st_size
