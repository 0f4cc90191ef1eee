"""The datasets of the domain: whether a solar cell is defective, and how probable that is."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from trunkline.contracts import DatasetSpec, Row
from trunkline_manufacturing.elpv import Cell, read_cells

DEFECTIVE, FUNCTIONAL = "defective", "functional"

LEAST_DEFECTIVE = 0.5
"""From this probability on, a cell counts as defective, as in Deitsch et al. 2019."""

TEST_SHARE = 0.25
"""Share of each stratum in the test part, as in Deitsch et al. 2019."""


def defect_rows(cells: Iterable[Cell]) -> list[Row]:
    """A row for each cell, in their order; the target is the label."""
    return _rows(cells, probability=False)


def probability_rows(cells: Iterable[Cell]) -> list[Row]:
    """A row for each cell, in their order; the target is the annotated probability."""
    return _rows(cells, probability=True)


def held_out(cells: Sequence[Cell]) -> frozenset[str]:
    """The ids of the test cells: :data:`TEST_SHARE` of each probability and type of module.

    They are drawn by a hash of the id, so they do not depend on the order of the cells.
    """
    strata: dict[tuple[float, str], list[str]] = defaultdict(list)
    for cell in cells:
        strata[cell.probability, cell.module].append(cell.id)
    return frozenset(
        id
        for ids in strata.values()
        for id in sorted(ids, key=_rank)[: round(TEST_SHARE * len(ids))]
    )


def label_of(cell: Cell) -> str:
    """``defective`` or ``functional``."""
    return DEFECTIVE if cell.probability >= LEAST_DEFECTIVE else FUNCTIONAL


def _rows(cells: Iterable[Cell], *, probability: bool) -> list[Row]:
    cells = tuple(cells)
    test = held_out(cells)
    return [
        Row(
            id=cell.id,
            image=cell.picture,
            target=cell.probability if probability else label_of(cell),
            group=cell.id,
            slices={
                "module": cell.module,
                "annotation": "certain" if cell.probability in (0, 1) else "uncertain",
            },
            split="test" if cell.id in test else "train",
        )
        for cell in cells
    ]


def _rank(id: str) -> bytes:
    return hashlib.sha256(id.encode()).digest()


def load_defect() -> list[Row]:
    """The rows of ``manufacturing/solar-defect``, always the same in the same order."""
    return defect_rows(read_cells())


def load_probability() -> list[Row]:
    """The rows of ``manufacturing/solar-probability``, always the same in the same order."""
    return probability_rows(read_cells())


_SOURCE = "ELPV (Buerhop-Lutz et al. 2018), through elpv-dataset 1.0.0.post1"
_LICENSE = "CC-BY-NC-SA-4.0"
_RESTRICTIONS = "Commercial use is not allowed."
_GROUPING = (
    "a cell: the wheel does not say which cells are of one module, so cells of a module may be in "
    "train and in test"
)
_SLICES = ("module", "annotation")

DATASETS: tuple[DatasetSpec, ...] = (
    DatasetSpec(
        name="manufacturing/solar-defect",
        description="electroluminescence pictures of solar cells, functional or defective",
        task="classification",
        load=load_defect,
        license=_LICENSE,
        source=_SOURCE,
        grouping=_GROUPING,
        slices=_SLICES,
        labels=(DEFECTIVE, FUNCTIONAL),
        validation_share=0.1,
        test_share=TEST_SHARE,
        modality="image",
        restrictions=_RESTRICTIONS,
    ),
    DatasetSpec(
        name="manufacturing/solar-probability",
        description="electroluminescence pictures of solar cells, and how probable a defect is",
        task="regression",
        load=load_probability,
        license=_LICENSE,
        source=_SOURCE,
        grouping=_GROUPING,
        unit="probability",
        slices=_SLICES,
        validation_share=0.1,
        test_share=TEST_SHARE,
        modality="image",
        restrictions=_RESTRICTIONS,
    ),
)
