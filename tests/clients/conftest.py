"""A server process with a base, a generation adapter and a classifier, for unmodified clients."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from client_environments import CLIENTS, client_environment, node_modules_of, python_of
from server_process import ServerProcess
from trunkline.api import open
from trunkline.bases import describe
from trunkline.contracts import Template
from trunkline.refs import Ref
from workbench import make_artifact, tiny

__all__ = ["tiny"]

_CLIENT_SECONDS = 300

RunClient = Callable[..., Any]
"""Runs a client's script with arguments; returns the JSON that it prints last."""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[ServerProcess]:
    """A server of the tiny base with ``toy/plurals`` and ``toy/animals``."""
    folder = tmp_path_factory.mktemp("served")
    workspace = folder / "workspace"
    workspace.mkdir()
    digest = describe(str(tiny)).digest
    platform = open(workspace, base=str(tiny), no_plugins=True)
    platform.registry.sources.record_base(
        digest=digest, name=tiny.name, source="made", architecture="L", parameters=1,
        dtype="float32",
    )  # fmt: skip
    for name, kind in (("plurals", "generation"), ("animals", "classification")):
        template = Template(prompt="{text}", chat=kind == "generation")
        make_artifact(folder / name, tiny, kind, seed=len(name), template=template)
        ref = Ref("toy", name)
        platform.store.publish(folder / name, ref, task=kind, run=None, base_digest=digest)
    platform.registry.close()
    with ServerProcess(workspace, tiny) as server:
        yield server


@pytest.fixture
def post(server: ServerProcess) -> Callable[..., Any]:
    """Posts a body without any client; returns the JSON of the response."""

    def post(path: str, **body: Any) -> Any:
        response = httpx2.post(server.url + path, json=body, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()

    return post


@pytest.fixture
def run_client(server: ServerProcess, tmp_path: Path) -> RunClient:
    """Runs ``NAME.py`` or ``NAME.mjs`` in the client's own environment."""

    def run(name: str, *arguments: str, **variables: str) -> Any:
        script = next(CLIENTS.glob(f"{name}.*"))
        if script.suffix == ".mjs":
            # Node looks for packages beside the script.
            copied = tmp_path / script.name
            copied.write_bytes(script.read_bytes())
            (tmp_path / "node_modules").symlink_to(node_modules_of(name) / "node_modules")
            command = ["node", str(copied)]
        else:
            command = [str(python_of(name)), str(script)]
        done = subprocess.run(
            [*command, f"{server.url}/v1", *arguments],
            capture_output=True,
            text=True,
            timeout=_CLIENT_SECONDS,
            cwd=tmp_path,
            env=client_environment(tmp_path, **variables),
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return json.loads(done.stdout.strip().splitlines()[-1])

    return run
