"""A workspace with adapters of a tiny base, and a server in this process."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from vllm_stand_in import StandIn, serving

from trunkline.api import Platform, open
from trunkline.contracts import Template
from trunkline.refs import Ref
from trunkline.threads import limit_spinning
from trunkline_vllm import resolver
from trunkline_vllm.probes import record_probes
from workbench import make_artifact, opened, tiny, trained_platform, trained_workspace

__all__ = ["tiny", "trained_platform", "trained_workspace"]

limit_spinning()

CHAT = Template(prompt="Say {text}!", chat=True, system="Be brief.")
ADAPTERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("plurals", "generation", {"template": CHAT}),
    ("plurals", "generation", {"template": CHAT}),
    ("plain", "generation", {"template": Template(prompt="Plural of {text}:"), "max_length": 40}),
    ("animals", "classification", {}),
    ("magnitudes", "generation", {"use_dora": True}),
    ("wide", "generation", {"r": 16}),
    ("unproved", "generation", {}),
)
PROVED = ("toy/plurals@1", "toy/plurals@2", "toy/plain@1")


@pytest.fixture(autouse=True)
def environment(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give each test a workspace and caches of its own."""
    monkeypatch.setattr("trunkline.redaction._remembered", {})
    monkeypatch.setattr(resolver, "_shared", None)
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(tmp_path / "site"))
    monkeypatch.setenv("TRUNKLINE_VLLM_CACHE", str(tmp_path / "vllm"))
    if request.node.get_closest_marker("vllm") is None:
        monkeypatch.setenv("TRUNKLINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def site_template(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A workspace to copy: :data:`ADAPTERS` are published, :data:`PROVED` have probes, and
    version 1 of ``toy/plurals`` is the champion."""
    from trunkline.bases import describe

    folder = tmp_path_factory.mktemp("vllm") / "site"
    folder.mkdir()
    for platform in opened(folder, tiny):
        digest = describe(str(tiny)).digest
        platform.registry.sources.record_base(
            digest=digest, name="tiny", source="made", architecture="LlamaForCausalLM",
            parameters=1, dtype="float32",
        )  # fmt: skip
        for seed, (name, kind, options) in enumerate(ADAPTERS):
            source = folder.parent / str(seed)
            make_artifact(source, tiny, kind, seed=seed, **options)
            ref = Ref("toy", name)
            platform.store.publish(source, ref, task=kind, run=None, base_digest=digest)
        for version in PROVED:
            record_probes(platform, version)
        platform.registry.aliases.set(Ref("toy", "plurals", "1"), "champion")
        platform.engine.close()
    return folder


@pytest.fixture
def platform(tmp_path: Path, site_template: Path, tiny: Path) -> Iterator[Platform]:
    """A copy of the workspace."""
    folder = Path(shutil.copytree(site_template, tmp_path / "site"))
    platform = open(folder, base=str(tiny), no_plugins=True)
    yield platform
    platform.registry.close()


@pytest.fixture
def stand_in(platform: Platform, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    yield StandIn(platform, tiny)
    platform.engine.close()


@pytest.fixture
def client(stand_in: StandIn) -> Iterator[TestClient]:
    """A client on this machine."""
    with serving(stand_in) as client:
        yield client


@pytest.fixture
def complete(client: TestClient) -> Callable[..., Any]:
    """Sends a prompt to a model; returns the response."""

    def send(model: str, key: str | None = None, **fields: Any) -> Any:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        body = {"model": model, "prompt": "cat", **fields}
        return client.post("/v1/completions", json=body, headers=headers)

    return send
