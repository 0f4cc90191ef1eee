"""Plugins: what each contributes, and why one failed to load."""

from __future__ import annotations

from dataclasses import replace

from trunkline.console.pages import N_, Page
from trunkline.console.routes import Routes
from trunkline.console.view import View
from trunkline.plugins import PluginInfo

routes = Routes()

KINDS = ("datasets", "recipes", "losses", "metrics", "transforms", "baselines", "tasks")


@routes.get("/plugins")
def plugins(view: View) -> Page:
    """The installed plugins that have something for the key; tracebacks for administrators."""
    infos = [_visible(view, one) for one in view.platform.catalog.plugins]
    return Page(
        "plugins.html",
        N_("Plugins"),
        {"plugins": [one for one in infos if one is not None]},
        {"kinds": KINDS},
        command="trunkline plugins list",
        place="plugins",
    )


def _visible(view: View, plugin: PluginInfo) -> PluginInfo | None:
    access = view.access
    if not access.sees_everything:
        names = [*plugin.recipes, *plugin.datasets]
        seen = [name for name in names if access.may_use(name)]
        if not seen:
            return None
        datasets = tuple(filter(access.may_use, plugin.datasets))
        recipes = tuple(filter(access.may_use, plugin.recipes))
        plugin = replace(plugin, datasets=datasets, recipes=recipes)
    return plugin if access.may("admin") else replace(plugin, traceback=None)
