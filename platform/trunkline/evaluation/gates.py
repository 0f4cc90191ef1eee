"""Whether a version may go live. Owns the rule's reading; must not know aliases or the registry."""

from __future__ import annotations

from dataclasses import dataclass

from trunkline.contracts import Gate
from trunkline.evaluation.intervals import LEAST_GROUPS
from trunkline.evaluation.judgement import Judgement


@dataclass(frozen=True, slots=True)
class GateCheck:
    """One condition with its figures."""

    name: str
    passed: bool
    figures: str


def check_gate(gate: Gate, judgement: Judgement) -> tuple[GateCheck, ...]:
    """Every condition of the gate, in words; the gate is met if all passed."""
    checks: list[GateCheck] = []
    if gate.beats_floor:
        difference = judgement.difference
        figures = (
            f"{judgement.metric} minus that of {judgement.best_floor}: "
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
        )
        if judgement.groups < LEAST_GROUPS:
            figures += f", {judgement.groups} groups where {LEAST_GROUPS} are needed"
        checks.append(GateCheck("beats the floor", judgement.verdict == "beats", figures))
    if gate.at_least is not None:
        score = judgement.scores[gate.metric].value
        enough = score >= gate.at_least if judgement.higher_is_better else score <= gate.at_least
        bound = "at least" if judgement.higher_is_better else "at most"
        checks.append(
            GateCheck(f"{bound} {gate.at_least:g}", enough, f"{judgement.metric}: {score:.3f}")
        )
    return tuple(checks)
