"""Letting a version go live: the gate is asked, the alias moves, the history keeps why.

Owns: the order of these, and what a forced promotion needs. Must not know: how anything is judged,
terminals, HTTP.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from trunkline.adapters.store import AdapterStore
from trunkline.contracts import Gate
from trunkline.errors import RefusedError, UsageError
from trunkline.evaluation.gates import GateCheck, check_gate
from trunkline.evaluation.judgement import Judgement
from trunkline.refs import Ref
from trunkline.registry.records import VersionRecord
from trunkline.registry.store import Registry


@dataclass(frozen=True, slots=True)
class Promotion:
    """An alias that moved."""

    version: VersionRecord
    alias: str
    old: int | None
    new: int
    checks: tuple[GateCheck, ...]
    forced: bool


def judgement_of(registry: Registry, version: VersionRecord) -> tuple[Judgement, Gate] | None:
    """The newest judgement of a version on its test rows, with the gate it was made under."""
    for record in registry.evaluations(version=version.ref):
        if record.split == "test":
            results = dict(record.results)
            gate = Gate(**results.pop("gate"))
            return Judgement.from_json(results), gate
    return None


def promote(
    store: AdapterStore,
    ref: Ref,
    alias: str,
    *,
    force: bool = False,
    reason: str = "",
    actor: str | None = None,
) -> Promotion:
    """Move an alias to a version, if the gate of its recipe allows it.

    Args:
        store: of the workspace.
        ref: without a selector, the newest version is meant.
        alias: to move.
        force: move it though the gate says no; ``reason`` is then needed, and kept.
        actor: who does it; by default the system's user.

    Raises:
        RefusedError: the gate says no, and ``force`` was not given.
        IntegrityError: the artifact is damaged or missing; no force helps.
    """
    registry = store.registry
    if ref.selector is None:
        ref = ref.at(registry.adapter(ref.domain, ref.name).newest)
    version = registry.resolve(ref)[0]
    store.fetch(version)
    judged = judgement_of(registry, version)
    if judged is None:
        checks: tuple[GateCheck, ...] = (
            GateCheck("has been judged", False, "no evaluation on its test rows"),
        )
    else:
        checks = check_gate(judged[1], judged[0])
    failed = [check for check in checks if not check.passed]
    if failed and not force:
        raise RefusedError(
            f"The gate refuses {version.ref}: "
            + "; ".join(f"{check.name}: no ({check.figures})" for check in failed)
            + ".",
            f"Train a better one, or `trunkline adapters promote {version.ref} --force "
            '--reason "…"`.',
        )
    if force and not reason.strip():
        raise UsageError("A forced promotion needs a reason.", 'Add --reason "…".')
    detail = {
        "gate": [asdict(check) for check in checks],
        "forced": bool(failed),
        "reason": reason or None,
    }
    old, new = registry.set_alias(version.ref, alias, actor=actor, detail=detail)
    return Promotion(version, alias, old, new, checks, bool(failed))
