"""Datasets as they were used, and their check report and Croissant description now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.responses import JSONResponse, Response

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.contracts import DatasetSpec
from trunkline.data.cases import read_cases
from trunkline.data.check import check_dataset
from trunkline.data.check_page import sheet_url
from trunkline.data.croissant import croissant_of
from trunkline.data.prepare import default_recipe
from trunkline.errors import NotFoundError

routes = Routes()

PAGE_SIZE = 50
LABELS = 60
CASES = 20
PARTS = ("train", "validation", "test")


@routes.get("/datasets")
def datasets(view: View) -> Page:
    """The plugins' datasets, and the recorded ones, newest first."""
    before = view.number("before")
    listed = view.registry.sources.list_datasets(
        limit=PAGE_SIZE + 1, before=before, scope=view.access.scope
    )
    records = listed[:PAGE_SIZE]
    specs = [one for one in view.platform.catalog.datasets() if view.access.may_use(one.name)]
    return Page(
        "datasets.html",
        N_("Datasets"),
        {
            "specs": [_fields(spec) for spec in specs],
            "datasets": records,
            "next": records[-1].id if len(listed) > PAGE_SIZE else None,
        },
        command="trunkline datasets list",
        place="datasets",
    )


@routes.get("/datasets/{domain}/{name}")
def dataset(view: View) -> Page:
    """One dataset: every state that was used, with its split."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    spec = _spec(view, ref.adapter)
    states = view.registry.sources.list_datasets(name=ref.adapter, limit=PAGE_SIZE)
    if spec is None and not states:
        raise NotFoundError(f"There is no dataset '{ref.adapter}'.", "List them under Datasets.")
    return Page(
        "dataset.html",
        ref.adapter,
        {
            "name": ref.adapter,
            "spec": None if spec is None else _fields(spec),
            "states": states,
            "check": None,
        },
        {"labels": {}, "parts": PARTS, **_cases(view, ref.adapter)},
        command=f"trunkline datasets show {ref.adapter}",
        place="datasets",
    )


@routes.post("/datasets/{domain}/{name}/check")
def check(view: View) -> Page:
    """Read the rows now and examine them; trains and changes nothing."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    catalog = view.platform.catalog
    spec = catalog.dataset(ref.adapter)
    users = (recipe for recipe in catalog.recipes() if recipe.dataset == spec.name)
    recipe = next(users, default_recipe(spec))
    result = check_dataset(
        spec, recipe, tuple(map(catalog.transform, recipe.transforms)), contact_sheet=True
    )
    shown: Mapping[str, int] = dict(list(result.labels.items())[:LABELS])
    return Page(
        "dataset.html",
        ref.adapter,
        {
            "name": ref.adapter,
            "spec": _fields(spec),
            "states": view.registry.sources.list_datasets(name=ref.adapter, limit=PAGE_SIZE),
            "check": replace(result, contact_sheet=None),
        },
        {
            "labels": shown,
            "parts": PARTS,
            "sheet": sheet_url(result),
            **_cases(view, ref.adapter),
        },
        command=f"trunkline datasets check {ref.adapter}",
        place="datasets",
    )


@routes.get("/datasets/{domain}/{name}/croissant.json")
def croissant(view: View) -> Response:
    """The Croissant description of the rows now."""
    ref = view.access.check_adapter(view.path["domain"], view.path["name"])
    view.platform.catalog.dataset(ref.adapter)
    report = view.platform.dataset_report(ref.adapter)
    prepared = report.prepared
    return JSONResponse(
        croissant_of(report.spec, prepared.split, prepared.fingerprint),
        headers={"content-disposition": 'attachment; filename="croissant.json"'},
    )


def _cases(view: View, name: str) -> dict[str, Any]:
    """The newest test cases, and how many there are."""
    cases = read_cases(view.platform.workspace, name)
    shown = [{"target": "", "output": "", "version": "", "actor": "", **one} for one in cases]
    return {"cases": shown[: -CASES - 1 : -1], "case_count": len(cases)}


def _spec(view: View, name: str) -> DatasetSpec | None:
    return next((one for one in view.platform.catalog.datasets() if one.name == name), None)


def _fields(spec: DatasetSpec) -> dict[str, Any]:
    names = (
        *("name", "description", "task", "unit", "license", "restrictions", "source", "grouping"),
        "slices",
    )
    return {name: getattr(spec, name) for name in names}
