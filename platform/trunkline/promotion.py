"""Promote versions, roll aliases back and drop them: check the gate, then move the alias.

The recipe's gate, tightened by the workspace, decides; a forced promotion needs a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from trunkline.adapters.artifact import Artifact
from trunkline.adapters.store import AdapterStore
from trunkline.contracts import Gate, MetricSpec
from trunkline.errors import DataError, NotFoundError, PluginError, RefusedError, UsageError
from trunkline.evaluation.gates import (
    GateCheck,
    check_champion,
    check_gate,
    needs_champion,
    pass_without_champion,
    tighten,
)
from trunkline.evaluation.intervals import PairedComparison, compare_predictions
from trunkline.evaluation.report import EvaluationReport
from trunkline.refs import Ref, check_alias
from trunkline.registry.actors import Actor, system_actor
from trunkline.registry.aliases import ANY, Expected, base_name_error
from trunkline.registry.free_text import stored_reason
from trunkline.registry.lookup import CHAMPION
from trunkline.registry.provenance import IMPORTED
from trunkline.registry.records import AliasMoveRecord, EvaluationRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.workspace import GateSettings

FindMetric = Callable[[str], MetricSpec]

TWO_PERSONS = "two persons"
EVALUATED = "has been evaluated"
EVALUATED_HERE = "was evaluated here"


@dataclass(frozen=True, slots=True)
class Promotion:
    """A moved alias; ``head`` is the head of the event chain afterwards, ``SEQ:DIGEST``."""

    version: VersionRecord
    alias: str
    old: int | None
    new: int
    checks: tuple[GateCheck, ...]
    forced: bool
    head: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What decides on a promotion: the gate's checks, and the alias's newest move until now."""

    version: VersionRecord
    alias: str
    move: AliasMoveRecord | None
    checks: tuple[GateCheck, ...]

    @property
    def passed(self) -> bool:
        """Whether the gate allows the promotion."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An alias that was rolled back or dropped; ``head`` as in :class:`Promotion`."""

    move: AliasMoveRecord
    head: str


class GateRefusedError(RefusedError):
    """The gate refused a promotion; ``checks`` are all of its conditions."""

    def __init__(self, message: str, hint: str | None, checks: Sequence[GateCheck]) -> None:
        super().__init__(message, hint)
        self.checks = tuple(checks)


def evaluation_report_of(
    registry: Registry, version: VersionRecord
) -> tuple[EvaluationReport, Gate] | None:
    """The newest evaluation of a version on its test rows, with the gate it was made under."""
    for record in evaluations_on_test(registry, version.ref):
        if (parsed := parse_results(record)) is not None:
            return parsed
    return None


def parse_results(evaluation: EvaluationRecord) -> tuple[EvaluationReport, Gate] | None:
    """The report of an evaluation and its gate; None if it was imported and can't be read."""
    results = dict(evaluation.results)
    imported = results.pop(IMPORTED, False)
    try:
        gate = Gate(**results.pop("gate"))
        return EvaluationReport.from_json(results), gate
    except (KeyError, TypeError, UsageError):
        if not imported:
            raise
    return None


def promote(
    store: AdapterStore,
    ref: Ref,
    alias: str,
    *,
    metric: FindMetric,
    demanded: GateSettings,
    force: bool = False,
    reason: str = "",
    actor: str | None = None,
    expected: Expected = ANY,
) -> Promotion:
    """Move an alias to a version, if its recipe's gate and the workspace's settings allow it.

    Args:
        store: of the workspace.
        ref: without a selector, the newest version.
        metric: finds a metric by its name, for the comparison with the champion.
        demanded: the workspace's settings, on top of the recipe's gate.
        force: move it even if the gate refuses; needs a ``reason``, which is stored.
        actor: who does it, see :mod:`trunkline.registry.actors`; by default the system's user.
        expected: the alias's newest move as the caller read it, see :meth:`Aliases.move`.

    Raises:
        GateRefusedError: the gate refuses, and ``force`` is False.
        RefusedError: the alias was moved meanwhile.
        UsageError: the alias is reserved, or a forced promotion has no reason.
        IntegrityError: the artifact is damaged or missing, which ``force`` does not override.
    """
    registry = store.registry
    _check_alias(alias)
    reason = stored_reason(reason)
    if force and not reason:
        raise UsageError("A forced promotion needs a reason.", 'Add --reason "…".')
    evidence = check(store, ref, alias, metric=metric, demanded=demanded, actor=actor)
    version, newest, checks = evidence.version, evidence.move, evidence.checks
    failed = [check for check in checks if not check.passed]
    if failed and not force:
        raise GateRefusedError(
            f"The gate refuses {version.ref}: "
            + "; ".join(f"{check.name}: no ({check.figures})" for check in failed)
            + ".",
            _advice(version, alias, failed),
            checks,
        )
    read: Expected = None if newest is None else newest.id
    registry.aliases.move(
        version.ref,
        alias,
        expected=read if expected is ANY else expected,
        actor=actor,
        forced=bool(failed),
        reason=reason or None,
        gate=[asdict(check) for check in checks],
    )
    old = None if newest is None else newest.new
    return Promotion(version, alias, old, version.number, checks, bool(failed), _head(registry))


