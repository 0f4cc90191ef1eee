"""plugins, base, datasets and recipes: list, show and the other commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from cli_runner import invoke
from toy_plugin import write_distribution
from trunkline import plugins
from trunkline.plugins import Finding, PluginInfo

if TYPE_CHECKING:
    from conftest import Run, Shared

TOY = PluginInfo(
    domain="toy", module="toy_plugin", distribution="trunkline-toy", version="1.0", status="loaded"
)


def test_plugins_list_counts_what_each_contributes(run: Run) -> None:
    text = run("plugins", "list").stdout
    assert "3 datasets, 3 recipes, 1 loss, 1 metric" in text


@pytest.mark.parametrize("noun", ["plugins", "recipes", "datasets", "base", "adapters", "runs"])
def test_list_json_is_a_list_of_objects(run: Run, noun: str) -> None:
    data = json.loads(run(noun, "list", "--json").stdout)
    assert all(isinstance(one, dict) for one in data)
    assert data


def test_plugins_show_names_the_contributions(run: Run) -> None:
    assert "toy/animals, toy/prices, toy/plurals" in run("plugins", "show", "toy").stdout


def test_plugins_show_json_parses(run: Run) -> None:
    assert json.loads(run("plugins", "show", "toy", "--json").stdout)["status"] == "loaded"


def test_plugins_install_prints_what_it_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def install(target: str, *, on_line: Callable[[str], None], **options: Any) -> Any:
        on_line("pip speaks")
        assert (target, options["editable"], options["upgrade"]) == ("./toys", True, False)
        return (TOY,)

    monkeypatch.setattr(plugins, "install", install)
    result = invoke("plugins", "install", "./toys", "--editable")
    assert result.exit_code == 0
    assert "trunkline-toy 1.0" in result.stdout
    assert result.stderr == "pip speaks\n"


def test_plugins_install_of_a_broken_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = PluginInfo(
        domain="toy",
        module="toy_plugin",
        distribution="trunkline-toy",
        version="1.0",
        status="failed",
        reason="it raises",
    )
    monkeypatch.setattr(plugins, "install", lambda target, **_: (failed,))
    result = invoke("plugins", "install", "./toys")
    assert result.exit_code == 1
    assert "failed to load: it raises" in result.stderr


@pytest.mark.parametrize(
    ("args", "input", "code"),
    [(("--yes",), None, 0), ((), "y\n", 0), ((), "n\n", 1), ((), "", 1)],
    ids=["yes", "asked-y", "asked-n", "no-answer"],
)
def test_plugins_uninstall_asks_first(
    args: tuple[str, ...], input: str | None, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []

    def uninstall(name: str, **_: Any) -> PluginInfo:
        removed.append(name)
        return TOY

    monkeypatch.setattr(plugins, "uninstall", uninstall)
    monkeypatch.setattr(plugins, "removable", lambda name: TOY)
    result = invoke("plugins", "uninstall", "toy", *args, input=input)
    assert result.exit_code == code
    assert removed == (["toy"] if code == 0 else [])


def test_plugins_uninstall_of_an_unknown_name_asks_nothing() -> None:
    result = invoke("plugins", "uninstall", "nope", input="y\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("Error: There is no plugin 'nope'.")


@pytest.mark.merge
def test_plugins_check_fails_on_the_toys_row_without_a_text(run: Run) -> None:
    result = run("plugins", "check", "toy")
    assert result.exit_code == 1
    assert "row 64 ('empty')" in result.stdout
    assert "Error: toy breaks 1 rule." in result.stderr


@pytest.mark.parametrize("level", [None, "warning"])
def test_plugins_check_passes_without_an_error(
    level: Literal["warning"] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    findings = (Finding(level=level, subject="toy", message="it is slow"),) if level else ()
    monkeypatch.setattr(plugins, "check", lambda target, **_: findings)
    result = invoke("plugins", "check", "toy")
    assert result.exit_code == 0
    assert ("it is slow" if level else "no findings") in result.stdout


def test_base_show_json_names_folder_and_digest(run: Run, shared: Shared) -> None:
    data = json.loads(run("base", "show", "--json").stdout)
    assert data["folder"] == str(shared.base)
    assert len(data["digest"]) == 64


def test_base_show_takes_a_name(run: Run, shared: Shared) -> None:
    assert "LlamaForCausalLM" in run("base", "show", str(shared.base)).stdout


def test_base_pull_of_a_folder_describes_it(run: Run) -> None:
    assert "LlamaForCausalLM" in run("base", "pull").stdout


def test_base_pull_prints_stages_and_bytes_on_stderr(
    run: Run, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trunkline import bases

    def pull(name: str, *, progress: Any, on_stage: Any, **_: Any) -> Any:
        on_stage("downloading")
        progress(5_000_000, 10_000_000)
        progress(10_000_000, 10_000_000)
        return bases.describe(str(shared.base))

    monkeypatch.setattr(bases, "pull", pull)
    result = run("base", "pull", "smollm2-135m")
    assert "downloading\n  10.0 MB of 10.0 MB" in result.stderr


def test_datasets_show_prints_origin_counts_labels_and_rows(run: Run) -> None:
    text = run("datasets", "show", "toy/animals").stdout
    for part in ("CC0-1.0", "made up", "an animal: its rows", "empty text 1", "Labels (3)"):
        assert part in text
    assert text.count("in the wild") >= 1


def test_datasets_show_json_counts_the_labels(run: Run) -> None:
    data = json.loads(run("datasets", "show", "toy/animals", "--json").stdout)
    assert data["label_counts"] == {"bird": 21, "fish": 21, "mammal": 21}
    assert data["groups"]["test"] == 6


def test_datasets_show_of_a_regression_names_the_unit(run: Run) -> None:
    assert "regression, in EUR" in run("datasets", "show", "toy/prices").stdout


LONG_TEXTS = """
from pathlib import Path

