"""Labels, prices, groups, and the form of the real rows."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from trunkline.contracts import Row
from trunkline_retail import datasets
from trunkline_retail.datasets import department_rows, description, normalized, unit_price_rows
from trunkline_retail.journey import Product, Sales


def product(
    number: int,
    kind: str | None,
    department: str = "GROCERY",
    *,
    category: str | None = "FOOD",
    brand: str = "National",
    size: str | None = "1 LB",
) -> Product:
    return Product(
        id=number, department=department, category=category, type=kind, brand=brand, size=size
    )


@pytest.fixture
def no_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MIN_TYPES", 1)
    monkeypatch.setattr(datasets, "MIN_PRICED", 1)


@pytest.fixture(scope="module")
def departments() -> list[Row]:
    return datasets.load_department()


@pytest.fixture(scope="module")
def prices() -> list[Row]:
    return datasets.load_unit_price()


def by_text(rows: list[Row]) -> dict[str, Row]:
    return {row.text: row for row in rows}


@pytest.mark.usefixtures("no_minimum")
class TestDepartment:
    def test_a_type_takes_the_department_of_most_of_its_products(self) -> None:
        rows = department_rows(
            [product(1, "HAM", "DELI"), product(2, "HAM", "MEAT"), product(3, "HAM", "MEAT")]
        )
        assert [(row.text, row.target) for row in rows] == [("HAM", "MEAT")]

    @pytest.mark.parametrize("order", [("MEAT", "DELI"), ("DELI", "MEAT")])
    def test_a_tie_goes_to_the_first_in_alphabetical_order(self, order: tuple[str, str]) -> None:
        (row,) = department_rows(product(n, "HAM", name) for n, name in enumerate(order))
        assert row.target == "DELI"

    def test_a_product_without_a_type_makes_no_row(self) -> None:
        assert department_rows([product(1, None), product(2, "")]) == []

    def test_rows_are_sorted_by_type(self) -> None:
        rows = department_rows([product(1, "PEARS"), product(2, "APPLES")])
        assert [row.id for row in rows] == ["APPLES", "PEARS"]

    def test_spellings_of_one_type_share_a_group(self) -> None:
        first, second = department_rows([product(1, "ROLLS/BUNS"), product(2, "ROLLS BUNS <=")])
        assert first.group == second.group


def test_departments_with_too_few_types_are_excluded() -> None:
    many = [product(n, f"TYPE {n}", "GROCERY") for n in range(datasets.MIN_TYPES)]
    few = [product(100 + n, f"OTHER {n}", "TOYS") for n in range(datasets.MIN_TYPES - 1)]
    assert {row.target for row in department_rows(many + few)} == {"GROCERY"}


def test_normalized_drops_case_punctuation_and_spaces() -> None:
    assert normalized("  BREADINGS  & CRUMBS: (S/W) <=") == "breadings crumbs s w"


def test_description_omits_a_missing_size() -> None:
    assert description("ICE", "22 LB", "Private") == "ice, 22 LB, store brand"
    assert description("ICE", None, "National") == "ice, national brand"


@pytest.mark.usefixtures("no_minimum")
class TestUnitPrice:
    def test_price_is_dollars_per_unit_over_all_products_of_a_description(self) -> None:
        rows = unit_price_rows(
            [product(1, "ICE"), product(2, "ICE")], {1: Sales(30, 45.0), 2: Sales(10, 35.0)}
        )
        assert [(row.text, row.target) for row in rows] == [("ice, 1 LB, national brand", 2.0)]

    def test_brands_of_one_type_are_rows_of_one_group(self) -> None:
        rows = unit_price_rows(
            [product(1, "ICE"), product(2, "ICE", brand="Private")],
            {1: Sales(20, 60.0), 2: Sales(20, 40.0)},
        )
        assert [(row.target, row.group) for row in rows] == [(3.0, "ice"), (2.0, "ice")]

    def test_a_description_with_few_sales_has_no_price(self) -> None:
        assert unit_price_rows([product(1, "ICE")], {1: Sales(19, 38.0)}) == []

    def test_a_product_without_sales_has_no_price(self) -> None:
        assert unit_price_rows([product(1, "ICE")], {}) == []

    @pytest.mark.parametrize("dollars", [0.0, 1.0, 20_000.0])
    def test_a_price_out_of_range_is_excluded(self, dollars: float) -> None:
        assert unit_price_rows([product(1, "ICE")], {1: Sales(20, dollars)}) == []

    @pytest.mark.parametrize(
        ("department", "category"),
        [("FUEL", "FUEL"), ("COUPON", None), ("GROCERY", "BOTTLE DEPOSITS")],
    )
    def test_payments_and_deposits_are_excluded(
        self, department: str, category: str | None
    ) -> None:
        products = [product(1, "X", department, category=category)]
        assert unit_price_rows(products, {1: Sales(50, 100.0)}) == []

    def test_only_the_best_selling_descriptions_of_a_type_are_kept(self) -> None:
        products = [product(n, "ICE", size=f"{n} LB") for n in range(1, 6)]
        rows = unit_price_rows(products, {n: Sales(20 + n, 50.0) for n in range(1, 6)})
        assert sorted(row.text[5] for row in rows) == ["3", "4", "5"]

    def test_the_department_is_the_one_that_sold_the_most_units(self) -> None:
        (row,) = unit_price_rows(
            [product(1, "HAM", "DELI"), product(2, "HAM", "MEAT")],
            {1: Sales(20, 40.0), 2: Sales(21, 40.0)},
        )
        assert row.slices["department"] == "MEAT"


def test_departments_with_too_few_prices_are_excluded() -> None:
    products = [product(n, f"TYPE {n}", "GROCERY") for n in range(datasets.MIN_PRICED)]
    products.append(product(100, "BALL", "TOYS"))
    rows = unit_price_rows(products, {item.id: Sales(20, 40.0) for item in products})
    assert {row.slices["department"] for row in rows} == {"GROCERY"}


@pytest.mark.real
class TestRealRows:
    def test_department_has_2332_types_in_13_departments(self, departments: list[Row]) -> None:
        assert (len(departments), len({row.target for row in departments})) == (2332, 13)

    def test_every_department_has_at_least_15_types(self, departments: list[Row]) -> None:
        assert min(Counter(row.target for row in departments).values()) >= 15

    def test_department_of_well_known_products(self, departments: list[Row]) -> None:
        rows = by_text(departments)
        expected = {
            "APPLE SAUCE": "GROCERY",
            "ANGUS BEEF": "MEAT",
            "YELLOW SUMMER SQUASH": "PRODUCE",
        }
        assert {text: rows[text].target for text in expected} == expected

    def test_unit_price_has_3189_rows_of_1484_types(self, prices: list[Row]) -> None:
        assert (len(prices), len({row.group for row in prices})) == (3189, 1484)

    def test_prices_are_within_the_limits(self, prices: list[Row]) -> None:
        targets = [row.target for row in prices]
        assert all(isinstance(target, float) and 0.10 <= target <= 100 for target in targets)

    def test_at_most_three_rows_of_a_type(self, prices: list[Row]) -> None:
        types = Counter(row.text.split(", ")[0] for row in prices)
        assert max(types.values()) <= datasets.MAX_PER_TYPE

    def test_no_fuel_coupons_or_gift_cards(self, prices: list[Row]) -> None:
        terms = ("gasoline", "coupon", "gift card", "deposit")
        assert [row.text for row in prices if any(term in row.text for term in terms)] == []

    @pytest.mark.parametrize("name", ["departments", "prices"])
    def test_ids_are_unique_and_slices_declared(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        rows: list[Row] = request.getfixturevalue(name)
        assert len({row.id for row in rows}) == len(rows)
        assert {tuple(row.slices) for row in rows} == {("department",)}

    @pytest.mark.parametrize("name", ["departments", "prices"])
    def test_one_text_never_belongs_to_two_groups(
        self, name: str, request: pytest.FixtureRequest
    ) -> None:
        groups: dict[str, set[str]] = defaultdict(set)
        for row in request.getfixturevalue(name):
            groups[normalized(row.text)].add(row.group)
        assert [text for text, names in groups.items() if len(names) > 1] == []

    def test_unit_price_is_the_same_twice(self, prices: list[Row]) -> None:
        assert datasets.load_unit_price() == prices

    def test_department_is_the_same_twice(self, departments: list[Row]) -> None:
        assert datasets.load_department() == departments


class TestNextProduct:
    @pytest.fixture(scope="class")
    @staticmethod
    def baskets() -> list[Row]:
        return datasets.load_next_product()

    def test_there_is_a_basket_for_each_of_900_households(self, baskets: list[Row]) -> None:
        assert len(baskets) == len({row.group for row in baskets}) == datasets.MAX_BASKETS

    def test_target_is_a_candidate_and_not_in_the_query(self, baskets: list[Row]) -> None:
        for row in baskets:
            assert len(set(row.candidates)) == datasets.CANDIDATES
            assert row.target in row.candidates
            assert not set(row.candidates) & set(row.text.split("; "))

    def test_place_of_the_target_says_nothing(self, baskets: list[Row]) -> None:
        places = Counter(row.candidates.index(str(row.target)) for row in baskets)
        assert max(places.values()) < 1.3 * len(baskets) / datasets.CANDIDATES

    def test_rows_are_the_same_twice(self, baskets: list[Row]) -> None:
        assert datasets.load_next_product() == baskets
