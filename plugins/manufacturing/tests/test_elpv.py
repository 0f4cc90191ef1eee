"""Reading the wheel's files, and the errors when they are missing or damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trunkline.errors import DataError
from trunkline_manufacturing import elpv


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(elpv, "data_folder", lambda: tmp_path)
    return tmp_path


def test_line_is_a_path_a_probability_and_a_type(folder: Path) -> None:
    (folder / "labels.csv").write_text("images/cell0001.png  0.3333333333333333  poly\n")
    (cell,) = elpv.read_cells()
    assert (cell.id, cell.picture) == ("cell0001", folder / "images" / "cell0001.png")
    assert (cell.probability, cell.module) == (1 / 3, "poly")


@pytest.mark.parametrize("line", ["a.png 1.0", "a.png yes mono", "a.png 2.0 mono", "a.png 1.0 x"])
def test_damaged_line_is_named(folder: Path, line: str) -> None:
    (folder / "labels.csv").write_text(f"images/cell0001.png 0.0 mono\n{line}\n")
    with pytest.raises(DataError, match=r"Line 2 of .*labels\.csv") as caught:
        elpv.read_cells()
    assert "pip install" in (caught.value.hint or "")


def test_missing_table_is_one_sentence_with_a_hint(folder: Path) -> None:
    with pytest.raises(DataError, match=r"labels\.csv can't be read") as caught:
        elpv.read_cells()
    assert "--force-reinstall" in (caught.value.hint or "")


def test_missing_wheel_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elpv, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="'elpv_dataset'") as caught:
        elpv.data_folder()
    assert caught.value.hint == "Run: pip install elpv-dataset==1.0.0.post1."


def test_reading_does_not_import_the_wheels_package() -> None:
    code = (
        "import sys; from trunkline_manufacturing.elpv import read_cells;"
        "assert len(read_cells()) == 2624; assert 'elpv_dataset.utils' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
