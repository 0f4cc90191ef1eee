"""An adapter's tensors are views of the verified bytes, whatever their type and offset."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from pools import base, fused_layers, model, write_artifact
from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.bases.linear import FusedLayers
from trunkline.contracts import Template
from trunkline.lora.weights import read_weights
from workbench import task_json

__all__ = ["base", "fused_layers", "model"]

HIDDEN = 32


@pytest.fixture
def rewritten(
    tmp_path: Path, fused_layers: FusedLayers, base: str
) -> Callable[[Callable[[bytes], bytes], torch.dtype], Artifact]:
    """An adapter whose file was changed before it was sealed."""

    def make(change: Callable[[bytes], bytes], dtype: torch.dtype) -> Artifact:
        folder = write_artifact(tmp_path / "one", fused_layers, base, 4, head=True).folder
        file = folder / "adapter_model.safetensors"
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(file).items()}
        file.write_bytes(change(save(tensors, metadata={"format": "pt"})))
        seal(
            folder,
            base={"name": "tiny", "digest": base},
            task=task_json("classification"),
            template=Template(),
            data={"dataset": "none", "fingerprint": "none", "split": "none"},
        )
        return read_artifact(folder)

    return make


def odd(data: bytes) -> bytes:
    """The same tensors after a header of an odd number of bytes."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length])).encode()
    header += b" " * (1 - len(header) % 2)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def read(artifact: Artifact, fused_layers: FusedLayers, base: str) -> dict[str, torch.Tensor]:
    linear = {
        name: (fused.inputs, fused.outputs[index]) for name, fused, index in fused_layers.members()
    }
    matrices, head = read_weights(artifact, base, linear, HIDDEN)
    tensors = {}
    for name, (down, up) in matrices.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    assert head is not None
    return {**tensors, "base_model.model.score.weight": head.weight}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("change", [bytes, odd])
def test_tensors_are_those_of_the_file(
    rewritten: Callable[[Callable[[bytes], bytes], torch.dtype], Artifact],
    change: Callable[[bytes], bytes],
    dtype: torch.dtype,
    fused_layers: FusedLayers,
    base: str,
) -> None:
    artifact = rewritten(change, dtype)
    tensors = read(artifact, fused_layers, base)
    expected = load_file(artifact.folder / "adapter_model.safetensors")
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name].float()) for name, tensor in tensors.items())
    assert all(tensor.data_ptr() % 4 == 0 for tensor in tensors.values())


def test_all_tensors_of_an_adapter_share_one_block_of_memory(
    tmp_path: Path, fused_layers: FusedLayers, base: str
) -> None:
    artifact = write_artifact(tmp_path / "one", fused_layers, base, 4, head=True)
    places = [
        (tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)
        for tensor in read(artifact, fused_layers, base).values()
    ]
    size = (artifact.folder / "adapter_model.safetensors").stat().st_size
    assert max(stop for _, stop in places) - min(start for start, _ in places) <= size
