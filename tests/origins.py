"""A sample provenance for an artifact."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trunkline.adapters.artifact import read_artifact
from trunkline.adapters.provenance import (
    BaseSection,
    DatasetSection,
    EvaluationSection,
    PluginSection,
    Provenance,
    RunSection,
    VersionSection,
)

STARTED = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
FINISHED = datetime(2026, 3, 29, 1, 40, tzinfo=UTC)

RESULTS: dict[str, Any] = {
    "metric": "accuracy",
    "higher_is_better": True,
    "rows": 18,
    "groups": 6,
    "scores": {"accuracy": {"value": 0.5, "low": 0.25, "high": 0.75}},
    "baselines": {"majority": {"accuracy": {"value": 0.33, "low": 0.1, "high": 0.5}}},
    "baseline_details": {"majority": "always 'bird'"},
    "best_baseline": "majority",
    "difference": {"value": 0.17, "low": -0.1, "high": 0.4},
    "verdict": "ties",
    "slices": [
        {"slice": "age", "value": "old", "rows": 6, "score": 0.75},
        {"slice": "age", "value": "young", "rows": 6, "score": 0.25},
    ],
    "gate": {"metric": "accuracy", "beats_baseline": True, "at_least": None},
}

REPORT: dict[str, Any] = {
    "data": {"kept": 63, "near_duplicates": 2, "label_conflicts": 0},
    "steps": 7,
    "best_step": 4,
    "tokens_trained": 900,
    "truncated": 3,
    "lengths": {
        "limit": 96, "rows": 60, "truncated": 3, "median": 20, "p95": 90, "longest": 120,
    },
    "train_seconds": 12.5,
    "compute": {
        "flops": 5.4e9,
        "how": "6 x parameters x tokens",
        "energy": {"joules": None, "how": "no counter"},
    },
}  # fmt: skip

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def provenance(folder: Path, *, run: int = 7, recipe: str = "toy/animals") -> Provenance:
    """A sample for an artifact made by :func:`workbench.make_artifact`."""
    manifest = read_artifact(folder).manifest
    return Provenance(
        version=VersionSection(adapter=recipe, task=manifest.task["kind"], created=FINISHED),
        base=BaseSection(
            digest=manifest.base["digest"],
            name=manifest.base["name"],
            source="made in memory",
            architecture="LlamaForCausalLM",
            parameters=100_000,
            dtype="float32",
        ),
        dataset=DatasetSection(
            name=manifest.data["dataset"],
            fingerprint=manifest.data["fingerprint"],
            split_fingerprint=manifest.data["split"],
            rows=63,
            license="CC0-1.0",
            source="made up",
            counts={"parts": {"train": 39}, "dropped": {"empty text": 1}, "near_duplicates": 2},
            description="animals and their class",
            grouping="an animal",
        ),
        run=RunSection(
            number=run,
            recipe=recipe,
            status="finished",
            seed=2,
            settings={"max_length": 96, "seed": 2},
            environment={"device": "cpu", "device_name": "x", "packages": {"torch": "2.13.0"}},
            specification={
                "description": "class of an animal",
                "transforms": [{"name": "toy/lower", "stage": "clean", "code": "c0de"}],
                "plugin": {"commit": COMMIT, "changed": True},
            },
            report=REPORT,
            started=STARTED,
            finished=FINISHED,
            plugin=PluginSection(distribution="trunkline-toy", version="1.0", api=1, domain="toy"),
            actor="system:ada",
        ),
        evaluations=(EvaluationSection(split="test", results=RESULTS, created=FINISHED),),
    )
