"""The Python API with three toy adapters on one tiny base."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trunkline
from toy_plugin import install_toy
from trunkline import Request
from trunkline.api import Platform
from trunkline.errors import (
    BaseMismatchError,
    BaseModelError,
    DataError,
    IntegrityError,
    NotFoundError,
    RefusedError,
    UsageError,
)
from workbench import opened, tiny, trained_workspace, two_prices_workspace

__all__ = ["tiny", "trained_workspace", "two_prices_workspace"]


@pytest.fixture
def platform(
    trained_workspace: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """The platform on a copy of the trained workspace."""
    install_toy(tmp_path, monkeypatch)
    yield from opened(shutil.copytree(trained_workspace, tmp_path / "workspace"), tiny)


@pytest.fixture
def two_prices(
    two_prices_workspace: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Platform]:
    """The platform on a copy of the workspace with two versions of ``toy/prices``."""
    install_toy(tmp_path, monkeypatch)
    yield from opened(shutil.copytree(two_prices_workspace, tmp_path / "workspace"), tiny)


@pytest.fixture
def no_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a base is a failure of the test."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr("trunkline.bases.load", fail)


# -------------------------------------------------------------------------------------- opening


def test_workspace_is_the_current_folder_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRUNKLINE_WORKSPACE")
    monkeypatch.chdir(tmp_path)
    assert trunkline.open().workspace.root == tmp_path


def test_opening_writes_nothing(tmp_path: Path) -> None:
    trunkline.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_missing_workspace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        trunkline.open(tmp_path / "nowhere")


def test_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = trunkline.nothing  # type: ignore[attr-defined]


def test_importing_and_opening_import_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys, trunkline; p = trunkline.open(sys.argv[1]); p.catalog; p.registry; "
        "p.adapters(); trunkline.Request(None, 'x'); "
        "sys.exit(' '.join(m for m in ('torch', 'transformers', 'peft', 'sklearn', 'pandas') "
        "if m in sys.modules) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------ inference


def test_mixed_requests_come_back_in_order(platform: Platform) -> None:
    answers = platform.run(
        [
            Request("toy/plurals", "two goats"),
            Request(None, "hello", max_new_tokens=4),
            Request("toy/animals@1", "a hen"),
            Request("base", "hello", max_new_tokens=4),
            Request("toy/prices", "3 kg"),
            Request("toy/animals", "a carp"),
        ]
    )
    assert [answer.adapter for answer in answers] == [
        "toy/plurals@1", "base", "toy/animals@1", "base", "toy/prices@1", "toy/animals@1",
    ]  # fmt: skip
    assert answers[1].text == answers[3].text
    assert [answer.task for answer in answers[2::2]] == ["classification", "regression"]


def test_no_requests_load_no_base(platform: Platform, no_base: None) -> None:
    assert platform.run([]) == []


def test_predict_gives_labels_with_probabilities(platform: Platform) -> None:
    answers = platform.predict("toy/animals@1", ["a hen", "a carp"])
    assert len(answers) == 2
    assert all(set(answer.probabilities or {}) == {"bird", "fish", "mammal"} for answer in answers)


def test_generate_takes_pairs(platform: Platform) -> None:
    answers = platform.generate([("toy/plurals@1", "two goats"), (None, "hello")], max_new_tokens=3)
    assert [answer.adapter for answer in answers] == ["toy/plurals@1", "base"]
    assert all(answer.new_tokens <= 3 for answer in answers)


def test_sampled_text_depends_on_its_seed_alone(platform: Platform) -> None:
    choice: dict[str, Any] = {"temperature": 1.2, "seed": 3, "max_new_tokens": 8}
    alone = platform.generate([(None, "hello")], **choice)[0].text
    among = platform.generate([("toy/plurals", "two"), (None, "hi"), (None, "hello")], **choice)
    assert among[2].text == alone


def test_second_request_reads_no_file(
    platform: Platform, no_base: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    install_toy(platform.workspace.root.parent, monkeypatch)
    first = platform.predict("toy/animals", ["a hen"])

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("read again")

    monkeypatch.setattr("trunkline.bases.load", fail)
    monkeypatch.setattr("trunkline.adapters.storage.read_artifact", fail)
    monkeypatch.setattr("safetensors.torch.load", fail)
    assert platform.predict("toy/animals", ["a hen"]) == first


def test_champion_answers_where_no_version_is_selected(two_prices: Platform) -> None:
    platform = two_prices
    assert platform.predict("toy/prices", ["3 kg"])[0].adapter == "toy/prices@2"
    platform.promote("toy/prices@1")
    assert platform.predict("toy/prices", ["3 kg"])[0].adapter == "toy/prices@1"
    assert platform.predict("toy/prices@champion", ["3 kg"])[0].adapter == "toy/prices@1"
    assert platform.predict("toy/prices@2", ["3 kg"])[0].adapter == "toy/prices@2"


def test_version_is_selected_by_its_digest(platform: Platform) -> None:
    digest = platform.resolve("toy/prices").digest
    assert platform.predict(f"toy/prices@{digest}", ["3 kg"])[0].digest == digest


@pytest.mark.parametrize("ref", [None, "base"])
def test_bare_base_is_resolved_without_a_version(
    platform: Platform, no_base: None, ref: str | None
) -> None:
    model = platform.resolve(ref)
    assert (model.name, model.task, model.artifact()) == ("base", "generation", None)
    assert model.digest == model.base_digest == platform.base_digest
    with pytest.raises(UsageError, match="not an adapter"):
        _ = model.version


def test_model_is_resolved_to_an_immutable_version(platform: Platform, no_base: None) -> None:
    model = platform.resolve("toy/animals")
    assert (model.name, model.task, model.selected_by) == (
        "toy/animals@1", "classification", "newest",
    )  # fmt: skip
    artifact = model.artifact()
    assert artifact is not None
    assert artifact.digest == model.digest == model.version.digest
    assert model.artifact() is artifact


# ------------------------------------------------------------------------------------- refused

BAD_REFS = {
    "toy/animal": NotFoundError,
    "toy/animals@7": NotFoundError,
    "toy/animals@champion": NotFoundError,
    "toy/animals@sha256:" + "0" * 64: NotFoundError,
    "nobody/animals": NotFoundError,
    "toy": UsageError,
    "toy/../animals": UsageError,
    "../../etc/passwd": UsageError,
    "toy/animals/1": UsageError,
    "toy/animals@../1": UsageError,
    "toy/ani mals": UsageError,
    "toy/animals\x00": UsageError,
    "tоy/animals": UsageError,  # a Cyrillic letter
    "a/" + "b" * 300: UsageError,
    "": UsageError,
}


@pytest.mark.parametrize("ref", BAD_REFS)
@pytest.mark.parametrize("verb", ["run", "predict", "generate"])
def test_invalid_ref_is_reported_before_the_base_is_loaded(
    platform: Platform, no_base: None, ref: str, verb: str
) -> None:
    request = {
        "run": lambda: platform.run([Request("toy/animals", "hen"), Request(ref, "hen")]),
        "predict": lambda: platform.predict(ref, ["hen"]),
        "generate": lambda: platform.generate([("toy/plurals", "hen"), (ref, "hen")]),
    }[verb]
    with pytest.raises(BAD_REFS[ref]) as caught:
        request()
    assert caught.value.exit_code == 2
    assert caught.value.hint
    assert len(caught.value.message) < 250


def test_closest_adapter_is_suggested(platform: Platform, no_base: None) -> None:
    with pytest.raises(NotFoundError) as caught:
        platform.predict("toy/animal", ["hen"])
    assert "toy/animals" in (caught.value.hint or "")


def test_unknown_base_is_an_error(platform: Platform) -> None:
    other = trunkline.open(platform.workspace.root, base="smollm3")
    with pytest.raises(NotFoundError, match="smollm3"):
        other.predict("toy/animals", ["hen"])


def test_adapter_of_another_base_is_refused(platform: Platform, tmp_path: Path) -> None:
    from tiny_base import make_tiny_base
    from trunkline.bases import release

    release()
    other = trunkline.open(
        platform.workspace.root, base=str(make_tiny_base(tmp_path / "other", seed=5))
    )
    try:
        with pytest.raises(BaseMismatchError, match="trained on tiny") as caught:
            other.predict("toy/animals", ["hen"])
        assert "--base tiny" in (caught.value.hint or "")
    finally:
        release()


def test_second_base_in_one_process_is_refused(platform: Platform, tmp_path: Path) -> None:
    from tiny_base import make_tiny_base

    platform.predict("toy/animals", ["hen"])
    other = trunkline.open(
        platform.workspace.root, base=str(make_tiny_base(tmp_path / "other", seed=5))
    )
    with pytest.raises(BaseModelError, match="holds the base"):
        other.generate([(None, "hen")])


@pytest.mark.parametrize("text", ["", "  ", "\u200b\ufeff"])
def test_empty_text_is_an_error(platform: Platform, text: str) -> None:
    with pytest.raises(DataError, match="Text 2 of 2: The text is empty"):
        platform.predict("toy/animals", ["hen", text])


def test_too_long_text_is_cut_and_the_answer_reports_it(platform: Platform) -> None:
    long, short = platform.predict("toy/animals", ["hen " * 300, "hen"])
    assert (long.truncated, short.truncated) == (True, False)


def test_single_text_instead_of_a_list_is_an_error(platform: Platform, no_base: None) -> None:
    with pytest.raises(UsageError, match="list of texts"):
        platform.predict("toy/animals", "hen")


@pytest.mark.parametrize("prompts", ["hello", ["hello"], [("a", "b", "c")]])
def test_prompts_that_are_not_pairs_are_an_error(
    platform: Platform, no_base: None, prompts: Any
) -> None:
    with pytest.raises(UsageError, match="pairs"):
        platform.generate(prompts)


@pytest.mark.parametrize(
    ("verb", "adapter", "hint"),
    [
        ("predict", "toy/plurals", "trunkline generate toy/plurals"),
        ("generate", "toy/animals", "trunkline predict toy/animals"),
        ("predict", "base", "trunkline generate base"),
    ],
)
def test_wrong_method_for_the_task_names_the_right_one(
    platform: Platform, no_base: None, verb: str, adapter: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        platform.predict(adapter, ["x"]) if verb == "predict" else platform.generate(
            [(adapter, "x")]
        )
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize("damage", ["flip", "missing", "pickle"])
def test_damaged_version_is_refused(platform: Platform, no_base: None, damage: str) -> None:
    folder = platform.workspace.adapters / "toy/animals/1"
    weights = folder / "adapter_model.safetensors"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    else:
        (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(IntegrityError) as caught:
        platform.predict("toy/animals", ["hen"])
    assert caught.value.hint
    with pytest.raises(IntegrityError):
        platform.promote("toy/animals", force=True, reason="never mind")
    assert platform.resolve("toy/animals").version.aliases == ()


# ------------------------------------------------------------------------------------- training


def test_settings_are_given_by_name(platform: Platform) -> None:
    run = platform.train("toy/prices", max_steps=3)
    assert run.report["steps"] == 3
    assert run.version.number == 2


@pytest.mark.parametrize(
    ("recipe", "settings", "pattern"),
    [
        ("toy/animal", {}, "toy/animals"),
        ("toy/animals", {"max_step": 3}, "max_steps"),
        ("toy/animals", {"seed": -1}, "at least 0|between"),
    ],
)
def test_unknown_recipe_or_setting_is_reported_before_the_base_is_loaded(
    platform: Platform, no_base: None, recipe: str, settings: dict[str, Any], pattern: str
) -> None:
    with pytest.raises(UsageError) as caught:
        platform.train(recipe, **settings)
    import re

    assert re.search(pattern, f"{caught.value.message} {caught.value.hint}")


# ------------------------------------------------------------------------------------ promotion


def moves(platform: Platform, adapter: str) -> list[Any]:
    events = platform.registry.events.list(subject=adapter)
    return [event.detail for event in events if event.kind == "alias.moved"]


def test_gate_that_passes_moves_the_alias(platform: Platform) -> None:
    moved = platform.promote("toy/prices@1")
    assert (moved.alias, moved.old, moved.new, moved.forced) == ("champion", None, 1, False)
    assert all(check.passed for check in moved.checks)
    assert platform.resolve("toy/prices@champion").version.number == 1


def test_move_is_an_event_with_the_scores_of_the_gate(platform: Platform) -> None:
    platform.promote("toy/prices@1")
    (detail,) = moves(platform, "toy/prices")
    assert (detail["alias"], detail["old"], detail["new"]) == ("champion", None, 1)
    assert detail["forced"] is False
    assert detail["gate"][0]["passed"] is True
    assert "mae" in detail["gate"][0]["figures"]


def test_second_move_reports_old_and_new_version(two_prices: Platform) -> None:
    platform = two_prices
    platform.promote("toy/prices@1")
    moved = platform.promote("toy/prices")
    assert (moved.old, moved.new) == (1, 2)
    assert platform.resolve("toy/prices").version.number == 2


def test_promote_without_a_selector_takes_the_newest(two_prices: Platform) -> None:
    platform = two_prices
    platform.promote("toy/prices@1")
    assert platform.promote("toy/prices").version.number == 2


def test_gate_that_fails_changes_nothing(platform: Platform) -> None:
    with pytest.raises(RefusedError, match="refuses toy/animals@1") as caught:
        platform.promote("toy/animals")
    assert caught.value.exit_code == 1
    assert "--force" in (caught.value.hint or "")
    assert moves(platform, "toy/animals") == []
    with pytest.raises(NotFoundError):
        platform.resolve("toy/animals@champion")


def test_force_requires_a_reason(platform: Platform) -> None:
    with pytest.raises(UsageError, match="reason"):
        platform.promote("toy/animals", force=True, reason="  ")
    assert moves(platform, "toy/animals") == []


def test_force_with_a_reason_is_recorded(platform: Platform) -> None:
    moved = platform.promote("toy/animals", force=True, reason="a demonstration")
    assert moved.forced
    (detail,) = moves(platform, "toy/animals")
    assert (detail["forced"], detail["reason"]) == (True, "a demonstration")
    assert not all(check["passed"] for check in detail["gate"])


def test_other_alias_leaves_the_champion(platform: Platform) -> None:
    platform.promote("toy/prices", "shadow")
    assert platform.resolve("toy/prices@shadow").version.number == 1
    with pytest.raises(NotFoundError):
        platform.resolve("toy/prices@champion")


@pytest.mark.parametrize("alias", ["latest", "7", "Big", "", "a" * 41, "../x"])
def test_invalid_alias_is_an_error(platform: Platform, alias: str) -> None:
    with pytest.raises(UsageError):
        platform.promote("toy/prices", alias)


def test_unevaluated_version_is_refused(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.promotion.evaluation_report_of", lambda registry, version: None)
    with pytest.raises(RefusedError, match="has been evaluated: no"):
        platform.promote("toy/prices")


def test_promoting_an_unknown_adapter_is_an_error(platform: Platform) -> None:
    with pytest.raises(NotFoundError):
        platform.promote("toy/pries")


# -------------------------------------------------------------------------------------- looking


def test_dataset_report_counts(platform: Platform) -> None:
    report = platform.dataset_report("toy/animals")
    assert report.labels == dict.fromkeys(("bird", "fish", "mammal"), 21)
    assert report.prepared.report.dropped == {"empty text": 1}
    assert len(report.examples) == 5


def test_adapters_are_listed(platform: Platform) -> None:
    assert [record.name for record in platform.adapters()] == ["animals", "plurals", "prices"]


def test_evaluation_report_of_a_version_is_returned(platform: Platform) -> None:
    evaluated = platform.evaluation_report(platform.resolve("toy/animals").version)
    assert evaluated is not None
    evaluation_report, gate = evaluated
    assert gate.metric == evaluation_report.metric == "accuracy"
    assert json.dumps(evaluation_report.to_json())
