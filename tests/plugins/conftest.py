"""Fake distributions: dist-info folders and modules on ``sys.path``, and wheels for pip."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import pytest

HEAD = """
from trunkline.contracts import (
    BaselinePredictions, BaselineSpec, DatasetSpec, Gate, LossSpec, MetricSpec, RecipeSpec, Row,
    TaskSpec, Template, TransformSpec,
)
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1

def load():
    return [
        Row(id=f"r{i}", text=f"text {i}", target="ab"[i % 2], group=f"g{i}") for i in range(6)
    ]

def dataset(name, **other):
    given = dict(
        name=name, description="d", task="classification", load=load,
        license="CC0-1.0", source="made up", grouping="every row is a group",
    )
    return DatasetSpec(**(given | other))

def recipe(name, **other):
    given = dict(
        name=name, description="d", dataset=name, task="classification",
        gate=Gate(metric="accuracy"),
    )
    return RecipeSpec(**(given | other))

def soft_margin(context):
    from torch.nn.functional import cross_entropy
    return cross_entropy
"""

GOOD = """
@hookimpl
def trunkline_datasets():
    yield dataset("DOMAIN/letters")

@hookimpl
def trunkline_recipes():
    yield recipe(
        "DOMAIN/letters", task="DOMAIN/ordinal", loss="DOMAIN/soft_margin",
        metrics=("DOMAIN/hits",), transforms=("DOMAIN/same",),
    )

@hookimpl
def trunkline_losses():
    yield LossSpec(
        name="DOMAIN/soft_margin", description="d", task="classification",
        build=soft_margin,
    )

@hookimpl
def trunkline_metrics():
    yield MetricSpec(
        name="DOMAIN/hits", description="d", task="classification", compute=lambda scored: 1.0
    )

@hookimpl
def trunkline_transforms():
    yield TransformSpec(
        name="DOMAIN/same", description="d", stage="clean", apply=lambda row, rng: [row]
    )

@hookimpl
def trunkline_baselines():
    yield BaselineSpec(
        name="DOMAIN/constant", description="d", tasks=("classification",),
        predict=lambda context: BaselinePredictions(values=["a"] * len(context.test)),
    )

@hookimpl
def trunkline_tasks():
    yield TaskSpec(
        name="DOMAIN/ordinal", description="d", kind="classification", loss="cross_entropy",
        baselines=("DOMAIN/constant",),
    )
"""


def _metadata(distribution: str, requires: str | None = None, version: str = "1.0") -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {distribution}", f"Version: {version}"]
    return "\n".join([*lines, *([f"Requires-Dist: {requires}"] if requires else []), ""])


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder on ``sys.path`` whose modules are unloaded after the test."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name, module in list(sys.modules.items()):
        if str(folder) in (getattr(module, "__file__", None) or ""):
            del sys.modules[name]


@pytest.fixture
def add_plugin(site: Path) -> Callable[..., Path]:
    """Give a function that installs a fake: ``add(domain, body=GOOD, *, head=HEAD)``.

    It returns a file that comes into being when the module is imported. ``DOMAIN`` in the body
    stands for the domain; the distribution is called ``fake-<domain>`` unless given.
    """

    def add(
        domain: str,
        body: str = GOOD,
        *,
        head: str = HEAD,
        distribution: str | None = None,
        version: str = "1.0",
    ) -> Path:
        distribution = distribution or f"fake-{domain}"
        module = f"module_of_{re.sub('[^a-z0-9]', '_', distribution.lower())}"
        marker = site / f"{module}.imported"
        source = head + body.replace("DOMAIN", domain)
        (site / f"{module}.py").write_text(f"open({str(marker)!r}, 'w').close()\n{source}")
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(_metadata(distribution, version=version))
        (info / "entry_points.txt").write_text(f"[trunkline]\n{domain} = {module}\n")
        return marker

    return add


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[..., Path]:
    """Give a function that builds a wheel ``<distribution>-1.0``; without a domain no plugin."""

    def make(
        distribution: str,
        domain: str | None = None,
        body: str = GOOD,
        *,
        requires: str | None = None,
    ) -> Path:
        name = distribution.replace("-", "_")
        info = f"{name}-1.0.dist-info"
        members = {
            f"{name}.py": HEAD + body.replace("DOMAIN", domain or ""),
            f"{info}/METADATA": _metadata(distribution, requires),
            f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        if domain:
            members[f"{info}/entry_points.txt"] = f"[trunkline]\n{domain} = {name}\n"
        members[f"{info}/RECORD"] = "".join(f"{member},,\n" for member in members)
        path = tmp_path / f"{name}-1.0-py3-none-any.whl"
        with ZipFile(path, "w") as wheel:
            for member, text in members.items():
                wheel.writestr(member, text)
        return path

    return make
