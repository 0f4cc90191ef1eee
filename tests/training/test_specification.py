"""The specification of a run: the recipe with digests of the code that it names."""

from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trunkline.api import Platform
from trunkline.training.run_info import checkout, code_digest, specification


@pytest.fixture
def recorded(platform: Platform) -> dict[str, Any]:
    training_job = platform.training_job("toy/animals", {})
    return specification(training_job)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "plugin"
    folder.mkdir()
    (folder / "rows.py").write_text("ROWS = 1\n")
    git(folder, "init", "-q")
    git(folder, "add", "rows.py")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    return folder


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_specification_is_plain_json(recorded: dict[str, Any]) -> None:
    assert json.loads(json.dumps(recorded)) == recorded


def test_every_named_function_has_the_digest_of_its_code(recorded: dict[str, Any]) -> None:
    import toy_plugin

    code = code_digest(toy_plugin.hit_rate)
    assert recorded["loss"] == {"name": "toy/soft", "options": {}, "code": code}
    assert {"name": "toy/hit_rate", "code": code} in recorded["metrics"]
    assert recorded["dataset"]["code"] == code


def test_core_metrics_have_the_digest_of_the_core(recorded: dict[str, Any]) -> None:
    codes = {one["name"]: one["code"] for one in recorded["metrics"]}
    assert codes["accuracy"] != codes["toy/hit_rate"]


def test_plugin_is_recorded_with_its_version(recorded: dict[str, Any]) -> None:
    assert recorded["plugin"]["distribution"] == "trunkline-toy"
    assert recorded["plugin"]["version"] == "1.0"


def test_partial_has_the_code_of_what_it_wraps() -> None:
    assert code_digest(functools.partial(git, Path())) == code_digest(git)


def test_function_without_a_source_has_no_digest() -> None:
    assert code_digest(len) is None


def test_clean_checkout_is_recorded_with_its_commit(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert checkout(repository / "rows.py") == {"commit": commit, "changed": False}


def test_changed_checkout_says_so(repository: Path) -> None:
    (repository / "rows.py").write_text("ROWS = 2\n")
    assert checkout(repository / "rows.py")["changed"] is True


def test_file_that_git_does_not_track_has_no_commit(repository: Path) -> None:
    (repository / "installed.py").write_text("")
    assert checkout(repository / "installed.py") == {"commit": None, "changed": None}


def test_folder_outside_of_git_has_no_commit(tmp_path: Path) -> None:
    assert checkout(tmp_path / "rows.py") == {"commit": None, "changed": None}
