"""Tiny bases of several families, engines, and artifacts of each task, made without training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driving import EngineDriver, MakeDriver, MakeEngine
from tiny_base import Family, make_tiny_base
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.bases import Base
from trunkline.contracts import Template
from trunkline.inference.engine import Engine
from trunkline.inference.settings import EngineSettings
from workbench import make_artifact, tiny

__all__ = [
    "adapters",
    "artifacts",
    "base",
    "bases",
    "engine",
    "family_bases",
    "make_driver",
    "make_engine",
    "tiny",
]


@dataclass(frozen=True, eq=False)
class Adapter:
    """A sealed artifact with PEFT's own model of it."""

    artifact: Artifact
    truth: Any


def load_base(folder: Path) -> Base:
    """Load a base without binding this process to it."""
    from trunkline.bases import load, release

    release()
    loaded = load(str(folder), device="cpu")
    release()
    return loaded


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Artifact]:
    """Task → an artifact on the tiny Llama, each with a template."""
    folder = tmp_path_factory.mktemp("artifacts")
    templates = {
        "classification": Template(prompt="Animal: {text}"),
        "regression": Template(clean=("lowercase",)),
        "generation": Template(prompt="Plural: {text}", chat=True),
    }
    for seed, (kind, template) in enumerate(templates.items()):
        make_artifact(folder / kind, tiny, kind, seed=seed, template=template)
    return {kind: read_artifact(folder / kind) for kind in templates}


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Adapter]:
    """Name → an artifact on the tiny Llama whose prompt is the text; ranks and targets differ.

    Ranks are below, at and above that of a page of the adapter pool.
    """
    folder = tmp_path_factory.mktemp("adapters")
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "low": ("generation", {"r": 2}),
        "middle": ("generation", {"r": 8, "target_modules": ["q_proj", "down_proj"]}),
        "high": ("generation", {"r": 12, "use_rslora": True}),
        "dora": ("generation", {"r": 12, "use_dora": True}),
        "labels": ("classification", {"r": 4}),
        "number": ("regression", {"r": 4, "target_modules": ["v_proj"]}),
    }
    truths = {
        name: make_artifact(folder / name, tiny, kind, seed=10 + seed, **lora)
        for seed, (name, (kind, lora)) in enumerate(kinds.items())
    }
    return {name: Adapter(read_artifact(folder / name), truth) for name, truth in truths.items()}


@pytest.fixture(scope="session")
def truth(tiny: Path) -> Any:
    """transformers' own model of the tiny Llama."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="session")
def family_bases(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[Family, Path]:
    """Family → the folder of a tiny base."""
    folder = tmp_path_factory.mktemp("families")
    return {
        "llama": tiny,
        "qwen2": make_tiny_base(folder / "qwen2", "qwen2"),
        "gpt2": make_tiny_base(folder / "gpt2", "gpt2"),
    }


@pytest.fixture(scope="session")
def bases(family_bases: dict[Family, Path]) -> dict[Family, Base]:
    """Family → a tiny base in memory."""
    return {family: load_base(folder) for family, folder in family_bases.items()}


@pytest.fixture(scope="session")
def base(bases: dict[Family, Base]) -> Base:
    """The tiny Llama in memory."""
    return bases["llama"]


@pytest.fixture
def make_driver(base: Base) -> Iterator[MakeDriver]:
    """Makes engines on the tiny Llama that the test steps itself."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(EngineDriver(base, **options))


@pytest.fixture
def make_engine(base: Base) -> Iterator[MakeEngine]:
    """Makes engines on the tiny Llama with threads of their own; takes the arguments of Engine."""
    with ExitStack() as stack:

        def make(settings: EngineSettings | None = None, **options: Any) -> Engine:
            engine = Engine(base, settings, **options)
            stack.callback(engine.close)
            return engine

        yield make


@pytest.fixture
def engine(make_engine: MakeEngine) -> Engine:
    """An engine with an empty adapter pool, on its own thread."""
    return make_engine()
