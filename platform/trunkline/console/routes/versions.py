"""One version: identity, evaluation, lineage, card and verification."""

from __future__ import annotations

from dataclasses import replace

from trunkline.console.evaluated import figures_of
from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.row_texts import row_texts
from trunkline.console.view import View
from trunkline.errors import NotFoundError
from trunkline.promotion import evaluation_report_of, evaluations_on_test
from trunkline.refs import Ref, shown
from trunkline.registry.lineage import Lineage

routes = Routes()


@routes.get("/adapters/{domain}/{name}/{number:int}")
def version(view: View) -> Page:
    """A version, also a removed one, with its evaluation and its lineage."""
    ref = version_ref(view)
    lineage = view.registry.lineage.of_version(ref)
    record = lineage.version
    assert record is not None
    evaluated = evaluation_report_of(view.registry, record)
    evaluation = next(evaluations_on_test(view.registry, ref), None)
    report, gate = evaluated or (None, None)
    figures = figures_of(view, record.task, evaluation)
    texts = row_texts(view, record.dataset)
    return Page(
        "version.html",
        str(ref),
        {
            "version": record,
            "report": report,
            "gate": gate,
            "reliability": figures.reliability,
            "confusion": figures.confusion,
            "labels": figures.labels,
            "worst": [{**one, "text": texts.get(one["row"])} for one in figures.worst],
            "lineage": _visible(view, lineage),
        },
        {"texts": texts},
        command=f"trunkline adapters show {ref}",
        place="adapters",
    )


@routes.get("/adapters/{domain}/{name}/{number:int}/card")
def card(view: View) -> Page:
    """The version's model card."""
    ref = version_ref(view)
    record = view.registry.versions.resolve(ref)[0]
    return Page(
        "card.html",
        str(ref),
        {"version": record, "card": view.platform.store.render_card(record)},
        command=f"trunkline adapters card {ref}",
        place="adapters",
    )


@routes.post("/adapters/{domain}/{name}/{number:int}/verify")
def verify(view: View) -> Page:
    """Recompute the digests of the version's files; changes nothing."""
    ref = version_ref(view)
    record = view.registry.versions.resolve(ref)[0]
    return Page(
        "verified.html",
        str(ref),
        {"version": record, "result": view.platform.verify(record)},
        command=f"trunkline adapters verify {ref}",
        place="adapters",
    )


@routes.get("/lineage")
def lineage(view: View) -> Page:
    """From the id of a request back to the version, the run and the data."""
    id = view.text("request")
    traced = view.registry.lineage.of_request(id)
    request = traced.request
    assert request is not None
    adapter = (request.version or "").partition("@")[0]
    if not view.access.may_use(adapter) and not view.access.sees_everything:
        raise NotFoundError(f"There is no request {shown(id)} in the log.", "Search for it.")
    own = view.access.key is not None and request.key == view.access.key.id
    return Page(
        "lineage.html",
        N_("Lineage of a request"),
        {"lineage": _visible(view, traced, with_text=own or view.access.may("admin"))},
        {"request": request},
        command=f"trunkline lineage --request {request.id}",
        place="requests",
    )


def version_ref(view: View) -> Ref:
    """The version that the path names, if the key may use its adapter."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    return ref.at(view.path["number"])


def _visible(view: View, lineage: Lineage, *, with_text: bool = False) -> Lineage:
    """The lineage without what concerns adapters that the key may not use, and without texts."""

    def may_see(ref: str) -> bool:
        return view.access.may_use(ref.partition("@")[0])

    request = lineage.request
    if request is not None and not with_text:
        request = replace(request, text=None, output=None)
    return replace(
        lineage,
        request=request,
        duplicates=tuple(filter(may_see, lineage.duplicates)),
        merged_into=tuple(filter(may_see, lineage.merged_into)),
        loads=tuple(one for one in lineage.loads if may_see(one.version)),
    )
