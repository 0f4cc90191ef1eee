"""``trunkline adapters import``: options, output, and the published version."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli_runner import invoke
from tiny_base import make_tiny_base

Import = Callable[..., Result]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("import") / "tiny")


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classification adapter of two outputs as PEFT writes it; read-only."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("elsewhere") / "two-kinds"
    folder.mkdir()
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{module}.lora_A.weight": torch.ones(4, 32),
        f"{module}.lora_B.weight": torch.ones(32, 4),
        "base_model.model.score.weight": torch.ones(2, 32),
    }
    save_file(tensors, folder / WEIGHTS)
    config = {
        "peft_type": "LORA", "task_type": "SEQ_CLS", "r": 4, "lora_alpha": 8,
        "target_modules": "model.*q_proj", "base_model_name_or_path": "somebody/model",
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "workspace").mkdir()
    return tmp_path / "workspace"


@pytest.fixture
def bring(elsewhere: Path, base: Path, workspace: Path) -> Import:
    """Import the adapter as ``toy/kinds`` with more arguments."""

    def bring(*args: str, folder: Path = elsewhere) -> Result:
        place = ("--workspace", str(workspace))
        expected = (str(folder), "--name", "toy/kinds", "--base", str(base))
        return invoke(*place, "adapters", "import", *expected, *args)

    return bring


def test_import_prints_the_version_on_stdout(bring: Import) -> None:
    result = bring("--labels", "cat, dog")
    assert result.exit_code == 0
    for part in (
        "toy/kinds@1",
        "classification: cat, dog",
        "r 4, lora_alpha 8, 1 modules",
        "sha256:",
    ):
        assert part in result.stdout


def test_import_prints_its_assumptions_on_stderr(bring: Import) -> None:
    result = bring()
    assert "LABEL_0 to LABEL_1" in result.stderr
    assert "names the base 'somebody/model'" in result.stderr
    assert "verified" not in result.stdout


def test_import_json_parses(bring: Import) -> None:
    data = json.loads(bring("--json").stdout)
    assert data["adapter"] == "toy/kinds@1"
    assert data["run"] is None
    assert len(data["notes"]) == 4


def test_imported_version_is_shown_as_verified(bring: Import, workspace: Path) -> None:
    bring()
    shown = invoke("--workspace", str(workspace), "adapters", "show", "toy/kinds")
    assert shown.exit_code == 0
    assert "verified" in shown.stdout


def test_imported_version_is_shown_with_a_next_step_that_works(
    bring: Import, workspace: Path
) -> None:
    bring()
    text = invoke("--workspace", str(workspace), "adapters", "show", "toy/kinds").stderr
    assert "trunkline eval" not in text
    assert "can't be evaluated: it came without a dataset" in text
    command = shlex.split(text.split("`")[1])[1:]
    assert invoke("--workspace", str(workspace), *command).exit_code == 0


def test_evaluating_an_imported_version_says_why_it_can_t_be(
    bring: Import, workspace: Path
) -> None:
    bring()
    result = invoke("--workspace", str(workspace), "eval", "toy/kinds")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: toy/kinds@1 can't be evaluated: it came without a dataset" in result.stderr
    assert "--force" in result.stderr


def test_gate_names_the_one_way_by_which_an_imported_version_goes_live(
    bring: Import, workspace: Path
) -> None:
    bring()
    result = invoke("--workspace", str(workspace), "adapters", "promote", "toy/kinds")
    assert result.exit_code == 1
    assert "trunkline eval" not in result.stderr
    assert '`trunkline adapters promote toy/kinds@1 --force --reason "…"`' in result.stderr


def test_champion_is_shown_without_a_way_to_let_it_go_live(bring: Import, workspace: Path) -> None:
    bring()
    place = ("--workspace", str(workspace), "adapters")
    invoke(*place, "promote", "toy/kinds", "--force", "--reason", "known to be good")
    text = invoke(*place, "show", "toy/kinds").stderr
    assert "can't be evaluated" in text
    assert "--force" not in text


def test_gate_names_the_alias_to_which_an_imported_version_may_be_forced(
    bring: Import, workspace: Path
) -> None:
    bring()
    args = ("adapters", "promote", "toy/kinds", "--alias", "beta")
    text = invoke("--workspace", str(workspace), *args).stderr
    assert '`trunkline adapters promote toy/kinds@1 --alias beta --force --reason "…"`' in text


def test_labels_come_from_a_file(bring: Import, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat, wild\ndog\n\n", encoding="utf-8")
    result = bring("--labels-file", str(tmp_path / "labels.txt"))
    assert "classification: cat, wild, dog" in result.stdout


def test_byte_order_mark_is_no_part_of_a_label(
    bring: Import, workspace: Path, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_bytes("\ufeffcase report\r\nréview\r\n".encode())
    result = bring("--labels-file", str(tmp_path / "labels.txt"))
    assert result.exit_code == 0
    manifest = json.loads((workspace / "adapters/toy/kinds/1/trunkline.json").read_text())
    assert manifest["task"]["labels"] == ["case report", "réview"]


@pytest.mark.parametrize("option", ["--labels", "--labels-file"])
def test_invisible_characters_are_no_part_of_a_label(
    bring: Import, workspace: Path, tmp_path: Path, option: str
) -> None:
    labels = ["\u200bcat\u00a0", "dog\u00ad\u200b"]
    (tmp_path / "labels.txt").write_text("\n".join(labels), encoding="utf-8")
    given = ",".join(labels) if option == "--labels" else str(tmp_path / "labels.txt")
    assert bring(option, given).exit_code == 0
    manifest = json.loads((workspace / "adapters/toy/kinds/1/trunkline.json").read_text())
    assert manifest["task"]["labels"] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "labels.txt is empty"),
        (b"cat\n\ndog\n", "Line 2 of labels.txt is empty"),
        (b"cat\nd\xf6g\n", "iconv -f cp1252 -t utf-8"),
    ],
)
def test_labels_file_that_is_not_clear_is_refused(
    bring: Import, tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "labels.txt").write_bytes(data)
    result = bring("--labels-file", str(tmp_path / "labels.txt"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert message in result.stderr


def test_template_and_cleaning_stand_in_the_artifact(bring: Import, workspace: Path) -> None:
    bring("--template", "Kind: {text}", "--chat", "--clean", "strip,squeeze")
    manifest = json.loads((workspace / "adapters/toy/kinds/1/trunkline.json").read_text())
    assert manifest["template"] == {
        "prompt": "Kind: {text}", "chat": True, "clean": ["strip", "squeeze"], "system": None,
    }  # fmt: skip


def stored_template(workspace: Path) -> dict[str, object]:
    manifest = json.loads((workspace / "adapters/toy/kinds/1/trunkline.json").read_text())
    return dict(manifest["template"])


def test_system_message_is_stored_in_the_artifact(bring: Import, workspace: Path) -> None:
    bring("--chat", "--system", r"You sort\nanimals.")
    assert stored_template(workspace)["system"] == "You sort\nanimals."


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (r"Animal: {text}\nKind:", "Animal: {text}\nKind:"),
        (r"\n\n{text}", "\n\n{text}"),
        ("Animal: {text}\nKind:", "Animal: {text}\nKind:"),
        (r"C:\\new {text}", r"C:\new {text}"),
        (r"\theta {text} \t", r"\theta {text} \t"),
    ],
)
def test_backslash_n_in_a_template_is_a_line_break(
    bring: Import, workspace: Path, given: str, stored: str
) -> None:
    bring("--template", given)
    assert stored_template(workspace)["prompt"] == stored


def test_base_before_the_command_is_taken(elsewhere: Path, base: Path, workspace: Path) -> None:
    place = ("--workspace", str(workspace), "--base", str(base))
    result = invoke(*place, "adapters", "import", str(elsewhere), "--name", "toy/kinds")
    assert result.exit_code == 0


WRONG_USAGE = [
    (("--name", "kinds"), "Hint: Write --name domain/name, for example --name "),
    (("--name", "toy/kinds@2"), "names a version"),
    (("--labels", "cat"), "1 label was"),
    (("--labels", "a,b", "--labels-file", __file__), "can't be combined"),
    (("--template", "no place"), "{text} exactly once"),
    (("--clean", "polish"), "'polish' is not a cleaning step"),
    (("--task", "generation"), "which is not for generation"),
    (("--base", "smollm2-135"), "Did you mean 'smollm2-135m'?"),
    (("--system", "Sort."), "--system is for chat prompts only"),
    (("--name", "toy/Text2SQL_v1.0"), "'text2sql-v1-0' would do"),
    (("--name", "Text2SQL_v1.0"), "--name DOMAIN/text2sql-v1-0"),
    (("--name", "My Org/kinds"), "'my-org' would do"),
    (("--name", "toy/7b-lora"), "'adapter-7b-lora' would do"),
]


@pytest.mark.parametrize(
    ("args", "expected"), WRONG_USAGE, ids=[args[1] for args, _ in WRONG_USAGE]
)
def test_wrong_usage_exits_with_2(bring: Import, args: tuple[str, ...], expected: str) -> None:
    result = bring(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr
    assert "Hint: " in result.stderr


def test_base_must_be_named(elsewhere: Path, workspace: Path) -> None:
    args = ("adapters", "import", str(elsewhere), "--name", "toy/kinds")
    result = invoke("--workspace", str(workspace), *args)
    assert "needs the base" in result.stderr


def test_refusal_leaves_no_version(bring: Import, elsewhere: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(elsewhere, tmp_path / "biased"))
    config = json.loads((folder / CONFIG).read_text()) | {"lora_bias": True}
    (folder / CONFIG).write_text(json.dumps(config))
    assert "adds a bias to the LoRA matrices" in bring(folder=folder).stderr
    assert "toy/kinds@1" in bring().stdout


@pytest.mark.parametrize("name", ["my-lora.zip", "my-lora.tar.gz", "MY.ZIP"])
def test_archive_of_another_program_is_to_be_unpacked(
    workspace: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"PK\x03\x04")
    result = invoke("--workspace", str(workspace), "adapters", "import", str(tmp_path / name))
    assert result.exit_code == 2
    assert "unpack it and import the folder" in result.stderr


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_file_of_an_adapter_instead_of_its_folder_names_the_folder(
    bring: Import, elsewhere: Path, name: str
) -> None:
    result = bring(folder=elsewhere / name)
    assert result.exit_code == 2
    assert f"Hint: Name the folder: {elsewhere}" in result.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("acme/kinds", "hf:acme/kinds."),
        ("https://huggingface.co/acme/kinds", "hf:acme/kinds."),
        ("https://huggingface.co/acme/kinds/tree/main/step-7/", "hf:acme/kinds/step-7."),
        ("huggingface.co/acme/kinds/tree/v2", "hf:acme/kinds@v2."),
    ],
)
def test_repository_named_as_on_its_page_is_translated(
    workspace: Path, source: str, expected: str
) -> None:
    args = ("adapters", "import", source, "--name", "toy/kinds")
    result = invoke("--workspace", str(workspace), *args)
    assert f"For a repository on the hub, write {expected}" in result.stderr


def test_folder_of_checkpoints_names_them(bring: Import, elsewhere: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        shutil.copytree(elsewhere, tmp_path / "trained" / f"checkpoint-{step}")
    result = bring(folder=tmp_path / "trained")
    assert result.exit_code == 1
    assert f"for example {tmp_path}/trained/checkpoint-10" in result.stderr
