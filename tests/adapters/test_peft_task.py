"""Imports of PEFT adapters: the task they get, and what is recorded about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_folders import (
    CONFIG,
    PREFIX,
    REF,
    ImportFolder,
    change_config,
    change_tensors,
    fetched,
    put,
)
from trunkline.adapters.peft_import import ImportOptions
from trunkline.adapters.store import AdapterStore
from trunkline.bases import describe
from trunkline.contracts import Template
from trunkline.errors import (
    RefusedError,
    UsageError,
)
from trunkline.registry.registry import Registry
from trunkline.tasks import task_from_json


def test_causal_lm_becomes_a_generation_with_the_text_as_prompt(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    manifest = fetched(store, import_folder(folder)).manifest
    assert manifest.task == {"kind": "generation", "max_new_tokens": 128}
    assert manifest.make_template() == Template(prompt="{text}", clean=())


def test_head_with_several_outputs_gets_the_label_names_of_transformers(
    import_folder: ImportFolder, store: AdapterStore, headed: Path
) -> None:
    imported = import_folder(headed)
    assert fetched(store, imported).manifest.task["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert any("LABEL_0 to LABEL_2" in sentence for sentence in imported.notes)
    assert any("--task multilabel" in sentence for sentence in imported.notes)


def test_several_labels_are_imported_with_their_threshold(
    import_folder: ImportFolder, store: AdapterStore, headed: Path
) -> None:
    imported = import_folder(headed, task="multilabel", labels=("a", "b", "c"))
    task = fetched(store, imported).manifest.task
    assert task == {"kind": "multilabel", "labels": ["a", "b", "c"], "threshold": 0.5}
    assert any("at least 0.5" in sentence for sentence in imported.notes)


def test_head_with_one_output_becomes_a_regression(
    import_folder: ImportFolder, store: AdapterStore, headed: Path
) -> None:
    change_tensors(headed, put(f"{PREFIX}score.weight", 1, 32))
    task = fetched(store, import_folder(headed, unit="EUR")).manifest.task
    assert task == {
        "kind": "regression", "scale": "linear", "mean": 0.0, "deviation": 1.0, "unit": "EUR",
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"labels": ("a", "b", "c")}])
def test_task_entry_can_be_parsed(
    import_folder: ImportFolder, headed: Path, options: dict[str, Any]
) -> None:
    assert task_from_json(dict(import_folder(headed, **options).task)).kind == "classification"


def test_labels_and_template_of_the_user_are_kept(
    import_folder: ImportFolder, store: AdapterStore, headed: Path
) -> None:
    template = Template(prompt="Q: {text}", clean=("strip",), chat=True)
    manifest = fetched(
        store, import_folder(headed, labels=("a", "b", "c"), template=template)
    ).manifest
    assert manifest.task["labels"] == ["a", "b", "c"]
    assert manifest.make_template() == template


def test_task_option_fills_in_a_missing_task_type(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    change_config(folder, task_type=None)
    config = json.loads(
        (fetched(store, import_folder(folder, task="generation")).folder / CONFIG).read_text()
    )
    assert config["task_type"] == "CAUSAL_LM"


OPTIONS: dict[str, tuple[bool, dict[str, Any], str]] = {
    "labels of a generation": (False, {"labels": ("a", "b")}, "does not use labels"),
    "unit of a classification": (True, {"unit": "EUR"}, "does not use a unit"),
    "tokens of a classification": (True, {"max_new_tokens": 3}, "does not use max_new_tokens"),
    "no tokens": (False, {"max_new_tokens": 0}, "max_new_tokens can't be 0"),
    "tokens beyond the context": (False, {"max_new_tokens": 256}, "no room for a prompt"),
    "too few labels": (True, {"labels": ("a", "b")}, "2 labels"),
    "a label twice": (True, {"labels": ("a", "b", "a")}, "Labels 1 and 3 are both 'a'"),
    "a label with a space": (True, {"labels": ("a", "b", "b ")}, "Labels 2 and 3 are both 'b'"),
    "a label with an invisible character": (
        True,
        {"labels": ("a", "b", "b\u200b")},
        "Labels 2 and 3 are both 'b'",
    ),
    "a label of invisible characters": (
        True,
        {"labels": ("a", "\u200b", "b")},
        "Label 2 is empty",
    ),
    "an empty label": (True, {"labels": ("a", "", "b")}, "Label 2 is empty"),
    "a label of white space": (True, {"labels": ("a", "b", " ")}, "Label 3 is empty"),
    "task against the file": (False, {"task": "classification"}, "task_type 'CAUSAL_LM'"),
    "regression of three": (True, {"task": "regression"}, "3 outputs"),
    "unknown task": (False, {"task": "parsing"}, "no task 'parsing'"),
    "a version": (False, {"ref": REF.at(3)}, "names a version"),
}


@pytest.mark.parametrize("labels", ["abc", ("a", 1, "b"), {"a": 0}, ("a", "\ud800", "b")])
def test_labels_that_are_not_several_texts_are_a_usage_error(labels: Any) -> None:
    with pytest.raises(UsageError, match=r"a tuple of texts is wanted|half a character") as caught:
        ImportOptions(labels=labels)
    assert caught.value.hint


def test_labels_that_look_alike_are_noted(import_folder: ImportFolder, headed: Path) -> None:
    notes = import_folder(headed, labels=("caf\u00e9", "cafe\u0301", "tea")).notes
    assert any("are different labels: 'caf\\xe9' and 'cafe\\u0301'" in note for note in notes)


@pytest.mark.parametrize("problem", OPTIONS)
def test_option_that_does_not_fit_the_adapter_is_a_usage_error(
    refused: Callable[..., str], folder: Path, headed: Path, problem: str
) -> None:
    head, options, reason = OPTIONS[problem]
    assert reason in refused(headed if head else folder, UsageError, **options)


def test_classification_with_one_output_is_a_usage_error(
    refused: Callable[..., str], headed: Path
) -> None:
    change_tensors(headed, put(f"{PREFIX}score.weight", 1, 32))
    assert "one output" in refused(headed, UsageError, task="classification")


def test_missing_task_type_is_a_usage_error(refused: Callable[..., str], folder: Path) -> None:
    change_config(folder, task_type=None)
    assert "has no task_type" in refused(folder, UsageError)


def test_existing_name_for_another_task_is_refused(
    import_folder: ImportFolder, folder: Path, headed: Path
) -> None:
    import_folder(folder)
    with pytest.raises(RefusedError, match="is for generation, not for classification"):
        import_folder(headed)


def test_version_has_a_base_but_no_run_and_no_dataset(
    import_folder: ImportFolder, store: AdapterStore, folder: Path, tiny: Path
) -> None:
    imported = import_folder(folder)
    assert (imported.version.number, imported.version.run, imported.version.dataset) == (
        1,
        None,
        None,
    )
    assert imported.version.base_digest == describe(str(tiny)).digest
    assert set(fetched(store, imported).manifest.data.values()) == {"unknown"}


def test_second_import_is_the_next_version(import_folder: ImportFolder, folder: Path) -> None:
    assert [import_folder(folder).version.number for _ in range(2)] == [1, 2]


@pytest.mark.parametrize("kind", ["version.published", "version.imported"])
def test_event_records_actor_and_folder(
    import_folder: ImportFolder, registry: Registry, folder: Path, kind: str
) -> None:
    version = import_folder(folder).version
    event = next(one for one in registry.events.list(subject="toy/elsewhere") if one.kind == kind)
    origin = event.detail.get("imported", event.detail)
    assert event.actor.startswith("system:")
    assert origin["folder"] == "my-lora"
    assert event.detail["digest"] == version.digest


def test_control_characters_of_the_configuration_are_escaped(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    """An export or a rebuild reads the provenance again, without trusting it."""
    from trunkline.adapters.provenance import read_provenance

    change_config(
        folder,
        base_model_name_or_path="a\x1b[2Jb\u202e",
        revision="\x00",
        auto_mapping={"a": [[[]]]},
    )
    imported = read_provenance(fetched(store, import_folder(folder))).imported
    assert imported is not None
    assert imported["named_base"].isascii()
    assert imported["left_out"]["revision"] == ascii("\x00")


def test_another_named_base_is_noted_and_recorded(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    change_config(folder, base_model_name_or_path="somebody/large`\n# model")
    imported = import_folder(folder)
    published = fetched(store, imported).folder
    assert "can't be verified" in imported.notes[0]
    provenance = json.loads((published / "provenance.json").read_text())
    assert provenance["imported"]["named_base"] == "somebody/large`\n# model"
    assert "\n# model" not in (published / "README.md").read_text()


def test_matching_base_name_gives_no_note(
    import_folder: ImportFolder, folder: Path, tiny: Path
) -> None:
    change_config(folder, base_model_name_or_path=str(tiny))
    assert import_folder(folder).notes == ()


def test_card_marks_what_is_unknown(
    import_folder: ImportFolder, store: AdapterStore, folder: Path
) -> None:
    card = (fetched(store, import_folder(folder)).folder / "README.md").read_text()
    assert "Trained elsewhere" in card
    assert "## Evaluation\nNOT PROVIDED" in card
    assert "## Data\nNOT PROVIDED" in card


def test_manifest_in_the_folder_is_ignored(import_folder: ImportFolder, folder: Path) -> None:
    (folder / "trunkline.json").write_text('{"task": "evil"}')
    assert any("trunkline.json" in sentence for sentence in import_folder(folder).notes)
