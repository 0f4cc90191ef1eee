"""Folders that are not a PEFT adapter: what they are instead, and where the adapter is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_folders import CONFIG, WEIGHTS
from trunkline.adapters.peft_folder import folders_beneath, read_peft_folder
from trunkline.errors import IntegrityError, NotFoundError

MLX = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8, "scale": 20.0}}


def problem(folder: Path) -> str:
    """Message and hint of the refusal."""
    with pytest.raises(IntegrityError) as caught:
        read_peft_folder(folder)
    return f"{caught.value.message} {caught.value.hint}"


def test_folders_beneath_are_named_in_the_order_of_their_numbers(
    folder: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    for step in (1000, 500, 20):
        shutil.copytree(folder, trained / f"checkpoint-{step}")
    text = problem(trained)
    assert "there are 3 adapters beneath it: 'checkpoint-20', 'checkpoint-500', 'ch" in text
    assert text.endswith(f"for example {trained}/checkpoint-1000")


def test_adapter_two_levels_down_is_named(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs" / "a" / "final")
    assert "there is an adapter beneath it: 'a/final'" in problem(tmp_path / "runs")


def test_of_many_folders_the_last_are_named(folder: Path, tmp_path: Path) -> None:
    for step in range(12):
        target = tmp_path / "trained" / f"checkpoint-{step}"
        target.mkdir(parents=True)
        shutil.copyfile(folder / CONFIG, target / CONFIG)
    text = problem(tmp_path / "trained")
    assert "'checkpoint-11' and 7 more" in text
    assert "'checkpoint-1'" not in text


def test_configuration_without_weights_names_the_checkpoint_that_has_them(
    folder: Path, tmp_path: Path
) -> None:
    trained = tmp_path / "trained"
    shutil.copytree(folder, trained / "checkpoint-7")
    shutil.copyfile(folder / CONFIG, trained / CONFIG)
    text = problem(trained)
    assert f"no {WEIGHTS}, but there is an adapter beneath it: 'checkpoint-7'" in text


def test_links_to_folders_are_not_followed(folder: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    trained.mkdir()
    (trained / "loop").symlink_to(trained)
    (trained / "away").symlink_to(folder)
    assert folders_beneath(trained) == []


@pytest.mark.parametrize("weights", ["adapters.npz", "adapters.safetensors"])
def test_adapter_of_mlx_is_called_one_with_its_conversion(tmp_path: Path, weights: str) -> None:
    (tmp_path / CONFIG).write_text(json.dumps(MLX))
    (tmp_path / weights).write_bytes(b"PK\x03\x04")
    text = problem(tmp_path)
    assert f"has an adapter of MLX ({weights}), not of PEFT" in text
    assert "lora_A.weight is lora_a transposed" in text
    assert "mlx_lm.fuse" in text


def test_configuration_of_mlx_is_recognized_beside_renamed_weights(folder: Path) -> None:
    (folder / CONFIG).write_text(json.dumps(MLX))
    assert f"has an adapter of MLX ({CONFIG})" in problem(folder)


def test_weights_of_mlx_alone_are_recognized(tmp_path: Path) -> None:
    (tmp_path / "adapters.npz").write_bytes(b"PK\x03\x04")
    assert "of MLX (adapters.npz)" in problem(tmp_path)


def test_pointer_of_git_lfs_is_called_one(folder: Path) -> None:
    (folder / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
    )
    text = problem(folder)
    assert "is a pointer of Git LFS" in text
    assert "git lfs pull" in text


def test_adapter_of_llama_cpp_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "lora-f16.gguf").write_bytes(b"GGUF")
    assert "'lora-f16.gguf' is in the format of llama.cpp" in problem(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_full_model_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    text = problem(tmp_path)
    assert "has a full model, not an adapter" in text
    assert "--base" in text


def test_full_model_of_several_files_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "has a full model, not an adapter" in problem(tmp_path)


def test_weights_in_several_files_are_called_so(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model-00001-of-00002.safetensors")
    (folder / "adapter_model-00002-of-00002.safetensors").write_bytes(b"")
    text = problem(folder)
    assert "in several files, such as adapter_model-00001-of-00002.safetensors" in text
    assert f"save_file all tensors as {WEIGHTS}" in text


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"])
def test_state_of_a_trainer_is_not_taken_for_the_weights(folder: Path, name: str) -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(b"")
    assert name not in problem(folder)
    (folder / "adapter_model.bin").write_bytes(b"")
    assert "as a pickle (adapter_model.bin)" in problem(folder)


@pytest.mark.parametrize("name", ["my-lora.zip", "my-lora.tar.gz", "MY.TGZ"])
def test_hint_for_an_archive_is_to_unpack_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(NotFoundError) as caught:
        read_peft_folder(tmp_path / name)
    assert str(caught.value.hint).startswith("Unpack it, then name the folder")
    assert "Unpack it" in problem(tmp_path)


def test_file_instead_of_a_folder_is_reported_as_one(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="is a file, not the folder of an adapter"):
        read_peft_folder(folder / WEIGHTS)


def test_refusal_leaves_no_trace(refused: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "trained" / "checkpoint-1")
    assert "checkpoint-1" in refused(tmp_path / "trained")
