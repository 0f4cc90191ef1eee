"""lineage, history, diff, tag and note; searching and paging of listings."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from cli_runner import invoke
from trunkline.cli.lineage import evaluation_branch, print_comparison
from trunkline.cli.promote import event_text
from trunkline.registry import search
from trunkline.registry.lineage import LineageDiff, MetricDifference
from trunkline.registry.records import EvaluationRecord, EventRecord
from trunkline.registry.tables import utc_now

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Run


def parsed(run: Run, *args: str) -> Any:
    result = run(*args, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_lineage_of_a_version_leads_to_everything(run: Run) -> None:
    text = run("lineage", "toy/animals").stdout
    for part in (
        "toy/animals@1\n├── version\n",
        "├── base ",
        "├── run 1 of toy/animals: finished\n",
        "├── dataset toy/animals\n",
        "└── evaluations\n",
        "baseline tfidf: accuracy",
        "settings: num_train_epochs=",
        "packages: trunkline=",
        "version.published: by system:",
    ):
        assert part in text


def test_lineage_prints_times_to_the_second(run: Run) -> None:
    text = run("lineage", "toy/animals").stdout
    assert re.search(r"── first seen: \S+T\d\d:\d\d:\d\d\+00:00\n", text)


@pytest.mark.parametrize(
    ("count", "expected"), [(13, "slices: 13, the 10 worst first; --json has all"),
                        (10, "slices: 10, the worst first")],
)  # fmt: skip
def test_lineage_prints_how_many_slices_it_shows(count: int, expected: str) -> None:
    slices = [
        {"slice": "length", "value": str(n), "rows": 5, "score": n / 20} for n in range(count)
    ]
    evaluated = evaluation_branch(
        EvaluationRecord(
            id=1, version=None, run=1, recipe="toy/animals", base_digest="b", dataset="toy/animals",
            dataset_fingerprint="f", split_fingerprint="s", split="test",
            results={"slices": slices}, created=utc_now(),
        )
    )  # fmt: skip
    shown = next(one for one in evaluated.below if one.text.startswith("slices"))
    assert (shown.text, len(shown.below)) == (expected, 10)


def test_lineage_of_an_imported_version_names_who_started_its_run(
    run_copy: Run, tmp_path: Path
) -> None:
    archive = str(tmp_path / "animals.tar")
    run_copy("adapters", "export", "toy/animals", archive)
    run_copy("adapters", "import", archive, "--name", "toy/others")
    text = run_copy("lineage", "toy/others").stdout
    assert "├── imported: " in text
    assert re.search(r"├── started: \S+ by system:\S+, as run 1\n", text)


def test_lineage_json_has_the_parts(run: Run) -> None:
    data = parsed(run, "lineage", "toy/animals@1")
    assert data["run"]["number"] == 1
    assert data["evaluations"][0]["results"]["scores"]["accuracy"]["value"] is not None
    assert data["dataset"]["license"] == "CC0-1.0"


@pytest.mark.parametrize("what", ["digest", "run/1"])
def test_lineage_takes_digests_and_runs(run: Run, what: str) -> None:
    if what == "digest":
        what = parsed(run, "adapters", "show", "toy/animals")["digest"]
    assert parsed(run, "lineage", what)["run"]["recipe"] == "toy/animals"


@pytest.mark.parametrize(
    "args",
    [(), ("toy/animals", "--request", "x"), ("toy/../x",), ("sha256:12",), ("run/99",), ("nope",)],
    ids=" ".join,
)
def test_lineage_of_nothing_is_wrong_use(run: Run, args: tuple[str, ...]) -> None:
    result = run("lineage", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Hint: " in result.stderr


def test_history_prints_actor_event_and_reason(run_copy: Run) -> None:
    args = ("adapters", "promote", "toy/animals@1", "--alias", "trial")
    run_copy(*args, "--force", "--reason", "a test of it")
    lines = run_copy("adapters", "history", "toy/animals").stdout
    assert "trial set to 1" in lines
    assert "reason: a test of it" in lines
    assert "version 1 published, sha256:" in lines
    assert "system:" in lines


def test_history_is_paged(run_copy: Run) -> None:
    run_copy("note", "toy/animals", "hello")
    result = run_copy("adapters", "history", "toy/animals", "--limit", "1")
    before = result.stderr.rpartition("--before ")[2].split()[0]
    rest = parsed(run_copy, "adapters", "history", "toy/animals", "--before", before)
    assert [one["kind"] for one in rest] == ["version.published"]


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ({"alias": "a", "old": None, "new": 1}, "a set to 1"),
        ({"alias": "a", "old": 1, "new": 2, "forced": True}, "a moved from 1 to 2, forced"),
        ({"alias": "a", "old": 2, "new": 1, "kind": "rolled-back"}, "a moved from 2 to 1, rolled"),
        ({"alias": "a", "old": 2, "new": None, "kind": "dropped"}, "a removed, pointed to 2"),
        ({"alias": "a", "new": 1, "gate": [{"name": "g", "passed": False}]}, "\ng: NO"),
    ],
)
def test_an_alias_move_as_text(detail: dict[str, Any], expected: str) -> None:
    event = EventRecord(
        seq=1, at=utc_now(), actor="x", kind="alias.moved", subject="a/b", detail=detail, hash=""
    )
    assert expected in event_text(event)


@pytest.mark.parametrize(
    ("kind", "detail", "expected"),
    [
        ("version.signed", {"signed_by": "sha256:" + "a" * 64}, "version 2 signed, signed by"),
        ("version.exported", {"archive": "a.tar"}, "version 2 exported, a.tar"),
        ("version.imported", {}, "version 2 imported"),
    ],
)
def test_transfers_and_signatures_as_text_have_the_version_number(
    kind: str, detail: dict[str, Any], expected: str
) -> None:
    event = EventRecord(
        seq=1, at=utc_now(), actor="x", kind=kind, subject="a/b",
        detail={"number": 2, **detail}, hash="",
    )  # fmt: skip
    assert expected in event_text(event)


def test_adapters_diff_lists_settings_and_figures(run: Run) -> None:
    data = parsed(run, "adapters", "diff", "toy/animals", "toy/plurals")
    differing = {one["name"] for one in data["fields"]}
    assert {"version.digest", "dataset.name", "run.recipe"} <= differing
    figures = {one["name"]: one for one in data["metrics"]}
    assert figures["test.accuracy"]["same_rows"] is False


def test_runs_diff_prints_both_columns(run: Run) -> None:
    result = run("runs", "diff", "1", "2")
    assert result.stdout.splitlines()[0].split() == ["what", "run/1", "run/2"]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (MetricDifference("test.accuracy", 0.8, 0.9, 0.1, same_rows=True), False),
        (MetricDifference("test.accuracy", 0.8, 0.9, 0.1, same_rows=False), True),
        (MetricDifference("test.accuracy", 0.8, None, None, same_rows=False), False),
    ],
    ids=["same rows", "different rows", "one side"],
)
def test_only_figures_of_both_sides_are_reported_as_of_different_rows(
    capsys: pytest.CaptureFixture[str], figure: MetricDifference, expected: bool
) -> None:
    print_comparison(LineageDiff("a/b@1", "a/b@2", (), (figure,)), as_json=False)
    assert ("different rows" in capsys.readouterr().err) is expected


def test_runs_diff_takes_runs_as_they_are_printed(run: Run) -> None:
    printed = run("runs", "diff", "run/1", "run/2")
    assert printed.exit_code == 0
    assert printed.stdout == run("runs", "diff", "1", "2").stdout


def test_runs_show_takes_a_run_as_it_is_printed(run: Run) -> None:
    assert parsed(run, "runs", "show", "run/2")["number"] == 2


def test_diff_with_itself_finds_no_differences(run: Run) -> None:
    result = run("adapters", "diff", "toy/animals", "toy/animals@1")
    assert "No differences" in result.stderr
    assert "+0.000" in result.stdout


def test_tag_sets_removes_and_prints(run_copy: Run) -> None:
    run_copy("tag", "toy/animals@1", "a=1", "b=x=y")
    assert parsed(run_copy, "tag", "toy/animals@1", "--remove", "a") == {
        "subject": "toy/animals@1",
        "tags": {"b": "x=y"},
    }
    assert "b=x=y" in run_copy("adapters", "show", "toy/animals").stdout


@pytest.mark.parametrize("args", [("x",), ("X=1",), ("a=1", "--remove", "a"), ("--remove", "z")])
def test_a_wrong_tag_is_wrong_use(run_copy: Run, args: tuple[str, ...]) -> None:
    result = run_copy("tag", "toy/animals@1", *args)
    assert result.exit_code == 2
    assert "Hint: " in result.stderr


def test_note_is_kept_and_printed(run_copy: Run) -> None:
    assert run_copy("note", "run/1", "looked at").stdout == "run/1: noted\n"
    assert "looked at" in run_copy("note", "run/1").stdout
    assert "looked at" in run_copy("lineage", "toy/animals").stdout


def test_list_where_lists_versions(run: Run) -> None:
    data = parsed(run, "adapters", "list", "--where", "test.accuracy>=0 and name=animals")
    assert [one["ref"] for one in data] == ["toy/animals@1"]
    assert data[0]["score"]["metric"] == "accuracy"


def test_list_where_is_paged(run: Run) -> None:
    args = ("adapters", "list", "--where", "domain=toy", "--limit", "2")
    result = run(*args)
    assert len(result.stdout.splitlines()) == 3
    after = result.stderr.rpartition("--after ")[2].rstrip(".\n")
    assert [one["ref"] for one in parsed(run, *args, "--after", after)] == ["toy/animals@1"]


def test_list_where_queries_until_its_page_is_full(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "SCAN_LIMIT", 1)
    data = parsed(run, "adapters", "list", "--where", "not name=prices")
    assert [one["ref"] for one in data] == ["toy/plurals@1", "toy/animals@1"]


def test_list_where_reports_the_position_of_a_mistake(run: Run) -> None:
    result = run("adapters", "list", "--where", "domain=toy and nme=x")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "at character 16: there is no field 'nme'" in result.stderr


def test_adapters_are_paged_by_name(run: Run) -> None:
    result = run("adapters", "list", "--limit", "1")
    assert "--after toy/animals" in result.stderr
    rest = parsed(run, "adapters", "list", "--after", "toy/animals")
    assert [one["adapter"] for one in rest] == ["toy/plurals", "toy/prices"]


def test_runs_are_paged_by_number(run: Run) -> None:
    result = run("runs", "list", "--limit", "1")
    assert "--before 3" in result.stderr
    assert [one["number"] for one in parsed(run, "runs", "list", "--before", "3")] == [2, 1]


def test_recipe_without_a_run_prints_a_note(run: Run) -> None:
    assert run("runs", "list", "--recipe", "nope/x").stderr == "No matching run.\n"


def test_removed_versions_are_listed_with_their_reason(run_copy: Run) -> None:
    assert "No version was removed" in run_copy("adapters", "list", "--removed").stderr
    done = run_copy("adapters", "rm", "toy/animals@1", "--reason", "the rows were wrong")
    assert done.exit_code == 0, done.stderr
    assert "the rows were wrong" in run_copy("adapters", "list", "--removed").stdout
    result = run_copy("adapters", "show", "toy/animals@1")
    assert "was removed on" in result.stderr
    assert "removed: " in run_copy("lineage", "toy/animals@1").stdout


def test_where_and_removed_exclude_each_other() -> None:
    assert invoke("adapters", "list", "--where", "name=a", "--removed").exit_code == 2
