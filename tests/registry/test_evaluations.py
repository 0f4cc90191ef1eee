"""Evaluations and their predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from trunkline.errors import NotFoundError, RegistryError
from trunkline.refs import Ref
from trunkline.registry.records import PredictionRecord, VersionRecord
from trunkline.registry.registry import Registry

Publish = Callable[..., VersionRecord]


@pytest.fixture
def evaluate(registry: Registry, dataset: int) -> Callable[..., int]:
    def evaluate(**more: Any) -> int:
        return registry.evaluations.record(
            recipe="medical/icd10",
            base_digest=registry.sources.list_bases()[0].digest,
            dataset_id=dataset,
            split="test",
            results={"accuracy": {"value": 0.8, "low": 0.7, "high": 0.9}},
            **more,
        )

    return evaluate


@pytest.mark.dialect
def test_an_evaluation_is_listed_under_its_version(
    registry: Registry, publish: Publish, evaluate: Callable[..., int]
) -> None:
    version = publish()
    number = evaluate(version=version.ref)
    (evaluation,) = registry.evaluations.list(version=version.ref)
    assert (
        evaluation.id,
        evaluation.version,
        evaluation.split_fingerprint,
        evaluation.results["accuracy"]["low"],
    ) == (
        number,
        "medical/icd10@1",
        "split-1",
        0.7,
    )


def test_evaluations_of_other_versions_are_left_out(
    registry: Registry, publish: Publish, evaluate: Callable[..., int]
) -> None:
    publish()
    publish()
    evaluate(version=Ref.parse("medical/icd10@1"))
    assert registry.evaluations.list(version=Ref.parse("medical/icd10@2")) == []


@pytest.mark.dialect
def test_an_evaluation_of_a_run_becomes_its_version_s(
    registry: Registry, start: Callable[..., int], evaluate: Callable[..., int]
) -> None:
    run = start()
    evaluate(run=run)
    number = registry.versions.reserve("medical", "icd10", task="classification", run=run)
    registry.versions.publish(
        "medical", "icd10", number, digest="sha256:" + "a" * 64, path="medical/icd10/1", bytes=1
    )
    (evaluation,) = registry.evaluations.list(run=run)
    assert evaluation.version == "medical/icd10@1"


def test_the_bare_base_is_evaluated_without_a_version(
    registry: Registry, evaluate: Callable[..., int]
) -> None:
    evaluate()
    (evaluation,) = registry.evaluations.list(recipe="medical/icd10")
    assert (evaluation.version, evaluation.run) == (None, None)


def test_evaluations_are_listed_newest_first_and_paged(
    registry: Registry, evaluate: Callable[..., int]
) -> None:
    numbers = [evaluate() for _ in range(4)]
    page = registry.evaluations.list(recipe="medical/icd10", limit=2, offset=1)
    assert [row.id for row in page] == [numbers[2], numbers[1]]


def test_predictions_come_back_by_row_id(registry: Registry, evaluate: Callable[..., int]) -> None:
    given = [
        PredictionRecord(row_id="b", group="g", target="x", prediction="y"),
        PredictionRecord(
            row_id="a",
            group="g",
            target="x",
            prediction="x",
            confidence=0.75,
            baseline_prediction="y",
        ),
    ]
    number = evaluate(predictions=given)
    assert registry.evaluations.predictions(number) == [given[1], given[0]]
    assert registry.evaluations.predictions(number, limit=1, offset=1) == [given[0]]


def test_an_evaluation_and_its_predictions_are_stored_atomically(
    registry: Registry, evaluate: Callable[..., int]
) -> None:
    twice = PredictionRecord(row_id="a", group="g", target="x", prediction="y")
    with pytest.raises(RegistryError):
        evaluate(predictions=[twice, twice])
    assert registry.evaluations.list() == []


def test_an_evaluation_of_an_unknown_version_is_refused(
    registry: Registry, publish: Publish, evaluate: Callable[..., int]
) -> None:
    publish()
    with pytest.raises(NotFoundError):
        evaluate(version=Ref.parse("medical/icd10@9"))


def test_predictions_of_an_unknown_evaluation_are_refused(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="no evaluation 9"):
        registry.evaluations.predictions(9)


@pytest.mark.dialect
def test_an_unstorable_prediction_is_stored_with_a_replacement(
    registry: Registry, evaluate: Callable[..., int]
) -> None:
    answer = PredictionRecord(row_id="1", group="g", target="a", prediction="x\0\ud800")
    evaluation = evaluate(predictions=[answer])
    assert registry.evaluations.predictions(evaluation)[0].prediction == "x\ufffd\ufffd"


def results(two_persons: bool) -> dict[str, Any]:
    return {"metric": "accuracy", "gate": {"two_persons": two_persons}}


@pytest.mark.dialect
def test_newest_versions_without_the_champion_are_listed_with_their_evaluation(
    registry: Registry, publish: Publish, dataset: int
) -> None:
    def tested(version: VersionRecord, two_persons: bool, split: str = "test") -> int:
        return registry.evaluations.record(
            recipe="medical/icd10", base_digest=registry.sources.list_bases()[0].digest,
            dataset_id=dataset, split=split, results=results(two_persons), version=version.ref,
        )  # fmt: skip

    def rows(**options: Any) -> list[tuple[str, int]]:
        listed = registry.evaluations.unpromoted(**options)
        return [(str(version.ref), evaluation.id) for version, evaluation in listed]

    tested(publish(), True)
    second = publish()
    assert rows() == []
    tested(second, False)
    newest = tested(second, True)
    tested(second, False, split="validation")
    assert rows() == rows(two_persons=True) == [("medical/icd10@2", newest)]
    assert rows(scope=["finance/*"]) == []
    newest = tested(second, False)
    assert rows() == [("medical/icd10@2", newest)]
    assert rows(two_persons=True) == []
    registry.aliases.move(second.ref, "champion")
    assert rows() == []
