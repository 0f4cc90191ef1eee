"""Each value of the Helm chart does what its description says, and every manifest is valid."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.documented import described_values, table

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "trunkline"
TOOLS = ROOT / ".kubernetes"
"""Where ``make integration-kubernetes`` installs what the tests need."""

HELM = shutil.which("helm", path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
needs_helm = pytest.mark.skipif(
    HELM is None, reason="Helm is not installed: make integration-kubernetes installs it"
)

CUSTOM = (
    "gateway.networking.k8s.io",
    "inference.networking.k8s.io",
    "monitoring.coreos.com",
)
"""API groups of custom resources; their schemas are not part of Kubernetes."""

LEAST = {"registry": {"existingSecret": "database"}, "store": {"url": "s3://models/t"}}
"""The values without which the chart is refused."""

POD = "Deployment spec.template.spec"
SERVER = f"{POD}.containers.0"
META = "Deployment spec.template.metadata"
ENDPOINT = "ServiceMonitor spec.endpoints.0"
HPA = "HorizontalPodAutoscaler spec"
POOLED = "InferencePool spec"
ROUTE = "HTTPRoute spec"
PICKED = {"inferencePool": {"endpointPicker": "p"}}
ROUTED = {"httpRoute": {"parentRefs": [{"name": "g"}]}}
GATEWAY = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}]}}
POOL = {"inferencePool": {"enabled": True, "endpointPicker": "picker"}}
MONITOR = {"metrics": {"serviceMonitor": {"enabled": True}, "alerts": {"enabled": True}}}
SCALED = {"autoscaling": {"enabled": True}}
PEER = [{"namespaceSelector": {"matchLabels": {"name": "gateways"}}}]
RULE = [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]
TOLERATION = [{"key": "gpu", "operator": "Exists"}]
EXTRA = [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]
MEMORY = {"limits": {"cpu": "2", "memory": "4Gi"}}
AFFINITY = {"nodeAffinity": {"x": 1}}

CASES: tuple[tuple[str, Any, str, Any, Mapping[str, Any]], ...] = (
    ("image.repository", "r.example.org/t", f"{SERVER}.image", "r.example.org/t:0.1.0", {}),
    ("image.tag", "7", f"{SERVER}.image", "trunkline:7", {}),
    ("image.digest", "sha256:ab", f"{SERVER}.image", "trunkline@sha256:ab", {}),
    ("image.pullPolicy", "Always", f"{SERVER}.imagePullPolicy", "Always", {}),
    ("image.pullSecrets", [{"name": "s"}], f"{POD}.imagePullSecrets.0.name", "s", {}),
    ("replicas", 5, "Deployment spec.replicas", 5, {}),
    ("base.name", "hf:a/b", f"{SERVER}.env.TRUNKLINE_BASE.value", "hf:a/b", {}),
    ("base.dtype", "int8", f"{SERVER}.env.TRUNKLINE_DTYPE.value", "int8", {}),
    ("base.device", "cuda", f"{SERVER}.env.TRUNKLINE_DEVICE.value", "cuda", {}),
    ("base.pull", False, f"{POD}.initContainers", None, {}),
    (
        "registry.existingSecret", "other",
        f"{SERVER}.env.TRUNKLINE_REGISTRY.valueFrom.secretKeyRef.name", "other", {},
    ),
    (
        "registry.key", "dsn",
        f"{SERVER}.env.TRUNKLINE_REGISTRY.valueFrom.secretKeyRef.key", "dsn", {},
    ),
    ("store.url", "gs://a/b", f"{SERVER}.env.TRUNKLINE_STORE.value", "gs://a/b", {}),
    ("store.existingSecret", "s3", f"{SERVER}.envFrom.0.secretRef.name", "s3", {}),
    ("store.endpoint", "http://m:9", f"{SERVER}.env.AWS_ENDPOINT_URL_S3.value", "http://m:9", {}),
    ("serve", {"kv_mib": 2097152}, f"{SERVER}.env.TRUNKLINE_SERVE_KV_MIB.value", "2097152", {}),
    (
        "limits", {"max_body_bytes": 1048576}, f"{SERVER}.env.TRUNKLINE_SERVE_LIMITS.value",
        "drain_seconds=30 max_body_bytes=1048576", {},
    ),
    ("preload", ["a/b", "c/d@2"], f"{SERVER}.env.TRUNKLINE_SERVE_PRELOAD.value", "a/b c/d@2", {}),
    ("extraEnv", EXTRA, f"{SERVER}.env.HTTPS_PROXY.value", "http://proxy:3128", {}),
    ("resources", MEMORY, f"{SERVER}.resources.limits.memory", "4Gi", {}),
    ("cache.size", "3Gi", f"{POD}.volumes.cache.emptyDir.sizeLimit", "3Gi", {}),
    (
        "cache.existingClaim", "bases",
        f"{POD}.volumes.cache.persistentVolumeClaim.claimName", "bases", {},
    ),
    ("work.size", "9Gi", f"{POD}.volumes.work.emptyDir.sizeLimit", "9Gi", {}),
    ("drain.preStopSeconds", 9, f"{SERVER}.lifecycle.preStop.sleep.seconds", 9, {}),
    ("drain.seconds", 60, f"{POD}.terminationGracePeriodSeconds", 75, {}),
    ("startupSeconds", 601, f"{SERVER}.startupProbe.failureThreshold", 121, {}),
    ("service.type", "LoadBalancer", "Service spec.type", "LoadBalancer", {}),
    ("service.port", 80, "Service spec.ports.0.port", 80, {}),
    ("metrics.open", True, f"{SERVER}.env.TRUNKLINE_SERVE_OPEN_METRICS.value", "1", {}),
    ("metrics.serviceMonitor.enabled", True, f"{ENDPOINT}.path", "/metrics", {}),
    ("metrics.serviceMonitor.interval", "5s", f"{ENDPOINT}.interval", "5s", MONITOR),
    (
        "metrics.serviceMonitor.keySecret", "k",
        f"{ENDPOINT}.authorization.credentials.name", "k", MONITOR,
    ),
    (
        "metrics.serviceMonitor.labels", {"release": "p"},
        "ServiceMonitor metadata.labels.release", "p", MONITOR,
    ),
    ("metrics.alerts.enabled", True, "PrometheusRule spec.groups.0.name", "trunkline", {}),
    ("autoscaling.enabled", True, "Deployment spec.replicas", None, {}),
    ("autoscaling.minReplicas", 3, f"{HPA}.minReplicas", 3, SCALED),
    ("autoscaling.maxReplicas", 30, f"{HPA}.maxReplicas", 30, SCALED),
    ("autoscaling.metric", "m", f"{HPA}.metrics.0.pods.metric.name", "m", SCALED),
    (
        "autoscaling.queueSeconds", 2,
        f"{HPA}.metrics.0.pods.target.averageValue", "2", SCALED,
    ),
    ("disruptionBudget.enabled", False, "PodDisruptionBudget kind", None, {}),
    ("disruptionBudget.maxUnavailable", 2, "PodDisruptionBudget spec.maxUnavailable", 2, {}),
    ("networkPolicy.enabled", False, "NetworkPolicy kind", None, {}),
    ("networkPolicy.from", PEER, "NetworkPolicy spec.ingress.0.from", PEER, {}),
    ("networkPolicy.egress", RULE, "NetworkPolicy spec.egress.1", RULE[0], {}),
    ("migration.enabled", False, "Job kind", None, {}),
    ("inferencePool.enabled", True, f"{POOLED}.targetPorts.0.number", 8000, PICKED),
    ("inferencePool.endpointPicker", "p", f"{POOLED}.endpointPickerRef.name", "p", POOL),
    ("inferencePool.endpointPickerPort", 9, f"{POOLED}.endpointPickerRef.port.number", 9, POOL),
    ("httpRoute.enabled", True, f"{ROUTE}.rules.0.backendRefs.0.port", 8000, ROUTED),
    ("httpRoute.parentRefs", [{"name": "other"}], f"{ROUTE}.parentRefs.0.name", "other", GATEWAY),
    ("httpRoute.hostnames", ["a.example.org"], f"{ROUTE}.hostnames.0", "a.example.org", GATEWAY),
    ("podLabels", {"team": "ml"}, f"{META}.labels.team", "ml", {}),
    ("podAnnotations", {"note": "x"}, f"{META}.annotations.note", "x", {}),
    ("serviceAccountName", "server", f"{POD}.serviceAccountName", "server", {}),
    ("nodeSelector", {"disk": "ssd"}, f"{POD}.nodeSelector.disk", "ssd", {}),
    ("tolerations", TOLERATION, f"{POD}.tolerations", TOLERATION, {}),
    ("affinity", AFFINITY, f"{POD}.affinity", AFFINITY, {}),
)  # fmt: skip
"""Value, what to set it to, kind and place in the manifests, what is there then, other values."""


def merged(*values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one; later ones win."""
    result: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def nested(path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def render(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The manifests of the chart with these values."""
    return json.loads(_render(json.dumps(values, sort_keys=True)))


@cache
def _render(values: str) -> str:
    assert HELM is not None
    done = subprocess.run(
        [HELM, "template", "trunkline", str(CHART), "--namespace", "models", "--values", "-"],
        input=values, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(done.stderr)
    return json.dumps([one for one in yaml.safe_load_all(done.stdout) if one])


def find(manifests: list[dict[str, Any]], place: str) -> Any:
    """What is at a place such as ``Service spec.ports.0.port``; None if there is nothing.

    Items of a list may be chosen by their names.
    """
    kind, _, path = place.partition(" ")
    value: Any = next((one for one in manifests if one["kind"] == kind), None)
    for key in path.split("."):
        if isinstance(value, list):
            named = {str(one.get("name")): one for one in value if isinstance(one, dict)}
            value = named.get(key) or (
                value[int(key)] if key.isdecimal() and int(key) < len(value) else None
            )
        elif isinstance(value, dict):
            value = value.get(key)
        else:
            return None
    return value


def test_each_value_has_a_description_and_a_case() -> None:
    described = [path for path, _ in described_values()]
    assert described == [case[0] for case in CASES]


def test_page_has_the_table_of_values() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert table() in page, "run `python tests/deploy/documented.py`"


@needs_helm
@pytest.mark.parametrize(
    ("path", "value", "place", "expected", "others"),
    CASES,
    ids=lambda one: one if isinstance(one, str) and "." in one and " " not in one else "",
)
def test_value_changes_what_it_describes(
    path: str, value: Any, place: str, expected: Any, others: Mapping[str, Any]
) -> None:
    before, after = merged(LEAST, others), merged(LEAST, others, nested(path, value))
    assert find(render(before), place) != expected
    assert find(render(after), place) == expected


@needs_helm
@pytest.mark.parametrize("missing", ["registry", "store"])
def test_chart_without_registry_or_store_is_refused(missing: str) -> None:
    values = {name: value for name, value in LEAST.items() if name != missing}
    with pytest.raises(ValueError, match=f"{missing}.*must"):
        render(values)


@needs_helm
def test_cache_of_the_image_is_read_where_there_is_no_volume() -> None:
    manifests = render(merged(LEAST, {"cache": {"size": ""}}))
    assert find(manifests, f"{POD}.volumes.cache") is None
    assert find(manifests, f"{SERVER}.volumeMounts.cache") is None


@needs_helm
def test_route_goes_to_the_pool_where_there_is_one() -> None:
    backend = find(render(merged(LEAST, GATEWAY, POOL)), f"{ROUTE}.rules.0.backendRefs.0")
    assert backend["kind"] == "InferencePool"


@needs_helm
def test_containers_are_confined() -> None:
    for manifest in render(LEAST):
        if manifest["kind"] not in ("Deployment", "Job"):
            continue
        pod = manifest["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["enableServiceLinks"] is False
        for container in (*pod["containers"], *pod.get("initContainers", ())):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@needs_helm
def test_alerts_of_the_rule_are_those_of_the_file() -> None:
    rule = find(render(merged(LEAST, MONITOR)), "PrometheusRule spec")
    assert rule == yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))


@needs_helm
@pytest.mark.parametrize(
    "others", [{}, merged(GATEWAY, POOL, MONITOR, SCALED)], ids=["least", "most"]
)
def test_manifests_match_the_schemas_of_kubernetes(others: Mapping[str, Any]) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="make integration-kubernetes installs kubernetes-validate"
    )
    for manifest in render(merged(LEAST, others)):
        if manifest["apiVersion"].partition("/")[0] not in CUSTOM:
            validator.validate(manifest, "1.34", strict=True)


@needs_helm
@pytest.mark.skipif(
    not (TOOLS / "node_modules").exists(), reason="make integration-kubernetes installs the models"
)
def test_custom_resources_match_the_models_of_their_operators() -> None:
    manifests = render(merged(LEAST, GATEWAY, MONITOR))
    custom = [one for one in manifests if one["apiVersion"].partition("/")[0] in CUSTOM]
    done = subprocess.run(
        ["node", str(Path(__file__).with_name("custom_resources.mjs")), str(TOOLS)],
        input=json.dumps(custom), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["HTTPRoute", "PrometheusRule", "ServiceMonitor"]
