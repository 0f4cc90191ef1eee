"""Branches of one merchant form one group; unrelated merchants do not."""

from __future__ import annotations

from collections import Counter

import pytest

from trunkline_finance.bank_lines import load
from trunkline_finance.merchants import brand_of, group_by_merchant


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Burger King SAO PAULO", "BurgerKing-donmueang BANGKOK"),
        ("7-Eleven_1144 HANOI", "7 11 Luan Rd, Phuket"),
        ("McDonald's Abad Santos MANILA", "Mcd-00070ptt Motorway Out"),
        ("4191 Boots (big C Extra P)", "Boots_4071 Central CHONBURI"),
        ("MOBILE Ahamove 12", "APP#AHAM0VE GATE"),
        ("Intermarché", "INTERMARCHE 44"),
    ],
)
def test_spellings_of_one_merchant_share_a_brand(one: str, other: str) -> None:
    assert brand_of(one) == brand_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cafe Lovita", "Cafe Vitoria"), ("The Odette", "The Hops"), ("PAYPAL *ufc", "Paypal *uber")],
)
def test_generic_words_and_payment_services_do_not_join_unrelated_merchants(
    one: str, other: str
) -> None:
    assert brand_of(one) != brand_of(other)


def test_a_shared_pretty_title_joins_lines_that_begin_differently() -> None:
    groups = group_by_merchant([("Uber", "Uber Trip"), ("Uber", "Xdt*taksi"), ("Lidl", "Lidl 7")])
    assert groups[0] == groups[1] != groups[2]


def test_groups_do_not_depend_on_the_order_of_the_lines() -> None:
    names = [(row.text,) for row in load()[:300]]
    assert group_by_merchant(names[::-1])[::-1] == group_by_merchant(names)


def test_no_merchant_has_more_than_a_hundredth_of_the_lines() -> None:
    rows = load()
    (_, largest), *_ = Counter(row.group for row in rows).most_common(1)
    assert largest <= len(rows) / 100


def test_shops_of_one_chain_form_one_group() -> None:
    chains = ("uniqlo", "starbucks", "watson", "lidl", "sephora")
    for chain in chains:
        groups = {row.group for row in load() if row.text.lower().startswith(chain)}
        assert len(groups) == 1, chain
