"""Letting a version go live, and taking that back: the gate is asked, the alias moves, the history
keeps why.

Owns: the order of these, who counts as a second person, and what a forced promotion needs. Must
not know: how anything is evaluated, terminals, HTTP.
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
    asks_champion,
    check_champion,
    check_gate,
    no_champion,
    tightened,
)
from trunkline.evaluation.paired import Comparison, compare
from trunkline.evaluation.report import EvaluationReport
from trunkline.refs import Ref, check_alias
from trunkline.registry.actors import Actor
from trunkline.registry.alias_moves import reserved_for_base
from trunkline.registry.lookup import CHAMPION
from trunkline.registry.records import AliasMoveRecord, EvaluationRecord, VersionRecord
from trunkline.registry.registry import Registry
from trunkline.registry.restoring import TOLD
from trunkline.registry.session import system_actor
from trunkline.registry.tags import check_reason
from trunkline.workspace import GateSettings

MetricNamed = Callable[[str], MetricSpec]

TWO_PERSONS = "two persons"


EVALUATED = "has been evaluated"
EVALUATED_HERE = "was evaluated here"


@dataclass(frozen=True, slots=True)
class Promotion:
    """An alias that moved; ``head`` is where the events' chain then ended, ``SEQ:DIGEST``."""

    version: VersionRecord
    alias: str
    old: int | None
    new: int
    checks: tuple[GateCheck, ...]
    forced: bool
    head: str


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An alias that was rolled back or dropped; ``head`` as of :class:`Promotion`."""

    move: AliasMoveRecord
    head: str


class GateRefusedError(RefusedError):
    """The gate says no; ``checks`` are all of its conditions."""

    def __init__(self, message: str, hint: str | None, checks: Sequence[GateCheck]) -> None:
        super().__init__(message, hint)
        self.checks = tuple(checks)


def evaluation_report_of(
    registry: Registry, version: VersionRecord
) -> tuple[EvaluationReport, Gate] | None:
    """The newest evaluation of a version on its test rows, with the gate it was made under."""
    for record in _evaluated_on_test(registry, version.ref):
        results = dict(record.results)
        told = results.pop(TOLD, False)
        try:
            gate = Gate(**results.pop("gate"))
            return EvaluationReport.from_json(results), gate
        except (KeyError, TypeError, UsageError):
            if not told:
                raise
    return None


def promote(
    store: AdapterStore,
    ref: Ref,
    alias: str,
    *,
    metric: MetricNamed,
    demanded: GateSettings,
    force: bool = False,
    reason: str = "",
    actor: str | None = None,
) -> Promotion:
    """Move an alias to a version, if its recipe's gate and the workspace's demands allow it.

    Args:
        store: of the workspace.
        ref: without a selector, the newest version is meant.
        alias: to move.
        metric: finds a metric by its name, for the comparison with the champion.
        demanded: by the workspace, on top of the recipe's gate.
        force: move it though the gate says no; ``reason`` is then needed, and kept.
        actor: who does it, see :mod:`trunkline.registry.actors`; by default the system's user.

    Raises:
        GateRefusedError: the gate says no, and ``force`` was not given.
        RefusedError: the alias moved while this was being decided.
        UsageError: the alias is reserved, or a forced promotion has no reason.
        IntegrityError: the artifact is damaged or missing; no force helps.
    """
    registry = store.registry
    _check_free(alias)
    reason = check_reason(reason)
    if force and not reason:
        raise UsageError("A forced promotion needs a reason.", 'Add --reason "…".')
    if ref.selector is None:
        ref = ref.at(registry.adapters.get(ref.domain, ref.name).newest)
    version = registry.versions.resolve(ref)[0]
    standing = _newest_move(registry, version, alias)
    artifact = store.fetch(version)
    checks = _asked(registry, version, artifact, metric, demanded, actor or system_actor())
    failed = [check for check in checks if not check.passed]
    if failed and not force:
        raise GateRefusedError(
            f"The gate refuses {version.ref}: "
            + "; ".join(f"{check.name}: no ({check.figures})" for check in failed)
            + ".",
            _advice(version, alias, failed),
            checks,
        )
    registry.aliases.move(
        version.ref,
        alias,
        expected=None if standing is None else standing.id,
        actor=actor,
        forced=bool(failed),
        reason=reason or None,
        gate=[asdict(check) for check in checks],
    )
    old = None if standing is None else standing.new
    return Promotion(version, alias, old, version.number, checks, bool(failed), _head(registry))


def rollback(
    store: AdapterStore,
    ref: Ref,
    alias: str = CHAMPION,
    *,
    reason: str = "",
    actor: str | None = None,
) -> AliasChange:
    """Let an alias go back to its previous version, one step further each time; no gate is asked.

    Args:
        store: of the workspace.
        ref: of the adapter, without a selector.
        actor: as of :func:`promote`.

    Raises:
        NotFoundError: there is no such adapter, or it never had the alias.
        RefusedError: nothing came before that is still there, or another move came first.
        IntegrityError: the previous version's artifact is damaged or missing.
    """
    registry = store.registry
    _check_bare(ref)
    reason = check_reason(reason)
    standing, earlier = registry.aliases.previous(ref.domain, ref.name, alias)
    store.fetch(earlier)
    move = registry.aliases.rollback(
        ref, alias, expected=standing.id, actor=actor, reason=reason or None
    )
    return AliasChange(move, _head(registry))


def unalias(
    registry: Registry, ref: Ref, alias: str, *, reason: str = "", actor: str | None = None
) -> AliasChange:
    """Take an alias away.

    Without a champion the newest version answers, which no gate was asked about. So dropping that
    alias needs a reason, and counts as forced.

    Raises:
        UsageError: the champion is to be dropped without a reason.
        NotFoundError: the adapter has no such alias.
    """
    _check_bare(ref)
    reason = check_reason(reason)
    forced = alias == CHAMPION and CHAMPION in registry.adapters.get(ref.domain, ref.name).aliases
    if forced and not reason:
        raise UsageError(
            f"Without a champion the newest version of {ref} answers, and no gate was asked about "
            "that; dropping it needs a reason.",
            f'Add --reason "…", or go back a version with `trunkline adapters rollback {ref}`.',
        )
    move = registry.aliases.drop(ref, alias, actor=actor, forced=forced, reason=reason or None)
    return AliasChange(move, _head(registry))


# ------------------------------------------------------------------------------------- the gate


def _asked(
    registry: Registry,
    version: VersionRecord,
    artifact: Artifact,
    metric: MetricNamed,
    demanded: GateSettings,
    actor: str,
) -> tuple[GateCheck, ...]:
    """Every condition with its figures."""
    evaluated = evaluation_report_of(registry, version)
    if evaluated is None:
        checks: list[GateCheck] = [GateCheck(EVALUATED, False, "no evaluation on its test rows")]
        two_persons = demanded.two_persons
    else:
        evaluation_report, recipes = evaluated
        better = evaluation_report.higher_is_better
        gate = tightened(recipes, demanded, higher_is_better=better)
        checks = [*_evaluated_here(registry, version), *check_gate(gate, evaluation_report)]
        if asks_champion(gate):
            labels = tuple(artifact.manifest.task.get("labels", ()))
            checks += _beside_champion(registry, version, gate, evaluation_report, labels, metric)
        two_persons = gate.two_persons
    if two_persons:
        checks.append(check_persons(Actor.parse(actor), registry.versions.contributors(version)))
    return tuple(checks)


def check_persons(promoter: Actor, makers: Sequence[str]) -> GateCheck:
    """Whether somebody who is known promotes what somebody else made."""
    made = ", ".join(makers) or "nobody who is recorded"
    figures = f"promoted by {promoter.text}; trained or imported by {made}"
    if not promoter.authenticated:
        return GateCheck(TWO_PERSONS, False, f"{figures}; the former is not authenticated")
    if any(promoter.is_same_person(Actor.parse(maker)) for maker in makers):
        return GateCheck(TWO_PERSONS, False, f"{figures}; that is one person")
    return GateCheck(TWO_PERSONS, bool(makers), figures)


def without_rows(version: VersionRecord, alias: str = CHAMPION) -> DataError:
    """Why an imported version without a dataset has no evaluation, and how ``alias`` can be moved
    to
    it all the same."""
    return DataError(
        f"{version.ref} can't be evaluated: it came without a dataset, so there are no rows "
        "to evaluate it on.",
        f'`{_command(version, alias)} --force --reason "…"` lets it go live all the same.',
    )


def _advice(version: VersionRecord, alias: str, failed: Sequence[GateCheck]) -> str:
    if all(check.name == TWO_PERSONS for check in failed):
        return (
            "Somebody else may, with an administrator's key of their own: "
            f"TRUNKLINE_API_KEY=… {_command(version, alias)} --url URL."
        )
    if any(check.name in (EVALUATED_HERE, EVALUATED) for check in failed):
        if version.dataset is None:
            why = without_rows(version, alias)
            return f"{why.message} {why.hint}"
        return f"Evaluate it here with `trunkline eval {version.ref}`, where its plugin is."
    return f'Train a better one, or `{_command(version, alias)} --force --reason "…"`.'


def _command(version: VersionRecord, alias: str) -> str:
    """What the user types to move this very alias to this very version."""
    which = "" if alias == CHAMPION else f" --alias {alias}"
    return f"trunkline adapters promote {version.ref}{which}"


def _beside_champion(
    registry: Registry,
    version: VersionRecord,
    gate: Gate,
    evaluation_report: EvaluationReport,
    labels: tuple[str, ...],
    metric: MetricNamed,
) -> tuple[GateCheck, ...]:
    move = _newest_move(registry, version, CHAMPION)
    if move is None or move.new is None:
        return no_champion(gate, "there is no champion")
    if move.new == version.number:
        return no_champion(gate, f"{version.ref} is the champion")
    champion = version.ref.at(move.new)
    try:
        found: Comparison | str = _compared(
            registry, version.ref, champion, lambda: metric(gate.metric), labels
        )
    except (DataError, NotFoundError, PluginError) as error:
        found = error.message
    return check_champion(gate, evaluation_report, str(champion), found)


def _compared(
    registry: Registry,
    ref: Ref,
    champion: Ref,
    metric: Callable[[], MetricSpec],
    labels: tuple[str, ...],
) -> Comparison:
    """Both on the same test rows.

    Raises:
        DataError: they were not evaluated on the same rows.
        NotFoundError, PluginError: the metric is not there, or fails.
    """
    ours = next(_evaluated_on_test(registry, ref))
    evaluated = list(_evaluated_on_test(registry, champion))
    if not evaluated:
        raise DataError("it was never evaluated on test rows")
    theirs = next((one for one in evaluated if _rows_of(one) == _rows_of(ours)), None)
    if theirs is None:
        raise DataError(
            f"the rows differ: its split is {evaluated[0].split_fingerprint[:12]}, "
            f"not {ours.split_fingerprint[:12]}"
        )
    return compare(
        metric(),
        registry.evaluations.predictions(ours.id),
        registry.evaluations.predictions(theirs.id),
        labels,
    )


def _rows_of(evaluation: EvaluationRecord) -> tuple[str, str, str]:
    return evaluation.dataset, evaluation.dataset_fingerprint, evaluation.split_fingerprint


def _evaluated_here(registry: Registry, version: VersionRecord) -> list[GateCheck]:
    """A refusal where the figures only came with the files: neither digest nor signature covers
    them."""
    if not next(_evaluated_on_test(registry, version.ref)).results.get(TOLD):
        return []
    told = f"the figures came with its files; evaluate it with `trunkline eval {version.ref}`"
    return [GateCheck(EVALUATED_HERE, False, told)]


def _evaluated_on_test(registry: Registry, ref: Ref) -> Iterator[EvaluationRecord]:
    """Evaluations of a version on its test rows, newest first."""
    return (one for one in registry.evaluations.list(version=ref) if one.split == "test")


# ---------------------------------------------------------------------------------- the aliases


def _check_free(alias: str) -> None:
    """Refuse what is no alias, or the name of a base that may not even be recorded here."""
    from trunkline.bases.sources import known_bases

    check_alias(alias)
    if alias in {base.name for base in known_bases()}:
        raise reserved_for_base(alias)


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
