"""Administration of adapters in memory, and the metrics of a running engine."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from trunkline.api import Platform
from trunkline.serving.metrics import Metrics


def test_adapters_are_loaded_pinned_and_unloaded(http: TestClient, platform: Platform) -> None:
    ref = {"ref": "toy/plurals@1"}
    digest = platform.resolve("toy/plurals@1").digest
    assert http.post("/admin/load", json=ref).json()["digest"] == digest
    http.post("/admin/pin", json={**ref, "pinned": True})
    residents = {row["digest"]: row for row in http.get("/admin/residents").json()["data"]}
    assert (residents[digest]["name"], residents[digest]["pinned"]) == ("toy/plurals@1", True)
    http.post("/admin/pin", json={**ref, "pinned": False})
    assert http.post("/admin/unload", json=ref).status_code == 200
    assert digest not in {row["digest"] for row in http.get("/admin/residents").json()["data"]}
    assert http.post("/admin/unload", json=ref).status_code == 404


@pytest.mark.parametrize("path", ["/admin/unload", "/admin/pin"])
def test_error_for_an_adapter_not_in_memory_names_its_ref(http: TestClient, path: str) -> None:
    http.post("/admin/load", json={"ref": "toy/prices"})
    http.post("/admin/unload", json={"ref": "toy/prices"})
    response = http.post(path, json={"ref": "toy/prices"})
    assert response.status_code == 404
    message = response.json()["error"]["message"]
    assert message == "toy/prices@1 is not in memory. Load it with POST /admin/load."


def test_state_counts_requests_in_flight(http: TestClient) -> None:
    response = http.get("/admin/state").json()
    assert (response["in_flight"], response["running"], response["draining"]) == (1, 0, False)


def test_routes_are_described(http: TestClient) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    assert {"/v1/chat/completions", "/v1/classify", "/admin/load"} <= set(paths)


def test_base_can_be_neither_loaded_nor_promoted(http: TestClient) -> None:
    for path in ("/admin/load", "/admin/unload", "/admin/pin", "/admin/promote"):
        assert http.post(path, json={"ref": "base"}).status_code == 404


# --------------------------------------------------------------------------------------- metrics


def test_metrics_name_the_versions_that_answered(http: TestClient) -> None:
    http.post("/v1/classify", json={"model": "toy/animals", "input": "a cow"})
    text = http.get("/metrics").text
    for line in (
        'trunkline_requests_total{outcome="done",version="toy/animals@1"}',
        'trunkline_adapter_pool_loads_total{version="toy/animals@1"}',
        'trunkline_adapter_pool_resident_bytes{tier="device",version="toy/animals@1"}',
        'trunkline_http_responses_total{route="/v1/classify",status="200"}',
        'trunkline_batch_running{modality="text"} 0.0',
    ):
        assert line in text


def test_loads_and_evictions_beyond_the_limit_count_as_other(
    platform: Platform,
) -> None:
    limited = Metrics(max_versions=0)
    limited.watch(platform.engine)
    pool = platform.engine.pool
    artifact = platform.resolve("toy/animals").artifact()
    assert artifact is not None
    pool.load(artifact, "toy/animals@1")
    counters = [counter for _, counter in pool.all_counters()]
    lines = limited.render(0).decode().splitlines()
    for name in ("loads", "evictions"):
        total = float(sum(getattr(counter, name) for counter in counters))
        assert f'trunkline_adapter_pool_{name}_total{{version="other"}} {total}' in lines
    assert sum(counter.loads for counter in counters) > 0


def test_unknown_names_do_not_appear_in_the_metrics(http: TestClient) -> None:
    def series() -> set[str]:
        lines = http.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def request_unknown(number: int) -> None:
        body = {"model": f"toy/unknown-{number}", "input": "x"}
        assert http.post("/v1/classify", json=body).status_code == 404
        assert http.get(f"/unknown/{number}").status_code == 404

    request_unknown(0)
    before = series()
    for number in range(1, 30):
        request_unknown(number)
    assert series() == before
    assert not [line for line in before if "unknown" in line]
