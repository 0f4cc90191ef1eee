"""The alerts fire where they should, as Prometheus' own tool evaluates them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "helm" / "trunkline" / "files" / "alerts.yaml"
PROMTOOL = shutil.which("promtool", path=f"{ROOT / '.kubernetes'}{os.pathsep}{os.environ['PATH']}")

CASES: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
    (
        "TrunklineErrorRate",
        {
            'trunkline_http_responses_total{route="/v1/classify",status="200"}': "0+90x20",
            'trunkline_http_responses_total{route="/v1/classify",status="503"}': "0+10x20",
        },
        {
            'trunkline_http_responses_total{route="/v1/classify",status="200"}': "0+90x20",
            'trunkline_http_responses_total{route="/v1/classify",status="503"}': "0+1x20",
            'trunkline_http_responses_total{route="/ready",status="503"}': "0+100x20",
        },
    ),
    (
        "TrunklineQueueTime",
        {
            'trunkline_queue_time_seconds_bucket{le="5"}': "0+50x20",
            'trunkline_queue_time_seconds_bucket{le="10"}': "0+100x20",
            'trunkline_queue_time_seconds_bucket{le="+Inf"}': "0+100x20",
        },
        {
            'trunkline_queue_time_seconds_bucket{le="5"}': "0+100x20",
            'trunkline_queue_time_seconds_bucket{le="+Inf"}': "0+100x20",
        },
    ),
    (
        "TrunklineKvCacheFull",
        {"trunkline_kv_cache_used_tokens": "99x20", "trunkline_kv_cache_capacity_tokens": "100x20"},
        {"trunkline_kv_cache_used_tokens": "50x20", "trunkline_kv_cache_capacity_tokens": "100x20"},
    ),
    ("TrunklineNoReadyReplica", {"trunkline_ready": "0x20"}, {"trunkline_ready": "1x20"}),
    ("TrunklineNoReadyReplica", {"up": "0x20"}, {"trunkline_ready": "1x20"}),
    (
        "TrunklineRegistryBehind",
        {"trunkline_registry_heartbeat_timestamp_seconds": "0x20"},
        {"trunkline_registry_heartbeat_timestamp_seconds": "0+60x20"},
    ),
    (
        "TrunklineRegistryBehind",
        {"trunkline_registry_schema_usable": "0x20"},
        {"trunkline_registry_schema_usable": "1x20"},
    ),
    (
        "TrunklineAuditChainBroken",
        {
            'trunkline_audit_chain_intact{chain="events",instance="a"}': "1x20",
            'trunkline_audit_chain_intact{chain="events",instance="b"}': "0x20",
        },
        {'trunkline_audit_chain_intact{chain="events"}': "1x20"},
    ),
    (
        "TrunklineRequestLogUnwritable",
        {'trunkline_request_log_lines_total{outcome="failed"}': "0+1x20"},
        {
            'trunkline_request_log_lines_total{outcome="failed"}': "0x20",
            'trunkline_request_log_lines_total{outcome="written"}': "0+1x20",
        },
    ),
    (
        "TrunklineDiskFull",
        {"trunkline_disk_free_bytes": "4e9x20", "trunkline_disk_size_bytes": "1e11x20"},
        {"trunkline_disk_free_bytes": "9e10x20", "trunkline_disk_size_bytes": "1e11x20"},
    ),
)
"""Alert, series for which it fires after 15 minutes, series for which it doesn't."""


def test_each_alert_has_a_case() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    names = [rule["alert"] for group in groups for rule in group["rules"]]
    assert list(dict.fromkeys(case[0] for case in CASES)) == names


@pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: make integration-kubernetes installs it"
)
@pytest.mark.parametrize("fires", [True, False], ids=["fires", "quiet"])
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_alert_fires_for_its_series_only(
    case: tuple[str, dict[str, str], dict[str, str]], fires: bool, tmp_path: Path
) -> None:
    assert PROMTOOL is not None
    name, firing, quiet = case
    series = [
        {"series": key, "values": value} for key, value in (firing if fires else quiet).items()
    ]
    program = f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)'
    expected = [{"labels": "{}", "value": 1 if fires else 0}]
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {"expr": program, "eval_time": "15m", "exp_samples": expected}
                ],
            }
        ],
    }
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [PROMTOOL, "test", "rules", str(file)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
