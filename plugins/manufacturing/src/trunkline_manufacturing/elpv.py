"""Read the solar cells of the wheel ``elpv-dataset``: pictures, and how probable a defect is.

Only the wheel's files are read. Its package is located and never imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from trunkline.errors import DataError

PACKAGE = "elpv_dataset"
DISTRIBUTION = "elpv-dataset==1.0.0.post1"
LABELS = "labels.csv"
MODULES = ("mono", "poly")
_REINSTALL = f"Reinstall it: pip install --force-reinstall --no-deps {DISTRIBUTION}."


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One solar cell.

    Attributes:
        id: the name of its file without the suffix, ``cell0001``.
        picture: a PNG of 300 × 300 pixels, 8-bit gray.
        probability: of a defect, as people annotated it: 0, 1/3, 2/3 or 1.
        module: ``mono`` or ``poly``, for mono- or polycrystalline.
    """

    id: str
    picture: Path
    probability: float
    module: str


def read_cells() -> tuple[Cell, ...]:
    """All 2,624 cells, in the order of the wheel's table.

    Raises:
        DataError: the wheel is not installed, or its table is missing or damaged.
    """
    folder = data_folder()
    table = folder / LABELS
    try:
        lines = table.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"The file {table} can't be read.", _REINSTALL) from error
    cells = []
    for number, line in enumerate(lines, start=1):
        try:
            path, probability, module = line.split()
            cell = Cell(
                id=Path(path).stem,
                picture=folder / path,
                probability=float(probability),
                module=module,
            )
        except ValueError:
            cell = None
        if cell is None or cell.module not in MODULES or not 0 <= cell.probability <= 1:
            raise DataError(
                f"Line {number} of {table} is not a path, a probability and a type.", _REINSTALL
            )
        cells.append(cell)
    return tuple(cells)


def data_folder() -> Path:
    """Locate the wheel's files without importing its package.

    Raises:
        DataError: the wheel is not installed.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"The solar cells can't be read: the package {PACKAGE!r} is not installed.",
            f"Run: pip install {DISTRIBUTION}.",
        )
    return Path(spec.submodule_search_locations[0]) / "data"
