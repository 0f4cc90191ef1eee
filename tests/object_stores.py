"""Object stores for tests: fsspec's memory, and S3 over HTTP by a server in this process."""

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
    """A store's URL and its options for fsspec."""

    url: str
    options: dict[str, str]

    def configure(self, workspace: Path) -> None:
        """Configure a workspace to store its versions there."""
        lines = ["[store]", f"url = {json.dumps(self.url)}", "[store.options]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in self.options.items()]
        (workspace / "trunkline.toml").write_text("\n".join(lines) + "\n")

    def open(self) -> tuple[Any, str]:
        """fsspec's file system and root, independent of the code under test."""
        from fsspec.core import url_to_fs

        return url_to_fs(
            self.url, **self.options, use_listings_cache=False, skip_instance_cache=True
        )


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A local S3 server."""
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
