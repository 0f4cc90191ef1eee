"""Registries with versions, a workspace with real artifacts, and a server process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from server_process import ServerProcess, app_client, openai_client, ready_client
from trunkline.api import Platform, open
from trunkline.contracts import Template
from trunkline.refs import Ref
from trunkline.registry.registry import Registry
from trunkline.serving.settings import ServerSettings
from workbench import make_artifact, opened, tiny

__all__ = ["tiny"]

BASE = "b" * 64
OTHER_BASE = "c" * 64

ADAPTERS = (
    ("animals", "classification"),
    ("animals", "classification"),
    ("prices", "regression"),
    ("plurals", "generation"),
    ("plurals", "generation"),
)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry.open(f"sqlite:///{tmp_path / 'registry.db'}", busy_seconds=0.2) as registry:
        yield registry


@pytest.fixture
def versions(registry: Registry) -> Registry:
    """``medical/icd`` with two versions, the first one the champion; ``retail/tax``; and an adapter
    of another base."""
    for digest, name in ((BASE, "tiny"), (OTHER_BASE, "other")):
        record_base(registry, digest, name)
    add_version(registry, "medical", "icd")
    add_version(registry, "medical", "icd")
    add_version(registry, "medical", "strange", base=OTHER_BASE)
    add_version(registry, "retail", "tax")
    registry.aliases.set(Ref("medical", "icd", "1"), "champion")
    return registry


def record_base(registry: Registry, digest: str, name: str) -> None:
    registry.sources.record_base(
        digest=digest, name=name, source="made", architecture="L", parameters=1, dtype="float32"
    )


def add_version(registry: Registry, domain: str, name: str, base: str = BASE) -> None:
    number = registry.versions.reserve(domain, name, task="classification")
    registry.versions.publish(
        domain, name, number, digest=f"sha256:{number:064x}", path=f"{domain}/{name}/{number}",
        bytes=1, base_digest=base,
    )  # fmt: skip


@pytest.fixture(scope="session")
def site_template(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A workspace to copy: ``toy/animals`` with versions 1 (champion) and 2, ``toy/prices`` with
    version 1, ``toy/plurals`` with versions 1 and 2."""
    folder = tmp_path_factory.mktemp("site") / "workspace"
    folder.mkdir()
    platform = open(folder, base=str(tiny), no_plugins=True)
    digest = ""
    for seed, (name, kind) in enumerate(ADAPTERS):
        source = folder.parent / str(seed)
        template = Template(prompt="{text}", chat=kind == "generation")
        make_artifact(source, tiny, kind, seed=seed, template=template, max_length=120)
        if not digest:
            from trunkline.bases import describe

            digest = describe(str(tiny)).digest
            record_base(platform.registry, digest, tiny.name)
        ref = Ref("toy", name)
        platform.store.publish(source, ref, task=kind, run=None, base_digest=digest)
    platform.registry.aliases.set(Ref("toy", "animals", "1"), "champion")
    platform.registry.close()
    return folder


@pytest.fixture
def site(tmp_path: Path, site_template: Path) -> Path:
    """A copy of the workspace for one test."""
    return Path(shutil.copytree(site_template, tmp_path / "site"))


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, site_template: Path, tiny: Path
) -> Iterator[Platform]:
    """A platform with the adapters of ``site_template``, for the tests of a module."""
    folder = tmp_path_factory.mktemp("platform") / "site"
    for platform in opened(Path(shutil.copytree(site_template, folder)), tiny):
        yield platform
        platform.engine.close()


@pytest.fixture(scope="module")
def http(platform: Platform) -> Iterator[TestClient]:
    """A client of a server with low limits on ``platform``."""
    limits = ServerSettings(max_inputs=8, max_prompt_chars=500, max_new_tokens=40)
    with ready_client(platform, limits) as client:
        yield client


@pytest.fixture
def client(http: TestClient) -> OpenAI:
    """OpenAI's client, unmodified, of the same server."""
    return openai_client(http)


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, site_template: Path, tiny: Path
) -> Iterator[ServerProcess]:
    """A server process for the tests of a module."""
    folder = tmp_path_factory.mktemp("running") / "site"
    with ServerProcess(
        Path(shutil.copytree(site_template, folder)), tiny, write_timeout=1.0, read_timeout=1.0
    ) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def validating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a server whose base can't be loaded: a request that is valid gets a 503."""
    folder = tmp_path_factory.mktemp("empty")
    platform = open(folder, base=str(folder), no_plugins=True)
    with app_client(platform, ServerSettings(log_requests=False)) as client:
        yield client
    platform.registry.close()
