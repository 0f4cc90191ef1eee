"""Misclassification costs for the labels of both datasets, used by the loss and the metric.

The cost ``C(i, j)`` of predicting ``j`` where ``i`` is true::

    0                   i = j
    NEAR  = 0.5         both in the same family
    FAR   = 1.0         otherwise
    x MISSED = 2        if i is watched and j is not

The families of sectors are the supersectors of the US Bureau of Labor Statistics, with the
goods-producing ones combined. A bank must check customers in the watched sectors more closely:
banks and insurers, holding companies, and the casinos and estate agents of FATF Recommendation 22.
The spending category "money" is watched too: if a transfer, a fee or an exchange is classified as
ordinary spending, the budget is wrong and a compliance officer misses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from trunkline.errors import NotFoundError
from trunkline_finance.categories import (
    BILLS,
    DIGITAL,
    EATING_OUT,
    GROCERIES,
    HEALTH,
    LEISURE,
    MONEY,
    SHOPPING,
    TRANSPORT,
    TRAVEL,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NEAR = 0.5
FAR = 1.0
MISSED = 2.0

SECTORS: Mapping[str, tuple[str, ...]] = {
    "goods-producing": (
        "Agriculture, Forestry, Fishing and Hunting",
        "Mining, Quarrying, and Oil and Gas Extraction",
        "Construction",
        "Manufacturing",
    ),
    "trade, transportation and utilities": (
        "Utilities",
        "Wholesale Trade",
        "Retail Trade",
        "Transportation and Warehousing",
    ),
    "information": ("Information",),
    "financial activities": ("Finance and Insurance", "Real Estate and Rental and Leasing"),
    "professional and business services": (
        "Professional, Scientific, and Technical Services",
        "Management of Companies and Enterprises",
        "Administrative and Support and Waste Management and Remediation Services",
    ),
    "education and health services": (
        "Educational Services",
        "Health Care and Social Assistance",
    ),
    "leisure and hospitality": (
        "Arts, Entertainment, and Recreation",
        "Accommodation and Food Services",
    ),
    "other services": ("Other Services (except Public Administration)",),
    "public administration": ("Public Administration",),
}

SPENDING: Mapping[str, tuple[str, ...]] = {
    "everyday": (EATING_OUT, GROCERIES, SHOPPING),
    "on the way": (TRANSPORT, TRAVEL),
    "contracts": (BILLS, DIGITAL),
    "oneself": (HEALTH, LEISURE),
    "money": (MONEY,),
}

WATCHED = frozenset(
    {
        "Finance and Insurance",
        "Real Estate and Rental and Leasing",
        "Management of Companies and Enterprises",
        "Arts, Entertainment, and Recreation",
        MONEY,
    }
)


@dataclass(frozen=True, slots=True)
class Costs:
    """A cost matrix and the labels that name its rows (truth) and columns (answer).

    Attributes:
        labels: in the order of the request.
        matrix: ``[labels, labels]`` float64, read-only, zero on the diagonal.
    """

    labels: tuple[str, ...]
    matrix: NDArray[np.float64]

    def position(self) -> dict[str, int]:
        """Label → its row and column."""
        return {label: index for index, label in enumerate(self.labels)}


@lru_cache(maxsize=16)
def costs_of(labels: tuple[str, ...]) -> Costs:
    """The costs between ``labels``, in their order.

    Raises:
        NotFoundError: a label is neither a sector nor a spending category.
    """
    import numpy as np

    matrix = np.array([[cost(true, answer) for answer in labels] for true in labels])
    matrix.setflags(write=False)
    return Costs(labels, matrix)


def cost(true: str, answer: str) -> float:
    """The cost of predicting ``answer`` where ``true`` is right.

    Raises:
        NotFoundError: one of them is neither a sector nor a spending category.
    """
    families = (_family(true), _family(answer))
    if true == answer:
        return 0.0
    base = NEAR if families[0] == families[1] else FAR
    return base * MISSED if true in WATCHED and answer not in WATCHED else base


_FAMILIES = {
    label: family
    for families in (SECTORS, SPENDING)
    for family, members in families.items()
    for label in members
}


def _family(label: str) -> str:
    if label not in _FAMILIES:
        raise NotFoundError.named(
            "cost for the label",
            label,
            _FAMILIES,
            "finance/cost-sensitive and finance/expected_cost support the labels of the datasets "
            "finance/naics-sector and finance/transactions. For other labels use another loss "
            "and metric.",
        )
    return _FAMILIES[label]
