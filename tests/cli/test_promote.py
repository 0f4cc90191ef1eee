"""promote, rollback and unalias, locally and through a running server."""

from __future__ import annotations

import getpass
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cli_runner import invoke
from server_process import ServerProcess, wait_until

if TYPE_CHECKING:
    from conftest import Run, Shared

FORCED = ("--force", "--reason", "a trial")
HEAD = "Head of the events: "


def promote(run: Run, name: str = "toy/prices", *args: str) -> Any:
    return run("adapters", "promote", name, *args)


# ------------------------------------------------------------------------------------- locally


def test_head_is_printed_on_stderr_and_audit_accepts_it(run_copy: Run) -> None:
    result = promote(run_copy)
    text = next(line for line in result.stderr.splitlines() if line.startswith(HEAD))
    assert HEAD not in result.stdout
    verified = run_copy("audit", "verify", "--head", text.removeprefix(HEAD))
    assert verified.exit_code == 0


def test_refusal_prints_every_condition_with_its_figures(run_copy: Run) -> None:
    result = promote(run_copy, "toy/animals")
    assert result.exit_code == 1
    assert [line[:3] for line in result.stdout.splitlines()] == ["NO ", "NO "]
    assert "at least 0.99  (accuracy: " in result.stdout
    assert "Error: The gate refuses toy/animals@1" in result.stderr


def test_refusal_as_json_has_the_conditions_too(run_copy: Run) -> None:
    result = promote(run_copy, "toy/animals", "--json")
    data = json.loads(result.stdout)
    assert (result.exit_code, data["promoted"]) == (1, False)
    assert data["checks"][0]["name"] == "beats the baseline"


def test_promotion_as_json_has_the_head(run_copy: Run) -> None:
    data = json.loads(promote(run_copy, "toy/prices", "--json").stdout)
    assert (data["promoted"], data["ref"], data["old"], data["new"]) == (
        True, "toy/prices@1", None, 1,
    )  # fmt: skip
    assert data["head"].partition(":")[0].isdigit()


def test_gates_of_workspace_and_recipe_apply_together(run_copy: Run, tmp_path: Path) -> None:
    (tmp_path / "copy" / "trunkline.toml").write_text("[gate]\ntwo_persons = true\n")
    result = promote(run_copy)
    assert result.exit_code == 1
    assert "yes  at most 10000" in result.stdout
    assert f"NO   two persons  (promoted by system:{getpass.getuser()}; " in result.stdout


def test_refusal_names_a_command_for_the_requested_alias(run_copy: Run) -> None:
    text = promote(run_copy, "toy/animals", "--alias", "beta").stderr
    assert '`trunkline adapters promote toy/animals@1 --alias beta --force --reason "…"`' in text


def test_name_of_a_base_is_refused_as_an_alias(run_copy: Run) -> None:
    result = promote(run_copy, "toy/prices", "--alias", "smollm2-135m")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is the name of a base" in result.stderr


def test_rollback_prints_both_versions(run_copy: Run) -> None:
    promote(run_copy)
    run_copy("adapters", "unalias", "toy/prices", "champion", "--reason", "none is to be")
    result = run_copy("adapters", "rollback", "toy/prices", "--reason", "yes, it is")
    assert result.exit_code == 0
    assert result.stdout == "toy/prices  champion: none → 1\n"
    assert HEAD in result.stderr


def test_rollback_as_json_is_the_move(run_copy: Run) -> None:
    promote(run_copy, "toy/prices", "--alias", "canary")
    run_copy("adapters", "unalias", "toy/prices", "canary")
    args = ("adapters", "rollback", "toy/prices", "--alias", "canary", "--json")
    data = json.loads(run_copy(*args).stdout)
    assert (data["kind"], data["alias"], data["old"], data["new"]) == (
        "rolled-back", "canary", None, 1,
    )  # fmt: skip


def test_rollback_without_a_previous_version_is_refused(run_copy: Run) -> None:
    promote(run_copy)
    result = run_copy("adapters", "rollback", "toy/prices")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "of toy/prices can't be rolled back" in result.stderr
    assert "Hint: " in result.stderr


