"""Whether a version may go live. Owns the rules' reading; must not know aliases or the registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trunkline.configuration import GateSettings
from trunkline.contracts import Gate
from trunkline.evaluation.intervals import LEAST_GROUPS
from trunkline.evaluation.paired import Comparison
from trunkline.evaluation.report import EvaluationReport, SliceScore

LEAST_SLICE_ROWS = 20
"""A slice with fewer rows is named but does not decide: one row more or less would move its share
by more than five points."""

_SLICES_NAMED = 3


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One condition with its figures."""

    name: str
    passed: bool
    figures: str


def tightened(gate: Gate, demanded: GateSettings, *, higher_is_better: bool = True) -> Gate:
    """The recipe's gate with what the workspace demands on top; nothing becomes easier.

    Raises:
        UsageError: a number of the workspace's is none that a gate may have.
    """
    # A gate of the demands alone checks their numbers, those too that the recipe's would outdo.
    Gate(
        metric=gate.metric,
        champion_margin=demanded.champion_margin,
        slices_at_least=demanded.slices_at_least,
    )
    strictest = max if higher_is_better else min
    return replace(
        gate,
        beats_baseline=gate.beats_baseline or demanded.beats_baseline,
        beats_champion=gate.beats_champion or demanded.beats_champion,
        two_persons=gate.two_persons or demanded.two_persons,
        champion_margin=_both(min, gate.champion_margin, demanded.champion_margin),
        slices_at_least=_both(strictest, gate.slices_at_least, demanded.slices_at_least),
    )


def check_gate(gate: Gate, evaluation_report: EvaluationReport) -> tuple[GateCheck, ...]:
    """The conditions on a version by itself, each in words."""
    checks: list[GateCheck] = []
    if gate.beats_baseline:
        difference = evaluation_report.difference
        figures = (
            f"{evaluation_report.metric} minus that of {evaluation_report.best_baseline}: "
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        )
        figures += _too_few(evaluation_report.groups)
        checks.append(
            GateCheck("beats the baseline", evaluation_report.verdict == "beats", figures)
        )
    if gate.at_least is not None:
        score = evaluation_report.scores[gate.metric].value
        enough = _reaches(score, gate.at_least, evaluation_report)
        checks.append(
            GateCheck(
                f"{_bound(evaluation_report)} {gate.at_least:g}",
                enough,
                f"{evaluation_report.metric}: {score:.3f}",
            )
        )
    if gate.slices_at_least is not None:
        checks.append(_check_slices(gate.slices_at_least, evaluation_report))
    return tuple(checks)


def check_champion(
    gate: Gate, evaluation_report: EvaluationReport, champion: str, found: Comparison | str
) -> tuple[GateCheck, ...]:
    """The conditions on a version beside the present champion.

    Args:
        champion: its ref.
        found: both on the same test rows, or why they can't be compared, which fails.
    """
    names = _champion_conditions(gate)
    if isinstance(found, str):
        return tuple(GateCheck(name, False, f"{champion}: {found}") for name in names)
    difference = found.difference
    figures = (
        f"{evaluation_report.metric} minus that of {champion}: {difference.value:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}] on {found.rows:,} rows"
        f"{_too_few(found.groups)}"
    )
    worst = difference.low if evaluation_report.higher_is_better else -difference.high
    passed = {
        name: found.verdict == "beats"
        if margin is None
        else found.groups >= LEAST_GROUPS and worst >= -margin
        for name, margin in names.items()
    }
    return tuple(GateCheck(name, passed[name], figures) for name in names)


def no_champion(gate: Gate, why: str) -> tuple[GateCheck, ...]:
    """The same conditions, met because there is nothing to compare with."""
    return tuple(GateCheck(name, True, why) for name in _champion_conditions(gate))


def asks_champion(gate: Gate) -> bool:
    """Whether the gate looks at the present champion."""
    return bool(_champion_conditions(gate))


def _champion_conditions(gate: Gate) -> dict[str, float | None]:
    """Name of each condition → its margin."""
    names: dict[str, float | None] = {}
    if gate.beats_champion:
        names["beats the champion"] = None
    if gate.champion_margin is not None:
        margin = gate.champion_margin
        names[f"no worse than the champion by more than {margin:g}"] = margin
    return names


def _check_slices(bound: float, evaluation_report: EvaluationReport) -> GateCheck:
    name = f"every slice {_bound(evaluation_report)} {bound:g}"
    if not evaluation_report.slices:
        return GateCheck(name, True, "the dataset has no slices")
    deciding = [one for one in evaluation_report.slices if one.rows >= LEAST_SLICE_ROWS]
    small = [one for one in evaluation_report.slices if one.rows < LEAST_SLICE_ROWS]
    sign = 1 if evaluation_report.higher_is_better else -1
    failed = [one for one in deciding if not _reaches(one.score, bound, evaluation_report)]
    if deciding:
        worst = min(deciding, key=lambda one: sign * one.score)
        figures = f"worst of {len(deciding)}: {_slice(evaluation_report.metric, worst)}"
    else:
        figures = f"no slice has {LEAST_SLICE_ROWS} rows"
    if len(failed) > 1:
        figures += f"; {len(failed)} fail"
    if small:
        figures += f"; too small to decide: {_named(evaluation_report, small, sign)}"
    return GateCheck(name, not failed, figures)


def _named(evaluation_report: EvaluationReport, small: Sequence[SliceScore], sign: int) -> str:
    """The worst of the small slices, and how many more there are."""
    ordered = sorted(small, key=lambda one: sign * one.score)
    named = ", ".join(_slice(evaluation_report.metric, one) for one in ordered[:_SLICES_NAMED])
    rest = len(small) - _SLICES_NAMED
    return named if rest <= 0 else f"{named} and {rest} more"


def _slice(metric: str, one: SliceScore) -> str:
    rows = "1 row" if one.rows == 1 else f"{one.rows:,} rows"
    return f"{one.slice}={one.value} {metric} {one.score:.3f} on {rows}"


def _reaches(score: float, bound: float, evaluation_report: EvaluationReport) -> bool:
    return score >= bound if evaluation_report.higher_is_better else score <= bound


def _bound(evaluation_report: EvaluationReport) -> str:
    return "at least" if evaluation_report.higher_is_better else "at most"


def _too_few(groups: int) -> str:
    return f", {groups} groups where {LEAST_GROUPS} are needed" if groups < LEAST_GROUPS else ""


def _both(
    choose: Callable[[list[float]], float], one: float | None, other: float | None
) -> float | None:
    present = [value for value in (one, other) if value is not None]
    return choose(present) if present else None
