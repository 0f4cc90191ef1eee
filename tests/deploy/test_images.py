"""Images and compose file: what is pinned, and what a container may do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "deploy" / "docker"
FILES = ("Dockerfile", "Dockerfile.cuda")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))


def lines(name: str) -> list[str]:
    """The instructions of a Dockerfile."""
    text = (DOCKER / name).read_text(encoding="utf-8").replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("name", FILES)
def test_base_image_is_pinned_by_a_digest_that_must_be_given(name: str) -> None:
    sources = [line for line in lines(name) if line.startswith("FROM ")]
    assert len(sources) == 2
    assert all("@${PYTHON_DIGEST}" in line for line in sources)
    assert "ARG PYTHON_DIGEST" in lines(name)


@pytest.mark.parametrize("name", FILES)
def test_final_stage_is_unprivileged_checked_and_has_no_compiler(name: str) -> None:
    text = lines(name)
    final = text[[index for index, line in enumerate(text) if line.startswith("FROM ")][1] :]
    assert "USER 10001:10001" in final
    assert any(line.startswith("HEALTHCHECK ") for line in final)
    assert not any(re.search(r"apt-get|gcc|build-essential", line) for line in final)


def test_images_differ_in_the_device_only() -> None:
    cpu, cuda = (set(re.split(r"\s{2,}", "  ".join(lines(name)))) for name in FILES)
    assert cpu - cuda == set()
    assert {line.partition("=")[0] for line in cuda - cpu} == {
        "NVIDIA_DRIVER_CAPABILITIES", "NVIDIA_VISIBLE_DEVICES", "TRUNKLINE_DEVICE",
    }  # fmt: skip


def test_each_package_is_locked_to_a_hash_and_to_the_tested_version() -> None:
    pins = {
        name.lower().replace("_", "-"): version
        for name, _, version in (
            line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
        )
    }
    locked = (DOCKER / "requirements.txt").read_text(encoding="utf-8").splitlines()
    for line in locked:
        match = re.fullmatch(r"([\w.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}", line)
        assert match is not None, line
        name = match[1].lower().replace("_", "-")
        assert pins.get(name, match[2]) == match[2], "run deploy/docker/lock.py"
        assert not name.startswith(("torch", "nvidia", "triton"))
    names = {line.partition("==")[0].lower().replace("_", "-") for line in locked}
    assert {"fastapi", "transformers", "peft", "psycopg", "s3fs", "pillow"} <= names


def test_foreign_images_are_pinned_by_digest() -> None:
    for name, service in COMPOSE["services"].items():
        image = service["image"]
        assert re.search(r"@\$\{\w+_DIGEST:\?\}$|^\$\{TRUNKLINE_IMAGE:\?", image), name


@pytest.mark.parametrize("name", ["base", "bucket", "migrate", "server"])
def test_containers_are_confined(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]


def test_each_required_variable_is_in_the_example() -> None:
    text = (ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    example = (ROOT / "deploy" / "env.example").read_text(encoding="utf-8")
    for name in set(re.findall(r"\$\{(\w+)", text)):
        assert re.search(rf"^{name}=", example, re.MULTILINE), name


def test_files_that_compose_mounts_exist() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("./") and source != "./prometheus-key":
                assert (ROOT / "deploy" / source).exists(), source