from trunkline.contracts import DatasetSpec, Row
from trunkline.data.readers import read_rows
from trunkline.hookspecs import hookimpl

TRUNKLINE_API = 1


def read():
    for row in read_rows(Path(__file__).with_suffix(".csv"), ["text", "kind"]):
        yield Row(id=str(row.number), text=row["text"], target=row["kind"], group=row["text"])


@hookimpl
def trunkline_datasets():
    yield DatasetSpec(
        name="long/texts", description="long texts", task="classification", load=read,
        license="CC0-1.0", source="made up", grouping="the text",
    )
"""


@pytest.fixture
def long_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the plugin `long`, whose texts have wide and control characters."""
    (tmp_path / "trunkline_long.py").write_text(LONG_TEXTS)
    rows = (f'"{number}\n\x1b[2J{"冷 word " * 200}",{"ab"[number % 2]}\n' for number in range(40))
    (tmp_path / "trunkline_long.csv").write_text("".join(["text,kind\n", *rows]))
    write_distribution(tmp_path, "long", "trunkline_long")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", "long")
    monkeypatch.setenv("COLUMNS", "90")
    return tmp_path


def test_datasets_show_cuts_long_texts_to_the_terminal(long_texts: Path) -> None:
    from rich.cells import cell_len

    result = invoke("--workspace", str(long_texts), "datasets", "show", "long/texts")
    assert result.exit_code == 0, result.output
    examples = result.stdout.partition("\nExamples\n")[2].splitlines()
    assert len(examples) == 6
    assert 80 <= max(map(cell_len, examples)) <= 90
    assert all("word" in line and "…" in line for line in examples[1:])
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("args", [("plugins", "show", "odd"), ("plugins", "list")])
def test_failure_of_a_plugin_does_not_control_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    (tmp_path / "trunkline_odd.py").write_text(r"raise ValueError('a \x1b[2J\x07 \u202e b')")
    write_distribution(tmp_path, "odd", "trunkline_odd")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TRUNKLINE_LOAD_PLUGINS", "odd")
    result = invoke("--workspace", str(tmp_path), *args)
    assert r"ValueError: a \x1b[2J\x07 \u202e b" in result.stdout
    assert not set("\x1b\x07\u202e") & set(result.stdout)


def test_datasets_show_json_holds_the_texts_in_full(long_texts: Path) -> None:
    data = json.loads(
        invoke("--workspace", str(long_texts), "datasets", "show", "long/texts", "--json").stdout
    )
    assert all(len(row["text"]) > 1400 for row in data["examples"])


def test_recipes_show_marks_what_differs_from_the_default(run: Run) -> None:
    lines = run("recipes", "show", "toy/animals").stdout.splitlines()
    marked = [line.split()[0] for line in lines if line.split()[2:3] == ["*"]]
    assert marked == ["num_train_epochs", "r", "lora_alpha", "max_length", "evals_per_epoch"]


def test_recipes_show_prints_the_direction_of_the_gate(run: Run) -> None:
    assert "mae: at most 10000" in run("recipes", "show", "toy/prices").stdout


def test_recipes_show_json_holds_the_settings(run: Run) -> None:
    assert json.loads(run("recipes", "show", "toy/animals", "--json").stdout)["settings"]["r"] == 4


@pytest.mark.parametrize("noun", ["adapters", "runs"])
def test_empty_listing_says_what_to_do(toy: None, tmp_path: Path, noun: str) -> None:
    result = invoke("--workspace", str(tmp_path), noun, "list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "trunkline train RECIPE" in result.stderr


@pytest.mark.parametrize("noun", ["adapters", "runs"])
def test_empty_json_listing_is_an_empty_list(toy: None, tmp_path: Path, noun: str) -> None:
    assert json.loads(invoke("--workspace", str(tmp_path), noun, "list", "--json").stdout) == []


def test_adapters_show_reports_damage(run_copy: Run) -> None:
    data = json.loads(run_copy("adapters", "show", "toy/animals", "--json").stdout)
    assert data["damage"] is None
    (Path(data["folder"]) / "adapter_model.safetensors").unlink()
    result = run_copy("adapters", "show", "toy/animals")
    assert result.exit_code == 0
    assert "DAMAGED" in result.stdout
