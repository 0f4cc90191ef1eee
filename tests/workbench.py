"""What tests of adapters, training, inference and the platform stand on.

Owns: tiny bases, artifacts made without training, a platform with the toy plugin.
Must not know: how any of it is tested.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_base import make_tiny_base
from toy_plugin import install_toy
from trunkline.api import Platform, open
from trunkline.contracts import Template

LABELS = ["bird", "fish", "mammal"]
BASE_NAME = "tiny"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, only to be read."""
    return make_tiny_base(tmp_path_factory.mktemp("bases") / BASE_NAME)


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Iterator[Platform]:
    """A platform with the toy plugin on an empty workspace and the tiny Llama."""
    install_toy(tmp_path, monkeypatch)
    yield from opened(tmp_path / "workspace", tiny)


def opened(workspace: Path, base: Path) -> Iterator[Platform]:
    """A platform that lets go of its base at the end."""
    from trunkline.base_model import release

    release()
    workspace.mkdir(exist_ok=True)
    made = open(workspace, base=str(base))
    yield made
    made.registry.close()
    release()


def task_json(kind: str) -> dict[str, Any]:
    """The description of a task, as it stands in an artifact."""
    return {
        "classification": {"kind": "classification", "labels": LABELS},
        "regression": {
            "kind": "regression", "scale": "log", "mean": 1.0, "deviation": 2.0, "unit": "EUR",
        },
        "generation": {"kind": "generation", "max_new_tokens": 8},
    }[kind]  # fmt: skip


def make_artifact(
    folder: Path,
    base: Path,
    kind: str = "classification",
    *,
    seed: int = 0,
    template: Template | None = None,
    base_digest: str | None = None,
    **lora: Any,
) -> Any:
    """Save a random adapter with PEFT, seal it, and give PEFT's own model.

    Args:
        folder: gets the artifact.
        base: a tiny base.
        kind: of the task.
        seed: of the matrices, A and B both.
        template: of the prompt.
        base_digest: that of ``base`` unless given.
        lora: for ``LoraConfig``.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from trunkline.adapters.artifact import seal
    from trunkline.base_model import describe, load_fresh

    head = {"classification": len(LABELS), "regression": 1, "generation": None}[kind]
    model = load_fresh(str(base), head, device="cpu", dtype="fp32")
    choice = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | lora
    task_type = "CAUSAL_LM" if kind == "generation" else "SEQ_CLS"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(task_type=task_type, **choice)
        peft_model = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(0.0, 0.2)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    seal(
        folder,
        base={"name": base.name, "digest": base_digest or describe(str(base)).digest},
        task=task_json(kind),
        template=template or Template(),
        data={"dataset": "toy/animals", "fingerprint": "f", "split": "s"},
    )
    return peft_model


def reseal(folder: Path) -> None:
    """Make the manifest agree with files that were changed: a forger's artifact."""
    import hashlib

    manifest = json.loads((folder / "trunkline.json").read_text())
    config = json.loads((folder / "adapter_config.json").read_text())
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    manifest["adapter_config"] = hashlib.sha256(canonical.encode()).hexdigest()
    weights = (folder / "adapter_model.safetensors").read_bytes()
    manifest["weights"] = hashlib.sha256(weights).hexdigest()
    (folder / "trunkline.json").write_text(json.dumps(manifest))
