"""Limits of a container count as those of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from trunkline.machine import compute_threads, disk_space, memory_limit, usable_cores


@pytest.mark.parametrize(
    ("quota", "most"), [("100000 100000", 1), ("50000 100000", 1), ("150000 100000", 2)]
)
def test_cpu_quota_limits_the_cores(tmp_path: Path, quota: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path) <= most


@pytest.mark.parametrize("text", ["max 100000", "", "nonsense"])
def test_without_a_quota_the_process_has_the_cores_that_it_may_run_on(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path) == usable_cores(tmp_path / "none") >= 1


@pytest.mark.parametrize(
    ("limit", "expected"), [("1048576\n", 1 << 20), ("max\n", 4 << 20), (None, 4 << 20)]
)
def test_smaller_limit_of_memory_counts(tmp_path: Path, limit: str | None, expected: int) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:        4096 kB\nMemFree: 1 kB\n")
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    assert memory_limit(tmp_path, tmp_path / "meminfo") == expected


def test_unknown_memory_is_none(tmp_path: Path) -> None:
    assert memory_limit(tmp_path, tmp_path / "meminfo") is None


def test_variable_sets_the_threads() -> None:
    assert compute_threads(2, {"OMP_NUM_THREADS": "3"}) == 3
    assert compute_threads(2, {"OMP_NUM_THREADS": "none"}) >= 1


def test_disk_of_a_folder_that_is_still_missing(tmp_path: Path) -> None:
    space = disk_space(tmp_path / "a" / "b")
    assert 0 <= space.free <= space.total
