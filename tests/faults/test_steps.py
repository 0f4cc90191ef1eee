"""The faults themselves: every step is seen, and a process ends exactly where it is to end."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.cases import Forks, Scene, sampled, try_all
from faults.left import Left
from faults.steps import Fault, Step, When, faults_of

STEPS = [
    Step("open", "file.new"),
    Step("write", "file.new"),
    Step("sync", "file.new"),
    Step("rename", "file"),
]


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("old")
    return tmp_path / "file"


def end_at(forks: Forks, path: Path, index: int, when: When, step: Step | None = None) -> int:
    """Write the file anew in a process with this fault; gives its exit status."""
    fault = Fault(index, when, step or STEPS[index])
    environment = {"TMPDIR": str(path.parent)}
    ended = forks.run(
        "write_beside_and_rename",
        environment,
        watch=path.parent,
        fault=fault,
        path=str(path),
        text="new!",
    )
    return ended.status


def test_every_step_is_counted_in_its_order(forks: Forks, old_file: Path) -> None:
    ended = forks.run(
        "write_beside_and_rename",
        {"TMPDIR": str(old_file.parent)},
        watch=old_file.parent,
        path=str(old_file),
        text="new!",
    )
    assert list(ended.steps) == STEPS


def test_what_happens_elsewhere_is_not_counted(forks: Forks, old_file: Path) -> None:
    watched = old_file.parent / "watched"
    watched.mkdir()
    ended = forks.run(
        "write_beside_and_rename",
        {"TMPDIR": str(watched)},
        watch=watched,
        path=str(old_file),
        text="new!",
    )
    assert (ended.steps, old_file.read_text()) == ((), "new!")


@pytest.mark.parametrize(
    ("when", "found"), [("before", "old"), ("after", "new!")], ids=["before", "after"]
)
def test_process_is_killed_right_before_or_after_its_step(
    forks: Forks, old_file: Path, when: When, found: str
) -> None:
    assert end_at(forks, old_file, 3, when) == -9
    assert old_file.read_text() == found


def test_torn_write_is_half_done(forks: Forks, old_file: Path) -> None:
    assert end_at(forks, old_file, 1, "torn") == -9
    assert old_file.with_name("file.new").read_text() == "ne"


def test_full_disk_takes_no_byte(forks: Forks, old_file: Path) -> None:
    assert end_at(forks, old_file, 1, "full") == 1
    assert old_file.with_name("file.new").read_text() == ""


def test_another_step_than_the_one_that_was_meant_is_told(forks: Forks, old_file: Path) -> None:
    assert end_at(forks, old_file, 1, "before", STEPS[2]) == 97


def test_syncs_and_renames_need_no_room() -> None:
    assert [fault.index for fault in faults_of(STEPS, "full")] == [0, 1]


def test_sample_holds_every_rename_and_commit_that_there_is_place_for() -> None:
    faults = faults_of(STEPS * 3, "before", "after")
    assert {fault.index for fault in sampled(faults, 12) if fault.step.kind == "rename"} == {
        3,
        7,
        11,
    }


def test_store_that_shows_a_version_before_its_files_is_found_out(
    stocked: Scene, sound: Path, base_digest: str, imports: list[str]
) -> None:
    with pytest.raises(AssertionError, match="is visible and not whole"):
        try_all(
            stocked,
            "publish_carelessly",
            Left(stocked, again=imports, makes=1),
            modes=("before",),
            most=4,
            source=str(sound),
            ref="toy/animals",
            base_digest=base_digest,
        )
