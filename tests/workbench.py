"""Fixtures for tests that need a base, an artifact or a trained adapter.

A tiny base and trained adapters are made once per test run. Under pytest-xdist all workers share
them: the first worker that needs one builds it under a file lock.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pytest
from filelock import FileLock

from own_files import OWN_TASKS, own_recipe
from tiny_base import make_tiny_base
from toy_plugin import install_toy
from trunkline.api import Platform, open
from trunkline.contracts import Task, Template
from trunkline.errors import BaseModelError, Interrupted
from trunkline.evaluation.intervals import group_draws
from trunkline.evaluation.report import EvaluationReport
from trunkline.registry.records import VersionRecord

LABELS = ["bird", "fish", "mammal"]
BASE_NAME = "tiny"
RECIPES = ("toy/animals", "toy/prices", "toy/plurals")

SETTINGS: dict[str, Any] = {"max_steps": 7, "evals_per_epoch": 2, "lora_dropout": 0.1, "seed": 2}
"""Settings of the shared trainings: dropout and several validations make resuming hard."""


# ------------------------------------------------------------------------------ shared folders


def build_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Path:
    """The folder ``name`` of this test run, built by the first worker that needs it.

    Args:
        build: called with the path of the folder, whose parent exists.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, built = root / "shared" / name, root / "shared" / f".{name}.built"
    folder.parent.mkdir(exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if not built.exists():
            build(folder)
            built.touch()
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama; read only.

    The trainer collects garbage each time; objects of the heavy packages are excluded from that.
    """
    import peft
    import transformers

    assert transformers.Trainer
    assert peft.PeftModel
    folder = build_once(tmp_path_factory, BASE_NAME, make_tiny_base)
    gc.collect()
    gc.freeze()
    return folder


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Iterator[Platform]:
    """A platform with the toy plugin on an empty workspace and the tiny Llama.

    Intervals use few resamples, which would otherwise dominate the time of a tiny training.
    """
    install_toy(tmp_path, monkeypatch)
    monkeypatch.setattr(group_draws, "__defaults__", (20,))
    yield from opened(tmp_path / "workspace", tiny)


def opened(workspace: Path, base: Path) -> Iterator[Platform]:
    """A platform whose base stays loaded from one test to the next."""
    from trunkline.bases import load, release

    try:
        load(str(base))
    except BaseModelError:  # another test left another base loaded
        release()
    workspace.mkdir(exist_ok=True)
    platform = open(workspace, base=str(base))
    yield platform
    platform.registry.close()


# ---------------------------------------------------------------------------- trained adapters


@dataclass(frozen=True)
class TrainedAdapter:
    """One adapter of the shared workspace with its run, read from the registry."""

    platform: Platform
    name: str

    @cached_property
    def version(self) -> VersionRecord:
        return self.platform.resolve(f"{self.name}@1").version

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def folder(self) -> Path:
        """The folder of the artifact."""
        return self.platform.workspace.adapters / self.version.path

    @property
    def report(self) -> Mapping[str, Any]:
        """The report of the run."""
        assert self.version.run is not None
        report = self.platform.registry.runs.get(self.version.run).report
        assert report is not None
        return report

    @property
    def evaluation_report(self) -> EvaluationReport:
        evaluated = self.platform.evaluation_report(self.version)
        assert evaluated is not None
        return evaluated[0]


@pytest.fixture(scope="session")
def trained_workspace(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A workspace in which each toy recipe was trained once with :data:`SETTINGS`; read only."""

    def build(folder: Path) -> None:
        with _toy_platform(tmp_path_factory, folder, tiny) as platform:
            for recipe in RECIPES:
                platform.train(recipe, **SETTINGS)

    return build_once(tmp_path_factory, "trained", build)


@pytest.fixture(scope="session")
def own_workspace(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A workspace with an adapter for each of :data:`OWN_TASKS` and the toy recipes; read only."""

    def build(folder: Path) -> None:
        with _toy_platform(tmp_path_factory, folder, tiny) as platform:
            for name in OWN_TASKS:
                platform.train(own_recipe(name, folder))
            for recipe in RECIPES:
                platform.train(recipe, **SETTINGS)

    return build_once(tmp_path_factory, "own", build)


@pytest.fixture
def own_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_workspace: Path, tiny: Path
) -> Iterator[Platform]:
    """A platform with the toy plugin on a copy of :func:`own_workspace`."""
    install_toy(tmp_path, monkeypatch)
    monkeypatch.setattr(group_draws, "__defaults__", (20,))
    yield from opened(shutil.copytree(own_workspace, tmp_path / "workspace"), tiny)


@pytest.fixture(scope="session")
def two_prices_workspace(
    tmp_path_factory: pytest.TempPathFactory, trained_workspace: Path, tiny: Path
) -> Path:
    """The trained workspace with a second version of ``toy/prices``; read only."""

    def build(folder: Path) -> None:
        shutil.copytree(trained_workspace, folder)
        with _toy_platform(tmp_path_factory, folder, tiny) as platform:
            platform.train("toy/prices", max_steps=5)

    return build_once(tmp_path_factory, "two-prices", build)


@pytest.fixture(scope="session")
def stopped_workspace(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A workspace whose run 1, of ``toy/animals``, was stopped after three steps; read only."""

    def build(folder: Path) -> None:
        steps: list[int] = []

        def should_stop() -> bool:
            steps.append(1)
            return len(steps) == 3

        with (
            _toy_platform(tmp_path_factory, folder, tiny) as platform,
            pytest.raises(Interrupted),
        ):
            platform.train("toy/animals", should_stop=should_stop, **SETTINGS)

    return build_once(tmp_path_factory, "stopped", build)


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, trained_workspace: Path, tiny: Path
) -> Iterator[dict[str, TrainedAdapter]]:
    """The trained adapters by name, in a copy of their workspace for this worker; read only."""
    workspace = shutil.copytree(trained_workspace, tmp_path_factory.mktemp("trained") / "copy")
    platform = open(workspace, base=str(tiny), no_plugins=True)
    yield {name: TrainedAdapter(platform, name) for name in RECIPES}
    platform.registry.close()


@pytest.fixture
def trained_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trained_workspace: Path, tiny: Path
) -> Iterator[Platform]:
    """A platform with the toy plugin on a copy of the trained workspace."""
    install_toy(tmp_path, monkeypatch)
    monkeypatch.setattr(group_draws, "__defaults__", (20,))
    yield from opened(shutil.copytree(trained_workspace, tmp_path / "workspace"), tiny)


