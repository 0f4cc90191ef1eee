"""An engine on a tiny base with an artifact of each task, made without training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from trunkline.adapters.artifact import Artifact, read_artifact
from trunkline.contracts import Template
from trunkline.inference.engine import Engine
from workbench import make_artifact, tiny

__all__ = ["artifacts", "engine", "tiny"]


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> dict[str, Artifact]:
    """Task → an artifact on the tiny Llama."""
    room = tmp_path_factory.mktemp("artifacts")
    templates = {
        "classification": Template(prompt="Animal: {text}"),
        "regression": Template(clean=("lowercase",)),
        "generation": Template(prompt="Plural: {text}", chat=True),
    }
    for seed, (kind, template) in enumerate(templates.items()):
        make_artifact(room / kind, tiny, kind, seed=seed, template=template)
    return {kind: read_artifact(room / kind) for kind in templates}


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    """An engine with an empty bank."""
    from trunkline.base_model import load, release

    release()
    yield Engine(load(str(tiny)))
    release()