def check(
    store: AdapterStore,
    ref: Ref,
    alias: str,
    *,
    metric: FindMetric,
    demanded: GateSettings,
    actor: str | None = None,
) -> Evidence:
    """Check every condition of the gate, and move nothing; arguments as of :func:`promote`.

    Raises:
        UsageError: the alias is reserved.
        IntegrityError: the artifact is damaged or missing.
    """
    registry = store.registry
    _check_alias(alias)
    if ref.selector is None:
        ref = ref.at(registry.adapters.get(ref.domain, ref.name).newest)
    version = registry.versions.resolve(ref)[0]
    newest = _newest_move(registry, version, alias)
    artifact = store.fetch(version)
    checks = _run_checks(registry, version, artifact, metric, demanded, actor or system_actor())
    return Evidence(version, alias, newest, checks)


def rollback(
    store: AdapterStore,
    ref: Ref,
    alias: str = CHAMPION,
    *,
    reason: str = "",
    actor: str | None = None,
    expected: Expected = ANY,
) -> AliasChange:
    """Move an alias back to its previous version, one step further each time, without a gate.

    Args:
        store: of the workspace.
        ref: of the adapter, without a selector.
        actor, expected: as of :func:`promote`.

    Raises:
        NotFoundError: there is no such adapter, or it never had the alias.
        RefusedError: no earlier version still exists, or the alias was moved meanwhile.
        IntegrityError: the previous version's artifact is damaged or missing.
    """
    registry = store.registry
    _check_bare(ref)
    reason = stored_reason(reason)
    newest, earlier = registry.aliases.previous(ref.domain, ref.name, alias)
    store.fetch(earlier)
    move = registry.aliases.rollback(
        ref,
        alias,
        expected=newest.id if expected is ANY else expected,
        actor=actor,
        reason=reason or None,
    )
    return AliasChange(move, _head(registry))


def unalias(
    registry: Registry, ref: Ref, alias: str, *, reason: str = "", actor: str | None = None
) -> AliasChange:
    """Drop an alias.

    Without a champion the newest version is served, which passed no gate. So dropping that alias
    needs a reason, and counts as forced.

    Raises:
        UsageError: the alias is champion and there is no reason.
        NotFoundError: the adapter has no such alias.
    """
    _check_bare(ref)
    reason = stored_reason(reason)
    forced = alias == CHAMPION and CHAMPION in registry.adapters.get(ref.domain, ref.name).aliases
    if forced and not reason:
        raise UsageError(
            f"Dropping the champion of {ref} needs a reason: its newest version, which passed no "
            "gate, would be served instead.",
            'Add --reason "…", or return to the previous version with '
            f"`trunkline adapters rollback {ref}`.",
        )
    move = registry.aliases.drop(ref, alias, actor=actor, forced=forced, reason=reason or None)
    return AliasChange(move, _head(registry))


# ----------------------------------------------------------------------------------------- gate


def _run_checks(
    registry: Registry,
    version: VersionRecord,
    artifact: Artifact,
    metric: FindMetric,
    demanded: GateSettings,
    actor: str,
) -> tuple[GateCheck, ...]:
    """Every condition of the gate with its result."""
    evaluated = evaluation_report_of(registry, version)
    if evaluated is None:
        checks: list[GateCheck] = [GateCheck(EVALUATED, False, "no evaluation on its test rows")]
        two_persons = demanded.two_persons
    else:
        evaluation_report, recipes = evaluated
        better = evaluation_report.higher_is_better
        gate = tighten(recipes, demanded, higher_is_better=better)
        checks = [*_check_evaluated_here(registry, version), *check_gate(gate, evaluation_report)]
        if needs_champion(gate):
            labels = tuple(artifact.manifest.task.get("labels", ()))
            checks += _compare_with_champion(
                registry, version, gate, evaluation_report, labels, metric
            )
        two_persons = gate.two_persons
    if two_persons:
        checks.append(check_persons(Actor.parse(actor), registry.versions.contributors(version)))
    return tuple(checks)


def check_persons(promoter: Actor, contributors: Sequence[str]) -> GateCheck:
    """Whether an authenticated person promotes what another person trained or imported."""
    names = ", ".join(contributors) or "nobody on record"
    figures = f"promoted by {promoter.text}; trained or imported by {names}"
    if not promoter.authenticated:
        return GateCheck(TWO_PERSONS, False, f"{figures}; the promoter is not authenticated")
    if any(promoter.is_same_person(Actor.parse(name)) for name in contributors):
        return GateCheck(TWO_PERSONS, False, f"{figures}; that is the same person")
    return GateCheck(TWO_PERSONS, bool(contributors), figures)


