"""Stores that are not a folder: fsspec's memory, and S3 over HTTP by a server in this process.

Owns: the server, fresh buckets, and the ``trunkline.toml`` that leads to them. Must not know: what
is tested on them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CREDENTIALS = {"key": "testing", "secret": "testing"}


@dataclass(frozen=True)
class Place:
    """A store's url, and the options that fsspec needs for it."""

    url: str
    options: dict[str, str]

    def configure(self, workspace: Path) -> None:
        """Let a workspace keep its versions there."""
        lines = ["[store]", f"url = {json.dumps(self.url)}", "[store.options]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.options.items()]
        (workspace / "trunkline.toml").write_text("\n".join(lines) + "\n")

    def open(self) -> tuple[Any, str]:
        """fsspec's own view of it, past everything that is tested."""
        from fsspec.core import url_to_fs

        return url_to_fs(
            self.url, **self.options, use_listings_cache=False, skip_instance_cache=True
        )


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server that answers over HTTP on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def memory_place() -> Place:
    """A fresh folder in this process's memory."""
    return Place(f"memory://{uuid.uuid4().hex}/store", {})


def s3_place(endpoint: str) -> Place:
    """A folder in a fresh bucket."""
    bucket = f"b{uuid.uuid4().hex}"
    place = Place(f"s3://{bucket}/store", {**CREDENTIALS, "endpoint_url": endpoint})
    place.open()[0].mkdir(bucket)
    return place
