"""What routers, alerts and the dashboard read is in ``/metrics``."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from server_process import wait_until
from trunkline.api import Platform
from trunkline.reference import command_paths

ROOT = Path(__file__).parents[2]
FILES = ROOT / "deploy" / "helm" / "trunkline" / "files"
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FILES / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    """Name and expression of each alert and of each target of a panel."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in json.loads((FILES / "dashboard.json").read_text(encoding="utf-8"))["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


def samples(http: TestClient) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Name → labels and value of each sample."""
    values: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        for sample in family.samples:
            values.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return values


@pytest.fixture(scope="module")
def scraped(http: TestClient) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The metrics of a server that has answered requests and refused one."""
    body = {"model": "toy/plurals", "prompt": "two carp", "max_tokens": 3}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert http.post("/v1/classify", json={"model": "toy/none", "input": "x"}).status_code == 404
    wait_until(
        lambda: "trunkline_registry_heartbeat" in http.get("/metrics").text, "a heartbeat is there"
    )
    return samples(http)


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_metrics_of_alerts_and_panels_exist(
    scraped: dict[str, Any], title: str, expression: str
) -> None:
    names = set(re.findall(r"\b(?:trunkline_|vllm:)[a-z_]+", expression))
    assert names, title
    assert names <= scraped.keys(), title


def test_labels_of_alerts_and_panels_exist(scraped: dict[str, Any]) -> None:
    for title, expression in expressions():
        for name, matchers in re.findall(r"\b(trunkline_[a-z_]+)\{([^}]*)\}", expression):
            used = set(re.findall(r"(\w+)[=!]", matchers))
            assert all(used <= labels.keys() for labels, _ in scraped[name]), title


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_runbook_has_a_section_for_each_alert(rule: dict[str, Any]) -> None:
    assert f"## {rule['alert']}\n" in RUNBOOK
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_runbook_has_no_section_of_another_alert() -> None:
    titles = re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE)
    assert titles == [rule["alert"] for rule in alerts()]


def test_commands_of_the_runbook_exist() -> None:
    known = {" ".join(path) for path in command_paths()}
    for line in re.findall(r"trunkline ([a-z]+(?: [a-z-]+)?)", RUNBOOK):
        first = line.split()[0]
        assert line in known or first in known, line


def test_server_is_ready(scraped: dict[str, Any]) -> None:
    assert scraped["trunkline_ready"] == [({}, 1.0)]


def test_lines_of_the_request_log_are_counted(scraped: dict[str, Any]) -> None:
    counted = {
        labels["outcome"]: value for labels, value in scraped["trunkline_request_log_lines_total"]
    }
    assert counted["written"] >= 2
    assert counted["failed"] == 0


def test_routers_find_the_queue_and_the_cache(scraped: dict[str, Any], platform: Platform) -> None:
    model = Path(platform.engine.base.info.name).name
    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        ((labels, value),) = scraped[f"vllm:{name}"]
        assert labels == {"model_name": model}
        assert 0 <= value <= 1


def test_routers_find_the_adapters(scraped: dict[str, Any], platform: Platform) -> None:
    ((labels, value),) = scraped["vllm:lora_requests_info"]
    assert {"toy/plurals", "toy/plurals@2"} <= set(labels["running_lora_adapters"].split(","))
    assert labels["waiting_lora_adapters"] == ""
    assert labels["max_lora"] == str(2 * platform.engine.pool.pages)
    assert 0 < value <= time.time()