@contextmanager
def _toy_platform(
    factory: pytest.TempPathFactory, workspace: Path, tiny: Path
) -> Iterator[Platform]:
    """A platform with the toy plugin for a session fixture, apart from the user's environment."""
    folder = factory.mktemp("plugin")
    with pytest.MonkeyPatch.context() as patch:
        install_toy(folder, patch)
        patch.setenv("TRUNKLINE_CACHE", str(folder / "cache"))
        patch.delenv("TRUNKLINE_REGISTRY", raising=False)
        patch.setattr(group_draws, "__defaults__", (20,))
        yield from opened(workspace, tiny)


# ----------------------------------------------------------------------------------- artifacts


def task_json(kind: str) -> dict[str, Any]:
    """The description of a task in an artifact's manifest."""
    return {
        "classification": {"kind": "classification", "labels": LABELS},
        "regression": {
            "kind": "regression", "scale": "log", "mean": 1.0, "deviation": 2.0, "unit": "EUR",
        },
        "generation": {"kind": "generation", "max_new_tokens": 8},
        "multilabel": {"kind": "multilabel", "labels": LABELS, "threshold": 0.4},
        "tagging": {"kind": "tagging", "labels": LABELS},
        "ranking": {"kind": "ranking"},
    }[kind]  # fmt: skip


def make_artifact(
    folder: Path,
    base: Path,
    kind: str = "classification",
    *,
    seed: int = 0,
    template: Template | None = None,
    base_digest: str | None = None,
    max_length: int | None = None,
    **lora: Any,
) -> Any:
    """Save a random adapter with PEFT, seal it, and return PEFT's own model.

    Args:
        folder: receives the artifact.
        base: a tiny base.
        kind: kind of the task.
        seed: seed of the matrices A and B.
        template: template of the prompt.
        max_length: the longest prompt with answer, in tokens.
        base_digest: by default that of ``base``.
        lora: fields of ``LoraConfig``.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from trunkline.adapters.artifact import seal
    from trunkline.adapters.config import TASK_TYPES
    from trunkline.bases import describe, load_fresh
    from trunkline.data.targets import default_template
    from trunkline.tasks import task_from_json

    task = task_from_json(task_json(kind))
    model = load_fresh(
        str(base), task.head_size, device="cpu", dtype="fp32", per_token=kind == "tagging"
    )
    # PEFT's all-linear leaves out the head of a sequence classification only
    targets = ["q_proj", "v_proj"] if kind == "tagging" else "all-linear"
    choice = {"r": 4, "lora_alpha": 8, "target_modules": targets} | lora
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(task_type=TASK_TYPES[kind], **choice)
        peft_model = get_peft_model(model, config).eval()
        with torch.no_grad():
            for name, parameter in peft_model.named_parameters():
                if "magnitude" in name:
                    parameter *= 1 + 0.5 * torch.randn_like(parameter)
                elif "lora_" in name:
                    parameter.normal_(0.0, 0.2)
    peft_model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    seal(
        folder,
        base={"name": base.name, "digest": base_digest or describe(str(base)).digest},
        task=task_json(kind),
        template=template or default_template(cast(Task, kind)),
        max_length=max_length,
        data={"dataset": "toy/animals", "fingerprint": "f", "split": "s"},
    )
    return peft_model


def reseal(folder: Path) -> None:
    """Update the manifest's digests after files were changed, as an attacker would."""
    import hashlib

    manifest = json.loads((folder / "trunkline.json").read_text())
    config = json.loads((folder / "adapter_config.json").read_text())
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    manifest["adapter_config"] = hashlib.sha256(canonical.encode()).hexdigest()
    weights = (folder / "adapter_model.safetensors").read_bytes()
    manifest["weights"] = hashlib.sha256(weights).hexdigest()
    (folder / "trunkline.json").write_text(json.dumps(manifest))