def test_rollback_of_an_unknown_alias_is_wrong_usage(run_copy: Run) -> None:
    assert run_copy("adapters", "rollback", "toy/prices").exit_code == 2


def test_unalias_prints_the_removed_alias(run_copy: Run) -> None:
    promote(run_copy, "toy/prices", "--alias", "canary")
    result = run_copy("adapters", "unalias", "toy/prices", "canary")
    assert result.stdout == "toy/prices  canary: 1 → none\n"
    assert "canary" not in run_copy("adapters", "list").stdout


def test_unalias_of_the_champion_needs_a_reason(run_copy: Run) -> None:
    promote(run_copy)
    result = run_copy("adapters", "unalias", "toy/prices", "champion")
    assert result.exit_code == 2
    assert "--reason" in result.stderr


# --------------------------------------------------------------------- through a running server


@pytest.fixture(scope="module")
def server(
    shared: Shared, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServerProcess, Path]]:
    """A server whose gate requires two persons, with keys of two owners."""
    workspace = tmp_path_factory.mktemp("promoting") / "workspace"
    shutil.copytree(shared.workspace, workspace)
    (workspace / "trunkline.toml").write_text("[gate]\ntwo_persons = true\n")
    with ServerProcess(workspace, shared.base) as started:
        yield started, workspace


@pytest.fixture
def ask(server: tuple[ServerProcess, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the program with --url, in an empty workspace; the first argument is the key's owner."""
    monkeypatch.setenv("TRUNKLINE_WORKSPACE", str(tmp_path))

    def ask(owner: str, *args: str, input: str | None = None) -> Any:
        place = ("--workspace", str(server[1]))
        made = invoke(*place, "keys", "create", owner, "--admin")
        monkeypatch.setenv("TRUNKLINE_API_KEY", made.stdout.strip())
        wait_until(lambda: bool(server[0].get("/ready").get("base")), "the base is loaded")
        return invoke(*args, "--url", server[0].url, input=input)

    return ask


@pytest.mark.merge
def test_second_person_promotes_through_a_server_and_rolls_back(
    ask: Run, server: tuple[ServerProcess, Path]
) -> None:
    promoted = ask("ada", "adapters", "promote", "toy/prices", "--alias", "shadow")
    assert promoted.exit_code == 0, promoted.stderr
    assert "yes  two persons  (promoted by key/" in promoted.stdout
    assert promoted.stdout.endswith("toy/prices  shadow: none → 1\n")
    assert HEAD in promoted.stderr
    place = ("--workspace", str(server[1]))
    invoke(*place, "adapters", "unalias", "toy/prices", "shadow")
    back = ask("ada", "adapters", "rollback", "toy/prices", "--alias", "shadow", "--json")
    data = json.loads(back.stdout)
    assert (data["kind"], data["new"]) == ("rolled-back", 1)
    assert data["actor"].endswith(" ada")


def test_who_trained_is_refused_through_a_server_with_the_conditions(ask: Run) -> None:
    result = ask(getpass.getuser(), "adapters", "promote", "toy/prices", "--alias", "shadow")
    assert result.exit_code == 1
    assert "yes  at most 10000" in result.stdout
    assert "NO   two persons" in result.stdout
    assert "Error: The gate refuses toy/prices@1: two persons: no" in result.stderr
    assert "TRUNKLINE_API_KEY" in result.stderr


def test_servers_refusal_names_a_command_for_that_server(
    ask: Run, server: tuple[ServerProcess, Path]
) -> None:
    text = ask("ada", "adapters", "promote", "toy/animals", "--alias", "beta").stderr
    promotion = f"promote toy/animals@1 --url {server[0].url} --alias beta"
    assert f"`trunkline adapters {promotion} --force" in text


def test_servers_refusal_of_one_person_names_that_server(
    ask: Run, server: tuple[ServerProcess, Path]
) -> None:
    text = ask(getpass.getuser(), "adapters", "promote", "toy/prices", "--alias", "shadow").stderr
    assert f"promote toy/prices@1 --url {server[0].url} --alias shadow." in text
