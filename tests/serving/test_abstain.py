"""``abstain`` in ``/v1/classify``: no label where a wanted precision is not reached."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from trunkline.adapters.artifact import MANIFEST, write_json
from trunkline.api import Platform
from trunkline.refs import Ref
from workbench import make_artifact

TEXTS = [f"text {number}" for number in range(8)]


@pytest.fixture(scope="module")
def calibrated(platform: Platform, tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> float:
    """Publish ``toy/sure``, which abstains from some of the texts; returns its threshold."""
    folder = tmp_path_factory.mktemp("sure") / "artifact"
    make_artifact(folder, tiny, seed=3)
    manifest = json.loads((folder / MANIFEST).read_text())
    base = manifest["base"]["digest"]
    first = platform.store.publish(
        folder, Ref("toy", "first"), task="classification", run=None, base_digest=base
    )
    answers = platform.predict(str(first.ref), TEXTS)
    confidences = sorted(answer.confidence or 0.0 for answer in answers)
    threshold = (confidences[3] + confidences[4]) / 2
    manifest["task"]["calibration"] = {"temperature": 1.5, "thresholds": {"90": threshold}}
    write_json(folder / MANIFEST, manifest)
    platform.store.publish(
        folder, Ref("toy", "sure"), task="classification", run=None, base_digest=base
    )
    return threshold


def test_uncertain_texts_get_no_label(http: TestClient, calibrated: float) -> None:
    body = {"model": "toy/sure", "input": TEXTS}
    plain = http.post("/v1/classify", json=body).json()["data"]
    strict = http.post("/v1/classify", json={**body, "abstain": 0.9}).json()["data"]
    assert sum(one.get("abstained", False) for one in strict) == 4
    for one, other in zip(plain, strict, strict=True):
        assert "abstained" not in one
        assert other["probabilities"] == pytest.approx(one["probabilities"])
        certain = max(one["probabilities"].values()) >= calibrated
        assert other["label"] == (one["label"] if certain else None)
        assert other.get("abstained", False) == (not certain)


@pytest.mark.parametrize(
    ("path", "model", "abstain", "part"),
    [
        ("/v1/classify", "toy/sure", 0.95, "no threshold for a precision of 0.95"),
        ("/v1/classify", "toy/animals", 0.9, "no thresholds to abstain by"),
        ("/v1/classify", "toy/sure", 0.4, "abstain"),
        ("/v1/classify", "toy/sure", 1.0, "abstain"),
        ("/v1/classify", "toy/sure", "0.9", "abstain"),
        ("/v1/regress", "toy/prices", 0.9, "only a classification abstains"),
    ],
)
def test_a_precision_that_cannot_be_given_is_refused(
    path: str, model: str, abstain: object, part: str, http: TestClient, calibrated: float
) -> None:
    response = http.post(path, json={"model": model, "input": "a", "abstain": abstain})
    error = response.json()["error"]
    assert response.status_code == 400
    assert part in error["message"]
    assert error["param"] == "abstain"
