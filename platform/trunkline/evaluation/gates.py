"""Promotion gates: the conditions that a version must meet before it may be promoted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from trunkline.contracts import Gate
from trunkline.evaluation.intervals import MIN_GROUPS, PairedComparison
from trunkline.evaluation.report import EvaluationReport, SliceScore
from trunkline.workspace import GateSettings

MIN_SLICE_ROWS = 20
"""A smaller slice is reported but does not decide: a single row would change its share by more than
five points."""

_MAX_SLICES_NAMED = 3


@dataclass(frozen=True, slots=True)
class GateCheck:
    """The result of one condition, with the figures that decided it."""

    name: str
    passed: bool
    figures: str


def tighten(gate: Gate, settings: GateSettings, *, higher_is_better: bool = True) -> Gate:
    """The recipe's gate, made stricter by the workspace's settings; nothing becomes easier.

    Raises:
        UsageError: a number in the workspace's settings is out of range.
    """
    # This checks the workspace's numbers even if the recipe's own are stricter.
    Gate(
        metric=gate.metric,
        champion_margin=settings.champion_margin,
        slices_at_least=settings.slices_at_least,
    )
    strictest = max if higher_is_better else min
    return replace(
        gate,
        beats_baseline=gate.beats_baseline or settings.beats_baseline,
        beats_champion=gate.beats_champion or settings.beats_champion,
        two_persons=gate.two_persons or settings.two_persons,
        champion_margin=_both(min, gate.champion_margin, settings.champion_margin),
        slices_at_least=_both(strictest, gate.slices_at_least, settings.slices_at_least),
    )


def check_gate(gate: Gate, report: EvaluationReport) -> tuple[GateCheck, ...]:
    """Check the conditions that do not involve the current champion."""
    checks: list[GateCheck] = []
    if gate.beats_baseline:
        difference = report.difference
        figures = (
            f"{report.metric} minus that of {report.best_baseline}: "
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        )
        figures += _too_few(report.groups)
        checks.append(GateCheck("beats the baseline", report.verdict == "beats", figures))
    if gate.at_least is not None:
        score = report.scores[gate.metric].value
        enough = _reaches(score, gate.at_least, report)
        checks.append(
            GateCheck(
                f"{_bound(report)} {gate.at_least:g}",
                enough,
                f"{report.metric}: {score:.3f}",
            )
        )
    if gate.slices_at_least is not None:
        checks.append(_check_slices(gate.slices_at_least, report))
    return tuple(checks)


def check_champion(
    gate: Gate, report: EvaluationReport, champion: str, comparison: PairedComparison | str
) -> tuple[GateCheck, ...]:
    """Check the conditions that compare a version with the current champion.

    Args:
        gate: the conditions.
        report: of the version.
        champion: ref of the champion.
        comparison: of both on the same test rows, or why they can't be compared, which fails.
    """
    names = _champion_conditions(gate)
    if isinstance(comparison, str):
        return tuple(GateCheck(name, False, f"{champion}: {comparison}") for name in names)
    difference = comparison.difference
    figures = (
        f"{report.metric} minus that of {champion}: {difference.value:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}] on {comparison.rows:,} rows"
        f"{_too_few(comparison.groups)}"
    )
    worst = difference.low if report.higher_is_better else -difference.high
    passed = {
        name: comparison.verdict == "beats"
        if margin is None
        else comparison.groups >= MIN_GROUPS and worst >= -margin
        for name, margin in names.items()
    }
    return tuple(GateCheck(name, passed[name], figures) for name in names)


def pass_without_champion(gate: Gate, reason: str) -> tuple[GateCheck, ...]:
    """The champion's conditions, met because there is nothing to compare with."""
    return tuple(GateCheck(name, True, reason) for name in _champion_conditions(gate))


def needs_champion(gate: Gate) -> bool:
    """Whether the gate compares with the current champion."""
    return bool(_champion_conditions(gate))


def _champion_conditions(gate: Gate) -> dict[str, float | None]:
    """Name of each condition → how much worse the version may be; None: it must be better."""
    names: dict[str, float | None] = {}
    if gate.beats_champion:
        names["beats the champion"] = None
    if gate.champion_margin is not None:
        margin = gate.champion_margin
        names[f"no worse than the champion by more than {margin:g}"] = margin
    return names


def _check_slices(bound: float, report: EvaluationReport) -> GateCheck:
    name = f"every slice {_bound(report)} {bound:g}"
    if not report.slices:
        return GateCheck(name, True, "the dataset has no slices")
    deciding = [one for one in report.slices if one.rows >= MIN_SLICE_ROWS]
    small = [one for one in report.slices if one.rows < MIN_SLICE_ROWS]
    sign = 1 if report.higher_is_better else -1
    failed = [one for one in deciding if not _reaches(one.score, bound, report)]
    if deciding:
        worst = min(deciding, key=lambda one: sign * one.score)
        figures = f"worst of {len(deciding)}: {_slice(report.metric, worst)}"
    else:
        figures = f"no slice has {MIN_SLICE_ROWS} rows"
    if len(failed) > 1:
        figures += f"; {len(failed)} fail"
    if small:
        figures += f"; too small to decide: {_named(report, small, sign)}"
    return GateCheck(name, not failed, figures)


def _named(report: EvaluationReport, small: Sequence[SliceScore], sign: int) -> str:
    """The worst of the small slices, and how many others there are."""
    ordered = sorted(small, key=lambda one: sign * one.score)
    named = ", ".join(_slice(report.metric, one) for one in ordered[:_MAX_SLICES_NAMED])
    rest = len(small) - _MAX_SLICES_NAMED
    return named if rest <= 0 else f"{named} and {rest} more"


def _slice(metric: str, one: SliceScore) -> str:
    rows = "on 1 row" if one.rows == 1 else f"on {one.rows:,} rows"
    return f"{one.slice}={one.value} {metric} {one.score:.3f} {rows}"


def _reaches(score: float, bound: float, report: EvaluationReport) -> bool:
    return score >= bound if report.higher_is_better else score <= bound


def _bound(report: EvaluationReport) -> str:
    return "at least" if report.higher_is_better else "at most"


def _too_few(groups: int) -> str:
    return f"; {groups} groups where {MIN_GROUPS} are needed" if groups < MIN_GROUPS else ""


def _both(
    choose: Callable[[list[float]], float], one: float | None, other: float | None
) -> float | None:
    present = [value for value in (one, other) if value is not None]
    return choose(present) if present else None
