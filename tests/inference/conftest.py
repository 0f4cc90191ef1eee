"""Tiny bases of several families, an engine, and an artifact of each task, made without
training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from driving import Driven
from tiny_base import Family, make_tiny_base
from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.bases import Base
from trunkline.contracts import Template
from trunkline.inference.engine import Engine
from workbench import make_artifact, tiny

__all__ = ["artifacts", "base", "bases", "driven", "engine", "family_bases", "made", "tiny"]


@dataclass(frozen=True, eq=False)
class Made:
    """A sealed artifact with PEFT's own model of it, and that of the bare base."""

    artifact: Artifact
    truth: Any


def held(folder: Path) -> Base:
    """The base in a folder, without this process being bound to it."""
    from trunkline.bases import load, release

    release()
    loaded = load(str(folder), device="cpu")
    release()
    return loaded


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Artifact]:
    """Task → an artifact on the tiny Llama, each with a template."""
    room = tmp_path_factory.mktemp("artifacts")
    templates = {
        "classification": Template(prompt="Animal: {text}"),
        "regression": Template(clean=("lowercase",)),
        "generation": Template(prompt="Plural: {text}", chat=True),
    }
    for seed, (kind, template) in enumerate(templates.items()):
        make_artifact(room / kind, tiny, kind, seed=seed, template=template)
    return {kind: read_artifact(room / kind) for kind in templates}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Made]:
    """Name → an artifact on the tiny Llama whose prompt is the text; of other ranks and targets.

    Ranks are below, at and above that of a page of the adapter pool.
    """
    room = tmp_path_factory.mktemp("made")
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "low": ("generation", {"r": 2}),
        "middle": ("generation", {"r": 8, "target_modules": ["q_proj", "down_proj"]}),
        "high": ("generation", {"r": 12, "use_rslora": True}),
        "labels": ("classification", {"r": 4}),
        "number": ("regression", {"r": 4, "target_modules": ["v_proj"]}),
    }
    truths = {
        name: make_artifact(room / name, tiny, kind, seed=10 + seed, **lora)
        for seed, (name, (kind, lora)) in enumerate(kinds.items())
    }
    return {name: Made(read_artifact(room / name), truth) for name, truth in truths.items()}


@pytest.fixture(scope="session")
def truth(tiny: Path) -> Any:
    """transformers' own model of the tiny Llama."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny).eval()


@pytest.fixture(scope="session")
def family_bases(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[Family, Path]:
    """Family → the folder of a tiny base."""
    room = tmp_path_factory.mktemp("families")
    return {
        "llama": tiny,
        "qwen2": make_tiny_base(room / "qwen2", "qwen2"),
        "gpt2": make_tiny_base(room / "gpt2", "gpt2"),
    }


@pytest.fixture(scope="session")
def bases(family_bases: dict[Family, Path]) -> dict[Family, Base]:
    """Family → a tiny base in memory."""
    return {family: held(folder) for family, folder in family_bases.items()}


@pytest.fixture(scope="session")
def base(bases: dict[Family, Base]) -> Base:
    """The tiny Llama in memory."""
    return bases["llama"]


@pytest.fixture
def driven(base: Base) -> Iterator[Callable[..., Driven]]:
    """Makes engines on the tiny Llama that the test steps itself; takes settings."""
    open_ones: list[Driven] = []

    def make(**settings: Any) -> Driven:
        open_ones.append(Driven(base, **settings))
        return open_ones[-1]

    yield make
    for one in open_ones:
        one.engine.close()


@pytest.fixture
def engine(base: Base) -> Iterator[Engine]:
    """An engine with an empty adapter pool, on its own thread."""
    made_engine = Engine(base)
    yield made_engine
    made_engine.close()
