"""What tests of adapters, training, inference and the platform stand on.

Owns: tiny bases, artifacts made without training, a platform with the toy plugin.
Must not know: how any of it is tested.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiny_base import make_tiny_base
from toy_plugin import install_toy
from trunkline.api import Platform, open
from trunkline.contracts import Template
from trunkline.errors import BaseModelError
from trunkline.evaluation.intervals import group_draws
from trunkline.training.run import TrainingResult

LABELS = ["bird", "fish", "mammal"]
BASE_NAME = "tiny"

SETTINGS: dict[str, Any] = {"max_steps": 7, "evals_per_epoch": 2, "lora_dropout": 0.1, "seed": 2}
"""Of the trainings in :func:`whole`: dropout and several validations, so that going on is hard."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, only to be read.

    The trainer collects garbage each time; what the heavy packages brought is taken out of that.
    """
    import peft
    import transformers

    assert transformers.Trainer
    assert peft.PeftModel
    made = make_tiny_base(tmp_path_factory.mktemp("bases") / BASE_NAME)
    gc.collect()
    gc.freeze()
    return made


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Iterator[Platform]:
    """A platform with the toy plugin on an empty workspace and the tiny Llama.

    Intervals are drawn from few resamples: most of the time of a tiny training would go there.
    """
    install_toy(tmp_path, monkeypatch)
    monkeypatch.setattr(group_draws, "__defaults__", (20,))
    yield from opened(tmp_path / "workspace", tiny)


def opened(workspace: Path, base: Path) -> Iterator[Platform]:
    """A platform on a base that the process holds from one test to the next."""
    from trunkline.bases import load, release

    try:
        load(str(base))
    except BaseModelError:  # another test left another base behind
        release()
    workspace.mkdir(exist_ok=True)
    made = open(workspace, base=str(base))
    yield made
    made.registry.close()


@dataclass(frozen=True)
class Whole:
    """A platform in which each recipe was trained without interruption; only to be read."""

    platform: Platform
    runs: dict[str, TrainingResult]

    def digest(self, recipe: str) -> str:
        """Of the version that the recipe's run published."""
        return self.runs[recipe].version.digest


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        install_toy(folder, patch)
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        patch.delenv("TRUNKLINE_REGISTRY", raising=False)
        patch.setattr(group_draws, "__defaults__", (20,))
        for platform in opened(folder / "workspace", tiny):
            recipes = ("toy/animals", "toy/prices", "toy/plurals")
            runs = {name: platform.train(name, **SETTINGS) for name in recipes}
            patch.undo()
            yield Whole(platform, runs)


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
    from trunkline.bases import describe, load_fresh

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
