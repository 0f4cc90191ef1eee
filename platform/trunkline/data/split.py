"""Split rows into train, validation and test without dividing a group.

A dataset may bring its own split. Otherwise groups are ordered by a hash of the seed and the
group's name, so a split does not depend on the order of the rows and changes little when rows are
added.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trunkline.contracts import Row, Task
from trunkline.errors import DataError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Split:
    """Rows in three parts; the fingerprint identifies which row is in which part."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    test: tuple[Row, ...]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.train) + len(self.validation) + len(self.test)


@dataclass(frozen=True, slots=True)
class Fold:
    """The ``index``-th of ``count`` folds, from 0; its groups are the test part.

    Over all folds each group is tested exactly once, except for groups that must stay in train
    because they are the only ones of a stratum.
    """

    index: int
    count: int


def split_rows(
    rows: Sequence[Row],
    task: Task,
    *,
    seed: int,
    validation_share: float,
    test_share: float,
    fold: Fold | None = None,
) -> Split:
    """Split ``rows`` by group, or as their ``split`` says.

    Every stratum (the row's own, else the label of a classification) keeps at least one group in
    train.

    Args:
        rows: to split.
        task: kind of the task; decides the default stratum.
        seed: orders the groups.
        validation_share, test_share: of the groups.
        fold: the test part is this fold's groups, and ``test_share`` is not used. Of a given split
            the test rows are left out.

    Raises:
        DataError: there are fewer than three groups, more folds than groups, a part would be
            empty, or the given split is incomplete or divides a group.
    """
    given = _given_parts(rows, task)
    if given and fold is not None:
        rows = [row for row in rows if row.split != "test"]
        given = {}
    by_group: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row.group].append(row)
    order = sorted(by_group, key=lambda group: _rank(seed, group))
    if len(order) < 3:
        raise DataError(
            f"The rows have {len(order)} group(s); three are needed to train, validate and test.",
            "Give every independent row a group of its own.",
        )
    if fold is not None and fold.count > len(order):
        raise DataError(
            f"{fold.count} folds can't be made of {len(order)} groups.",
            f"Use {len(order)} folds or fewer.",
        )
    if given:
        held_out = {group for group in order if given[group] != "train"}
    elif fold is None:
        held_out = set(order[: max(1, round(test_share * len(order)))])
    else:
        held_out = set(order[fold.index :: fold.count])
    part = dict.fromkeys(order, "train") | dict.fromkeys(held_out, "test") | given
    if "validation" not in given.values():
        rest = [group for group in order if group not in held_out]
        # A share of all groups, from the far end so that it does not depend on the test share.
        count = round(validation_share * len(rest if given else order))
        validation = rest[::-1][: max(1, count)]
        part |= dict.fromkeys(validation, "validation")
        _keep_strata_in_train(by_group, part, order, task, keep=given)

    parts: dict[str, list[Row]] = {name: [] for name in PARTS}
    for row in rows:
        parts[part[row.group]].append(row)
    for name in PARTS:
        if not parts[name]:
            raise DataError(
                f"The {name} part has no rows left ({len(rows)} rows in {len(order)} groups).",
                "More rows or groups are needed, or another share for this part.",
            )
    return Split(
        tuple(parts["train"]),
        tuple(parts["validation"]),
        tuple(parts["test"]),
        split_fingerprint(parts),
    )


def stratum_of(row: Row, task: Task) -> str | None:
    """The stratum that train must represent: the row's own, else the label of a classification."""
    if row.stratum is not None:
        return row.stratum
    return str(row.target) if task == "classification" else None


def split_fingerprint(parts: dict[str, list[Row]]) -> str:
    """sha256 over ``part, id`` of every row, sorted: equal for equal splits in any row order."""
    digest = hashlib.sha256()
    for name in PARTS:
        for row_id in sorted(row.id for row in parts[name]):
            digest.update(f"{name}\0{row_id}\n".encode())
    return digest.hexdigest()


def _rank(seed: int, group: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{group}".encode()).digest()


def _given_parts(rows: Sequence[Row], task: Task) -> dict[str, str]:
    """The part of each group in the split that the rows bring; empty if they bring none."""
    if all(row.split is None for row in rows):
        return {}
    parts: dict[str, str] = {}
    divided: dict[str, str] = {}
    for row in rows:
        if row.split not in PARTS:
            raise DataError(
                f"Row {row.id!r} has the split {row.split!r}.",
                f"Give every row one of {', '.join(PARTS)}, or no row a split.",
            )
        if parts.setdefault(row.group, row.split) != row.split:
            divided[row.group] = f"{parts[row.group]} and {row.split}"
    if divided:
        group, where = next(iter(divided.items()))
        raise DataError(
            f"The given split divides {len(divided)} of {len(parts)} groups: {group!r} lies in "
            f"{where}.",
            "Rows of one group must lie in one part; give independent rows groups of their own.",
        )
    for name in ("train", "test"):
        if name not in parts.values():
            raise DataError(
                f"The given split has no {name} rows.",
                "Give rows of train and of test, such as a renamed validation, or no split.",
            )
    if task == "classification":
        trained = {row.target for row in rows if row.split == "train"}
        missing = sorted({str(row.target) for row in rows if row.target not in trained})
        if missing:
            raise DataError(
                f"The given split has no train row of {len(missing)} label(s), such as "
                f"{missing[0]!r}.",
                "A label must be learned to be tested; leave out its rows, or move some to train.",
            )
    return parts


def _keep_strata_in_train(
    by_group: dict[str, list[Row]],
    part: dict[str, str],
    order: list[str],
    task: Task,
    keep: Mapping[str, str],
) -> None:
    """Move groups to train until it has every stratum; the test groups in ``keep`` stay."""
    strata = {
        group: {stratum for row in rows if (stratum := stratum_of(row, task)) is not None}
        for group, rows in by_group.items()
    }
    present = {s for group in order if part[group] == "train" for s in strata[group]}
    for name in ("validation", "test"):
        for group in order:
            fixed = keep.get(group) == "test"
            if part[group] == name and strata[group] - present and not fixed:
                part[group] = "train"
                present |= strata[group]


def evenly(rows: Sequence[Row], most: int) -> list[Row]:
    """At most so many rows, evenly over all of them."""
    count = min(most, len(rows))
    return [rows[index * len(rows) // count] for index in range(count)]
