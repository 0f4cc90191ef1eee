"""Small adapter pools, and artifacts that are written without training and without PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from products import compute_all
from trunkline.adapters.artifact import Artifact, read_artifact, seal
from trunkline.bases import describe
from trunkline.bases.linear import FusedLayers, fuse_linear_layers
from trunkline.contracts import Template
from trunkline.lora.pool import AdapterPool, Resident
from trunkline.lora.routing import Routing
from workbench import task_json

RANKS = (8, 3, 16, 1, 24, 12, 8, 20, 5, 8)
FIRST, LAST, NEXT = 0, 6, 9
"""Indices of three adapters of rank 8."""

LABELS = 3


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def fused_layers(model: Any) -> FusedLayers:
    return fuse_linear_layers(model)


@pytest.fixture(scope="module")
def base(tiny: Path) -> str:
    return describe(str(tiny)).digest


def write_artifact(
    folder: Path,
    fused_layers: FusedLayers,
    base: str,
    rank: int,
    *,
    seed: int = 0,
    head: bool = False,
) -> Artifact:
    """Write an adapter of every layer."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, fused, index in fused_layers.members():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, fused.inputs, generator=draw)
        up = torch.randn(fused.outputs[index], rank, generator=draw)
        tensors[f"{prefix}.lora_B.weight"] = up
    if head:
        tensors["base_model.model.score.weight"] = torch.randn(LABELS, 32, generator=draw)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({name.rsplit(".", 1)[1] for name, _, _ in fused_layers.members()}),
        "modules_to_save": ["score"] if head else None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    seal(
        folder,
        base={"name": "tiny", "digest": base},
        task=task_json("classification" if head else "generation"),
        template=Template(),
        data={"dataset": "none", "fingerprint": "none", "split": "none"},
    )
    return read_artifact(folder)


@pytest.fixture(scope="module")
def artifacts(
    tmp_path_factory: pytest.TempPathFactory, fused_layers: FusedLayers, base: str
) -> list[Artifact]:
    """An artifact of each of :data:`RANKS`; read only."""
    folder = tmp_path_factory.mktemp("artifacts")
    return [
        write_artifact(folder / f"{index}", fused_layers, base, rank, seed=index)
        for index, rank in enumerate(RANKS)
    ]


def count_numbers(fused_layers: FusedLayers) -> int:
    """Numbers in an adapter of rank 1 on every layer."""
    return sum(fused.inputs + fused.outputs[index] for _, fused, index in fused_layers.members())


def small_pool(
    model: Any, fused_layers: FusedLayers, base: str, *, pages: int, ranks: int
) -> AdapterPool:
    """A pool with ``pages`` pages, and host memory for adapters whose ranks sum to ``ranks``."""
    host_bytes = ranks * count_numbers(fused_layers) * 4
    pool = AdapterPool(model, base, fused_layers, slots=pages, host_bytes=host_bytes)
    assert pool.pages == pages
    return pool


def computes(pool: AdapterPool, fused_layers: FusedLayers, resident: Resident) -> bool:
    """Whether a token with this adapter gets that adapter's output, in the first and last layer."""
    tensors = load_file(resident.artifact.folder / "adapter_model.safetensors")
    for fused in (fused_layers.fused[0], fused_layers.fused[-1]):
        x = torch.linspace(-1, 1, 2 * fused.inputs).view(2, -1)
        expected = [compute_all(fused, x)]
        for name in fused.names:
            down, up = (tensors[f"base_model.model.{name}.lora_{one}.weight"] for one in "AB")
            expected.append((x[:1] @ down.T) @ up.T * resident.artifact.lora.scaling)
        with pool.route(Routing([resident.pages])):
            ours = torch.cat([fused.part(index, x) for index in range(len(fused.names))], 1)
        bare, *added = expected
        bare[:1] += torch.cat(added, 1)
        if not torch.allclose(ours, bare, atol=1e-3, rtol=1e-4):
            return False
    return True


def digests(pool: AdapterPool) -> set[str]:
    return {one.digest for one in pool.residents()}


def tiers(pool: AdapterPool) -> dict[str, str]:
    return {one.digest: one.tier for one in pool.residents()}


def acquired(pool: AdapterPool, artifact: Artifact) -> Resident:
    resident = pool.acquire(artifact.digest)
    assert resident is not None
    return resident


@pytest.fixture
def full(
    model: Any, fused_layers: FusedLayers, base: str, artifacts: list[Artifact]
) -> AdapterPool:
    """Two pages and host memory for rank 20, filled by two adapters of rank 8."""
    pool = small_pool(model, fused_layers, base, pages=2, ranks=20)
    for index in (FIRST, LAST):
        pool.load(artifacts[index], f"toy/{index}@1")
    return pool
