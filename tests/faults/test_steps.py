"""The faults themselves: every step is counted, and a process ends exactly at its fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from faults.cases import Forks, Scene, sample_faults, try_faults
from faults.recovery import RecoveryCheck
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
    """Rewrite the file in a process with this fault and return its exit status."""
    fault = Fault(index, when, step or STEPS[index])
    environment = {"TMPDIR": str(path.parent)}
    ended = forks.run(
        "write_and_rename",
        environment,
        watch=path.parent,
        fault=fault,
        path=str(path),
        text="new!",
    )
    return ended.status


def test_every_step_is_counted_in_its_order(forks: Forks, old_file: Path) -> None:
    ended = forks.run(
        "write_and_rename",
        {"TMPDIR": str(old_file.parent)},
        watch=old_file.parent,
        path=str(old_file),
        text="new!",
    )
    assert list(ended.steps) == STEPS


def test_steps_outside_of_the_watched_folder_are_not_counted(forks: Forks, old_file: Path) -> None:
    watched = old_file.parent / "watched"
    watched.mkdir()
    ended = forks.run(
        "write_and_rename",
        {"TMPDIR": str(watched)},
        watch=watched,
        path=str(old_file),
        text="new!",
    )
    assert (ended.steps, old_file.read_text()) == ((), "new!")


@pytest.mark.parametrize(
    ("when", "content"), [("before", "old"), ("after", "new!")], ids=["before", "after"]
)
def test_process_is_killed_right_before_or_after_its_step(
    forks: Forks, old_file: Path, when: When, content: str
) -> None:
    assert end_at(forks, old_file, 3, when) == -9
    assert old_file.read_text() == content


def test_torn_write_is_half_done(forks: Forks, old_file: Path) -> None:
    assert end_at(forks, old_file, 1, "torn") == -9
    assert old_file.with_name("file.new").read_text() == "ne"


def test_full_disk_accepts_no_byte(forks: Forks, old_file: Path) -> None:
    assert end_at(forks, old_file, 1, "full") == 1
    assert old_file.with_name("file.new").read_text() == ""


def test_unexpected_step_is_reported(forks: Forks, old_file: Path) -> None:
    assert end_at(forks, old_file, 1, "before", STEPS[2]) == 97


def test_syncs_and_renames_need_no_room() -> None:
    assert [fault.index for fault in faults_of(STEPS, "full")] == [0, 1]


def test_sample_prefers_renames_and_commits() -> None:
    faults = faults_of(STEPS * 3, "before", "after")
    assert {fault.index for fault in sample_faults(faults, 12) if fault.step.kind == "rename"} == {
        3,
        7,
        11,
    }


def test_version_that_is_visible_before_its_files_is_detected(
    stocked: Scene, sound: Path, base_digest: str, imports: list[str]
) -> None:
    with pytest.raises(AssertionError, match="is visible but incomplete"):
        try_faults(
            stocked,
            "publish_before_copying",
            RecoveryCheck(stocked, again=imports, makes=1),
            modes=("before",),
            most=4,
            source=str(sound),
            ref="toy/animals",
            base_digest=base_digest,
        )
