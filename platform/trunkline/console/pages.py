"""Pages and redirects: what a route returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def N_(text: str) -> str:
    """Mark a text for the catalog; it is translated where it is shown."""
    return text


@dataclass(frozen=True, slots=True)
class Page:
    """A page, before it is rendered as HTML or JSON.

    Attributes:
        template: name of the file in ``templates/``.
        title: in English, marked with :func:`N_`, or a name.
        data: what the JSON has; the template sees each entry by its name.
        shown: what only the template needs, such as the geometry of a chart.
        command: the command line that prints the same.
        place: the entry of the navigation that the page belongs to.
        status: of HTTP.
        fresh: whether no cache may keep the page, because it shows a secret.
    """

    template: str
    title: str
    data: Mapping[str, Any]
    shown: Mapping[str, Any] = field(default_factory=dict)
    command: str | None = None
    place: str | None = None
    status: int = 200
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """The end of an action: a browser is sent to a page of the console.

    Attributes:
        path: below ``/console``; made by the code, never from what a client sent.
        data: the result, for clients that ask for JSON.
        done: a key of :data:`NOTICES`, shown on the next page.
    """

    path: str
    data: Mapping[str, Any] = field(default_factory=dict)
    done: str | None = None


NOTICES = {
    "promoted": N_("The alias was moved."),
    "unchanged": N_("The alias points there already; nothing was changed."),
    "rolled-back": N_("The alias was rolled back."),
    "revoked": N_("The key was revoked."),
    "pinned": N_("The version is pinned."),
    "unpinned": N_("The version is no longer pinned."),
    "loaded": N_("The version is loaded."),
    "unloaded": N_("The version was unloaded."),
    "heads-saved": N_("Recorded who saved the heads, and when."),
    "case-saved": N_("The test case was saved."),
    "stopping": N_("The run stops after its step."),
    "stopped": N_("The training was asked to stop."),
    "signed-out": N_("You are signed out."),
}
"""What an action did; the next page shows it."""


@dataclass(frozen=True, slots=True)
class Place:
    """An entry of the navigation; ``role`` and ``everything`` are what a key needs to see it."""

    name: str
    path: str
    title: str
    role: str = "viewer"
    everything: bool = False


NAVIGATION = (
    Place("home", "", N_("Home")),
    Place("adapters", "/adapters", N_("Adapters")),
    Place("compare", "/compare", N_("Compare")),
    Place("datasets", "/datasets", N_("Datasets")),
    Place("runs", "/runs", N_("Runs")),
    Place("train", "/train", N_("Train"), role="promoter"),
    Place("playground", "/playground", N_("Playground"), role="tester"),
    Place("requests", "/requests", N_("Requests")),
    Place("serving", "/serving", N_("Serving")),
    Place("audit", "/audit", N_("Audit"), everything=True),
    Place("keys", "/keys", N_("Keys"), role="admin", everything=True),
    Place("plugins", "/plugins", N_("Plugins")),
)

TEXTS = (
    N_("beats the baseline"),
    N_("beats the champion"),
    N_("two persons"),
    N_("has been evaluated"),
    N_("was evaluated here"),
    N_("opening the base"),
    N_("reading data"),
    N_("reading data, building the adapter, timing a step"),
    N_("encoding"),
    N_("loading the base"),
    N_("training"),
    N_("validating"),
    N_("calibrating"),
    N_("proving the artifact"),
    N_("predicting the test rows"),
    N_("evaluating"),
    N_("publishing"),
    N_("history"),
    N_("loads"),
    N_("moves"),
)
"""Conditions of gates, stages of trainings and parts of a lineage, which pages translate where they
show them."""
