"""Promote and roll back: the evidence first, then the move, with a reason."""

from __future__ import annotations

import shlex

from trunkline import promotion
from trunkline.console.pages import N_, Page, Redirect
from trunkline.console.routes import Routes
from trunkline.console.routes.versions import version_ref
from trunkline.console.view import View
from trunkline.errors import UsageError
from trunkline.promotion import Evidence, GateRefusedError
from trunkline.refs import Ref
from trunkline.registry.lookup import CHAMPION

routes = Routes()

_NEVER = "none"
"""Stands in the form for an alias that was never moved."""


@routes.get("/adapters/{domain}/{name}/{number:int}/promote")
def promotion_evidence(view: View) -> Page:
    """Every condition of the gate with its figures, and the form if the key may promote."""
    ref = version_ref(view)
    return _evidence_page(view, ref, view.text("alias") or CHAMPION)


@routes.post("/adapters/{domain}/{name}/{number:int}/promote", role="promoter")
def promote(view: View) -> Page | Redirect:
    """Move the alias, if it was not moved since the evidence was shown and the gate allows it."""
    ref, alias = version_ref(view), view.form.get("alias", "") or CHAMPION
    reason = _reason(view)
    force = view.form.get("force") == "yes"
    if force:
        view.access.check_role("admin")
    try:
        done = promotion.promote(
            view.platform.store,
            ref,
            alias,
            metric=view.platform.metric,
            demanded=view.platform.workspace.configuration.gate,
            force=force,
            reason=reason,
            actor=view.access.actor,
            expected=_expected(view),
        )
    except GateRefusedError as refused:
        return _evidence_page(view, ref, alias, refused)
    return Redirect(
        f"/adapters/{ref.adapter}",
        {"ref": str(done.version.ref), "alias": alias, "old": done.old, "new": done.new,
         "forced": done.forced, "checks": done.checks, "head": done.head},
        done="unchanged" if done.old == done.new else "promoted",
    )  # fmt: skip


@routes.get("/adapters/{domain}/{name}/rollback")
def rollback_evidence(view: View) -> Page:
    """Which version an alias would return to, and the form if the key may move it."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    alias = view.text("alias") or CHAMPION
    newest, earlier = view.registry.aliases.previous(ref.domain, ref.name, alias)
    return Page(
        "rollback.html",
        N_("Roll back"),
        {"adapter": ref.adapter, "alias": alias, "move": newest, "to": earlier},
        {"ref": ref},
        command=f'trunkline adapters rollback {ref.adapter}{_alias_option(alias)} --reason "…"',
        place="adapters",
    )


@routes.post("/adapters/{domain}/{name}/rollback", role="promoter")
def rollback(view: View) -> Redirect:
    """Move the alias back by one version, if it was not moved meanwhile."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    alias = view.form.get("alias", "") or CHAMPION
    change = promotion.rollback(
        view.platform.store,
        ref,
        alias,
        reason=_reason(view),
        actor=view.access.actor,
        expected=_expected(view),
    )
    return Redirect(
        f"/adapters/{ref.adapter}", {"move": change.move, "head": change.head}, done="rolled-back"
    )


def _evidence_page(
    view: View, ref: Ref, alias: str, refused: GateRefusedError | None = None
) -> Page:
    evidence = promotion.check(
        view.platform.store,
        ref,
        alias,
        metric=view.platform.metric,
        demanded=view.platform.workspace.configuration.gate,
        actor=view.access.actor,
    )
    report = promotion.evaluation_report_of(view.registry, evidence.version)
    return Page(
        "promote.html",
        N_("Promote"),
        {
            "version": evidence.version,
            "alias": alias,
            "passed": evidence.passed,
            "checks": evidence.checks,
            "current": evidence.move and evidence.move.new,
            "report": report and report[0],
            "error": refused and refused.message,
        },
        {
            "expected": _NEVER if evidence.move is None else str(evidence.move.id),
            "awaits_other": _awaits_other(evidence),
            "reason": view.form.get("reason", ""),
        },
        command=f'trunkline adapters promote {ref}{_alias_option(alias)} --reason "…"',
        place="adapters",
        status=200 if refused is None else refused.http_status,
    )


def _awaits_other(evidence: Evidence) -> bool:
    """Whether only another person is missing."""
    failed = [check.name for check in evidence.checks if not check.passed]
    return failed == [promotion.TWO_PERSONS]


def _alias_option(alias: str) -> str:
    return "" if alias == CHAMPION else f" --alias {shlex.quote(alias)}"


def _reason(view: View) -> str:
    reason = view.form.get("reason", "").strip()
    if not reason:
        raise UsageError(N_("The reason is missing."), N_("Write why; it is recorded for good."))
    return reason


def _expected(view: View) -> int | None:
    """The alias's newest move when the evidence was shown.

    Raises:
        UsageError: the form does not say.
    """
    text = view.form.get("expected", "")
    if text == _NEVER:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise UsageError(
            N_("The form is incomplete."), N_("Load the page with the evidence again.")
        )
    return int(text)
