"""The proof before publication detects damage to the adapter on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from trunkline.adapters.artifact import read_artifact
from trunkline.api import Platform
from trunkline.errors import TrainingError
from trunkline.tasks import task_from_json
from trunkline.training.proof import SAMPLE, Proof, prove, trained_outputs
from workbench import make_artifact, reseal, task_json

PROMPTS = [[5, 6, 7], [40, 41, 42, 43], [9]]
KINDS = ("classification", "regression", "generation")


def proved(
    platform: Platform,
    tiny: Path,
    folder: Path,
    kind: str,
    tamper: Callable[[dict[str, Any]], Any] | None = None,
    trained: Callable[[Any], Any] = lambda model: None,
    prompts: list[list[int]] = PROMPTS,
) -> Proof:
    """Prove an artifact that was modified after the model wrote it."""
    model = make_artifact(folder, tiny, kind)
    trained(model)
    if tamper is not None:
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        tamper(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        reseal(folder)
    artifact = read_artifact(folder)
    task = task_from_json(task_json(kind))
    pad_id = platform.engine.base.tokenizer.pad_token_id
    expected = trained_outputs(model, task, prompts, pad_id)
    return prove(expected, platform.engine, artifact, task, prompts)


@pytest.mark.parametrize("kind", KINDS)
def test_intact_artifact_passes(platform: Platform, tiny: Path, tmp_path: Path, kind: str) -> None:
    proof = proved(platform, tiny, tmp_path / "artifact", kind)
    assert proof.to_trained < 1e-5
    assert proof.to_base > 1e-3
    assert proof.rows == len(PROMPTS)


def test_sample_is_bounded(platform: Platform, tiny: Path, tmp_path: Path) -> None:
    proof = proved(
        platform, tiny, tmp_path / "artifact", "regression", prompts=[[5, 6]] * (SAMPLE + 9)
    )
    assert proof.rows == SAMPLE


@pytest.mark.parametrize("kind", KINDS)
def test_zeroed_matrix_is_an_error(
    platform: Platform, tiny: Path, tmp_path: Path, kind: str
) -> None:
    def tamper(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "layers.1" in name and "lora_B" in name:
                tensor.zero_()

    with pytest.raises(TrainingError, match="were not saved correctly") as caught:
        proved(platform, tiny, tmp_path / "artifact", kind, tamper)
    assert "Nothing was published" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_untrained_head_is_an_error(
    platform: Platform, tiny: Path, tmp_path: Path, kind: str
) -> None:
    def tamper(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.score.weight"].normal_(0, 0.02)

    with pytest.raises(TrainingError, match="head were not saved"):
        proved(platform, tiny, tmp_path / "artifact", kind, tamper)


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_without_effect_is_an_error(
    platform: Platform, tiny: Path, tmp_path: Path, kind: str
) -> None:
    def silence(model: Any) -> None:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.zero_()

    def tamper(tensors: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor.zero_()

    with pytest.raises(TrainingError, match="has no effect"):
        proved(platform, tiny, tmp_path / "artifact", kind, tamper, silence)


def test_outputs_that_are_nan_are_an_error(platform: Platform, tiny: Path, tmp_path: Path) -> None:
    def spoil(model: Any) -> None:
        next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(float("nan"))

    with pytest.raises(TrainingError):
        proved(platform, tiny, tmp_path / "artifact", "classification", trained=spoil)


def test_base_is_unchanged_after_a_failed_proof(
    platform: Platform, tiny: Path, tmp_path: Path
) -> None:
    import torch

    from trunkline.inference.forward import next_logits

    model = platform.engine.base.model
    before = next_logits(model, PROMPTS, 0)
    with pytest.raises(TrainingError):
        proved(
            platform, tiny, tmp_path / "artifact", "generation",
            lambda tensors: [tensor.mul_(2) for tensor in tensors.values()],
        )  # fmt: skip
    assert torch.equal(next_logits(model, PROMPTS, 0), before)