def no_dataset_error(version: VersionRecord, alias: str = CHAMPION) -> DataError:
    """The error for evaluating a version that was imported without a dataset."""
    return DataError(
        f"{version.ref} can't be evaluated: it came without a dataset, so there are no rows "
        "to evaluate it on.",
        f'`{_command(version, alias)} --force --reason "…"` promotes it without an evaluation.',
    )


def _advice(version: VersionRecord, alias: str, failed: Sequence[GateCheck]) -> str:
    if all(check.name == TWO_PERSONS for check in failed):
        return (
            "Another person can, with an administrator key of their own: "
            f"TRUNKLINE_API_KEY=… {_command(version, alias)} --url URL."
        )
    if any(check.name in (EVALUATED_HERE, EVALUATED) for check in failed):
        if version.dataset is None:
            why = no_dataset_error(version, alias)
            return f"{why.message} {why.hint}"
        return f"Evaluate it here with `trunkline eval {version.ref}`, where its plugin is."
    return f'Train a better one, or `{_command(version, alias)} --force --reason "…"`.'


def _command(version: VersionRecord, alias: str) -> str:
    """The command that moves this alias to this version."""
    which = "" if alias == CHAMPION else f" --alias {alias}"
    return f"trunkline adapters promote {version.ref}{which}"


def _compare_with_champion(
    registry: Registry,
    version: VersionRecord,
    gate: Gate,
    evaluation_report: EvaluationReport,
    labels: tuple[str, ...],
    metric: FindMetric,
) -> tuple[GateCheck, ...]:
    move = _newest_move(registry, version, CHAMPION)
    if move is None or move.new is None:
        return pass_without_champion(gate, "there is no champion")
    if move.new == version.number:
        return pass_without_champion(gate, f"{version.ref} is the champion")
    champion = version.ref.at(move.new)
    try:
        comparison: PairedComparison | str = _compare_rows(
            registry, version.ref, champion, lambda: metric(gate.metric), labels
        )
    except (DataError, NotFoundError, PluginError) as error:
        comparison = error.message
    return check_champion(gate, evaluation_report, str(champion), comparison)


def _compare_rows(
    registry: Registry,
    ref: Ref,
    champion: Ref,
    metric: Callable[[], MetricSpec],
    labels: tuple[str, ...],
) -> PairedComparison:
    """Compare both versions on the same test rows.

    Raises:
        DataError: they were not evaluated on the same rows.
        NotFoundError, PluginError: the metric is missing, or fails.
    """
    ours = next(evaluations_on_test(registry, ref))
    evaluated = list(evaluations_on_test(registry, champion))
    if not evaluated:
        raise DataError("it was never evaluated on test rows")
    theirs = next((one for one in evaluated if _rows_of(one) == _rows_of(ours)), None)
    if theirs is None:
        raise DataError(
            f"the rows differ: its split is {evaluated[0].split_fingerprint[:12]}, "
            f"not {ours.split_fingerprint[:12]}"
        )
    return compare_predictions(
        metric(),
        registry.evaluations.predictions(ours.id),
        registry.evaluations.predictions(theirs.id),
        labels,
    )


def _rows_of(evaluation: EvaluationRecord) -> tuple[str, str, str]:
    return evaluation.dataset, evaluation.dataset_fingerprint, evaluation.split_fingerprint


def _check_evaluated_here(registry: Registry, version: VersionRecord) -> list[GateCheck]:
    """Refuse scores that were imported with the files: neither digest nor signature covers them."""
    if not next(evaluations_on_test(registry, version.ref)).results.get(IMPORTED):
        return []
    why = f"its scores were imported; evaluate it with `trunkline eval {version.ref}`"
    return [GateCheck(EVALUATED_HERE, False, why)]


def evaluations_on_test(registry: Registry, ref: Ref) -> Iterator[EvaluationRecord]:
    """Evaluations of a version on its test rows, newest first."""
    return (one for one in registry.evaluations.list(version=ref) if one.split == "test")


# -------------------------------------------------------------------------------------- aliases


def _check_alias(alias: str) -> None:
    """Refuse a malformed alias, or the name of a base, even one that is not recorded."""
    from trunkline.bases.sources import known_bases

    check_alias(alias)
    if alias in {base.name for base in known_bases()}:
        raise base_name_error(alias)


def _check_bare(ref: Ref) -> None:
    if ref.selector is not None:
        raise UsageError(
            f"'{ref}' names a version, but an alias belongs to the adapter.",
            f"Write {ref.adapter}.",
        )


def _newest_move(registry: Registry, version: VersionRecord, alias: str) -> AliasMoveRecord | None:
    moves = registry.aliases.moves(version.domain, version.name, alias, limit=1)
    return moves[0] if moves else None


def _head(registry: Registry) -> str:
    return str(registry.events.heads()["events"])
